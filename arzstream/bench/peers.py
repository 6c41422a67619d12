"""Programs that code buffers in memory, each with the settings that served it best on real weights.

Every class says which settings those are and why. A peer gets whole tensors (small ones of one type side by side, as
in an archive), told apart by their types where its API wants to know. What it has no use for, or makes larger, counts
as kept: that is what a user of it would do. Where an API decodes into given memory, it does so here.

Of files that hold no tensors that we could name, a user may know more than we do: each peer is told the element type
(bytes, bf16, fp16 or fp32) with which it makes a piece of the file smallest.
"""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import numpy as np

from arzstream.bench.contender import BufferContender, Item
from arzstream.bench.sample import U8, Sample
from arzstream.codec.base import ChunkContext
from arzstream.codec.dtypes import dtype

__all__ = ["Blosc2", "OpenZL", "Pcodec", "Z4ai", "ZipNN", "Zstandard"]

GUESSES = ("U8", "BF16", "F16", "F32")
GUESS_BYTES = 1 << 18


def _element(item: Item) -> int:
    """Bytes of an element, of one half for complex numbers."""
    return item.context.dtype.itemsize // item.context.dtype.components


class Peer(BufferContender):
    """A contender that is told types, and guesses them for large runs of plain bytes."""

    def __init__(self) -> None:
        self._guesses: dict[tuple[int, int], str] = {}

    def cut(self, sample: Sample) -> list[Item]:
        return [piece for item in super().cut(sample) for piece in self._understood(item)]

    def _understood(self, item: Item) -> list[Item]:
        """``item``, or for plain bytes the elements they seem to be, and what is left at the end."""
        if item.dtype != "U8" or item.data.nbytes < GUESS_BYTES:
            return [item]
        key = item.data.ctypes.data, item.data.nbytes
        if key not in self._guesses:
            middle = (item.data.nbytes - GUESS_BYTES) // 2 & ~7
            piece = item.data[middle : middle + GUESS_BYTES]
            sizes = {name: self._size(_as(piece, name)) for name in GUESSES}
            self._guesses[key] = min(sizes, key=sizes.__getitem__)
        whole = item.data.nbytes & ~7
        pieces = [_as(item.data[:whole], self._guesses[key])]
        return pieces + ([_as(item.data[whole:], "U8")] if whole < item.data.nbytes else [])

    def _size(self, item: Item) -> int:
        blob = self.encode_item(item, 1)
        return item.data.nbytes if blob is None else len(blob)


