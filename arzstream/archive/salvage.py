"""Scanning a file whose parts cannot be trusted, for every frame that is whole; ARZ-1 section 9."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from arzstream.container.directory import INDEX_KEYS, Directory, UnitEntry, index_number
from arzstream.container.layout import (
    HEADER_BYTES,
    PROLOGUE_BYTES,
    TRAILER_BYTES,
    FrameHeader,
    FrameType,
    Prologue,
    Trailer,
    is_whole,
)
from arzstream.container.metadata import Charge, unpack
from arzstream.container.records import (
    Commit,
    FileRecord,
    Kind,
    Parent,
    Piece,
    ReferenceKind,
    Unit,
    Volume,
    unit_digests,
    units_of_frame,
)
from arzstream.container.scan import (
    KNOWN_TYPES,
    Frame,
    Reader,
    check_header,
    plain_payload,
    read_frame,
    read_prologue,
    resynchronise,
)
from arzstream.container.state import ArchiveState, ChunkEntry, ModelEntry, check_chunk, check_references
from arzstream.errors import CorruptError, UnsupportedError
from arzstream.limits import Limits

__all__ = ["Salvage", "scan_everything"]


@dataclasses.dataclass
class Salvage:
    """Everything good that was found, by number."""

    prologue: Prologue
    units: dict[int, Unit] = dataclasses.field(default_factory=dict)
    files: dict[int, FileRecord] = dataclasses.field(default_factory=dict)
    written: dict[int, int] = dataclasses.field(default_factory=dict)
    """Sequence numbers of the frames that ``files`` are from."""
    models: dict[int, ModelEntry] = dataclasses.field(default_factory=dict)
    parents: dict[int, Parent] = dataclasses.field(default_factory=dict)
    volumes: dict[int, Volume] = dataclasses.field(default_factory=dict)
    digests: dict[int, tuple[bytes, ...]] = dataclasses.field(default_factory=dict)
    chunks: dict[tuple[int, int], tuple[int, ChunkEntry]] = dataclasses.field(default_factory=dict)
    """(sequence number, entry) of the last good frame of each chunk."""
    repeated: set[int] = dataclasses.field(default_factory=set)
    """Units of which a chunk was coded more than once: only a digest can tell which one counts."""
    lost_chunks: set[int] = dataclasses.field(default_factory=set)
    """Units of which a chunk frame is known to be damaged."""
    listed: dict[int, Unit] = dataclasses.field(default_factory=dict)
    """Units according to the index, if that is good: names what has no TENSOR frame any more."""
    indexed: bool = False
    """Was the index good? If not, there may have been more than can be known."""
    damaged_places: int = 0

    def complete_units(self) -> dict[int, UnitEntry]:
        """Units all of whose chunks were found and fit; whether they decode is still to be seen."""
        found: dict[int, UnitEntry] = {}
        known: dict[int, Unit] = {}
        models, parents = max(self.models, default=-1) + 1, max(self.parents, default=-1) + 1
        by_unit: dict[int, dict[int, ChunkEntry]] = collections.defaultdict(dict)
        for (number, chunk), (_, entry) in self.chunks.items():
            by_unit[number][chunk] = entry
        for number, unit in sorted(self.units.items()):
            entries = by_unit.get(number, {})
            if unit.has_chunks and not self._fits(number, unit, entries):
                continue
            # References point to lower numbers, so what they need has been decided.
            if any(
                ref.source not in (self.parents if ref.kind in ReferenceKind.OF_PARENTS else found) for ref in unit.refs
            ):
                continue
            if any(model not in self.models for model in unit.models):
                continue
            try:
                check_references(number, unit, known, models, parents)
            except CorruptError:
                continue
            if number in self.repeated and number not in self.digests:
                continue
            stored = sum(entry.stored for entry in entries.values())
            known[number] = unit
            found[number] = UnitEntry(number, unit, self._digests(number, unit), 0, 0, len(entries), stored)
        return found

    def _digests(self, number: int, unit: Unit) -> tuple[bytes, ...]:
        """What the index, or else a COMMIT, lists for a unit; nothing where it cannot be meant for this one."""
        found = self.digests.get(number, ())
        together = len(found) == 1 and unit.inherited is None
        return found if together or len(found) == len(unit.members) else ()

    @staticmethod
    def _fits(number: int, unit: Unit, entries: dict[int, ChunkEntry]) -> bool:
        with contextlib.suppress(CorruptError):
            for chunk, entry in entries.items():
                check_chunk(number, unit, chunk, entry)
            return len(entries) == unit.chunk_count
        return False

    def directory(self, name: str, units: dict[int, UnitEntry]) -> Directory:
        """A directory over ``units``, to decode with."""
        state = ArchiveState()
        for (number, chunk), (_, entry) in self.chunks.items():
            state.chunks.setdefault(number, {})[chunk] = entry
        return Directory(
            name=name, prologue=self.prologue, sealed=False, units=list(units.values()), files=[],
            load_table=lambda entry: state.table(entry.number), models=self._all_models(), parents=[],
            content=None, dead=(0, 0), valid_end=0,
        )  # fmt: skip

    def _all_models(self) -> list[ModelEntry]:
        """Models by number; no unit is taken for good that needs a lost one."""
        lost = ModelEntry(0, 0, 0, 0, 0, 0)
        return [self.models.get(n, lost) for n in range(max(self.models, default=-1) + 1)]

    def live_files(self) -> list[FileRecord]:
        return [record for _, record in sorted(self.files.items()) if record.kind != Kind.WITHDRAWN]

    def latest_files(self) -> tuple[list[FileRecord], list[FileRecord]]:
        """The live files that can lie in one folder, later ones first to be taken, and those whose place they take: a
        frame that withdrew these is lost."""
        live = {number: record for number, record in self.files.items() if record.kind != Kind.WITHDRAWN}
        plain = {record.path for record in live.values() if record.kind != Kind.DIRECTORY}
        taken: dict[bytes, int] = {}
        folders: set[bytes] = set()
        latest, older = set[int](), set[int]()
        for number in sorted(live, key=lambda n: (self.written.get(n, 0), n), reverse=True):
            record = live[number]
            above = [path for path in _above(record.path) if path in plain]
            is_below = any(taken.get(path, Kind.DIRECTORY) != Kind.DIRECTORY for path in above)
            is_above = record.kind != Kind.DIRECTORY and record.path in folders
            if record.path in taken or is_below or is_above:
                older.add(number)
                continue
            taken[record.path] = record.kind
            folders.update(above)
            latest.add(number)
        return [live[number] for number in sorted(latest)], [live[number] for number in sorted(older)]

    def names_of(self, number: int) -> list[str]:
        """What is known of a unit's tensors."""
        unit = self.units.get(number) or self.listed.get(number)
        if unit is None:
            return [f"unit {number} (its name is lost too)"]
        return [member.name for member in unit.members if member.name is not None]

    def missing_units(self, good: set[int]) -> set[int]:
        """Units that are known to have existed and are not in ``good``."""
        known = (
            set(self.units)
            | set(self.listed)
            | set(self.digests)
            | {number for number, _ in self.chunks}
            | self.lost_chunks
        )
        if not self.listed:
            named = {p.unit for record in self.live_files() for p in record.recipe if isinstance(p, Piece)}
            return (known | named) - good
        return set(self.listed) - good


