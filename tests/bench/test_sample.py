"""The sample is the files' bytes, cut as ``pack`` cuts them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import arzstream
from arzstream.archive.decoding import Decoder
from arzstream.bench.sample import Part, cut, load
from arzstream.container.directory import UnitEntry
from arzstream.errors import StorageError


def chunked(part: Part) -> bool:
    """Do the chunks partition the part, with contexts of their lengths?"""
    ends = [0, *(chunk.end for chunk in part.chunks)]
    starts = [chunk.start for chunk in part.chunks]
    sizes = [c.context.rows * c.context.cols * c.context.dtype.itemsize for c in part.chunks]
    return starts == ends[:-1] and ends[-1] == part.data.nbytes and sizes == [c.end - c.start for c in part.chunks]


def test_a_sample_without_limit_holds_every_byte_of_the_file_once(weights: Path, tmp_path: Path) -> None:
    sample = load([str(weights)], 1 << 30, tmp_path)
    assert sample.nbytes == sample.total == weights.stat().st_size
    assert sample.note == ""
    assert sample.tensors_file == weights
    assert all(map(chunked, sample.parts))
    held = b"".join(part.data.tobytes() for part in sample.parts)
    assert sorted(held) == sorted(weights.read_bytes())


def test_the_chunks_are_those_of_the_archive(weights: Path, tmp_path: Path) -> None:
    sample = load([str(weights)], 1 << 30, tmp_path)
    arzstream.pack(str(weights), str(tmp_path / "x.arz"))
    with arzstream.open(tmp_path / "x.arz") as archive:
        units = [entry.unit for entry in archive.directory.units]
    shapes = sorted((u.dtype, u.shape, u.chunk_count) for u in units)
    # The header of the file is a unit of its own here, and inside a shared one there.
    assert sorted((p.dtype, p.shape, len(p.chunks)) for p in sample.parts) == shapes


def test_of_large_input_pieces_of_many_tensors_are_taken_and_named(weights: Path, tmp_path: Path) -> None:
    sample = load([str(weights)], 1 << 20, tmp_path)
    assert 0.2 * (1 << 20) < sample.nbytes <= 3 << 20
    assert sample.total == weights.stat().st_size
    assert "pieces of" in sample.note
    assert all(map(chunked, sample.parts))
    whole = {part.name: part.data.tobytes() for part in load([str(weights)], 1 << 30, tmp_path).parts}
    assert all(part.data.tobytes() in whole[part.name] for part in sample.parts if len(part.chunks) == 1)


@pytest.mark.parametrize("limit", [100, 4096, 100_000, 1_000_000])
def test_a_cut_sample_is_a_valid_safetensors_file_of_its_parts(weights: Path, tmp_path: Path, limit: int) -> None:
    small = cut(load([str(weights)], 1 << 30, tmp_path), limit, tmp_path / "cut")
    assert 0 < small.nbytes <= max(2 * limit, 1024)
    assert all(map(chunked, small.parts))
    layout = load([str(small.paths[0])], 1 << 30, tmp_path)
    assert sum(part.data.nbytes for part in layout.parts if part.dtype != "U8") == sum(
        part.data.nbytes for part in small.parts if part.dtype != "U8"
    )


def test_an_archive_is_measured_as_the_files_in_it(weights: Path, tmp_path: Path) -> None:
    arzstream.pack(str(weights), str(tmp_path / "x.arz"))
    sample = load([str(tmp_path / "x.arz")], 1 << 30, tmp_path)
    assert sample.nbytes == weights.stat().st_size


def test_of_a_large_archive_only_the_sample_is_decoded(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    chunk_into = Decoder.chunk_into

    def counted(self: Decoder, entry: UnitEntry, chunk: int, out: memoryview) -> None:
        decoded.append(len(out))
        chunk_into(self, entry, chunk, out)

    monkeypatch.setattr(Decoder, "chunk_into", counted)
    (tmp_path / "many").mkdir()
    data = np.fromfile(weights, np.uint8)
    for number in range(4):
        data[-3_000_000:] ^= number  # no two are the same
        (tmp_path / "many" / f"{number}.safetensors").write_bytes(data.tobytes())
    arzstream.pack([str(tmp_path / "many")], str(tmp_path / "x.arz"))
    decoded.clear()
    limit, total = 1 << 18, 4 * weights.stat().st_size
    sample = load([str(tmp_path / "x.arz")], limit, tmp_path / "scratch")
    of_files = load([str(tmp_path / "many")], limit, tmp_path / "files")
    assert [(p.name, p.data.tobytes(), p.chunks) for p in sample.parts] == [
        (p.name, p.data.tobytes(), p.chunks) for p in of_files.parts
    ]
    assert (sample.total, sample.note) == (total, of_files.note)
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["sample.safetensors"]
    assert 0 < sum(decoded) < total / 3


def test_nothing_to_measure_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(StorageError, match="nothing in it to measure"):
        load([str(tmp_path / "empty")], 1 << 30, tmp_path)


def test_data_is_read_only(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        load([str(weights)], 1 << 30, tmp_path).parts[0].data[:] = np.uint8(0)
