"""From chunks to elements: decode what is asked for, straight into the caller's memory."""

from __future__ import annotations

import collections
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from arzstream.archive.pipeline import context
from arzstream.codec import registry
from arzstream.container.directory import Directory, UnitEntry, check_chunk_header
from arzstream.container.layout import HEADER_BYTES, Prologue
from arzstream.container.records import Unit
from arzstream.container.scan import Reader
from arzstream.errors import ArzError, CorruptError
from arzstream.kernels.digests import xxh3_64
from arzstream.limits import DEFAULT_LIMITS, Limits

__all__ = ["Decoder", "describe"]

KEPT_BYTES = 32 << 20
"""Chunks that were used in part are kept, the last so many bytes of them: shared units are read member by member, and
files in steps smaller than a chunk."""


def describe(unit: Unit) -> str:
    """The unit by the names of its tensors, for messages."""
    names = [member.name for member in unit.members if member.name is not None]
    if not names:
        return "file contents"
    return f"tensor {names[0]!r}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


class Decoder:
    """Decodes chunks of an archive. Thread-safe; ``jobs`` threads serve all callers."""

    def __init__(
        self,
        reader: Reader,
        directory: Directory,
        *,
        limits: Limits = DEFAULT_LIMITS,
        jobs: int | None = None,
        home: Callable[[int], tuple[Reader, Prologue, int]] | None = None,
    ) -> None:
        """``home`` says where a unit is stored if not in ``reader``: the file, its prologue, the number there."""
        self.reader, self.directory, self._limits = reader, directory, limits
        self._home = home or (lambda number: (reader, directory.prologue, number))
        self._jobs = jobs or os.cpu_count() or 1
        self._pool: ThreadPoolExecutor | None = None
        self._kept: collections.OrderedDict[tuple[int, int], bytearray] = collections.OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    def chunk_into(self, entry: UnitEntry, chunk: int, out: memoryview) -> None:
        """Decode one chunk of a unit that is no duplicate into ``out``, checking the stored and the decoded bytes."""
        row = self.directory.chunk_table(entry.number)[chunk]
        stored = int(row["stored"])
        reader, prologue, number = self._home(entry.number)
        try:
            data = memoryview(reader.read_at(int(row["offset"]), HEADER_BYTES + stored))
            check_chunk_header(bytes(data[:HEADER_BYTES]), number, chunk, row, prologue, self._limits)
            payload = data[HEADER_BYTES:]
            if xxh3_64(payload) != int(row["stored_xxh3"]):
                raise CorruptError("the stored bytes are damaged (checksum)")
            registry.get(int(row["codec"])).decode(payload, out, context(entry.unit, chunk))
            if xxh3_64(out) != int(row["decoded_xxh3"]):
                raise CorruptError("the bytes decode to something else (checksum)")
        except ArzError as error:
            if str(error).startswith(reader.name):
                raise
            raise type(error)(f"{reader.name}: {describe(entry.unit)}, chunk {chunk}: {error}") from error

    def submit(self, number: int, rows: tuple[int, int], cols: tuple[int, int], out: np.ndarray) -> list[Future[None]]:
        """Start to decode rows × columns of a unit into ``out``; wait for all the futures.

        ``out``: shape (rows, columns × item size), dtype uint8, C-contiguous, writable.
        """
        tasks = list(self._tasks(number, rows, cols, out))
        if len(tasks) == 1 and self._jobs == 1:
            return [_done(tasks[0])]
        pool = self.pool
        return [pool.submit(task) for task in tasks]

    def into(
        self, number: int, rows: tuple[int, int], cols: tuple[int, int], out: np.ndarray, *, here: bool = False
    ) -> None:
        """:meth:`submit` and wait; one chunk, or with ``here`` any number, is decoded by the calling thread."""
        tasks = list(self._tasks(number, rows, cols, out))
        if here or len(tasks) <= 1:
            for task in tasks:
                task()
            return
        futures = [self.pool.submit(task) for task in tasks]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()
            for future in futures:  # nothing may still write into ``out`` when we return
                if not future.cancelled():
                    future.exception()

    def unit_bytes(self, number: int, start: int, end: int, *, here: bool = False) -> bytearray:
        """Bytes [start, end) of the decoded unit; with ``here`` no other thread helps."""
        unit = self.directory.by_number[number].unit
        itemsize, columns = unit.type.itemsize, unit.shape[1]
        if start >= end:
            return bytearray()
        low, high = start // itemsize, -(-end // itemsize)
        out = bytearray((high - low) * itemsize)
        flat, done = np.frombuffer(out, np.uint8), 0
        for rows, cols in _rectangles(low, high, columns):
            height, nbytes = rows[1] - rows[0], (rows[1] - rows[0]) * (cols[1] - cols[0]) * itemsize
            self.into(number, rows, cols, flat[done : done + nbytes].reshape(height, -1), here=here)
            done += nbytes
        skip = start - low * itemsize
        return out if skip == 0 and len(out) == end - start else out[skip : skip + end - start]

    @property
    def pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._jobs, thread_name_prefix="arz-decode")
            return self._pool

    def close(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
            self._kept.clear()
            self._kept_bytes = 0
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)

    def _tasks(
        self, number: int, rows: tuple[int, int], cols: tuple[int, int], out: np.ndarray
    ) -> Iterator[Callable[[], None]]:
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
            if (row1 - row0) * (col1 - col0) == tile.elements and part.flags.c_contiguous:
                yield lambda c=chunk, p=part: self.chunk_into(entry, c, memoryview(p).cast("B"))  # type: ignore[misc]
            else:
                inside = (
                    slice(row0 - tile.row0, row1 - tile.row0),
                    slice((col0 - tile.col0) * itemsize, (col1 - tile.col0) * itemsize),
                )
                yield lambda c=chunk, i=inside, p=part: self._cut(entry, c, i, p)  # type: ignore[misc]

    def _cut(self, entry: UnitEntry, chunk: int, inside: tuple[slice, slice], part: np.ndarray) -> None:
        """Decode a chunk that is wanted in part and copy that part."""
        tile = entry.unit.tile(chunk)
        data = self._whole_chunk(entry, chunk, tile.elements * entry.unit.type.itemsize)
        part[...] = np.frombuffer(data, np.uint8).reshape(tile.row1 - tile.row0, -1)[inside]

    def _whole_chunk(self, entry: UnitEntry, chunk: int, nbytes: int) -> bytearray:
        key = (entry.number, chunk)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        data = bytearray(nbytes)
        self.chunk_into(entry, chunk, memoryview(data))
        with self._lock:
            if key not in self._kept and nbytes <= KEPT_BYTES:
                self._kept[key] = data
                self._kept_bytes += nbytes
                while self._kept_bytes > KEPT_BYTES:
                    self._kept_bytes -= len(self._kept.popitem(last=False)[1])
        return data

    def _reshaped(
        self, number: int, shape: tuple[int, int], rows: tuple[int, int], cols: tuple[int, int], out: np.ndarray
    ) -> None:
        row_bytes = out.shape[1] // (cols[1] - cols[0]) * shape[1]
        # In this thread: it may be one of the pool's, and must not wait for another one of them.
        data = self.unit_bytes(number, rows[0] * row_bytes, rows[1] * row_bytes, here=True)
        itemsize = row_bytes // shape[1]
        out[...] = np.frombuffer(data, np.uint8).reshape(-1, row_bytes)[:, cols[0] * itemsize : cols[1] * itemsize]


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


def _done(task: Callable[[], None]) -> Future[None]:
    future: Future[None] = Future()
    try:
        task()
        future.set_result(None)
    except BaseException as error:  # noqa: BLE001  (handed on by the future)
        future.set_exception(error)
    return future
