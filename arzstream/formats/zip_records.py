"""Zip files as torch writes them: where the records lie, by the directory at the end or, without one, from the front.

PKWARE's APPNOTE.TXT 6.3 sections 4.3 and 4.5.3. torch stores records uncompressed, leaves sizes out of local headers
and writes a data descriptor after each record instead (8-byte sizes in it once a record or its place passes 4 GiB),
and pads local headers with an extra field so that data is aligned.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from arzstream.formats.base import Layout, Malformed, ReadAt
from arzstream.limits import DEFAULT_LIMITS, Limits

__all__ = [
    "EndedFile",
    "LocalHeader",
    "Record",
    "descriptor_size",
    "directory_end",
    "read_directory",
    "read_local_header",
]

LOCAL = b"PK\x03\x04"
CENTRAL = b"PK\x01\x02"
DESCRIPTOR = b"PK\x07\x08"
END = b"PK\x05\x06"
END64 = b"PK\x06\x06"
LOCATOR64 = b"PK\x06\x07"

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")

ENCRYPTED, HAS_DESCRIPTOR = 1, 8
_MAX_COMMENT = 0xFFFF
_MAX32 = 0xFFFFFFFF


class EndedFile:
    """Notices that a file which is believed to grow is a whole one already; its layout is kept while its end is."""

    def __init__(self, whole: Callable[[ReadAt, int, Limits], Layout], limits: Limits) -> None:
        """``whole`` gives the layout of a complete file, or raises :class:`Malformed`."""
        self._whole, self._limits = whole, limits
        self._known: tuple[int, bytes, Layout] | None = None

    def forget(self) -> None:
        self._known = None

    def layout(self, read: ReadAt, frontier: int) -> Layout | None:
        """The layout of bytes [0, ``frontier``), if these are a whole file."""
        tail = read(frontier - _END.size, _END.size) if frontier >= _END.size else b""
        if tail[:4] != END:
            return None
        if self._known is None or self._known[:2] != (frontier, tail):
            try:
                self._known = frontier, tail, self._whole(read, frontier, self._limits)
            except Malformed:
                return None
        return self._known[2]


@dataclass(frozen=True)
class Record:
    """A member of a zip file: ``size`` bytes of it lie from ``start`` on, as they are if ``method`` is 0."""

    name: bytes
    header: int
    start: int
    size: int
    method: int

    @property
    def end(self) -> int:
        return self.start + self.size


@dataclass(frozen=True)
class LocalHeader:
    """What stands before a record's data; ``size`` is None where only the descriptor behind the data tells it."""

    name: bytes
    start: int
    size: int | None
    method: int
    has_descriptor: bool


def read_local_header(read: ReadAt, at: int, frontier: int) -> LocalHeader | None:
    """The local header at ``at``; None if it is not wholly before ``frontier``. Raises :class:`Malformed`."""
    fixed = read(at, _LOCAL.size) if at + _LOCAL.size <= frontier else b""
    if len(fixed) < _LOCAL.size:
        return None
    signature, _, flags, method, _, _, _, stored, size, name_length, extra_length = _LOCAL.unpack(fixed)
    if signature != LOCAL:
        raise Malformed(f"there is no record at byte {at}")
    if flags & ENCRYPTED:
        raise Malformed("its records are encrypted")
    start = at + _LOCAL.size + name_length + extra_length
    rest = read(at + _LOCAL.size, name_length + extra_length) if start <= frontier else b""
    if start > frontier or len(rest) < name_length + extra_length:
        return None
    name, extra = rest[:name_length], rest[name_length:]
    has_descriptor = bool(flags & HAS_DESCRIPTOR)
    known: int | None = _wide(extra, size, stored)[1]
    if has_descriptor and not known:  # with a zip64 extra field of zeros where NumPy writes to a pipe
        known = None
    return LocalHeader(name, start, known, method, has_descriptor)


def descriptor_size(raw: bytes, size: int) -> int:
    """Length of the data descriptor that ``raw`` starts with, if it tells ``size`` stored bytes; else 0."""
    if raw[:4] == DESCRIPTOR:
        if raw[8:16] == struct.pack("<2I", size & _MAX32, size & _MAX32) and size <= _MAX32 and raw[16:18] == b"PK":
            return 16
        if raw[8:24] == struct.pack("<2Q", size, size):
            return 24
    return 0


