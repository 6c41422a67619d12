"""Sets: one small archive that names others, its volumes, and is read as one; ARZ-1 section 5.8.

A sharded or distributed job writes ordinary archives, each on its own, and at the end the set. The volumes' units and
files are numbered on from each other here, so that everything above sees one directory.
"""

from __future__ import annotations

import bisect
import dataclasses
import os
import posixpath
from collections.abc import Sequence
from typing import Any

import numpy as np

from arzstream.archive.again import directory_of
from arzstream.container.directory import Directory, UnitEntry
from arzstream.container.layout import Prologue
from arzstream.container.records import FileRecord, Parent, Piece, ReferenceKind, Unit, Volume
from arzstream.container.state import ModelEntry, check_paths
from arzstream.errors import CorruptError, StorageError
from arzstream.limits import Limits
from arzstream.store.ranges import RangeReader, is_url, open_reader

__all__ = ["Home", "Joined", "join_volumes", "volume_place"]

Part = tuple[RangeReader, Directory, int]
"""A file of the set, its directory, and the number that its first unit has in the joined one."""
Home = tuple[RangeReader, Prologue, int]
"""Where a unit is stored: the file, its prologue, and the unit's number there."""


def volume_place(place: str, name: bytes) -> str:
    """Path or URL of a volume of the set at ``place``."""
    if is_url(place):
        return posixpath.join(place.rpartition("/")[0], os.fsdecode(name))
    return os.path.join(os.path.dirname(place), *os.fsdecode(name).split("/"))


@dataclasses.dataclass(frozen=True)
class Joined:
    """A set and its volumes as one directory. ``parts``: the set's own file first, each with its first unit number."""

    directory: Directory
    parts: tuple[Part, ...]

    def home(self, number: int) -> Home:
        """Where unit ``number`` of the joined directory is stored."""
        reader, directory, first = _part_of(self.parts, number)
        return reader, directory.prologue, number - first

    def close(self) -> None:
        """Close the volumes; the set's own file is its opener's."""
        for reader, _, _ in self.parts[1:]:
            reader.close()


def join_volumes(
    place: str,
    reader: RangeReader,
    directory: Directory,
    limits: Limits,
    storage_options: dict[str, Any] | None = None,
    *,
    keep: bool = True,
) -> Joined:
    """Open the volumes of a set beside it; ``keep`` as for :func:`open_reader`.

    Raises StorageError if one is missing, CorruptError if it is another one.
    """
    parts: list[Part] = [(reader, directory, 0)]
    first = _after(directory)
    try:
        for volume in directory.volumes:
            opened = _open_volume(volume_place(place, volume.name), storage_options, reader.name, keep)
            parts.append((opened, directory, first))  # closed with the others, whatever comes
            child = _checked(opened, volume, limits)
            parts[-1] = (opened, child, first)
            first += _after(child)
        return Joined(_joined(directory, parts), tuple(parts))
    except BaseException:
        for opened, _, _ in parts[1:]:
            opened.close()
        raise


def _after(directory: Directory) -> int:
    return max(directory.by_number, default=-1) + 1


def _open_volume(place: str, storage_options: dict[str, Any] | None, name: str, keep: bool) -> RangeReader:
    try:
        return open_reader(place, storage_options, keep=keep)
    except StorageError as error:
        raise StorageError(f"{error}; it is a volume of {name}, bring it back beside it", errno=error.errno) from error


def _checked(reader: RangeReader, volume: Volume, limits: Limits) -> Directory:
    directory = directory_of(reader, limits)
    if not directory.sealed or directory.root != volume.root or directory.content != volume.content:
        raise CorruptError(f"{reader.name}: is not the volume that the set was made of; bring that one back")
    if directory.volumes:
        raise CorruptError(f"{reader.name}: is a set itself, and cannot be a volume of another")
    return directory


def _joined(directory: Directory, parts: Sequence[Part]) -> Directory:
    units: list[UnitEntry] = []
    files: list[tuple[int, FileRecord]] = []
    parents: list[Parent] = []
    models: list[ModelEntry] = []
    for _, part, first in parts:
        shift = (first, len(parents), len(models))
        units += [dataclasses.replace(e, number=first + e.number, unit=_shifted(e.unit, *shift)) for e in part.units]
        parents += part.parents
        models += part.models
        files += [(len(files) + n, _shifted_file(record, first)) for n, (_, record) in enumerate(part.files)]
    check_paths((record.path, record.kind) for _, record in files)

    def load_table(entry: UnitEntry) -> np.ndarray:
        _, part, first = _part_of(parts, entry.number)
        return part.chunk_table(entry.number - first)

    return Directory(
        name=directory.name, prologue=directory.prologue, sealed=directory.sealed, units=units,
        files=sorted(files, key=lambda item: item[1].path),
        load_table=load_table,
        models=models, parents=parents, volumes=directory.volumes, content=directory.content,
        dead=directory.dead, valid_end=directory.valid_end, root=directory.root,
    )  # fmt: skip


def _part_of(parts: Sequence[Part], number: int) -> Part:
    """The part that unit ``number`` is in: the last one that begins before it."""
    return parts[bisect.bisect_right([first for _, _, first in parts], number) - 1]


def _shifted(unit: Unit, first: int, first_parent: int, first_model: int) -> Unit:
    refs = tuple(
        dataclasses.replace(ref, source=ref.source + (first_parent if ref.kind in ReferenceKind.OF_PARENTS else first))
        for ref in unit.refs
    )
    return dataclasses.replace(unit, refs=refs, models=tuple(first_model + model for model in unit.models))


def _shifted_file(record: FileRecord, first: int) -> FileRecord:
    recipe = tuple(p if isinstance(p, bytes) else Piece(first + p.unit, p.offset, p.length) for p in record.recipe)
    return dataclasses.replace(record, recipe=recipe)
