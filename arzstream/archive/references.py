"""The tiles that chunks are coded against: of other units in the archive, and of its parents; ARZ-1 sections 5.1, 6."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, overload

import numpy as np

from arzstream.codec.base import ChunkContext
from arzstream.container.directory import Directory, UnitEntry
from arzstream.container.records import Member, Piece, Reference, Unit
from arzstream.errors import CorruptError, LimitError

__all__ = [
    "Match",
    "NotInheritedError",
    "ParentTensors",
    "References",
    "Span",
    "TensorAt",
    "Tensors",
    "TileCache",
    "TooDeepError",
    "context",
    "covers",
    "fill",
    "matches",
    "rectangle_into",
    "turned",
]

Span = tuple[int, int]
Key = tuple[object, ...]
KEPT_BYTES, KEPT_BYTES_PER_THREAD = 256 << 20, 64 << 20
"""Reference tiles are kept up to the first, and where many threads decode, up to the second for each of them. A child's
second reference is its parent's first, and master weights need weights and moments, theirs and their parents': what is
kept makes a chain of archives cost one decoding of each link. One chunk needs about eight tiles at a time, however long
the chain is; its neighbours in the checkpoint need many of the same."""
MOST_TILES = 4096
"""Reference tiles that one chunk may need in all."""


class TooDeepError(LimitError):
    """A chain of references is too long; ``reason`` says so without the names of all that it leads through."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


def context(
    unit: Unit, chunk: int, references: Sequence[memoryview] = (), models: Sequence[bytes] = ()
) -> ChunkContext:
    """What a codec may know of a chunk."""
    tile = unit.tile(chunk)
    return ChunkContext(unit.type, tile.row1 - tile.row0, tile.col1 - tile.col0, references, models)


class NotInheritedError(CorruptError):
    """A unit's bytes are not its parent's, whatever it says."""


class TensorDecoder(Protocol):
    """What is needed of a :class:`arzstream.archive.decoding.Decoder`."""

    directory: Directory

    def unit_into(self, number: int, start: int, end: int, out: np.ndarray) -> list[Callable[[], None]]: ...

    def tasks(self, number: int, rows: Span, cols: Span, out: np.ndarray) -> Iterator[Callable[[], None]]: ...

    def same_chunk(self, number: int, unit: Unit, chunk: int) -> memoryview | None: ...


class Holder(Protocol):
    """An open parent."""

    @property
    def tensors(self) -> Tensors: ...

    @property
    def decoder(self) -> TensorDecoder: ...

    @property
    def content(self) -> bytes: ...

    @property
    def name(self) -> str: ...


class References(Sequence[memoryview]):
    """Tiles that are decoded when a codec looks at them: most chunks of a parent's child need none, or only one."""

    def __init__(self, count: int, tile: Callable[[int], memoryview]) -> None:
        self._tiles: list[memoryview | None] = [None] * count
        self._tile = tile

    def __len__(self) -> int:
        return len(self._tiles)

    @overload
    def __getitem__(self, index: int) -> memoryview: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[memoryview]: ...

    def __getitem__(self, index: int | slice) -> memoryview | Sequence[memoryview]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        place = range(len(self._tiles))[index]
        tile = self._tiles[place]
        if tile is None:
            tile = self._tiles[place] = self._tile(place)
        return tile


