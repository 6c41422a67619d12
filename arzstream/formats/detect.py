"""Which parser a file gets: by its name where that is telling, and by its first bytes in any case.

A name is a hint only. ``model.safetensors.tmp``, the blobs of a Hugging Face cache and other files without a telling
name are known by their content, and a ``.bin`` that is no zip file is opaque.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from arzstream.formats import npy
from arzstream.formats.base import Layout, Parser, ReadAt, opaque
from arzstream.formats.beside import NOTHING, Beside
from arzstream.formats.companions import Companions
from arzstream.formats.deepspeed import DeepSpeedParser, is_optimizer_state
from arzstream.formats.distcp import DistcpParser
from arzstream.formats.flax_msgpack import FlaxParser, looks_like_flax
from arzstream.formats.gguf import MAGIC as GGUF_MAGIC
from arzstream.formats.gguf import GgufParser
from arzstream.formats.hdf5 import MAGIC as HDF5_MAGIC
from arzstream.formats.hdf5 import Hdf5Parser
from arzstream.formats.npz import NpzParser
from arzstream.formats.onnx import OnnxParser, looks_like_onnx
from arzstream.formats.opaque import OpaqueParser
from arzstream.formats.safetensors import SafetensorsParser, looks_like_safetensors
from arzstream.formats.sharded_safetensors import ShardedSafetensorsParser
from arzstream.formats.torch_legacy import TorchLegacyParser
from arzstream.formats.torch_zip import TorchZipParser
from arzstream.limits import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from arzstream.formats.unknown import UnknownContent

__all__ = ["parser_for", "tells_of_others"]

SAFETENSORS_NAMES = (".safetensors",)
TORCH_NAMES = (".pt", ".pth", ".ckpt", ".pt2")
GGUF_NAMES = (".gguf",)
DISTCP_NAMES = (".distcp",)
NPY_NAMES, NPZ_NAMES, ONNX_NAMES, FLAX_NAMES = (".npy",), (".npz",), (".onnx",), (".msgpack",)
KERAS_NAMES = (".keras",)
"""A zip file of no kind that is known, so that nobody waits for it to become one."""
EXPECTED = {
    TORCH_NAMES: "PyTorch zip file",
    GGUF_NAMES: "GGUF file",
    NPY_NAMES: "NumPy file",
    NPZ_NAMES: "NumPy zip file",
    ONNX_NAMES: "ONNX file",
    FLAX_NAMES: "msgpack file of flax",
}
"""What a file of such a name would be."""
GUESSED = {"onnx": ONNX_NAMES, "flax": FLAX_NAMES}
"""Kinds whose first bytes say little: under another name a file is one of them when tensors are found."""
PLAIN_NAMES = (
    ".json",
    ".jsonl",
    ".txt",
    ".md",
    ".yaml",
    ".yml",
    ".toml",
    ".csv",
    ".log",
    ".py",
    ".jinja",
)

_SNIFFED = 128
_ZIP = b"PK\x03\x04"
_OLD_TORCH = bytes.fromhex("8a0a6cfc9c46f9206aa85019")  # torch.serialization.MAGIC_NUMBER, pickled


def parser_for(
    path: bytes | str,
    limits: Limits = DEFAULT_LIMITS,
    companions: Companions | None = None,
    beside: Beside = NOTHING,
) -> Parser:
    """The parser for the file of this name (only the name is looked at; nothing is opened).

    ``path`` is relative to the checkpoint, whose files are ``beside`` it. With ``companions``, which all files of a
    checkpoint share, what other files tell of this one counts, and a complete file of no known structure is looked at
    for arrays of floats.
    """
    name = os.fsdecode(path)
    if name.lower().endswith(DISTCP_NAMES):
        return DistcpParser(os.fsencode(path), beside, limits)
    if name.lower().endswith(SAFETENSORS_NAMES):
        return ShardedSafetensorsParser(os.fsencode(path), beside, limits)
    if is_optimizer_state(os.fsencode(path)):
        return DeepSpeedParser(os.fsencode(path), beside, limits)
    if name.lower().endswith(PLAIN_NAMES):
        return OpaqueParser()
    return _SniffingParser(name, limits, companions)


def tells_of_others(path: bytes) -> bool:
    """Whether the file of this name may tell what is in other files of its checkpoint."""
    return os.fsdecode(path).lower().endswith(ONNX_NAMES)


class _SniffingParser:
    """Looks at the first bytes at each call, which is when a rewritten file may have turned into another kind."""

    def __init__(self, path: str, limits: Limits, companions: Companions | None) -> None:
        self._path, self._name = path, path.lower()
        self._limits = limits
        self._companions = companions
        self._unknown: UnknownContent | None = None
        self._kind = ""
        self._parser: Parser = OpaqueParser()

    def update(self, read: ReadAt, frontier: int, final: bool) -> Layout:
        start = read(0, min(frontier, _SNIFFED))
        kind = _kind(start, self._name)
        if kind != self._kind:
            self._kind, self._parser = kind, self._make(kind)
        layout = self._parser.update(read, frontier, final)
        if final and layout.format == "opaque":
            return self._opaque(read, frontier, self._note(kind, layout.note, frontier))
        if kind in GUESSED and not layout.storages and not self._name.endswith(GUESSED[kind]):
            return opaque(frontier, final=final)
        return layout

    def _make(self, kind: str) -> Parser:
        makers: dict[str, Callable[[], Parser]] = {
            "zip": lambda: TorchZipParser(self._limits),
            "old-torch": lambda: TorchLegacyParser(self._limits),
            "gguf": lambda: GgufParser(self._limits),
            "safetensors": lambda: SafetensorsParser(self._limits),
            "npy": lambda: npy.NpyParser(npy.name_of(self._path), self._limits),
            "npz": lambda: NpzParser(self._limits),
            "onnx": lambda: OnnxParser(self._path, self._companions, self._limits),
            "hdf5": lambda: Hdf5Parser(self._limits),
            "flax": lambda: FlaxParser(self._limits),
        }
        return makers.get(kind, OpaqueParser)()

    def _opaque(self, read: ReadAt, size: int, note: str) -> Layout:
        """The layout of a complete file that tells nothing itself."""
        if self._companions is None:
            return opaque(size, note)
        told = self._companions.layout(self._path, size)
        if told is not None:
            return told
        if self._unknown is None:
            from arzstream.formats.unknown import UnknownContent  # imports NumPy, which nothing else here needs

            self._unknown = UnknownContent()
        return self._unknown.layout(read, size, note)

    def _note(self, kind: str, note: str, size: int) -> str:
        if kind in ("old-torch", "hdf5"):
            return note
        for names, what in EXPECTED.items():
            if self._name.endswith(names) and size:
                return note or f"not a {what}"
        return ""  # an ordinary file whose first bytes happened to look familiar


def _kind(start: bytes, name: str) -> str:
    if start.startswith(_ZIP) and not name.endswith(KERAS_NAMES):
        return "npz" if name.endswith(NPZ_NAMES) or _first_member(start).endswith(b".npy") else "zip"
    for magic, kind in ((GGUF_MAGIC, "gguf"), (npy.MAGIC, "npy"), (HDF5_MAGIC, "hdf5")):
        if start.startswith(magic):
            return kind
    if looks_like_safetensors(start):
        return "safetensors"
    for names, kind in ((NPY_NAMES, "npy"), (NPZ_NAMES, "npz"), (ONNX_NAMES, "onnx"), (FLAX_NAMES, "flax")):
        if name.endswith(names):
            return kind
    if start[:1] == b"\x80" and _OLD_TORCH in start:
        return "old-torch"
    return "onnx" if looks_like_onnx(start) else "flax" if looks_like_flax(start) else ""


def _first_member(start: bytes) -> bytes:
    """Name of a zip file's first member, as far as it is there."""
    return start[30 : 30 + int.from_bytes(start[26:28], "little")]
