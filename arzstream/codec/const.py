"""Codec 1: one element, repeated."""

from __future__ import annotations

import numpy as np

from arzstream.codec.base import ChunkContext
from arzstream.errors import CorruptError

__all__ = ["Const"]


class Const:
    id = 1
    name = "const"

    def encode(self, data: memoryview, ctx: ChunkContext) -> bytes | None:
        """One element if all are equal bit for bit; None otherwise and for an empty chunk."""
        size = ctx.dtype.itemsize
        if len(data) < size:
            return None
        # A buffer that equals itself moved by one element repeats that element. The start rules out nearly all others.
        head = data[: 64 * size]
        if head[size:] != head[: len(head) - size]:
            return None
        values = np.frombuffer(data, np.uint8)
        return bytes(data[:size]) if np.array_equal(values[size:], values[: len(data) - size]) else None

    def decode(self, payload: memoryview, out: memoryview, ctx: ChunkContext) -> None:
        size = ctx.dtype.itemsize
        if len(payload) != size or len(out) % size:
            raise CorruptError(f"constant chunk has {len(payload)} bytes where one element of {size} is expected")
        out[:] = bytes(payload) * (len(out) // size)
