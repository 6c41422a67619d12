"""What is remembered of an upload: held by one process, and worth what is left of it."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from arzstream.store.notes import Started, UploadNotes, notes_in

STARTED = Started(".arz-tmp-x.arz-0123456789ab", "upload-7", 9 << 20)


def claimed(path: Path) -> UploadNotes:
    notes = UploadNotes.claim(str(path))
    assert notes is not None
    return notes


def test_what_was_noted_is_there_for_the_next_process(tmp_path: Path) -> None:
    notes = claimed(tmp_path / "a")
    assert notes.started is None
    notes.begin(STARTED, file_id="00ff")
    notes.add(["model", 5])
    notes.set(parent="step-1.arz")
    notes.add(["model", 9])
    notes.keep()
    again = claimed(tmp_path / "a")
    assert again.started == STARTED and not again.old
    assert again.facts["file_id"] == "00ff" and again.facts["parent"] == "step-1.arz"
    assert again.steps == [["model", 5], ["model", 9]]
    again.cut(1)
    again.add(["other", 1])
    again.keep()
    assert claimed(tmp_path / "a").steps == [["model", 5], ["other", 1]]


def test_an_upload_of_which_less_is_noted_has_parts_that_grow(tmp_path: Path) -> None:
    notes = claimed(tmp_path / "a")
    for steady in ({}, {"steady": None}, {"steady": "8"}):
        notes.facts = {"name": STARTED.name, "upload": STARTED.upload, **steady}
        assert notes.started == STARTED._replace(steady=0)


def test_only_one_process_holds_them_and_only_the_owner_can_read_them(tmp_path: Path) -> None:
    notes = claimed(tmp_path / "uploads" / "a")
    assert UploadNotes.claim(str(tmp_path / "uploads" / "a")) is None
    assert list(notes_in(str(tmp_path / "uploads"))) == []
    assert stat.S_IMODE(os.stat(notes.path).st_mode) == 0o600
    notes.remove()
    assert not os.path.exists(notes.path)
    assert claimed(tmp_path / "uploads" / "a").started is None


def test_whoever_waited_for_notes_that_were_removed_gets_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that was locked is not the one that has the name."""
    from arzstream.store.lock import FileLock

    holder, acquire = claimed(tmp_path / "a"), FileLock.acquire
    holder.begin(STARTED)
    holder.keep()

    def late(lock: FileLock) -> bool:
        taken = acquire(lock)
        if os.path.exists(tmp_path / "a") and os.path.getsize(tmp_path / "a"):
            os.unlink(tmp_path / "a")
        return taken

    monkeypatch.setattr(FileLock, "acquire", late)
    notes = claimed(tmp_path / "a")
    assert notes.started is None
    assert os.path.samestat(os.stat(tmp_path / "a"), os.fstat(notes._lock.fileno()))


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_line_that_was_cut_off_is_not_there_and_the_next_is_whole(tmp_path: Path, cut: int) -> None:
    notes = claimed(tmp_path / "a")
    notes.begin(STARTED)
    notes.add(["model", 5])
    notes.keep()
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(data[:-cut])
    again = claimed(tmp_path / "a")
    assert again.steps == [] and (again.started == STARTED or cut > len('{"step": ["model", 5]}\n'))
    again.add(["model", 6])
    again.keep()
    assert claimed(tmp_path / "a").steps == [["model", 6]]


@pytest.mark.parametrize(
    "data", [b"\0\0\0\n", b"[]\n", b'{"facts": 3}\n', b'{"facts": {"name": 3, "upload": ""}}\n', b"\xff\n"]
)
def test_notes_that_make_no_sense_say_nothing(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    notes = claimed(tmp_path / "a")
    assert notes.started is None and notes.steps == [] and notes.old


def test_notes_grow_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = claimed(tmp_path / "a")
    notes.begin(STARTED)
    now = time.time()
    for days, old in ((6.9, False), (7.1, True), (-1.0, True)):
        monkeypatch.setattr(time, "time", lambda days=days: now + days * 86400)
        assert notes.old == old
