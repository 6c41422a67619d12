"""What is measured: the bytes of some files, as the units and chunks that ``pack`` would make of them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from arzstream.archive.filejob import FileJob
from arzstream.archive.plan import Planned, literal_unit
from arzstream.archive.restore import unpack
from arzstream.archive.sharing import plan_units
from arzstream.archive.sources import SourceEntry, collect, open_source
from arzstream.codec.base import ChunkContext
from arzstream.container.records import Kind, Unit
from arzstream.errors import StorageError
from arzstream.formats.companions import Companions
from arzstream.formats.detect import parser_for
from arzstream.kernels.memory import Results
from arzstream.store.address import shown
from arzstream.store.ranges import is_url

__all__ = ["Chunk", "Part", "Sample", "cut", "load"]

PIECE_BYTES, PIECES = 2 << 20, 8
"""A sample that is not everything holds pieces of at least 2 MiB, or of an eighth of it if that is less."""

MEMORY = Results(idle_bytes=0)

U8 = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Bytes [start, end) of a part, and what a codec may know of them."""

    start: int
    end: int
    context: ChunkContext


@dataclasses.dataclass(frozen=True)
class Part:
    """One unit of the plan: a tensor, several small ones of one type side by side, or bytes that are no tensor's.

    ``data``: its bytes, dtype uint8, one-dimensional, read-only. Peers get parts, arzstream's codecs their chunks.
    """

    name: str
    dtype: str
    shape: tuple[int, int]
    data: U8
    chunks: tuple[Chunk, ...]

    @property
    def context(self) -> ChunkContext:
        return dataclasses.replace(self.chunks[0].context, rows=self.shape[0], cols=self.shape[1])


@dataclasses.dataclass(frozen=True)
class Sample:
    """``parts`` are all bytes of the files at ``paths``; ``tensors_file`` is a safetensors file with the same tensors,
    for programs that read nothing else. ``total`` is the length of what was asked for; ``note`` is empty if this is all
    of it."""

    parts: tuple[Part, ...]
    paths: tuple[Path, ...]
    folder: Path
    total: int
    note: str = ""

    @property
    def nbytes(self) -> int:
        return sum(part.data.nbytes for part in self.parts)

    @property
    def tensors_file(self) -> Path:
        """Written when it is first asked for, unless the sample is one safetensors file anyway."""
        if len(self.paths) == 1 and self.paths[0].suffix == ".safetensors":
            return self.paths[0]
        path = self.folder / "tensors.safetensors"
        if not path.exists():
            _write_safetensors(path, self.parts)
        return path


def load(sources: Sequence[str], limit: int, folder: Path) -> Sample:
    """The sample for ``sources``: files, folders, archives (which are unpacked into ``folder``), URLs of files.

    Of more than ``limit`` bytes, evenly spaced units are taken. Raises StorageError if there is nothing to measure,
    and what reading the sources raises.
    """
    places = [_unpacked(source, folder / f"unpacked-{k}") for k, source in enumerate(sources)]
    entries = [entry for entry in collect(places) if entry.kind == Kind.REGULAR]
    total = sum(entry.size for entry in entries)
    if not total:
        raise StorageError(f"{shown(str(sources[0]))}: there is nothing in it to measure; name a file with weights")
    if total <= limit and not any(is_url(place) for place in places):
        parts = tuple(part for entry in entries for part in _parts(entry, None))
        paths = tuple(Path(os.fsdecode(entry.where)) for entry in entries)
        return Sample(parts, paths, folder, total)
    return _spaced(entries, limit, total, folder)


def cut(sample: Sample, limit: int, folder: Path) -> Sample:
    """The beginning of evenly spaced parts of ``sample``, at most about ``limit`` bytes, as a file of its own."""
    chosen = _chosen([part.data.nbytes for part in sample.parts], limit)
    parts = [_shortened(sample.parts[k], most) for k, most in chosen.items()]
    return _written(parts, len(sample.parts), folder, sample.total)


def _unpacked(source: str, folder: Path) -> str:
    """An archive's files, in a folder; anything else as it is."""
    if not source.endswith(".arz"):
        return source
    unpack(source, folder)
    return str(folder)


def _spaced(entries: Sequence[SourceEntry], limit: int, total: int, folder: Path) -> Sample:
    """Units spread over all files. The plans are made first, so that only what is chosen is read."""
    plans = [(entry, planned) for entry in entries for planned in _plan(entry)]
    chosen = _chosen([planned.unit.nbytes for _, planned in plans], limit)
    parts = [part for k, (entry, planned) in enumerate(plans) if k in chosen
             for part in [_part(entry, planned, chosen[k])]]  # fmt: skip
    return _written(parts, len(plans), folder, total)


def _written(parts: Sequence[Part], available: int, folder: Path, total: int) -> Sample:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sample.safetensors"
    _write_safetensors(path, parts)
    nbytes = sum(part.data.nbytes for part in parts)
    names = ", ".join(part.name for part in parts[:3]) + (", …" if len(parts) > 3 else "")
    note = f"measured on {nbytes / 1e6:.1f} MB: pieces of {len(parts)} of {available} units ({names})"
    return Sample(tuple(parts), (path,), folder, total, note)


