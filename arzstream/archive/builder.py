"""Building an archive of a checkpoint while its files land, or after.

``pack`` and the daemon use the same three steps for each file: :meth:`CheckpointBuilder.update` codes every whole unit
behind the frontier, as often as wanted; :meth:`~CheckpointBuilder.finish` reads the complete file once more, codes
again what is not what it was, and writes down how to make it; :meth:`~CheckpointBuilder.verify_written` decodes what
has been written since and compares. Then :meth:`~CheckpointBuilder.seal`.

Everything coded before ``finish`` is a belief: the writer may still rewrite what it wrote. ``finish`` settles it, by
the XXH3-64 of every chunk of the source, and takes the SHA-256 from the very bytes it compared.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from arzstream.archive.capacity import IndexRoom
from arzstream.archive.coder import UnitCoder
from arzstream.archive.filejob import FileJob, Source
from arzstream.archive.hashing import compare_source
from arzstream.archive.lineage import Lineage
from arzstream.archive.pipeline import Pipeline
from arzstream.archive.plan import SHARED_BYTES, SMALL_BYTES, Planned, literal_unit
from arzstream.archive.relations import holds_state, rank
from arzstream.archive.saving import MemorySource
from arzstream.archive.sharing import plan_units
from arzstream.archive.summary import PackSummary
from arzstream.codec import registry
from arzstream.codec.parts import split_name
from arzstream.container.records import FileRecord, Kind, Piece, Unit
from arzstream.container.state import ArchiveState, ChunkEntry, content_of
from arzstream.container.writer import FrameWriter, Sink
from arzstream.formats.base import Layout, Parser, Storage
from arzstream.formats.beside import NOTHING, Beside
from arzstream.formats.companions import Companions
from arzstream.formats.detect import parser_for
from arzstream.formats.opaque import OpaqueParser
from arzstream.formats.order import layer_key
from arzstream.kernels.memory import Results
from arzstream.store.ranges import RangeReader

__all__ = ["CheckpointBuilder", "summary_of", "unit_codec"]

INLINE_BYTES = 128
"""Literals up to this many bytes a file stand in its recipe."""
COMMIT_BYTES = 4 << 20
"""Source bytes from which on a layer is committed; smaller ones share a commit with those that follow."""
IDLE_BYTES = 32 << 20
"""Memory that was read into and is kept for the next chunks."""
ATTEMPTS = 3
"""How often a finished file may turn out to have changed before we give up on it for now."""


class CheckpointBuilder:
    """Writes one archive into ``sink``. Not thread-safe; encodes with ``jobs`` threads of its own.

    ``progress`` is called with the number of source bytes coded since the last call. ``lineage`` is what the checkpoint
    is coded against, open for as long as this is.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        profile: str = "balanced",
        jobs: int = 1,
        memory_bytes: int = 256 << 20,
        file_id: bytes | None = None,
        tensor_parallel: int = 1,
        progress: Callable[[int], None] | None = None,
        lineage: Lineage | None = None,
        prove: bool = True,
        beside: Beside = NOTHING,
    ) -> None:
        """``prove`` says that :meth:`verify_written` will be called; ``beside`` are all files of the checkpoint, added
        already or not."""
        self._beside = beside
        self._writer = FrameWriter(sink, file_id=file_id)
        self._pipeline = Pipeline(self._writer, profile=profile, jobs=jobs, memory_bytes=memory_bytes, prove=prove)
        self._coder = UnitCoder(self._writer, self._pipeline, progress or (lambda nbytes: None), lineage)
        self._parallel = tensor_parallel
        self._memory = Results(IDLE_BYTES)
        self._companions = Companions()
        self._room = IndexRoom()
        self._small_literals: list[tuple[FileJob, FileRecord, dict[int, bytes]]] = []
        self._small_bytes = 0
        self._started = time.monotonic()

    # -- files ------------------------------------------------------------------------------------------------------

    def add_file(self, path: bytes, source: Source) -> FileJob:
        """A source file; ``path`` is relative to the checkpoint, its parts separated by ``/``."""
        return FileJob(path, source, self._parser(path), memory=self._memory)

    def _parser(self, path: bytes) -> Parser:
        return parser_for(path, companions=self._companions, beside=self._beside)

    def update(self, job: FileJob, frontier: int, final: bool = False) -> int:
        """Code and commit every whole unit that lies behind ``frontier`` and is not coded yet; returns the bytes coded.

        ``final`` says that the file is complete and ``frontier`` its length.
        """
        before = self.bytes_coded
        with self._coder.nothing_half_done():
            self._plan(job, frontier, final)
            self._coder.drain()
            if not final:
                job.prefix.advance(job.read, frontier)
        return self.bytes_coded - before

    def turn(self, job: FileJob, size: int) -> int:
        """When it is best to :meth:`plan` a file that is complete: those with lower numbers first."""
        return holds_state(self._look(job, size, True).storages)

    def _look(self, job: FileJob, frontier: int, final: bool) -> Layout:
        layout = job.look(frontier, final)
        self._room.expect(job, layout)
        return layout

    def plan(self, job: FileJob, frontier: int, final: bool = False) -> None:
        """Put what :meth:`update` codes into the queue, without waiting for it."""
        with self._coder.nothing_half_done():
            self._plan(job, frontier, final)

    def _plan(self, job: FileJob, frontier: int, final: bool) -> None:
        layout = self._look(job, frontier, final)
        by_layer = job.ready(layout, frontier, final)
        if by_layer:
            self._coder.relations.announce(job.path, ((v.name, v.shape) for s in layout.storages for v in s.views))
        waiting: list[str] = []
        held = 0
        for layer, units in _in_order(by_layer, self._parallel):
            for planned, storages in units:
                self._coder.code(job, planned)
                start = 0
                for storage in storages:
                    job.placed[storage] = (planned, start)
                    start += storage.nbytes
            waiting.append(layer)
            held += sum(storage.nbytes for _, storages in units for storage in storages)
            if held >= COMMIT_BYTES:
                self._coder.commit_later(layer if len(waiting) == 1 else "")
                waiting, held = [], 0
        self._coder.commit_later(waiting[0] if len(waiting) == 1 else "")
        self._coder.queue()

    def finish(self, job: FileJob, *, size: int, mode: int, mtime: int) -> None:
        """The file is complete and ``size`` bytes long: settle it. Raises SourceChangedError if it does not hold
        still."""
        with self._coder.nothing_half_done():
            self._finish(job, size, mode, mtime)

    def _finish(self, job: FileJob, size: int, mode: int, mtime: int) -> None:
        for attempt in itertools.count():
            self.update(job, size, final=True)
            small = self._place_literals(job, size)
            self._coder.drain()
            changed, sha256 = compare_source(job.read, size, job.prefix, job.units(), small)
            if not changed and sha256 is not None:
                break
            if attempt == ATTEMPTS:
                raise job.changed("keeps changing")
            self._coder.code_again(job, changed)
        assert sha256 is not None
        record = job.describe(size, mode, mtime, sha256)
        if small:
            self._small_literals.append((job, record, small))
            self._small_bytes += sum(map(len, small.values()))
            if self._small_bytes >= SHARED_BYTES:
                self._flush_literals()
        else:
            self._write_record(job, dataclasses.replace(record, recipe=tuple(job.recipe(size, {}))))

    def withdraw(self, job: FileJob) -> None:
        """The source vanished: what was coded of it is dead."""
        self._small_literals = [item for item in self._small_literals if item[0] is not job]
        self._coder.relations.forget(job)
        self._room.forget(job)
        if job.number is not None:
            self._writer.add_file(FileRecord.withdrawn(job.path), job.number)
            self._writer.commit("")
        job.record = None

    def rename(self, job: FileJob, path: bytes) -> None:
        """The source has another name now."""
        job.path, job.parser = path, self._parser(path)
        self._small_literals = [
            (j, dataclasses.replace(record, path=path) if j is job else record, small)
            for j, record, small in self._small_literals
        ]
        if job.record is not None:
            self._write_record(job, dataclasses.replace(job.record, path=path))

    def add_link(self, path: bytes, target: bytes, mode: int, mtime: int) -> None:
        """A symbolic link that is kept as one."""
        self._writer.add_file(FileRecord(path, Kind.LINK, mode, mtime, target=target))

    def add_directory(self, path: bytes, mode: int, mtime: int) -> None:
        """A folder; only needed for its mode, or when it is empty."""
        self._writer.add_file(FileRecord(path, Kind.DIRECTORY, mode, mtime))

    # -- proof and end ----------------------------------------------------------------------------------------------

    def verify_ahead(self, reader: RangeReader) -> None:
        """Write what is queued and begin :meth:`verify_written` of it, in the threads that encode."""
        with self._coder.nothing_half_done():
            self._pipeline.drain()
        self._coder.verify_ahead(reader)

    def verify_written(self, reader: RangeReader) -> int:
        """Read what has been written since the last call back from ``reader``, decode it, compare; returns decoded
        bytes. Raises CorruptError if anything differs from what was read from the source."""
        return self._coder.verify_written(reader)

    def seal(self, check: Callable[[bytes], None] = lambda content: None) -> PackSummary:
        """Write what is left, the index and the trailer. ``check`` is given the content digest before the latter two
        are written, and may raise: then what was written has no end, and nobody takes it for an archive."""
        if self._small_literals:
            self._flush_literals()
        self._coder.drain()
        self._coder.commit("", force=True)
        state = self._writer.state
        state.require_complete()
        order = sorted(state.live_units(), key=lambda number: (layer_key(state.units[number].layer), number))
        check(content_of(state, {number: self._writer.digests[number] for number in order}))
        content = self._writer.seal(order)
        return summary_of(self._writer, order, content, self._started)

    def set_jobs(self, jobs: int) -> None:
        """Encode with so many threads from now on; they start with the calling thread's priority."""
        self._pipeline.set_jobs(jobs)

    def close(self) -> None:
        """End the threads; what was not sealed stays unsealed."""
        self._pipeline.close()
        self._memory.close()

    def __enter__(self) -> CheckpointBuilder:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def bytes_coded(self) -> int:
        """Source bytes coded so far, bytes coded again included."""
        return self._coder.bytes_coded

    @property
    def bytes_written(self) -> int:
        """Length of the archive so far."""
        return self._writer.offset

    @property
    def state(self) -> ArchiveState:
        """What is written so far."""
        return self._writer.state

    # -- settling ---------------------------------------------------------------------------------------------------

    def _place_literals(self, job: FileJob, size: int) -> dict[int, bytes]:
        """Code the bytes that are no tensor's; or, if they are few, return them by offset for the recipe or a shared
        unit."""
        ranges = job.literal_ranges(size)
        total = sum(nbytes for _, nbytes in ranges)
        if total < SMALL_BYTES:
            job.literals = None
            return {offset: bytes(job.read(offset, nbytes)) for offset, nbytes in ranges}
        if job.literals is None or job.literals[0] != ranges or job.literals[1].abandoned:
            planned = literal_unit(ranges)
            self._coder.code(job, planned)
            self._coder.commit_later("")
            job.literals = (ranges, planned)
        return {}

    def _write_record(self, job: FileJob, record: FileRecord) -> None:
        self._coder.drain()
        job.number = self._writer.add_file(record, job.number)
        job.record = record
        self._coder.commit("", force=True)

    def _flush_literals(self) -> None:
        """Code the small literals of all finished files as one unit, so that they compress together, and write the
        records."""
        waiting, self._small_literals, self._small_bytes = self._small_literals, [], 0
        buffer = bytearray()
        placed: list[dict[int, Piece | bytes]] = []
        for _, _, small in waiting:
            inline = sum(map(len, small.values())) <= INLINE_BYTES
            places: dict[int, Piece | bytes] = {}
            for offset, data in small.items():
                places[offset] = data if inline else Piece(len(self._writer.state.units), len(buffer), len(data))
                if not inline:
                    buffer += data
            placed.append(places)
        if buffer:
            data = bytes(buffer)
            self._coder.code(FileJob(b"literals", MemorySource([data]), OpaqueParser()), literal_unit([(0, len(data))]))
            self._coder.drain()
        for (job, record, _), places in zip(waiting, placed, strict=True):
            recipe = tuple(job.recipe(record.size, places))
            job.number = self._writer.add_file(dataclasses.replace(record, recipe=recipe), job.number)
            job.record = dataclasses.replace(record, recipe=recipe)
        self._coder.commit("", force=True)


