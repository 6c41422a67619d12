"""Building an archive of a checkpoint while its files land, or after.

``pack`` and the daemon use the same three steps for each file: :meth:`CheckpointBuilder.update` codes every whole unit
behind the frontier, as often as wanted; :meth:`~CheckpointBuilder.finish` reads the complete file once more, codes
again
what is not what it was, and writes down how to make it; :meth:`~CheckpointBuilder.verify_written` decodes what has
been written since and compares. Then :meth:`~CheckpointBuilder.seal`.

Everything coded before ``finish`` is a belief: the writer may still rewrite what it wrote. ``finish`` settles it, by
the XXH3-64 of every chunk of the source, and takes the SHA-256 from the very bytes it compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from arzstream.archive.hashing import PrefixHash, compare_source
from arzstream.archive.pipeline import MemberDigests, Pipeline, context
from arzstream.archive.plan import SHARED_BYTES, SMALL_BYTES, Planned, literal_unit, shared_unit, storage_unit
from arzstream.archive.summary import PackSummary
from arzstream.codec import registry
from arzstream.container.layout import HEADER_BYTES
from arzstream.container.records import FileRecord, Kind, Member, Piece, Reference, ReferenceKind, Unit
from arzstream.container.scan import Reader
from arzstream.container.state import ChunkEntry
from arzstream.container.writer import FrameWriter, Sink
from arzstream.errors import ArzError, CorruptError, SourceChangedError, StorageError
from arzstream.formats.base import Layout, Parser, Storage, pieces
from arzstream.formats.detect import parser_for
from arzstream.formats.order import layer_key, layer_of
from arzstream.kernels.digests import xxh3_64

__all__ = ["CheckpointBuilder", "FileJob", "Source"]

INLINE_BYTES = 128
"""Literals up to this many bytes a file stand in its recipe."""
FINGERPRINT_BYTES = 64 << 10
ATTEMPTS = 3
"""How often a finished file may turn out to have changed before we give up on it for now."""


class Source(Protocol):
    """An open source file."""

    @property
    def size(self) -> int: ...

    def read_at(self, offset: int, length: int) -> bytes: ...


@dataclasses.dataclass(eq=False)
class FileJob:
    """A source file on its way into the archive."""

    path: bytes
    source: Source
    parser: Parser
    prefix: PrefixHash
    layout: Layout | None = None
    placed: dict[Storage, tuple[Planned, int]] = dataclasses.field(default_factory=dict)
    """Each coded storage's unit and its first byte there."""
    literals: tuple[tuple[tuple[int, int], ...], Planned] | None = None
    """Literal ranges that have a unit of their own."""
    number: int | None = None
    record: FileRecord | None = None

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes; SourceChangedError if they are not there any more."""
        try:
            data = self.source.read_at(offset, length)
        except StorageError:
            if self.source.size < offset + length:
                raise self.changed("was cut short while it was read") from None
            raise
        if len(data) != length:
            raise self.changed("was cut short while it was read")
        return data

    def read_available(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes, fewer at the end of the file."""
        room = max(0, self.source.size - offset)
        return self.source.read_at(offset, min(length, room)) if room else b""

    def changed(self, what: str) -> SourceChangedError:
        return SourceChangedError(
            f"{self.path.decode('utf-8', 'backslashreplace')}: {what}; it is still being written, try again later"
        )


