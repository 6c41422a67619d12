"""The zip files of ``torch.save`` (``.pt .bin .pth .ckpt``), complete or still being written.

Each ``<name>/data/<key>`` record is a storage; ``<name>/data.pkl`` says its dtype and which tensors are views of it.
While the file grows, ``data.pkl``, which is the first record, is followed as soon as it is there, and the records
after it are walked from the front: their sizes come from the pickle. The directory at the end has the last word.

Everything else in the file is literal bytes. TorchScript archives have the same shape and are read in the same way;
their ``constants`` are a second pair of pickle and storages. Those of ``torch.export`` have no data.pkl and are left to
``torch_export``.
"""

from __future__ import annotations

import hashlib

from arzstream.formats.base import (
    Layout,
    Malformed,
    Notes,
    ReadAt,
    Storage,
    opaque,
    problem_of,
    shown,
)
from arzstream.formats.pickle_walk import MAX_WORK, work_allowed
from arzstream.formats.torch_export import export_storages
from arzstream.formats.torch_pickle import Contents, read_contents
from arzstream.formats.torch_storages import Facts, array_storages, distinct, storage_of
from arzstream.formats.zip_records import (
    DESCRIPTOR,
    EndedFile,
    LocalHeader,
    Record,
    descriptor_size,
    read_directory,
    read_local_header,
)
from arzstream.limits import DEFAULT_LIMITS, Limits

__all__ = ["EXPORT", "FORMAT", "Front", "TorchZipParser", "Work", "whole_layout"]

FORMAT, EXPORT = "torch-zip", "torch-export"
_PAIRS = ((b"data.pkl", b"data/", ""), (b"constants.pkl", b"constants/", "constants."))
_SEARCH_BLOCK = 256 << 10
_SMALL_RECORD = 1 << 20
_DESCRIPTOR_SIZE = 24  # the longer form; a file goes on for longer than that after any record


