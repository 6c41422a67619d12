"""The one module that changes file systems: every step leaves what it promises, and faults become one clear error."""

from __future__ import annotations

import errno
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from arzstream.errors import StorageError
from arzstream.store import local
from arzstream.store.local import LocalSink, PipeSink, permissions_at_most, publish, temporary_beside


def test_sink_appends_and_counts_and_can_be_read_back_before_it_is_closed(tmp_path):
    sink = LocalSink(tmp_path / "a")
    sink.write(b"abc")
    sink.write(memoryview(bytearray(b"defg")))
    assert sink.tell() == 7
    assert (tmp_path / "a").read_bytes() == b"abcdefg"
    sink.sync()
    sink.close()
    with pytest.raises(StorageError, match="written again"):
        sink.write(b"x")


def test_sink_takes_items_wider_than_a_byte(tmp_path):
    sink = LocalSink(tmp_path / "a")
    sink.write(memoryview(bytearray(8)).cast("I"))
    assert sink.tell() == 8


def test_sink_never_writes_onto_something_that_exists(tmp_path):
    (tmp_path / "a").write_bytes(b"precious")
    os.symlink("elsewhere", tmp_path / "dangling")
    for name in ("a", "dangling"):
        with pytest.raises(StorageError) as caught:
            LocalSink(tmp_path / name)
        assert caught.value.errno == errno.EEXIST
    assert (tmp_path / "a").read_bytes() == b"precious"
    assert not (tmp_path / "elsewhere").exists()


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
    sink = LocalSink(tmp_path / "a")
    sink.write(bytes(range(100)))
    assert (tmp_path / "a").read_bytes() == bytes(range(100))


@pytest.mark.parametrize("have_pwrite", [True, False])
def test_parts_may_be_written_at_their_places_by_several_threads(tmp_path, monkeypatch, have_pwrite):
    if have_pwrite:
        real = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:700], at))  # short writes are continued
    else:
        monkeypatch.delattr(os, "pwrite")
    data = os.urandom(200_000)
    fd = local.create_new(tmp_path / "a")
    local.set_length(fd, len(data), tmp_path / "a")
    assert os.path.getsize(tmp_path / "a") == len(data)
    with ThreadPoolExecutor(4) as pool:
        for at in reversed(range(0, len(data), 10_000)):
            pool.submit(local.write_at, fd, at, data[at : at + 10_000], tmp_path / "a")
    local.close(fd, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == data
    with pytest.raises(StorageError, match="cannot write"):
        local.write_at(fd, 0, b"x", tmp_path / "a")


def test_a_failed_fsync_breaks_the_sink_for_good(tmp_path, monkeypatch):
    sink = LocalSink(tmp_path / "a")
    sink.write(b"x")

    def fail(_fd):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=r"a: cannot write it safely.*check the disk"):
        sink.sync()
    monkeypatch.undo()
    with pytest.raises(StorageError, match="written again"):
        sink.sync()
    sink.abort()
    assert os.listdir(tmp_path) == []


def test_full_disk_is_one_line_that_says_what_to_do(tmp_path, monkeypatch):
    sink = LocalSink(tmp_path / "a")

    def full(_fd, _data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match="free some space") as caught:
        sink.write(b"x")
    assert caught.value.errno == errno.ENOSPC and "\n" not in str(caught.value)


def test_publish_does_not_replace_unless_told(tmp_path):
    final = tmp_path / "final"
    final.write_bytes(b"old")
    temporary = temporary_beside(final)
    LocalSink(temporary).write(b"new")
    with pytest.raises(StorageError) as caught:
        publish(temporary, final)
    assert caught.value.errno == errno.EEXIST and final.read_bytes() == b"old"
    publish(temporary, final, replace=True)
    assert final.read_bytes() == b"new" and os.listdir(tmp_path) == ["final"]


@pytest.mark.parametrize("missing", ["renameat2", "renameat2 and link"])
def test_publish_without_the_newer_system_calls(tmp_path, monkeypatch, missing):
    monkeypatch.setattr(local, "_renameat2_noreplace", lambda *_: False)
    if "link" in missing:

        def no_links(*_args, **_keywords):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", no_links)
    final = tmp_path / "final"
    temporary = temporary_beside(final)
    LocalSink(temporary).write(b"1")
    publish(temporary, final)
    assert final.read_bytes() == b"1" and os.listdir(tmp_path) == ["final"]
    LocalSink(temporary).write(b"2")
    with pytest.raises(StorageError) as caught:
        publish(temporary, final)
    assert caught.value.errno == errno.EEXIST and final.read_bytes() == b"1"


