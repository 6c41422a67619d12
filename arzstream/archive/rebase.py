"""Coding an archive anew against another parent, or against none, without its source.

What it holds stays the same, by content digest, so that archives that were coded against it still find it. Units stay
what they are; their bytes are decoded and coded again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Mapping

import numpy as np

from arzstream.archive.ancestry import SearchPath
from arzstream.archive.builder import summary_of
from arzstream.archive.coder import UnitCoder
from arzstream.archive.decoding import Decoder
from arzstream.archive.filejob import FileJob
from arzstream.archive.lineage import MAX_CHAIN, Lineage, open_lineage
from arzstream.archive.output import check_free_file, new_archive
from arzstream.archive.pack import PROFILES, Progress
from arzstream.archive.pipeline import Pipeline
from arzstream.archive.plan import Extent, Planned
from arzstream.archive.reader import Archive
from arzstream.archive.reader import open as open_archive
from arzstream.archive.summary import PackSummary
from arzstream.archive.verify import NO_END
from arzstream.container.records import Piece
from arzstream.container.writer import FrameWriter
from arzstream.errors import CorruptError, StorageError
from arzstream.formats.opaque import OpaqueParser
from arzstream.formats.order import layer_key
from arzstream.store import local
from arzstream.store.ranges import LocalReader

__all__ = ["rebase"]

MEMORY_BYTES = 512 << 20
COMMIT_BYTES = 64 << 20


def rebase(
    archive: str | os.PathLike[str],
    dest: str | os.PathLike[str] | None = None,
    *,
    parent: str | os.PathLike[str] | None = None,
    profile: str = "balanced",
    jobs: int | None = None,
    progress: Progress | None = None,
    parents: SearchPath = None,
    max_chain: int = MAX_CHAIN,
    force: bool = False,
) -> PackSummary:
    """Code ``archive`` against ``parent``, or to stand alone, into ``dest``; by default into its own place.

    The result appears only when all of it was read back, decoded and found identical, and has the same content digest.
    Raises MissingParentError if ``archive`` cannot be read or ``parent`` cannot, StorageError if ``parent`` needs
    ``archive`` or ``dest`` exists and not ``force``, CorruptError, ValueError for a bad argument.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile {profile!r} is none of {', '.join(PROFILES)}")
    place = os.fspath(archive)
    final = place if dest is None else os.fspath(dest)
    if dest is not None:
        check_free_file(final, replace=force)
    with open_archive(place, parents=parents) as source:
        if not source.sealed:
            raise CorruptError(f"{source.name}: {NO_END}")
        if source.directory.volumes:
            raise StorageError(f"{source.name}: is a set; rebase its volumes")
        assert source.directory.content is not None
        forbidden = (source.directory.content,)
        with (
            open_lineage(parent, final, parents, max_chain, forbidden) as lineage,
            new_archive(final, replace=force or dest is None) as (sink, reader),
            contextlib.closing(_Rebase(source, sink, lineage, profile, jobs or os.cpu_count() or 1, progress)) as work,
        ):
            summary = work.run(reader)
            sink.set_mode(local.permissions_at_most([os.stat(place)]) if os.path.exists(place) else 0o600)
    return dataclasses.replace(summary, archive=final)


class _UnitSource:
    """The decoded bytes of a unit, as a source file."""

    def __init__(self, decoder: Decoder, number: int, nbytes: int, name: str) -> None:
        self._decoder, self._number, self.size, self.name = decoder, number, nbytes, name

    def read_at(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        out = np.frombuffer(buffer, np.uint8)
        for task in self._decoder.unit_into(self._number, offset, offset + len(out), out):
            task()


class _Rebase:
    def __init__(
        self,
        source: Archive,
        sink: local.LocalSink,
        lineage: Lineage | None,
        profile: str,
        jobs: int,
        progress: Progress | None,
    ) -> None:
        self._source, self._started = source, time.monotonic()
        self._writer = FrameWriter(sink)
        self._pipeline = Pipeline(self._writer, profile=profile, jobs=jobs, memory_bytes=MEMORY_BYTES)
        self._coder = UnitCoder(self._writer, self._pipeline, self._count, lineage)
        self._progress, self._done = progress, 0
        self._total = sum(entry.unit.nbytes for entry in source.directory.units)

    def close(self) -> None:
        self._pipeline.close()

    def run(self, reader: LocalReader) -> PackSummary:
        numbers = self._units()
        for _, record in self._source.directory.files:
            pieces = (p if isinstance(p, bytes) else Piece(numbers[p.unit], p.offset, p.length) for p in record.recipe)
            self._writer.add_file(dataclasses.replace(record, recipe=tuple(pieces)))
        self._coder.commit("", force=True)
        units = self._writer.state.units
        order = sorted(self._writer.state.live_units(), key=lambda number: (layer_key(units[number].layer), number))
        content = self._writer.seal(order)
        if content != self._source.directory.content:
            raise CorruptError(f"{self._source.name}: what it holds is not what it says (content digest)")
        self._coder.verify_written(reader)
        return summary_of(self._writer, order, content, self._started)

    def _units(self) -> dict[int, int]:
        """Code all units that files name; returns the new number of each."""
        directory, coded, held = self._source.directory, {}, 0
        owners = {p.unit: r.path for _, r in reversed(directory.files) for p in r.recipe if isinstance(p, Piece)}
        self._announce(owners)
        for number in sorted(owners):
            entry = directory.by_number[number]
            unit = dataclasses.replace(entry.unit, refs=(), models=())
            planned = Planned(unit, (Extent(0, 0, unit.nbytes),))
            source = _UnitSource(self._source.decoder, number, unit.nbytes, self._source.name)
            self._coder.code(FileJob(owners[number], source, OpaqueParser()), planned)
            coded[number] = planned
            held += unit.nbytes
            if held >= COMMIT_BYTES:
                self._coder.commit_later("")
                held = 0
        self._coder.commit_later("")
        self._coder.drain()
        for number, planned in coded.items():
            if not directory.by_number[number].agrees(planned.digests):
                raise CorruptError(f"{self._source.name}: unit {number} does not decode to what was coded (BLAKE3)")
        return {number: planned.number for number, planned in coded.items()}

    def _announce(self, owners: Mapping[int, bytes]) -> None:
        """What each file holds, in its order."""
        tensors: dict[bytes, list[tuple[str, tuple[int, ...]]]] = {}
        for number, path in owners.items():
            members = self._source.directory.by_number[number].unit.members
            tensors.setdefault(path, []).extend((m.name, m.shape) for m in members if m.name is not None)
        for path, found in tensors.items():
            self._coder.relations.announce(path, found)

    def _count(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total, "coding again")
