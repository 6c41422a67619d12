"""What coding against parents saves, in bytes: by what the same tensors took in archives that stand alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from arzstream.archive.references import Tensors
from arzstream.container.directory import Directory
from arzstream.container.records import ReferenceKind, Unit
from arzstream.container.state import ArchiveState

__all__ = ["Gain", "gain"]


class Gain(NamedTuple):
    """Stored bytes of what was coded against parents, and about what it would take alone."""

    stored: int
    alone: int

    @property
    def saved(self) -> float:
        """The share that is saved, 0.5 for a half; 1 if nothing is known."""
        return 1 - self.stored / self.alone if self.alone else 1.0


def gain(state: ArchiveState, parents: Sequence[tuple[Directory, Tensors]]) -> Gain:
    """What the units of ``state`` save that refer to parents, of which ``parents`` are those that stand alone."""
    rates = [_rates(directory, tensors) for directory, tensors in parents if not directory.parents]
    stored = alone = 0
    for number, unit in state.units.items():
        if not any(ref.kind in ReferenceKind.OF_PARENTS for ref in unit.refs):
            continue
        rate = next((found for rate in rates for found in [_rate(unit, rate)] if found is not None), None)
        if rate is not None:
            chunks = state.chunks.get(number, {}).values()
            stored += sum(chunk.stored for chunk in chunks)
            alone += round(rate * (unit.nbytes if unit.inherited is not None else sum(c.decoded for c in chunks)))
    return Gain(stored, alone)


def _rates(directory: Directory, tensors: Tensors) -> dict[tuple[str, str], float]:
    """(name, dtype) of each tensor → stored bytes ÷ bytes of the unit that has it."""
    found: dict[tuple[str, str], float] = {}
    for number in range(len(tensors.files)):
        for name, tensor in tensors.file(number).items():
            entry = directory.resolve(tensor.entry.number)
            if entry.unit.nbytes:
                found[name, entry.unit.dtype] = entry.stored / entry.unit.nbytes
    return found


def _rate(unit: Unit, rates: dict[tuple[str, str], float]) -> float | None:
    for member in unit.members:
        if member.name is not None and (member.name, unit.dtype) in rates:
            return rates[member.name, unit.dtype]
    return None
