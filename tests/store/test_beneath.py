"""Restoring stays below its folder, whatever stands in the way."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from arzstream.errors import StorageError
from arzstream.store import local
from arzstream.store.beneath import Beneath


def test_files_folders_and_links_come_out_with_modes_and_times(tmp_path):
    with Beneath(tmp_path / "out") as below:
        fd = below.create(b"a/b/\xff.bin")
        os.write(fd, b"data")
        below.finish(fd, b"a/b/\xff.bin", mode=0o640, mtime_ns=1_500_000_000_123_456_789, durable=True)
        below.symlink(b"a/link", b"../nowhere")
        below.set_attributes(b"a/link", mode=None, mtime_ns=1_600_000_000_000_000_007)
        below.folder(b"a/empty")
        below.set_attributes(b"a/empty", mode=0o750, mtime_ns=1_400_000_000_000_000_001)
        below.sync()
    path = os.fsencode(tmp_path) + b"/out/a/b/\xff.bin"
    status = os.stat(path)
    assert stat.S_IMODE(status.st_mode) == 0o640 and status.st_mtime_ns == 1_500_000_000_123_456_789
    assert os.readlink(tmp_path / "out/a/link") == "../nowhere"
    assert os.lstat(tmp_path / "out/a/link").st_mtime_ns == 1_600_000_000_000_000_007
    status = os.stat(tmp_path / "out/a/empty")
    assert stat.S_IMODE(status.st_mode) == 0o750 and status.st_mtime_ns == 1_400_000_000_000_000_001


def test_a_link_in_the_way_is_never_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    out = tmp_path / "out"
    out.mkdir()
    os.symlink(outside, out / "a")
    os.symlink(outside / "new", out / "file")
    with Beneath(out) as below:
        for attempt in (
            lambda: below.create(b"a/x"),
            lambda: below.create(b"file"),
            lambda: below.folder(b"a/x"),
            lambda: below.folder(b"a"),
            lambda: below.symlink(b"a/x", b"y"),
            lambda: below.set_attributes(b"a", mode=0, mtime_ns=0),
        ):
            with pytest.raises(StorageError):
                attempt()
    assert os.listdir(outside) == [] and stat.S_IMODE(os.stat(outside).st_mode) != 0


def test_existing_files_are_never_overwritten(tmp_path):
    (tmp_path / "x").write_bytes(b"precious")
    with Beneath(tmp_path) as below:
        with pytest.raises(StorageError) as caught:
            below.create(b"x")
        assert caught.value.errno == errno.EEXIST
        with pytest.raises(StorageError, match="not a folder"):
            below.create(b"x/y")
    assert (tmp_path / "x").read_bytes() == b"precious"


@pytest.mark.parametrize("path", [b"", b"/etc/x", b"a/../../x", b"..", b".", b"a//b", b"a/\0b", b"a/"])
def test_bad_names_are_refused(tmp_path, path):
    with Beneath(tmp_path) as below, pytest.raises(ValueError):
        below.create(path)


def test_no_descriptor_is_leaked(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    with Beneath(tmp_path) as below:
        for number in range(20):
            below.folder(b"a/b/%d" % number)
            below.finish(below.create(b"c/%d" % number), b"c/%d" % number, mode=0o600, mtime_ns=0)
            with pytest.raises(StorageError):
                below.create(b"c/%d/x" % number)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_same_without_folder_descriptors(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "HAS_DIR_FD", False)
    os.symlink("/tmp", tmp_path / "trap")
    with Beneath(tmp_path) as below:
        below.finish(below.create(b"a/b"), b"a/b", mode=0o600, mtime_ns=7)
        below.folder(b"a/c")
        with pytest.raises(StorageError):
            below.create(b"trap/x")
    assert os.stat(tmp_path / "a/b").st_mtime_ns == 7
