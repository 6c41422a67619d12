"""What a checkpoint is coded against while it is packed: its parent, and the parent's own parent.

Each unit refers to the tensors of the same names, dtypes and shapes; an embedding that got more rows, or lost some,
refers to those it has in common. Tensors that nothing changed cost a reference and no chunks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from arzstream.archive.ancestry import Ancestor, Ancestry, SearchPath
from arzstream.archive.output import check_not_read
from arzstream.archive.pipeline import MemberDigests
from arzstream.archive.plan import SMALL_BYTES, Planned, ReadAt
from arzstream.archive.references import Match, ParentTensors, Tensors, covers, fill, matches
from arzstream.container.records import Parent, Reference, ReferenceKind, Unit
from arzstream.container.writer import FrameWriter
from arzstream.errors import ArzError, CorruptError, StorageError
from arzstream.kernels.digests import xxh3_64
from arzstream.store.address import shown
from arzstream.store.folders import folder_of
from arzstream.store.ranges import is_url

__all__ = ["MAX_CHAIN", "Lineage", "ParentError", "open_lineage", "relative_hint"]

MAX_CHAIN = 8
"""Archives that may stand behind one, each coded against the next; then one is written that stands alone."""
FINGERPRINT = 4096
"""Elements of a unit that are compared with the parent's before all of them are hashed."""


class ParentError(CorruptError):
    """A parent that could be opened cannot be decoded; another one, or none, will do."""


@dataclasses.dataclass(frozen=True)
class _Sources:
    """One archive to code against, how it is named in ours, and where its tensors are."""

    ancestor: Ancestor
    record: Parent
    files: Mapping[tuple[str, str], Sequence[int]]
    """(name, dtype) → the files that have such a tensor."""

    def file(self, path: bytes, unit: Unit) -> int | None:
        """The file whose tensors ``unit``, of our file ``path``, is coded against: the likest by path of those that
        have the first of its tensors that any has."""
        tensors = self.ancestor.tensors
        for member in unit.members:
            found = self.files.get((member.name, unit.dtype), ()) if member.name is not None else ()
            if found:
                best = max(found, key=lambda number: _alike(tensors.files[number].path, path))
                return best if matches(unit, tensors.file(best)) else None
        return None


def _alike(one: bytes, other: bytes) -> int:
    """How many of the last components two paths have in common."""
    pairs = zip(reversed(one.split(b"/")), reversed(other.split(b"/")), strict=False)
    count = 0
    for a, b in pairs:
        if a != b:
            break
        count += 1
    return count


class Lineage:
    """The archives that one is coded against, nearest first. Encoding threads share it."""

    def __init__(self, ancestors: Sequence[tuple[Ancestor, Parent]], ancestry: Ancestry) -> None:
        self._ancestry = ancestry
        self._sources = [_Sources(a, record, _files_by_tensor(a.tensors)) for a, record in ancestors]
        self._parents = ParentTensors(lambda number: self._sources[number].ancestor, ancestry.tiles)

    @property
    def parent(self) -> Ancestor:
        return self._sources[0].ancestor

    def opened(self) -> list[Ancestor]:
        """All archives that are needed to read what is coded against these."""
        return self._ancestry.opened()

    def twin(self, content: bytes) -> str | None:
        """The place of an archive further behind than the parent that holds the same as ours. Coded against others that
        need it, ours would be found in its place some day, and need itself; coded against it, it needs nothing else."""
        if content == self.parent.content:
            return None
        return next((a.place for a in self._ancestry.opened() if a.content == content), None)

    def references(self, path: bytes, unit: Unit) -> tuple[Reference, ...]:
        """What ``unit``, of the file ``path``, may be coded against: nothing, the parent, or the grandparent, too."""
        refs: list[Reference] = []
        for number, source in enumerate(self._sources):
            file = source.file(path, unit) if unit.elements else None
            if file is None:
                break
            refs.append(Reference(ReferenceKind.PARENT, number, file, unit.elements))
        return tuple(refs)

    def announce(self, writer: FrameWriter, units: Sequence[Unit]) -> None:
        """Name the parents that ``units`` refer to, before they do."""
        used = {ref.source for unit in units for ref in unit.refs if ref.kind in ReferenceKind.OF_PARENTS}
        while used and len(writer.state.parents) <= max(used):
            writer.add_parent(self._sources[len(writer.state.parents)].record)

    def tile(self, unit: Unit, chunk: int, ref: Reference) -> memoryview:
        """The tile of ``ref``, one to a parent, where ``chunk`` of ``unit`` is."""
        try:
            return self._parents.tile(unit, chunk, ref)
        except ArzError as error:
            raise ParentError(str(error)) from error

    def inherit(self, read: ReadAt, planned: Planned, ref: Reference) -> bool:
        """Are the bytes of ``planned`` the parent's? Then it has their digests, and needs ``ref`` and no chunks."""
        unit, source = planned.unit, self._sources[ref.source].ancestor
        tensors = source.tensors.file(ref.start)
        held = (tensors.get(member.name) if member.name is not None else None for member in unit.members)
        theirs = tuple(tensor.digest if tensor is not None else b"" for tensor in held)
        found = matches(unit, tensors, theirs)
        if not covers(unit, found):
            return False
        known = _chunk_digests(source, unit, found)
        if known is None and unit.nbytes >= SMALL_BYTES and not self._begins(read, planned, source, found):
            return False
        hashers, chunk_xxh3 = MemberDigests(unit), {}
        for chunk in range(unit.chunk_count):
            data = planned.read_chunk(read, chunk)
            chunk_xxh3[chunk] = xxh3_64(data)
            if known is not None and chunk_xxh3[chunk] != known[chunk]:
                return False
            hashers.update(data)
        if hashers.result() != theirs:
            return False
        planned.unit = dataclasses.replace(unit, refs=(dataclasses.replace(ref, kind=ReferenceKind.INHERITED),))
        planned.digests, planned.chunk_xxh3 = theirs, chunk_xxh3
        return True

    @staticmethod
    def _begins(read: ReadAt, planned: Planned, source: Ancestor, found: Sequence[Match]) -> bool:
        """Does the source begin like the parent?"""
        unit = planned.unit
        count = min(FINGERPRINT, unit.shape[1] if unit.shape[0] > 1 else unit.elements)
        theirs = np.empty(count * unit.type.itemsize, np.uint8)
        try:
            fill(source.decoder, unit, found, (0, 1), (0, count), theirs)
        except ArzError as error:
            raise ParentError(str(error)) from error
        return theirs.data == memoryview(planned.read(read, 0, len(theirs)))


