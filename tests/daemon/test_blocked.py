"""Faults stop only what they touch, are named in one line, and what they stopped goes on when they are gone."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

import arzstream
from arzstream.daemon import census, draft, roster, source, work
from arzstream.daemon.source import SourceError
from arzstream.daemon.states import Reason, State, backoff, problem_of
from arzstream.daemon.track import Track
from arzstream.errors import CorruptError, StorageError
from arzstream.store import local
from arzstream.store.ranges import LocalReader
from arzstream.testing import process, tensors

from .conftest import Running, temporaries

SMALL = tensors.safetensors_bytes(tensors.model(layers=1, width=64, vocabulary=64))
LARGE = tensors.safetensors_bytes(tensors.model(layers=8, width=256, vocabulary=2048))


def _checkpoint(folder: Path, data: bytes = SMALL) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(data)
    return folder


@pytest.fixture
def little_disk(tmp_path):
    """A file system of 4 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip("impossible here: mounting a file system needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_blocks_and_space_unblocks(places, little_disk):
    source_folder, _ = places
    (little_disk / "ballast").write_bytes(os.urandom(3 << 20))
    _checkpoint(source_folder / "checkpoint-1", LARGE)
    with Running(source_folder, little_disk / "dest") as daemon:
        entry = daemon.state("checkpoint-1", "blocked")
        assert entry.reason.startswith("disk full") and "free" in entry.waiting and entry.retry > 0
        assert temporaries(little_disk) == []
        _checkpoint(source_folder / "checkpoint-2")
        daemon.published("checkpoint-2.arz")  # what fits goes on
        (little_disk / "ballast").unlink()
        (little_disk / "dest" / "more").unlink(missing_ok=True)
        subprocess.run(["mount", "-o", "remount,size=64m", str(little_disk)], check=True)
        archive = daemon.published("checkpoint-1.arz")
        daemon.state("checkpoint-1", "published")
    arzstream.verify(str(archive), against=str(source_folder / "checkpoint-1"))


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])
def test_what_cannot_be_read_blocks_itself_only(running, places, monkeypatch, code):
    source_folder, _ = places
    faulty = {"on": True}
    read_at = source.SourceFile.read_at

    def failing(self, offset, length):
        if faulty["on"] and b"checkpoint-1" in self.path:
            raise SourceError(f"{self.name}: cannot read it: {os.strerror(code)}", errno=code)
        return read_at(self, offset, length)

    monkeypatch.setattr(source.SourceFile, "read_at", failing)
    daemon = running()
    for number in (1, 2):
        _checkpoint(source_folder / f"checkpoint-{number}")
    daemon.published("checkpoint-2.arz")
    entry = daemon.state("checkpoint-1", "blocked")
    assert entry.reason.startswith("permission" if code == errno.EACCES else "unreadable")
    assert "model.safetensors" in entry.reason or "config.json" in entry.reason
    faulty["on"] = False
    daemon.published("checkpoint-1.arz")


def test_a_folder_that_cannot_be_looked_into_blocks_itself_only(running, places, monkeypatch):
    source_folder, _ = places
    locked = {b"private": True}
    scandir = os.scandir

    def refusing(path):
        if locked.get(os.path.basename(os.fsencode(path))):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(census.scan.__globals__["os"], "scandir", refusing)
    _checkpoint(source_folder / "checkpoint-1")
    _checkpoint(source_folder / "private" / "checkpoint-2")
    daemon = running()
    daemon.published("checkpoint-1.arz")
    assert "private" in daemon.state("private", "blocked").reason
    locked.clear()
    daemon.published("private/checkpoint-2.arz")
    daemon.until(lambda: b"private" not in daemon.entries(), "the folder to be forgotten")


@pytest.mark.parametrize(
    "call", ["create it", "write", "write it safely to the disk (fsync)", "publish it", "close it"]
)
def test_whatever_fails_in_the_destination_is_tried_again(running, places, monkeypatch, call):
    source_folder, dest = places
    real, left = local._call, [1]

    def failing(doing, path, function, *arguments, **keywords):
        ours = local.is_temporary(os.path.basename(os.fsdecode(path or ""))) or doing == "publish it"
        if doing == call and ours and left[0]:
            left[0] -= 1
            if doing == "close it":
                function(*arguments, **keywords)
            raise StorageError(f"{path}: cannot {doing}: made up", errno=errno.EIO)
        return real(doing, path, function, *arguments, **keywords)

    monkeypatch.setattr(local, "_call", failing)
    daemon = running()
    _checkpoint(source_folder / "checkpoint-1")
    archive = daemon.published("checkpoint-1.arz")
    daemon.state("checkpoint-1", "published")
    assert left == [0] and temporaries(dest) == []
    arzstream.verify(str(archive), against=str(source_folder / "checkpoint-1"))


def test_an_archive_that_does_not_prove_is_never_seen(running, places, monkeypatch):
    source_folder, dest = places
    left = [1]
    real = draft.publish.check

    def failing(reader, expected, replay):
        if left[0]:
            left[0] -= 1
            raise CorruptError(f"{reader.name}: made up")
        real(reader, expected, replay)

    monkeypatch.setattr(draft.publish, "check", failing)
    daemon = running()
    _checkpoint(source_folder / "checkpoint-1")
    entry = daemon.state("checkpoint-1", "blocked")
    assert entry.reason.startswith("mismatch") and not list(dest.glob("*.arz"))
    daemon.published("checkpoint-1.arz")