class _Making:
    """A tile that a thread is making, for all that ask for it meanwhile."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.done = threading.Event()
        self.tile: np.ndarray | None = None


class _Within(threading.local):
    """How deep in references to references a thread is, and how many it has followed for one chunk."""

    depth = count = 0


class TileCache:
    """The reference tiles that were used last, of an archive and all that it is coded against. Thread-safe.

    What one thread is making, others wait for instead of making it again; but never in a circle, which two archives
    that claim to be each other's parents would make of them.
    """

    def __init__(self, depth: int, kept_bytes: int = KEPT_BYTES, per_thread: int = KEPT_BYTES_PER_THREAD) -> None:
        self._most, self._kept_bytes, self._per_thread = depth, kept_bytes, per_thread
        self._within = _Within()
        self._lock = threading.Lock()
        self._bytes = 0
        self._kept: collections.OrderedDict[Key, np.ndarray] = collections.OrderedDict()
        self._making: dict[Key, _Making] = {}
        self._waiting: dict[int, Key] = {}
        """What a thread is waiting for."""
        self._users: weakref.WeakSet[threading.Thread] = weakref.WeakSet()

    def get(self, key: Key, nbytes: int, make: Callable[[np.ndarray], None], *, step: bool = True) -> memoryview:
        """The tile ``key`` of ``nbytes`` bytes; ``make`` fills it, in this thread. ``step`` says that this follows a
        reference. Raises LimitError before it takes for ever."""
        while True:
            with self._lock:
                tile = self._kept.get(key)
                if tile is not None:
                    self._kept.move_to_end(key)
                    return tile.data.toreadonly()
                other = self._making.get(key)
                circle = other is not None and self._leads_here(key)
                if other is None:
                    self._making[key] = mine = _Making()
                elif not circle:
                    self._waiting[threading.get_ident()] = key
            if other is None:
                return self._made(key, mine, nbytes, make, step).data.toreadonly()
            if circle:
                return self._filled(nbytes, make, step).data.toreadonly()
            other.done.wait()
            with self._lock:
                del self._waiting[threading.get_ident()]
            if other.tile is not None:
                return other.tile.data.toreadonly()  # else it failed there: see how it fails here

    def kept(self, key: Key) -> memoryview | None:
        """The tile ``key``, if it is kept."""
        with self._lock:
            tile = self._kept.get(key)
        return None if tile is None else tile.data.toreadonly()

    def _leads_here(self, key: Key) -> bool:
        """Is whoever makes ``key`` waiting, by way of others perhaps, for what this thread is making?"""
        making = self._making.get(key)
        while making is not None:
            if making.thread == threading.get_ident():
                return True
            making = self._making.get(self._waiting[making.thread]) if making.thread in self._waiting else None
        return False

    def _made(
        self, key: Key, making: _Making, nbytes: int, make: Callable[[np.ndarray], None], step: bool
    ) -> np.ndarray:
        try:
            tile = making.tile = self._filled(nbytes, make, step)
            with self._lock:
                self._kept[key] = tile
                self._bytes += nbytes
                self._users.add(threading.current_thread())
                most = max(self._kept_bytes, self._per_thread * len(self._users))
                while len(self._kept) > 2 and self._bytes > most:
                    self._bytes -= len(self._kept.popitem(last=False)[1])
            return tile
        finally:
            with self._lock:
                del self._making[key]
            making.done.set()

    def _filled(self, nbytes: int, make: Callable[[np.ndarray], None], step: bool) -> np.ndarray:
        tile = np.empty(nbytes, np.uint8)
        with self.deeper() if step else contextlib.nullcontext():
            make(tile)
        return tile

    @contextlib.contextmanager
    def deeper(self) -> Iterator[None]:
        """One step from a chunk to what it refers to."""
        within = self._within
        if within.depth >= self._most:
            raise TooDeepError(f"references lead through more than {self._most} others")
        within.count = 1 if within.depth == 0 else within.count + 1
        if within.count > MOST_TILES:
            raise LimitError(f"one chunk refers to more than {MOST_TILES} tiles in all")
        within.depth += 1
        try:
            yield
        finally:
            within.depth -= 1

    def forget(self, archive: object) -> None:
        """Let go of what was decoded of an archive: of what has it first in its key."""
        with self._lock:
            for key in [key for key in self._kept if key[0] is archive]:
                self._bytes -= len(self._kept.pop(key))

    def clear(self) -> None:
        """Let go of what is kept."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0


