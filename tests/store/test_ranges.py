"""Range readers answer exactly what was asked, or say why they cannot."""

from __future__ import annotations

import errno
import os

import pytest

from arzstream.errors import StorageError, UnsupportedError
from arzstream.store.ranges import LocalReader, RemoteReader, is_url, open_reader

DATA = bytes(range(256)) * 40


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(DATA)
    return path


def _check(reader):
    assert reader.size == len(DATA)
    assert reader.read_at(0, 0) == b""
    assert reader.read_at(5, 300) == DATA[5:305]
    assert reader.read_at(len(DATA) - 1, 1) == DATA[-1:]
    buffer = bytearray(100)
    reader.read_into(1000, memoryview(buffer))
    assert bytes(buffer) == DATA[1000:1100]
    wide = memoryview(bytearray(64)).cast("Q")
    reader.read_into(64, wide)
    assert bytes(wide) == DATA[64:128]
    assert reader.tail(10) == (len(DATA), DATA[-10:])
    assert reader.tail(10**9) == (len(DATA), DATA)
    with pytest.raises(StorageError, match="truncated"):
        reader.read_at(len(DATA) - 5, 6)
    with pytest.raises(StorageError, match="truncated"):
        reader.read_into(len(DATA), memoryview(bytearray(1)))


def test_local_ranges(file):
    with LocalReader(file) as reader:
        _check(reader)
    with LocalReader(os.open(file, os.O_RDONLY)) as reader:
        _check(reader)


def test_local_ranges_without_pread(file, monkeypatch):
    monkeypatch.delattr(os, "pread")
    monkeypatch.delattr(os, "preadv")
    with LocalReader(file) as reader:
        _check(reader)


def test_short_reads_of_the_system_are_continued(file, monkeypatch):
    real_pread, real_preadv = os.pread, os.preadv
    monkeypatch.setattr(os, "pread", lambda fd, n, at: real_pread(fd, min(n, 7), at))
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: real_preadv(fd, [views[0][:7]], at))
    with LocalReader(file) as reader:
        _check(reader)


def test_memory_file_system_ranges():
    import fsspec

    fsspec.filesystem("memory").pipe_file("/bucket/data", DATA)
    with open_reader("memory://bucket/data") as reader:
        assert isinstance(reader, RemoteReader)
        _check(reader)


def test_file_urls_are_local(file):
    with open_reader(f"file://{file}") as reader:
        assert isinstance(reader, LocalReader)
        _check(reader)


def test_a_growing_file_shows_its_size_and_a_deleted_one_stays_readable(file):
    with LocalReader(file) as reader:
        with open(file, "ab") as more:
            more.write(b"more")
        assert reader.size == len(DATA) + 4
        os.unlink(file)
        assert reader.read_at(len(DATA), 4) == b"more"


def test_only_regular_files_and_links_only_if_wanted(tmp_path, file):
    os.mkfifo(tmp_path / "fifo")
    os.symlink(file, tmp_path / "link")
    for path in (tmp_path, tmp_path / "fifo"):  # opening the FIFO would hang without O_NONBLOCK
        with pytest.raises(StorageError, match="not a regular file"):
            LocalReader(path)
    assert LocalReader(tmp_path / "link").size == len(DATA)
    with pytest.raises(StorageError) as caught:
        LocalReader(tmp_path / "link", follow=False)
    assert caught.value.errno == errno.ELOOP
    with pytest.raises(StorageError) as caught:
        LocalReader(tmp_path / "nothing")
    assert caught.value.errno == errno.ENOENT and "nothing" in str(caught.value)


@pytest.mark.parametrize(
    "read", [LocalReader.status, lambda r: r.read_at(0, 1), lambda r: r.read_into(0, memoryview(bytearray(1)))]
)
def test_a_closed_file_says_so_and_no_other_that_has_its_number_is_read(tmp_path, read):
    (tmp_path / "one").write_bytes(b"1")
    (tmp_path / "other").write_bytes(b"2")
    reader = LocalReader(tmp_path / "one")
    reader.close()
    with LocalReader(tmp_path / "other"), pytest.raises(StorageError, match="one: was closed; open it again"):
        read(reader)


def test_failures_leak_no_descriptor(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(StorageError):
            LocalReader(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_urls_and_what_is_none():
    assert is_url("s3://bucket/key") and is_url("memory://x") and is_url("simplecache::s3://b/k")
    assert not is_url("/tmp/a:b") and not is_url("C:\\x") and not is_url(b"s3://x") and not is_url("a/b")


def test_missing_objects_and_missing_parts_say_what_to_do():
    with pytest.raises(StorageError, match="no such file"):
        open_reader("memory://nothing/here")
    with pytest.raises((UnsupportedError, StorageError), match="nonsense"):
        open_reader("nonsense://user:secret@host/x?token=abc")
    try:
        open_reader("nonsense://user:secret@host/x?token=abc")
    except Exception as error:
        assert "secret" not in str(error) and "abc" not in str(error)