def test_of_many_racing_publishers_exactly_one_wins(tmp_path):
    final = tmp_path / "final"
    won = []

    def race(number):
        temporary = temporary_beside(final)
        LocalSink(temporary).write(b"%d" % number)
        try:
            publish(temporary, final)
            won.append(number)
        except StorageError as error:
            assert error.errno == errno.EEXIST
            local.unlink(temporary)

    threads = [threading.Thread(target=race, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert final.read_bytes() == b"%d" % won[0] and len(won) == 1
    assert os.listdir(tmp_path) == ["final"]


def test_temporary_names_are_recognised_and_never_too_long(tmp_path):
    for name in ("step-1.arz", "x" * 250, "é" * 120):
        temporary = temporary_beside(tmp_path / name)
        assert os.path.dirname(temporary) == str(tmp_path)
        assert local.is_temporary(os.path.basename(temporary))
        LocalSink(temporary).close()
    assert not local.is_temporary("step-1.arz")


def test_the_archive_may_be_read_by_nobody_who_could_not_read_a_source(tmp_path):
    def status(mode, gid):
        return os.stat_result((stat.S_IFREG | mode, 1, 1, 1, 0, gid, 1, 0, 0, 0))

    mine, other = os.getegid(), os.getegid() + 1
    assert permissions_at_most([status(0o644, mine)]) == 0o644
    assert permissions_at_most([status(0o755, mine), status(0o640, mine)]) == 0o640
    assert permissions_at_most([status(0o600, mine), status(0o666, mine)]) == 0o600
    assert permissions_at_most([status(0o640, other)]) == 0o600  # our group is not theirs
    assert permissions_at_most([status(0o644, other)]) == 0o644
    assert permissions_at_most([status(0o400, mine)]) == 0o600  # the owner must be able to prune it


def test_pipe_sink_writes_all_of_it():
    read, write = os.pipe()
    data = os.urandom(1 << 20)
    got = bytearray()

    def drain():
        while block := os.read(read, 65536):
            got.extend(block)

    thread = threading.Thread(target=drain)
    thread.start()
    sink = PipeSink(write, "a pipe")
    sink.write(data)
    assert sink.tell() == len(data)
    os.close(write)
    thread.join()
    assert bytes(got) == data
    os.close(read)


def test_make_folders_refuses_a_file_in_the_way(tmp_path):
    local.make_folders(tmp_path / "a" / "b")
    local.make_folders(tmp_path / "a" / "b")
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(StorageError, match="in the way"):
        local.make_folders(tmp_path / "f" / "g")


def test_no_other_module_changes_the_file_system():
    """Mutating calls outside this module would escape fault injection."""
    import ast
    import pathlib

    import arzstream

    forbidden = {
        "rename", "renames", "replace", "unlink", "remove", "removedirs", "mkdir", "makedirs", "rmdir", "link",
        "symlink", "truncate", "ftruncate", "fsync", "fdatasync", "chmod", "fchmod", "chown", "fchown", "utime",
        "write", "pwrite", "writev", "mkfifo", "mknod", "setxattr", "posix_fallocate", "sendfile", "copy_file_range",
    }  # fmt: skip
    root = pathlib.Path(next(iter(arzstream.__path__)))
    found = []
    for path in root.rglob("*.py"):
        inside = path.relative_to(root).as_posix()
        if inside == "store/local.py" or inside.startswith("testing/"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            function = node.func
            if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
                called = f"{function.value.id}.{function.attr}"
                if (called.startswith("shutil.") and function.attr.startswith(("copy", "move", "rmtree"))) or (
                    called.startswith("os.") and function.attr in forbidden
                ):
                    found.append(f"{inside}:{node.lineno} {called}")
            elif isinstance(function, ast.Name) and function.id == "open" and len(node.args) > 1:
                if any(keyword.arg == "closefd" for keyword in node.keywords):
                    continue  # a stream over a descriptor that is open already
                mode = node.args[1]
                if not (isinstance(mode, ast.Constant) and set(str(mode.value)) <= set("rbt")):
                    found.append(f"{inside}:{node.lineno} open for writing")
    assert found == []
