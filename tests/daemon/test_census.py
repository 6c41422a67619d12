"""What is seen in a folder, and when it has come to rest."""

from __future__ import annotations

import os

import pytest

from arzstream.daemon.census import Census
from arzstream.daemon.scan import Identity, Kind, fingerprint, scan
from arzstream.daemon.settle import Clock, Settle
from arzstream.errors import StorageError


def _make(root, *names):
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode())


@pytest.fixture
def census(tmp_path):
    (tmp_path / "s" / "archive").mkdir(parents=True)
    return Census(str(tmp_path / "s"), str(tmp_path / "s" / "archive"))


def test_folders_empty_ones_too_go_with_their_checkpoint(census, tmp_path):
    _make(tmp_path / "s", "runs/checkpoint-1/model.safetensors", "runs/checkpoint-1/a/b/x.json", "runs/checkpoint-1/e/")
    _make(tmp_path / "s", "runs/checkpoint-2/model.safetensors", "runs/log.txt", "alone.safetensors", "nothing/")
    groups, unreadable = census.everything()
    assert unreadable == {}
    assert {key: sorted(items) for key, items in groups.items()} == {
        b"alone.safetensors": [b"alone.safetensors"],
        b"runs/checkpoint-1": [
            b"runs/checkpoint-1/" + name for name in (b"a", b"a/b", b"a/b/x.json", b"e", b"model.safetensors")
        ],
        b"runs/checkpoint-2": [b"runs/checkpoint-2/model.safetensors"],
    }
    for key, items in groups.items():
        assert census.one(key) == items
    assert census.one(b"runs/checkpoint-3") == {} and census.one(b"gone.pt") == {}


def test_what_the_program_writes_itself_is_not_a_source(census, tmp_path):
    _make(tmp_path / "s", "archive/checkpoint-1.arz", "archive/checkpoint-7/model.safetensors")
    _make(tmp_path / "s", "checkpoint-1/model.pt", "checkpoint-1/.arz-tmp-x.arz-000000000000", ".arzstream/model.pt")
    groups, _ = census.everything()
    assert {key: list(items) for key, items in groups.items()} == {b"checkpoint-1": [b"checkpoint-1/model.pt"]}


def test_temporary_folders_are_followed_but_not_inside_checkpoints(census, tmp_path):
    _make(tmp_path / "s", "tmp-checkpoint-3/model.pt", "checkpoint-1/model.pt", "checkpoint-1/x.tmp/half.pt")
    _make(tmp_path / "s", "4.orbax-checkpoint-tmp-99/model.pt")
    groups, _ = census.everything()
    assert sorted(groups) == [b"4.orbax-checkpoint-tmp-99", b"checkpoint-1", b"tmp-checkpoint-3"]
    assert b"checkpoint-1/x.tmp/half.pt" not in groups[b"checkpoint-1"]


def test_links_and_fifos_are_seen_for_what_they_are(tmp_path):
    _make(tmp_path, "a/x")
    os.mkfifo(tmp_path / "a/fifo")
    os.symlink("x", tmp_path / "a/link")
    os.symlink("..", tmp_path / "a/up")
    items = scan(os.fsencode(tmp_path)).items
    assert {path: item.kind for path, item in items.items()} == {
        b"a": Kind.FOLDER, b"a/x": Kind.FILE, b"a/fifo": Kind.OTHER, b"a/link": Kind.LINK, b"a/up": Kind.LINK,
    }  # fmt: skip
    with pytest.raises(StorageError):
        scan(os.fsencode(tmp_path), b"nothing")


def test_unchanged_notices_new_replaced_and_retargeted_names_only(census, tmp_path):
    folder = tmp_path / "s/checkpoint-1"
    _make(tmp_path / "s", "checkpoint-1/model.pt", "checkpoint-1/b.json")
    os.symlink("b.json", folder / "link")
    before = census.one(b"checkpoint-1")

    def same():
        return census.unchanged(b"checkpoint-1", before)

    assert same()
    _make(tmp_path / "s", "checkpoint-1/new/")
    assert same()
    _make(tmp_path / "s", "checkpoint-1/c.json")
    assert not same()
    (folder / "c.json").unlink()
    with open(folder / "b.json", "rb"):  # held open, as the daemon does, or its inode could be given out again
        (folder / "b.json").unlink()
        assert same()
        _make(tmp_path / "s", "checkpoint-1/b.json")
        assert not same()
    (folder / "b.json").unlink()
    (folder / "link").unlink()
    os.symlink("model.pt", folder / "link")
    assert not same()
    (folder / "link").unlink()
    (folder / "model.pt").unlink()
    assert same()


def test_fingerprints_tell_any_change_of_a_file(tmp_path):
    _make(tmp_path, "a", "b/")
    first = fingerprint(scan(os.fsencode(tmp_path)).items)
    _make(tmp_path, "b/c/")
    assert fingerprint(scan(os.fsencode(tmp_path), b"b").items) != first
    os.rmdir(tmp_path / "b/c")
    assert fingerprint(scan(os.fsencode(tmp_path)).items) == first  # a folder's times mean little
    os.chmod(tmp_path / "a", 0o600)
    assert fingerprint(scan(os.fsencode(tmp_path)).items) != first


ONE, TWO = Identity(1, 1, 10, 5 * 10**9, 5 * 10**9), Identity(1, 1, 20, 6 * 10**9, 6 * 10**9)


def test_old_files_need_not_be_waited_for_unless_the_clock_is_wrong():
    settle = Settle()
    settle.look({b"a": ONE}, (100.0, 1005.0), trusted=True)
    assert settle.quiet(b"a", 100.0) == 1000.0
    settle = Settle()
    settle.look({b"a": ONE}, (100.0, 1005.0), trusted=False)
    assert settle.quiet(b"a", 101.0) == 1.0
    settle = Settle()
    settle.look({b"a": ONE}, (100.0, 1.0), trusted=True)  # from the future
    assert settle.quiet(b"a", 100.5) == 0.5


def test_files_that_appear_later_are_new_whatever_their_times_say():
    settle = Settle()
    settle.look({}, (100.0, 1005.0), trusted=True)
    settle.look({b"a": ONE}, (101.0, 1006.0), trusted=True)
    assert settle.quiet(b"a", 101.5) == 0.5


def test_closed_means_closed_as_it_is_now():
    settle = Settle()
    settle.look({b"a": ONE}, (100.0, 5.0), trusted=True)
    settle.closed(b"a", TWO)  # the event came before the look that shows the last change
    assert not settle.is_closed(b"a")
    assert settle.look({b"a": TWO}, (101.0, 6.0), trusted=True)
    assert settle.is_closed(b"a") and settle.quiet(b"a", 101.25) == 0.25
    settle.look({b"a": TWO._replace(ctime_ns=7)}, (102.0, 7.0), trusted=True)  # a rename or chmod
    assert settle.is_closed(b"a") and settle.quiet(b"a", 102.0) == 1.0
    settle.look({b"a": TWO._replace(mtime_ns=7)}, (103.0, 8.0), trusted=True)
    assert not settle.is_closed(b"a")
    settle.renamed(b"a", b"b")
    assert settle.quiet(b"b", 104.0) == 1.0 and not settle.is_closed(b"a")


def test_a_clock_that_was_set_is_not_trusted(monkeypatch):
    clock = Clock()
    assert clock.trusted
    clock.now()
    assert clock.trusted
    import time

    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)
    clock.now()
    assert not clock.trusted
