"""Which names an archive answers to, and what each of them is."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence

from arzstream.codec.parts import Box, Part, tiles_whole
from arzstream.container.directory import Directory, UnitEntry
from arzstream.container.records import FileRecord, Kind, Member, Piece
from arzstream.formats.order import layer_key, layer_of

__all__ = ["Catalog", "TensorPlace"]

WEIGHT_FORMATS = ("safetensors",)

_Of = tuple[str, str, str, tuple[int, ...]]
"""Whose part a part is: folder, name, dtype and shape of the whole."""


@dataclasses.dataclass(frozen=True)
class TensorPlace:
    """A tensor: the unit that holds it, and which of its members it is; or, of one that lies in parts, its parts."""

    name: str
    entry: UnitEntry
    """Of a tensor in parts, that of its first part."""
    index: int
    path: str | None
    """The file it came from, the first one if its parts came from several; None while that file is not complete."""
    parts: tuple[TensorPlace, ...] = ()
    """In order of their offsets. They cover the tensor exactly."""

    @property
    def member(self) -> Member:
        return self.entry.unit.members[self.index]

    @property
    def digest(self) -> bytes | None:
        """BLAKE3 of the tensor's bytes; None in an archive without an index, where it shares a unit, and of a tensor
        that lies in parts."""
        return None if self.parts else self.entry.digest(self.index)

    @property
    def dtype(self) -> str:
        return self.entry.unit.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.part.shape if self.parts else self.member.shape

    @property
    def part(self) -> Part:
        """Of which tensor this is a block, and where it lies there; of another tensor than a part, itself at 0."""
        part = self.member.part
        return Part(self.member.shape, (0,) * len(self.member.shape)) if part is None else part

    @property
    def strides(self) -> tuple[int, ...] | None:
        """In elements; None for row-major."""
        return None if self.parts else self.member.strides

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.entry.unit.type.itemsize


class Catalog:
    """Names of tensors and files.

    A tensor is called by its own name. Where two files hold tensors of one name, the plain name means the one in the
    first
    safetensors file (else in the first file, by path), and the others are called ``path:name``; that form always works.

    Parts that make up a tensor are listed as that one tensor; each can be found by its own name, too (ARZ-1 section
    5.1.2). Parts of which some are missing, here and in the other volumes of a set, are listed themselves. Those
    without elements are not listed beside the tensor.
    """

    def __init__(self, directory: Directory) -> None:
        self.files: dict[str, FileRecord] = {os.fsdecode(record.path): record for _, record in directory.files}
        owners = _owners(directory)
        self.stored = [
            TensorPlace(member.name, entry, index, owners.get(entry.number))
            for entry in directory.units
            for index, member in enumerate(entry.unit.members)
            # In a sealed archive, a unit of no file is only there because another one has the same bytes.
            if member.name is not None and (entry.number in owners or not directory.sealed)
        ]
        """Every tensor and every part as it is stored, by its own name."""
        places = _assembled(self.stored)
        self._qualified = {f"{p.path}:{p.name}": p for p in (*self.stored, *places) if p.path is not None}
        self._parts = {place.name: place for place in self.stored if place.member.is_empty_part}
        self._parts.update((part.name, part) for place in reversed(places) for part in place.parts)
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
        place = self.tensors.get(name) or self._qualified.get(name) or self._parts.get(name)
        if place is None:
            import difflib

            close = difflib.get_close_matches(name, self.tensors, 1)
            raise KeyError(f"no tensor is called {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
        return place

    def layer(self, place: TensorPlace) -> str:
        """The layer of the unit that holds a tensor; but small tensors of later layers may share the unit of one, and
        then their names say which is theirs. (So it is where the unit's is what one of its tensors' names says.)"""
        unit = place.entry.unit
        if len(unit.members) == 1 or place.member.whole is None:
            return unit.layer
        own = layer_of(place.member.whole)
        if own != unit.layer and place.entry.number not in self._named:
            names = (member.whole for member in unit.members if member.whole is not None)
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


def _assembled(places: Sequence[TensorPlace]) -> list[TensorPlace]:
    """``places``, with each set of parts that make up a tensor replaced, where its first one stands, by that tensor.

    Of a tensor with fewer rows than ranks, the last ranks' parts are empty; and the first one's is the whole, if it has
    one row.
    """
    groups: dict[_Of, dict[Box, list[TensorPlace]]] = {}
    plain: set[_Of] = set()
    for place in places:
        if place.path is not None:
            of = os.path.dirname(place.path), place.member.whole or "", place.dtype, place.part.shape
            if place.member.part is None:
                plain.add(of)
            else:
                box = place.part.offset, place.member.shape
                groups.setdefault(of, {}).setdefault(box, []).append(place)
    wholes: dict[tuple[int, int], TensorPlace | None] = {}
    for of, boxes in groups.items():
        listed = [place for found in boxes.values() for place in found]
        if tiles_whole(of[-1], boxes):
            filled = sorted(box for box in boxes if 0 not in box[1])
            parts = [min(boxes[box], key=lambda place: place.path or "") for box in filled]
            wholes.update((_identity(place), None) for place in listed)
            wholes[_identity(listed[0])] = dataclasses.replace(
                parts[0], name=of[1], path=min(part.path or "" for part in parts), parts=tuple(parts)
            )
        elif of in plain:
            wholes.update((_identity(place), None) for place in listed if place.member.is_empty_part)
    found = (wholes.get(_identity(place), place) for place in places)
    return [place for place in found if place is not None]


def _identity(place: TensorPlace) -> tuple[int, int]:
    return place.entry.number, place.index
