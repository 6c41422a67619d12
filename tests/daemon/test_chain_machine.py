"""Whatever is archived, pruned, deleted by hand and killed in whatever order: what could be read can be read."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

import arzstream
from arzstream.daemon import prune
from arzstream.daemon.config import Settings
from arzstream.daemon.destination import Folder
from arzstream.daemon.handover import Shared
from arzstream.daemon.inventory import take
from arzstream.daemon.journal import Entry, Journal
from arzstream.daemon.lineages import Lineages, recorded
from arzstream.daemon.memory import Memory
from arzstream.daemon.retain import Rules, plan
from arzstream.daemon.states import State
from arzstream.store import local
from arzstream.testing import tensors


class Killed(BaseException):
    """The process is gone."""


class Dying:
    """Lets so many calls that change something through, then kills."""

    def __init__(self, calls: int) -> None:
        self.left = calls
        self.patch = pytest.MonkeyPatch()

    def __enter__(self) -> None:
        for owner, name in (
            (local, "unlink"), (local, "publish"), (Journal, "put_archives"), (Journal, "remove_archives"),
        ):  # fmt: skip
            self.patch.setattr(owner, name, self._counting(getattr(owner, name)))

    def __exit__(self, *_exc: object) -> None:
        self.patch.undo()

    def _counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **how: Any) -> Any:
            if not self.left:
                raise Killed
            self.left -= 1
            return function(*arguments, **how)

        return call


class ChainMachine(RuleBasedStateMachine):
    """A destination as the daemon and ``prune`` treat it, with real archives of a tiny model."""

    @initialize()
    def begin(self) -> None:
        self.base = Path(tempfile.mkdtemp())
        self.dest = str(self.base / "archive")
        os.makedirs(self.dest)
        self.step = 0
        self.contents: dict[str, bytes] = {}
        self.rng = np.random.default_rng(0)
        self.weights = self.rng.integers(0, 1 << 14, (64, 64), dtype=np.uint16)
        self.start()

    def start(self) -> None:
        """As the daemon does at its start."""
        self.journal = Journal.open(self.dest)
        self.memory = Memory(self.journal)
        prune.settle_retired(self.dest, self.memory)

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            self.journal.close()
            shutil.rmtree(self.base)

    @rule(max_chain=st.integers(0, 4), written=st.booleans())
    def archive(self, max_chain: int, written: bool) -> None:
        """The next step against the likeliest candidate; without ``written`` the journal does not hear of it."""
        self.step += 10
        self.weights = self.weights ^ (self.rng.random(self.weights.shape) < 0.02)
        tensor = tensors.Tensor("w.weight", "BF16", (64, 64), self.weights.astype("<u2").tobytes())
        file, name = self.base / "model.safetensors", f"step-{self.step}.arz"
        file.write_bytes(tensors.safetensors_bytes([tensor]))
        path = b"step-%d" % self.step
        shared = Shared(Settings(max_chain=max_chain), lambda: None)
        choice = Lineages(Folder(self.dest), shared, self.memory).choice(path, {})
        for parent in [*choice.candidates[:2], None]:
            try:
                arzstream.pack(file, os.path.join(self.dest, name), parent=parent, max_chain=max_chain)
                break
            except arzstream.MissingParentError:
                continue
        self.contents[name] = file.read_bytes()
        if written:
            entry = Entry(path, State.PUBLISHED, archive=name)
            self.memory.published(recorded(Folder(self.dest), name, path), entry)
            self.memory.entries[path] = entry

    @rule(which=st.integers(0, 20))
    def delete(self, which: int) -> None:
        """Somebody deletes an archive by hand."""
        there = sorted(os.listdir(self.dest))
        if len(there) > 2 and there[which % len(there)].endswith(".arz"):
            os.unlink(os.path.join(self.dest, there[which % len(there)]))

    @rule(last=st.integers(1, 4), every=st.sampled_from([0, 20, 50]), rebase=st.booleans(), calls=st.integers(0, 12))
    def prune(self, last: int, every: int, rebase: bool, calls: int) -> None:
        """With a kill after some calls, and the next start."""
        readable = {name for name in self.contents if self.reads(name)}
        rules = Rules(last=last, every=every)
        inventory = take(self.dest, self.memory.archives)
        found = plan(inventory, rules, rebase=rebase, max_chain=3)
        try:
            with Dying(calls):
                prune.code_again(self.dest, self.memory, found, max_chain=3, jobs=1)
                inventory = take(self.dest, self.memory.archives, inventory)
                prune.remove(self.dest, self.memory, inventory, plan(inventory, rules).remove)
        except Killed:
            self.journal.close()
            self.start()
        left = {name for name in self.contents if os.path.exists(os.path.join(self.dest, name))}
        for name in readable & left:
            assert self.reads(name), name
        kept = {name for name in found.keep if name in inventory.held}
        assert kept <= left
        for name, archive in self.memory.archives.items():
            assert not archive.retired, name

    @rule()
    def restart(self) -> None:
        self.journal.close()
        self.start()

    def reads(self, name: str) -> bool:
        """Does it decode to what was packed? A missing parent is the only excuse."""
        try:
            with arzstream.open(os.path.join(self.dest, name)) as archive:
                assert archive.read_file("model.safetensors") == self.contents[name], name
        except (arzstream.MissingParentError, arzstream.StorageError):
            return False
        return True


ChainMachine.TestCase.settings = settings(
    max_examples=15, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
TestChains = ChainMachine.TestCase