def test_a_mistake_in_the_program_blocks_one_checkpoint_and_is_reported(running, places, monkeypatch):
    source_folder, _ = places
    real = work.Job._settle

    def mistaken(self, builder, order):
        if self.path == b"checkpoint-1":
            raise KeyError("made up")
        real(self, builder, order)

    monkeypatch.setattr(work.Job, "_settle", mistaken)
    daemon = running()
    for number in (1, 2):
        _checkpoint(source_folder / f"checkpoint-{number}")
    daemon.published("checkpoint-2.arz")
    assert "report" in daemon.state("checkpoint-1", "blocked").reason


def test_a_source_that_vanishes_and_comes_back(running, places, tmp_path):
    source_folder, dest = places
    daemon = running()
    _checkpoint(source_folder / "checkpoint-1")
    daemon.published("checkpoint-1.arz")
    daemon.state("checkpoint-1", "published")
    source_folder.rename(tmp_path / "elsewhere")
    daemon.until(lambda: daemon.supervisor.totals()["problems"], "the loss to be noticed")
    (tmp_path / "elsewhere").rename(source_folder)
    daemon.until(lambda: not daemon.supervisor.totals()["problems"], "the return to be noticed")
    _checkpoint(source_folder / "checkpoint-2")
    daemon.published("checkpoint-2.arz")
    assert process.leftovers(dest, ["checkpoint-1.arz", "checkpoint-2.arz"]) == []


def test_waiting_grows_and_ends():
    assert [backoff(n) for n in (1, 2, 3, 4)] == [1, 2, 4, 8] and backoff(10**6) == 300


@pytest.mark.parametrize(
    ("error", "in_source", "reason"),
    [
        (StorageError("x", errno=errno.ENOSPC), False, Reason.DISK_FULL),
        (StorageError("x", errno=errno.EACCES), True, Reason.PERMISSION),
        (StorageError("x", errno=errno.EIO), True, Reason.UNREADABLE),
        (StorageError("x", errno=errno.EIO), False, Reason.DESTINATION),
        (StorageError("x", errno=errno.EROFS), False, Reason.READ_ONLY),
        (StorageError("x", errno=errno.EMFILE), True, Reason.TOO_MANY_FILES),
        (StorageError("x", errno=errno.ENOENT), True, Reason.VANISHED),
        (StorageError("x", errno=errno.ENOENT), False, Reason.DESTINATION),
        (CorruptError("x\ny"), False, Reason.MISMATCH),
    ],
)
def test_errors_have_reasons_and_advice(error, in_source, reason):
    problem = problem_of(error, in_source=in_source)
    assert problem.reason is reason and problem.advice and "\n" not in problem.text
    assert State.BLOCKED.value == "blocked"


def _lost_when_removed(monkeypatch):
    """An open file is lost when its name is: what NFS says when another machine removed it."""
    real = LocalReader.status

    def status(self):
        found = real(self)
        if not found.st_nlink:
            raise StorageError(f"{self.name}: cannot look at it: {os.strerror(errno.ESTALE)}", errno=errno.ESTALE)
        return found

    monkeypatch.setattr(LocalReader, "status", status)


@pytest.mark.parametrize("left", [0, 1])
def test_a_checkpoint_that_another_machine_deletes_is_gone_and_stops_no_other(running, places, monkeypatch, left):
    source_folder, _ = places
    _lost_when_removed(monkeypatch)
    daemon = running(quiet_time=1.0)
    folder = _checkpoint(source_folder / "checkpoint-1")
    daemon.state("checkpoint-1", "settling")
    (folder / "config.json").unlink()
    if not left:
        (folder / "model.safetensors").unlink()
    daemon.state("checkpoint-1", "gone")
    _checkpoint(source_folder / "checkpoint-2")
    daemon.published("checkpoint-2.arz")


def test_a_file_that_is_replaced_behind_a_followed_link_is_opened_again(running, places, tmp_path, monkeypatch):
    source_folder, _ = places
    monkeypatch.setattr(roster, "_keep_open", lambda: 0)  # as of a checkpoint of very many files
    blob, folder = tmp_path / "blob", source_folder / "checkpoint-1"
    blob.write_bytes(LARGE)
    daemon = running(quiet_time=1.0)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    os.symlink(blob, folder / "model.safetensors")
    daemon.state("checkpoint-1", "settling")
    (tmp_path / "new").write_bytes(SMALL)
    (tmp_path / "new").rename(blob)
    arzstream.unpack(str(daemon.published("checkpoint-1.arz")), str(tmp_path / "back"))
    assert (tmp_path / "back/model.safetensors").read_bytes() == SMALL


@pytest.mark.parametrize("where", ["update", "judge", "open_files"])
@pytest.mark.parametrize("error", [KeyError("made up"), SourceError("made up", errno=errno.EIO)])
def test_whatever_goes_wrong_with_one_checkpoint_stops_no_other(running, places, monkeypatch, where, error):
    source_folder, _ = places
    real, faulty = getattr(Track, where), {"on": True}

    def failing(self, *arguments, **keywords):
        if faulty["on"] and self.path == b"checkpoint-1":
            raise error
        return real(self, *arguments, **keywords)

    monkeypatch.setattr(Track, where, failing)
    daemon = running()
    for number in (1, 2):
        _checkpoint(source_folder / f"checkpoint-{number}")
    daemon.published("checkpoint-2.arz")
    entry = daemon.state("checkpoint-1", "blocked")
    assert "made up" in entry.reason and ("report" in entry.reason) == isinstance(error, KeyError)
    daemon.until(lambda: daemon.entry("checkpoint-1").attempts == 2, "it to be tried again")
    faulty["on"] = False
    daemon.published("checkpoint-1.arz")
