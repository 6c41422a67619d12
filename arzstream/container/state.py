"""What a sequence of frames adds up to.

The writer, the reader of a growing file, ``verify`` and ``recover`` all feed their frames to :class:`ArchiveState`, so
there is one definition of what counts, what is dead, and what the index says.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from arzstream.container import metadata
from arzstream.container.records import (
    Commit,
    FileRecord,
    Kind,
    Parent,
    Piece,
    ReferenceKind,
    Unit,
    Volume,
    committed_digests,
    show,
)
from arzstream.errors import CorruptError, LimitError
from arzstream.kernels.digests import Hasher, blake3, blake3_hasher
from arzstream.limits import DEFAULT_LIMITS, Limits

__all__ = [
    "ENTRY",
    "ArchiveState",
    "ChunkEntry",
    "ModelEntry",
    "TableRef",
    "chained",
    "check_chunk",
    "check_paths",
    "check_recipe",
    "check_references",
    "content_digest",
    "content_of",
    "index_map",
]

ENTRY = np.dtype(
    [("offset", "<u8"), ("stored", "<u8"), ("decoded", "<u8"), ("stored_xxh3", "<u8"), ("decoded_xxh3", "<u8"),
     ("codec", "<u2"), ("reserved", "V6")]
)  # fmt: skip
"""One row of a chunk table; ARZ-1 section 5.4."""
assert ENTRY.itemsize == 48


class ChunkEntry(NamedTuple):
    """Where a chunk's frame is (bytes from the start of the file), how long it is, and its XXH3-64 digests."""

    offset: int
    stored: int
    decoded: int
    stored_xxh3: int
    decoded_xxh3: int
    codec: int


class ModelEntry(NamedTuple):
    """Where a MODEL frame is."""

    offset: int
    stored: int
    decoded: int
    codec: int
    stored_xxh3: int
    decoded_xxh3: int


class TableRef(NamedTuple):
    """A TABLE frame: its offset, whole length, and the XXH3-64 of its stored payload."""

    offset: int
    frame_bytes: int
    stored_xxh3: int


@dataclasses.dataclass
class _Counted:
    """Number and bytes of frames, to tell the dead from the live."""

    frames: int = 0
    nbytes: int = 0

    def add(self, frame_bytes: int) -> None:
        self.frames += 1
        self.nbytes += frame_bytes