def _above(path: bytes) -> Iterator[bytes]:
    while b"/" in path:
        path = path.rsplit(b"/", 1)[0]
        yield path


def scan_everything(reader: Reader, limits: Limits) -> Salvage:
    """Walk the whole file; never raises for damage, only if nothing at all is an archive's, or a newer version is
    needed."""
    size = reader.size
    prologue = _prologue(reader, size)
    salvage = Salvage(prologue)
    try:
        if _own_prologue(reader) != prologue:
            salvage.damaged_places += 1
    except CorruptError:
        salvage.damaged_places += 1
    end, whole = _end(reader, size)
    charge = Charge(limits)
    offset = PROLOGUE_BYTES
    while offset < end:
        try:
            frame = read_frame(reader, offset, end, prologue, limits)
            _take(salvage, frame, limits, charge)
            offset = frame.end
        except CorruptError:
            salvage.damaged_places += 1
            offset = _after_damage(reader, salvage, offset, end, limits)
    salvage.damaged_places += not whole
    return salvage


def _own_prologue(reader: Reader) -> Prologue:
    """The prologue as it stands; a version that is not known counts as damage if the CRC says so too."""
    try:
        return read_prologue(reader)[0]
    except UnsupportedError:
        if is_whole(reader.read_at(0, PROLOGUE_BYTES)):
            raise
        raise CorruptError("the prologue is damaged (checksum)") from None


def _own_trailer(reader: Reader, size: int) -> Trailer:
    """The same for the trailer."""
    data = reader.read_at(size - TRAILER_BYTES, TRAILER_BYTES)
    try:
        return Trailer.decode(data, size)
    except UnsupportedError:
        if is_whole(data):
            raise
        raise CorruptError("the trailer is damaged (checksum)") from None


def _prologue(reader: Reader, size: int) -> Prologue:
    """The prologue; if damaged, the trailer repeats it; if that is too, one with the tag that most frames carry."""
    with contextlib.suppress(CorruptError):
        return _own_prologue(reader)
    if size >= TRAILER_BYTES:
        with contextlib.suppress(CorruptError):
            return _own_trailer(reader, size).prologue
    tags: collections.Counter[bytes] = collections.Counter()
    offset = resynchronise(reader, 0, size, None)
    while offset < size:
        header = FrameHeader.decode(reader.read_at(offset, HEADER_BYTES))
        tags[header.file_tag] += 1
        # Beyond its payload, which may be an archive too.
        beyond = header.frame_bytes if offset + header.frame_bytes <= size else HEADER_BYTES
        offset = resynchronise(reader, offset + beyond, size, None)
    if not tags:
        raise CorruptError("not an arzstream archive, or nothing of it is left")
    return Prologue(tags.most_common(1)[0][0] + bytes(8))


