"""Opening an archive: one read of the tail, at most one more, and every unit, file and chunk has a place.

A sealed archive opens by its trailer and INDEX; a growing one by replaying its frames up to the last COMMIT.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from arzstream.container.layout import (
    END_MAGIC,
    HEADER_BYTES,
    TRAILER_BYTES,
    FrameHeader,
    FrameType,
    Prologue,
    Trailer,
    align,
)
from arzstream.container.metadata import Charge, unpack
from arzstream.container.records import FileRecord, Kind, Parent, Unit, Volume, committed_digests, unit_digests
from arzstream.container.scan import Reader, Replay, check_header, plain_payload, read_frame, table_entries
from arzstream.container.state import ChunkEntry, ModelEntry, TableRef, check_paths, check_recipe, check_references
from arzstream.errors import ArzError, CorruptError, LimitError, UnsupportedError
from arzstream.kernels.digests import blake3
from arzstream.limits import DEFAULT_LIMITS, Limits

__all__ = ["Directory", "TailReader", "UnitEntry", "check_charge", "index_number", "open_directory"]

TAIL_BYTES = 256 << 10
"""What the first read asks for: enough for the trailer, index and tables of a model of some thousand tensors."""
TABLES_AT_ONCE = 4 << 20
"""Chunk tables come with the index when both are no longer than this, else on demand."""


class TailReader(Reader, Protocol):
    """A reader that can answer the size and the last bytes at once."""

    def tail(self, length: int) -> tuple[int, bytes]: ...


@dataclasses.dataclass(frozen=True)
class UnitEntry:
    """A unit as the index lists it; ``stored`` in bytes.

    ``digests`` are its members' BLAKE3; where there is no index, what a COMMIT lists, which may be one for all of them,
    or nothing.
    """

    number: int
    unit: Unit
    digests: tuple[bytes, ...]
    table: int
    first: int
    chunks: int
    stored: int

    def digest(self, member: int) -> bytes | None:
        """The BLAKE3 of a member; None where only the whole unit's is known."""
        return self.digests[member] if len(self.digests) == len(self.unit.members) else None

    def agrees(self, digests: tuple[bytes, ...]) -> bool:
        """May the members have these BLAKE3 ``digests``, by what is known?"""
        return not self.digests or self.digests in (digests, committed_digests(self.unit, digests))


class Directory:
    """What is in an archive and where. Thread-safe."""

    def __init__(
        self,
        *,
        name: str,
        prologue: Prologue,
        sealed: bool,
        units: list[UnitEntry],
        files: list[tuple[int, FileRecord]],
        load_table: Callable[[UnitEntry], np.ndarray],
        models: list[ModelEntry],
        parents: list[Parent],
        content: bytes | None,
        dead: tuple[int, int],
        valid_end: int,
        root: bytes | None = None,
        volumes: Sequence[Volume] = (),
    ) -> None:
        self.name, self.prologue, self.sealed = name, prologue, sealed
        self.units, self.files, self.models, self.parents = units, files, models, parents
        self.content, self.dead, self.valid_end, self.root = content, dead, valid_end, root
        self.volumes = tuple(volumes)
        self.by_number = {entry.number: entry for entry in units}
        self._load_table = load_table
        self._tables: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def chunk_table(self, number: int) -> np.ndarray:
        """The chunks of unit ``number`` in order, shape (chunks,), dtype ENTRY; read when first asked for."""
        with self._lock:
            table = self._tables.get(number)
            if table is None:
                table = self._tables[number] = self._load_table(self.by_number[number])
            return table

    def resolve(self, number: int) -> UnitEntry:
        """The unit that holds the bytes of unit ``number``: itself, or what it duplicates."""
        entry = self.by_number[number]
        source = entry.unit.duplicate_of
        return entry if source is None else self.by_number[source]


def open_directory(reader: TailReader, limits: Limits = DEFAULT_LIMITS) -> Directory:
    """Open a sealed or growing archive. Raises CorruptError, UnsupportedError or LimitError, naming the file."""
    try:
        size, tail = reader.tail(TAIL_BYTES)
        if tail[-8:] == END_MAGIC and len(tail) >= TRAILER_BYTES:
            return _open_sealed(reader, size, tail, limits)
        return _open_growing(reader, limits)
    except ArzError as error:
        raise named(error, reader.name) from None


