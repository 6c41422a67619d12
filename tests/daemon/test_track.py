"""What is known of one checkpoint, and what it costs to know it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from arzstream.daemon.census import Census
from arzstream.daemon.journal import Entry
from arzstream.daemon.track import Track
from arzstream.formats.checkpoint import Past


def _followed(source: Path, *names: str, keep_open: int = 16) -> Track:
    for name in names:
        (source / "checkpoint-1" / name).parent.mkdir(parents=True, exist_ok=True)
        (source / "checkpoint-1" / name).write_bytes(b"x")
    census = Census(str(source), str(source / "dest"))
    track = Track(census, Entry(b"checkpoint-1"), keep_open=keep_open)
    track.update(census.one(b"checkpoint-1"), (time.monotonic(), time.time()), trusted=True)
    return track


@pytest.mark.parametrize(
    ("hint", "closed"),
    [
        ("checkpoint-1/a.bin", ["a.bin"]),
        ("checkpoint-1/d", ["d/a.bin", "d/e/b.bin"]),
        ("checkpoint-1", ["a.bin", "d/a.bin", "d/e/b.bin", "d.bin"]),
        ("checkpoint-1/d/e/c.bin", []),
    ],
)
def test_a_hint_closes_a_file_or_all_that_is_in_a_folder(tmp_path: Path, hint: str, closed: list[str]) -> None:
    names = ["a.bin", "d/a.bin", "d/e/b.bin", "d.bin"]
    track = _followed(tmp_path, *names)
    track.note_closed(hint.encode())
    assert [name for name in names if track.settle.is_closed(f"checkpoint-1/{name}".encode())] == closed


@pytest.mark.parametrize("keep_open", [0, 1, 16])
def test_some_files_are_kept_open_and_all_are_seen_to_grow(tmp_path: Path, keep_open: int) -> None:
    track = _followed(tmp_path, "a.bin", "b.bin", "c.bin", keep_open=keep_open)
    track.open_files()
    assert sum(watched.file.keep for watched in track.watched.values()) == min(3, keep_open)
    for size in (1, 100):
        for path in track.watched:
            (tmp_path / path.decode()).write_bytes(b"x" * size)
        now = (time.monotonic(), time.time())
        track.update(Census(str(tmp_path), "").one(b"checkpoint-1"), now, trusted=True)
        track.judge(now[0], None, Past())
        assert set(track.frontiers()[1].values()) == {size}
    track.close()


def _seconds_to_follow(source: Path, count: int) -> float:
    """Processor time for the first look at a checkpoint of so many small files, and for as many hints."""
    folder = source / "checkpoint-1"
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:032x}").write_bytes(b"x")
    (folder / "_CHECKPOINT_METADATA").write_text("{}")
    census = Census(str(source), str(source / "dest"))
    track = Track(census, Entry(b"checkpoint-1"), keep_open=16)
    items = census.one(b"checkpoint-1")
    start = time.process_time()
    track.update(items, (time.monotonic(), time.time()), trusted=True)
    track.open_files()
    track.judge(time.monotonic(), None, Past())
    for path in items:
        track.note_closed(path)
    taken = time.process_time() - start
    assert len(track.watched) == count + 1 and all(map(track.settle.is_closed, items))
    track.close()
    return taken


@pytest.mark.alone
def test_the_time_for_a_look_grows_as_the_number_of_files_does(tmp_path: Path) -> None:
    few, many = (_seconds_to_follow(tmp_path / str(count), count) for count in (1_000, 8_000))
    assert many < 20 * few
