"""HDF5 files, such as Keras's ``.h5``, when they are complete: datasets that are stored in one piece.

Format: https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html, superblocks 0 to 3, as the library writes
them unless told otherwise: groups with symbol tables or links in their headers, datasets of integers and floats in
contiguous storage. A tensor is called by the names that lead to it, joined by dots. Datasets in chunks, big-endian and
compound ones, and what is in groups whose many links are in heaps, as ``libver="latest"`` puts them, are not
understood; a file that has little else is opaque.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from arzstream.codec.dtypes import DTYPES
from arzstream.formats.base import (
    Layout,
    Malformed,
    Notes,
    ReadAt,
    Storage,
    View,
    element_count,
    opaque,
    problem_of,
    shown,
    view_problem,
)
from arzstream.formats.window import TooShort, Window
from arzstream.limits import DEFAULT_LIMITS, Limits

__all__ = ["FORMAT", "MAGIC", "Hdf5Parser"]

FORMAT = "hdf5"
MAGIC = b"\x89HDF\r\n\x1a\n"
MAX_OBJECTS = 200_000
MAX_MESSAGES = 2_000_000
MAX_DEPTH, MAX_NAME = 64, 1024
BYTES_OF_MESSAGE = 32
"""Of names, which cost as much as a message."""
_DATASPACE, _LINK_INFO, _DATATYPE, _LINK, _DATA_LAYOUT, _CONTINUATION, _SYMBOLS = 1, 2, 3, 6, 8, 16, 17
_CONTIGUOUS, _SOFT = 1, 2
_FLOATS = {(2, 5, 10): "F16", (2, 8, 7): "BF16", (4, 8, 23): "F32", (8, 11, 52): "F64"}


class Hdf5Parser:
    """HDF5 writes here and there, so that nothing is said of a file before it is complete."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits

    def update(self, read: ReadAt, frontier: int, final: bool) -> Layout:
        if not final:
            return opaque(frontier, final=False)
        try:
            return _Walk(Window(read, frontier), self._limits).layout()
        except TooShort:
            return opaque(frontier, "not a valid HDF5 file: it is cut off")
        except Malformed as error:
            return opaque(frontier, f"not a valid HDF5 file: {error}")


class _Message(NamedTuple):
    """A part of an object's header."""

    kind: int
    start: int
    size: int


