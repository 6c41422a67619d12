"""The original files, made again from their recipes, at any position."""

from __future__ import annotations

import bisect
import io
import itertools

from arzstream.archive.decoding import Decoder
from arzstream.container.records import FileRecord

__all__ = ["ArchivedFile", "open_archived", "read_range"]

BUFFER_BYTES = 1 << 20


def read_range(decoder: Decoder, record: FileRecord, starts: list[int], start: int, end: int) -> bytes:
    """Bytes [start, end) of a file; ``starts`` are the offsets of the recipe's pieces."""
    parts: list[bytes | bytearray] = []
    for number in range(max(0, bisect.bisect_right(starts, start) - 1), len(starts)):
        piece, offset = record.recipe[number], starts[number]
        length = len(piece) if isinstance(piece, bytes) else piece.length
        low, high = max(start, offset) - offset, min(end, offset + length) - offset
        if offset >= end:
            break
        if low >= high:
            continue
        if isinstance(piece, bytes):
            parts.append(piece[low:high])
        else:
            parts.append(decoder.unit_bytes(piece.unit, piece.offset + low, piece.offset + high))
    return b"".join(parts)


def piece_starts(record: FileRecord) -> list[int]:
    """Offset of each piece of the recipe in the file."""
    lengths = (len(piece) if isinstance(piece, bytes) else piece.length for piece in record.recipe)
    return list(itertools.accumulate(lengths, initial=0))[:-1]


class ArchivedFile(io.RawIOBase):
    """An original file as a seekable, read-only stream, decoded as it is read."""

    def __init__(self, decoder: Decoder, record: FileRecord) -> None:
        self._decoder, self._record = decoder, record
        self._starts = piece_starts(record)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._record.size}[whence]
        if base + offset < 0:
            raise ValueError("cannot seek before the beginning of the file")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        end = min(self._position + len(view), self._record.size)
        if end <= self._position:
            return 0
        data = read_range(self._decoder, self._record, self._starts, self._position, end)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


def open_archived(decoder: Decoder, record: FileRecord) -> io.BufferedReader:
    """A buffered, seekable stream over an original file."""
    return io.BufferedReader(ArchivedFile(decoder, record), BUFFER_BYTES)