class CheckpointBuilder:
    """Writes one archive into ``sink``. Not thread-safe; encodes with ``jobs`` threads of its own.

    ``progress`` is called with the number of source bytes coded since the last call.
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
    ) -> None:
        self._writer = FrameWriter(sink, file_id=file_id)
        self._pipeline = Pipeline(self._writer, profile=profile, jobs=jobs, memory_bytes=memory_bytes)
        self._parallel = tensor_parallel
        self._progress = progress or (lambda nbytes: None)
        self._unfinished: set[Planned] = set()
        self._completed: list[Planned] = []
        self._originals: dict[tuple[str, tuple[int, int], int], list[Planned]] = {}
        self._small_literals: list[tuple[FileJob, FileRecord, dict[int, bytes]]] = []
        self._small_bytes = 0
        self._verified: dict[tuple[int, int], ChunkEntry] = {}
        self._units: dict[int, Planned] = {}
        self._started = time.monotonic()
        self.bytes_coded = 0
        """Source bytes coded so far, bytes coded again included."""

    # -- files ------------------------------------------------------------------------------------------------------

    def add_file(self, path: bytes, source: Source) -> FileJob:
        """A source file; ``path`` is relative to the checkpoint, its parts separated by ``/``."""
        return FileJob(path, source, parser_for(path), PrefixHash())

    def update(self, job: FileJob, frontier: int, final: bool = False) -> int:
        """Code and commit every whole unit that lies behind ``frontier`` and is not coded yet; returns the bytes coded.

        ``final`` says that the file is complete and ``frontier`` its length.
        """
        before = self.bytes_coded
        with self._nothing_half_done():
            self._plan(job, frontier, final)
            self._pipeline.drain()
            if not final:
                job.prefix.advance(job.read, frontier)
        return self.bytes_coded - before

    def layout(self, job: FileJob, frontier: int, final: bool = False) -> Layout:
        """What is known of the file's structure."""
        job.layout = job.parser.update(job.read_available, frontier, final)
        return job.layout

    def plan(self, job: FileJob, frontier: int, final: bool = False) -> None:
        """Put what :meth:`update` codes into the queue, without waiting for it."""
        with self._nothing_half_done():
            self._plan(job, frontier, final)

    def _plan(self, job: FileJob, frontier: int, final: bool) -> None:
        layout = self.layout(job, frontier, final)
        by_layer = self._ready(job, layout, frontier, final)
        for layer in sorted(by_layer, key=layer_key):
            for planned, storages in self._units_of(by_layer[layer], layer):
                self._code(job, planned)
                start = 0
                for storage in storages:
                    job.placed[storage] = (planned, start)
                    start += storage.nbytes
            self._commit_later(layer)

    def finish(self, job: FileJob, *, size: int, mode: int, mtime: int) -> None:
        """The file is complete and ``size`` bytes long: settle it. Raises SourceChangedError if it does not hold
        still."""
        with self._nothing_half_done():
            self._finish(job, size, mode, mtime)

    @contextlib.contextmanager
    def _nothing_half_done(self) -> Iterator[None]:
        """After a failure, forget the units that were being coded: they are dead, and coded anew if asked for again."""
        try:
            yield
        except BaseException:
            self._pipeline.abandon()
            for planned in self._unfinished:
                planned.abandoned = True
            self._unfinished.clear()
            raise

    def _finish(self, job: FileJob, size: int, mode: int, mtime: int) -> None:
        for attempt in itertools.count():
            self.update(job, size, final=True)
            small = self._place_literals(job, size)
            self._pipeline.drain()
            changed, sha256 = compare_source(job.read, size, job.prefix, self._segments(job), small)
            if not changed and sha256 is not None:
                break
            if attempt == ATTEMPTS:
                raise job.changed("keeps changing")
            self._code_again(job, changed)
        assert sha256 is not None
        record = self._record(job, size, mode, mtime, sha256)
        if small:
            self._small_literals.append((job, record, small))
            self._small_bytes += sum(map(len, small.values()))
            if self._small_bytes >= SHARED_BYTES:
                self._flush_literals()
        else:
            self._write_record(job, dataclasses.replace(record, recipe=tuple(self._recipe(job, size, {}))))

    def withdraw(self, job: FileJob) -> None:
        """The source vanished: what was coded of it is dead."""
        self._small_literals = [item for item in self._small_literals if item[0] is not job]
        if job.number is not None:
            self._writer.add_file(FileRecord.withdrawn(job.path), job.number)
            self._writer.commit("")
        job.record = None

    def rename(self, job: FileJob, path: bytes) -> None:
        """The source has another name now."""
        job.path = path
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

    def verify_written(self, reader: Reader) -> int:
        """Read what has been written since the last call back from ``reader``, decode it, compare; returns decoded
        bytes.

        Raises CorruptError if anything differs from what was read from the source.
        """
        self._pipeline.drain()
        state = self._writer.state
        todo = []
        for number, entries in state.chunks.items():
            for chunk, entry in entries.items():
                if self._verified.get((number, chunk)) != entry:
                    todo.append((number, chunk, entry))
        total = 0
        for number, chunk, entry in self._pipeline.pool.map(lambda item: self._verify_chunk(reader, *item), todo):
            self._verified[number, chunk] = entry
            total += entry.decoded
        return total

    def seal(self) -> PackSummary:
        """Write what is left, the index and the trailer."""
        if self._small_literals:
            self._flush_literals()
        self._commit_later("")
        self._pipeline.put(lambda: self._commit("", force=True))
        self._pipeline.drain()
        state = self._writer.state
        order = sorted(state.live_units(), key=lambda number: (layer_key(state.units[number].layer), number))
        content = self._writer.seal(order)
        return self._summary(order, content)

    def set_jobs(self, jobs: int) -> None:
        """Encode with so many threads from now on; they start with the calling thread's priority."""
        self._pipeline.set_jobs(jobs)

    def close(self) -> None:
        """End the threads; what was not sealed stays unsealed."""
        self._pipeline.close()

    def __enter__(self) -> CheckpointBuilder:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def bytes_written(self) -> int:
        """Length of the archive so far."""
        return self._writer.offset

    # -- units ------------------------------------------------------------------------------------------------------

    def _ready(self, job: FileJob, layout: Layout, frontier: int, final: bool) -> dict[str, list[Storage]]:
        """Storages to code now, by layer. Small ones wait until all small ones of their layer are there."""
        found: dict[str, list[Storage]] = {}
        waiting: set[str] = set()
        last_layer = _layer(layout.storages[-1]) if layout.storages else ""
        for storage in layout.storages:
            if storage in job.placed and not job.placed[storage][0].abandoned:
                continue
            layer = _layer(storage)
            small = storage.nbytes < SMALL_BYTES
            may_grow = layout.size is None and layer == last_layer and not final
            if storage.end > frontier or (small and may_grow):
                if small:
                    waiting.add(layer)
                continue
            found.setdefault(layer, []).append(storage)
        for layer in waiting & found.keys():
            found[layer] = [s for s in found[layer] if s.nbytes >= SMALL_BYTES]
        return {layer: storages for layer, storages in found.items() if storages}

    def _units_of(self, storages: Sequence[Storage], layer: str) -> Iterator[tuple[Planned, Sequence[Storage]]]:
        small: dict[str, list[Storage]] = {}
        for storage in storages:
            if storage.nbytes >= SMALL_BYTES:
                yield storage_unit(storage, layer, self._parallel), [storage]
            else:
                small.setdefault(storage.dtype, []).append(storage)
        for group in small.values():
            batch: list[Storage] = []
            for storage in group:
                if batch and sum(s.nbytes for s in batch) + storage.nbytes > SHARED_BYTES:
                    yield shared_unit(batch, layer), batch
                    batch = []
                batch.append(storage)
            yield (storage_unit(batch[0], layer) if len(batch) == 1 else shared_unit(batch, layer)), batch

    def _code(self, job: FileJob, planned: Planned) -> None:
        """Queue a unit: as a duplicate if its bytes are those of an earlier one, else chunk by chunk."""
        source = self._original(job, planned)
        self._unfinished.add(planned)
        if source is not None:
            source.duplicates += 1
            ref = Reference(ReferenceKind.DUPLICATE, source.number, 0, planned.unit.elements)
            planned.unit = dataclasses.replace(planned.unit, refs=(ref,))
            planned.digests, planned.chunk_xxh3 = source.digests, dict(source.chunk_xxh3)
            self._pipeline.put(lambda: self._begin(planned))
            self._pipeline.put(lambda: self._complete(planned))
            return
        self._pipeline.put(lambda: self._begin(planned))
        hashers = MemberDigests(planned.unit)
        for chunk in range(planned.unit.chunk_count):
            self._pipeline.put_chunk(planned, chunk, job.read, lambda data: self._coded(data, hashers))
        self._pipeline.put(lambda: self._end(planned, hashers))

    def _begin(self, planned: Planned) -> None:
        planned.number = self._writer.add_unit(planned.unit)
        self._units[planned.number] = planned

    def _coded(self, data: bytes, hashers: MemberDigests) -> None:
        hashers.update(data)
        self.bytes_coded += len(data)
        self._progress(len(data))

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
            self._pipeline.drain()
            for candidate in earlier:
                if candidate.digests and not candidate.abandoned and self._same_bytes(job, planned, candidate):
                    self._progress(unit.nbytes)
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

    def _commit_later(self, layer: str) -> None:
        self._pipeline.put(lambda: self._commit(layer))

    def _commit(self, layer: str, force: bool = False) -> None:
        # A unit that was coded again before it was committed stands here twice.
        done = {planned.number: planned.digests for planned in self._completed if not planned.abandoned}
        self._completed = []
        if done or force:
            self._writer.commit(layer, list(done.items()))

    # -- settling ---------------------------------------------------------------------------------------------------

    def _place_literals(self, job: FileJob, size: int) -> dict[int, bytes]:
        """Code the bytes that are no tensor's; or, if they are few, return them by offset for the recipe or a shared
        unit."""
        assert job.layout is not None
        ranges = tuple((p.offset, p.nbytes) for p in pieces(job.layout, size) if p.storage is None)
        total = sum(nbytes for _, nbytes in ranges)
        if total < SMALL_BYTES:
            job.literals = None
            return {offset: job.read(offset, nbytes) for offset, nbytes in ranges}
        if job.literals is None or job.literals[0] != ranges or job.literals[1].abandoned:
            planned = literal_unit(ranges)
            self._code(job, planned)
            self._commit_later("")
            job.literals = (ranges, planned)
        return {}

    def _segments(self, job: FileJob) -> list[Planned]:
        """The units that hold bytes of this file."""
        assert job.layout is not None
        current = {id(planned): planned for s in job.layout.storages for planned in [job.placed[s][0]]}
        if job.literals is not None:
            current[id(job.literals[1])] = job.literals[1]
        return list(current.values())

    def _code_again(self, job: FileJob, changed: Iterable[tuple[Planned, list[int]]]) -> None:
        """The source of these chunks is not what it was."""
        for planned, chunks in changed:
            if planned.duplicates or planned.unit.duplicate_of is not None:
                self._replace(job, planned)
                continue
            self._unfinished.add(planned)
            self._originals = {key: [p for p in found if p is not planned] for key, found in self._originals.items()}
            for chunk in chunks:
                self._pipeline.put_chunk(planned, chunk, job.read, lambda data: self._progress(0))
            self._pipeline.drain()
            self._digest_again(job, planned)
        self._commit_later("")
        self._pipeline.drain()

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
        """A new unit for bytes that were those of another unit, or that other units were found to be equal to."""
        fresh = Planned(dataclasses.replace(planned.unit, refs=()), planned.extents)
        source = planned.unit.duplicate_of
        if source is not None:
            self._units[source].duplicates -= 1
        self._code(job, fresh)
        job.placed = {s: (fresh if p is planned else p, start) for s, (p, start) in job.placed.items()}
        if job.literals is not None and job.literals[1] is planned:
            job.literals = (job.literals[0], fresh)

    def _record(self, job: FileJob, size: int, mode: int, mtime: int, sha256: bytes) -> FileRecord:
        layout = job.layout
        assert layout is not None
        return FileRecord(
            job.path, Kind.REGULAR, mode & 0o7777, mtime, size, sha256,
            format=layout.format, note=layout.note, metadata=dict(layout.metadata),
        )  # fmt: skip

    def _recipe(self, job: FileJob, size: int, literals: dict[int, Piece | bytes]) -> Iterator[Piece | bytes]:
        """How to make the file again, neighbouring pieces of one unit joined."""
        last: Piece | None = None
        for piece in self._pieces(job, size, literals):
            if (
                last is not None
                and isinstance(piece, Piece)
                and (last.unit, last.offset + last.length) == (piece.unit, piece.offset)
            ):
                last = Piece(last.unit, last.offset, last.length + piece.length)
                continue
            if last is not None:
                yield last
            last = piece if isinstance(piece, Piece) else None
            if last is None:
                yield piece
        if last is not None:
            yield last

    def _pieces(self, job: FileJob, size: int, literals: dict[int, Piece | bytes]) -> Iterator[Piece | bytes]:
        assert job.layout is not None
        at = 0
        for piece in pieces(job.layout, size):
            if piece.storage is not None:
                planned, start = job.placed[piece.storage]
                yield Piece(planned.number, start, piece.nbytes)
            elif job.literals is not None:
                yield Piece(job.literals[1].number, at, piece.nbytes)
                at += piece.nbytes
            else:
                yield literals[piece.offset]

    def _write_record(self, job: FileJob, record: FileRecord) -> None:
        self._pipeline.drain()
        job.number = self._writer.add_file(record, job.number)
        job.record = record
        self._commit("", force=True)

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
            self._code(_in_memory(data), literal_unit([(0, len(data))]))
            self._pipeline.drain()
        for (job, record, _), places in zip(waiting, placed, strict=True):
            recipe = tuple(self._recipe(job, record.size, places))
            job.number = self._writer.add_file(dataclasses.replace(record, recipe=recipe), job.number)
            job.record = dataclasses.replace(record, recipe=recipe)
        self._commit("", force=True)

    # -- parts ------------------------------------------------------------------------------------------------------

    def _verify_chunk(self, reader: Reader, number: int, chunk: int, entry: ChunkEntry) -> tuple[int, int, ChunkEntry]:
        unit = self._writer.state.units[number]
        payload = memoryview(reader.read_at(entry.offset + HEADER_BYTES, entry.stored))
        out = bytearray(entry.decoded)
        try:
            if xxh3_64(payload) != entry.stored_xxh3:
                raise CorruptError("what was written is not what is read back")
            registry.get(entry.codec).decode(payload, memoryview(out), context(unit, chunk))
            if xxh3_64(out) != entry.decoded_xxh3:
                raise CorruptError("what was written does not decode to the source")
        except ArzError as error:
            raise CorruptError(
                f"{reader.name}: chunk {chunk} of unit {number}: {error}; the memory or the disk may be bad"
            ) from error
        return number, chunk, entry

    def _summary(self, order: list[int], content: bytes) -> PackSummary:
        state = self._writer.state
        codecs: dict[str, int] = {}
        for number in order:
            names = [member for member in state.units[number].members if member.name is not None]
            if names:
                codec = unit_codec(state.units[number], state.chunks.get(number, {}).values())
                codecs[codec] = codecs.get(codec, 0) + len(names)
        files = state.live_files().values()
        return PackSummary(
            bytes_in=sum(record.size for record in files),
            bytes_out=self._writer.offset,
            seconds=time.monotonic() - self._started,
            files=sum(record.kind == Kind.REGULAR for record in files),
            tensors=sum(codecs.values()),
            codecs=dict(sorted(codecs.items())),
            content=content.hex(),
            opaque={r.path.decode("utf-8", "backslashreplace"): r.note for r in files if r.note},
        )


def unit_codec(unit: Unit, entries: Iterable[ChunkEntry]) -> str:
    """The codec that most of a unit's bytes are coded with, by name; ``dup`` for duplicates, ``raw`` for nothing."""
    if unit.duplicate_of is not None:
        return "dup"
    weights: dict[int, int] = {}
    for entry in entries:
        weights[entry.codec] = weights.get(entry.codec, 0) + entry.decoded
    return registry.name_of(max(weights, key=lambda codec: weights[codec])) if weights else "raw"


def _layer(storage: Storage) -> str:
    """The layer of a storage; optimiser state that is small goes together, whatever parameter it belongs to."""
    layer = layer_of(storage.views[0].name) if storage.views else ""
    if storage.nbytes < SMALL_BYTES and ".state." in f".{layer}":
        return layer.split(".state.")[0] + ".state"
    return layer


class _Memory:
    """Bytes as a source."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        return len(self._data)

    def read_at(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


def _in_memory(data: bytes) -> FileJob:
    return FileJob(b"literals", _Memory(data), parser_for(b"literals"), PrefixHash())