class _Walk:
    def __init__(self, window: Window, limits: Limits) -> None:
        self._window, self._limits = window, limits
        self._notes = Notes()
        self._found: list[Storage] = []
        self._names: set[str] = set()
        self._seen: set[int] = set()
        self._left = MAX_MESSAGES
        self._unread = window.frontier
        self._offset = self._length = 8

    def layout(self) -> Layout:
        size = self._window.frontier
        objects = [("", self._superblock(), 0)]
        while objects:
            path, at, depth = objects.pop()
            if at in self._seen:
                continue
            self._seen.add(at)
            if len(self._seen) > MAX_OBJECTS or depth > MAX_DEPTH:
                raise Malformed("it has too many objects")
            messages = list(self._messages(at))
            if any(message.kind == _DATA_LAYOUT for message in messages):
                self._dataset(path, {message.kind: message for message in messages})
            for name, child in self._links(messages):
                whole = f"{path}.{name}" if path else name
                self._charge(len(whole) // BYTES_OF_MESSAGE)
                objects.append((whole, child, depth + 1))
        storages = tuple(sorted(self._found, key=lambda storage: (storage.offset, storage.nbytes)))
        if 2 * sum(storage.nbytes for storage in storages) < size:
            return opaque(size, str(self._notes))  # there is more to be found in it without names
        layout = Layout(FORMAT, storages, size, True, str(self._notes))
        problem = problem_of(layout, size)
        if problem:
            raise Malformed(problem)
        return layout

    def _charge(self, count: int, nbytes: int = 0) -> None:
        """Account for ``count`` messages or links, in ``nbytes`` of the file, which nothing else is in."""
        self._left -= count
        self._unread -= nbytes
        if self._left < 0:
            raise Malformed(f"it has more than {MAX_MESSAGES} messages")
        if self._unread < 0:
            raise Malformed("parts of it overlap")

    def _number(self, at: int, size: int) -> int:
        return self._window.little_endian(at, size)

    def _address(self, at: int) -> int:
        return self._number(at, self._offset)

    def _superblock(self) -> int:
        """Where the root group's header is."""
        if self._window.bytes(0, 8) != MAGIC:
            raise Malformed("it does not begin as such files do")
        version = self._window.byte(8)
        if version > 3:
            raise Malformed(f"its superblock has version {version}")
        place = 13 if version < 2 else 9
        self._offset, self._length = self._window.byte(place), self._window.byte(place + 1)
        if self._offset not in (4, 8) or self._length not in (4, 8):
            raise Malformed("its addresses are of an unknown size")
        base = {0: 24, 1: 28}.get(version, 12)
        if self._address(base):
            raise Malformed("it begins inside another file")
        return self._address(base + self._offset * (5 if version < 2 else 3))

    def _messages(self, at: int) -> Iterator[_Message]:
        """The messages of an object's header and of its continuations."""
        second = self._window.bytes(at, 4) == b"OHDR"
        if second:
            flags = self._window.byte(at + 5)
            start = at + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
            width = 1 << (flags & 3)
            blocks = [(start + width, self._number(start, width))]
            head = 4 + (2 if flags & 4 else 0)
        else:
            if self._window.byte(at) != 1:
                raise Malformed(f"there is no header of an object at byte {at}")
            blocks, head = [(at + 16, self._number(at + 8, 4))], 8
        while blocks:
            place, size = blocks.pop()
            end = self._window.end(place, size)
            self._charge(0, max(size, 0))
            while place + head <= end:
                self._charge(1)
                kind = self._number(place, 1 if second else 2)
                length = self._number(place + (1 if second else 2), 2)
                message = _Message(kind, place + head, length)
                place = message.start + length
                if place > end:
                    raise Malformed("a message goes beyond its header")
                if kind == _CONTINUATION:
                    skip = 4 if second else 0  # a signature before, a checksum behind
                    more = self._address(message.start)
                    blocks.append((more + skip, self._number(message.start + self._offset, self._length) - 2 * skip))
                else:
                    yield message

    def _links(self, messages: list[_Message]) -> Iterator[tuple[str, int]]:
        """Name and header of what is in a group."""
        for message in messages:
            if message.kind == _SYMBOLS:
                heap = self._address(message.start + self._offset)
                if self._window.bytes(heap, 4) != b"HEAP":
                    raise Malformed("the names of a group are missing")
                names = self._address(heap + 8 + 2 * self._length)
                yield from self._tree(self._address(message.start), names, 0)
            elif message.kind == _LINK:
                yield from self._link(message)
            elif message.kind == _LINK_INFO:
                flags = self._window.byte(message.start + 1)
                heap = self._address(message.start + 2 + (8 if flags & 1 else 0))
                if heap != (1 << 8 * self._offset) - 1:
                    self._notes.add("a group whose links are in a heap is kept as bytes")

    def _tree(self, at: int, names: int, depth: int) -> Iterator[tuple[str, int]]:
        signature, count = self._window.bytes(at, 4), self._number(at + 6, 2)
        width = 2 * self._offset + 24 if signature == b"SNOD" else self._offset + self._length
        self._charge(count + 1, 8 + count * width)
        if depth > MAX_DEPTH:
            raise Malformed("the tree of a group is too deep")
        if signature == b"SNOD":
            for entry in range(at + 8, at + 8 + count * width, width):
                if self._number(entry + 2 * self._offset, 4) != _SOFT:
                    yield self._text(names + self._address(entry)), self._address(entry + self._offset)
            return
        if signature != b"TREE" or self._window.byte(at + 4):
            raise Malformed("the tree of a group is damaged")
        first = at + 8 + 2 * self._offset + self._length
        for number in range(count):
            yield from self._tree(self._address(first + number * width), names, depth + 1)

    def _link(self, message: _Message) -> Iterator[tuple[str, int]]:
        flags = self._window.byte(message.start + 1)
        at = message.start + 2
        soft = flags & 8 and self._window.byte(at)
        at += bool(flags & 8) + (8 if flags & 4 else 0) + bool(flags & 16)
        width = 1 << (flags & 3)
        length = self._number(at, width)
        if not soft and length <= MAX_NAME:
            name = self._window.bytes(at + width, length).decode("utf-8", "backslashreplace")
            yield name, self._address(at + width + length)

    def _text(self, at: int) -> str:
        if at > self._window.frontier:
            raise TooShort
        raw = self._window.bytes(at, min(MAX_NAME, self._window.frontier - at))
        return raw.partition(b"\0")[0].decode("utf-8", "backslashreplace")

    def _dataset(self, name: str, messages: dict[int, _Message]) -> None:
        place = messages[_DATA_LAYOUT].start
        version, kind = self._window.byte(place), self._window.byte(place + 1)
        if _DATASPACE not in messages or _DATATYPE not in messages or version not in (3, 4):
            self._notes.add(f"{shown(name)} is kept as bytes: it is described in an old way")
            return
        if kind != _CONTIGUOUS:
            if kind:  # else it is in the header, and small
                self._notes.add(f"{shown(name)} is kept as bytes: it is in chunks")
            return
        start = self._address(place + 2)
        nbytes = self._number(place + 2 + self._offset, self._length)
        shape, dtype = self._shape(messages[_DATASPACE].start), self._dtype(messages[_DATATYPE].start)
        if not nbytes or start == (1 << 8 * self._offset) - 1:
            return
        if self._window.end(start, nbytes) > self._window.frontier:
            raise Malformed(f"{shown(name)} goes beyond its end")
        if dtype is None or element_count(shape) * DTYPES[dtype].itemsize != nbytes:
            self._notes.add(f"{shown(name)} is kept as bytes: its type is not known")
            return
        view = View(name, shape)
        problem = view_problem(view, nbytes // DTYPES[dtype].itemsize, self._limits)
        if name in self._names:
            problem = problem or "another tensor has its name"
        if problem:
            self._notes.add(f"{shown(name)} is not named: {problem}")
        self._names.add(name)
        self._found.append(Storage(dtype, start, nbytes, () if problem else (view,)))

    def _shape(self, at: int) -> tuple[int, ...]:
        version, rank = self._window.byte(at), self._window.byte(at + 1)
        first = at + (8 if version == 1 else 4)
        return tuple(self._number(first + i * self._length, self._length) for i in range(rank))

    def _dtype(self, at: int) -> str | None:
        """None for one that is not known here."""
        kind, bits, size = self._window.byte(at) & 15, self._window.byte(at + 1), self._number(at + 4, 4)
        if bits & 1 and size > 1:  # big-endian
            return None
        if kind == 0 and size in (1, 2, 4, 8):
            return ("I" if bits & 8 else "U") + str(8 * size)
        if kind == 1:
            exponent, mantissa = self._window.byte(at + 13), self._window.byte(at + 15)
            return _FLOATS.get((size, exponent, mantissa))
        return None
