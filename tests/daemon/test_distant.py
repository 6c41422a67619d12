"""A source of many objects: what is held of them does not grow with their number."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Iterator

import fsspec
import numpy as np
import pytest

from arzstream.daemon import distant
from arzstream.daemon.distant import DistantCensus, DistantFile
from arzstream.daemon.kept import Kept

OBJECTS, OBJECT_BYTES = 40, 1 << 20
URL = "memory://many"


@pytest.fixture(scope="module")
def content() -> Iterator[bytes]:
    """Of each object below ``URL``."""
    data = np.random.default_rng(7).bytes(OBJECT_BYTES)
    store = fsspec.filesystem("memory")
    for number in range(OBJECTS):
        store.pipe_file(f"/many/step-1/model-{number:05d}.safetensors", data)
    yield data
    store.rm("/many", recursive=True)


def opened() -> list[DistantFile]:
    census = DistantCensus(URL, "/nowhere")
    (items,), unreadable = census.everything()[0].values(), census.everything()[1]
    assert len(items) == OBJECTS and not unreadable
    return [census.open_file(path, keep=True) for path in items]  # type: ignore[misc]


def fetchers() -> int:
    return sum(thread.name.startswith("arz-fetch") for thread in threading.enumerate())


def test_what_is_kept_of_objects_is_bounded_for_all_of_them(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distant, "KEPT_BYTES", 8 << 20)
    files = opened()
    tracemalloc.start()
    try:
        for file in files:
            assert file.read_at(5, 1000) == content[5:1005]
            assert file.read_at(file.size - 1000, 1000) == content[-1000:]
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 8 << 20 <= held < 10 << 20
    for file in files:
        file.close()


def test_nothing_fetches_ahead_when_nothing_is_announced(content: bytes) -> None:
    before, files = fetchers(), opened()
    for file in files:
        for _ in range(2):  # again, after the threads of the first time have gone
            with file.announced(0, file.size), file.announced(0, file.size // 2):
                assert file.read_at(0, file.size) == content
                assert fetchers() > before
    for _ in range(1000):
        if fetchers() == before:
            break
        threading.Event().wait(0.01)
    assert fetchers() == before
    assert all(file.read_at(17, 100) == content[17:117] for file in files)
    for file in files:
        file.close()


def test_of_kept_blocks_those_go_that_were_used_longest_ago_and_none_by_reading_through_another() -> None:
    kept = Kept(100, 3)
    for number in range(10):
        kept.put("large", number, bytes(20))
    assert [kept.take("large", number) is not None for number in range(10)] == [False] * 7 + [True] * 3
    kept.put("small", 0, bytes(40))
    assert kept.nbytes == 100 and kept.take("large", 7) == bytes(20)
    kept.put("other", 0, bytes(20))
    assert kept.take("large", 8) is None and kept.take("large", 7) is not None and kept.take("small", 0) is not None
    kept.put("other", 0, bytes(10))
    assert kept.nbytes == 90
    kept.forget("large")
    kept.forget("nobody")
    assert kept.nbytes == 50 and kept.take("large", 9) is None
    kept.put("huge", 0, bytes(200))  # what is being read is kept all the same
    assert kept.nbytes == 200 and kept.take("huge", 0) is not None
