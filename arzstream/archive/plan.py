"""From what a file holds to units: which storages share one, what matrix a unit is, how it is cut into chunks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from arzstream.codec.dtypes import dtype
from arzstream.container.records import Member, Tile, Unit
from arzstream.formats.base import Storage, View, contiguous_strides
from arzstream.formats.order import layer_of

__all__ = [
    "Buffer",
    "Extent",
    "Planned",
    "ReadAt",
    "choose_grid",
    "literal_unit",
    "shared_unit",
    "storage_layer",
    "storage_unit",
    "units_of",
]

Buffer = bytes | memoryview
ReadAt = Callable[[int, int], Buffer]
CHUNK_ELEMENTS = 1 << 20
CHUNK_BYTES = 16 << 20
SMALL_BYTES = 64 << 10
"""Storages below this share units, so that a norm of some kilobytes does not cost a frame of its own."""
SHARED_BYTES = 1 << 20
"""How large a shared unit may become; it has one chunk."""
NARROWEST_BLOCK = 128
"""Columns below which a column block is not worth its frame, in elements."""


@dataclasses.dataclass(frozen=True)
class Extent:
    """``nbytes`` bytes of a unit from ``start`` on lie at ``offset`` of the source file."""

    start: int
    offset: int
    nbytes: int


@dataclasses.dataclass(eq=False)
class Planned:
    """A unit and where its bytes are; ``number`` and ``digests`` are known once it is coded."""

    unit: Unit
    extents: tuple[Extent, ...]
    number: int = -1
    digests: tuple[bytes, ...] = ()
    chunk_xxh3: dict[int, int] = dataclasses.field(default_factory=dict)
    relied_on: int = 0
    """How many units duplicate this one, or may be coded against it."""
    abandoned: bool = False
    """Something failed while it was coded, in part or again: it does not count, its bytes are coded anew."""

    @property
    def contiguous(self) -> bool:
        """Do the chunks follow each other in the unit's bytes?"""
        return self.unit.grid[1] >= self.unit.shape[1] or self.unit.grid[0] == 1

    def chunk_range(self, chunk: int) -> tuple[int, int]:
        """Bytes [start, end) of a chunk in the unit; only where chunks are contiguous."""
        tile, itemsize = self.unit.tile(chunk), self.unit.type.itemsize
        start = (tile.row0 * self.unit.shape[1] + tile.col0) * itemsize
        return start, start + tile.elements * itemsize

    def read(self, read_at: ReadAt, start: int, end: int) -> Buffer:
        """Bytes [start, end) of the unit, from the source."""
        parts: list[Buffer] = []
        for extent in self.extents:
            low, high = max(start, extent.start), min(end, extent.start + extent.nbytes)
            if low < high:
                parts.append(read_at(extent.offset + low - extent.start, high - low))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_chunk(self, read_at: ReadAt, chunk: int) -> Buffer:
        """The decoded bytes of a chunk, from the source."""
        if self.contiguous:
            return self.read(read_at, *self.chunk_range(chunk))
        tile, itemsize, columns = self.unit.tile(chunk), self.unit.type.itemsize, self.unit.shape[1]
        rows = self.read(read_at, tile.row0 * columns * itemsize, tile.row1 * columns * itemsize)
        return cut_columns(rows, tile, columns * itemsize, itemsize)


def cut_columns(rows: Buffer, tile: Tile, row_bytes: int, itemsize: int) -> bytes:
    """The columns of ``tile`` from whole rows of ``row_bytes`` bytes each."""
    matrix = np.frombuffer(rows, np.uint8).reshape(-1, row_bytes)
    return matrix[:, tile.col0 * itemsize : tile.col1 * itemsize].tobytes()