def _chosen(sizes: Sequence[int], limit: int) -> dict[int, int]:
    """Which units, and how many bytes of each at most, so that about ``limit`` bytes come together.

    All units if each can have a fair piece, else evenly spaced ones; what small ones leave goes to the large.
    """
    least = min(PIECE_BYTES, limit // PIECES)
    count = len(sizes)
    while True:
        picked = sorted({(2 * k + 1) * len(sizes) // (2 * count) for k in range(count)})
        most = _fair([sizes[k] for k in picked], limit)
        if most >= least or count == 1:
            return {k: min(sizes[k], max(most, 1)) for k in picked if sizes[k]}
        count -= max(1, count // 16)


def _fair(sizes: Sequence[int], limit: int) -> int:
    """The largest m for which the sum of min(size, m) does not exceed ``limit``."""
    left, waiting = limit, sorted(sizes)
    for k, size in enumerate(waiting):
        share = left // (len(waiting) - k)
        if size > share:
            return share
        left -= size
    return limit


def _plan(entry: SourceEntry) -> Iterator[Planned]:
    """The units of a file in the order in which ``pack`` codes them, its literal bytes last."""
    with open_source(entry) as source:
        job = FileJob(entry.path, source, parser_for(entry.path, companions=Companions()))
        layout = job.look(source.size, final=True)
        by_layer = job.ready(layout, source.size, final=True)
        for _, units in plan_units(by_layer):
            yield from (planned for planned, _ in units)
        literals = job.literal_ranges(source.size)
    if literals:
        yield literal_unit(literals)


def _parts(entry: SourceEntry, most: int | None) -> Iterator[Part]:
    for planned in _plan(entry):
        if planned.unit.nbytes:
            yield _part(entry, planned, most)


def _part(entry: SourceEntry, planned: Planned, most: int | None) -> Part:
    """A unit, or evenly spaced chunks of it, of together at most about ``most`` bytes."""
    unit = planned.unit
    data = bytearray()
    chunks: list[Chunk] = []
    with open_source(entry) as source:
        for k in _spread(unit, most):
            start, end, tile = *planned.chunk_range(k), unit.tile(k)
            read = planned.read(source.read_at, start, end)
            context = ChunkContext(unit.type, tile.row1 - tile.row0, tile.col1 - tile.col0)
            chunks.append(Chunk(len(data), len(data) + len(read), context))
            data += read
    names = [member.name for member in unit.members if member.name]
    name = names[0] if names else f"{entry.path.decode('utf-8', 'replace')} (no tensor)"
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    shape = unit.shape
    if len(chunks) < unit.chunk_count:
        elements = len(data) // unit.type.itemsize
        shape = (elements // unit.shape[1], unit.shape[1]) if elements % unit.shape[1] == 0 else (1, elements)
    return Part(name + more, unit.dtype, shape, _own(np.frombuffer(data, np.uint8)), tuple(chunks))


def _own(data: U8) -> U8:
    """A copy in memory like that which ``pack`` reads into."""
    copy = MEMORY.empty(data.nbytes)
    copy[:] = data
    copy.flags.writeable = False
    return copy


def _spread(unit: Unit, most: int | None) -> list[int]:
    """Numbers of evenly spaced chunks."""
    if most is None or most >= unit.nbytes:
        return list(range(unit.chunk_count))
    count = max(1, unit.chunk_count * most // unit.nbytes)
    return sorted({(2 * k + 1) * unit.chunk_count // (2 * count) for k in range(count)})


def _shortened(part: Part, most: int) -> Part:
    """Evenly spaced chunks of a part, or the first rows of the one in the middle."""
    if part.data.nbytes <= most:
        return part
    count = len(part.chunks) * most // part.data.nbytes
    if not count:
        return _first_rows(part, part.chunks[len(part.chunks) // 2], most)
    picked = [part.chunks[k] for k in sorted({(2 * k + 1) * len(part.chunks) // (2 * count) for k in range(count)})]
    data = np.concatenate([part.data[chunk.start : chunk.end] for chunk in picked])
    chunks, start = [], 0
    for chunk in picked:
        chunks.append(Chunk(start, start + chunk.end - chunk.start, chunk.context))
        start = chunks[-1].end
    itemsize, columns = part.context.dtype.itemsize, part.shape[1]
    elements = data.nbytes // itemsize
    shape = (elements // columns, columns) if elements % columns == 0 else (1, elements)
    return Part(part.name, part.dtype, shape, data, tuple(chunks))


def _first_rows(part: Part, chunk: Chunk, most: int) -> Part:
    """The beginning of one chunk: whole rows, or a piece of its only row."""
    context = chunk.context
    row = context.cols * context.dtype.itemsize
    rows, cols = max(1, min(most // row, context.rows)), context.cols
    if row > most:
        cols = max(1, most // context.dtype.itemsize)
    context = dataclasses.replace(context, rows=rows, cols=cols)
    data = part.data[chunk.start : chunk.start + rows * cols * context.dtype.itemsize]
    return Part(part.name, part.dtype, (rows, cols), data, (Chunk(0, data.nbytes, context),))


def _write_safetensors(path: Path, parts: Sequence[Part]) -> None:
    """https://github.com/huggingface/safetensors#format, in the order of the parts."""
    header, offset = {}, 0
    for number, part in enumerate(parts):
        dtype = part.dtype if part.dtype != "C128" else "U8"  # safetensors lacks it
        shape = part.shape if part.dtype != "C128" else (part.data.nbytes,)
        end = offset + part.data.nbytes
        header[f"{number}.{part.name}"] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for part in parts:
            file.write(part.data.data)
