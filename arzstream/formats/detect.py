"""Which parser a file gets: by its name where that is telling, and by its first bytes in any case.

A name is a hint only. ``model.safetensors.tmp``, the blobs of a Hugging Face cache and other files without a telling
name are known by their content, and a ``.bin`` that is no zip file is opaque.
"""

from __future__ import annotations

import os

from arzstream.formats.base import Layout, Parser, ReadAt, opaque
from arzstream.formats.beside import NOTHING, Beside
from arzstream.formats.deepspeed import DeepSpeedParser, is_optimizer_state
from arzstream.formats.distcp import DistcpParser
from arzstream.formats.gguf import MAGIC as GGUF_MAGIC
from arzstream.formats.gguf import GgufParser
from arzstream.formats.opaque import OpaqueParser
from arzstream.formats.safetensors import SafetensorsParser, looks_like_safetensors
from arzstream.formats.sharded_safetensors import ShardedSafetensorsParser
from arzstream.formats.torch_zip import TorchZipParser
from arzstream.limits import DEFAULT_LIMITS, Limits

__all__ = ["parser_for"]

SAFETENSORS_NAMES = (".safetensors",)
TORCH_NAMES = (".pt", ".pth", ".ckpt")
GGUF_NAMES = (".gguf",)
DISTCP_NAMES = (".distcp",)
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
    ".npz",
    ".zip",
    ".jinja",
)

_SNIFFED = 32
_ZIP = b"PK\x03\x04"
_OLD_TORCH = bytes.fromhex("8a0a6cfc9c46f9206aa85019")  # torch.serialization.MAGIC_NUMBER, pickled


def parser_for(path: bytes | str, limits: Limits = DEFAULT_LIMITS, beside: Beside = NOTHING) -> Parser:
    """The parser for the file of this name (only the name is looked at; nothing is opened). ``beside``: the checkpoint
    that it belongs to, ``path`` being relative to that."""
    name = os.fsdecode(path).lower()
    if name.endswith(DISTCP_NAMES):
        return DistcpParser(os.fsencode(path), beside, limits)
    if name.endswith(SAFETENSORS_NAMES):
        return ShardedSafetensorsParser(os.fsencode(path), beside, limits)
    if is_optimizer_state(os.fsencode(path)):
        return DeepSpeedParser(os.fsencode(path), beside, limits)
    if name.endswith(PLAIN_NAMES):
        return OpaqueParser()
    return _SniffingParser(name, limits)


class _SniffingParser:
    """Looks at the first bytes at each call, which is when a rewritten file may have turned into another kind."""

    def __init__(self, name: str, limits: Limits) -> None:
        self._name = name
        self._limits = limits
        self._kind = ""
        self._parser: Parser = OpaqueParser()

    def update(self, read: ReadAt, frontier: int, final: bool) -> Layout:
        start = read(0, min(frontier, _SNIFFED))
        kind = _kind(start)
        if kind != self._kind:
            self._kind, self._parser = kind, self._make(kind)
        layout = self._parser.update(read, frontier, final)
        if final and layout.format == "opaque":
            return opaque(frontier, self._note(kind, layout.note, frontier))
        return layout

    def _make(self, kind: str) -> Parser:
        if kind == "zip":
            return TorchZipParser(self._limits)
        if kind == "gguf":
            return GgufParser(self._limits)
        return SafetensorsParser(self._limits) if kind == "safetensors" else OpaqueParser()

    def _note(self, kind: str, note: str, size: int) -> str:
        if kind == "old-torch":
            return "PyTorch's old format from before 1.6; save it again with torch.save to have its tensors understood"
        if self._name.endswith(TORCH_NAMES) and size:
            return note or "not a PyTorch zip file"
        if self._name.endswith(GGUF_NAMES) and size:
            return note or "not a GGUF file"
        return ""  # an ordinary file whose first bytes happened to look familiar


def _kind(start: bytes) -> str:
    if start.startswith(_ZIP):
        return "zip"
    if start.startswith(GGUF_MAGIC):
        return "gguf"
    if looks_like_safetensors(start):
        return "safetensors"
    return "old-torch" if start[:1] == b"\x80" and _OLD_TORCH in start else ""
