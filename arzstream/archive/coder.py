"""Coding units: chunk by chunk or as duplicates, committing them, coding them again, proving what was written."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait

import numpy as np

from arzstream.archive.filejob import FileJob
from arzstream.archive.learning import Models
from arzstream.archive.lineage import Lineage
from arzstream.archive.mirrors import Mirrors, columns_of
from arzstream.archive.models import StoredModels
from arzstream.archive.pipeline import Given, MemberDigests, Pipeline
from arzstream.archive.plan import SMALL_BYTES, Buffer, Planned
from arzstream.archive.references import References, context
from arzstream.archive.relations import Related, Relations, Stretch
from arzstream.codec import registry
from arzstream.codec.roles import Role
from arzstream.container.layout import HEADER_BYTES
from arzstream.container.records import Member, Reference, ReferenceKind, Unit
from arzstream.container.state import ChunkEntry
from arzstream.container.writer import FrameWriter
from arzstream.errors import ArzError, CorruptError
from arzstream.kernels.digests import xxh3_64
from arzstream.kernels.memory import Scratch
from arzstream.limits import DEFAULT_LIMITS
from arzstream.store.ranges import RangeReader

__all__ = ["UnitCoder"]

FINGERPRINT_BYTES = 64 << 10
"""How much of a unit is looked at to find another that may be equal to it."""
UNITS_AT_ONCE = 64
"""Units that one frame announces, at most: what it costs to lose the frame stays small."""


class UnitCoder:
    """Turns planned units into frames. What it is told goes into a queue (``pipeline``) and is written in order.

    ``progress`` is called with the number of source bytes coded since the last call.
    """

    def __init__(
        self, writer: FrameWriter, pipeline: Pipeline, progress: Callable[[int], None], lineage: Lineage | None = None
    ) -> None:
        self.writer, self.pipeline, self.progress, self._lineage = writer, pipeline, progress, lineage
        self.relations, self._mirrors = Relations(), Mirrors()
        self._models, self._stored = Models(pipeline.profile), StoredModels(DEFAULT_LIMITS)
        self._taken: list[tuple[FileJob, Planned]] = []
        self._related: dict[Planned, tuple[Role, tuple[Related, ...]]] = {}
        pipeline.given = self._given
        self.bytes_coded = 0
        self._unfinished: set[Planned] = set()
        self._completed: list[Planned] = []
        self._originals: dict[tuple[str, tuple[int, int], int], list[Planned]] = {}
        self._verified: dict[tuple[int, int], ChunkEntry] = {}
        self._announced: list[Planned] = []
        self._after: list[Callable[[], None]] = []
        """What to queue behind the frame that announces units."""
        self._verifying: dict[tuple[int, int], tuple[ChunkEntry, Future[None]]] = {}
        self._scratch = Scratch()
        self._units: dict[int, Planned] = {}

    @contextlib.contextmanager
    def nothing_half_done(self) -> Iterator[None]:
        """After a failure, forget the units that were being coded: they are dead, and coded anew if asked for again."""
        try:
            yield
        except BaseException:
            self._announced, self._after, self._taken = [], [], []
            self.pipeline.abandon()
            for planned in self._unfinished:
                planned.abandoned = True
            self._unfinished.clear()
            raise

    def code(self, job: FileJob, planned: Planned) -> None:
        """Take a unit on: as its parent's or as a duplicate if its bytes are those of another one, else chunk by chunk.

        It waits for :meth:`queue`, so that one frame announces many units.
        """
        if len(self._announced) == UNITS_AT_ONCE:
            self.queue()
        refs = self._lineage.references(job.path, planned.unit) if self._lineage is not None else ()
        inherits = self._lineage is not None and bool(refs) and self._lineage.inherit(job.read, planned, refs[0])
        source = None if inherits else self._original(job, planned)
        self._unfinished.add(planned)
        self._announced.append(planned)
        if inherits:
            self.progress(planned.unit.nbytes)
            self._after.append(lambda: self.pipeline.put(lambda: self._complete(planned)))
        elif source is not None:
            source.relied_on += 1
            ref = Reference(ReferenceKind.DUPLICATE, source.number, 0, planned.unit.elements)
            planned.unit = dataclasses.replace(planned.unit, refs=(ref,))
            planned.digests, planned.chunk_xxh3 = source.digests, dict(source.chunk_xxh3)
            self._after.append(lambda: self.pipeline.put(lambda: self._complete(planned)))
        else:
            mirrored = self._mirrors.find(job, planned)
            planned.unit = dataclasses.replace(planned.unit, refs=() if mirrored else refs)
            self._related[planned] = (
                (Role.OTHER, (Related(Role.PARENT, *mirrored, ReferenceKind.TRANSPOSED),))
                if mirrored
                else self.relations.of(job, planned.unit)
            )
            for earlier in self._related[planned][1]:
                earlier.planned.relied_on += 1
            self._taken.append((job, planned))
            self._after.append(lambda: self._put_chunks(job, planned))

        self.relations.add(job, planned)

    def _given(self, planned: Planned, chunk: int) -> Given:
        """What a chunk may be coded with: tiles of parents, and of other units as their sources are now."""
        role, related = self._related.get(planned, (Role.OTHER, ()))
        parents = [ref for ref in planned.unit.refs if ref.kind == ReferenceKind.PARENT]
        relied: dict[tuple[Planned, int], int] = {}

        def tile(index: int) -> memoryview:
            if index < len(parents):
                assert self._lineage is not None
                return self._lineage.tile(planned.unit, chunk, parents[index])
            data, seen = related[index - len(parents)].tile(planned.unit, chunk)
            relied.update(seen)
            return data

        if related:
            try:
                tiles: Sequence[memoryview] = [tile(index) for index in range(len(parents) + len(related))]
            except (ArzError, OSError, ValueError):  # gone by now, or cut short
                related, relied = (), {}
        if not related:
            tiles = References(len(parents), tile) if parents else ()
        half = next((r.planned.unit.dtype for r in related if r.role == Role.HALF), "")
        roles = (Role.PARENT,) * len(parents) + tuple(r.role for r in related)
        known = context(planned.unit, chunk, tiles, self._models.data(planned))
        ctx = dataclasses.replace(known, role=role, roles=roles, half=half)
        return Given(ctx, relied, tiles[: len(parents)] if related else tiles)

    def queue(self) -> None:
        """Queue what was taken on."""
        announced, after, self._announced, self._after = self._announced, self._after, [], []
        taken, self._taken = self._taken, []
        if self._lineage is not None:
            self._models.learn(taken, self._lineage.tile)
        if announced:
            self.pipeline.put(lambda: self._begin(announced))
        for put in after:
            put()

    def drain(self) -> None:
        """Queue what was taken on, and write all that is in the queue."""
        self.queue()
        self.pipeline.drain()

    def _put_chunks(self, job: FileJob, planned: Planned) -> None:
        hashers = MemberDigests(planned.unit)
        for chunk in range(planned.unit.chunk_count):
            self.pipeline.put_chunk(planned, chunk, job.read, lambda data: self._coded(data, hashers))
        self.pipeline.put(lambda: self._end(planned, hashers))

    def _begin(self, announced: Sequence[Planned]) -> None:
        for number, planned in enumerate(announced, len(self.writer.state.units)):
            planned.number = number
            self._units[number] = planned
            refs = tuple(
                Reference(earlier.kind, earlier.planned.number, earlier.start, planned.unit.elements)
                for earlier in self._related.get(planned, (Role.OTHER, ()))[1]
            )
            models = self._models.write(self.writer, planned)
            planned.unit = dataclasses.replace(planned.unit, refs=planned.unit.refs + refs, models=models)
        units = [planned.unit for planned in announced]
        if self._lineage is not None:
            self._lineage.announce(self.writer, units)
        first = self.writer.add_units(units)
        assert first == announced[0].number

    def _coded(self, data: Buffer, hashers: MemberDigests) -> None:
        hashers.update(data)
        self.bytes_coded += len(data)
        self.progress(len(data))

    def _end(self, planned: Planned, hashers: MemberDigests) -> None:
        planned.digests = hashers.result()
        self._complete(planned)

    def _complete(self, planned: Planned) -> None:
        self._unfinished.discard(planned)
        self._completed.append(planned)

    def _original(self, job: FileJob, planned: Planned) -> Planned | None:
        """An earlier unit with the same bytes, found by its beginning and proved by its digests."""
        unit = planned.unit
        single = (
            len(unit.members) == 1 and unit.members[0].strides is None and unit.members[0].elements == unit.elements
        )
        if not single or unit.nbytes < SMALL_BYTES:
            return None
        key = (unit.dtype, unit.shape, xxh3_64(planned.read(job.read, 0, FINGERPRINT_BYTES)))
        earlier = self._originals.setdefault(key, [])
        if earlier:
            self.drain()
            for candidate in earlier:
                if candidate.digests and not candidate.abandoned and self._same_bytes(job, planned, candidate):
                    self.progress(unit.nbytes)
                    return candidate
        earlier.append(planned)
        return None

    @staticmethod
    def _same_bytes(job: FileJob, planned: Planned, candidate: Planned) -> bool:
        hashers = MemberDigests(
            dataclasses.replace(candidate.unit, members=(Member(None, (candidate.unit.elements,)),))
        )
        for chunk, xxh3 in sorted(candidate.chunk_xxh3.items()):
            data = planned.read_chunk(job.read, chunk)
            if xxh3_64(data) != xxh3:
                return False
            hashers.update(data)
        return hashers.result() == candidate.digests

    def commit_later(self, layer: str) -> None:
        """Commit behind what was taken on so far."""
        self._after.append(lambda: self.pipeline.put(lambda: self.commit(layer)))

    def commit(self, layer: str, force: bool = False) -> None:
        """Commit the units that are complete; with ``force`` also where there is none but something else."""
        # A unit that was coded again before it was committed stands here twice.
        done = {planned.number: planned.digests for planned in self._completed if not planned.abandoned}
        self._completed = []
        if done or (force and not self.writer.committed):
            self.writer.commit(layer, list(done.items()))

    def code_again(self, job: FileJob, changed: Iterable[tuple[Planned, list[int]]]) -> None:
        """The source of these chunks is not what it was."""
        for planned, chunks in changed:
            if planned.relied_on or not planned.unit.has_chunks:
                self._replace(job, planned)
                continue
            self._unfinished.add(planned)
            self._originals = {key: [p for p in found if p is not planned] for key, found in self._originals.items()}
            for chunk in chunks:
                self.pipeline.put_chunk(planned, chunk, job.read, lambda data: self.progress(0))
            self.drain()
            self._digest_again(job, planned)
        self.commit_later("")
        self.drain()

    def _digest_again(self, job: FileJob, planned: Planned) -> None:
        """Members' digests from the source once more; they must be those of the bytes that were coded."""
        hashers = MemberDigests(planned.unit)
        for chunk in range(planned.unit.chunk_count):
            data = planned.read_chunk(job.read, chunk)
            if xxh3_64(data) != planned.chunk_xxh3[chunk]:
                planned.abandoned = True  # changed again in between: a new unit takes its place
                return
            hashers.update(data)
        self._end(planned, hashers)

    def _replace(self, job: FileJob, planned: Planned) -> None:
        """A new unit for bytes that were those of another unit or of a parent, or that other units were found to be
        equal to."""
        fresh = Planned(dataclasses.replace(planned.unit, refs=()), planned.extents)
        source = planned.unit.duplicate_of
        if source is not None:
            self._units[source].relied_on -= 1
        self.code(job, fresh)
        job.replace_unit(planned, fresh)

    def verify_ahead(self, reader: RangeReader) -> None:
        """Begin to read back, decode and compare what is committed by now and not verified, in the pool's threads."""
        for number, entries in self.writer.state.chunks.items():
            for chunk, entry in entries.items():
                known = self._verifying.get((number, chunk))
                if self._verified.get((number, chunk)) != entry and (known is None or known[0] != entry):
                    future = self.pipeline.pool.submit(self._verify_chunk, reader, number, chunk, entry)
                    self._verifying[number, chunk] = (entry, future)

    def verify_written(self, reader: RangeReader) -> int:
        """Read what has been written since the last call back from ``reader``, decode it, compare; returns decoded
        bytes.

        Raises CorruptError if anything differs from what was read from the source.
        """
        self.drain()
        self.verify_ahead(reader)
        total = 0
        begun, self._verifying = self._verifying, {}
        try:
            for (number, chunk), (entry, future) in begun.items():
                future.result()
                self._verified[number, chunk] = entry
                total += entry.decoded
        finally:
            wait([future for _, future in begun.values() if not future.cancel()])
        return total

    def _verify_chunk(self, reader: RangeReader, number: int, chunk: int, entry: ChunkEntry) -> None:
        unit = self.writer.state.units[number]
        payload, out = self._scratch.get("payload", entry.stored), self._scratch.get("decoded", entry.decoded)
        reader.read_into(entry.offset + HEADER_BYTES, payload)
        try:
            if xxh3_64(payload) != entry.stored_xxh3:
                raise CorruptError("what was written is not what is read back")
            models = self._models_of(reader, unit)
            if self._is_proved(unit, number, chunk, entry):
                return
            ctx = context(unit, chunk, self._written(reader, unit, chunk), models)
            registry.get(entry.codec).decode(payload.toreadonly(), out, ctx)
            if xxh3_64(out) != entry.decoded_xxh3:
                raise CorruptError("what was written does not decode to the source")
        except ArzError as error:
            raise CorruptError(
                f"{reader.name}: chunk {chunk} of unit {number}: {error}; the memory or the disk may be bad"
            ) from error

    def _models_of(self, reader: RangeReader, unit: Unit) -> Sequence[bytes]:
        """The models of a unit, as they were written."""
        entries = [self.writer.state.models[model] for model in unit.models]
        return self._stored.of(reader, self.writer.prologue, entries)

    def _is_proved(self, unit: Unit, number: int, chunk: int, entry: ChunkEntry) -> bool:
        """Was this very payload decoded when it was made, with chunks like those that it refers to?"""
        proof, chunks = self.pipeline.proofs.get((number, chunk)), self.writer.state.chunks
        if proof is None or proof.payload_xxh3 != entry.stored_xxh3:
            return False
        own = [ref for ref in unit.refs if ref.kind not in ReferenceKind.OF_PARENTS]
        relied: list[int] = []
        for ref in own:
            if ref.kind != ReferenceKind.UNIT:
                return False
            taken = self._chunks_of(unit, chunk, ref)
            if any(i not in chunks.get(ref.source, ()) for i in taken):
                return False
            relied += [chunks[ref.source][i].decoded_xxh3 for i in taken]
        return proof.relied == tuple(relied)

    def _chunks_of(self, unit: Unit, chunk: int, ref: Reference) -> range:
        """The chunks of another unit that a chunk's tile of it is from."""
        source = self.writer.state.units[ref.source]
        if (source.shape, source.grid) == (unit.shape, unit.grid):
            return range(chunk, chunk + 1)
        return Stretch.of(source, ref.start, unit, chunk).chunks

    def _written(self, reader: RangeReader, unit: Unit, chunk: int) -> Sequence[memoryview]:
        """The tiles that a chunk was coded against, as a reader of the archive finds them."""

        def tile(index: int) -> memoryview:
            ref = unit.refs[index]
            if ref.kind == ReferenceKind.UNIT:
                source, taken = self.writer.state.units[ref.source], self._chunks_of(unit, chunk, ref)
                if (source.shape, source.grid) == (unit.shape, unit.grid):
                    return self._decoded(reader, ref.source, chunk)
                parts = b"".join(self._decoded(reader, ref.source, i) for i in taken)
                return Stretch.of(source, ref.start, unit, chunk).cut(parts)
            if ref.kind == ReferenceKind.TRANSPOSED:
                chunks = range(self.writer.state.units[ref.source].chunk_count)
                data = b"".join(self._decoded(reader, ref.source, i) for i in chunks)
                return columns_of(np.frombuffer(data, np.uint8), unit, chunk).data
            assert self._lineage is not None
            return self._lineage.tile(unit, chunk, ref)

        return References(len(unit.refs), tile) if unit.refs else ()

    def _decoded(self, reader: RangeReader, number: int, chunk: int) -> memoryview:
        """A chunk of a unit that another one is coded against, from the archive."""
        unit = self.writer.state.units[number]
        if unit.duplicate_of is not None:  # it has the same shape, and so the same chunks
            return self._decoded(reader, unit.duplicate_of, chunk)
        if unit.inherited is not None:
            assert self._lineage is not None
            return self._lineage.tile(unit, chunk, unit.inherited)
        entry = self.writer.state.chunks[number][chunk]
        payload, out = memoryview(bytearray(entry.stored)), memoryview(bytearray(entry.decoded))
        reader.read_into(entry.offset + HEADER_BYTES, payload)
        ctx = context(unit, chunk, self._written(reader, unit, chunk), self._models_of(reader, unit))
        registry.get(entry.codec).decode(payload.toreadonly(), out, ctx)
        return out.toreadonly()