def _as(data: U8, name: str) -> Item:
    """Plain bytes as a column of elements."""
    return Item(data, ChunkContext(dtype(name), data.nbytes // dtype(name).itemsize, 1))


class ZipNN(Peer):
    """zipnn 0.5: ``method="AUTO"`` (byte groups, Huffman), ``bytearray_dtype`` set to the tensor's type, its own
    threads. Its other chunk sizes were no smaller on real weights. Bytes and integers, of which it takes no notice,
    are given to it as fp8, which is Huffman coding of single bytes. It overwrites its input where it reorders bits, so
    it gets a copy, made outside the time."""

    own_threads = True
    settings = "AUTO, bytearray_dtype of the tensor, own threads"
    _TYPES: ClassVar = {
        "BF16": "bfloat16",
        "F16": "float16",
        "F32": "float32",
        "C64": "float32",
        "F8_E5M2": "float8_e5m2",
    }

    def __init__(self) -> None:
        super().__init__()
        self._class = importlib.import_module("zipnn").ZipNN
        self._coders: dict[tuple[str, int], Any] = {}
        self._copies: dict[int, bytearray] = {}

    def _coder(self, item: Item, threads: int) -> Any:
        key = self._TYPES.get(item.dtype, "float8_e4m3fn"), threads
        if key not in self._coders:
            self._coders[key] = self._class(input_format="byte", bytearray_dtype=key[0], threads=threads)
        return self._coders[key]

    def ready(self) -> None:
        super().ready()
        self._copies = {id(item): bytearray(item.data) for item in self.items}

    def encode_item(self, item: Item, threads: int) -> Any:
        return self._coder(item, threads).compress(self._copies.pop(id(item), None) or bytearray(item.data))

    def decode_item(self, item: Item, blob: Any, out: U8, threads: int) -> Any:
        return self._coder(item, threads).decompress(blob)


class Zstandard(Peer):
    """zstandard at a level; with ``planes`` the bytes of the elements are first put into planes (byte 0 of all, byte 1
    of all, …), which is what BitX and most others do to floats, and each plane is a frame of its own."""

    def __init__(self, level: int, planes: bool) -> None:
        super().__init__()
        self.settings = f"level {level}, " + ("a frame per byte plane" if planes else "a frame per tensor")
        self._level, self._planes = level, planes
        self._zstd = importlib.import_module("zstandard")

    def encode_item(self, item: Item, threads: int) -> Any:
        coder = self._zstd.ZstdCompressor(level=self._level)
        size = _element(item) if self._planes else 1
        if size == 1:
            return _Frames([coder.compress(item.data)])
        planes = np.ascontiguousarray(item.data.reshape(-1, size).T)
        return _Frames([coder.compress(plane) for plane in planes])

    def decode_item(self, item: Item, blob: Any, out: U8, threads: int) -> Any:
        decoder = self._zstd.ZstdDecompressor()
        if len(blob.frames) == 1:
            return decoder.decompress(blob.frames[0])
        target = out.reshape(-1, len(blob.frames))
        for k, frame in enumerate(blob.frames):
            target[:, k] = np.frombuffer(decoder.decompress(frame), np.uint8)
        return None


class _Frames:
    """Several frames that belong together."""

    def __init__(self, frames: list[bytes]) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return sum(map(len, self.frames))


class Pcodec(Peer):
    """pcodec at a level, automatic mode, a file per tensor, decoded with ``simple_decompress_into``. bf16 is given as
    fp16, which it codes a little smaller than as uint16; fp8 and bytes as uint8, for which it has to be asked."""

    _TYPES: ClassVar = {"BF16": "<f2", "BOOL": "|u1", "C64": "<f4", "C128": "<f8"}

    def __init__(self, level: int) -> None:
        super().__init__()
        self.settings = f"level {level}, automatic mode, a file per tensor"
        self._standalone = importlib.import_module("pcodec.standalone")
        config = importlib.import_module("pcodec").ChunkConfig
        self._config = config(compression_level=level)
        self._bytes = config(compression_level=level, enable_8_bit=True)

    def _view(self, item: Item, data: U8) -> Any:
        return data.view(self._TYPES.get(item.dtype, item.context.dtype.numpy))

    def encode_item(self, item: Item, threads: int) -> Any:
        config = self._bytes if _element(item) == 1 else self._config
        return self._standalone.simple_compress(self._view(item, item.data), config)

    def decode_item(self, item: Item, blob: Any, out: U8, threads: int) -> Any:
        self._standalone.simple_decompress_into(blob, self._view(item, out))


class Blosc2(Peer):
    """blosc2: byte shuffle and Zstandard at its level 1, which is the smallest and the fastest of 1, 5, 9 and of byte
    and bit shuffle on bf16; its own threads."""

    own_threads = True
    settings = "shuffle, Zstandard, clevel 1, own threads"

    def __init__(self) -> None:
        super().__init__()
        self._blosc2 = importlib.import_module("blosc2")

    def encode_item(self, item: Item, threads: int) -> Any:
        b = self._blosc2
        if item.data.nbytes < 32 or item.data.nbytes > b.MAX_BUFFERSIZE:
            return None
        return b.compress2(
            item.data, typesize=_element(item), clevel=1, codec=b.Codec.ZSTD, filters=[b.Filter.SHUFFLE],
            nthreads=threads,
        )  # fmt: skip

    def decode_item(self, item: Item, blob: Any, out: U8, threads: int) -> Any:
        self._blosc2.decompress2(blob, dst=out, nthreads=threads)


class OpenZL(Peer):
    """openzl: for floats a graph built by hand, which takes the exponents apart, codes them with FSE or Huffman, and
    each byte of the rest with its order-0 coder, which is no larger than storing it; its generic graph for all else."""

    _NODES: ClassVar = {
        "BF16": "BFloat16Deconstruct",
        "F16": "Float16Deconstruct",
        "F32": "Float32Deconstruct",
        "C64": "Float32Deconstruct",
    }

    def __init__(self, coder: str) -> None:
        super().__init__()
        self._coder = coder
        self.settings = f"float deconstruct, exponents {coder}, other bytes Entropy; else Compress"
        self._openzl = importlib.import_module("openzl.ext")
        self._compressors: dict[str, Any] = {}

    def _context(self, kind: str) -> Any:
        """A context can be used by one thread at a time; a compressor, which is the graph, by all."""
        z = self._openzl
        if kind not in self._compressors:
            compressor = z.Compressor()
            graph = z.graphs.Compress()(compressor)
            if kind in self._NODES:
                rest, exponents = z.graphs.Entropy()(compressor), getattr(z.graphs, self._coder)()(compressor)
                if kind != "BF16":
                    rest = compressor.build_static_graph(z.nodes.TransposeSplit().base_node, [rest])
                node = getattr(z.nodes, self._NODES[kind])()
                graph = compressor.build_static_graph(node.base_node, [rest, exponents])
            compressor.select_starting_graph(graph)
            self._compressors[kind] = compressor
        context = z.CCtx()
        context.ref_compressor(self._compressors[kind])
        context.set_parameter(z.CParam.FormatVersion, z.MAX_FORMAT_VERSION)
        return context

    def encode_item(self, item: Item, threads: int) -> Any:
        z, size = self._openzl, _element(item)
        numeric = (
            z.Input(z.Type.Numeric, item.data.view(f"<u{size}")) if size > 1 else z.Input(z.Type.Serial, item.data)
        )
        return self._context(item.dtype).compress([numeric])

    def decode_item(self, item: Item, blob: Any, out: U8, threads: int) -> Any:
        content = self._openzl.DCtx().decompress(blob)[0].content
        return content.as_nparray().reshape(-1).view(np.uint8)


class Z4ai(Peer):
    """z4ai: its default tier, which with rANS is its best ratio but for ``effort="max"``, a search that took it below
    10 MB/s for a few hundredths of a percent; its own threads."""

    own_threads = True
    settings = "default effort, dtype of the tensor, own threads"
    _TYPES: ClassVar = {
        "BF16": "bf16", "F16": "fp16", "F32": "fp32", "F64": "fp64", "C64": "fp32", "C128": "fp64", "I64": "int64",
        "I32": "int32", "I16": "int16", "U64": "uint64", "U32": "uint32", "U16": "uint16", "F8_E4M3": "fp8_e4m3",
        "F8_E5M2": "fp8_e5m2", "I8": "int8",
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._z4ai = importlib.import_module("z4ai")

    def encode_item(self, item: Item, threads: int) -> Any:
        return self._z4ai.compress(item.data.data, dtype=self._TYPES.get(item.dtype, "uint8"), threads=threads)

    def decode_item(self, item: Item, blob: Any, out: U8, threads: int) -> Any:
        return self._z4ai.decompress(blob)
