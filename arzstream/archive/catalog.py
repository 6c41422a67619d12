"""Which names an archive answers to, and what each of them is."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

from arzstream.container.directory import Directory, UnitEntry
from arzstream.container.records import FileRecord, Kind, Member, Piece
from arzstream.formats.order import layer_key, layer_of

__all__ = ["Catalog", "TensorPlace"]

WEIGHT_FORMATS = ("safetensors",)


@dataclasses.dataclass(frozen=True)
class TensorPlace:
    """A tensor: the unit that holds it, and which of its members it is."""

    name: str
    entry: UnitEntry
    index: int
    path: str | None
    """The file it came from; None while that file is not complete."""

    @property
    def member(self) -> Member:
        return self.entry.unit.members[self.index]

    @property
    def digest(self) -> bytes | None:
        """BLAKE3 of the tensor's bytes; None in an archive without an index, where it shares a unit."""
        return self.entry.digest(self.index)

    @property
    def dtype(self) -> str:
        return self.entry.unit.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.member.shape

    @property
    def nbytes(self) -> int:
        return self.member.elements * self.entry.unit.type.itemsize


class Catalog:
    """Names of tensors and files.

    A tensor is called by its own name. Where two files hold tensors of one name, the plain name means the one in the
    first
    safetensors file (else in the first file, by path), and the others are called ``path:name``; that form always works.
    """

    def __init__(self, directory: Directory) -> None:
        self.files: dict[str, FileRecord] = {os.fsdecode(record.path): record for _, record in directory.files}
        owners = _owners(directory)
        places = [
            TensorPlace(member.name, entry, index, owners.get(entry.number))
            for entry in directory.units
            for index, member in enumerate(entry.unit.members)
            # In a sealed archive, a unit of no file is only there because another one has the same bytes.
            if member.name is not None and (entry.number in owners or not directory.sealed)
        ]
        self._qualified = {f"{place.path}:{place.name}": place for place in places if place.path is not None}
        self._named: dict[int, bool] = {}
        first: dict[str, TensorPlace] = {}
        for place in places:
            held = first.get(place.name)
            if held is None or self._rank(place) < self._rank(held):
                first[place.name] = place
        self.tensors: dict[str, TensorPlace] = {}
        for place in places:
            name = place.name if first[place.name] is place else f"{place.path}:{place.name}"
            self.tensors[name] = dataclasses.replace(place, name=name)

    def _rank(self, place: TensorPlace) -> tuple[bool, str]:
        record = self.files.get(place.path or "")
        return record is None or record.format not in WEIGHT_FORMATS, place.path or ""

    def find(self, name: str) -> TensorPlace:
        """Raises KeyError, naming a close match if there is one."""
        place = self.tensors.get(name) or self._qualified.get(name)
        if place is None:
            import difflib

            close = difflib.get_close_matches(name, self.tensors, 1)
            raise KeyError(f"no tensor is called {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
        return place

    def layer(self, place: TensorPlace) -> str:
        """The layer of the unit that holds a tensor; but small tensors of later layers may share the unit of one, and
        then their names say which is theirs. (So it is where the unit's is what one of its tensors' names says.)"""
        unit = place.entry.unit
        if len(unit.members) == 1 or place.member.name is None:
            return unit.layer
        own = layer_of(place.member.name)
        if own != unit.layer and place.entry.number not in self._named:
            names = (member.name for member in unit.members if member.name is not None)
            self._named[place.entry.number] = any(layer_of(name) == unit.layer for name in names)
        return own if self._named.get(place.entry.number) else unit.layer

    def layers(self) -> dict[str, list[str]]:
        """Names of tensors by layer, in layer order."""
        found: dict[str, list[str]] = {}
        for name, place in self.tensors.items():
            found.setdefault(self.layer(place), []).append(name)
        if any(self._named.values()):  # a unit that layers share stands with the first of them
            return {layer: found[layer] for layer in sorted(found, key=layer_key)}
        return found

    def regular_files(self) -> Iterator[tuple[str, FileRecord]]:
        return ((path, record) for path, record in self.files.items() if record.kind == Kind.REGULAR)


def _owners(directory: Directory) -> dict[int, str]:
    """The file that each unit's tensors came from."""
    owners: dict[int, str] = {}
    for _, record in directory.files:
        for piece in record.recipe:
            if isinstance(piece, Piece):
                owners.setdefault(piece.unit, os.fsdecode(record.path))
    return owners
