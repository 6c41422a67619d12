"""A file that may still be growing, read in windows by a walker that mostly skips."""

from __future__ import annotations

from arzstream.formats.base import MAX_BYTES, Malformed, ReadAt

__all__ = ["Head", "TooShort", "Window"]

WINDOW_BYTES = 64 << 10
"""Bytes that are read at a time; far more than the headers between two tensors take."""


HEAD_BYTES = 4 << 10


class TooShort(Exception):
    """What is asked for lies behind the frontier."""


class Window:
    """Bytes [0, ``frontier``) of a file. At most :data:`WINDOW_BYTES` of them are kept."""

    def __init__(self, read: ReadAt, frontier: int) -> None:
        self.frontier = frontier
        self._read = read
        self._start = 0
        self._data = b""

    def bytes(self, at: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``at`` on. Raises :class:`TooShort`; :class:`Malformed` for more than a
        window's."""
        if at + length > self.frontier:
            raise TooShort
        if length > WINDOW_BYTES:
            raise Malformed("a text or number in it is too long")
        begin = at - self._start
        if begin < 0 or begin + length > len(self._data):
            self._start, begin = at, 0
            self._data = self._read(at, min(WINDOW_BYTES, self.frontier - at))
            if len(self._data) < length:
                raise TooShort
        return self._data[begin : begin + length]

    def byte(self, at: int) -> int:
        """The byte at ``at``. Raises :class:`TooShort`."""
        begin = at - self._start
        if 0 <= begin < len(self._data) and at < self.frontier:
            return self._data[begin]
        return self.bytes(at, 1)[0]

    def big_endian(self, at: int, length: int) -> int:
        """An unsigned number."""
        return int.from_bytes(self.bytes(at, length), "big")

    def little_endian(self, at: int, length: int) -> int:
        """An unsigned number."""
        return int.from_bytes(self.bytes(at, length), "little")

    def varint(self, at: int) -> tuple[int, int]:
        """A number in base 128, least significant digit first, and the place after it. Raises :class:`Malformed`
        beyond 10 digits, :class:`TooShort`."""
        value = shift = 0
        while True:
            digit = self.byte(at)
            at += 1
            value |= (digit & 0x7F) << shift
            if digit < 0x80:
                return value & ((1 << 64) - 1), at
            shift += 7
            if shift == 70:
                raise Malformed("a number in it is too long")

    @staticmethod
    def end(at: int, length: int) -> int:
        """``at + length``; raises :class:`Malformed` where no file goes."""
        if at + length > MAX_BYTES:
            raise Malformed("a length in it goes beyond every file")
        return at + length


class Head:
    """The beginning of a file, by which one that was overwritten is told from one that grew."""

    def __init__(self) -> None:
        self._frontier = 0
        self._start = b""

    def is_new(self, read: ReadAt, frontier: int) -> bool:
        """Whether it does not go on what was there at the last call."""
        start = read(0, min(HEAD_BYTES, frontier))
        new = frontier < self._frontier or not start.startswith(self._start)
        self._frontier, self._start = frontier, start
        return new
