"""Codec 0: the bytes themselves."""

from __future__ import annotations

from arzstream.codec.base import ChunkContext
from arzstream.errors import CorruptError

__all__ = ["Raw"]


class Raw:
    id = 0
    name = "raw"

    def encode(self, data: memoryview, ctx: ChunkContext) -> bytes | None:
        return bytes(data)

    def decode(self, payload: memoryview, out: memoryview, ctx: ChunkContext) -> None:
        if len(payload) != len(out):
            raise CorruptError(f"raw chunk has {len(payload)} bytes where {len(out)} are expected")
        out[:] = payload
