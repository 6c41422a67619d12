"""How many tensors and files fit into one archive: what its INDEX will hold of them, known before they are coded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from arzstream.archive.filejob import FileJob
from arzstream.archive.plan import storage_layer
from arzstream.archive.sharing import plan_units
from arzstream.container import metadata
from arzstream.container.records import Piece, Unit
from arzstream.container.writer import check_metadata
from arzstream.formats.base import Layout, Storage
from arzstream.limits import DEFAULT_LIMITS, Limits

__all__ = ["IndexRoom", "listed"]

TENSOR_BYTES, DIMENSION_BYTES = 300, 16
"""More than a tensor takes in the INDEX beside its name, and each of its dimensions."""
TENSOR_ITEMS = 80
FILE_BYTES, FILE_ITEMS = 512, 48
"""More than a file takes beside its path and metadata."""
STORED = 1 << 24
"""What a unit that is not coded yet is taken to need, in bytes: the digits of the number are listed."""


@dataclasses.dataclass(frozen=True)
class _Need:
    """What files take in the INDEX, in bytes and in arrays, maps and their items."""

    nbytes: int = 0
    items: int = 0

    def __add__(self, other: _Need) -> _Need:
        return _Need(self.nbytes + other.nbytes, self.items + other.items)

    def __sub__(self, other: _Need) -> _Need:
        return _Need(self.nbytes - other.nbytes, self.items - other.items)


@dataclasses.dataclass(frozen=True)
class _Share:
    storages: int
    need: _Need
    counted: bool
    """Was it counted, unit by unit, or is it the most that there can be?"""


class IndexRoom:
    """Whether the files of a checkpoint, as far as they are known, fit into the INDEX of one archive."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._shares: dict[FileJob, _Share] = {}
        self._total = _Need()

    def expect(self, job: FileJob, layout: Layout) -> None:
        """``job`` has this layout, for all that is known now. Raises UnsupportedError when everything together is too
        much: hours before the INDEX is written, perhaps."""
        known = self._shares.get(job)
        if known is not None and known.storages == len(layout.storages):
            return
        self._put(job, _Share(len(layout.storages), _at_most(job, layout), counted=False))
        if self._fits():
            return
        for other, share in list(self._shares.items()):
            if not share.counted and other.layout is not None:
                self._put(other, _Share(share.storages, _counted(other, other.layout), counted=True))
        check_metadata("INDEX", self._total.nbytes, lambda: self._total.items, self._limits)

    def forget(self, job: FileJob) -> None:
        """``job`` will not be in the archive."""
        share = self._shares.pop(job, None)
        if share is not None:
            self._total -= share.need

    def _put(self, job: FileJob, share: _Share) -> None:
        self.forget(job)
        self._shares[job] = share
        self._total += share.need

    def _fits(self) -> bool:
        return self._total.nbytes <= self._limits.metadata_bytes and self._total.items <= self._limits.metadata_items


def _at_most(job: FileJob, layout: Layout) -> _Need:
    """Quickly, and more than it is."""
    views = [view for storage in layout.storages for view in storage.views]
    names = sum(2 * len(view.name.encode("utf-8", "surrogatepass")) for view in views)
    dimensions = sum(len(view.shape) for view in views)
    tensors = len(views) + len(layout.storages)
    file = _file(job, layout)
    return file + _Need(
        TENSOR_BYTES * tensors + DIMENSION_BYTES * dimensions + names, TENSOR_ITEMS * tensors + 4 * dimensions
    )


def _counted(job: FileJob, layout: Layout) -> _Need:
    """As it is, but for references and models, which are decided later."""
    by_layer: dict[str, list[Storage]] = {}
    for storage in layout.storages:
        by_layer.setdefault(storage_layer(storage), []).append(storage)
    nbytes = items = 0
    for unit in _units(by_layer):
        value = listed(unit)
        nbytes, items = nbytes + len(metadata.pack(value)), items + metadata.count_items(value)
    return _file(job, layout) + _Need(nbytes, items)


def _units(by_layer: dict[str, list[Storage]]) -> Iterator[Unit]:
    for _, units in plan_units(by_layer):
        yield from (planned.unit for planned, _ in units)


def listed(unit: Unit) -> list[object]:
    """About what the INDEX will hold of ``unit``, and the recipe of its file."""
    piece = Piece(1 << 16, 0, unit.nbytes)
    entry = [piece.unit, unit.to_map(), [bytes(32)] * len(unit.members), 1 << 8, 1 << 8, unit.chunk_count, STORED]
    return [entry, [piece.unit, piece.offset, piece.length]]


def _file(job: FileJob, layout: Layout) -> _Need:
    told = sum(len(key.encode()) + len(value.encode()) for key, value in layout.metadata.items())
    return _Need(FILE_BYTES + len(job.path) + told, FILE_ITEMS + len(layout.metadata))