def read_directory(read: ReadAt, size: int, limits: Limits = DEFAULT_LIMITS) -> list[Record]:
    """All records of a complete file of ``size`` bytes, by place, each checked against its own local header.

    Raises :class:`Malformed`; records do not overlap each other or the directory.
    """
    offset, length, count = _find_directory(read, size)
    if length > limits.metadata_bytes or count > limits.members or count * _CENTRAL.size > length:
        raise Malformed("its directory has an impossible size")
    raw = read(offset, length)
    if len(raw) < length:
        raise Malformed("its directory is cut off")
    entries = sorted(_entries(raw, count))
    records: list[Record] = []
    names: set[bytes] = set()
    position = 0
    for header, name, method, stored in entries:
        local = read_local_header(read, header, offset) if header >= position else None
        if local is None or local.name != name or local.method != method or local.size not in (None, stored):
            raise Malformed("its directory and its records disagree")
        record = Record(name, header, local.start, stored, method)
        if record.end > offset or name in names:
            raise Malformed("its records overlap or repeat")
        position = record.end
        names.add(name)
        records.append(record)
    return records


def directory_end(read: ReadAt, at: int, frontier: int, limits: Limits = DEFAULT_LIMITS) -> int | None:
    """Where the zip file ends whose directory begins at ``at``; None if there is none, or not all of it yet."""
    first = at
    while at + _END.size <= frontier and at - first <= limits.metadata_bytes:
        head = read(at, _CENTRAL.size)
        if head[:4] == CENTRAL and len(head) == _CENTRAL.size:
            at += _CENTRAL.size + sum(struct.unpack_from("<3H", head, 28))
        elif head[:4] == END64 and len(head) >= 12:
            at += 12 + struct.unpack_from("<Q", head, 4)[0]
        elif head[:4] == LOCATOR64:
            at += _LOCATOR64.size
        else:
            end = (
                at + _END.size + struct.unpack_from("<H", head, 20)[0]
                if head[:4] == END and len(head) >= _END.size and at > first
                else frontier + 1
            )
            return end if end <= frontier else None
    return None


def _find_directory(read: ReadAt, size: int) -> tuple[int, int, int]:
    """Offset, length and number of entries of the central directory."""
    start = max(0, size - _END.size - _MAX_COMMENT)
    short = max(0, size - _END.size)  # almost always there is no comment
    for begin in dict.fromkeys((short, start)):
        tail = read(begin, size - begin)
        at = tail.rfind(END)
        while at >= 0:
            end = tail[at : at + _END.size]
            if len(end) == _END.size and begin + at + _END.size + _END.unpack(end)[7] == size:
                return _directory_place(read, begin + at, _END.unpack(end))
            at = tail.rfind(END, 0, at)
    raise Malformed("it has no directory at its end; it may be cut off")


def _directory_place(read: ReadAt, end_at: int, end: tuple[int, ...]) -> tuple[int, int, int]:
    _, disk, start_disk, _, count, length, offset, _ = end
    after = end_at
    locator = read(end_at - _LOCATOR64.size, _LOCATOR64.size) if end_at >= _LOCATOR64.size else b""
    if locator[:4] == LOCATOR64 and len(locator) == _LOCATOR64.size:
        after = _LOCATOR64.unpack(locator)[2]
        raw = read(after, _END64.size) if after <= end_at - _LOCATOR64.size - _END64.size else b""
        if len(raw) < _END64.size or raw[:4] != END64:
            raise Malformed("its zip64 directory end is missing")
        _, _, _, _, disk, start_disk, _, count, length, offset = _END64.unpack(raw)
    if disk or start_disk:
        raise Malformed("it is split over several disks")
    if offset + length != after:
        raise Malformed("its directory is not where its end says")
    return offset, length, count


def _entries(raw: bytes, count: int) -> list[tuple[int, bytes, int, int]]:
    """(local header's offset, name, method, stored size) of each entry of the central directory."""
    found = []
    at = 0
    for _ in range(count):
        fixed = raw[at : at + _CENTRAL.size]
        if len(fixed) < _CENTRAL.size or fixed[:4] != CENTRAL:
            raise Malformed("its directory is damaged")
        _, _, _, flags, method, _, _, _, stored, size, n, x, c, _, _, _, header = _CENTRAL.unpack(fixed)
        if flags & ENCRYPTED:
            raise Malformed("its records are encrypted")
        at += _CENTRAL.size
        name, extra = raw[at : at + n], raw[at + n : at + n + x]
        at += n + x + c
        size, stored, header = _wide(extra, size, stored, header)
        if method == 0 and size != stored:
            raise Malformed("a record has two sizes")
        found.append((header, name, method, stored))
    if at != len(raw):
        raise Malformed("its directory is damaged")
    return found


def _wide(extra: bytes, *values: int) -> tuple[int, ...]:
    """``values``, with each that is FFFFFFFF replaced, in order, by an 8-byte one of the zip64 extra field."""
    if _MAX32 not in values:
        return values
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            field = extra[at + 4 : at + 4 + length]
            wide = iter(struct.unpack(f"<{len(field) // 8}Q", field[: len(field) // 8 * 8]))
            return tuple(next(wide, value) if value == _MAX32 else value for value in values)
        at += 4 + length
    return values