class ArchiveState:
    """Units, chunks and files as of the last COMMIT. Feed frames in file order."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self.units: dict[int, Unit] = {}
        self.chunks: dict[int, dict[int, ChunkEntry]] = {}
        self.files: dict[int, FileRecord] = {}
        self.models: list[ModelEntry] = []
        self.parents: list[Parent] = []
        self.volumes: list[Volume] = []
        self.digests: dict[int, tuple[bytes, ...]] = {}
        """What COMMITs list for complete units."""
        self.commits = 0
        self._pending_chunks: list[tuple[int, int, ChunkEntry, int]] = []
        self._pending_files: list[tuple[int, FileRecord, int]] = []
        self._unit_frames: dict[int, tuple[int, int]] = {}
        self._chunk_frames: dict[tuple[int, int], int] = {}
        self._file_frames: dict[int, int] = {}
        self.next_file = 0
        self._all = _Counted()

    # -- frames -----------------------------------------------------------------------------------------------------

    def add_units(self, ordinal: int, units: Sequence[Unit], frame_bytes: int) -> None:
        """The units of one TENSOR frame, numbered from ``ordinal`` on."""
        self.check_units(ordinal, units)
        self.units.update(enumerate(units, ordinal))
        self._unit_frames[ordinal] = (len(units), frame_bytes)
        self._all.add(frame_bytes)

    def check_units(self, ordinal: int, units: Sequence[Unit]) -> None:
        """What new units say about others, models and parents, and their numbers; raises CorruptError or LimitError."""
        if ordinal != len(self.units):
            raise CorruptError(f"unit {ordinal} stands where unit {len(self.units)} should")
        if ordinal + len(units) > self.limits.units:
            raise LimitError(f"more than {self.limits.units} units")
        known = collections.ChainMap(dict(enumerate(units, ordinal)), self.units)
        for number, unit in enumerate(units, ordinal):
            check_references(number, unit, known, len(self.models), len(self.parents))

    def add_chunk(self, ordinal: int, chunk: int, entry: ChunkEntry, frame_bytes: int) -> None:
        unit = self.units.get(ordinal)
        if unit is None:
            raise CorruptError(f"a chunk belongs to unit {ordinal}, which is not there")
        check_chunk(ordinal, unit, chunk, entry)
        self._pending_chunks.append((ordinal, chunk, entry, frame_bytes))
        self._all.add(frame_bytes)

    def add_file(self, ordinal: int, record: FileRecord, frame_bytes: int) -> None:
        if ordinal > self.next_file:
            raise CorruptError(f"file {ordinal} stands where file {self.next_file} should")
        if ordinal >= self.limits.files:
            raise LimitError(f"more than {self.limits.files} files")
        check_recipe(record, self.units)
        self.next_file = max(self.next_file, ordinal + 1)
        self._pending_files.append((ordinal, record, frame_bytes))
        self._all.add(frame_bytes)

    def add_model(self, ordinal: int, entry: ModelEntry) -> None:
        if ordinal != len(self.models):
            raise CorruptError(f"model {ordinal} stands where model {len(self.models)} should")
        self.models.append(entry)

    def add_parent(self, ordinal: int, parent: Parent) -> None:
        if ordinal != len(self.parents):
            raise CorruptError(f"parent {ordinal} stands where parent {len(self.parents)} should")
        self.parents.append(parent)

    def add_volume(self, ordinal: int, volume: Volume) -> None:
        if ordinal != len(self.volumes):
            raise CorruptError(f"volume {ordinal} stands where volume {len(self.volumes)} should")
        if any(known.name == volume.name for known in self.volumes):
            raise CorruptError(f"two volumes are called {show(volume.name)}")
        self.volumes.append(volume)

    def add_commit(self, commit: Commit) -> None:
        """Take over what came since the previous COMMIT. The chain is the business of who reads the headers."""
        for ordinal, chunk, entry, frame_bytes in self._pending_chunks:
            self.chunks.setdefault(ordinal, {})[chunk] = entry
            self._chunk_frames[ordinal, chunk] = frame_bytes
            self.digests.pop(ordinal, None)  # cannot be read until a COMMIT lists it (again)
        for number, record, frame_bytes in self._pending_files:
            self.files[number] = record
            self._file_frames[number] = frame_bytes
        self._pending_chunks, self._pending_files = [], []
        for ordinal, digests in commit.units:
            unit = self.units.get(ordinal)
            if unit is None or len(digests) != (1 if unit.inherited is None else len(unit.members)):
                raise CorruptError(f"a commit lists unit {ordinal} wrongly")
            if unit.has_chunks and len(self.chunks.get(ordinal, ())) != unit.chunk_count:
                raise CorruptError(f"a commit lists unit {ordinal}, of which chunks are missing")
            self.digests[ordinal] = digests
        self.commits += 1

    def listed(self, number: int, digests: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """What a COMMIT lists for unit ``number``, whose members have these BLAKE3 ``digests``; raises CorruptError if
        there is no such unit, or it has another number of members."""
        unit = self.units.get(number)
        if unit is None or len(digests) != len(unit.members):
            raise CorruptError(f"there is no unit {number} of {len(digests)} members")
        return committed_digests(unit, digests)

    # -- what it adds up to -----------------------------------------------------------------------------------------

    def live_files(self) -> dict[int, FileRecord]:
        return {number: record for number, record in self.files.items() if record.kind != Kind.WITHDRAWN}

    def live_units(self) -> set[int]:
        """Units that a live file names, and those that live units refer to."""
        live = {p.unit for record in self.live_files().values() for p in record.recipe if isinstance(p, Piece)}
        for number in sorted(live, reverse=True):
            live |= self._referred(number)
        return live

    def _referred(self, number: int) -> set[int]:
        """All units that unit ``number`` needs; references point to lower numbers, so this ends."""
        needed: set[int] = set()
        ahead = [number]
        while ahead:
            refs = self.units[ahead.pop()].refs
            found = {ref.source for ref in refs if ref.kind not in ReferenceKind.OF_PARENTS} - needed
            needed |= found
            ahead += found
        return needed

    def dead(self) -> tuple[int, int]:
        """Number and bytes of TENSOR, CHUNK and FILE frames that no longer count."""
        live = _Counted()
        units = self.live_units()
        for first, (count, frame_bytes) in self._unit_frames.items():
            if not units.isdisjoint(range(first, first + count)):
                live.add(frame_bytes)
        for (number, _), frame_bytes in self._chunk_frames.items():
            if number in units:
                live.add(frame_bytes)
        for number in self.live_files():
            live.add(self._file_frames[number])
        return self._all.frames - live.frames, self._all.nbytes - live.nbytes

    def require_complete(self) -> None:
        """Every live unit has been committed whole; what a seal needs."""
        for number in sorted(self.live_units()):
            if number not in self.digests:
                raise CorruptError(f"unit {number} is used by a file but was never completed")

    def table(self, number: int) -> np.ndarray:
        """The chunk table of a unit, shape (chunks,), dtype ENTRY."""
        entries = self.chunks.get(number, {})
        table = np.zeros(len(entries), ENTRY)
        for row, chunk in enumerate(sorted(entries)):
            table[row] = (*entries[chunk], b"")
        return table


def chained(link: bytes) -> Hasher:
    """A BLAKE3 that goes on from ``link``; ARZ-1 section 5.3."""
    hasher = blake3_hasher()
    hasher.update(link)
    return hasher


def check_references(number: int, unit: Unit, units: Mapping[int, Unit], models: int, parents: int) -> None:
    """What a unit says about other ``units``, and how many models and parents there are; raises CorruptError."""
    if any(model >= models for model in unit.models):
        raise CorruptError(f"unit {number} uses a model that is not there")
    for ref in unit.refs:
        if ref.kind in ReferenceKind.OF_PARENTS:
            if ref.source >= parents:
                raise CorruptError(f"unit {number} refers to a parent that is not there")
            continue
        source = units.get(ref.source)
        if source is None or ref.source >= number or ref.start + ref.count > source.elements:
            raise CorruptError(f"unit {number} refers to a unit, or elements of one, that is not there before it")
        if ref.kind == ReferenceKind.TRANSPOSED and (ref.start, ref.count, source.elements) != (
            0,
            unit.elements,
            unit.elements,
        ):
            raise CorruptError(f"unit {number} refers to the transposed of a unit that is not as large")
        if unit.duplicate_of is not None and (not source.has_chunks or source.dtype != unit.dtype):
            raise CorruptError(f"unit {number} duplicates a unit that it cannot duplicate")


def check_chunk(ordinal: int, unit: Unit, chunk: int, entry: ChunkEntry) -> None:
    """A chunk's place and length against the unit's grid; raises CorruptError."""
    if not unit.has_chunks:
        raise CorruptError(f"unit {ordinal} is a duplicate, or its parent's, and has a chunk all the same")
    if chunk >= unit.chunk_count:
        raise CorruptError(f"unit {ordinal} has {unit.chunk_count} chunks, but there is one numbered {chunk}")
    if entry.decoded != unit.tile(chunk).elements * unit.type.itemsize:
        raise CorruptError(
            f"chunk {chunk} of unit {ordinal} decodes to {entry.decoded} bytes, which its shape does not allow"
        )


def check_recipe(record: FileRecord, units: Mapping[int, Unit]) -> None:
    """Every piece of a recipe lies inside the unit it names; raises CorruptError."""
    for piece in record.recipe:
        if isinstance(piece, Piece):
            unit = units.get(piece.unit)
            if unit is None or piece.offset + piece.length > unit.nbytes:
                raise CorruptError(f"the recipe of {show(record.path)} asks for bytes that are not there")


def check_paths(paths: Iterable[tuple[bytes, int]]) -> None:
    """(path, kind) pairs: no path twice, and nothing below a path that is not a directory; ARZ-1 section 8."""
    kinds: dict[bytes, int] = {}
    for path, kind in paths:
        if path in kinds:
            raise CorruptError(f"two files are called {show(path)}")
        kinds[path] = kind
    for path in kinds:
        above = path
        while b"/" in above:
            above = above.rsplit(b"/", 1)[0]
            if kinds.get(above, Kind.DIRECTORY) != Kind.DIRECTORY:
                raise CorruptError(f"{show(above)} is a file and a folder at once")


def content_digest(
    files: Iterable[FileRecord], units: Iterable[tuple[Unit, tuple[bytes, ...]]], volumes: Iterable[Volume] = ()
) -> bytes:
    """The checkpoint's identity, 32 bytes, independent of how it is coded; ARZ-1 section 5.7."""
    tensors = [
        [member.name, unit.dtype, list(member.shape), digest]
        for unit, digests in units
        for member, digest in zip(unit.members, digests, strict=True)
        if member.name is not None
    ]
    body: dict[str, Any] = {
        "files": sorted([f.path, f.kind, f.size, f.sha256, f.target] for f in files),
        "tensors": sorted(tensors, key=metadata.pack),
    }
    contents = sorted(volume.content for volume in volumes)
    return blake3(metadata.pack({**body, "volumes": contents} if contents else body))