def _files_by_tensor(tensors: Tensors) -> dict[tuple[str, str], list[int]]:
    found: dict[tuple[str, str], list[int]] = {}
    for number in range(len(tensors.files)):
        for name, tensor in tensors.file(number).items():
            found.setdefault((name, tensor.entry.unit.dtype), []).append(number)
    return found


def _chunk_digests(source: Ancestor, unit: Unit, found: Sequence[Match]) -> list[int] | None:
    """XXH3-64 of the chunks of the parent's unit, if they are cut like those of ours."""
    if len(found) != 1 or found[0].at:
        return None
    entry = source.directory.resolve(found[0].entry.number)
    if (entry.unit.shape, entry.unit.grid) != (unit.shape, unit.grid) or not entry.unit.has_chunks:
        return None
    return [int(value) for value in source.directory.chunk_table(entry.number)["decoded_xxh3"]]


@contextlib.contextmanager
def open_lineage(
    parent: str | os.PathLike[str] | None,
    dest: str,
    parents: SearchPath = None,
    max_chain: int = MAX_CHAIN,
    forbidden: Sequence[bytes] = (),
    references: int = 2,
    storage_options: dict[str, Any] | None = None,
) -> Iterator[Lineage | None]:
    """Open ``parent``, and what is behind it, ``references`` archives in all, for an archive to be written to ``dest``;
    close them in the end.

    None if there is no parent, or if it has ``max_chain`` others behind it. Raises MissingParentError, CorruptError,
    and StorageError if ``dest``, or an archive with one of the contents ``forbidden``, is one of them.
    """
    if parent is None:
        yield None
        return
    ancestry, place = Ancestry(parents, storage_options), os.fspath(parent)
    try:
        nearest = ancestry.open(place)
        behind = ancestry.depth(nearest.directory, place)
        for known in ancestry.opened():
            if known.content in forbidden:
                raise StorageError(f"{shown(place)}: is or needs what would be coded against it; choose another parent")
            check_not_read(dest, known.places)
        if behind >= max_chain:
            yield None
            return
        listed = [(nearest, Parent(nearest.content, relative_hint(place, dest)))]
        while len(listed) < references and listed[-1][0].directory.parents:
            last = listed[-1][0]
            found = ancestry.find(last.directory.parents[0], last.place)
            listed.append((found, Parent(found.content, relative_hint(found.place, dest))))
        yield Lineage(listed, ancestry)
    finally:
        ancestry.close()


def relative_hint(place: str, dest: str) -> str:
    """How to find ``place`` from the archive ``dest``: relative, or only its name."""
    if not is_url(place) and not is_url(dest) and dest != "-":
        with contextlib.suppress(ValueError):  # another drive
            return os.path.relpath(os.path.abspath(place), folder_of(dest)).replace(os.sep, "/")
    return posixpath.basename(shown(place).replace(os.sep, "/"))
