"""From chunks to elements: decode what is asked for, straight into the caller's memory."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NoReturn, TypeVar

import numpy as np

from arzstream.archive.again import once_more
from arzstream.archive.meter import Meter
from arzstream.archive.models import StoredModels
from arzstream.archive.references import (
    ParentTensors,
    References,
    TileCache,
    TooDeepError,
    context,
    rectangle_into,
    turned,
)
from arzstream.codec import registry
from arzstream.container.directory import Directory, UnitEntry, check_chunk_header
from arzstream.container.layout import HEADER_BYTES, Prologue
from arzstream.container.records import Reference, ReferenceKind, Unit
from arzstream.container.state import ChunkEntry, ModelEntry
from arzstream.errors import ArzError, CorruptError, LimitError, MissingParentError, StorageError
from arzstream.kernels.digests import xxh3_64
from arzstream.kernels.memory import Results, Scratch
from arzstream.limits import DEFAULT_LIMITS, Limits
from arzstream.store.ranges import RangeReader

__all__ = ["Decoder", "Task", "describe"]

Task = Callable[[], None]
S = TypeVar("S")
T = TypeVar("T")


def describe(unit: Unit) -> str:
    """The unit by the names of its tensors, for messages."""
    names = [member.name for member in unit.members if member.name is not None]
    if not names:
        return "file contents"
    return f"tensor {names[0]!r}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


class Decoder:
    """Decodes chunks of an archive. Thread-safe; ``jobs`` threads serve all callers.

    A caller that waits for what it asked for (:meth:`into`, :meth:`run`) is one of those threads meanwhile, so that
    with one job, or one chunk, nothing passes from thread to thread.
    """

    def __init__(
        self,
        reader: RangeReader,
        directory: Directory,
        *,
        limits: Limits = DEFAULT_LIMITS,
        jobs: int | None = None,
        home: Callable[[int], tuple[RangeReader, Prologue, int]] | None = None,
        parents: ParentTensors | None = None,
        tiles: TileCache | None = None,
    ) -> None:
        """``home`` says where a unit is stored if not in ``reader``: the file, its prologue, the number there.
        ``parents`` has the tensors of the archives that this one was coded against; ``tiles`` are kept together with
        those of its children."""
        self.reader, self.directory, self._limits = reader, directory, limits
        self.home = home or (lambda number: (reader, directory.prologue, number))
        self.jobs = jobs or os.cpu_count() or 1
        self.results, self.scratch = Results(), Scratch()
        self.parents, self._models = parents, StoredModels(limits)
        self._tiles = tiles or (parents.tiles if parents is not None else TileCache(limits.parent_depth))
        self._nested = _Nested()
        self._pool: ThreadPoolExecutor | None = None
        self._itself = object()
        """This archive, in the keys of tiles."""
        self._lock = threading.Condition()
        self.meter: Meter | None = None
        self._closed = False
        self._reading = 0

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        """Raises StorageError after :meth:`close`, which waits for those that are inside."""
        with self._lock:
            self._check_open()
            self._reading += 1
        try:
            yield
        finally:
            with self._lock:
                self._reading -= 1
                self._lock.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError(f"{self.reader.name}: was closed; open it again")

    def counted(self, tasks: list[Task], nbytes: int) -> list[Task]:
        """``tasks``, which decode ``nbytes`` together, so that the meter learns of each."""
        if self.meter is None or not tasks:
            return tasks
        ends = [nbytes * (index + 1) // len(tasks) for index in range(len(tasks))]
        shares = [end - start for start, end in itertools.pairwise([0, *ends])]
        return [functools.partial(self.meter.run, task, share) for task, share in zip(tasks, shares, strict=True)]

    def chunk_into(self, entry: UnitEntry, chunk: int, out: memoryview) -> None:
        """Decode one chunk of a unit that is no duplicate into ``out``, checking the stored and the decoded bytes."""
        with self._open():  # the table may have to be read
            place = ChunkEntry(*self.directory.chunk_table(entry.number)[chunk].item()[:6])
        reader, prologue, number = self.home(entry.number)
        try:
            if place.stored > 2 * self._limits.chunk_bytes:  # a sparse file holds any length, the memory does not
                raise LimitError(f"a frame of {place.stored} bytes; at most {2 * self._limits.chunk_bytes} are read")
            # A chunk that this one refers to may be decoded, here and in this thread, before this one is.
            with self._open(), self._nested.level() as level:
                frame = self.scratch.get(f"frame {level}", HEADER_BYTES + place.stored)
                payload = frame[HEADER_BYTES:].toreadonly()

                def read() -> None:
                    reader.read_into(place.offset, frame)
                    check_chunk_header(bytes(frame[:HEADER_BYTES]), number, chunk, place, prologue, self._limits)
                    if xxh3_64(payload) != place.stored_xxh3:
                        raise CorruptError("the stored bytes are damaged (checksum)")

                once_more(reader, read, place.offset, len(frame))
                ctx = context(entry.unit, chunk, self.references(entry.unit, chunk), self._models_of(entry))
                registry.get(place.codec).decode(payload, out, ctx)
                if xxh3_64(out) != place.decoded_xxh3:
                    raise CorruptError("the bytes decode to something else (checksum)")
        except ArzError as error:
            where = "" if isinstance(error, MissingParentError) else f", chunk {chunk}"
            self._raise_named(error, reader.name, describe(entry.unit) + where)

    def _models_of(self, entry: UnitEntry) -> Sequence[bytes]:
        if not entry.unit.models:
            return ()
        reader, prologue, _ = self.home(entry.number)
        return self._models.of(reader, prologue, [self.directory.models[model] for model in entry.unit.models])

    def model(self, entry: ModelEntry) -> bytes:
        """The payload of a MODEL frame of this archive. Raises CorruptError."""
        return self._models.read(self.reader, self.directory.prologue, entry)

    @staticmethod
    def _raise_named(error: ArzError, name: str, what: str) -> NoReturn:
        if str(error).startswith(name):
            raise error
        if isinstance(error, MissingParentError):  # from however many archives away, the last one is what to know
            said = error.elsewhere or str(error)
            elsewhere = error.elsewhere or f"{name} {said.removeprefix('it ')}"
            raise MissingParentError(f"{name}: {what}: {said}", elsewhere=elsewhere) from error
        if isinstance(error, TooDeepError):
            raise TooDeepError(f"{name}: {what}: {error.reason}", error.reason) from error
        raise type(error)(f"{name}: {what}: {error}") from error

    def references(self, unit: Unit, chunk: int) -> Sequence[memoryview]:
        """The tiles of a unit's references where ``chunk`` is, each decoded when it is looked at."""
        if not unit.refs:
            return ()
        return References(len(unit.refs), lambda index: self._reference(unit, chunk, unit.refs[index]))

    def _reference(self, unit: Unit, chunk: int, ref: Reference) -> memoryview:
        if ref.kind in ReferenceKind.OF_PARENTS:
            if self.parents is None:
                raise MissingParentError("it was coded against another archive, which is not at hand")
            return self.parents.tile(unit, chunk, ref)
        if ref.count != unit.elements:
            raise CorruptError("a reference that is used is not as long as the unit")
        whole = None if ref.kind == ReferenceKind.TRANSPOSED else self.same_chunk(ref.source, unit, chunk)
        if whole is not None:
            return whole
        tile, source = unit.tile(chunk), self.directory.by_number[ref.source].unit
        rows, cols = (tile.row0, tile.row1), (tile.col0, tile.col1)

        def fill(out: np.ndarray) -> None:
            if ref.kind != ReferenceKind.TRANSPOSED:
                rectangle_into(self, ref.source, ref.start, unit.shape[1], rows, cols, out)
                return
            flat = np.empty(len(out), np.uint8)
            rectangle_into(self, ref.source, 0, unit.shape[0], cols, rows, flat)
            out[...] = turned(flat, cols[1] - cols[0], source.type.itemsize)

        key = (self._itself, ref, unit.shape, rows, cols)
        return self._tiles.get(key, tile.elements * source.type.itemsize, fill)

    def same_chunk(self, number: int, unit: Unit, chunk: int) -> memoryview | None:
        """What ``chunk`` of ``unit`` is in unit ``number`` of this archive, if that is cut the same way; it is kept."""
        entry = self.directory.resolve(number)
        if (entry.unit.shape, entry.unit.grid) != (unit.shape, unit.grid):
            return None
        return self._whole_chunk(entry, chunk, step=True)

    def into(self, number: int, rows: tuple[int, int], cols: tuple[int, int], out: np.ndarray) -> None:
        """Decode rows × columns of a unit into ``out`` and return when it is done.

        ``out``: shape (rows, columns × item size), dtype uint8, C-contiguous, writable.
        """
        self.run(list(self.tasks(number, rows, cols, out)))

    def run(self, tasks: Sequence[Task]) -> None:
        """Run all of them, in this thread and in those of the pool that are free; raises the first error."""
        helpers = min(self.jobs, len(tasks)) - 1
        if helpers <= 0:
            for task in tasks:
                task()
            return
        left = collections.deque(tasks)
        pool = self.pool
        futures = [pool.submit(_help, left) for _ in range(helpers)]
        try:
            _help(left)
        finally:
            left.clear()
            # Whoever has not begun by now is not needed; nothing may still write into a result when we return.
            running = [future for future in futures if not future.cancel()]
            wait(running)
        for future in running:
            future.result()

    def in_order(self, function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
        """``function`` of each of ``items``, in order, worked on ahead by the pool.

        However it ends, nothing is being worked on any more.
        """
        if self.jobs == 1:
            yield from map(function, items)
            return
        pool, waiting = self.pool, collections.deque[Future[T]]()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * self.jobs:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            wait([future for future in waiting if not future.cancel()])

    def unit_into(self, number: int, start: int, end: int, out: np.ndarray) -> list[Task]:
        """What to do to get bytes [start, end) of the decoded unit into ``out``: uint8, one-dimensional, as long."""
        number = self.directory.resolve(number).number  # a duplicate has the same bytes, if perhaps in other rows
        unit = self.directory.by_number[number].unit
        itemsize, columns = unit.type.itemsize, unit.shape[1]
        if start >= end:
            return []
        if start % itemsize or end % itemsize:
            return [lambda: self._split(number, start, end, out)]
        tasks: list[Task] = []
        done = 0
        for rows, cols in _rectangles(start // itemsize, end // itemsize, columns):
            nbytes = (rows[1] - rows[0]) * (cols[1] - cols[0]) * itemsize
            tasks += self.tasks(number, rows, cols, out[done : done + nbytes].reshape(rows[1] - rows[0], -1))
            done += nbytes
        return tasks

    def unit_bytes(self, number: int, start: int, end: int) -> bytearray:
        """Bytes [start, end) of the decoded unit."""
        out = bytearray(max(0, end - start))
        self.run(self.unit_into(number, start, end, np.frombuffer(out, np.uint8)))
        return out

    @property
    def pool(self) -> ThreadPoolExecutor:
        with self._lock:
            self._check_open()
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.jobs, thread_name_prefix="arz-decode")
            return self._pool

    def close(self) -> None:
        """Stop whatever is being decoded, in any thread: chunks that were begun are finished, no other is read."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            self._lock.wait_for(lambda: self._reading == self._nested.depth)
        self._tiles.forget(self._itself)
        self.results.close()

    def tasks(self, number: int, rows: tuple[int, int], cols: tuple[int, int], out: np.ndarray) -> Iterator[Task]:
        """What :meth:`into` has to do, chunk by chunk, in any order and in any thread."""
        entry = self.directory.resolve(number)
        unit, shape = entry.unit, self.directory.by_number[number].unit.shape
        if rows[0] >= rows[1] or cols[0] >= cols[1]:
            return
        if shape != unit.shape:  # a duplicate of a tensor with another shape: the same bytes in other rows
            yield lambda: self._reshaped(entry.number, shape, rows, cols, out)
            return
        itemsize = unit.type.itemsize
        for chunk in unit.chunks_of_rows(*rows):
            tile = unit.tile(chunk)
            row0, row1 = max(tile.row0, rows[0]), min(tile.row1, rows[1])
            col0, col1 = max(tile.col0, cols[0]), min(tile.col1, cols[1])
            if col0 >= col1:
                continue
            part = out[row0 - rows[0] : row1 - rows[0], (col0 - cols[0]) * itemsize : (col1 - cols[0]) * itemsize]
            if unit.inherited is not None:
                yield functools.partial(self._inherit, entry, (row0, row1), (col0, col1), part)
                continue
            if (row1 - row0) * (col1 - col0) == tile.elements and part.flags.c_contiguous:
                yield functools.partial(self._chunk, entry, chunk, part.reshape(-1))
            else:
                inside = (
                    slice(row0 - tile.row0, row1 - tile.row0),
                    slice((col0 - tile.col0) * itemsize, (col1 - tile.col0) * itemsize),
                )
                yield functools.partial(self._cut, entry, chunk, inside, part)

    def _inherit(self, entry: UnitEntry, rows: tuple[int, int], cols: tuple[int, int], part: np.ndarray) -> None:
        """Rows × columns of a unit whose bytes are a parent's."""
        name = self.home(entry.number)[0].name
        try:
            if self.parents is None:
                raise MissingParentError("its bytes are those of another archive, which is not at hand")
            if part.flags.c_contiguous:
                self.parents.inherit(entry, rows, cols, part.reshape(-1))
            else:
                data = np.empty(part.size, np.uint8)
                self.parents.inherit(entry, rows, cols, data)
                part[...] = data.reshape(part.shape)
        except ArzError as error:
            self._raise_named(error, name, describe(entry.unit))

    def _chunk(self, entry: UnitEntry, chunk: int, out: np.ndarray) -> None:
        """A whole chunk, which may be at hand, because another one was coded against it."""
        kept = self._tiles.kept((self._itself, entry.number, chunk))
        if kept is None:
            self.chunk_into(entry, chunk, out.data)
        else:
            out[...] = np.frombuffer(kept, np.uint8)

    def _cut(self, entry: UnitEntry, chunk: int, inside: tuple[slice, slice], part: np.ndarray) -> None:
        """Decode a chunk that is wanted in part and copy that part."""
        tile = entry.unit.tile(chunk)
        data = np.frombuffer(self._whole_chunk(entry, chunk, step=False), np.uint8)
        part[...] = data.reshape(tile.row1 - tile.row0, -1)[inside]

    def _whole_chunk(self, entry: UnitEntry, chunk: int, *, step: bool) -> memoryview:
        """A chunk that is perhaps needed again: for what refers to it, for other members of a shared unit, for a file
        that is read in smaller steps. ``step`` says that a reference leads to it."""
        tile = entry.unit.tile(chunk)

        def make(out: np.ndarray) -> None:
            if entry.unit.inherited is None:
                self.chunk_into(entry, chunk, out.data)
            else:
                rows = out.reshape(tile.row1 - tile.row0, -1)
                self._inherit(entry, (tile.row0, tile.row1), (tile.col0, tile.col1), rows)

        key = (self._itself, entry.number, chunk)
        return self._tiles.get(key, tile.elements * entry.unit.type.itemsize, make, step=step)

    def _reshaped(
        self, number: int, shape: tuple[int, int], rows: tuple[int, int], cols: tuple[int, int], out: np.ndarray
    ) -> None:
        row_bytes = out.shape[1] // (cols[1] - cols[0]) * shape[1]
        # In this thread: it may be one of the pool's, and must not wait for another one of them.
        data = np.empty((rows[1] - rows[0]) * row_bytes, np.uint8)
        for task in self.unit_into(number, rows[0] * row_bytes, rows[1] * row_bytes, data):
            task()
        itemsize = row_bytes // shape[1]
        out[...] = data.reshape(-1, row_bytes)[:, cols[0] * itemsize : cols[1] * itemsize]

    def _split(self, number: int, start: int, end: int, out: np.ndarray) -> None:
        """Bytes that begin or end inside an element."""
        itemsize = self.directory.by_number[number].unit.type.itemsize
        low, high = start // itemsize * itemsize, -(-end // itemsize) * itemsize
        data = np.empty(high - low, np.uint8)
        for task in self.unit_into(number, low, high, data):
            task()
        out[...] = data[start - low : end - low]


class _Nested(threading.local):
    """How many chunks a thread is decoding at once, each for the one before."""

    depth = 0

    @contextlib.contextmanager
    def level(self) -> Iterator[int]:
        level = self.depth
        self.depth = level + 1
        try:
            yield level
        finally:
            self.depth = level


def _help(left: collections.deque[Task]) -> None:
    """Run what is left until nothing is; after an error nothing is."""
    while True:
        try:
            task = left.popleft()
        except IndexError:
            return
        try:
            task()
        except BaseException:
            left.clear()
            raise


def _rectangles(low: int, high: int, columns: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """(rows, columns) that make up elements [low, high) of a matrix: the end of a row, whole rows, the start of one."""
    first, last = low // columns, high // columns
    if first == last:
        yield (first, first + 1), (low % columns, high % columns)
        return
    if low % columns:
        yield (first, first + 1), (low % columns, columns)
        first += 1
    if first < last:
        yield (first, last), (0, columns)
    if high % columns:
        yield (last, last + 1), (0, high % columns)