def _in_order(
    by_layer: Mapping[str, Sequence[Storage]], parallel: int
) -> Iterator[tuple[str, list[tuple[Planned, Sequence[Storage]]]]]:
    """The units of each layer, and first everything that others may be coded against."""
    turns: dict[int, dict[str, list[Storage]]] = {}
    for layer, storages in by_layer.items():
        for storage in storages:
            turns.setdefault(rank(storage), {}).setdefault(layer, []).append(storage)
    for turn in sorted(turns):
        yield from plan_units(turns[turn], parallel)


def summary_of(writer: FrameWriter, order: Iterable[int], content: bytes, started: float) -> PackSummary:
    """What a sealed archive holds; ``started`` is when work on it began, by the monotonic clock."""
    state = writer.state
    codecs: dict[str, int] = {}
    whole, in_parts = 0, set[str]()
    for number in order:
        names = [member for member in state.units[number].members if member.name is not None]
        if names:
            codec = unit_codec(state.units[number], state.chunks.get(number, {}).values())
            codecs[codec] = codecs.get(codec, 0) + len(names)
            whole += sum(member.part is None for member in names)
            in_parts.update(
                split_name(member.name or "")[0]
                for member in names
                if member.part is not None and not member.is_empty_part
            )
    files = state.live_files().values()
    return PackSummary(
        bytes_in=sum(record.size for record in files),
        bytes_out=writer.offset,
        seconds=time.monotonic() - started,
        files=sum(record.kind == Kind.REGULAR for record in files),
        tensors=whole + len(in_parts),
        codecs=dict(sorted(codecs.items())),
        content=content.hex(),
        parents=[[parent.hint, parent.digest.hex()] for parent in state.parents],
        opaque={r.path.decode("utf-8", "backslashreplace"): r.note for r in files if r.note},
    )


def unit_codec(unit: Unit, entries: Iterable[ChunkEntry]) -> str:
    """The codec that most of a unit's bytes are coded with, by name; ``dup`` for duplicates, ``unchanged`` for what is
    as in the parent, ``raw`` for nothing."""
    if unit.duplicate_of is not None:
        return "dup"
    if unit.inherited is not None:
        return "unchanged"
    weights: dict[int, int] = {}
    for entry in entries:
        weights[entry.codec] = weights.get(entry.codec, 0) + entry.decoded
    return registry.name_of(max(weights, key=lambda codec: weights[codec])) if weights else "raw"