class TorchZipParser:
    """Incremental: a call costs what is new, and a read and hash of ``data.pkl`` to notice that it was rewritten."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._front = Front(limits)
        self._ended = EndedFile(_whole_layout, limits)

    def update(self, read: ReadAt, frontier: int, final: bool) -> Layout:
        if final:
            return whole_layout(read, frontier, self._limits)
        if self._front.is_stale(read, frontier):
            self._front = Front(self._limits)
            self._ended.forget()
        self._front.advance(read, frontier)
        return self._ended.layout(read, frontier) or self._front.layout()

    @property
    def described(self) -> Contents:
        """What the pickle at the beginning of a growing file tells of, whether the bytes are there or not."""
        return self._front.described


class Front:
    """What the beginning of a growing file tells; following its pickle may cost ``work``."""

    def __init__(self, limits: Limits, work: int = MAX_WORK) -> None:
        self._limits, self._work = limits, work
        self._at = 0  # where the next local header is expected
        self._records: list[Record] = []
        self._open: tuple[Record, bool] | None = None  # the last record, while its descriptor is not there
        self._searched = 0  # no descriptor begins before this, in the record being searched
        self._root = b""
        self._facts: Facts | None = None
        self._big_endian = False
        self._stuck = False  # only the directory at the end can tell more
        self._trusted = 0
        self._digest = b""
        self._known: tuple[int, bool, bool] | None = None
        self._layout = Layout(FORMAT)

    def is_stale(self, read: ReadAt, frontier: int) -> bool:
        """Whether the part that was believed, up to the end of data.pkl, is no longer there."""
        if not self._trusted:
            return self._at > 0 or self._searched > 0 or self._stuck  # nothing believed yet: begin again, it is cheap
        return frontier < self._trusted or _digest(read(0, self._trusted)) != self._digest

    def advance(self, read: ReadAt, frontier: int) -> None:
        try:
            while not self._stuck and self._next(read, frontier):
                pass
        except Malformed:
            self._stuck = True

    @property
    def at(self) -> int:
        """Where the records end that were found."""
        return self._at

    @property
    def described(self) -> Contents:
        return self._facts.contents if self._facts is not None else Contents()

    def layout(self) -> Layout:
        if self._facts is None:
            return Layout(FORMAT)
        known = len(self._records), self._open is not None, self._big_endian
        if known != self._known:  # making it takes a while when there are many storages
            notes = Notes()
            records = [*self._records, self._open[0]] if self._open else self._records
            storages = array_storages(self._records[0].start, self._facts, notes)
            storages += _storages(records, self._root + b"/data/", self._facts, self._big_endian, notes)
            layout = Layout(FORMAT, tuple(distinct(storages)), None, False, str(notes))
            self._known, self._layout = known, Layout(FORMAT) if problem_of(layout) else layout
        return self._layout

    def _next(self, read: ReadAt, frontier: int) -> bool:
        """Take one step; False if that needs more bytes."""
        if self._open is not None:
            return self._close(read, frontier)
        header = read_local_header(read, self._at, frontier)
        if header is None:
            return False
        if header.method:
            raise Malformed("its records are compressed")
        if not self._records and header.name.partition(b"/")[2] != b"data.pkl":
            raise Malformed("its first record is not data.pkl")
        size = self._size_of(header, read, frontier)
        if size is None:
            return False
        self._searched = 0
        self._open = Record(header.name, self._at, header.start, size, header.method), header.has_descriptor
        return True

    def _close(self, read: ReadAt, frontier: int) -> bool:
        """Step over the open record once what follows it proves its size."""
        assert self._open is not None
        record, has_descriptor = self._open
        if record.end + _DESCRIPTOR_SIZE > frontier:
            return False
        descriptor = descriptor_size(read(record.end, _DESCRIPTOR_SIZE), record.size) if has_descriptor else 0
        self._open = None
        if has_descriptor and not descriptor:
            raise Malformed("a record does not have the size its pickle says")
        self._records.append(record)
        self._at = record.end + descriptor
        if len(self._records) == 1:
            self._read_pickle(read, record)
        elif record.name == self._root + b"/byteorder":
            self._big_endian = read(record.start, min(record.size, 16)) == b"big"
        return True

    def _read_pickle(self, read: ReadAt, record: Record) -> None:
        data = read(record.start, record.size)
        self._root = record.name.partition(b"/")[0]
        self._facts = Facts(read_contents(data, work=self._work))
        self._trusted = record.end
        self._digest = _digest(read(0, self._trusted))

    def _size_of(self, header: LocalHeader, read: ReadAt, frontier: int) -> int | None:
        if header.size is not None:
            return header.size
        if not self._records:
            return self._search(header.start, read, frontier, self._limits.metadata_bytes)
        key = _key(header.name, self._root + b"/data/")
        fact = self._facts.contents.storages.get(key) if self._facts and key else None
        if fact is not None:
            return fact.nbytes
        return self._search(header.start, read, frontier, _SMALL_RECORD)

    def _search(self, start: int, read: ReadAt, frontier: int, bound: int) -> int | None:
        """Size of the record at ``start``, by the first descriptor after it that tells it; None if not there yet."""
        at = max(self._searched, start)
        while at + _DESCRIPTOR_SIZE <= frontier:
            block = read(at, min(_SEARCH_BLOCK, frontier - at))
            found = block.find(DESCRIPTOR)
            while 0 <= found <= len(block) - _DESCRIPTOR_SIZE:
                if descriptor_size(block[found : found + _DESCRIPTOR_SIZE], at + found - start):
                    return at + found - start
                found = block.find(DESCRIPTOR, found + 1)
            step = len(block) - _DESCRIPTOR_SIZE + 1
            if step <= 0:
                break
            at += step
            self._searched = at
            if at - start > bound:
                raise Malformed("a record is longer than expected")
        return None


class Work:
    """What following pickles that are charged together may still cost."""

    def __init__(self, left: int) -> None:
        self.left = left


def whole_layout(read: ReadAt, size: int, limits: Limits, work: Work | None = None) -> Layout:
    """The definite layout of a file. ``work`` is charged with what its pickles cost."""
    try:
        return _whole_layout(read, size, limits, work)
    except Malformed as error:
        return opaque(size, f"not a valid PyTorch zip file: {error}")


def _whole_layout(read: ReadAt, size: int, limits: Limits, work: Work | None = None) -> Layout:
    """The layout of a complete file, by its directory. Raises :class:`Malformed`."""
    if size >= 2 and read(0, 2) != b"PK":
        raise Malformed("it is no zip file")
    records = read_directory(read, size, limits)
    notes = Notes()
    saved = _Saved(limits, work or Work(work_allowed(size)), notes)
    kind, storages = FORMAT, saved.among(read, records)
    if storages is None:
        kind, storages = EXPORT, export_storages(read, records, saved.within, limits, notes)
    if storages is None:
        raise Malformed("it has no data.pkl")
    storages.sort(key=lambda storage: (storage.offset, storage.nbytes))
    layout = Layout(kind, tuple(distinct(storages)), size, True, str(notes))
    problem = problem_of(layout, size)
    if problem:
        raise Malformed(problem)
    return layout


class _Saved:
    """What ``torch.save`` and TorchScript write, in a file, or in files inside it."""

    def __init__(self, limits: Limits, work: Work, notes: Notes) -> None:
        self._limits, self._work, self._notes = limits, work, notes

    def within(self, read: ReadAt, size: int) -> list[Storage]:
        """The storages of a file inside the file. Raises :class:`Malformed`."""
        found = self.among(read, read_directory(read, size, self._limits))
        if found is None:
            raise Malformed("it has no data.pkl")
        return found

    def among(self, read: ReadAt, records: list[Record]) -> list[Storage] | None:
        """The storages of a file with these records; None if it has no data.pkl. Raises :class:`Malformed`."""
        by_name = {record.name: record for record in records}
        root = records[0].name.partition(b"/")[0] if records else b""
        if root + b"/data.pkl" not in by_name:
            return None
        order = by_name.get(root + b"/byteorder")
        big_endian = order is not None and read(order.start, min(order.size, 16)) == b"big"
        storages: list[Storage] = []
        for pickle_name, folder, prefix in _PAIRS:
            record = by_name.get(root + b"/" + pickle_name)
            if record is not None:
                facts = Facts(self._contents(read, record))
                storages += array_storages(record.start, facts, self._notes, prefix)
                storages += _storages(records, root + b"/" + folder, facts, big_endian, self._notes, prefix)
                _note_missing(by_name, root + b"/" + folder, facts, self._notes)
        return storages

    def _contents(self, read: ReadAt, record: Record) -> Contents:
        if record.method:
            raise Malformed("its records are compressed")
        if record.size > self._limits.metadata_bytes:
            contents = Contents()
            contents.notes.add(f"its pickle is longer than {self._limits.metadata_bytes} bytes")
            return contents
        contents = read_contents(read(record.start, record.size), work=self._work.left)
        self._work.left -= contents.work
        return contents


def _note_missing(by_name: dict[bytes, Record], folder: bytes, facts: Facts, notes: Notes) -> None:
    for key in facts.contents.storages:
        if folder + key.encode("utf-8", "replace") not in by_name:
            notes.add(f"storage {shown(key)} is missing")


def _key(name: bytes, folder: bytes) -> str:
    """The storage's key if ``name`` is a storage's record, else empty."""
    if not name.startswith(folder) or b"/" in name[len(folder) :]:
        return ""
    return name[len(folder) :].decode("utf-8", "replace")


def _storages(
    records: list[Record], folder: bytes, facts: Facts, big_endian: bool, notes: Notes, prefix: str = ""
) -> list[Storage]:
    """The storages among ``records``, with the views that ``facts`` knows."""
    notes.extend(facts.contents.notes)
    found = []
    for record in records:
        key = _key(record.name, folder)
        if key and record.method:
            notes.add("its records are compressed")
        elif key:
            found.append(storage_of(key, record.start, record.size, facts, notes, prefix, big_endian=big_endian))
    return found


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=32).digest()