def named(error: ArzError, name: str) -> ArzError:
    """``error`` with the file's name in front, once."""
    if str(error).startswith(name):
        return error
    return type(error)(f"{name}: {error}")


class _Window:
    """A reader that answers from bytes already read where it can."""

    def __init__(self, reader: Reader, start: int, data: bytes) -> None:
        self.name, self.size = reader.name, start + len(data)
        self._reader, self._start, self._data = reader, start, data

    def read_at(self, offset: int, length: int) -> bytes:
        if offset >= self._start:
            return self._data[offset - self._start : offset - self._start + length]
        return self._reader.read_at(offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.read_at(offset, len(buffer))


def _open_sealed(reader: TailReader, size: int, tail: bytes, limits: Limits) -> Directory:
    trailer = Trailer.decode(tail[-TRAILER_BYTES:], size)
    if trailer.index_bytes > align(limits.metadata_bytes + HEADER_BYTES):
        raise LimitError(f"an index of {trailer.index_bytes} bytes; at most {limits.metadata_bytes} are read")
    start = size - len(tail)
    everything = size - trailer.tables_offset <= TABLES_AT_ONCE
    wanted = trailer.tables_offset if everything else trailer.index_offset
    if wanted < start:
        tail, start = reader.read_at(wanted, start - wanted) + tail, wanted
    window = _Window(reader, start, tail)
    end = size - TRAILER_BYTES
    frame = read_frame(window, trailer.index_offset, end, trailer.prologue, limits)
    if frame.header.type != FrameType.INDEX or frame.end != end:
        raise CorruptError("there is no index where the trailer says")
    if blake3(frame.head + bytes(frame.payload)) != trailer.root:
        raise CorruptError("the index is not the one that was sealed (root digest)")
    charge = Charge(limits)
    charge.check(frame.header.decoded, size)
    index = unpack(plain_payload(frame), limits)
    charge.add(frame.header.decoded)
    return directory_from_index(window, trailer, index, limits, charge)


INDEX_KEYS = {"chain", "content", "dead", "files", "models", "parents", "tables", "units", "volumes"}


def directory_from_index(reader: Reader, trailer: Trailer, index: Any, limits: Limits, charge: Charge) -> Directory:
    """Check everything an INDEX says about itself, and make it a :class:`Directory`."""
    if not isinstance(index, dict) or set(index) != INDEX_KEYS:
        raise CorruptError("the index does not have the keys it should have")
    try:
        units = [_unit_entry(item, limits) for item in index["units"]]
        files = [(int(number), FileRecord.from_map(item, limits)) for number, item in index["files"]]
        tables = [TableRef(*map(index_number, item)) for item in index["tables"]]
        models = [ModelEntry(*map(index_number, item)) for item in index["models"]]
        dead_frames, dead_bytes = map(index_number, index["dead"])
        parents = [Parent.from_map(item) for item in index["parents"]]
        volumes = [Volume.from_map(item, limits) for item in index["volumes"]]
        content = bytes(index["content"])
    except (TypeError, ValueError) as error:
        raise CorruptError(f"the index is malformed: {error}") from None
    _check_index(units, files, models, parents, limits)
    check_charge((entry.unit for entry in units), files, trailer.total_bytes, limits)
    loader = _TableLoader(reader, trailer, tables, limits, charge)
    return Directory(
        name=reader.name, prologue=trailer.prologue, sealed=True, units=units, files=files, load_table=loader.load,
        models=models, parents=parents, volumes=volumes, content=content, dead=(dead_frames, dead_bytes),
        valid_end=trailer.total_bytes, root=trailer.root,
    )  # fmt: skip


def index_number(value: Any) -> int:
    """A number in an INDEX; raises CorruptError for anything else."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise CorruptError("the index has something else where a number should be")
    return value


def _unit_entry(item: Any, limits: Limits) -> UnitEntry:
    number, body, digests, table, first, chunks, stored = item
    entry = UnitEntry(
        index_number(number),
        Unit.from_map(body, limits),
        unit_digests(digests),
        *map(index_number, (table, first, chunks, stored)),
    )
    expected = entry.unit.chunk_count if entry.unit.has_chunks else 0
    if entry.chunks != expected or len(entry.digests) != len(entry.unit.members):
        raise CorruptError(f"the index lists unit {number} with the wrong number of chunks or digests")
    if not entry.chunks and (entry.table or entry.first):
        raise CorruptError(f"the index gives unit {number}, which has no chunks, a place in a chunk table")
    return entry


def _check_index(
    units: list[UnitEntry],
    files: list[tuple[int, FileRecord]],
    models: list[ModelEntry],
    parents: list[Parent],
    limits: Limits,
) -> None:
    if len(units) > limits.units or len(files) > limits.files:
        raise LimitError(
            f"{len(units)} units and {len(files)} files; at most {limits.units} and {limits.files} are read"
        )
    by_number = {entry.number: entry.unit for entry in units}
    if len(by_number) != len(units) or len({number for number, _ in files}) != len(files):
        raise CorruptError("the index lists a unit or a file twice")
    for entry in units:
        check_references(entry.number, entry.unit, by_number, len(models), len(parents))
    check_paths((record.path, record.kind) for _, record in files)
    if [record.path for _, record in files] != sorted(record.path for _, record in files):
        raise CorruptError("the index does not list the files in order")
    for _, record in files:
        if record.kind == Kind.WITHDRAWN:
            raise CorruptError("the index lists a file that was withdrawn")
        check_recipe(record, by_number)


def check_charge(units: Iterable[Unit], files: Iterable[tuple[int, FileRecord]], stored: int, limits: Limits) -> None:
    """What decoding everything, or restoring every file, would come to, against the limits; raises LimitError.

    A unit costs its own bytes, and those of members with strides once more, because these may repeat its elements.
    """
    total = sum(unit.nbytes + unit.gathered_bytes for unit in units)
    restored = sum(record.size for _, record in files)
    bound = limits.total_bytes if limits.expansion is None else min(limits.total_bytes, limits.expansion * stored)
    if max(total, restored) > bound:
        raise LimitError(f"it would decode to {max(total, restored)} bytes; at most {bound} are allowed")


class _TableLoader:
    """Reads TABLE frames when a unit's chunks are first asked for, and checks them against the unit."""

    def __init__(
        self, reader: Reader, trailer: Trailer, tables: list[TableRef], limits: Limits, charge: Charge
    ) -> None:
        self._reader, self._trailer, self._tables, self._limits = reader, trailer, tables, limits
        self._charge = charge
        self._cache: dict[int, np.ndarray] = {}

    def load(self, entry: UnitEntry) -> np.ndarray:
        if not entry.chunks:
            return np.zeros(0, table_entries(b"").dtype)
        table = self._table(entry.table)
        rows = table[entry.first : entry.first + entry.chunks]
        if len(rows) != entry.chunks:
            raise CorruptError(f"the chunk table of unit {entry.number} is too short")
        check_entries(entry, rows, self._trailer.tables_offset)
        return rows

    def _table(self, number: int) -> np.ndarray:
        if number not in self._cache:
            if number >= len(self._tables):
                raise CorruptError(f"chunk table {number} is not there")
            ref = self._tables[number]
            if ref.offset < self._trailer.tables_offset or ref.offset % 64:
                raise CorruptError(f"chunk table {number} is not where it should be")
            frame = read_frame(
                self._reader, ref.offset, self._trailer.index_offset, self._trailer.prologue, self._limits
            )
            header = frame.header
            if (header.type, header.ordinal) != (FrameType.TABLE, number) or (
                header.frame_bytes, header.stored_xxh3) != (ref.frame_bytes, ref.stored_xxh3):  # fmt: skip
                raise CorruptError(f"chunk table {number} is not the one the index means")
            self._charge.check(header.decoded, self._trailer.total_bytes)
            self._cache[number] = table_entries(plain_payload(frame))
            self._charge.add(header.decoded)
        return self._cache[number]


def check_entries(entry: UnitEntry, rows: np.ndarray, end: int) -> None:
    """Every chunk lies inside the file before ``end`` and decodes to what the unit's grid says."""
    unit = entry.unit
    offsets, stored = rows["offset"].astype(object), rows["stored"].astype(object)  # Python integers: no overflow
    if any(o % 64 or o < 64 or o + HEADER_BYTES + s > end for o, s in zip(offsets, stored, strict=True)):
        raise CorruptError(f"a chunk of unit {entry.number} lies outside the file")
    itemsize = unit.type.itemsize
    if any(int(row) != unit.tile(k).elements * itemsize for k, row in enumerate(rows["decoded"])):
        raise CorruptError(f"a chunk of unit {entry.number} does not have the length its shape gives")
    if sum(stored) != entry.stored:
        raise CorruptError(f"the stored bytes of unit {entry.number} do not add up")


def check_chunk_header(
    head: bytes, number: int, chunk: int, entry: ChunkEntry, prologue: Prologue, limits: Limits
) -> None:
    """The header in front of a chunk against its entry in the table; raises CorruptError or LimitError."""
    if head == _chunk_header(head, number, chunk, entry, prologue) and _is_within(entry, prologue, limits):
        return
    header = FrameHeader.decode(head)  # what exactly is wrong
    check_header(header, prologue, 1 << 62, limits)
    raise CorruptError(f"the chunk at byte {entry.offset} is not the one the index means")


def _chunk_header(head: bytes, number: int, chunk: int, entry: ChunkEntry, prologue: Prologue) -> bytes:
    """The only good header for this chunk but for its sequence number, which is that of ``head``."""
    sequence = int.from_bytes(head[16:24], "little")
    tag = prologue.file_id[:8]
    return FrameHeader(
        FrameType.CHUNK, entry.codec, sequence, tag, number, chunk,
        entry.stored, entry.decoded, entry.stored_xxh3, entry.decoded_xxh3,
    ).encode()  # fmt: skip


def _is_within(entry: ChunkEntry, prologue: Prologue, limits: Limits) -> bool:
    """Does a good header with these lengths pass :func:`check_header`?"""
    return entry.stored <= min((1 << prologue.frame_log2) - HEADER_BYTES, 2 * limits.chunk_bytes) and (
        entry.decoded <= min(1 << prologue.chunk_log2, limits.chunk_bytes)
    )


def _open_growing(reader: TailReader, limits: Limits) -> Directory:
    replay = Replay(reader, limits)
    try:
        for _ in replay.run(reader.size):
            pass
    except CorruptError as error:
        if _goes_on_after_trailer(replay, reader):
            raise CorruptError("something follows its end; cut it off there or run arzstream recover") from None
        if replay.believed and _commit_follows(replay):
            raise  # not where the writer was cut off: committed, and wrong
        if not replay.valid_end:
            raise CorruptError(f"holds nothing that was committed ({error})") from None
    except UnsupportedError:
        if _commit_follows(replay):
            raise
    return directory_of_replay(replay)


def _commit_follows(replay: Replay) -> bool:
    """Does a COMMIT stand at or somewhere behind a frame that is not understood, or wrong, so that the frame counts?"""
    reader, offset = replay.reader, replay.offset
    with contextlib.suppress(CorruptError):
        while offset + HEADER_BYTES <= reader.size:
            header = FrameHeader.decode(reader.read_at(offset, HEADER_BYTES))
            if header.file_tag != replay.prologue.file_id[:8]:
                break
            if header.type == FrameType.COMMIT:
                return True
            offset += header.frame_bytes
    return False


def _goes_on_after_trailer(replay: Replay, reader: TailReader) -> bool:
    """A sealed file with bytes behind its trailer, as opposed to one whose trailer is not yet, or no longer, whole."""
    if replay.index is None:
        return False
    with contextlib.suppress(ArzError):
        Trailer.decode(reader.read_at(replay.offset, TRAILER_BYTES), replay.offset + TRAILER_BYTES)
        return True
    return False


def directory_of_replay(replay: Replay) -> Directory:
    """The directory of what has been committed so far; units in order of their numbers."""
    state = replay.state
    units = []
    for number in sorted(state.digests):
        entries = state.chunks.get(number, {})
        stored = sum(entry.stored for entry in entries.values())
        units.append(UnitEntry(number, state.units[number], state.digests[number], 0, 0, len(entries), stored))
    known = {entry.number for entry in units}
    files = sorted(state.live_files().items(), key=lambda item: item[1].path)
    check_charge(state.units.values(), files, replay.valid_end, replay.limits)
    return Directory(
        name=replay.reader.name, prologue=replay.prologue, sealed=False, units=units,
        files=[(n, r) for n, r in files if all(isinstance(p, bytes) or p.unit in known for p in r.recipe)],
        load_table=lambda entry: state.table(entry.number), models=state.models, parents=state.parents,
        volumes=state.volumes, content=None, dead=state.dead(), valid_end=replay.valid_end,
    )  # fmt: skip
