"""What the daemon knows beside the files themselves: earlier archives, and what lies around a checkpoint."""

from __future__ import annotations

import json
import os
import time

import torch

from arzstream.testing import tensors

WEIGHTS = tensors.safetensors_bytes(tensors.model(layers=2, width=32, vocabulary=64))


def _names(dest):
    return sorted(str(path.relative_to(dest)) for path in dest.rglob("*.arz"))


def test_what_is_left_of_an_archived_checkpoint_that_is_being_deleted_is_not_archived(running, places):
    source, dest = places
    daemon = running()
    folder = source / "step_1"
    folder.mkdir()
    for name in ("a.safetensors", "b.safetensors", "c.safetensors"):
        (folder / name).write_bytes(WEIGHTS)
    daemon.published("step_1.arz")
    size = daemon.state("step_1", "published").bytes_in
    (folder / "b.safetensors").unlink()
    daemon.state("step_1", "landing")
    time.sleep(1.5)  # many times the quiet that is asked for
    assert _names(dest) == ["step_1.arz"]
    for name in ("a.safetensors", "c.safetensors"):
        (folder / name).unlink()
    folder.rmdir()
    entry = daemon.state("step_1", "published")
    assert (entry.bytes_in, entry.waiting) == (size, "")


def test_a_checkpoint_waits_for_what_those_before_it_had(running, places):
    source, dest = places
    daemon = running(quiet_time=0.5)
    for step in (1, 2):
        (source / f"step_{step}").mkdir()
        (source / f"step_{step}/model.safetensors").write_bytes(WEIGHTS)
        torch.save({"step": step}, source / f"step_{step}/optimizer.pt")
        daemon.published(f"step_{step}.arz")
    (source / "step_3").mkdir()
    (source / "step_3/model.safetensors").write_bytes(WEIGHTS[:-4] + bytes(4))
    daemon.until(lambda: (entry := daemon.entry("step_3")) and "as before" in entry.waiting, "it to wait")
    time.sleep(1.5)
    assert "step_3.arz" not in _names(dest)
    torch.save({"step": 3}, source / "step_3/optimizer.pt")
    daemon.published("step_3.arz")
    assert _names(dest) == ["step_1.arz", "step_2.arz", "step_3.arz"]


def test_a_checkpoint_that_is_written_again_is_no_mixture_of_two(running, places):
    source, dest = places
    daemon = running(quiet_time=0.5)
    folder = source / "last"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    torch.save({"step": 1}, folder / "optimizer.pt")
    daemon.published("last.arz")
    daemon.state("last", "published")
    (folder / "model.safetensors").write_bytes(WEIGHTS[:-4] + bytes(4))
    daemon.until(lambda: "again" in daemon.entry("last").waiting, "it to wait for the optimiser")
    time.sleep(1.5)
    assert _names(dest) == ["last.arz"]
    torch.save({"step": 2}, folder / "optimizer.pt")
    daemon.published("last.2.arz")
    assert _names(dest) == ["last.2.arz", "last.arz"]


def test_a_long_training_whose_state_has_grown_large_is_archived_all_the_same(running, places):
    """As that of a Trainer that has logged some thousand steps."""
    source, _ = places
    entry = {f"rewards/{name}": 0.123456789012345 for name in range(30)}
    state = {"log_history": [{"step": step, **entry} for step in range(9000)]}
    text = json.dumps(state, indent=2) + "\n"
    assert len(text) > 9 << 20
    daemon = running(quiet_time=0.5)
    folder = source / "checkpoint-90000"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "trainer_state.json").write_text(text)
    daemon.published("checkpoint-90000.arz", 30)


def test_what_is_only_expected_is_given_up(running, places):
    source, _ = places
    daemon = running(quiet_time=0.2)
    folder = source / "checkpoint-1"
    folder.mkdir()
    torch.save({}, folder / "optimizer.bin")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    daemon.until(lambda: (entry := daemon.entry("checkpoint-1")) and "random_states" in entry.waiting, "it to wait")
    daemon.published("checkpoint-1.arz")


def test_a_marker_beside_the_folder_is_read(running, places):
    source, dest = places
    daemon = running(quiet_time=0.5)
    folder = source / "run" / "iter_0000010"
    for rank in (0, 1):
        (folder / f"mp_rank_{rank:02}").mkdir(parents=True)
        torch.save({"rank": rank}, folder / f"mp_rank_{rank:02}/model_optim_rng.pt")
    name = "run/iter_0000010"
    daemon.until(lambda: (entry := daemon.entry(name)) and "latest_checkpointed" in entry.waiting, "it to wait")
    time.sleep(1.0)
    assert _names(dest) == []
    (source / "run" / "latest_checkpointed_iteration.txt").write_text("10")
    began = time.monotonic()
    daemon.published(f"{name}.arz")
    assert time.monotonic() - began < 5


def test_a_marker_beside_the_folder_that_is_a_link_is_not_followed(running, places, tmp_path):
    source, dest = places
    (tmp_path / "secret").write_text("global_step1")
    daemon = running(quiet_time=0.1)
    folder = source / "run" / "global_step1"
    folder.mkdir(parents=True)
    os.symlink(tmp_path / "secret", source / "run" / "latest")
    torch.save({"dp_world_size": 1, "mp_world_size": 1, "optimizer": {}}, folder / "mp_rank_00_model_states.pt")
    daemon.until(lambda: (entry := daemon.entry("run/global_step1")) and "latest" in entry.waiting, "it to wait")
    assert _names(dest) == []
    daemon.published("run/global_step1.arz")  # given up in the end


def test_what_waits_for_its_turn_is_not_judged_again_and_again(running, places, monkeypatch):
    """Hundreds may wait; what is judged is those that can begin, and each once more when it does."""
    from arzstream.daemon import steer, track

    source, _ = places
    judged: dict[bytes, int] = {}
    judge = track.Track.judge

    def counted(self, *args):
        judged[self.path] = judged.get(self.path, 0) + 1
        return judge(self, *args)

    monkeypatch.setattr(track.Track, "judge", counted)
    monkeypatch.setattr(steer, "FINISHING", 0)
    names = [f"model_{chr(97 + n)}.safetensors" for n in range(20)]
    for name in names:
        (source / name).write_bytes(WEIGHTS)
    daemon = running()
    daemon.until(lambda: all((e := daemon.entry(n)) and e.waiting == "its turn" for n in names), "all to wait")
    before = dict(judged)
    time.sleep(1.0)
    assert judged == before
    monkeypatch.setattr(steer, "FINISHING", 2)
    for name in names:
        daemon.published(f"{name}.arz")
