"""Saving what is whole from a damaged archive, and saying exactly what is not.

The result is an ordinary archive: every unit whose chunks are all good and decode to what they should, every file of
which all bytes are there, and for tensors whose file cannot be made again a safetensors file that holds them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from arzstream.archive.ancestry import Ancestry, SearchPath
from arzstream.archive.decoding import Decoder
from arzstream.archive.deep import file_digest, member_digests
from arzstream.archive.lineage import relative_hint
from arzstream.archive.output import check_free_file, check_not_read, new_archive
from arzstream.archive.pipeline import gathered
from arzstream.archive.plan import choose_grid
from arzstream.archive.references import NotInheritedError, ParentTensors, Span
from arzstream.archive.salvage import Salvage, scan_everything
from arzstream.archive.saving import NamedBytes, safetensors_header
from arzstream.archive.volumes import volume_place
from arzstream.container.directory import UnitEntry, check_charge, named
from arzstream.container.layout import HEADER_BYTES
from arzstream.container.records import FileRecord, Kind, Member, Piece, Reference, ReferenceKind, Unit
from arzstream.container.state import check_recipe
from arzstream.container.writer import FrameWriter
from arzstream.errors import ArzError, CorruptError, MissingParentError, StorageError
from arzstream.formats.order import layer_key
from arzstream.kernels.api import kernels
from arzstream.kernels.digests import blake3, xxh3_64
from arzstream.limits import DEFAULT_LIMITS, Limits
from arzstream.store.folders import beside, folder_of
from arzstream.store.ranges import RangeReader, open_reader

__all__ = ["RecoverReport", "recover"]

RESCUED = "recovered"
"""Tensors that are intact while the file they came from is not are put into ``recovered.safetensors``."""
KEPT = "is what would be recovered, and stays as it is; choose another name"
Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class RecoverReport:
    """What was saved and what was lost, by name. ``damaged_places`` counts runs of bytes that are no good frame."""

    archive: str
    output: str
    tensors: list[str]
    files: list[str]
    lost_tensors: list[str]
    lost_files: list[str]
    damaged_places: int
    unchecked: list[str] = dataclasses.field(default_factory=list)
    """Tensors that were saved as they are stored, but cannot be decoded without an archive that is not at hand, or is
    damaged there."""
    parent_problems: list[str] = dataclasses.field(default_factory=list)
    """Why they cannot be: what is missing, or damaged, of the archives that this one was coded against."""
    indexed: bool = True
    """Was the index good? If not, the lists of what is lost name only what other frames tell of."""

    @property
    def complete(self) -> bool:
        """Was nothing lost?"""
        return not (self.lost_tensors or self.lost_files)

    def as_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "complete": self.complete}


def recover(
    damaged: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    force: bool = False,
    progress: Progress | None = None,
    limits: Limits = DEFAULT_LIMITS,
    parents: SearchPath = None,
) -> RecoverReport:
    """Write what is intact in ``damaged`` to a new archive ``dest``, which needs the parents that ``damaged`` needs.

    ``parents`` says where they are, as in :func:`arzstream.open`. Without them, or where they are damaged, what depends
    on them is saved where its stored bytes are good, and reported as unchecked.
    Raises CorruptError if nothing can be saved; StorageError if ``damaged``, or for now a parent, cannot be read, or if
    ``dest`` exists and not ``force``, or is no archive, or one that ``damaged`` needs.
    """
    kernels()  # if they cannot be used, nothing is lost for that
    check_not_read(os.fspath(dest), [os.fspath(damaged)], KEPT)
    check_free_file(os.fspath(dest), replace=force)
    ancestry = Ancestry(parents, limits=limits)
    with open_reader(damaged) as reader, contextlib.closing(ancestry):
        try:
            salvage = scan_everything(reader, limits)
            origin = _Parents(salvage, ancestry, os.fspath(damaged))
            rescue = _Rescue(reader, salvage, origin, limits, progress)
            rescue.run()
        except ArzError as error:
            raise named(error, reader.name) from error
        try:
            rescue.hint = lambda hint: relative_hint(beside(folder_of(os.fspath(damaged)), hint), os.fspath(dest))
            if not rescue.good and not salvage.volumes:
                raise CorruptError(f"{reader.name}: nothing in it is whole")
            check_not_read(os.fspath(dest), _needed(salvage, os.fspath(damaged), ancestry))
            with new_archive(os.fspath(dest), replace=force) as (sink, _):
                rescue.write(FrameWriter(sink))
        finally:
            rescue.decoder.close()
        return rescue.report(os.fspath(dest))


class _Parents(ParentTensors):
    """The parents' tensors. What cannot be read of them is as good as missing: that says nothing of the child."""

    def __init__(self, salvage: Salvage, ancestry: Ancestry, damaged: str) -> None:
        super().__init__(lambda number: ancestry.find(salvage.parents[number], damaged), ancestry.tiles)
        self._ancestry = ancestry
        self.problems: dict[str, str] = {}
        """What was wrong, by what is to be mended."""

    def tile(self, unit: Unit, chunk: int, ref: Reference) -> memoryview:
        with self._as_missing():
            return super().tile(unit, chunk, ref)

    def inherit(self, entry: UnitEntry, rows: Span, cols: Span, out: np.ndarray) -> None:
        with self._as_missing():
            super().inherit(entry, rows, cols, out)

    @contextlib.contextmanager
    def _as_missing(self) -> Iterator[None]:
        """Raises MissingParentError instead of all but what the child is to blame for, and what may pass."""
        try:
            yield
        except MissingParentError as error:
            said = error.elsewhere or str(error)
            self.problems.setdefault(said, said)
            raise
        except NotInheritedError:
            raise
        except ArzError as error:
            if isinstance(error, StorageError) and error.errno == errno.EAGAIN:
                raise
            said = str(error)
            # From however many archives away, the last one that is named is damaged.
            at, name = max(((said.rfind(f"{a.name}: "), a.name) for a in self._ancestry.opened()), default=(-1, ""))
            self.problems.setdefault(name if at >= 0 else said, said[max(at, 0) :])
            raise MissingParentError(said) from error


