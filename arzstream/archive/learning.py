"""The models that units of an archive are coded with: learned before they are, and written in front of them."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from arzstream.archive.filejob import FileJob
from arzstream.archive.plan import Planned
from arzstream.archive.references import context
from arzstream.codec.base import ChunkContext
from arzstream.codec.best import DELTA_CTX, encode_best
from arzstream.codec.delta_shared import LEAST, MOST, learn_shared
from arzstream.container.records import Reference, ReferenceKind, Unit
from arzstream.container.writer import FrameWriter
from arzstream.errors import ArzError

__all__ = ["Learned", "Models"]

Tile = Callable[[Unit, int, Reference], memoryview]
Taken = tuple[FileJob, Planned]
AGAIN = 8
"""A model is learned anew when there are so many times as many elements as it was learned from: the first layers of a
checkpoint that is landing are few, and not like the others."""
KIND_FROM = 1 << 19
"""Elements from which a kind of tensor has a model of its own; the others share one."""
_NUMBER = re.compile(r"\d+")
TRIED = 4
"""Chunks that are coded to see if a model is of use."""
SHARED = b"\1"
"""The second byte of a chunk of codec 8 that has the first of its unit's models."""


class _Key(NamedTuple):
    dtype: str
    parents: int
    kind: str


@dataclasses.dataclass(eq=False)
class Learned:
    """A model for units of one dtype, learned from a share of ``elements``; ``number`` is known once it is written."""

    data: bytes
    elements: int
    number: int = -1


class Models:
    """The models of an archive that is written: one each for a dtype, number of references and kind, at a time."""

    def __init__(self, profile: str) -> None:
        self._profile = profile
        self._newest: dict[_Key, Learned] = {}
        self._of: dict[Planned, Learned] = {}

    def learn(self, taken: Sequence[Taken], tile: Tile) -> None:
        """Choose models for units that refer to parents, of which ``tile`` gives a chunk's tile, before they are coded;
        learn those that are missing."""
        groups: dict[_Key, list[Taken]] = {}
        for job, planned in taken:
            parents = len(_parents(planned.unit))
            if parents and planned.unit.type.itemsize // planned.unit.type.components <= 4:
                key = _Key(planned.unit.dtype, parents, _kind(planned.unit))
                groups.setdefault(key, []).append((job, planned))
        for key in [key for key, group in groups.items() if _elements(group) < KIND_FROM and key not in self._newest]:
            groups.setdefault(key._replace(kind=""), []).extend(groups.pop(key))
        for key, group in groups.items():
            elements = _elements(group)
            newest = self._newest.get(key)
            few = newest is not None and newest.elements < MOST and elements >= AGAIN * newest.elements
            if elements >= LEAST and (newest is None or few):
                some = list(_some(group, tile))
                data = learn_shared(some, key.parents)
                if data is not None and self._serves(data, some):
                    self._newest[key] = newest = Learned(data, elements)
            if newest is not None:
                self._of.update((planned, newest) for _, planned in group)

    def _serves(self, data: bytes, some: Sequence[tuple[memoryview, ChunkContext]]) -> bool:
        """Is any of some of the chunks coded with it? Parents may have nothing in common with what refers to them."""
        for chunk, ctx in some[:: max(1, len(some) // TRIED)]:
            codec, payload = encode_best(chunk, dataclasses.replace(ctx, models=(data,)), self._profile)
            if codec == DELTA_CTX and bytes(payload[1:2]) == SHARED:
                return True
        return False

    def data(self, planned: Planned) -> tuple[bytes, ...]:
        """What a unit's chunks may be coded with."""
        learned = self._of.get(planned)
        return (learned.data,) if learned is not None else ()

    def write(self, writer: FrameWriter, planned: Planned) -> tuple[int, ...]:
        """The number of the unit's model, which is written if it is not."""
        learned = self._of.get(planned)
        if learned is None:
            return ()
        if learned.number < 0:
            learned.number = writer.add_model(learned.data)
        return (learned.number,)


def _kind(unit: Unit) -> str:
    """What tensors of different layers have in common: the name without numbers. Matrices of one kind change alike,
    embeddings unlike projections."""
    return _NUMBER.sub("*", next((member.name for member in unit.members if member.name is not None), ""))


def _elements(group: Sequence[Taken]) -> int:
    return sum(planned.unit.elements for _, planned in group)


def _parents(unit: Unit) -> list[Reference]:
    return [ref for ref in unit.refs if ref.kind == ReferenceKind.PARENT]


def _some(group: Sequence[Taken], tile: Tile) -> Iterator[tuple[memoryview, ChunkContext]]:
    """Chunks to learn from, evenly spaced among all, with their contexts; what cannot be read now is left out."""
    chunks = [(job, planned, chunk) for job, planned in group for chunk in range(planned.unit.chunk_count)]
    step = max(1, -(-_elements(group) // MOST))
    for job, planned, chunk in chunks[step // 2 :: step]:
        with contextlib.suppress(ArzError, OSError, ValueError):
            data = memoryview(planned.read_chunk(job.read, chunk))
            tiles = [tile(planned.unit, chunk, ref) for ref in _parents(planned.unit)]
            yield data, context(planned.unit, chunk, tiles)
