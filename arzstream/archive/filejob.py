"""One source file on its way into an archive: what is known of it, what of it is coded, how to make it again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Protocol

from arzstream.archive.hashing import PrefixHash
from arzstream.archive.plan import SMALL_BYTES, Planned, storage_layer
from arzstream.container.records import FileRecord, Kind, Piece
from arzstream.errors import SourceChangedError, StorageError
from arzstream.formats.base import Layout, Parser, Storage, pieces
from arzstream.kernels.memory import Results
from arzstream.store.objects import ObjectChangedError

__all__ = ["FileJob", "Source"]


class Source(Protocol):
    """An open source file."""

    @property
    def size(self) -> int: ...

    def read_at(self, offset: int, length: int) -> bytes: ...

    def read_into(self, offset: int, buffer: memoryview) -> None: ...


@dataclasses.dataclass(eq=False)
class FileJob:
    """A source file on its way into the archive."""

    path: bytes
    source: Source
    parser: Parser
    prefix: PrefixHash = dataclasses.field(default_factory=PrefixHash)
    layout: Layout | None = None
    placed: dict[Storage, tuple[Planned, int]] = dataclasses.field(default_factory=dict)
    """Each coded storage's unit and its first byte there."""
    literals: tuple[tuple[tuple[int, int], ...], Planned] | None = None
    """Literal ranges that have a unit of their own."""
    memory: Results = dataclasses.field(default_factory=Results)
    """Where what is read is put; its owner closes it."""
    number: int | None = None
    record: FileRecord | None = None

    def read(self, offset: int, length: int) -> memoryview:
        """Exactly ``length`` bytes; SourceChangedError if they are not there any more."""
        data = self.memory.empty(length).data
        try:
            self.source.read_into(offset, data)
        except ObjectChangedError:
            raise self.changed("was replaced while it was read") from None
        except StorageError:
            if self.source.size < offset + length:
                raise self.changed("was cut short while it was read") from None
            raise
        return data

    def read_available(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes, fewer at the end of the file."""
        room = max(0, self.source.size - offset)
        try:
            return self.source.read_at(offset, min(length, room)) if room else b""
        except ObjectChangedError:
            raise self.changed("was replaced while it was read") from None

    def changed(self, what: str) -> SourceChangedError:
        return SourceChangedError(
            f"{self.path.decode('utf-8', 'backslashreplace')}: {what}; it is still being written, try again later"
        )

    def look(self, frontier: int, final: bool) -> Layout:
        """What is known of the file's structure now."""
        self.layout = self.parser.update(self.read_available, frontier, final)
        return self.layout

    def literal_ranges(self, size: int) -> tuple[tuple[int, int], ...]:
        """(offset, length) of the bytes that are no tensor's."""
        assert self.layout is not None
        return tuple((p.offset, p.nbytes) for p in pieces(self.layout, size) if p.storage is None)

    def replace_unit(self, old: Planned, new: Planned) -> None:
        """``new`` holds what ``old`` held."""
        self.placed = {s: (new if p is old else p, start) for s, (p, start) in self.placed.items()}
        if self.literals is not None and self.literals[1] is old:
            self.literals = (self.literals[0], new)

    def describe(self, size: int, mode: int, mtime: int, sha256: bytes) -> FileRecord:
        """The record of the finished file, without its recipe."""
        layout = self.layout
        assert layout is not None
        return FileRecord(
            self.path, Kind.REGULAR, mode & 0o7777, mtime, size, sha256,
            format=layout.format, note=layout.note, metadata=dict(layout.metadata),
        )  # fmt: skip

    def ready(self, layout: Layout, frontier: int, final: bool) -> dict[str, list[Storage]]:
        """Storages to code now, by layer. Small ones wait until all small ones of their layer are there."""
        found: dict[str, list[Storage]] = {}
        waiting: set[str] = set()
        last_layer = storage_layer(layout.storages[-1]) if layout.storages else ""
        for storage in layout.storages:
            if storage in self.placed and not self.placed[storage][0].abandoned:
                continue
            layer = storage_layer(storage)
            small = storage.nbytes < SMALL_BYTES
            may_grow = layout.size is None and layer == last_layer and not final
            if storage.end > frontier or (small and may_grow):
                if small:
                    waiting.add(layer)
                continue
            found.setdefault(layer, []).append(storage)
        for layer in waiting & found.keys():
            found[layer] = [s for s in found[layer] if s.nbytes >= SMALL_BYTES]
        return {layer: storages for layer, storages in found.items() if storages}

    def units(self) -> list[Planned]:
        """The units that hold bytes of this file."""
        assert self.layout is not None
        current = {id(planned): planned for s in self.layout.storages for planned in [self.placed[s][0]]}
        if self.literals is not None:
            current[id(self.literals[1])] = self.literals[1]
        return list(current.values())

    def recipe(self, size: int, literals: dict[int, Piece | bytes]) -> Iterator[Piece | bytes]:
        """How to make the file again, neighbouring pieces of one unit joined."""
        last: Piece | None = None
        for piece in self._pieces(size, literals):
            if (
                last is not None
                and isinstance(piece, Piece)
                and (last.unit, last.offset + last.length) == (piece.unit, piece.offset)
            ):
                last = Piece(last.unit, last.offset, last.length + piece.length)
                continue
            if last is not None:
                yield last
            last = piece if isinstance(piece, Piece) else None
            if last is None:
                yield piece
        if last is not None:
            yield last

    def _pieces(self, size: int, literals: dict[int, Piece | bytes]) -> Iterator[Piece | bytes]:
        assert self.layout is not None
        at = 0
        for piece in pieces(self.layout, size):
            if piece.storage is not None:
                planned, start = self.placed[piece.storage]
                yield Piece(planned.number, start, piece.nbytes)
            elif self.literals is not None:
                yield Piece(self.literals[1].number, at, piece.nbytes)
                at += piece.nbytes
            else:
                yield literals[piece.offset]