def _needed(salvage: Salvage, damaged: str, ancestry: Ancestry) -> Iterator[str]:
    """Where the archives are that what is saved is read with: those that were opened, and, whole or not, what has the
    name of one, or of a volume."""
    for ancestor in ancestry.opened():
        yield from ancestor.places
    for parent in salvage.parents.values():
        if parent.hint:
            yield beside(folder_of(damaged), parent.hint)
    for volume in salvage.volumes.values():
        yield volume_place(damaged, volume.name)


class _Rescue:
    """Decides what is intact, then copies it: chunks as they are stored, under new numbers."""

    def __init__(
        self,
        reader: RangeReader,
        salvage: Salvage,
        parents: _Parents,
        limits: Limits,
        progress: Progress | None,
    ) -> None:
        self.reader, self.salvage = reader, salvage
        self._progress = progress or (lambda done, total, what: None)
        self.candidates = salvage.complete_units()
        check_charge((entry.unit for entry in self.candidates.values()), salvage.files.items(), reader.size, limits)
        self.directory = salvage.directory(reader.name, self.candidates)
        self.parents = parents
        self.decoder = Decoder(reader, self.directory, limits=limits, parents=parents)
        self.hint: Callable[[str], str] = lambda hint: hint
        """Where a parent is, seen from the new archive."""
        self.unchecked: set[int] = set()
        self.good: dict[int, tuple[UnitEntry, tuple[bytes, ...]]] = {}
        self.files: list[FileRecord] = []
        self.lost_files: list[FileRecord] = []
        self._numbers: dict[int, int] = {}
        self._literals: dict[int, bytes] = {}

    def run(self) -> None:
        total, done = sum(entry.unit.nbytes for entry in self.candidates.values()), 0
        for number, entry in self.candidates.items():
            whole = all(ref.source in self.good for ref in entry.unit.refs if ref.kind not in ReferenceKind.OF_PARENTS)
            digests = self._digests(number, entry) if whole else None
            if digests is not None:
                self.good[number] = (entry, digests)
            done += entry.unit.nbytes
            self._progress(done, total, "checking")
        self._good_units = {number: entry.unit for number, (entry, _) in self.good.items()}
        latest, older = self.salvage.latest_files()
        for record in latest:
            (self.files if self._restores(record) else self.lost_files).append(record)
        named = {record.path for record in latest}
        self.lost_files += [record for record in older if record.path not in named]
        # What cannot be decoded can be kept in its file, but in no new one.
        needed = {p.unit for record in self.files for p in record.recipe if isinstance(p, Piece)}
        for number in sorted(self.good, reverse=True):  # references lead to lower numbers
            if number in needed:
                refs = self.good[number][0].unit.refs
                needed |= {ref.source for ref in refs if ref.kind not in ReferenceKind.OF_PARENTS}
        for number in self.unchecked - needed:
            del self.good[number]
        self.unchecked &= needed

    def _digests(self, number: int, entry: UnitEntry) -> tuple[bytes, ...] | None:
        """The members' BLAKE3 if the unit decodes, and to what was committed where that is known."""
        try:
            found = member_digests(self.decoder, number, entry.unit)
        except MissingParentError:
            if len(entry.digests) != len(entry.unit.members):
                return None  # the new index needs a digest of each, and where there was none, nothing knows them
            self.unchecked.add(number)
            return entry.digests
        except StorageError:
            raise  # which says nothing about what is stored
        except ArzError:
            return None
        return found if entry.agrees(found) else None

    def _restores(self, record: FileRecord) -> bool:
        try:
            check_recipe(record, self._good_units)
            return record.kind != Kind.REGULAR or file_digest(self.decoder, record) == record.sha256
        except MissingParentError:
            return True
        except StorageError:
            raise
        except ArzError:
            return False

    # -- writing
    # --------------------------------------------------------------------------------------------------------

    def write(self, writer: FrameWriter) -> None:
        self._models = {
            n: writer.add_model(self.decoder.model(entry)) for n, entry in sorted(self.salvage.models.items())
        }
        self._parents = {
            n: writer.add_parent(dataclasses.replace(parent, hint=self.hint(parent.hint) if parent.hint else ""))
            for n, parent in sorted(self.salvage.parents.items())
        }
        for _, volume in sorted(self.salvage.volumes.items()):
            writer.add_volume(volume)
        for number in sorted(self.good):
            entry, digests = self.good[number]
            self._copy(writer, number, entry.unit)
            writer.commit(entry.unit.layer, [(self._numbers[number], digests)])
        for record in self.files:
            recipe = tuple(
                p if isinstance(p, bytes) else Piece(self._numbers[p.unit], p.offset, p.length) for p in record.recipe
            )
            writer.add_file(dataclasses.replace(record, recipe=recipe))
        self._write_rescued(writer)
        writer.commit("")
        state = writer.state
        writer.seal(sorted(state.live_units(), key=lambda number: (layer_key(state.units[number].layer), number)))

    def _copy(self, writer: FrameWriter, number: int, unit: Unit) -> None:
        refs = tuple(
            dataclasses.replace(
                ref, source=(self._parents if ref.kind in ReferenceKind.OF_PARENTS else self._numbers)[ref.source]
            )
            for ref in unit.refs
        )
        models = tuple(self._models[model] for model in unit.models)
        self._numbers[number] = writer.add_unit(dataclasses.replace(unit, refs=refs, models=models))
        for chunk, row in enumerate(self.directory.chunk_table(number)):
            payload = self.reader.read_at(int(row["offset"]) + HEADER_BYTES, int(row["stored"]))
            writer.add_chunk(
                self._numbers[number], chunk, int(row["codec"]), payload, int(row["decoded"]), int(row["decoded_xxh3"])
            )

    def _write_rescued(self, writer: FrameWriter) -> None:
        """One safetensors file of the tensors that no restored file holds."""
        held = {p.unit for record in self.files for p in record.recipe if isinstance(p, Piece)} | self.unchecked
        listed: dict[str, tuple[NamedBytes, Piece]] = {}
        for number, (entry, _) in self.good.items():
            itemsize = entry.unit.type.itemsize
            for member in entry.unit.members if number not in held else ():
                if member.name is None:
                    continue
                name, nbytes = self._free_name(member.name, listed), member.elements * itemsize
                piece = Piece(self._numbers[number], member.start * itemsize, nbytes)
                if member.strides is not None:
                    piece = self._straightened(writer, number, member, name)
                listed[name] = (NamedBytes(name, entry.unit.dtype, member.shape, nbytes), piece)
        if not listed:
            return
        header = safetensors_header([tensor for tensor, _ in listed.values()])
        pieces = [self._literal(writer, header), *(piece for _, piece in listed.values())]
        size = sum(piece.length for piece in pieces)
        sha256 = self._digest_of(header, pieces[1:])
        writer.add_file(
            FileRecord(self._free_path(), size=size, sha256=sha256, recipe=tuple(pieces), format="safetensors")
        )

    def _straightened(self, writer: FrameWriter, number: int, member: Member, name: str) -> Piece:
        """A tensor with strides, row by row in a unit of its own."""
        unit = self.good[number][0].unit
        itemsize = unit.type.itemsize
        data = b"".join(gathered(memoryview(self.decoder.unit_bytes(number, 0, unit.nbytes)), member, itemsize))
        shape = (member.elements, 1)
        members = (Member(name, member.shape),)
        return self._new_unit(writer, Unit(unit.dtype, shape, choose_grid(shape, itemsize), members, unit.layer), data)

    def _literal(self, writer: FrameWriter, data: bytes) -> Piece:
        """New bytes as a unit without a name."""
        shape = (len(data), 1)
        return self._new_unit(writer, Unit("U8", shape, choose_grid(shape, 1), (Member(None, (len(data),)),)), data)

    def _new_unit(self, writer: FrameWriter, unit: Unit, data: bytes) -> Piece:
        number, itemsize = writer.add_unit(unit), unit.type.itemsize
        for chunk in range(unit.chunk_count):
            tile = unit.tile(chunk)
            part = data[tile.row0 * itemsize : tile.row1 * itemsize]
            writer.add_chunk(number, chunk, 0, part, len(part), xxh3_64(part))
        writer.commit("", [(number, (blake3(data),))])
        self._literals[number] = data
        return Piece(number, 0, len(data))

    def _digest_of(self, header: bytes, pieces: list[Piece]) -> bytes:
        old = {new: number for number, new in self._numbers.items()}
        sha256 = hashlib.sha256(header)
        for piece in pieces:
            if piece.unit in self._literals:
                sha256.update(self._literals[piece.unit])
                continue
            block = 16 << 20
            for start in range(piece.offset, piece.offset + piece.length, block):
                sha256.update(
                    self.decoder.unit_bytes(old[piece.unit], start, min(start + block, piece.offset + piece.length))
                )
        return sha256.digest()

    @staticmethod
    def _free_name(name: str, taken: dict[str, Any]) -> str:
        free, count = name, 1
        while free in taken:
            count += 1
            free = f"{name}#{count}"
        return free

    def _free_path(self) -> bytes:
        taken = {record.path.split(b"/")[0] for record in self.files}
        path, count = f"{RESCUED}.safetensors".encode(), 1
        while path in taken:
            count += 1
            path = f"{RESCUED}-{count}.safetensors".encode()
        return path

    def report(self, output: str) -> RecoverReport:
        lost = self.salvage.missing_units(set(self.good))
        return RecoverReport(
            archive=self.reader.name,
            output=output,
            tensors=[m.name for entry, _ in self.good.values() for m in entry.unit.members if m.name is not None],
            files=[os.fsdecode(record.path) for record in self.files],
            lost_tensors=[name for number in sorted(lost) for name in self.salvage.names_of(number)],
            lost_files=[os.fsdecode(record.path) for record in self.lost_files],
            damaged_places=self.salvage.damaged_places,
            unchecked=[
                m.name for n in sorted(self.unchecked) for m in self.good[n][0].unit.members if m.name is not None
            ],
            parent_problems=sorted(self.parents.problems.values()) if self.unchecked else [],
            indexed=self.salvage.indexed,
        )
