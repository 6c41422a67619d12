"""What is measured: the bytes of some files, as the units and chunks that ``pack`` would make of them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from arzstream.archive.filejob import FileJob, Source
from arzstream.archive.files import ArchivedFile
from arzstream.archive.plan import Planned, literal_unit
from arzstream.archive.reader import Archive
from arzstream.archive.reader import open as open_archive
from arzstream.archive.restore import unpack
from arzstream.archive.sharing import plan_units
from arzstream.archive.sources import collect, open_source
from arzstream.codec.base import ChunkContext
from arzstream.container.records import FileRecord, Kind, Unit
from arzstream.errors import StorageError
from arzstream.formats.companions import Companions
from arzstream.formats.detect import parser_for
from arzstream.kernels.memory import Results
from arzstream.store.address import shown
from arzstream.store.folders import is_archive_name
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
    """The sample for ``sources``: files, folders, archives (which count as the files in them), URLs of files.

    Of more than ``limit`` bytes, evenly spaced units are taken, and nothing else is read or decoded; archives of less
    are unpacked into ``folder``. Raises StorageError if there is nothing to measure, and what reading the sources
    raises.
    """
    archives = [source for source in sources if is_archive_name(source)]
    others = [source for source in sources if not is_archive_name(source)]
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(open_archive(source)) for source in archives]
        files = [*_collected(others), *(file for archive in opened for file in _archived(archive))]
        total = sum(file.size for file in files)
        if not total:
            raise StorageError(f"{shown(str(sources[0]))}: there is nothing in it to measure; name a file with weights")
        if total > limit or any(is_url(source) for source in others):
            return _spaced(files, limit, total, folder)
        for number, archive in enumerate(opened):
            unpack(archive, folder / f"unpacked-{number}")
    files = _collected([*others, *(str(folder / f"unpacked-{number}") for number in range(len(archives)))])
    parts = tuple(part for file in files for part in _parts(file))
    return Sample(parts, tuple(Path(os.fsdecode(file.where)) for file in files), folder, total)


def cut(sample: Sample, limit: int, folder: Path) -> Sample:
    """The beginning of evenly spaced parts of ``sample``, at most about ``limit`` bytes, as a file of its own."""
    chosen = _chosen([part.data.nbytes for part in sample.parts], limit)
    parts = [_shortened(sample.parts[k], most) for k, most in chosen.items()]
    return _written(parts, len(sample.parts), folder, sample.total)


@dataclasses.dataclass(frozen=True)
class _File:
    """One file that is measured, ``path`` in its folder or archive; ``where`` it lies, if not in an archive."""

    path: bytes
    size: int
    open: Callable[[], contextlib.AbstractContextManager[Source]]
    where: bytes | str = b""


def _collected(sources: Sequence[str]) -> list[_File]:
    entries = (entry for entry in collect(sources) if entry.kind == Kind.REGULAR)
    return [_File(e.path, e.size, functools.partial(open_source, e), e.where) for e in entries]


def _archived(archive: Archive) -> list[_File]:
    """The files of an archive, decoded where they are read."""
    records = [record for record in archive.catalog.files.values() if record.kind == Kind.REGULAR]
    return [_File(record.path, record.size, functools.partial(_Member, archive, record)) for record in records]


class _Member:
    """A file of an archive, as a source: nothing is decoded ahead."""

    def __init__(self, archive: Archive, record: FileRecord) -> None:
        self._stream, self.size = ArchivedFile(archive.decoder, record), record.size

    def read_at(self, offset: int, length: int) -> bytes:
        self._stream.seek(offset)
        return self._stream.read(length) or b""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.read_at(offset, len(buffer))

    def __enter__(self) -> _Member:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stream.close()


def _spaced(files: Sequence[_File], limit: int, total: int, folder: Path) -> Sample:
    """Units spread over all files. The plans are made first, so that only what is chosen is read."""
    plans = [(file, planned) for file in files for planned in _plan(file)]
    chosen = _chosen([planned.unit.nbytes for _, planned in plans], limit)
    parts = [_part(file, planned, chosen[k]) for k, (file, planned) in enumerate(plans) if k in chosen]
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


def _plan(file: _File) -> Iterator[Planned]:
    """The units of a file in the order in which ``pack`` codes them, its literal bytes last."""
    with file.open() as source:
        job = FileJob(file.path, source, parser_for(file.path, companions=Companions()))
        layout = job.look(source.size, final=True)
        by_layer = job.ready(layout, source.size, final=True)
        for _, units in plan_units(by_layer):
            yield from (planned for planned, _ in units)
        literals = job.literal_ranges(source.size)
    if literals:
        yield literal_unit(literals)


def _parts(file: _File) -> Iterator[Part]:
    for planned in _plan(file):
        if planned.unit.nbytes:
            yield _part(file, planned, None)


def _part(file: _File, planned: Planned, most: int | None) -> Part:
    """A unit, or evenly spaced chunks of it, of together at most about ``most`` bytes."""
    unit = planned.unit
    data = bytearray()
    chunks: list[Chunk] = []
    with file.open() as source:
        for k in _spread(unit, most):
            start, end, tile = *planned.chunk_range(k), unit.tile(k)
            read = planned.read(source.read_at, start, end)
            context = ChunkContext(unit.type, tile.row1 - tile.row0, tile.col1 - tile.col0)
            chunks.append(Chunk(len(data), len(data) + len(read), context))
            data += read
    names = [member.name for member in unit.members if member.name]
    name = names[0] if names else f"{file.path.decode('utf-8', 'replace')} (no tensor)"
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
