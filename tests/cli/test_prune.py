"""``arzstream prune`` says first what it would do, breaks no chain, and touches nothing that it did not make."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import arzstream
from arzstream.daemon import prune
from arzstream.daemon.destination import Folder
from arzstream.daemon.inventory import take
from arzstream.daemon.journal import FOLDER, Archive, Entry, Journal
from arzstream.daemon.lineages import recorded
from arzstream.daemon.memory import Memory
from arzstream.daemon.states import State
from arzstream.store import local
from arzstream.store.lock import FileLock
from arzstream.testing import tensors

Arz = Callable[..., Any]
WEIGHTS = tensors.model(layers=2, width=128, vocabulary=256)
STEPS = tuple(range(10, 70, 10))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A destination as the daemon leaves it: six steps of a run, each coded against the one before, in ``archive``,
    their sources in ``run``."""
    base = tmp_path_factory.mktemp("prune")
    parent = None
    for step in STEPS:
        folder = base / "run" / f"step-{step}"
        folder.mkdir(parents=True)
        weights = tensors.trained(WEIGHTS, step // 10)
        (folder / "model.safetensors").write_bytes(tensors.safetensors_bytes(weights))
        archive = base / "archive" / "run" / f"step-{step}.arz"
        arzstream.pack(folder, archive, parent=parent)
        parent = archive
    with Journal.open(str(base / "archive")) as journal:
        for number, step in enumerate(STEPS):
            record = recorded(Folder(str(base / "archive")), f"run/step-{step}.arz", b"run/step-%d" % step)
            entry = Entry(record.path, State.PUBLISHED, archive=record.name, bytes_in=record.bytes_in)
            journal.add_archive(Archive(**{**record.__dict__, "published": 1000.0 + number}), entry)
    return base


@pytest.fixture
def run(template: Path, tmp_path: Path) -> Path:
    """A copy of it; its sources are ``run.parent / "run"``."""
    shutil.copytree(template, tmp_path / "copy", copy_function=shutil.copy2)
    return tmp_path / "copy" / "archive"


def there(run: Path) -> list[int]:
    return sorted(int(path.stem.split("-")[1]) for path in (run / "run").glob("*.arz"))


def files(run: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in run.rglob("*.arz")}


def same(run: Path) -> None:
    """Every archive that is there is whole, and what its source is."""
    for step in there(run):
        archive = run / "run" / f"step-{step}.arz"
        arzstream.verify(archive, deep=True, against=run.parent / "run" / f"step-{step}")


def test_it_says_what_it_would_do_and_changes_nothing(arz: Arz, run: Path) -> None:
    before = files(run)
    done = arz("prune", run, "--keep-last", "2")
    assert done.code == 0 and "nothing is changed without --yes" in done.out
    assert [line.split()[0] for line in done.out.splitlines()[1:-1]] == ["remove"] * 4 + ["keep"] * 2
    assert "run/step-50.arz" in done.out and "coded anew to stand alone" in done.out
    assert "coded anew against run/step-50.arz" in done.out
    found = arz("prune", run, "--keep-last", "2", "--json").json
    assert [step["name"] for step in found["remove"]] == [f"run/step-{step}.arz" for step in (40, 30, 20, 10)]
    assert not found["done"] and found["frees"] == sum(step["bytes"] for step in found["remove"]) > found["costs"]
    assert arz("prune", run, "--keep-last", "2", "--quiet").out == ""
    assert files(run) == before


def test_kept_archives_are_coded_anew_and_the_rest_goes(arz: Arz, run: Path) -> None:
    done = arz("prune", run, "--keep-last", "2", "--yes")
    assert done.code == 0 and "4 archives removed" in done.out and "2 coded anew" in done.out
    assert there(run) == [50, 60]
    same(run)
    with arzstream.open(run / "run" / "step-60.arz") as opened:
        assert [hint for hint, _ in opened.parents()] == ["step-50.arz"]
    with Journal.read(str(run)) as journal:
        archives, entries = journal.archives(), journal.entries()
    assert archives.keys() == {"run/step-50.arz", "run/step-60.arz"}
    assert archives["run/step-60.arz"].bytes_out == (run / "run" / "step-60.arz").stat().st_size
    states = {os.path.basename(path): entry.state.value for path, entry in entries.items()}
    assert [states[b"step-%d" % step] for step in STEPS] == ["retired"] * 4 + ["published"] * 2
    assert [path.name for path in run.rglob("*") if local.is_temporary(path.name)] == []
    again = arz("prune", run, "--keep-last", "2", "--yes", "--json").json
    assert again["removed"] == [] and again["rebased"] == []


def nested(run: Path, step: int) -> Path:
    """An archive in a destination of its own below ``run``, coded against the one of ``step``."""
    place = run / "run" / "ft"
    (place / FOLDER).mkdir(parents=True)
    arzstream.pack(run.parent / "run" / "step-60", place / "step-1.arz", parent=run / "run" / f"step-{step}.arz")
    return place / "step-1.arz"


@pytest.mark.parametrize("rebase", [(), ("--no-rebase",)])
def test_what_a_destination_below_needs_stays(arz: Arz, run: Path, rebase: tuple[str, ...]) -> None:
    other = nested(run, 30)
    found = arz("prune", run, "--keep-last", "1", *rebase, "--yes", "--json").json
    assert found["keep"]["run/ft/step-1.arz"] == "not of a run"
    assert {10, 20, 30} <= set(there(run)) and "run/step-30.arz" not in found["removed"]
    arzstream.verify(other, deep=True, against=run.parent / "run" / "step-60")
    same(run)


def test_archives_of_a_destination_below_are_never_removed(arz: Arz, run: Path) -> None:
    with Journal.read(str(run)) as journal:
        records = journal.archives()
    (run / "run" / FOLDER).mkdir()  # another daemon works here now
    inventory = take(str(run), records)
    assert len(inventory.held) == len(STEPS) and not any(held.ours for held in inventory.held.values())
    found = arz("prune", run, "--keep-last", "1", "--yes", "--json").json
    assert found["removed"] == found["rebased"] == [] and there(run) == list(STEPS)


def test_nothing_is_removed_while_an_archive_of_a_destination_below_cannot_be_read(arz: Arz, run: Path) -> None:
    other = nested(run, 30)
    other.write_bytes(other.read_bytes()[:-9])
    found = arz("prune", run, "--keep-last", "1", "--no-rebase", "--yes", "--json").json
    assert found["removed"] == [] and "step-1.arz" in found["left_alone"]["run"]


def test_without_rebase_what_a_kept_archive_needs_stays(arz: Arz, run: Path) -> None:
    done = arz("prune", run, "--keep-last", "2", "--no-rebase", "--yes")
    assert done.out.splitlines()[-1] == "nothing is removed" and "needs it" in done.out
    assert there(run) == list(STEPS)
    done = arz("prune", run, "--keep-every", "30", "--no-rebase", "--yes")
    assert there(run) == list(STEPS)
    same(run)


def test_it_is_coded_anew_only_if_that_frees_more_than_it_costs(arz: Arz, run: Path) -> None:
    found = arz("prune", run, "--keep-last", "5", "--keep-every", "10", "--json").json
    assert found["remove"] == found["rebase"] == []
    found = arz("prune", run, "--keep-every", "20", "--yes", "--json").json
    assert (found["done"] and found["grown"] < found["freed"]) or not found["removed"]
    same(run)


def test_what_somebody_else_put_there_stays_with_what_it_needs(arz: Arz, run: Path) -> None:
    arzstream.pack(run.parent / "run" / "step-20", run / "run" / "step-21.arz", parent=run / "run" / "step-20.arz")
    (run / "run" / "step-11.arz").write_bytes((run / "run" / "step-10.arz").read_bytes())
    done = arz("prune", run, "--keep-last", "1", "--yes")
    assert done.code == 0
    assert set(there(run)) >= {10, 11, 20, 21, 60}
    arzstream.verify(run / "run" / "step-21.arz", deep=True)


def test_a_file_that_is_no_longer_the_archive_it_was_is_not_removed(arz: Arz, run: Path) -> None:
    for step in (10, 60):
        arzstream.pack(run.parent / "run" / f"step-{step}", run / "run" / f"step-{step}.arz", force=True)
    arzstream.pack(run.parent / "run" / "step-50", run / "run" / "step-10.arz", force=True)
    assert arz("prune", run, "--keep-last", "1", "--yes").code == 0
    assert 10 in there(run) and 60 in there(run)


def test_what_was_replaced_since_it_was_looked_at_is_not_removed(run: Path) -> None:
    with Journal.open(str(run)) as journal:
        memory = Memory(journal)
        before = take(str(run), memory.archives)
        os.utime(run / "run" / "step-50.arz", ns=(1, 1))
        names = [f"run/step-{step}.arz" for step in (60, 50, 40)]
        gone = prune.remove(str(run), memory, before, names)
        assert gone.names == names[:1] and gone.problem is None
        assert "run/step-50.arz" in journal.archives() and not any(a.retired for a in journal.archives().values())
    assert there(run) == list(STEPS[:-1])


def test_mistakes_are_one_line(arz: Arz, run: Path, tmp_path: Path) -> None:
    assert arz("prune", run).code == 2
    assert "--keep-last" in arz("prune", run).line
    assert arz("prune", run, "--keep-last", "-1").code == 2
    assert arz("prune", run, "--keep-last", "1", "--yes", "--dry-run").code == 2
    assert arz("prune", tmp_path, "--keep-last", "1").code == 4
    lock = FileLock(str(run / FOLDER / "lock"))
    assert lock.acquire()
    done = arz("prune", run, "--keep-last", "1", "--yes", "--quiet")
    assert done.code == 4 and "a daemon is at work here" in done.line
    assert "nothing is changed" in arz("prune", run, "--keep-last", "1", "--dry-run").out  # looking is allowed
    lock.release()
    (run / "run" / "step-30.arz").write_bytes(b"no archive")
    done = arz("prune", run, "--keep-last", "1", "--yes")
    assert done.code == 0 and "nothing is removed in run: " in done.out and len(list((run / "run").iterdir())) == 6


def test_rules_come_from_a_file(arz: Arz, run: Path, tmp_path: Path) -> None:
    config = tmp_path / "arz.toml"
    config.write_text(f'dest = "{run}"\nkeep-last = 1\nkeep-full = true\nmax-chain = 4\nno-parents = false\n')
    found = arz("prune", "--config", config, "--json").json
    assert found["keep"]["run/step-10.arz"] == "stands alone" and found["keep"]["run/step-60.arz"] == "one of the last"
    config.write_text("keep-last = true\n")
    assert "keep-last" in arz("prune", run, "--config", config).line
    config.write_text("keep-full = 1\n")
    assert "keep-full" in arz("prune", run, "--config", config).line


def test_a_removal_that_fails_stops_and_is_said(arz: Arz, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = local.unlink

    def failing(path: Any, **how: Any) -> bool:
        if str(path).endswith("step-30.arz"):
            raise arzstream.StorageError(f"{path}: cannot remove it: made up", errno=5)
        return real(path, **how)

    monkeypatch.setattr(prune.local, "unlink", failing)
    done = arz("prune", run, "--keep-last", "1", "--yes", "--quiet")
    assert done.code == 4 and "step-30.arz: cannot remove it" in done.line
    assert there(run) == [10, 20, 30, 60]
    same(run)
    monkeypatch.undo()
    assert arz("prune", run, "--keep-last", "1", "--yes").code == 0
    assert there(run) == [60]


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("at", range(14))
def test_a_kill_at_any_step_leaves_every_archive_readable(
    arz: Arz, run: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """At each call that publishes, removes or writes the journal; afterwards the daemon's tidying, and once more."""
    count = [at]

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **how: Any) -> Any:
            if count[0] == 0:
                raise Killed
            count[0] -= 1
            return function(*args, **how)

        return call

    for owner, name in (
        (local, "unlink"), (local, "publish"), (local, "sync_folder"),
        (Journal, "put_archives"), (Journal, "remove_archives"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    try:
        arz("prune", run, "--keep-last", "2", "--yes")
    finally:
        monkeypatch.undo()
    same(run)
    with Journal.open(str(run)) as journal:
        memory = Memory(journal)
        prune.settle_retired(str(run), memory)
        assert set(memory.archives) == {f"run/step-{step}.arz" for step in there(run)}
        assert not any(archive.retired for archive in journal.archives().values())
        gone = [entry for entry in journal.entries().values() if entry.state is State.RETIRED]
        assert len(gone) == 6 - len(there(run))
    assert arz("prune", run, "--keep-last", "2", "--yes").code == 0
    assert there(run) == [50, 60]
    same(run)
