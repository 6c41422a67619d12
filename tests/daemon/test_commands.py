"""``arzstream watch`` and ``arzstream status`` as a person, a script and an init system use them."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from arzstream.testing import process, tensors

from .conftest import temporaries

SMALL = tensors.safetensors_bytes(tensors.model(layers=1, width=64, vocabulary=64))
WEIGHTS = tensors.model(layers=6, width=128, vocabulary=512)


def _checkpoint(folder: Path, data: bytes = SMALL) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(data)


def _status(dest: Path) -> dict:
    done = process.arzstream("status", dest, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_once_archives_what_is_complete_and_says_so(places):
    source, dest = places
    _checkpoint(source / "checkpoint-1")
    _checkpoint(source / "checkpoint-2")
    (source / "checkpoint-3").mkdir()
    (source / "checkpoint-3" / "model-00001-of-00002.safetensors").write_bytes(SMALL)
    done = process.arzstream("watch", source, dest, "--once", "--quiet-time", "0.2", "--json")
    assert done.returncode == 0, done.stderr
    totals = json.loads(done.stdout)
    assert (totals["published"], totals["waiting"], totals["blocked"]) == (2, 1, 0)
    assert sorted(os.listdir(dest)) == [".arzstream", "checkpoint-1.arz", "checkpoint-2.arz"]
    status = _status(dest)
    states = {entry["path"]: entry for entry in status["checkpoints"]}
    assert states["checkpoint-1"]["state"] == "published" and states["checkpoint-1"]["ratio"] < 1
    assert "model-00002-of-00002" in states["checkpoint-3"]["waiting"]
    assert status["totals"]["states"]["published"] == 2 and not status["daemon"]["running"]
    again = process.arzstream("watch", source, dest, "--once", "--quiet-time", "0.2")
    assert again.returncode == 0 and "2 checkpoints archived" in again.stdout
    assert sorted(os.listdir(dest)) == [".arzstream", "checkpoint-1.arz", "checkpoint-2.arz"]
    text = process.arzstream("status", dest).stdout
    assert "checkpoint-1.arz" in text and "waits for model-00002-of-00002.safetensors" in text
    assert "missing" not in text


def test_mistakes_are_one_line_with_the_right_exit_code(places, tmp_path):
    source, dest = places
    bad = tmp_path / "bad.toml"
    bad.write_text("jbos = 1\n")
    for arguments, code, words in [
        (("watch", "gs://bucket/runs", "gs://bucket/runs/"), 2, "same folder"),
        (("watch", source, "https://127.0.0.1/archive"), 3, "can only be read"),
        (("watch", source, "gs://bucket/archive", "--keep-last", "3"), 3, "removes nothing from buckets"),
        (("watch", source, "gs://bucket/archive", "--parent", "base.arz"), 3, "--parent"),
        (("prune", "gs://bucket/archive", "--keep-last", "3"), 3, "removes nothing from buckets"),
        (("watch", source, source), 2, "same folder"),
        (("watch", tmp_path / "nothing", dest), 4, "no such folder"),
        (("watch", source, dest, "--profile", "best"), 2, "profile"),
        (("watch", source, dest, "--config", bad), 2, "jbos"),
        (("watch", source, dest, "--parent", tmp_path / "base.arz"), 4, "no such archive"),
        (("watch", source, dest, "--max-chain", "64"), 2, "max-chain"),
        (("watch", source, dest, "--keep-last", "-1"), 2, "keep-last"),
        (("watch", source, dest, "--http", "127.0.0.1:1"), 2, "--http"),
        (("status", tmp_path / "nowhere"), 4, "no daemon has worked here"),
    ]:
        done = process.arzstream(*arguments, timeout=30)
        assert done.returncode == code, (arguments, done.stderr)
        assert done.stderr.count("\n") == 1 and words in done.stderr and "Traceback" not in done.stderr


def test_settings_come_from_a_file(places, tmp_path):
    source, dest = places
    _checkpoint(source / "checkpoint-1")
    config = tmp_path / "arz.toml"
    config.write_text(f'source = "{source}"\ndest = "{dest}"\nquiet-time = 0.2\nprofile = "fast"\n')
    done = process.arzstream("watch", "--once", "--quiet", env={"ARZ_CONFIG": str(config)})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (dest / "checkpoint-1.arz").exists()
    done = process.arzstream("status", env={"ARZ_CONFIG": str(config)})
    assert "checkpoint-1.arz" in done.stdout


def test_a_daemon_that_is_told_to_end_leaves_nothing_half_done(places):
    source, dest = places
    (source / "checkpoint-1").mkdir()
    path = source / "checkpoint-1" / "model.safetensors"
    path.write_bytes(tensors.safetensors_bytes(WEIGHTS)[:-1000])
    with process.Daemon(source, dest, "--rescan", "0.5") as daemon:
        daemon.until(lambda: temporaries(dest), "early coding")
        assert _status(dest)["daemon"]["running"]
        assert daemon.terminate() == 0
    assert temporaries(dest) == [] and not (dest / "checkpoint-1.arz").exists()
    status = _status(dest)
    assert not status["daemon"]["running"] and status["checkpoints"][0]["state"] == "seen"
    assert "Traceback" not in json.dumps(status)


def test_signals_pause_resume_reload_and_interrupt(places, tmp_path):
    source, dest = places
    config = tmp_path / "arz.toml"
    config.write_text("quiet-time = 0.2\nrescan = 0.5\n")
    with process.Daemon(source, dest, "--config", str(config)) as daemon:
        daemon.until(lambda: "event=started" in daemon.output(), "start")
        daemon.signal(signal.SIGUSR1)
        daemon.until(lambda: "event=paused" in daemon.output(), "pause")
        _checkpoint(source / "checkpoint-1")
        time.sleep(1.0)
        assert not (dest / "checkpoint-1.arz").exists() and _status(dest)["daemon"]["paused"]
        daemon.signal(signal.SIGUSR2)
        daemon.published("checkpoint-1.arz")
        config.write_text('profile = "fast"\n')
        daemon.signal(signal.SIGHUP)
        daemon.until(lambda: "event=reloaded profile=fast" in daemon.output(), "reload")
        config.write_text("nonsense")
        daemon.signal(signal.SIGHUP)
        daemon.until(lambda: "event=not-reloaded" in daemon.output(), "refusal")
        daemon.signal(signal.SIGINT)
        assert daemon.wait() == 130


def test_a_blocked_checkpoint_shows_in_the_exit_code_and_the_status(places):
    source, dest = places
    folder = source / "checkpoint-1"
    _checkpoint(folder)
    secret = source.parent / "secret"
    secret.write_bytes(b"x")
    secret.chmod(0o600)
    os.symlink(secret, folder / "link")
    if os.getuid():
        pytest.skip("impossible here: only root can give files away")
    os.chown(folder / "link", 12345, 12345, follow_symlinks=False)
    done = process.arzstream("watch", source, dest, "--once", "--quiet-time", "0.2", "--quiet")
    assert done.returncode == 4
    assert done.stderr.splitlines()[-1].startswith("arzstream: permission:") and "link" in done.stderr
    (entry,) = _status(dest)["checkpoints"]
    assert entry["state"] == "blocked" and entry["reason"].startswith("permission") and entry["retry"]
    assert "next try" in process.arzstream("status", dest).stdout


def test_leases_see_a_writer_that_no_event_told_of(places, tmp_path):
    """Files written before the daemon's watch on a new folder stood are believed closed without the long wait."""
    source, dest = places
    with process.Daemon(source, dest, "--rescan", "0.5") as daemon:
        daemon.until(lambda: "event=started" in daemon.output(), "start")
        for number in range(3):
            _checkpoint(source / f"run-{number}" / "checkpoint-1")
            (source / f"run-{number}" / "checkpoint-1" / "trainer_state.json").write_text("{}")
        begun = time.monotonic()
        for number in range(3):
            daemon.published(f"run-{number}/checkpoint-1.arz")
        assert time.monotonic() - begun < 4.5  # the weak rule would take 5 s
        (source / "checkpoint-9").mkdir()
        fd = os.open(source / "checkpoint-9" / "model.safetensors", os.O_WRONLY | os.O_CREAT)
        os.write(fd, SMALL)
        time.sleep(1.5)
        assert not (dest / "checkpoint-9.arz").exists()  # complete by its structure, but somebody has it open
        os.close(fd)


def test_writers_feel_no_lease(places):
    """A file that is opened for writing again and again is never refused nor held up, however often the daemon asks."""
    source, dest = places
    folder = source / "checkpoint-1"
    _checkpoint(folder)
    with process.Daemon(source, dest, "--quiet-time", "1") as daemon:
        daemon.until(lambda: "event=seen" in daemon.output(), "the checkpoint to be seen")
        until, slowest = time.monotonic() + 1.5, 0.0
        while (begun := time.monotonic()) < until:
            fd = os.open(folder / "model.safetensors", os.O_WRONLY)
            slowest = max(slowest, time.monotonic() - begun)
            os.pwrite(fd, b"{", 8)
            os.close(fd)
            time.sleep(0.0005)
        assert slowest < 5  # a lease that is not given back is broken after 45 s
        daemon.published("checkpoint-1.arz")
