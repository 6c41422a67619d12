"""The daemon codes each checkpoint against the one before it, and nothing that goes wrong with chains loses a step."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import arzstream
from arzstream.daemon import draft, parentage
from arzstream.daemon.journal import FOLDER, Journal
from arzstream.testing import process, tensors

from .conftest import Running, temporaries

WEIGHTS = tensors.model(layers=3, width=128, vocabulary=256)
QUIET = 0.05
OPTIONS = ("--quiet-time", "0.2", "--rescan", "0.5")


def model(step: int, **how: Any) -> list[tensors.Tensor]:
    """The weights at a step, checkpoints ten steps apart."""
    return tensors.trained(WEIGHTS, step // 10, **how)


def save(source: Path, name: str, weights: list[tensors.Tensor]) -> Path:
    """A checkpoint folder, or a lone file, that appears all at once."""
    path, staged = source / name, source.with_name("staged")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    (staged / "config.json").write_text("{}")
    (staged / "model.safetensors").write_bytes(tensors.safetensors_bytes(weights))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix or path.exists():
        os.replace(staged / "model.safetensors", path if path.suffix else path / "model.safetensors")
    else:
        staged.rename(path)
    return path


@pytest.fixture
def watching(running: Callable[..., Running]) -> Callable[..., Running]:
    """A daemon that need not wait, as checkpoints appear all at once."""
    return lambda **settings: running(**{"quiet_time": QUIET, **settings})


def archived(daemon: Running, name: str, weights: list[tensors.Tensor]) -> Path:
    """Save a checkpoint and wait until the journal knows its archive."""
    save(daemon.source, name, weights)
    archive = daemon.published(f"{name}.arz")
    daemon.state(name, "published")
    return archive


def parents(archive: Path) -> list[str]:
    with arzstream.open(archive) as opened:
        return [hint for hint, _ in opened.parents()]


def same(archive: Path, source: Path) -> None:
    arzstream.verify(archive, deep=True, against=source)


def test_a_checkpoint_that_is_renamed_into_another_folder_joins_the_run_there(
    watching: Callable[..., Running], tmp_path: Path
) -> None:
    daemon = watching()
    for name in ("staging/step-0", "step-0"):
        archived(daemon, name, model(0))
    staged, final = daemon.source / "staging" / "step-10", daemon.source / "step-10"
    data = tensors.safetensors_bytes(model(10))
    staged.mkdir()
    (staged / "model.safetensors").write_bytes(data[:-1000])
    daemon.until(lambda: (entry := daemon.entry("staging/step-10")) and entry.bytes_coded, "some of it to be coded")
    staged.rename(final)
    with open(final / "model.safetensors", "ab") as file:
        file.write(data[-1000:])
    archive = daemon.published("step-10.arz")
    same(archive, final)
    assert daemon.state("step-10", "published").archive == "step-10.arz"
    assert parents(archive) == ["step-0.arz"]
    assert sorted(path.name for path in daemon.dest.rglob("*.arz")) == ["step-0.arz", "step-0.arz", "step-10.arz"]
    assert b"staging/step-10" not in daemon.entries() and temporaries(daemon.dest) == []


def test_checkpoints_of_a_run_make_chains_and_full_archives_on_schedule(watching: Callable[..., Running]) -> None:
    daemon = watching(max_chain=2)
    archives = [archived(daemon, f"run/checkpoint-{step}", model(step)) for step in range(10, 70, 10)]
    assert [len(parents(archive)) for archive in archives] == [0, 1, 2, 0, 1, 2]
    assert parents(archives[2]) == ["checkpoint-20.arz", "checkpoint-10.arz"]
    for step, archive in zip(range(10, 70, 10), archives, strict=True):
        same(archive, daemon.source / "run" / f"checkpoint-{step}")
    assert archives[1].stat().st_size < 0.2 * archives[0].stat().st_size
    assert daemon.entry("run/checkpoint-20").parent == "run/checkpoint-10.arz"
    with Journal.read(str(daemon.dest)) as journal:
        known = journal.archives()
    assert known["run/checkpoint-30.arz"].parent == "run/checkpoint-20.arz"
    assert known["run/checkpoint-40.arz"].parent == "" and known["run/checkpoint-40.arz"].content


def landed(daemon: Running, name: str, weights: list[tensors.Tensor], *, parent: str) -> Path:
    """Write all but the last bytes, wait until half of them are coded against ``parent``, and write the rest."""
    (daemon.source / name).mkdir()
    data, path = tensors.safetensors_bytes(weights), daemon.source / name / "model.safetensors"
    (path.parent / "config.json").write_text("{}")
    with path.open("wb") as file:
        file.write(data[:-1000])
        file.flush()

        def half() -> bool:
            entry = daemon.entry(name)
            return entry is not None and entry.bytes_coded > 0.5 * len(data) and entry.parent == parent

        daemon.until(half, "half of it to be coded")
        file.write(data[-1000:])
    archive = daemon.published(f"{name}.arz")
    assert daemon.state(name, "published").early > 0.5
    return archive


def test_layers_are_coded_against_the_parent_while_they_land(watching: Callable[..., Running]) -> None:
    daemon = watching()
    archived(daemon, "step-10", model(10))
    archive = landed(daemon, "step-20", model(20), parent="step-10.arz")
    assert parents(archive) == ["step-10.arz"]
    same(archive, daemon.source / "step-20")


def test_a_different_model_beside_it_is_another_run(watching: Callable[..., Running]) -> None:
    daemon = watching()
    other = tensors.model(layers=3, width=96, vocabulary=256)
    archived(daemon, "step-10", model(10))
    assert parents(archived(daemon, "step-11", other)) == []
    assert parents(archived(daemon, "step-20", model(20))) == ["step-10.arz"]
    assert parents(archived(daemon, "step-21", tensors.trained(other))) == ["step-11.arz"]
    assert parents(archived(daemon, "elsewhere/step-30", model(30))) == []


def test_a_checkpoint_that_is_written_again_and_again_is_a_run(watching: Callable[..., Running]) -> None:
    daemon = watching()
    archived(daemon, "last.safetensors", model(10))
    save(daemon.source, "last.safetensors", model(20))
    second = daemon.published("last.safetensors.2.arz")
    daemon.state("last.safetensors", "published")
    save(daemon.source, "last.safetensors", model(30))
    third = daemon.published("last.safetensors.3.arz")
    assert parents(second) == ["last.safetensors.arz"] and parents(third)[0] == "last.safetensors.2.arz"
    same(third, daemon.source / "last.safetensors")


def test_what_holds_what_an_earlier_one_holds_is_coded_against_that(watching: Callable[..., Running]) -> None:
    daemon = watching()
    archives = [archived(daemon, f"step-{step}", model(step)) for step in (10, 20, 30)]
    back = archived(daemon, "step-40", model(10))
    assert parents(back) == ["step-10.arz"] and back.stat().st_size < 0.5 * archives[1].stat().st_size
    assert parents(archived(daemon, "step-50", model(20)))[0] == "step-40.arz"
    same(back, daemon.source / "step-40")


def test_an_archive_that_saves_nothing_stands_alone(watching: Callable[..., Running]) -> None:
    daemon = watching()
    archived(daemon, "step-10", model(10))
    unrelated = tensors.model(layers=3, width=128, vocabulary=256, seed=9)
    assert parents(archived(daemon, "step-20", unrelated)) == []
    assert parents(archived(daemon, "step-30", tensors.trained(unrelated))) == ["step-20.arz"]


def test_that_it_saves_nothing_is_found_out_early(watching: Callable[..., Running], monkeypatch: Any) -> None:
    monkeypatch.setattr(draft, "PROBE_BYTES", 100_000)
    daemon = watching()
    archived(daemon, "step-10", model(10))
    unrelated = tensors.model(layers=3, width=128, vocabulary=256, seed=9)
    archive = landed(daemon, "step-20", unrelated, parent="")
    assert parents(archive) == []
    same(archive, daemon.source / "step-20")


def test_without_parents_each_stands_alone(watching: Callable[..., Running]) -> None:
    daemon = watching(no_parents=True)
    assert [parents(archived(daemon, f"step-{step}", model(step))) for step in (10, 20)] == [[], []]


def test_the_first_of_a_run_is_coded_against_a_base_model(places: tuple[Path, Path], tmp_path: Path) -> None:
    source, dest = places
    base = tmp_path / "models" / "base.arz"
    arzstream.pack(save(tmp_path, "base.safetensors", WEIGHTS), base)
    with Running(source, dest, quiet_time=QUIET, parent=str(base), max_chain=2) as daemon:
        first = archived(daemon, "tune/step-10", model(10))
        second = archived(daemon, "tune/step-20", model(20))
        third = archived(daemon, "tune/step-30", model(30))  # two behind: the chain begins again at the base
        adapter = [tensors.Tensor("lora_A.weight", "BF16", (8, 128), bytes(2048))]
        assert parents(archived(daemon, "adapter/step-10", adapter)) == []
    assert [Path(hint).name for hint in parents(first)] == ["base.arz"]
    assert parents(second)[0] == "step-10.arz" and [Path(hint).name for hint in parents(third)] == ["base.arz"]
    same(third, source / "tune" / "step-30")
    base.rename(tmp_path / "moved.arz")
    with pytest.raises(arzstream.MissingParentError, match=r"base\.arz"):
        arzstream.unpack(first, tmp_path / "part")
    arzstream.unpack(first, tmp_path / "back", parents=tmp_path)
    with Running(source, dest, quiet_time=QUIET, parent=str(base)) as daemon:  # a base that is not there stops nothing
        archived(daemon, "fresh/step-10", tensors.model(layers=3, width=128, vocabulary=256, seed=3))
        note = daemon.state("fresh/step-10", "published").note
    assert "base.arz" in note and note.endswith("; coded alone")


def _flip(archive: Path) -> None:
    """Damage the first chunk of a tensor that changes; index and digests stay as they are."""
    data = bytearray(archive.read_bytes())
    with arzstream.open(archive) as opened:
        entry = opened.catalog.find("model.embed_tokens.weight").entry
        data[int(opened.directory.chunk_table(entry.number)[0]["offset"]) + 100] ^= 1
    archive.unlink()
    archive.write_bytes(data)


@pytest.mark.parametrize("harm", ["missing", "damaged", "cut", "first damaged", "first missing"])
def test_a_bad_parent_is_passed_over_and_named(watching: Callable[..., Running], harm: str) -> None:
    daemon = watching()
    archives = [archived(daemon, f"step-{step}", model(step)) for step in (10, 20, 30)]
    bad = archives[0] if harm.startswith("first") else archives[2]
    if harm.endswith("missing"):
        bad.unlink()
    elif harm.endswith("damaged"):
        _flip(bad)
    else:
        bad.write_bytes(bad.read_bytes()[:-100])
    archive = archived(daemon, "step-40", model(40))
    entry = daemon.entry("step-40")
    same(archive, daemon.source / "step-40")
    found = parents(archive)
    assert found == ([] if harm.startswith("first") else ["step-20.arz", "step-10.arz"])
    assert bad.name in entry.note
    assert entry.note.endswith("; coded alone" if not found else "; coded against step-20.arz")
    status = process.arzstream("status", daemon.dest)
    assert entry.note in status.stdout.replace("\n    ", " ")
    same(archived(daemon, "step-50", model(50)), daemon.source / "step-50")
    assert parents(daemon.dest / "step-50.arz")[0] == "step-40.arz" and not daemon.entry("step-50").note
    if harm == "damaged":  # it is not tried again
        assert parents(archived(daemon, "step-35", model(30)))[0] == "step-20.arz" and not daemon.entry("step-35").note


def test_a_parent_that_is_removed_while_the_child_is_coded_costs_nothing_but_time(
    watching: Callable[..., Running], monkeypatch: Any
) -> None:
    daemon, real, left = watching(), draft.Draft.check, [1]

    def removing(self: draft.Draft, files: Any) -> None:
        if left[0] and self.parentage.place:
            left[0] = 0
            os.unlink(self.parentage.place)
        real(self, files)

    archived(daemon, "step-10", model(10))
    archived(daemon, "step-20", model(20))
    monkeypatch.setattr(draft.Draft, "check", removing)
    archive = archived(daemon, "step-30", model(30))
    assert parents(archive) == ["step-10.arz"] and "step-20.arz" in daemon.entry("step-30").note
    same(archive, daemon.source / "step-30")


def test_a_parent_deleted_by_hand_is_asked_for_and_comes_back_at_the_next_start(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    source, dest = places
    with Running(source, dest, quiet_time=QUIET) as daemon:
        for step in (10, 20, 30):
            archived(daemon, f"step-{step}", model(step))
    (dest / "step-10.arz").unlink()
    for step in (20, 30):
        with pytest.raises(
            arzstream.MissingParentError, match=r"coded against 'step-10\.arz' \(content [0-9a-f]{12}…\)"
        ):
            arzstream.unpack(dest / f"step-{step}.arz", tmp_path / str(step))
        with arzstream.open(dest / f"step-{step}.arz") as opened:
            assert opened.read_file("config.json") == b"{}"  # what does not need it still reads
    assert "needs step-10.arz, which is missing" in process.arzstream("status", dest).stdout
    with Running(source, dest, quiet_time=QUIET) as daemon:
        daemon.published("step-10.arz")
        assert not daemon.state("step-10", "published").note
        assert parents(archived(daemon, "step-40", model(40)))[0] == "step-30.arz"  # it is no newer than it was
    for step in (10, 20, 30, 40):
        same(dest / f"step-{step}.arz", source / f"step-{step}")


def test_a_finished_folder_is_archived_step_by_step(places: tuple[Path, Path]) -> None:
    source, dest = places
    for step in (40, 10, 30, 20):  # whatever their times say
        save(source, f"step-{step}", model(step))
    done = process.arzstream("watch", source, dest, "--once", *OPTIONS, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["published"] == 4, done.stderr
    behind = [parents(dest / f"step-{step}.arz")[:1] for step in (10, 20, 30, 40)]
    assert behind == [[], ["step-10.arz"], ["step-20.arz"], ["step-30.arz"]]


@pytest.mark.parametrize("lost", ["nothing", "journal"])
def test_a_daemon_that_is_killed_in_the_middle_of_a_chain_goes_on(
    places: tuple[Path, Path], tmp_path: Path, lost: str
) -> None:
    source, dest = places
    with process.Daemon(source, dest, *OPTIONS, "--max-chain", "3") as daemon:
        for step in (10, 20, 30):
            save(source, f"run/step-{step}", model(step))
            daemon.published(f"run/step-{step}.arz")
        (source / "run" / "step-40").mkdir()
        path = source / "run" / "step-40" / "model.safetensors"
        whole = tensors.safetensors_bytes(model(40))
        path.write_bytes(whole[: len(whole) * 2 // 3])
        daemon.until(lambda: temporaries(dest), "early coding")
        daemon.kill()
        if lost == "journal":
            shutil.rmtree(dest / FOLDER)
            shutil.rmtree(source / "run" / "step-10")  # so that nobody knows of its archive but the archive itself
        daemon.start()
        with path.open("ab") as file:
            file.write(whole[len(whole) * 2 // 3 :])
        daemon.published("run/step-40.arz")
        save(source, "run/step-50", model(50))
        daemon.published("run/step-50.arz")
    assert parents(dest / "run" / "step-40.arz")[0] == "step-30.arz" and not parents(dest / "run" / "step-50.arz")
    for step in (10, 20, 30, 40, 50):
        arzstream.unpack(dest / "run" / f"step-{step}.arz", tmp_path / str(step))
        assert (tmp_path / str(step) / "model.safetensors").read_bytes() == tensors.safetensors_bytes(model(step))


def test_retention_removes_what_nothing_needs_and_nobody_makes_it_again(places: tuple[Path, Path]) -> None:
    source, dest = places
    with Running(source, dest, quiet_time=QUIET, max_chain=1, keep_last=2, keep_every=50) as daemon:
        for step in range(10, 80, 10):
            archived(daemon, f"step-{step}", model(step))
        # 50 was coded alone, 60 against it, 70 alone; 10 to 40 are nobody's.
        left = ["step-50.arz", "step-60.arz", "step-70.arz"]
        daemon.until(lambda: sorted(p.name for p in dest.glob("*.arz")) == left, "the others to be removed")
        daemon.until(lambda: daemon.entry("step-40").state.value == "retired", "that to be known")
    with Running(source, dest, quiet_time=QUIET, max_chain=1, keep_last=2, keep_every=50) as daemon:
        archived(daemon, "step-80", model(80))
        assert daemon.entry("step-10").state.value == "retired"
        save(source, "step-10", model(90))  # but a new content of an old name gets its archive
        daemon.published("step-10.arz")
    assert process.leftovers(dest, [p.name for p in dest.glob("*.arz")]) == []
    assert json.loads(process.arzstream("status", dest, "--json").stdout)["totals"]["states"]["retired"] >= 3


def test_other_rules_are_applied_when_the_settings_are_read_again(watching: Callable[..., Running]) -> None:
    daemon = watching(no_parents=True)
    for step in (10, 20, 30):
        archived(daemon, f"step-{step}", model(step))
    shared = daemon.supervisor._shared
    for last, left in ((2, ["step-20.arz", "step-30.arz"]), (1, ["step-30.arz"])):
        shared.settings = dataclasses.replace(shared.settings, keep_last=last)
        daemon.supervisor._hints.poke()
        daemon.until(lambda left=left: sorted(p.name for p in daemon.dest.glob("*.arz")) == left, f"{left} to be left")


def test_an_archive_that_is_being_coded_against_is_not_removed(watching: Callable[..., Running]) -> None:
    daemon = watching(max_chain=1, keep_last=1)
    archived(daemon, "step-10", model(10))
    (daemon.source / "step-30").mkdir()
    whole = tensors.safetensors_bytes(model(30))
    path = daemon.source / "step-30" / "model.safetensors"
    path.write_bytes(whole[:-1000])
    in_use = daemon.supervisor._shared.in_use
    daemon.until(lambda: in_use.contents, "step 30 to be coded against step 10")
    archived(daemon, "step-20", tensors.model(layers=3, width=128, vocabulary=256, seed=9))  # needs no other
    keeper = daemon.supervisor._keeper
    daemon.until(lambda: not keeper.busy(daemon.supervisor._steering.published), "retention")
    assert (daemon.dest / "step-10.arz").exists()
    with path.open("ab") as file:
        file.write(whole[-1000:])
    same(daemon.published("step-30.arz"), daemon.source / "step-30")
    daemon.state("step-30", "published")
    assert not in_use.contents


def test_damaged_files_are_remembered_until_they_are_others(tmp_path: Path) -> None:
    in_use, place = parentage.InUse(), tmp_path / "x.arz"
    place.write_bytes(b"bad")
    in_use.set_damaged(str(place))
    assert in_use.is_damaged(str(place)) and not in_use.is_damaged(str(tmp_path / "y.arz"))
    os.utime(place, ns=(1, 1))
    assert not in_use.is_damaged(str(place))


def test_a_twin_that_cannot_be_taken_is_not_tried_for_ever() -> None:
    class Lineage:
        def twin(self, content: bytes) -> str | None:
            return "far.arz" if content == b"same" else None

    made = parentage.Parentage(parentage.Choice(("near.arz",), base="base.arz"), parentage.InUse())
    made.lineage = Lineage()
    assert not made.take_twin(b"other")
    assert made.take_twin(b"same") and made._candidates == ["far.arz", "near.arz"]
    assert made.take_twin(b"same") and made._candidates == [] and made._base == ""
