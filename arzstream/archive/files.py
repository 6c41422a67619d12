"""The original files, made again from their recipes, at any position."""

from __future__ import annotations

import bisect
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from arzstream.archive.decoding import Decoder, Task
from arzstream.archive.forecast import Forecast
from arzstream.container.directory import Directory
from arzstream.container.records import FileRecord, ReferenceKind, Unit

__all__ = [
    "ArchivedFile",
    "announced",
    "families",
    "open_archived",
    "piece_starts",
    "range_tasks",
    "read_range",
    "spans",
    "together",
]

BUFFER_BYTES = 1 << 20
SPAN_BYTES = 2 << 20
"""Small pieces of a file are decoded together, up to so many bytes."""


def range_tasks(
    decoder: Decoder, record: FileRecord, starts: list[int], start: int, end: int, out: np.ndarray
) -> list[Task]:
    """What to do to get bytes [start, end) of a file into ``out``: uint8, one-dimensional, as long.

    ``starts`` are the offsets of the recipe's pieces.
    """
    tasks: list[Task] = []
    for number in range(max(0, bisect.bisect_right(starts, start) - 1), len(starts)):
        piece, offset = record.recipe[number], starts[number]
        if offset >= end:
            break
        length = len(piece) if isinstance(piece, bytes) else piece.length
        low, high = max(start, offset) - offset, min(end, offset + length) - offset
        if low >= high:
            continue
        part = out[offset + low - start : offset + high - start]
        if isinstance(piece, bytes):
            part[...] = np.frombuffer(piece, np.uint8)[low:high]
        else:
            tasks += decoder.unit_into(piece.unit, piece.offset + low, piece.offset + high, part)
    return tasks


def read_range(decoder: Decoder, record: FileRecord, starts: list[int], start: int, end: int) -> bytearray:
    """Bytes [start, end) of a file."""
    data = bytearray(end - start)
    with Forecast(decoder) as forecast:
        forecast.file(record, starts, start, end)
        decoder.run(range_tasks(decoder, record, starts, start, end, np.frombuffer(data, np.uint8)))
    return data


def spans(decoder: Decoder, record: FileRecord) -> list[tuple[int, int]]:
    """The file in ranges that can be decoded alone: a chunk each, or several small pieces."""
    borders: list[int] = []
    at = 0
    for piece in record.recipe:
        borders.append(at)
        if isinstance(piece, bytes):
            at += len(piece)
            continue
        unit = decoder.directory.resolve(piece.unit).unit
        borders += (at + end - piece.offset for end in _chunk_ends(unit, piece.offset, piece.offset + piece.length))
        at += piece.length
    found: list[tuple[int, int]] = []
    for border, after in itertools.pairwise([*borders, at]):
        if found and after - found[-1][0] <= SPAN_BYTES:
            found[-1] = (found[-1][0], after)
        elif border < after:
            found.append((border, after))
    return found


def families(directory: Directory) -> dict[int, int]:
    """Units of which one is coded against another, through however many others: unit → the lowest number of its like.
    Units that have nothing to do with others are not in it."""
    roots: dict[int, int] = {}
    for entry in directory.units:
        for ref in entry.unit.refs:
            if ref.kind == ReferenceKind.UNIT:
                one, other = _root(roots, entry.number), _root(roots, ref.source)
                roots[max(one, other)] = roots[min(one, other)] = min(one, other)
    return {number: _root(roots, number) for number in roots}


def _root(roots: dict[int, int], number: int) -> int:
    """Makes the way shorter for those that come after, so that no order of references makes it slow."""
    while roots.setdefault(number, number) != number:
        roots[number] = roots[roots[number]]
        number = roots[number]
    return number


def together(
    decoder: Decoder, known: Mapping[int, int], record: FileRecord, starts: list[int], found: Sequence[tuple[int, int]]
) -> list[list[tuple[int, int]]]:
    """The ranges ``found`` of a file in groups; ``known`` are the :func:`families`. Where one is coded against another,
    both are decoded one after the other, first what refers: what it refers to is at hand then, and so is all that both
    refer to."""
    groups: dict[tuple[int, int], list[tuple[int, tuple[int, int]]]] = {}
    for span in found:
        number = bisect.bisect_right(starts, span[0]) - 1
        piece = record.recipe[number]
        if isinstance(piece, bytes) or piece.unit not in known:
            groups[-1, span[0]] = [(0, span)]
        else:
            unit = decoder.directory.by_number[piece.unit].unit
            element = (piece.offset + span[0] - starts[number]) // unit.type.itemsize
            groups.setdefault((known[piece.unit], element), []).append((-piece.unit, span))
    return [[span for _, span in sorted(group)] for group in groups.values()]


def announced(
    forecast: Forecast, record: FileRecord, starts: list[int], found: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """The ranges ``found`` of a file, each announced before it is its turn."""

    def announce(span: tuple[int, int]) -> int:
        forecast.file(record, starts, *span)
        return span[1] - span[0]

    return forecast.ahead(found, announce)


def _chunk_ends(unit: Unit, start: int, end: int) -> Iterator[int]:
    """Where, inside bytes (start, end) of a unit, a chunk ends, or a row of chunks that lie side by side."""
    if start >= end:
        return
    (rows, columns), row_bytes = unit.grid, unit.shape[1] * unit.type.itemsize
    if rows > 1 or columns >= unit.shape[1]:
        step = rows * row_bytes
        yield from range(start // step * step + step, end, step)
        return
    step = columns * unit.type.itemsize
    for row in range(start // row_bytes * row_bytes, end, row_bytes):
        for border in (*range(row + step, row + row_bytes, step), row + row_bytes):
            if start < border < end:
                yield border


def piece_starts(record: FileRecord) -> list[int]:
    """Offset of each piece of the recipe in the file."""
    lengths = (len(piece) if isinstance(piece, bytes) else piece.length for piece in record.recipe)
    return list(itertools.accumulate(lengths, initial=0))[:-1]


class ArchivedFile(io.RawIOBase):
    """An original file as a seekable, read-only stream, decoded as it is read."""

    def __init__(self, decoder: Decoder, record: FileRecord) -> None:
        self._decoder, self._record = decoder, record
        self._starts = piece_starts(record)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._record.size}[whence]
        if base + offset < 0:
            raise ValueError("cannot seek before the beginning of the file")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        end = min(self._position + len(view), self._record.size)
        if end <= self._position:
            return 0
        out = np.frombuffer(view, np.uint8, end - self._position)
        with Forecast(self._decoder) as forecast:
            forecast.file(self._record, self._starts, self._position, end)
            self._decoder.run(range_tasks(self._decoder, self._record, self._starts, self._position, end, out))
        self._position = end
        return len(out)


def open_archived(decoder: Decoder, record: FileRecord) -> io.BufferedReader:
    """A buffered, seekable stream over an original file."""
    return io.BufferedReader(ArchivedFile(decoder, record), BUFFER_BYTES)
