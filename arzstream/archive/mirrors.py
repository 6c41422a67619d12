"""Tensors that are others transposed: found by their first row and column, proved by all their elements."""

from __future__ import annotations

import numpy as np

from arzstream.archive.filejob import FileJob
from arzstream.archive.plan import SMALL_BYTES, Planned
from arzstream.archive.references import turned
from arzstream.container.records import Unit
from arzstream.errors import ArzError

__all__ = ["MOST_CHUNKS", "Mirrors", "columns_of"]

MOST_CHUNKS = 16
"""A chunk of one needs all chunks of the other: it is decoded that many times when all of a tensor is read."""
CORNER = 16
"""Elements of the first row and of the first column that tell which tensors may be each other's transposed."""

_Print = tuple[str, tuple[int, int], bytes, bytes]


class Mirrors:
    """The matrices of one archive. For one thread."""

    def __init__(self) -> None:
        self._found: dict[_Print, tuple[Planned, FileJob]] = {}

    def find(self, job: FileJob, planned: Planned) -> tuple[Planned, FileJob] | None:
        """An earlier unit that ``planned`` is, transposed; and remember ``planned``."""
        unit = planned.unit
        if not _suits(planned):
            return None
        try:
            row, column = _corner(job, planned)
            earlier = self._found.get((unit.dtype, (unit.shape[1], unit.shape[0]), column, row))
            self._found[unit.dtype, unit.shape, row, column] = (planned, job)
            if earlier is None or earlier[0].abandoned or not _equal(job, planned, *earlier):
                return None
        except (ArzError, OSError, ValueError):  # what cannot be read here is reported where it must be read
            return None
        return earlier


def _suits(planned: Planned) -> bool:
    unit = planned.unit
    member = unit.members[0] if len(unit.members) == 1 else None
    return (
        member is not None
        and member.strides is None
        and member.elements == unit.elements
        and min(unit.shape) >= CORNER
        and unit.nbytes >= SMALL_BYTES
        and unit.chunk_count <= MOST_CHUNKS
        and planned.contiguous
        and unit.grid[1] >= unit.shape[1]
    )


def _corner(job: FileJob, planned: Planned) -> tuple[bytes, bytes]:
    """The beginnings of the first row and of the first column."""
    item, row = planned.unit.type.itemsize, planned.unit.shape[1] * planned.unit.type.itemsize
    column = b"".join(bytes(planned.read(job.read, i * row, i * row + item)) for i in range(CORNER))
    return bytes(planned.read(job.read, 0, CORNER * item)), column


def _equal(job: FileJob, planned: Planned, other: Planned, other_job: FileJob) -> bool:
    unit = planned.unit
    theirs = np.frombuffer(other.read(other_job.read, 0, unit.nbytes), np.uint8)
    mine = turned(theirs, unit.shape[1], unit.type.itemsize)
    at = 0
    for chunk in range(unit.chunk_count):
        data = np.frombuffer(planned.read_chunk(job.read, chunk), np.uint8)
        if not np.array_equal(data, mine[at : at + len(data)]):
            return False
        at += len(data)
    return True


def columns_of(data: np.ndarray, unit: Unit, chunk: int) -> np.ndarray:
    """What a chunk of ``unit`` is, whose transposed has the bytes ``data``; chunks are whole rows."""
    tile, item = unit.tile(chunk), unit.type.itemsize
    matrix = data.reshape(unit.shape[1], unit.shape[0] * item)
    return turned(np.ascontiguousarray(matrix[:, tile.row0 * item : tile.row1 * item]).reshape(-1), unit.shape[1], item)