def _end(reader: Reader, size: int) -> tuple[int, bool]:
    """Where the frames end, and whether a good trailer stands there."""
    if size >= PROLOGUE_BYTES + TRAILER_BYTES:
        with contextlib.suppress(CorruptError):
            _own_trailer(reader, size)
            return size - TRAILER_BYTES, True
    return size, False


def _after_damage(reader: Reader, salvage: Salvage, offset: int, end: int, limits: Limits) -> int:
    """Where to go on: behind the payload of a frame whose header is good, else at the next header."""
    with contextlib.suppress(CorruptError, UnsupportedError):
        header = FrameHeader.decode(reader.read_at(offset, min(HEADER_BYTES, end - offset)))
        check_header(header, salvage.prologue, end - offset, limits)
        if header.type == FrameType.CHUNK:
            salvage.lost_chunks.add(header.ordinal)
            held = salvage.chunks.get((header.ordinal, header.chunk))
            if held is not None and held[0] < header.sequence:
                del salvage.chunks[header.ordinal, header.chunk]  # an older version is not what counts
        return offset + header.frame_bytes
    return resynchronise(reader, offset + 64, end, salvage.prologue)


def _take(salvage: Salvage, frame: Frame, limits: Limits, charge: Charge) -> None:
    header = frame.header
    number = header.ordinal
    if header.type == FrameType.CHUNK:
        entry = ChunkEntry(
            frame.offset, header.stored, header.decoded, header.stored_xxh3, header.decoded_xxh3, header.codec
        )
        held = salvage.chunks.get((number, header.chunk))
        if held is not None:
            salvage.repeated.add(number)
        if held is None or held[0] < header.sequence:
            salvage.chunks[number, header.chunk] = (header.sequence, entry)
        return
    if header.type not in KNOWN_TYPES or header.type == FrameType.PAD:
        return
    if header.type == FrameType.MODEL:
        if number * HEADER_BYTES >= frame.end:  # they are numbered as they come, each with a header
            raise CorruptError("a model has a number that no file of this length can have")
        charge.check(header.decoded, frame.end)
        plain_payload(frame)
        charge.add(header.decoded)  # it is written anew, as it is decoded
        salvage.models[number] = ModelEntry(
            frame.offset, header.stored, header.decoded, header.codec, header.stored_xxh3, header.decoded_xxh3
        )
    elif header.type == FrameType.TABLE:
        plain_payload(frame)
    else:
        charge.check(header.decoded, frame.end)
        value = unpack(plain_payload(frame), limits)
        charge.add(header.decoded)
        _take_record(salvage, frame, value, limits)


def _take_record(salvage: Salvage, frame: Frame, value: Any, limits: Limits) -> None:
    number, kind = frame.header.ordinal, frame.header.type
    if kind == FrameType.TENSOR:
        salvage.units.update(enumerate(units_of_frame(value, limits), number))
    elif kind == FrameType.FILE:
        salvage.files[number] = FileRecord.from_map(value, limits)
        salvage.written[number] = frame.header.sequence
    elif kind == FrameType.PARENT:
        salvage.parents[number] = Parent.from_map(value)
    elif kind == FrameType.VOLUME:
        salvage.volumes[number] = Volume.from_map(value, limits)
    elif kind == FrameType.COMMIT:
        salvage.digests.update(Commit.from_map(value).units)
    elif kind == FrameType.INDEX:
        _take_index(salvage, frame, value, limits)


def _take_index(salvage: Salvage, frame: Frame, value: Any, limits: Limits) -> None:
    """The index repeats what the frames said: it stands in for those that are lost. All of it is good, or none."""
    if not isinstance(value, dict) or set(value) != INDEX_KEYS:
        raise CorruptError("the index does not have the keys it should have")
    try:
        units = {
            index_number(n): (Unit.from_map(unit, limits), unit_digests(found)) for n, unit, found, *_ in value["units"]
        }
        files = {index_number(number): FileRecord.from_map(record, limits) for number, record in value["files"]}
        parents = {number: Parent.from_map(parent) for number, parent in enumerate(value["parents"])}
        volumes = {number: Volume.from_map(volume, limits) for number, volume in enumerate(value["volumes"])}
    except UnsupportedError:
        return  # a newer version's, of which the frames are all that can be used
    except (TypeError, ValueError) as error:
        raise CorruptError(f"the index is malformed: {error}") from None
    salvage.listed = {number: unit for number, (unit, _) in units.items()}
    salvage.digests.update({number: digests for number, (_, digests) in units.items()})
    salvage.parents = parents | salvage.parents
    salvage.volumes = volumes | salvage.volumes
    # What it does not list is known to be dead.
    salvage.units = {number: salvage.units.get(number, unit) for number, unit in salvage.listed.items()}
    salvage.files, salvage.written = files, dict.fromkeys(files, frame.header.sequence)
    salvage.indexed = True