@dataclasses.dataclass(frozen=True)
class TensorAt:
    """A tensor of a file: the unit that holds it, which member it is there, and its BLAKE3."""

    entry: UnitEntry
    member: Member
    digest: bytes


class Tensors:
    """The tensors of an archive by file, files counted by path, and by name. Names that a file has twice are none."""

    def __init__(self, directory: Directory) -> None:
        self.files = [record for _, record in sorted(directory.files, key=lambda item: item[1].path)]
        self._directory = directory
        self._found: dict[int, dict[str, TensorAt]] = {}

    def file(self, number: int) -> Mapping[str, TensorAt]:
        """The tensors of a file; none if there is no such file."""
        found = self._found.get(number)
        if found is None:
            found = self._found[number] = self._of(number) if number < len(self.files) else {}
        return found

    def _of(self, number: int) -> dict[str, TensorAt]:
        units = dict.fromkeys(piece.unit for piece in self.files[number].recipe if isinstance(piece, Piece))
        counted: collections.Counter[str] = collections.Counter()
        found: dict[str, TensorAt] = {}
        for entry in (self._directory.by_number[unit] for unit in units):
            for member, digest in zip(entry.unit.members, entry.digests, strict=True):
                if member.name is not None:
                    counted[member.name] += 1
                    found[member.name] = TensorAt(entry, member, digest)
        return {name: tensor for name, tensor in found.items() if counted[name] == 1}


@dataclasses.dataclass(frozen=True)
class Match:
    """``count`` elements of a unit from ``start`` on have a counterpart: elements from ``at`` on of ``entry``."""

    start: int
    entry: UnitEntry
    at: int
    count: int
    same: bool
    """Are the bytes of this member those of its counterpart, by their BLAKE3? Known for units that are coded."""


def matches(unit: Unit, tensors: Mapping[str, TensorAt], digests: Sequence[bytes] = ()) -> list[Match]:
    """The members of ``unit`` that ``tensors`` have, in dtype and shape, or in all dimensions but the first."""
    found = []
    for index, member in enumerate(unit.members):
        tensor = tensors.get(member.name) if member.name is not None else None
        if tensor is None or tensor.entry.unit.dtype != unit.dtype or tensor.member.strides != member.strides:
            continue
        theirs = tensor.member
        if member.shape != theirs.shape:
            rows = len(member.shape) == len(theirs.shape) > 0 and member.shape[1:] == theirs.shape[1:]
            if member.strides is not None or not rows:
                continue
        count = min(member.end - member.start, theirs.end - theirs.start)
        if count > 0:
            same = member.shape == theirs.shape and bool(digests) and digests[index] == tensor.digest
            found.append(Match(member.start, tensor.entry, theirs.start, count, same))
    return found


def covers(unit: Unit, found: Sequence[Match]) -> bool:
    """Has every element of ``unit`` a counterpart with the same bytes?"""
    reached = 0
    for match in sorted((match for match in found if match.same), key=lambda match: match.start):
        if match.start > reached:
            break
        reached = max(reached, match.start + match.count)
    return reached >= unit.elements


