"""Following an archive while another thread writes it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import arzstream
from arzstream.archive.builder import CheckpointBuilder
from arzstream.errors import StorageError
from arzstream.store import local
from arzstream.testing.tensors import Tensor, safetensors_bytes

LAYERS = 6


def tensors(seed: int = 0) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    return [Tensor(f"layers.{i}.w", "F32", (300, 100), rng.bytes(120_000)) for i in range(LAYERS)]


class Dribble:
    """Writes into a file in small pieces, so that a reader meets every kind of unfinished frame."""

    def __init__(self, sink: Any) -> None:
        self._sink = sink

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        for start in range(0, len(view), 50_001):
            self._sink.write(view[start : start + 50_001])
            time.sleep(0.001)


def write_slowly(path: Path, source: Any, data: bytes, *, seal: bool = True) -> None:
    sink = local.LocalSink(path)
    with CheckpointBuilder(Dribble(sink)) as builder:
        job = builder.add_file(b"m.safetensors", source)
        start = len(data) - LAYERS * 120_000
        for layer in range(1, LAYERS + 1):
            builder.update(job, start + layer * 120_000)
            time.sleep(0.05)
        if seal:
            builder.finish(job, size=len(data), mode=0o644, mtime=0)
            builder.seal()
    sink.close()


def opened_soon(path: Path) -> arzstream.Archive:
    for _ in range(500):
        try:
            return arzstream.open(path)
        except arzstream.ArzError:
            time.sleep(0.01)
    raise AssertionError("it never opened")


def test_layers_come_as_they_are_committed_until_the_archive_is_sealed(tmp_path: Path, new_source: Any) -> None:
    wanted, path = tensors(), tmp_path / "x.arz"
    data = safetensors_bytes(wanted)
    writer = threading.Thread(target=write_slowly, args=(path, new_source(data), data))
    writer.start()
    seen: list[str] = []
    before_the_end = 0
    try:
        with opened_soon(path) as archive:
            for layer, names in archive.follow(timeout=20):
                assert names == [f"{layer}.w"]
                for name in names:
                    assert archive.numpy(name).tobytes() == next(t.data for t in wanted if t.name == name)
                seen += names
                before_the_end += writer.is_alive()
            assert archive.sealed and archive.read_file("m.safetensors") == data
            assert dict(archive.follow()) == archive.layers()
    finally:
        writer.join()
    assert seen == [t.name for t in wanted]
    assert before_the_end >= 3


def test_a_writer_that_stopped_is_reported(tmp_path: Path, new_source: Any) -> None:
    data = safetensors_bytes(tensors())
    write_slowly(tmp_path / "x.arz", new_source(data), data, seal=False)
    with arzstream.open(tmp_path / "x.arz") as archive:
        found: list[str] = []
        with pytest.raises(StorageError, match=r"x\.arz: nothing was added for 0\.2 s"):
            for _, names in archive.follow(timeout=0.2):
                found += names
    assert len(found) == LAYERS
    with open(tmp_path / "x.arz", "ab") as file:
        file.write(b"half a header")
    with arzstream.open(tmp_path / "x.arz") as archive, pytest.raises(StorageError, match="truncated"):
        list(archive.follow(timeout=0.2))
    with open(tmp_path / "x.arz", "ab") as file:
        file.write(b"and more than a trailer" * 30)
    with arzstream.open(tmp_path / "x.arz") as archive, pytest.raises(StorageError, match="does not begin"):
        list(archive.follow(timeout=0.2))


def test_a_sealed_archive_is_followed_at_once(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(safetensors_bytes(tensors()))
    arzstream.pack(tmp_path / "m.safetensors", tmp_path / "x.arz")
    with arzstream.open(tmp_path / "x.arz") as archive:
        assert [layer for layer, _ in archive.follow(timeout=0)] == [f"layers.{i}" for i in range(LAYERS)]
