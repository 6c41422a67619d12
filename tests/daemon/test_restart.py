"""Whatever the last daemon was doing when it ended, the next one finds its way, loses nothing and doubles nothing."""

from __future__ import annotations

import os
import random
import shutil
import time

import pytest

import arzstream
from arzstream.daemon.journal import FOLDER
from arzstream.testing import process, tensors, writers

from .conftest import Running, temporaries

WEIGHTS = tensors.model(layers=6, width=256, vocabulary=1024)
SMALL = tensors.safetensors_bytes(tensors.model(layers=1, width=64, vocabulary=64))


def _checkpoint(folder, data=SMALL):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(data)


@pytest.mark.parametrize("lost", ["journal", "nothing", "archive", "temporary"])
def test_a_restart_converges(places, lost):
    source, dest = places
    _checkpoint(source / "run" / "checkpoint-1")
    _checkpoint(source / "run" / "checkpoint-2")
    with Running(source, dest) as daemon:
        for number in (1, 2):
            daemon.published(f"run/checkpoint-{number}.arz")
            daemon.state(f"run/checkpoint-{number}", "published")
    before = (dest / "run/checkpoint-1.arz").stat()
    if lost == "journal":
        shutil.rmtree(dest / FOLDER)
    elif lost == "archive":
        (dest / "run/checkpoint-2.arz").unlink()
    elif lost == "temporary":
        (dest / "run/.arz-tmp-checkpoint-3.arz-0123456789ab").write_bytes(b"half")
        os.link(dest / "run/checkpoint-2.arz", dest / "run/.arz-tmp-checkpoint-2.arz-0123456789ab")
    with Running(source, dest) as daemon:
        for number in (1, 2):
            daemon.published(f"run/checkpoint-{number}.arz")
            daemon.state(f"run/checkpoint-{number}", "published")
        _checkpoint(source / "run" / "checkpoint-3")
        daemon.published("run/checkpoint-3.arz")
    assert sorted(os.listdir(dest / "run")) == [f"checkpoint-{n}.arz" for n in (1, 2, 3)]
    after = (dest / "run/checkpoint-1.arz").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    for number in (1, 2, 3):
        archive = dest / f"run/checkpoint-{number}.arz"
        arzstream.verify(str(archive), against=str(source / "run" / f"checkpoint-{number}"))


def test_a_change_while_no_daemon_was_there_is_noticed(places, tmp_path):
    source, dest = places
    folder = source / "checkpoint-1"
    _checkpoint(folder)
    with Running(source, dest) as daemon:
        daemon.published("checkpoint-1.arz")
        daemon.state("checkpoint-1", "published")
    path = folder / "model.safetensors"
    times = path.stat()
    path.write_bytes(SMALL[:-1] + b"x")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as if nothing had been
    with Running(source, dest) as daemon:
        daemon.published("checkpoint-1.2.arz")
    arzstream.unpack(str(dest / "checkpoint-1.2.arz"), str(tmp_path / "back"))
    assert (tmp_path / "back/model.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("seed", range(3))
def test_random_kills_lose_nothing(places, tmp_path, seed):
    """Three shards land while the daemon is killed again and again; in the end there is one right archive."""
    source, dest = places
    chance = random.Random(seed)
    daemon = process.Daemon(source, dest, "--quiet-time", "0.3", "--rescan", "0.5")
    kills = 0
    with daemon:
        writers.shards(source / "checkpoint-1", WEIGHTS, pace=writers.Pace(), log=writers.EventLog())
        while kills < 4:
            time.sleep(chance.uniform(0.3, 1.2))
            daemon.kill()
            kills += 1
            daemon.start()
        daemon.published("checkpoint-1.arz")
        deadline = time.monotonic() + 20
        while temporaries(dest) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert process.leftovers(dest, ["checkpoint-1.arz"]) == []
    arzstream.unpack(str(dest / "checkpoint-1.arz"), str(tmp_path / "back"))
    assert process.tree(tmp_path / "back") == process.tree(source / "checkpoint-1")


def test_two_daemons_publish_once_and_the_second_takes_over(places):
    source, dest = places
    options = ("--quiet-time", "0.3", "--rescan", "0.5")
    with process.Daemon(source, dest, *options) as first, process.Daemon(source, dest, *options) as second:
        first.until(lambda: "standby" in first.output() + second.output(), "one to stand by")
        leader, other = (second, first) if "standby" in first.output() else (first, second)
        _checkpoint(source / "checkpoint-1")
        leader.published("checkpoint-1.arz")
        leader.kill()
        _checkpoint(source / "checkpoint-2")
        other.published("checkpoint-2.arz")
        other.terminate()
        assert process.leftovers(dest, ["checkpoint-1.arz", "checkpoint-2.arz"]) == []
        printed = first.output() + second.output()
        assert printed.count("event=published checkpoint=checkpoint-1 ") <= 1
        assert printed.count("event=published checkpoint=checkpoint-2 ") == 1


def test_without_a_journal_what_a_crash_left_in_a_checkpoint_does_not_make_it_another_one(places):
    source, dest = places
    folder = source / "checkpoint-1"
    folder.mkdir()
    (folder / "model.safetensors.tmp").write_bytes(SMALL[:100])
    os.utime(folder / "model.safetensors.tmp", ns=(10**18, 10**18))
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(SMALL)
    for _ in range(2):
        done = process.arzstream("watch", source, dest, "--once", "--quiet-time", "0.3")
        assert done.returncode == 0 and "1 checkpoint archived" in done.stdout, done.stderr
        shutil.rmtree(dest / FOLDER)
    assert [path.name for path in dest.glob("*.arz")] == ["checkpoint-1.arz"]


@pytest.mark.parametrize("change", ["time", "size", "name"])
def test_without_a_journal_only_an_archive_of_the_same_files_is_adopted(places, tmp_path, change):
    source, dest = places
    folder = source / "checkpoint-1"
    _checkpoint(folder)
    with Running(source, dest) as daemon:
        daemon.published("checkpoint-1.arz")
    shutil.rmtree(dest / FOLDER)
    if change == "time":
        os.utime(folder / "config.json", ns=(1, 10**18))
    elif change == "size":
        times = (folder / "config.json").stat()
        (folder / "config.json").write_text("{ }")
        os.utime(folder / "config.json", ns=(times.st_mtime_ns, times.st_mtime_ns))
    else:
        (folder / "config.json").rename(folder / "params.json")
    with Running(source, dest) as daemon:
        archive = daemon.published("checkpoint-1.2.arz")
    arzstream.unpack(str(archive), str(tmp_path / "back"))
    assert process.tree(tmp_path / "back") == process.tree(folder)