class ParentTensors:
    """What the parents of one archive have for its units. ``find`` opens a parent by number."""

    def __init__(self, find: Callable[[int], Holder], tiles: TileCache) -> None:
        self._find, self.tiles = find, tiles

    def holder(self, ref: Reference) -> Holder:
        """The parent that ``ref`` leads to, opened."""
        return self._find(ref.source)

    def tile(self, unit: Unit, chunk: int, ref: Reference) -> memoryview:
        """The bytes that a parent has where ``chunk`` of ``unit`` is; 0 where it has nothing."""
        holder, where = self._find(ref.source), unit.tile(chunk)
        rows, cols = (where.row0, where.row1), (where.col0, where.col1)
        found = matches(unit, holder.tensors.file(ref.start))
        if len(found) == 1 and (found[0].start, found[0].at, found[0].count) == (0, 0, unit.elements):
            whole = holder.decoder.same_chunk(found[0].entry.number, unit, chunk)
            if whole is not None:
                return whole

        def make(tile: np.ndarray) -> None:
            tile[...] = 0
            fill(holder.decoder, unit, found, rows, cols, tile)

        key = (holder.content, ref.start, unit.dtype, unit.shape, unit.members, rows, cols)
        return self.tiles.get(key, where.elements * unit.type.itemsize, make)

    def inherit(self, entry: UnitEntry, rows: Span, cols: Span, out: np.ndarray) -> None:
        """Decode rows × columns of a unit whose bytes are a parent's into ``out``: uint8, one-dimensional."""
        ref = entry.unit.inherited
        assert ref is not None
        holder = self._find(ref.source)
        found = matches(entry.unit, holder.tensors.file(ref.start), entry.digests)
        if not covers(entry.unit, found):
            raise NotInheritedError(f"{holder.name} does not hold the bytes that it should have (BLAKE3)")
        with self.tiles.deeper():
            fill(holder.decoder, entry.unit, [match for match in found if match.same], rows, cols, out)


def fill(decoder: TensorDecoder, unit: Unit, found: Sequence[Match], rows: Span, cols: Span, out: np.ndarray) -> None:
    """The counterparts of rows × columns of ``unit``, into ``out``: uint8, one-dimensional."""
    columns, itemsize = unit.shape[1], unit.type.itemsize
    width = cols[1] - cols[0]
    for match in found:
        if match.start == 0 and match.count % columns == 0:
            last = min(rows[1], match.count // columns)
            part = out[: max(0, last - rows[0]) * width * itemsize]
            rectangle_into(decoder, match.entry.number, match.at, columns, (rows[0], last), cols, part)
            continue
        together = rows[1] - rows[0] if width == columns else 1
        for row in range(rows[0], rows[1], together):
            first = row * columns + cols[0]
            low = max(first, match.start)
            high = min(first + (together - 1) * columns + width, match.start + match.count)
            if low < high:
                at = (row - rows[0]) * width + low - first
                part, start = out[at * itemsize : (at + high - low) * itemsize], match.at + low - match.start
                _run(decoder.unit_into(match.entry.number, start * itemsize, (start + high - low) * itemsize, part))


def turned(data: np.ndarray, rows: int, itemsize: int) -> np.ndarray:
    """A matrix of ``rows`` rows (bytes, uint8) transposed: bytes, row by row."""
    matrix = data.view(f"<u{itemsize}" if itemsize <= 8 else f"V{itemsize}").reshape(rows, -1)
    return np.ascontiguousarray(matrix.T).reshape(-1).view(np.uint8)


def rectangle_into(
    decoder: TensorDecoder, number: int, at: int, columns: int, rows: Span, cols: Span, out: np.ndarray
) -> None:
    """Elements of unit ``number`` from ``at`` on, seen as rows of ``columns``: rows × columns of that into ``out``."""
    if rows[0] >= rows[1] or cols[0] >= cols[1]:
        return
    unit = decoder.directory.by_number[number].unit
    itemsize, height, width = unit.type.itemsize, rows[1] - rows[0], cols[1] - cols[0]
    if width < columns and height > 1 and at == 0 and unit.shape[1] == columns:
        _run(decoder.tasks(number, rows, cols, out.reshape(height, -1)))
        return
    together = height if width == columns else 1
    for row in range(rows[0], rows[1], together):
        start, count = at + row * columns + cols[0], together * width
        part = out[(row - rows[0]) * width * itemsize :][: count * itemsize]
        _run(decoder.unit_into(number, start * itemsize, (start + count) * itemsize, part))


def _run(tasks: Sequence[Callable[[], None]] | Iterator[Callable[[], None]]) -> None:
    """In this thread: it may be one that another decoder's caller waits for."""
    for task in tasks:
        task()
