"""Decoding everything once more: against the digests that were taken of the originals, and against a source.

Files are decoded span by span, ahead and in all threads. SHA-256 of a file is taken in order by the thread that asks,
and BLAKE3 of the tensors, from the same bytes, by one more: SHA-256 is the slowest part, so nothing else is in its way.
"""

from __future__ import annotations

import bisect
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from arzstream.archive.decoding import Decoder
from arzstream.archive.files import announced, piece_starts, range_tasks, spans
from arzstream.archive.forecast import Forecast
from arzstream.archive.pipeline import MemberDigests
from arzstream.archive.sources import SourceEntry, collect, open_source
from arzstream.container.directory import Directory, UnitEntry
from arzstream.container.records import FileRecord, Kind, Piece, Unit, show
from arzstream.errors import CorruptError
from arzstream.kernels.digests import sha256_hasher
from arzstream.store.address import shown

__all__ = ["compare", "decode_all", "file_digest", "member_digests"]

BLOCK_BYTES = 16 << 20
Spent = Callable[[int], None]


def decode_all(decoder: Decoder, directory: Directory, spent: Spent) -> None:
    """Check the BLAKE3 of every tensor and the SHA-256 of every file; ``spent`` is told the bytes of files as they
    are hashed, in this thread.

    Raises CorruptError for the first that differs.
    """
    members = _Members(directory)
    for _, record in directory.files:
        if record.kind == Kind.REGULAR and file_digest(decoder, record, members, spent) != record.sha256:
            raise CorruptError(f"{show(record.path)} does not come out as it went in (SHA-256)")
    for entry in members.unfinished():
        members.check(entry, member_digests(decoder, entry.number, entry.unit))


def file_digest(
    decoder: Decoder, record: FileRecord, members: _Members | None = None, spent: Spent = lambda nbytes: None
) -> bytes:
    """SHA-256 of an original file as its recipe gives it; ``members`` take what they can from the same bytes."""
    sha256 = sha256_hasher()
    starts = piece_starts(record)
    with ThreadPoolExecutor(1, thread_name_prefix="arz-hash") as hashing:
        before: Future[None] | None = None
        for start, data in _decoded(decoder, record):
            if members is not None:
                if before is not None:
                    before.result()
                before = hashing.submit(members.take, record, starts, start, data)
            sha256.update(data.data)
            spent(len(data))
        if before is not None:
            before.result()
    return sha256.digest()


def _decoded(decoder: Decoder, record: FileRecord) -> Iterator[tuple[int, np.ndarray]]:
    """The file in order, in pieces that follow each other: offset and bytes."""
    starts = piece_starts(record)

    def decode(span: tuple[int, int]) -> tuple[int, np.ndarray]:
        out = decoder.results.empty(span[1] - span[0])
        for task in range_tasks(decoder, record, starts, *span, out):
            task()
        return span[0], out

    with Forecast(decoder) as forecast:
        yield from decoder.in_order(decode, announced(forecast, record, starts, spans(decoder, record)))


class _Members:
    """Digests of the units' members, taken while files go by. Units that do not come in order are left for later."""

    def __init__(self, directory: Directory) -> None:
        self._entries = directory.by_number
        self._open: dict[int, tuple[MemberDigests, int]] = {}
        self._done: set[int] = set()

    def take(self, record: FileRecord, starts: list[int], start: int, data: np.ndarray) -> None:
        """Bytes of a file from ``start`` on."""
        end = start + len(data)
        for number in range(max(0, bisect.bisect_right(starts, start) - 1), bisect.bisect_left(starts, end)):
            piece, offset = record.recipe[number], starts[number]
            if isinstance(piece, Piece) and start < offset + piece.length:
                low, high = max(start, offset), min(end, offset + piece.length)
                self._feed(piece.unit, piece.offset + low - offset, data[low - start : high - start])

    def _feed(self, number: int, at: int, data: np.ndarray) -> None:
        if number in self._done:
            return
        entry = self._entries[number]
        if at == 0:
            self._open[number] = (MemberDigests(_in_rows(entry.unit)), 0)
        hashers, position = self._open.get(number, (None, -1))
        if hashers is None or position != at:
            return
        hashers.update(data.data)
        self._open[number] = (hashers, at + len(data))
        if at + len(data) == entry.unit.nbytes:
            del self._open[number]
            self.check(entry, hashers.result())

    def check(self, entry: UnitEntry, digests: tuple[bytes, ...]) -> None:
        if not entry.agrees(digests):
            raise CorruptError(f"unit {entry.number} does not decode to what was coded (BLAKE3)")
        self._done.add(entry.number)

    def unfinished(self) -> list[UnitEntry]:
        return [entry for number, entry in self._entries.items() if number not in self._done]


def _in_rows(unit: Unit) -> Unit:
    """The unit cut along its rows only, so that its bytes may be hashed as they follow each other."""
    return dataclasses.replace(unit, grid=(max(1, min(unit.grid[0], unit.shape[0])), max(1, unit.shape[1])), refs=())


def member_digests(decoder: Decoder, number: int, unit: Unit) -> tuple[bytes, ...]:
    """BLAKE3 of each member, from the decoded chunks, some rows of chunks at a time."""
    hashers = MemberDigests(_in_rows(unit))
    step = max(1, BLOCK_BYTES // max(1, unit.type.itemsize)) * unit.type.itemsize
    for start in range(0, unit.nbytes, step):
        hashers.update(memoryview(decoder.unit_bytes(number, start, min(unit.nbytes, start + step))))
    return hashers.result()


def compare(
    decoder: Decoder,
    directory: Directory,
    against: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Every file of the archive with the source of that name, and none missing on either side."""
    entries = {entry.path: entry for entry in collect([against], storage_options)}
    records = {record.path: record for _, record in directory.files}
    for path in sorted(entries.keys() | records.keys()):
        entry, record = entries.get(path), records.get(path)
        if entry is None or record is None:
            where = "the archive" if entry is None else shown(os.fspath(against))
            raise CorruptError(f"{show(path)} is only in {where}")
        if (entry.kind, entry.target) != (record.kind, record.target):
            raise CorruptError(f"{show(path)} is not the same kind of file as in the source")
        if record.kind == Kind.REGULAR:
            _compare_file(decoder, record, entry, storage_options)


def _compare_file(
    decoder: Decoder, record: FileRecord, entry: SourceEntry, storage_options: Mapping[str, Any] | None
) -> None:
    starts = piece_starts(record)
    with open_source(entry, storage_options) as source:
        if source.size != record.size:
            raise CorruptError(
                f"{show(record.path)} has {source.size} bytes in the source and {record.size} in the archive"
            )

        def same(span: tuple[int, int]) -> bool:
            start, end = span
            out, original = decoder.scratch.get("span", end - start), decoder.scratch.get("original", end - start)
            for task in range_tasks(decoder, record, starts, start, end, np.frombuffer(out, np.uint8)):
                task()
            source.read_into(start, original)
            return np.array_equal(np.frombuffer(out, np.uint8), np.frombuffer(original, np.uint8))

        todo = spans(decoder, record)
        with Forecast(decoder) as forecast:
            equals = decoder.in_order(same, announced(forecast, record, starts, todo))
            for (start, end), equal in zip(todo, equals, strict=True):
                if not equal:
                    raise CorruptError(f"{show(record.path)} differs from the source within bytes {start} to {end}")
