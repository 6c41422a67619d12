"""A codec for tests that needs what a chunk refers to: exclusive or with the references, then zlib. It has a number of
private use, so that nobody exchanges what it wrote."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from arzstream.codec.base import ChunkContext
from arzstream.errors import CorruptError

__all__ = ["Xor"]


class Xor:
    """Exclusive or with all references in order."""

    id, name = 0x8001, "xor-test"

    def encode(self, data: memoryview, ctx: ChunkContext) -> bytes:
        return zlib.compress(self._mixed(np.frombuffer(data, np.uint8), ctx.references).tobytes(), 1)

    def decode(self, payload: memoryview, out: memoryview, ctx: ChunkContext) -> None:
        references = list(ctx.references)  # before the payload: they must not be read into its memory
        try:
            data = np.frombuffer(zlib.decompress(payload), np.uint8)
        except zlib.error as error:
            raise CorruptError(f"no deflate stream: {error}") from None
        if len(data) != len(out):
            raise CorruptError("another length")
        out[:] = self._mixed(data, references).data

    @staticmethod
    def _mixed(data: np.ndarray, references: Sequence[memoryview]) -> np.ndarray:
        mixed: np.ndarray = data.copy()
        for reference in references:
            assert len(reference) == len(data) and reference.readonly
            mixed ^= np.frombuffer(reference, np.uint8)
        return mixed