def choose_grid(shape: tuple[int, int], itemsize: int, parallel: int = 1) -> tuple[int, int]:
    """Rows and columns of a chunk: about 2^20 elements in whole rows, rows split evenly.

    With ``parallel`` N, which divides both, chunks are as wide as the columns of one of N ranks, if these are not few,
    and its rows are whole chunks where a number of rows that is at least half of what a chunk may have divides them.
    All chunks but the last ones of a unit have the same rows, so that else a rank shares a chunk with its neighbour.
    """
    rows, columns = shape
    if parallel > 1 and columns % parallel == 0 and columns // parallel >= NARROWEST_BLOCK:
        columns //= parallel
    most = min(CHUNK_ELEMENTS, CHUNK_BYTES // itemsize)
    if columns > most:
        return 1, most
    shared = parallel > 1 and rows % parallel == 0
    if shared:
        rows //= parallel
    high = max(1, min(rows, most // max(1, columns)))
    pieces = max(1, -(-rows // high))
    if shared:
        pieces = next((n for n in range(pieces, 2 * pieces + 1) if rows % n == 0), pieces)
    return max(1, -(-rows // pieces)), max(1, columns)


def storage_unit(storage: Storage, layer: str, parallel: int = 1) -> Planned:
    """A unit for one storage: as a matrix if one tensor covers it, transposed if it lies so, else as a column."""
    itemsize = dtype(storage.dtype).itemsize
    elements = storage.nbytes // itemsize
    shape = (elements, 1)
    views = storage.views
    if len(views) == 1 and views[0].start == 0 and math.prod(views[0].shape) == elements:
        first = _rows(views[0])
        if first is not None:
            shape = (first, elements // first) if first else (0, 1)
    members = tuple(Member(v.name, v.shape, v.start, v.strides, v.part) for v in views) or (Member(None, (elements,)),)
    unit = Unit(
        dtype=storage.dtype,
        shape=shape,
        grid=choose_grid(shape, itemsize, parallel),
        members=members,
        layer=layer,
    )
    return Planned(unit, (Extent(0, storage.offset, storage.nbytes),))


def _rows(view: View) -> int | None:
    """Of the matrix that a view's elements are as they lie, one after the other: its first dimension, or its last
    where it is in Fortran order. None if they lie otherwise."""
    if view.strides is None:
        return view.shape[0] if view.shape else 1
    return view.shape[-1] if view.strides[::-1] == contiguous_strides(view.shape[::-1]) else None


def shared_unit(storages: Sequence[Storage], layer: str) -> Planned:
    """A unit for several small storages of one dtype, side by side, in one chunk."""
    itemsize = dtype(storages[0].dtype).itemsize
    members: list[Member] = []
    extents: list[Extent] = []
    start = 0
    for storage in storages:
        at = start // itemsize
        if not storage.views:
            members.append(Member(None, (storage.nbytes // itemsize,), at))
        members += [Member(v.name, v.shape, at + v.start, v.strides, v.part) for v in storage.views]
        if storage.nbytes:
            extents.append(Extent(start, storage.offset, storage.nbytes))
        start += storage.nbytes
    elements = start // itemsize
    unit = Unit(
        dtype=storages[0].dtype,
        shape=(1, elements),
        grid=(1, max(1, elements)),
        members=tuple(members),
        layer=layer,
    )
    return Planned(unit, tuple(extents))


def literal_unit(extents: Sequence[tuple[int, int]]) -> Planned:
    """A unit for the literal bytes of a file, (offset, length) each, one after the other."""
    placed, start = [], 0
    for offset, nbytes in extents:
        placed.append(Extent(start, offset, nbytes))
        start += nbytes
    unit = Unit(dtype="U8", shape=(start, 1), grid=choose_grid((start, 1), 1), members=(Member(None, (start,)),))
    return Planned(unit, tuple(placed))


def units_of(storages: Sequence[Storage], layer: str, parallel: int = 1) -> Iterator[tuple[Planned, Sequence[Storage]]]:
    """The units for storages of one layer, each with the storages it holds, one after the other."""
    small: dict[str, list[Storage]] = {}
    for storage in storages:
        if storage.nbytes >= SMALL_BYTES:
            yield storage_unit(storage, layer, parallel), [storage]
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


def storage_layer(storage: Storage) -> str:
    """The layer of a storage; optimiser state that is small goes together, whatever parameter it belongs to."""
    layer = layer_of(storage.views[0].whole) if storage.views else ""
    if storage.nbytes < SMALL_BYTES and ".state." in f".{layer}":
        return layer.split(".state.")[0] + ".state"
    return layer
