"""Other programs' ways to store a checkpoint given the one before it, each with the settings that made it smallest.

Every function takes two safetensors files with the same tensors, the newer one first, and an empty folder; stores the
newer one given the older one, checks that it comes back bit for bit, and returns the bytes that the newer one adds.
Where settings were in doubt it tries them and returns the smallest.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray
from safetensors import safe_open

__all__ = ["PEERS", "Peer", "byte_tensors", "installed", "ordered", "silence", "xor_planes", "xor_zstd"]

U8 = NDArray[np.uint8]
ZIPNN_TYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
MOONCLIP_TYPES = ZIPNN_TYPES
Z4AI_TYPES = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}


class Peer(NamedTuple):
    """``stored(new, old, scratch)`` is the size; ``module`` is what it imports."""

    title: str
    module: str
    stored: Callable[[Path, Path, Path], int]


def byte_tensors(path: Path) -> Iterator[tuple[str, str, list[int], int, U8]]:
    """(name, dtype as safetensors names it, shape, bytes of an element, its bytes) of each tensor."""
    import torch

    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (a safetensors file is no dict)
            tensor = file.get_tensor(name).contiguous()
            kind, size = file.get_slice(name).get_dtype(), tensor.element_size()
            yield name, kind, list(tensor.shape), size, tensor.reshape(-1).view(torch.uint8).numpy()


def xor_planes(data: memoryview | U8, parent: memoryview | U8, size: int) -> int:
    """Bytes of XOR, byte planes of elements of ``size`` bytes, zstd -3 of each plane."""
    changed = (np.frombuffer(data, np.uint8) ^ np.frombuffer(parent, np.uint8)).reshape(-1, size)
    packer = zstandard.ZstdCompressor(3)
    return sum(len(packer.compress(changed[:, j].tobytes())) for j in range(size))


def xor_zstd(new: Path, old: Path) -> int:
    """XOR, byte planes and zstd -3 of each tensor (BitX of ZipLLM, https://arxiv.org/abs/2505.06252); payloads alone,
    no names."""
    pairs = zip(byte_tensors(new), byte_tensors(old), strict=True)
    return sum(xor_planes(one[4], other[4], one[3]) for one, other in pairs)


def _tree(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _same(title: str, good: bool) -> None:
    if not good:
        raise SystemExit(f"{title}: what comes back differs")


def lmzip(new: Path, old: Path, scratch: Path) -> int:
    """lmzip: what ``append`` adds to an archive that holds the older one, and what the newer one adds when both are
    packed at once, each at levels 1, 3 and 9."""
    lmz: Any = importlib.import_module("lmz")
    sizes = []
    for level in (1, 3, 9):
        both = scratch / f"both-{level}"
        both.mkdir()
        for number, source in enumerate((old, new)):
            shutil.copyfile(source, both / f"{number}.safetensors")
        alone, grown, packed = (scratch / f"{name}-{level}.lmz" for name in ("alone", "grown", "packed"))
        lmz.compress(str(both / "0.safetensors"), str(alone), level=level)
        shutil.copyfile(alone, grown)
        lmz.append(str(grown), str(both / "1.safetensors"), level=level)
        lmz.compress(str(both), str(packed), level=level)
        for archive in (grown, packed):
            back = scratch / "back.safetensors"
            lmz.extract(str(archive), "1.safetensors", str(back), overwrite=True)
            _same("lmzip", back.read_bytes() == new.read_bytes())
            sizes.append(archive.stat().st_size - alone.stat().st_size)
    return min(sizes)


def z4ai(new: Path, old: Path, scratch: Path) -> int:
    """z4ai: ``model_delta`` of the files, and ``delta`` of each tensor told its type or none."""
    whole: Any = importlib.import_module("z4ai.model_delta")
    delta: Any = importlib.import_module("z4ai.delta")
    target, base = new.read_bytes(), old.read_bytes()
    blob = whole.compress(target, base)
    _same("z4ai", whole.decompress(blob, base) == target)
    each = 0
    for (_, kind, _, _, data), (*_, before) in zip(byte_tensors(new), byte_tensors(old), strict=True):
        types = Z4AI_TYPES[kind], None
        frames = [delta.compress(data.tobytes(), before.tobytes(), dtype=dtype) for dtype in types]
        best = min(frames, key=len)
        _same("z4ai", bytes(delta.decompress(best, before.tobytes())) == data.tobytes())
        each += len(best)
    return min(len(blob), each)


def zipnn(new: Path, old: Path, scratch: Path) -> int:
    """zipnn: ``delta_compressed_type="byte"`` of each tensor, told its type, fp32 or single bytes; for each tensor the
    smallest. It takes Huffman's codes, of a bit or more for each byte, whichever method it is told."""
    coder: Any = importlib.import_module("zipnn").ZipNN
    total = 0
    for (_, kind, _, _, data), (*_, before) in zip(byte_tensors(new), byte_tensors(old), strict=True):
        content, reference = data.tobytes(), before.tobytes()
        blobs = []
        for dtype in {ZIPNN_TYPES[kind], "float8_e4m3fn"} | (set() if len(content) % 4 else {"float32"}):
            made = coder(input_format="byte", bytearray_dtype=dtype, delta_compressed_type="byte")
            blobs.append((made.compress(content, delta_second_data=reference), made))
        best, made = min(blobs, key=lambda item: len(item[0]))
        _same("zipnn", bytes(made.decompress(best, delta_second_data=reference)) == content)
        total += min(len(best), len(content))
    return total


def moonclip(new: Path, old: Path, scratch: Path) -> int:
    """moonclip: what the second of two saves adds to its folder, its manifest included, at zstd levels 3 and 9; a
    tensor is stored as a difference whenever that is smaller."""
    manager: Any = importlib.import_module("moonclip").MoonclipManager
    sizes = []
    for level in (3, 9):
        root = scratch / f"level-{level}"
        keeper = manager(
            storage_root=str(root), compression_level=level, full_every_steps=10**9, delta_max_ratio=1.0,
            async_save=False,
        )  # fmt: skip
        sized = []
        for step, source in enumerate((old, new)):
            tensors = {name: (shape, MOONCLIP_TYPES[kind], data.tobytes())
                       for name, kind, shape, _, data in byte_tensors(source)}  # fmt: skip
            snapshot = keeper.save_tensors(step, tensors)
            keeper.flush()
            sized.append(_tree(root))
        if not keeper.describe(snapshot)["is_delta"]:
            raise SystemExit("moonclip: the second save is no difference")
        back = keeper.load(snapshot)
        _same("moonclip", all(bytes(back[name]) == content for name, (_, _, content) in tensors.items()))
        sizes.append(sized[1] - sized[0])
    return min(sizes)


def bigsmall(new: Path, old: Path, scratch: Path) -> int:
    """bigsmall: ``compress_delta``, which keeps the smaller of XOR and no reference for each tensor."""
    os.environ["BIGSMALL_DISABLE_VERSION_CHECK"] = "1"
    module: Any = importlib.import_module("bigsmall")
    stored = scratch / "delta.bs"
    module.compress_delta(str(new), str(old), str(stored), workers=1, progress=False)
    back = module.decompress_delta(str(stored), str(old), progress=False)
    for name, *_, data in byte_tensors(new):
        _same("bigsmall", np.asarray(back[name]).tobytes() == data.tobytes())
    return stored.stat().st_size


def differences(new: Path, old: Path, scratch: Path) -> int:
    """pcodec at level 12 of differences of integers in the order of the numbers (no program does this)."""
    standalone: Any = importlib.import_module("pcodec.standalone")
    config: Any = importlib.import_module("pcodec").ChunkConfig(compression_level=12)
    total = 0
    for (*_, size, data), (*_, before) in zip(byte_tensors(new), byte_tensors(old), strict=True):
        one, other = (ordered(side, size) for side in (data, before))
        blob = standalone.simple_compress(one - other, config)
        _same("pcodec", bool((standalone.simple_decompress(blob) + other == one).all()))
        total += len(blob)
    return total


def ordered(data: U8, size: int) -> NDArray[Any]:
    """Words of ``size`` bytes as integers whose order is that of the numbers; differences wrap around."""
    words = data.view(f"<i{size}")
    return np.where(words < 0, words ^ np.array(~(-1 << (8 * size - 1)), words.dtype), words)


PEERS = (
    Peer("lmzip", "lmz", lmzip),
    Peer("z4ai", "z4ai", z4ai),
    Peer("zipnn", "zipnn", zipnn),
    Peer("moonclip", "moonclip", moonclip),
    Peer("bigsmall", "bigsmall", bigsmall),
    Peer("pcodec of differences", "pcodec", differences),
)


def installed(peers: Iterable[Peer]) -> tuple[list[Peer], list[str]]:
    """(those that can be imported, titles of those that cannot)."""
    found, missing = [], []
    for peer in peers:
        try:
            importlib.import_module(peer.module)
            found.append(peer)
        except ImportError:
            missing.append(peer.title)
    return found, missing


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Without what other programs say."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
