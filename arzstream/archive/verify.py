"""Is this archive what it was when it was sealed; does it decode; is it what the source is?"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from arzstream.archive.again import directory_of, once_more
from arzstream.archive.ancestry import Ancestry, SearchPath
from arzstream.archive.decoding import Decoder
from arzstream.archive.deep import compare, decode_all
from arzstream.archive.links import links_outside
from arzstream.archive.references import ParentTensors
from arzstream.archive.volumes import Joined, join_volumes
from arzstream.container.directory import Directory, named, open_directory
from arzstream.container.layout import END_MAGIC, TRAILER_BYTES, Trailer
from arzstream.container.records import show
from arzstream.container.scan import Replay
from arzstream.container.state import TableRef, index_map
from arzstream.errors import ArzError, CorruptError
from arzstream.limits import DEFAULT_LIMITS, Limits
from arzstream.store.address import shown
from arzstream.store.ranges import DistantReader, RangeReader, open_reader

__all__ = ["VerifyReport", "verify", "verify_reader"]

NO_END = "has no end: it is still being written, or it was cut short; arzstream recover saves what is whole"
Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """What was checked; that there is a report means that all of it was good."""

    archive: str
    frames: int
    bytes: int
    tensors: int
    files: int
    content: str
    deep: bool = False
    against: str = ""
    """The source that every file was compared with, or empty."""
    refused_links: list[str] = dataclasses.field(default_factory=list)
    """Links that lead out of the folder they would be restored to; they are no damage, and :func:`unpack` refuses
    them."""

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def verify(
    path: str | os.PathLike[str],
    *,
    deep: bool = False,
    against: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    storage_options: dict[str, Any] | None = None,
    limits: Limits = DEFAULT_LIMITS,
    parents: SearchPath = None,
) -> VerifyReport:
    """Check every header and every stored byte, the order of the frames, and that the index says what they say.

    ``deep`` decodes everything and checks each tensor's BLAKE3 and each file's SHA-256; ``against`` compares the
    files with a source, byte for byte. Both need the archives that this one was coded against, which ``parents`` says
    where to find, as in :func:`arzstream.open`. Nothing of the archive and the source is taken from a cache. Raises
    CorruptError with the first thing that is wrong, MissingParentError, UnsupportedError, or StorageError.
    """
    with open_reader(path, storage_options, keep=False) as reader:
        try:
            report, directory = _verify(reader, limits, progress)
            joined = join_volumes(os.fspath(path), reader, directory, limits, storage_options, keep=False)
            try:
                report = _with_volumes(report, joined, limits, progress)
                refused = [show(link.path) for link in links_outside(record for _, record in joined.directory.files)]
                report = dataclasses.replace(report, refused_links=refused)
                if deep or against is not None:
                    ancestry = Ancestry(parents, storage_options, limits)
                    try:
                        origin = ancestry.tensors_of(joined.directory, os.fspath(path))
                        _verify_deep(reader, joined, origin, limits, against, progress, storage_options)
                    finally:
                        ancestry.close()
            finally:
                joined.close()
        except ArzError as error:
            raise named(error, reader.name) from error
    return dataclasses.replace(
        report, deep=deep or against is not None, against=shown(os.fspath(against)) if against else ""
    )


def _with_volumes(report: VerifyReport, joined: Joined, limits: Limits, progress: Progress | None) -> VerifyReport:
    """Verify the volumes of a set, too; nothing to do for an ordinary archive."""
    for volume, _, _ in joined.parts[1:]:
        try:
            found, _ = _verify(volume, limits, progress)
        except ArzError as error:
            raise named(error, volume.name) from error
        report = dataclasses.replace(
            report,
            frames=report.frames + found.frames,
            bytes=report.bytes + found.bytes,
            tensors=report.tensors + found.tensors,
            files=report.files + found.files,
        )
    return report


def _verify_deep(
    reader: RangeReader,
    joined: Joined,
    parents: ParentTensors | None,
    limits: Limits,
    against: str | os.PathLike[str] | None,
    progress: Progress | None,
    storage_options: dict[str, Any] | None,
) -> None:
    decoder = Decoder(reader, joined.directory, limits=limits, home=joined.home, parents=parents)
    try:
        _decode_all(decoder, joined.directory, progress)
        if against is not None:
            compare(decoder, joined.directory, against, storage_options)
    finally:
        decoder.close()


def verify_reader(
    reader: RangeReader, limits: Limits = DEFAULT_LIMITS, *, replay: Replay | None = None
) -> VerifyReport:
    """:func:`verify` of an open archive, without decoding.

    ``replay`` has checked the frames of this archive while it grew; then only what was added since is read.
    """
    return _verify(reader, limits, None, replay)[0]


def _verify(
    reader: RangeReader, limits: Limits, progress: Progress | None, replay: Replay | None = None
) -> tuple[VerifyReport, Directory]:
    size = reader.size
    replay = replay or once_more(reader, lambda: Replay(reader, limits))
    tail = reader.read_at(max(0, size - TRAILER_BYTES), min(size, TRAILER_BYTES))
    if tail[-8:] != END_MAGIC or len(tail) < TRAILER_BYTES:
        # Something later, or nothing: find out which, so that the message helps.
        open_directory(reader, limits)
        raise CorruptError(NO_END)
    trailer = Trailer.decode(tail, size)
    announced = reader.announce() if isinstance(reader, DistantReader) else None
    try:
        if announced is not None:
            announced.add([(replay.offset, size - replay.offset)])
        _check_frames(reader, replay, size, progress)
    finally:
        if announced is not None:
            announced.release()
    _check_trailer(replay, trailer)
    directory = directory_of(reader, limits)
    _check_index(replay, directory)
    tensors = sum(member.name is not None for entry in directory.units for member in entry.unit.members)
    content = directory.content.hex() if directory.content else ""
    return VerifyReport(reader.name, replay.frames, size, tensors, len(directory.files), content), directory


def _check_frames(reader: RangeReader, replay: Replay, size: int, progress: Progress | None) -> None:
    tried = -1
    while replay.offset < size - TRAILER_BYTES:
        try:
            for frame in replay.run(size - TRAILER_BYTES):
                if progress is not None:
                    progress(frame.end, size, "verifying")
        except CorruptError:
            # A frame that was damaged on its way from a store is asked for once more.
            if not isinstance(reader, DistantReader) or replay.believed or tried == replay.offset:
                raise
            tried = replay.offset
            reader.forget(replay.offset, size - replay.offset)


def _check_trailer(replay: Replay, trailer: Trailer) -> None:
    said, prologue = trailer.prologue, replay.prologue
    features = said.incompatible & ~prologue.incompatible or said.compatible & ~prologue.compatible
    same = dataclasses.replace(said, incompatible=prologue.incompatible, compatible=prologue.compatible) == prologue
    if features or not same:
        raise CorruptError("its beginning and its end do not belong together")
    if replay.index is None or replay.index[0].offset != trailer.index_offset:
        raise CorruptError("the index is not where the trailer says")
    first = replay.tables[0].offset if replay.tables else trailer.index_offset
    if first != trailer.tables_offset:
        raise CorruptError("the chunk tables are not where the trailer says")


def _check_index(replay: Replay, directory: Directory) -> None:
    """The index, and the tables, against what the frames add up to; ARZ-1 section 5.5."""
    state = replay.state
    state.require_complete()
    digests = {entry.number: entry.digests for entry in directory.units}
    if set(digests) != state.live_units():
        raise CorruptError("the index does not list the units that there are")
    for number, found in digests.items():
        if state.digests[number] != state.listed(number, found):
            raise CorruptError(f"the index has other digests of unit {number} than its COMMIT")
    assert replay.index is not None
    tables = [TableRef(*table[:3]) for table in replay.tables]
    places = {entry.number: (entry.table, entry.first) for entry in directory.units}
    if index_map(state, digests, replay.chain_at_index, tables, places) != replay.index[1]:
        raise CorruptError("the index does not say what the frames say")
    entries = 0
    for number in digests:
        if directory.chunk_table(number).tobytes() != state.table(number).tobytes():
            raise CorruptError(f"the chunk table of unit {number} does not say what the frames say")
        entries += len(state.table(number))
    if entries != sum(table.rows for table in replay.tables):
        raise CorruptError("the chunk tables have entries that belong to no unit")


def _decode_all(decoder: Decoder, directory: Directory, progress: Progress | None) -> None:
    total = sum(record.size for _, record in directory.files)
    done = 0

    def spent(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, total, "decoding")

    decode_all(decoder, directory, spent)
