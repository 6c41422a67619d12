"""What is sent: bytes that lie in memory already, and that clients take piece by piece instead of copying them all."""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator

__all__ = ["Sent", "SentBlocks"]

BLOCK_BYTES = 256 << 10


class Sent(io.RawIOBase):
    """A part to be sent, as a file that can be read again; even one that was closed, which clients do before they try
    again. It holds its bytes until ``with`` ends: clients hold what they sent for longer than a part takes.
    """

    def __init__(self, data: memoryview) -> None:
        super().__init__()
        self._data, self._at = data, 0

    def __exit__(self, *error: object) -> None:
        self._data = memoryview(b"")
        self.close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self._data)}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        end = len(self._data) if size is None or size < 0 else self._at + size
        block = bytes(self._data[self._at : end])
        self._at += len(block)
        return block

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        block = self.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)


class SentBlocks:
    """A part to be sent, for aiohttp itself, which then needs no threads to read it; may be gone through again."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        for at in range(0, len(self._data), BLOCK_BYTES):
            yield self._data[at : at + BLOCK_BYTES]
