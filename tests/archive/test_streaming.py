"""What many tensors cost beside their decoding, and what happens when one of them, or the file, is not what it was."""

from __future__ import annotations

import dataclasses
import os
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import arzstream
from arzstream.archive import restore
from arzstream.archive.files import SPAN_BYTES, families, piece_starts, range_tasks, spans
from arzstream.archive.reader import Archive
from arzstream.container.directory import UnitEntry
from arzstream.container.records import Member, Reference, Unit
from arzstream.testing.tensors import Tensor, gaussian, safetensors_bytes

New = Callable[..., Any]


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Everything that is handed to a pool."""
    found: list[Any] = []
    real = ThreadPoolExecutor.submit

    def submit(self: ThreadPoolExecutor, function: Any, /, *arguments: Any, **keywords: Any) -> Any:
        found.append(function)
        return real(self, function, *arguments, **keywords)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit)
    return found


def small(count: int, elements: int = 500) -> list[Tensor]:
    rng = np.random.default_rng(5)
    return [Tensor(f"layers.{i}.w", "BF16", (elements,), gaussian((elements,), "BF16", rng)) for i in range(count)]


@pytest.mark.parametrize("elements", [500, 60_000])
def test_a_small_tensor_never_goes_through_the_pool(elements: int, built: New, submitted: list[Any]) -> None:
    tensors = small(60, elements)
    archive = built({b"m.safetensors": safetensors_bytes(tensors)}).archive(jobs=4)
    submitted.clear()
    for tensor in tensors:
        assert archive.numpy(tensor.name).tobytes() == tensor.data
    assert not submitted and archive.decoder._pool is None


def test_small_tensors_of_a_stream_go_through_the_pool_together(built: New, submitted: list[Any]) -> None:
    tensors = small(300, 5_000)
    archive = built({b"m.safetensors": safetensors_bytes(tensors)}).archive(jobs=4)
    submitted.clear()
    assert [(n, a.tobytes()) for n, a in archive.stream(framework="np")] == [(t.name, t.data) for t in tensors]
    assert 1 <= len(submitted) <= 4  # 3 MB


def test_a_large_tensor_occupies_its_caller_and_no_more_threads_than_jobs(built: New, submitted: list[Any]) -> None:
    elements = 5 << 20
    tensor = Tensor("w", "BF16", (elements,), gaussian((elements,), "BF16", np.random.default_rng(1)))
    archive = built({b"m.safetensors": safetensors_bytes([tensor])}, profile="fast").archive(jobs=3)
    submitted.clear()
    assert archive.numpy("w").tobytes() == tensor.data
    assert len(submitted) == 2


def damaged(archive: Archive, data: bytearray, name: str) -> None:
    """Flip a bit in the stored bytes of a tensor."""
    place = archive.catalog.find(name)
    row = archive.directory.chunk_table(place.entry.number)[-1]
    data[int(row["offset"]) + 128 + int(row["stored"]) // 2] ^= 4


def test_an_error_stays_with_the_tensor_it_belongs_to(built: New) -> None:
    tensors = small(40, 50_000)  # ten to a batch, each a unit of its own
    sink = built({b"m.safetensors": safetensors_bytes(tensors)})
    archive = sink.archive(jobs=2)
    damaged(archive, sink.data, "layers.7.w")
    got = []
    with pytest.raises(arzstream.CorruptError, match=r"tensor 'layers\.7\.w', chunk 0: .*checksum"):
        for name, array in archive.stream(framework="np"):
            got.append((name, array.tobytes()))
    assert got == [(t.name, t.data) for t in tensors[:7]]
    for tensor in tensors[8:]:
        assert archive.numpy(tensor.name).tobytes() == tensor.data


def test_after_an_error_in_one_chunk_nothing_writes_on(built: New) -> None:
    elements = 12 << 20
    data = gaussian((elements,), "BF16", np.random.default_rng(2))
    sink = built({b"m.safetensors": safetensors_bytes([Tensor("w", "BF16", (elements,), data)])}, profile="fast")
    archive = sink.archive(jobs=4)
    row = archive.directory.chunk_table(0)[1]
    sink.data[int(row["offset"]) + 500] ^= 1
    for _ in range(5):
        with pytest.raises(arzstream.CorruptError, match=r"tensor 'w', chunk 1"):
            archive.numpy("w")
    sink.data[int(row["offset"]) + 500] ^= 1
    assert archive.numpy("w").tobytes() == data
    archive.close()
    assert not any(thread.name.startswith("arz-decode") for thread in threading.enumerate())


@pytest.mark.parametrize("way", ["get_tensor", "stream", "unpack", "open_file", "verify"])
def test_a_file_that_is_cut_short_while_it_is_read_is_an_error_and_no_crash(way: str, tmp_path: Path) -> None:
    tensors = small(6, 1 << 20)
    (tmp_path / "m.safetensors").write_bytes(safetensors_bytes(tensors))
    arzstream.pack(tmp_path / "m.safetensors", tmp_path / "m.arz", profile="fast")
    with arzstream.open(tmp_path / "m.arz", jobs=2) as archive:
        assert archive.numpy(tensors[0].name).tobytes() == tensors[0].data
        os.truncate(tmp_path / "m.arz", os.path.getsize(tmp_path / "m.arz") // 2)
        with pytest.raises((arzstream.StorageError, arzstream.CorruptError), match=r"m\.arz"):
            if way == "get_tensor":
                for name in archive.keys():  # noqa: SIM118
                    archive.get_tensor(name)
            elif way == "stream":
                list(archive.stream())
            elif way == "unpack":
                arzstream.unpack(archive, tmp_path / "out")
            elif way == "open_file":
                archive.open_file("m.safetensors").read()
            else:
                arzstream.verify(tmp_path / "m.arz", deep=True)
        assert archive.numpy(tensors[0].name).tobytes() == tensors[0].data
    assert not (tmp_path / "out" / "m.safetensors").exists()


@pytest.mark.parametrize("parallel", [1, 4])
def test_a_file_falls_into_spans_that_share_no_chunk(
    parallel: int, built: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(4)
    shapes = {"matrix": (2100, 1024), "wide": (3, 1_100_000), "flat": (1, 3_000_001), "norm": (700,), "none": (0, 5)}
    tensors = [Tensor(name, "F16", shape, gaussian(shape, "F16", rng)) for name, shape in shapes.items()]
    data = safetensors_bytes([*tensors, *small(50)])
    sink = built({b"m.safetensors": data, b"x": b"", b"y": b"abc"}, tensor_parallel=parallel)
    archive = sink.archive(jobs=1)
    decoded: list[tuple[int, int]] = []
    real = archive.decoder.chunk_into

    def chunk_into(entry: UnitEntry, chunk: int, out: memoryview) -> None:
        decoded.append((entry.number, chunk))
        real(entry, chunk, out)

    cut: list[int] = []
    real_cut = archive.decoder._cut

    def record_cut(entry: UnitEntry, *arguments: Any) -> None:
        cut.append(len(entry.unit.members))
        real_cut(entry, *arguments)

    monkeypatch.setattr(archive.decoder, "chunk_into", chunk_into)
    monkeypatch.setattr(archive.decoder, "_cut", record_cut)
    for path, content in (("m.safetensors", data), ("x", b""), ("y", b"abc")):
        record = archive.catalog.files[path]
        parts = spans(archive.decoder, record)
        assert [0, *(end for _, end in parts)] == [*(start for start, _ in parts), len(content)]
        assert all(end - start <= max(SPAN_BYTES, 4 * parallel << 20) for start, end in parts)
        for start, end in parts:
            out = np.zeros(end - start, np.uint8)
            for task in range_tasks(archive.decoder, record, piece_starts(record), start, end, out):
                task()
            assert out.tobytes() == content[start:end]
    assert len(decoded) == len(set(decoded)) > 10, "no chunk is decoded twice"
    assert parallel > 1 or min(cut, default=2) > 1, "only chunks that tensors share are wanted in part"


@pytest.mark.parametrize("order", ["as they are numbered", "the other way", "any"])
def test_units_that_refer_to_one_another_are_of_one_family(order: str) -> None:
    """A long row of them in no longer time than it has to be, in whatever order an index lists them."""
    count = 50_000
    unit = Unit("U8", (0, 1), (1, 1), (Member(None, (0,)),))
    entries = []
    for number in range(count):
        refs = () if number in (0, 1, count // 2) else (Reference(0, number - 1, 0, 0),)
        entries.append(UnitEntry(number, dataclasses.replace(unit, refs=refs), (), 0, 0, 0, 0))
    if order == "the other way":
        entries.reverse()
    elif order == "any":
        random.Random(2).shuffle(entries)
    found = families(SimpleNamespace(units=entries))
    assert found == {number: 1 if number < count // 2 else count // 2 for number in range(1, count)}


def test_what_refers_to_what_is_found_out_once_for_all_files(
    built: New, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counted: list[Any] = []
    monkeypatch.setattr(restore, "families", lambda directory: counted.append(directory) or families(directory))
    archive = built({b"%d.bin" % number: b"x" * number for number in range(30)}).archive()
    assert len(arzstream.unpack(archive, tmp_path / "back")) == 30 and len(counted) == 1