def content_of(state: ArchiveState, digests: Mapping[int, tuple[bytes, ...]]) -> bytes:
    """The :func:`content_digest` of ``state``; ``digests`` are the members' BLAKE3 of the live units."""
    files = state.live_files().values()
    # A unit that is only there because another refers to it is no part of the checkpoint.
    named = {piece.unit for record in files for piece in record.recipe if isinstance(piece, Piece)}
    units = ((state.units[number], members) for number, members in digests.items() if number in named)
    return content_digest(files, units, state.volumes)


def index_map(
    state: ArchiveState,
    digests: Mapping[int, tuple[bytes, ...]],
    chain: bytes,
    tables: list[TableRef],
    places: dict[int, tuple[int, int]],
) -> dict[str, Any]:
    """The INDEX of ``state``; ``digests`` are the members' BLAKE3 of the live units, in layer order, ``places`` their
    (table, first entry)."""
    files = state.live_files()
    units = []
    for number, members in digests.items():
        entries = state.chunks.get(number, {})
        table, first = places.get(number, (0, 0))
        stored = sum(entry.stored for entry in entries.values())
        unit = state.units[number]
        units.append([number, unit.to_map(), list(members), table, first, len(entries), stored])
    return {
        "chain": chain,
        "content": content_of(state, digests),
        "dead": list(state.dead()),
        "files": [[n, files[n].to_map()] for n in sorted(files, key=lambda n: files[n].path)],
        "models": [list(model) for model in state.models],
        "parents": [parent.to_map() for parent in state.parents],
        "tables": [list(table) for table in tables],
        "units": units,
        "volumes": [volume.to_map() for volume in state.volumes],
    }
