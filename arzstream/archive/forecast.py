"""What will be read, said ahead of the reading, so that a store far away is asked for it in time and in large pieces.

Decoding asks for a chunk when it is that chunk's turn. A reader of a store takes seconds of such turns one by one, and
no time at all if it is told before: :class:`Forecast` tells it, for tensors, files, and everything that these are coded
against. For local files it does nothing.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from arzstream.archive.catalog import TensorPlace
from arzstream.archive.decoding import Decoder
from arzstream.archive.references import matches
from arzstream.container.layout import HEADER_BYTES, align
from arzstream.container.records import FileRecord, Reference, ReferenceKind, Unit
from arzstream.errors import ArzError
from arzstream.store.ranges import DistantReader, RangeReader
from arzstream.store.window import Announced

__all__ = ["Forecast"]

S = TypeVar("S")

AHEAD_BYTES = 64 << 20
"""Decoded bytes that are announced before they are asked for, where nothing else bounds it."""
MOST_DEPTH = 64


class Forecast:
    """Announces what will be decoded. A context manager; what was not read by its end is forgotten. One thread uses
    it."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._active = isinstance(decoder.reader, DistantReader)
        self._announced: dict[int, Announced | None] = {}
        self._told: set[tuple[int, int]] = set()
        self._ranges: dict[int, list[tuple[int, int]]] = {}

    def tensor(self, place: TensorPlace) -> None:
        """A whole tensor."""
        self.elements(place, place.member.start, place.member.end)

    def elements(self, place: TensorPlace, start: int, end: int) -> None:
        """Elements [start, end) of the unit that holds a tensor."""
        if self._active and start < end:
            columns = place.entry.unit.shape[1]
            rows = (start // columns, -(-end // columns))
            cols = (start - rows[0] * columns, end - rows[0] * columns) if rows[1] - rows[0] == 1 else (0, columns)
            self.rectangle(place.entry.number, rows, cols)

    def rectangle(self, number: int, rows: tuple[int, int], cols: tuple[int, int]) -> None:
        """Rows × columns of a unit."""
        if self._active:
            with contextlib.suppress(ArzError):  # whatever it is, decoding finds it, too
                self._rectangle(self._decoder, number, rows, cols, 0)
            self._tell()

    def file(self, record: FileRecord, starts: list[int], start: int, end: int) -> None:
        """Bytes [start, end) of a file; ``starts`` are the offsets of the recipe's pieces."""
        if not self._active:
            return
        with contextlib.suppress(ArzError):
            for piece, offset in zip(record.recipe, starts, strict=True):
                if offset >= end:
                    break
                if not isinstance(piece, bytes) and start < offset + piece.length:
                    low, high = max(start, offset) - offset, min(end, offset + piece.length) - offset
                    self._bytes(self._decoder, piece.unit, piece.offset + low, piece.offset + high, 0)
        self._tell()

    def ahead(self, items: Iterable[S], announce: Callable[[S], int]) -> Iterator[S]:
        """``items``, each announced well before it comes; ``announce`` does that and says how many bytes it is."""
        if not self._active:
            yield from items
            return
        waiting: collections.deque[tuple[S, int]] = collections.deque()
        held = 0
        for item in items:
            waiting.append((item, announce(item)))
            held += waiting[-1][1]
            while held > AHEAD_BYTES and len(waiting) > 1:
                first, nbytes = waiting.popleft()
                held -= nbytes
                yield first
        while waiting:
            yield waiting.popleft()[0]

    def close(self) -> None:
        for announced in self._announced.values():
            if announced is not None:
                announced.release()
        self._announced = {}

    def __enter__(self) -> Forecast:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # -- where it is stored

    def _bytes(self, decoder: Decoder, number: int, start: int, end: int, depth: int) -> None:
        entry = decoder.directory.resolve(number)
        row_bytes = entry.unit.shape[1] * entry.unit.type.itemsize
        if start < end and row_bytes:
            rows = (start // row_bytes, -(-end // row_bytes))
            cols = (0, entry.unit.shape[1])
            if rows[1] - rows[0] == 1:
                itemsize = entry.unit.type.itemsize
                cols = ((start - rows[0] * row_bytes) // itemsize, -(-(end - rows[0] * row_bytes) // itemsize))
            self._rectangle(decoder, entry.number, rows, cols, depth)

    def _rectangle(
        self, decoder: Decoder, number: int, rows: tuple[int, int], cols: tuple[int, int], depth: int
    ) -> None:
        directory = decoder.directory
        entry, asked = directory.resolve(number), directory.by_number[number].unit
        unit = entry.unit
        if asked.shape != unit.shape:
            row_bytes = asked.shape[1] * asked.type.itemsize
            self._bytes(decoder, entry.number, rows[0] * row_bytes, rows[1] * row_bytes, depth)
            return
        if unit.has_chunks:
            reader = decoder.home(entry.number)[0]
            table = directory.chunk_table(entry.number)
            for model in unit.models:
                place = directory.models[model]
                self._add(reader, place.offset, align(HEADER_BYTES + place.stored))
            for chunk in unit.chunks_of_rows(*rows):
                tile = unit.tile(chunk)
                if tile.col0 < cols[1] and cols[0] < tile.col1:
                    self._add(reader, int(table[chunk]["offset"]), HEADER_BYTES + int(table[chunk]["stored"]))
        if depth < MOST_DEPTH:
            refs = unit.refs if unit.inherited is None else (unit.inherited,)
            for ref in refs:
                self._reference(decoder, unit, ref, rows, cols, depth + 1)

    def _reference(
        self, decoder: Decoder, unit: Unit, ref: Reference, rows: tuple[int, int], cols: tuple[int, int], depth: int
    ) -> None:
        if ref.kind == ReferenceKind.TRANSPOSED:
            self._rectangle(decoder, ref.source, cols, rows, depth)
        elif ref.kind not in ReferenceKind.OF_PARENTS:
            self._rectangle(decoder, ref.source, rows, cols, depth)
        elif decoder.parents is not None:
            holder = decoder.parents.holder(ref)
            if not isinstance(holder.decoder, Decoder):
                return
            for match in matches(unit, holder.tensors.file(ref.start)):
                low = max(0, rows[0] * unit.shape[1] - match.start)
                high = min(match.count, rows[1] * unit.shape[1] - match.start)
                itemsize = unit.type.itemsize
                start, end = (match.at + low) * itemsize, (match.at + high) * itemsize
                self._bytes(holder.decoder, match.entry.number, start, end, depth)

    def _add(self, reader: RangeReader, offset: int, length: int) -> None:
        key = (id(reader), offset)
        if key in self._told:
            return
        self._told.add(key)
        if id(reader) not in self._announced:
            self._announced[id(reader)] = reader.announce() if isinstance(reader, DistantReader) else None
        self._ranges.setdefault(id(reader), []).append((offset, length))

    def _tell(self) -> None:
        """All that one call found goes to the readers together, so that neighbours become one request."""
        ranges, self._ranges = self._ranges, {}
        for reader, found in ranges.items():
            announced = self._announced[reader]
            if announced is not None:
                announced.add(found)
