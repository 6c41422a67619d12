"""Checkpoints are archived while they land, however they land, and what comes back is what was written."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import arzstream
from arzstream.daemon import draft, work
from arzstream.daemon.census import Census
from arzstream.testing import process, tensors, writers

from .conftest import Running, temporaries

WEIGHTS = tensors.model(layers=8, width=128, vocabulary=512)
BYTES = tensors.tensor_bytes(WEIGHTS)  # 4 MB


class Gate:
    """Holds a writer after each tensor until the daemon has coded what is behind: what is measured is whether it can,
    not how fast this machine is. ``coded`` is how much it had when the last byte was written."""

    def __init__(self, daemon: Running, name: str, slack: int = 600_000) -> None:
        self.log = writers.EventLog()
        self.daemon, self.name, self.slack = daemon, name, slack
        self.written = 0
        self.coded = 0
        self.pace = writers.Pace(piece=1 << 16)
        self.pace.spent = self._spent  # type: ignore[method-assign]

    def _coded(self) -> int:
        found = [t for path, t in self.daemon.supervisor._roster.tracks.items() if path.startswith(self.name.encode())]
        lone = self.daemon.supervisor._roster.tracks
        jobs = [t.job for t in (found or lone.values()) if t.job is not None]
        return max((job.bytes_coded for job in jobs), default=0)

    def _spent(self, nbytes: int) -> None:
        self.written += nbytes
        if self.written > self.slack and self.written < BYTES:
            self.daemon.until(lambda: self._coded() >= self.written - self.slack, "the daemon to keep up")
        if self.written > 0.95 * BYTES and not self.coded:
            self.daemon.until(lambda: self._coded() > 0.82 * BYTES, "most of it to be coded")
            self.coded = self._coded()


def _exact(source: Path, archive: Path, back: Path) -> None:
    """The archive gives the source back, byte for byte, with modes and times."""
    arzstream.unpack(str(archive), str(back))
    assert process.tree(back) == process.tree(source)


@pytest.mark.parametrize("style", ["grow", "fill", "renamed"])
def test_most_of_a_file_is_coded_before_its_last_byte_is_written(running, places, tmp_path, style):
    source, dest = places
    daemon = running()
    folder = source / "checkpoint-1"
    folder.mkdir()
    gate = Gate(daemon, "checkpoint-1")
    writers.single(folder / "model.safetensors", WEIGHTS, style=style, pace=gate.pace, log=gate.log)
    assert not (dest / "checkpoint-1.arz").exists()
    assert gate.coded > 0.8 * BYTES
    _exact(folder, daemon.published("checkpoint-1.arz"), tmp_path / "back")
    entry = daemon.state("checkpoint-1", "published")
    assert entry.early > 0.8 and entry.latency is not None and temporaries(dest) == []


def test_a_lone_file_with_a_temporary_name_is_coded_early_and_adopted(running, places, tmp_path):
    source, _ = places
    daemon = running()
    gate = Gate(daemon, ".tmp")
    writers.single(source / "model.safetensors", WEIGHTS, style="renamed", pace=gate.pace, log=gate.log)
    archive = daemon.published("model.safetensors.arz")
    daemon.state("model.safetensors", "published")
    assert daemon.entry("model.safetensors").early > 0.8
    assert sorted(daemon.entries()) == [b"model.safetensors"]
    arzstream.unpack(str(archive), str(tmp_path / "back"))
    assert (tmp_path / "back/model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["tmp-checkpoint-1", "checkpoint-1.orbax-checkpoint-tmp-7"])
def test_a_folder_with_a_temporary_name_is_coded_early_and_adopted(running, places, tmp_path, name):
    source, dest = places
    daemon = running()
    (source / name).mkdir()
    gate = Gate(daemon, name)
    writers.single(source / name / "model.safetensors", WEIGHTS, pace=gate.pace, log=gate.log)
    (source / name / "trainer_state.json").write_text("{}")
    assert gate.coded > 0.8 * BYTES
    time.sleep(0.6)
    assert not list(dest.glob("*.arz"))  # however complete it looks
    (source / name).rename(source / "checkpoint-1")
    _exact(source / "checkpoint-1", daemon.published("checkpoint-1.arz"), tmp_path / "back")
    daemon.state("checkpoint-1", "published")
    assert sorted(daemon.entries()) == [b"checkpoint-1"] and temporaries(dest) == []


@pytest.mark.parametrize("order", ["reverse", "shuffled"])
def test_a_writer_that_fills_out_of_order_is_archived_exactly(running, places, tmp_path, order):
    source, _ = places
    daemon = running()
    (source / "step_1").mkdir()
    path = source / "step_1/model.safetensors"
    writers.fill(path, WEIGHTS, pace=writers.Pace(rate=6e6, piece=1 << 15), log=writers.EventLog(), order=order)
    _exact(path.parent, daemon.published("step_1.arz"), tmp_path / "back")


def test_a_torch_file_is_archived_while_it_is_saved(running, places, tmp_path):
    source, _ = places
    daemon = running()
    (source / "step_1").mkdir()
    writers.save_torch(source / "step_1/model.pt", WEIGHTS, pace=writers.Pace(rate=4e6), log=writers.EventLog())
    _exact(source / "step_1", daemon.published("step_1.arz"), tmp_path / "back")
    with arzstream.open(str(daemon.dest / "step_1.arz")) as archive:
        assert {t.name for t in WEIGHTS} <= set(archive.keys())


def test_a_region_that_was_coded_and_is_written_again_is_noticed(running, places, tmp_path):
    source, _ = places
    daemon = running(quiet_time=1.0)
    folder = source / "checkpoint-1"
    folder.mkdir()
    path, gate = folder / "model.safetensors", Gate(daemon, "checkpoint-1")
    thread = threading.Thread(
        target=writers.single, args=(path, WEIGHTS), kwargs={"style": "grow", "pace": gate.pace, "log": gate.log}
    )
    thread.start()
    daemon.until(lambda: gate._coded() > BYTES // 2, "half to be coded")
    header = len(tensors.safetensors_header(WEIGHTS)[0])
    writers.rewrite(path, header + 1000, os.urandom(50_000), writers.EventLog())
    thread.join()
    writers.rewrite(path, header + 100_000, os.urandom(10), writers.EventLog())  # and once more when it is whole
    _exact(folder, daemon.published("checkpoint-1.arz"), tmp_path / "back")


def test_a_file_that_is_begun_anew_is_archived_as_it_ends_up(running, places, tmp_path):
    source, _ = places
    daemon = running()
    folder = source / "checkpoint-1"
    folder.mkdir()
    path, gate = folder / "model.safetensors", Gate(daemon, "checkpoint-1")
    half = tensors.safetensors_bytes(WEIGHTS)[: BYTES // 2]
    path.write_bytes(half)
    daemon.until(lambda: gate._coded() > 0, "something to be coded")
    other = tensors.model(layers=5, width=96, vocabulary=300, seed=7)
    writers.grow(path, other, pace=writers.Pace(rate=8e6, piece=1 << 15), log=writers.EventLog())
    _exact(folder, daemon.published("checkpoint-1.arz"), tmp_path / "back")


def test_a_file_that_is_replaced_while_it_is_coded_is_archived_as_it_ends_up(running, places, tmp_path):
    source, _ = places
    daemon = running()
    folder = source / "checkpoint-1"
    folder.mkdir()
    path, gate = folder / "model.safetensors", Gate(daemon, "checkpoint-1")
    path.write_bytes(tensors.safetensors_bytes(WEIGHTS)[: BYTES // 2])
    daemon.until(lambda: gate._coded() > 0, "something to be coded")
    for seed in range(3):
        other = tensors.safetensors_bytes(tensors.model(layers=3, width=64, vocabulary=100, seed=seed))
        (source / "new").write_bytes(other)
        os.replace(source / "new", path)
    _exact(folder, daemon.published("checkpoint-1.arz"), tmp_path / "back")


@pytest.mark.skipif(os.getuid() != 0, reason="impossible here: only root can give files away")
def test_a_link_to_what_its_owner_cannot_read_is_not_followed(running, places, tmp_path):
    source, dest = places
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 1000)
    secret.chmod(0o600)
    daemon = running()
    folder = source / "checkpoint-1"
    folder.mkdir()
    os.symlink(secret, tmp_path / "stolen.bin")
    os.chown(tmp_path / "stolen.bin", 12345, 12345, follow_symlinks=False)
    (tmp_path / "stolen.bin").rename(folder / "stolen.bin")
    (folder / "model.safetensors").write_bytes(tensors.safetensors_bytes(WEIGHTS[:3]))
    assert "stolen.bin" in daemon.state("checkpoint-1", "blocked").reason
    assert sorted(os.listdir(dest)) == [".arzstream"]
    (folder / "stolen.bin").unlink()
    daemon.published("checkpoint-1.arz")


def test_a_link_that_is_made_anew_is_followed_anew(running, places, tmp_path):
    source, _ = places
    for number in (1, 2):
        (tmp_path / f"blob{number}").write_bytes(tensors.safetensors_bytes(WEIGHTS[number : number + 3]))
    daemon = running(quiet_time=1.0)
    folder = source / "checkpoint-1"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    os.symlink(tmp_path / "blob1", folder / "model.safetensors")
    daemon.state("checkpoint-1", "settling")
    (folder / "model.safetensors").unlink()
    os.symlink(tmp_path / "blob2", folder / "model.safetensors")
    arzstream.unpack(str(daemon.published("checkpoint-1.arz")), str(tmp_path / "back"))
    assert (tmp_path / "back/model.safetensors").read_bytes() == (tmp_path / "blob2").read_bytes()


@pytest.mark.parametrize("named", ["as it is", "by a link"])
def test_links_inside_are_kept_and_links_to_nowhere_left_out(running, places, tmp_path, named):
    source, _ = places
    if named == "by a link":
        source.rename(tmp_path / "elsewhere")
        source.symlink_to("elsewhere")
    daemon = running()
    folder = source / "checkpoint-1"
    (folder / "sub").mkdir(parents=True)
    os.symlink(folder / "model.safetensors", folder / "sub" / "absolute.bin")
    os.symlink("/nowhere/at/all", folder / "latest")
    os.symlink("model.safetensors", folder / "inside.bin")
    (folder / "model.safetensors").write_bytes(tensors.safetensors_bytes(WEIGHTS[:3]))
    archive = daemon.published("checkpoint-1.arz")
    arzstream.unpack(str(archive), str(tmp_path / "back"))
    assert os.readlink(tmp_path / "back/inside.bin") == "model.safetensors"
    assert os.readlink(tmp_path / "back/sub/absolute.bin") == "../model.safetensors"
    assert not os.path.lexists(tmp_path / "back/latest")


def test_a_link_to_a_file_of_ones_own_outside_is_followed(running, places, tmp_path):
    source, _ = places
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (blobs / "abc").write_bytes(tensors.safetensors_bytes(WEIGHTS[:3]))
    daemon = running()
    folder = source / "snapshots-1" / "main"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    os.symlink(blobs / "abc", folder / "model.safetensors")
    archive = daemon.published("snapshots-1/main.arz")
    arzstream.unpack(str(archive), str(tmp_path / "back"))
    assert (tmp_path / "back/model.safetensors").read_bytes() == (blobs / "abc").read_bytes()


def test_an_overwritten_checkpoint_gets_an_archive_of_its_own(running, places, tmp_path):
    source, dest = places
    daemon = running()
    folder = source / "checkpoint-1"
    (folder / "empty").mkdir(parents=True)
    old = tensors.safetensors_bytes(WEIGHTS[:3])
    (folder / "model.safetensors").write_bytes(old)
    first = daemon.published("checkpoint-1.arz").read_bytes()
    daemon.state("checkpoint-1", "published")
    new = np.frombuffer(old, np.uint8).copy()
    new[-1000:] ^= 1
    (folder / "model.safetensors").write_bytes(new.tobytes())
    _exact(folder, daemon.published("checkpoint-1.2.arz"), tmp_path / "back")
    assert (dest / "checkpoint-1.arz").read_bytes() == first
    writers.renamed(folder / "model.safetensors", WEIGHTS[:2], pace=writers.Pace(), log=writers.EventLog())
    _exact(folder, daemon.published("checkpoint-1.3.arz"), tmp_path / "back3")


def test_touching_a_published_checkpoint_changes_nothing(running, places):
    source, dest = places
    daemon = running()
    folder = source / "checkpoint-1"
    folder.mkdir()
    path = folder / "model.safetensors"
    path.write_bytes(tensors.safetensors_bytes(WEIGHTS[:3]))
    daemon.published("checkpoint-1.arz")
    identity = daemon.state("checkpoint-1", "published").identity
    os.chmod(path, 0o600)
    os.utime(path)
    daemon.until(lambda: daemon.state("checkpoint-1", "published").identity != identity, "the touch to be noticed")
    assert sorted(os.listdir(dest)) == [".arzstream", "checkpoint-1.arz"]


def test_a_complete_folder_that_is_deleted_while_it_waits_is_archived_all_the_same(running, places, tmp_path):
    source, _ = places
    daemon = running(quiet_time=2.0)
    folder = source / "checkpoint-1"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(tensors.safetensors_bytes(WEIGHTS))
    before = process.tree(folder)
    daemon.state("checkpoint-1", "settling")
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    archive = daemon.published("checkpoint-1.arz")
    arzstream.unpack(str(archive), str(tmp_path / "back"))
    assert process.tree(tmp_path / "back") == before


def test_an_incomplete_folder_that_vanishes_leaves_nothing_but_a_reason(running, places):
    source, dest = places
    daemon = running()
    folder = source / "checkpoint-1"
    folder.mkdir()
    path = folder / "model.safetensors"
    path.write_bytes(tensors.safetensors_bytes(WEIGHTS)[:-100])
    daemon.state("checkpoint-1", "landing")
    daemon.until(lambda: temporaries(dest), "early coding")
    path.unlink()
    folder.rmdir()
    entry = daemon.state("checkpoint-1", "gone")
    assert "vanished" in entry.waiting and temporaries(dest) == []
    folder.mkdir()
    path.write_bytes(tensors.safetensors_bytes(WEIGHTS))
    daemon.published("checkpoint-1.arz")


def test_empty_files_many_files_and_odd_names(running, places, tmp_path):
    source, _ = places
    daemon = running()
    folder = os.fsencode(source) + b"/run \xff\xfe/checkpoint-7"
    os.makedirs(folder + b"/sub/\xe2\x98\x83")
    for number in range(300):
        with open(folder + b"/sub/%d.json" % number, "wb") as file:
            file.write(b"%d" % number)
    for name in (b"empty", b"line\nbreak", b"\xff.bin"):
        open(folder + b"/" + name, "wb").close()
    with open(folder + b"/model.safetensors", "wb") as file:
        file.write(tensors.safetensors_bytes(WEIGHTS[:2]))
    os.chmod(folder + b"/empty", 0o400)
    archive = daemon.dest / os.fsdecode(b"run \xff\xfe") / "checkpoint-7.arz"
    daemon.until(archive.exists, "the archive")
    _exact(Path(os.fsdecode(folder)), archive, tmp_path / "back")
    assert archive.stat().st_mode & 0o777 == 0o400 | 0o200


def test_a_sharded_save_of_transformers_with_its_tokenizer(running, places, tmp_path):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    source, _ = places
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, vocab_size=999
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    daemon = running()
    folder = source / "checkpoint-3"
    model.save_pretrained(folder, max_shard_size="200KB")
    (folder / "tokenizer.json").write_text('{"model": {}}')
    torch.save({"state": {0: {"exp_avg": torch.randn(64, 64)}}, "step": 3}, folder / "optimizer.pt")
    (folder / "trainer_state.json").write_text('{"global_step": 3}')
    assert len(list(folder.glob("*.safetensors"))) > 2
    _exact(folder, daemon.published("checkpoint-3.arz"), tmp_path / "back")
    with arzstream.open(str(daemon.dest / "checkpoint-3.arz")) as archive:
        for name, tensor in model.state_dict().items():
            if name in set(archive.keys()):
                assert torch.equal(archive.get_tensor(name), tensor)


def test_nothing_is_left_open(running, places, tmp_path):
    source, _ = places
    daemon = running()

    def descriptors() -> int:
        return sum(
            os.path.islink(f"/proc/self/fd/{fd}") and str(tmp_path) in os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.lexists(f"/proc/self/fd/{fd}")
        )

    daemon.until(lambda: daemon.supervisor._hints.live, "start")
    before = descriptors()
    for number in range(3):
        folder = source / f"checkpoint-{number}"
        folder.mkdir()
        for shard in range(5):
            (folder / f"{shard}.safetensors").write_bytes(tensors.safetensors_bytes(WEIGHTS[:2]))
        (folder / "0.safetensors").unlink()
        daemon.published(f"checkpoint-{number}.arz")
        daemon.state(f"checkpoint-{number}", "published")
    daemon.until(lambda: descriptors() <= before, "descriptors to be closed")


@pytest.mark.parametrize("seen", ["partly deleted", "gone", "partly written again"])
def test_a_checkpoint_that_is_deleted_and_written_again_is_archived_as_it_ends_up(running, places, monkeypatch, seen):
    """Whatever of that is seen, before anything of it was published."""
    source, dest = places
    folder, between, looks = source / "last", threading.Lock(), [0]
    real = Census.one

    def one(self, checkpoint):
        with between:
            looks[0] += 1
            return real(self, checkpoint)

    monkeypatch.setattr(Census, "one", one)

    def write(*numbers, seed):
        folder.mkdir(exist_ok=True)
        for number in numbers:
            weights = tensors.model(layers=1, width=64, vocabulary=64, seed=seed + number)
            (folder / f"{number}.safetensors").write_bytes(tensors.safetensors_bytes(weights))

    def archived():
        paths = list(folder.iterdir())
        for place in dest.glob("last*.arz"):
            with arzstream.open(str(place)) as archive:
                held = {name: archive.read_file(name) for name in archive.files()}
            if held == {path.name: path.read_bytes() for path in paths}:
                return True
        return False

    daemon = running(quiet_time=1.5)
    with between:
        write(0, 1, 2, seed=0)
    daemon.state("last", "settling")
    daemon.until(lambda: len(daemon.supervisor._roster.tracks[b"last"].watched) == 3, "all of it to be seen")
    track = daemon.supervisor._roster.tracks[b"last"]
    if seen == "partly deleted":
        (folder / "0.safetensors").unlink()
        daemon.until(lambda: track.deleted and track.frozen, "that to be seen")
    if seen == "gone":
        shutil.rmtree(folder)
        daemon.until(lambda: track.gone and track.frozen, "that to be seen")
    with between:
        before = looks[0]
        shutil.rmtree(folder, ignore_errors=True)
        write(0, 1, seed=10)
    daemon.until(lambda: looks[0] > before + 1, "it to be looked at")
    write(2, seed=10)
    daemon.until(archived, "what was written last to be archived")
    daemon.state("last", "published")


def _change(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    with open(path, "r+b") as file:
        file.write(data)


@pytest.mark.parametrize("moment", ["before it is sealed", "before it is published"])
@pytest.mark.parametrize("change", ["content", "new file", "replaced"])
def test_a_source_that_changes_at_the_last_moment_is_archived_as_it_ends_up(
    running, places, tmp_path, monkeypatch, moment, change
):
    source, dest = places
    folder = source / "checkpoint-1"
    left = [1]

    def interfere() -> None:
        if left[0]:
            left[0] = 0
            if change == "content":
                _change(folder / "model.safetensors")
            elif change == "new file":
                (folder / "late.json").write_text("{}")
            else:
                (source / "other").write_bytes((folder / "config.json").read_bytes())
                (source / "other").rename(folder / "config.json")

    if moment == "before it is sealed":
        settle = work.Job._settle

        def settled(self, builder, order):
            settle(self, builder, order)
            interfere()

        monkeypatch.setattr(work.Job, "_settle", settled)
    else:
        check = draft.publish.check

        def checked(reader, expected, replay):
            check(reader, expected, replay)
            interfere()

        monkeypatch.setattr(draft.publish, "check", checked)
    daemon = running()
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(tensors.safetensors_bytes(WEIGHTS[:5]))
    _exact(folder, daemon.published("checkpoint-1.arz"), tmp_path / "back")
    daemon.state("checkpoint-1", "published")
    assert left == [0] and sorted(os.listdir(dest)) == [".arzstream", "checkpoint-1.arz"]
