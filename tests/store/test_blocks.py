"""A cache of blocks gives what the store gave, or nothing; and it stays within its bound."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest

from arzstream.store import local
from arzstream.store.blocks import BLOCK_BYTES, BlockCache
from arzstream.store.objects import Version

SIZE = 5 * BLOCK_BYTES + 777
DATA = random.Random(0).randbytes(SIZE)
VERSION = Version(SIZE, '"one"')


class Store:
    def __init__(self):
        self.fetched: list[tuple[int, int]] = []

    def fetch(self, offset: int, out: memoryview) -> None:
        self.fetched.append((offset, len(out)))
        out[:] = DATA[offset : offset + len(out)]


@pytest.fixture
def store():
    return Store()


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def read(file, offset: int, length: int) -> bytes:
    out = bytearray(length)
    file.read_into(offset, memoryview(out))
    return bytes(out)


def test_any_range_is_right_and_fetched_once(tmp_path, store):
    rng = random.Random(1)
    file = BlockCache(tmp_path / "cache").file("s3://b/k", VERSION, store.fetch)
    for _ in range(40):
        offset = rng.randrange(SIZE)
        length = rng.randrange(min(3 * BLOCK_BYTES, SIZE - offset) + 1)
        assert read(file, offset, length) == DATA[offset : offset + length]
    assert read(file, 0, SIZE) == DATA
    assert sum(length for _, length in store.fetched) == SIZE
    again = BlockCache(tmp_path / "cache").file("s3://b/k", VERSION, store.fetch)
    count = len(store.fetched)
    assert read(again, 0, SIZE) == DATA and len(store.fetched) == count


def test_neighbours_that_are_missing_are_fetched_together(tmp_path, store):
    file = BlockCache(tmp_path).file("s3://b/k", VERSION, store.fetch)
    read(file, 2 * BLOCK_BYTES, 10)
    store.fetched.clear()
    assert read(file, 10, SIZE - 10) == DATA[10:]
    assert store.fetched == [(0, 2 * BLOCK_BYTES), (3 * BLOCK_BYTES, SIZE - 3 * BLOCK_BYTES)]


def test_another_version_or_another_address_is_another_file(tmp_path, store):
    cache = BlockCache(tmp_path)
    read(cache.file("s3://b/k", VERSION, store.fetch), 0, 10)
    for url, version in (("s3://b/k", Version(SIZE, '"two"')), ("s3://b/other", VERSION)):
        count = len(store.fetched)
        read(cache.file(url, version, store.fetch), 0, 10)
        assert len(store.fetched) == count + 1
    count = len(store.fetched)
    read(cache.file("s3://user:secret@b/k?signature=1", Version(SIZE, '"one"'), store.fetch), 0, 10)
    assert len(store.fetched) == count  # who asks, and with what signature, does not matter
    assert all("secret" not in str(path) for path in files(tmp_path))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_damaged_blocks_are_fetched_again(tmp_path, store, damage):
    file = BlockCache(tmp_path).file("s3://b/k", VERSION, store.fetch)
    read(file, 0, SIZE)
    for path in files(tmp_path):
        data = path.read_bytes()
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(
                {"flip": data[:5] + bytes([data[5] ^ 1]) + data[6:], "cut": data[:-9], "empty": b""}[damage]
            )
    assert read(file, 0, SIZE) == DATA
    assert sum(length for _, length in store.fetched) == 2 * SIZE


def test_forgotten_blocks_are_fetched_again(tmp_path, store):
    file = BlockCache(tmp_path).file("s3://b/k", VERSION, store.fetch)
    read(file, 0, SIZE)
    store.fetched.clear()
    file.forget(BLOCK_BYTES - 1, BLOCK_BYTES + 1)
    assert read(file, 0, SIZE) == DATA
    assert store.fetched == [(0, 2 * BLOCK_BYTES)]


def test_it_stays_within_its_bound_and_keeps_what_was_used_last(tmp_path, store):
    most = 4 * (BLOCK_BYTES + 100)
    cache = BlockCache(tmp_path, most)
    for number in range(10):
        read(cache.file(f"s3://b/{number}", VERSION, store.fetch), 0, BLOCK_BYTES)
        for path in files(tmp_path):
            os.utime(path, (path.stat().st_mtime - 100,) * 2)
    assert sum(path.stat().st_size for path in files(tmp_path)) <= most
    count = len(store.fetched)
    read(cache.file("s3://b/9", VERSION, store.fetch), 0, 10)
    assert len(store.fetched) == count


def test_a_disk_that_takes_nothing_is_no_reason_not_to_read(tmp_path, store, monkeypatch):
    file = BlockCache(tmp_path).file("s3://b/k", VERSION, store.fetch)

    def full(doing, path, function, *arguments, **keywords):
        from arzstream.errors import StorageError

        raise StorageError("full")

    monkeypatch.setattr(local, "_call", full)
    assert read(file, 0, SIZE) == DATA
    assert files(tmp_path) == []


def test_many_threads_at_once(tmp_path, store):
    file = BlockCache(tmp_path).file("s3://b/k", VERSION, store.fetch)
    wrong: list[int] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(20):
            offset = rng.randrange(SIZE - 1)
            length = rng.randrange(min(BLOCK_BYTES, SIZE - offset))
            if read(file, offset, length) != DATA[offset : offset + length]:
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not [path for path in files(tmp_path) if path.name.startswith(".arz-tmp-")]
