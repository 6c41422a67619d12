"""Which units of a checkpoint help to code others: half-precision weights and moments, for master weights and moments.

The order is weights, second moments, first moments, master weights: a unit is coded given such as come before it, and
weights given none of these, so that whoever reads weights touches nothing else. A relation is used only where both
tensors have one shape, or the later one is a part of the other, and the earlier one was taken on before the later;
while a checkpoint lands that may not be so, and then the later one is coded without. Whatever is wrong with a relation
costs bytes at most, and no more than there would be without it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from arzstream.archive.filejob import FileJob
from arzstream.archive.mirrors import columns_of
from arzstream.archive.plan import SMALL_BYTES, Planned
from arzstream.codec.parts import split_name
from arzstream.codec.roles import Role
from arzstream.container.records import Member, ReferenceKind, Unit
from arzstream.formats.base import Storage
from arzstream.formats.training import Part, orders, owners, part_of
from arzstream.kernels.digests import xxh3_64

__all__ = ["Related", "Relations", "Stretch", "holds_state", "rank"]

_RANKS = {Role.SQUARE: 1, Role.MOMENT: 2, Role.MASTER: 3}
_HALVES = ("BF16", "F16")


class Related(NamedTuple):
    """An earlier unit, what it is to the later one, where its bytes are, and how it is referred to: from element
    ``start`` on."""

    role: Role
    planned: Planned
    job: FileJob
    kind: int = ReferenceKind.UNIT
    start: int = 0

    def tile(self, unit: Unit, chunk: int) -> tuple[memoryview, dict[tuple[Planned, int], int]]:
        """(its tile where ``chunk`` of the later one is, from its source; XXH3-64 of the chunks that this is from)."""
        if self.kind != ReferenceKind.TRANSPOSED and not _alike(self.planned.unit, unit):
            span = Stretch.of(self.planned.unit, self.start, unit, chunk)
            parts = [self.planned.read_chunk(self.job.read, i) for i in span.chunks]
            known = {(self.planned, i): xxh3_64(data) for i, data in zip(span.chunks, parts, strict=True)}
            return span.cut(b"".join(parts)), known
        if self.kind != ReferenceKind.TRANSPOSED:
            data = memoryview(self.planned.read_chunk(self.job.read, chunk)).toreadonly()
            return data, {(self.planned, chunk): xxh3_64(data)}
        chunks = [self.planned.read_chunk(self.job.read, i) for i in range(self.planned.unit.chunk_count)]
        seen = {(self.planned, i): xxh3_64(data) for i, data in enumerate(chunks)}
        return columns_of(np.frombuffer(b"".join(chunks), np.uint8), unit, chunk).data.toreadonly(), seen


class Stretch(NamedTuple):
    """Where a chunk's tile of an earlier, larger unit lies: in ``chunks`` of that, from byte ``skip`` on."""

    chunks: range
    skip: int
    nbytes: int

    @classmethod
    def of(cls, source: Unit, start: int, unit: Unit, chunk: int) -> Stretch:
        """Of ``chunk`` of ``unit``, whose elements are those of ``source`` from ``start`` on; both in whole rows."""
        tile, item, each = unit.tile(chunk), source.type.itemsize, source.grid[0] * source.shape[1]
        first = start + tile.row0 * unit.shape[1]
        chunks = range(first // each, -(-(first + tile.elements) // each))
        return cls(chunks, (first - chunks.start * each) * item, tile.elements * item)

    def cut(self, data: bytes | bytearray) -> memoryview:
        """The tile, out of the chunks one after the other."""
        return memoryview(data)[self.skip : self.skip + self.nbytes].toreadonly()


def rank(storage: Storage) -> int:
    """When a storage's turn is: weights first."""
    if storage.dtype != "F32" or storage.nbytes < SMALL_BYTES or len(storage.views) != 1:
        return 0
    return _RANKS.get(part_of(storage.views[0].name).role, 0)


def holds_state(storages: Iterable[Storage]) -> int:
    """When the turn of a file with these storages is: those with weights in half precision, with others, with state."""
    found = 0
    for storage in storages:
        found = max(found, 2 if rank(storage) else storage.dtype == "F32")
    return found


@dataclasses.dataclass
class _File:
    """What is known of the tensors of one file: its master weights in order, and its numbered state."""

    masters: Sequence[tuple[str, tuple[int, ...]]] = ()
    numbered: dict[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)


class Relations:
    """The units of one archive that others may be coded against. For one thread."""

    def __init__(self) -> None:
        self._files: dict[bytes, _File] = {}
        self._owners: dict[bytes, Mapping[str, int]] = {}
        self._weights: dict[str, list[Related]] = {}
        self._state: dict[tuple[bytes, Role, str], Related] = {}

    def announce(self, path: bytes, tensors: Iterable[tuple[str, tuple[int, ...]]]) -> None:
        """The tensors of a file, names and shapes in its order, as far as they are known."""
        masters, numbered = [], {}
        for name, shape in tensors:
            part = part_of(name)
            if part.role == Role.MASTER:
                masters.append((part.key, shape))
            elif part.role in (Role.SQUARE, Role.MOMENT) and part.numbered and shape:
                numbered[int(part.key)] = shape
        file = _File(masters, numbered)
        if self._files.get(path) != file:
            self._files[path] = file
            self._owners.pop(path, None)

    def of(self, job: FileJob, unit: Unit) -> tuple[Role, tuple[Related, ...]]:
        """(what a unit is, the earlier ones that may help to code it)."""
        name = _name(unit)
        if name is None or unit.dtype != "F32":
            return Role.OTHER, ()
        part = part_of(name)
        found: list[Related | None] = []
        if part.role == Role.MOMENT:
            found = [self._same(job.path, Role.SQUARE, part.key, unit)]
        elif part.role in (Role.MASTER, Role.OTHER):
            found = [self._half(part.key, unit) or self._half_of_whole(part.key, unit)]
            if part.role == Role.MASTER:
                key = self._key(job.path, part)
                found += [self._same(job.path, role, key, unit) for role in (Role.MOMENT, Role.SQUARE)]
        related = tuple(r for r in found if r is not None and not r.planned.abandoned)
        if part.role == Role.OTHER:
            return (Role.MASTER if related else Role.OTHER), related
        return part.role, related

    def add(self, job: FileJob, planned: Planned) -> None:
        """A unit that was taken on."""
        name = _name(planned.unit)
        if name is None:
            return
        part = part_of(name)
        if part.role == Role.OTHER and planned.unit.dtype in _HALVES:
            last = name.rsplit(".", 2)[-2:]
            self._weights.setdefault(".".join(last), []).append(Related(Role.HALF, planned, job))
        elif part.role in (Role.MOMENT, Role.SQUARE) and planned.unit.dtype == "F32" and not part.second:
            self._state[job.path, part.role, part.key] = Related(part.role, planned, job)

    def forget(self, job: FileJob) -> None:
        """A file is gone, and what was coded of it."""
        self._weights = {key: [r for r in found if r.job is not job] for key, found in self._weights.items()}
        self._state = {key: r for key, r in self._state.items() if r.job is not job}

    def _same(self, path: bytes, role: Role, key: str, unit: Unit) -> Related | None:
        found = self._state.get((path, role, key))
        return found if found is not None and _alike(found.planned.unit, unit) else None

    def _half_of_whole(self, key: str, unit: Unit) -> Related | None:
        """Of a part that is a run of the whole's elements: the whole in half precision, from where the part begins."""
        start, elements = _place_in_whole(unit.members[0])
        name, _ = split_name(key)
        for r in self._weights.get(".".join(name.rsplit(".", 2)[-2:]), ()) if elements else ():
            theirs, whole = _name(r.planned.unit) or "", r.planned.unit
            named = theirs == name or theirs.endswith("." + name) or name.endswith("." + theirs)
            if named and whole.elements == elements and _in_whole_rows(whole) and _in_whole_rows(unit):
                return r._replace(start=start)
        return None

    def _half(self, key: str, unit: Unit) -> Related | None:
        """The weights in half precision called ``key``, perhaps with more before it, or less."""
        ends = self._weights.get(".".join(key.rsplit(".", 2)[-2:]), ())
        likely = [(r, _name(r.planned.unit) or "") for r in ends if _alike(r.planned.unit, unit)]
        for r, name in reversed(likely):
            if name == key:
                return r
        likely = [(r, name) for r, name in likely if name.endswith("." + key) or key.endswith("." + name)]
        return likely[0][0] if len({name for _, name in likely}) == 1 else None

    def _key(self, path: bytes, part: Part) -> str:
        """Whose the state of a master weight is."""
        file = self._files.get(path)
        if file is None or not file.numbered or part.numbered:
            return part.key
        if path not in self._owners:
            self._owners[path] = owners(file.numbered, orders(file.masters))
        number = self._owners[path].get(part.key)
        return part.key if number is None else str(number)


def _name(unit: Unit) -> str | None:
    """The name of the one tensor that a unit is."""
    member = unit.members[0] if len(unit.members) == 1 else None
    if member is None or member.strides is not None or member.elements != unit.elements or not unit.elements:
        return None
    return member.name if unit.nbytes >= SMALL_BYTES // 2 else None


def _place_in_whole(member: Member) -> tuple[int, int]:
    """Of a part that is a run of the whole's elements: the first of them, and how many the whole has; else (0, 0)."""
    part, shape = member.part, member.shape
    if part is None or not shape or shape[1:] != part.shape[1:]:
        return 0, 0
    return part.offset[0] * math.prod(shape[1:]), math.prod(part.shape)


def _in_whole_rows(unit: Unit) -> bool:
    return unit.grid[1] >= unit.shape[1]


def _alike(one: Unit, other: Unit) -> bool:
    """Are chunks of one chunks of the other?"""
    return (one.shape, one.grid) == (other.shape, other.grid)
