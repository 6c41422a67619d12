"""Files without a known structure: JSON, tokenizers, logs, and everything that turned out malformed."""

from __future__ import annotations

from arzstream.formats.base import Layout, ReadAt, opaque

__all__ = ["OpaqueParser"]


class OpaqueParser:
    """Every byte is literal; ``note`` says why, where that needs saying."""

    def __init__(self, note: str = "") -> None:
        self._note = note

    def update(self, read: ReadAt, frontier: int, final: bool) -> Layout:
        return opaque(frontier, self._note, final=final)
