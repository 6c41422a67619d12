"""What a writer's process tells about its saves: when one begins, and of what files it consists when it is done."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from arzstream.formats.grouping import is_temporary

__all__ = ["Context", "Writer", "files_of", "sizes_of"]

PATIENCE = 90.0
"""Seconds for which a writer waits for an archive before it goes on without."""


@dataclasses.dataclass
class Context:
    """One phase of one run, in the writer's own process. ``salt`` makes contents differ between phases."""

    root: Path
    dest: Path
    log: Path
    salt: int = 0
    rank: int = 0
    ranks: int = 1
    port: int = 0
    barrier: Callable[[], None] = lambda: None
    _known: set[str] = dataclasses.field(default_factory=set)

    def seed(self, step: int) -> int:
        """Different for each step, phase and rank."""
        return (self.salt * 1000 + step) * 16 + self.rank

    def begin(self, path: str) -> None:
        """A save of the checkpoint ``path`` (relative) begins."""
        if self.rank == 0:
            self._flag(True)
            self._note("begin", path)

    def done(self, path: str, *, saving: bool = False) -> None:
        """It returned, on all ranks. ``saving``: more is written at once."""
        self.barrier()
        if self.rank == 0:
            when = time.time()
            place = self.root / path
            self._note("done", path, when=when, files=files_of(place), sizes=sizes_of(place))
            self._known.add(path)
            self._flag(saving)
            self.sweep()

    def sweep(self) -> None:
        """Note which checkpoints were deleted."""
        for path in sorted(self._known):
            if not os.path.lexists(self.root / path):
                self._note("deleted", path)
                self._known.discard(path)

    def keep(self, paths: list[str], count: int) -> None:
        """Delete all of ``paths`` but the last ``count``, as a writer with a limit does."""
        if self.rank == 0:
            self._flag(True)
            for path in paths[:-count]:
                place = self.root / path
                if place.is_dir():
                    shutil.rmtree(place)
                elif place.exists():
                    place.unlink()
            self._flag(False)
            self.sweep()
        self.barrier()

    def wait_archived(self, path: str, count: int) -> None:
        """Wait for the archive number ``count`` of a checkpoint, so that it is not written again too soon."""
        if self.rank == 0:
            name = path if count == 1 else f"{path}.{count}"
            deadline = time.monotonic() + PATIENCE
            while not (self.dest / f"{name}.arz").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
        self.barrier()

    def _flag(self, saving: bool) -> None:
        self.log.with_suffix(".flag").write_text("1" if saving else "0")

    def _note(self, event: str, path: str, when: float = 0.0, **more: Any) -> None:
        line = json.dumps({"event": event, "path": path, "time": when or time.time(), **more})
        with open(self.log, "a") as file:
            file.write(line + "\n")


class Writer:
    """One way of writing. ``prepare`` runs once, before processes are forked; the rest in each of them."""

    name = ""
    ranks = 1
    withstands = 8.0
    """Seconds that it may be stopped for in the middle of a save, by what its rule promises."""
    paths: tuple[str, ...] = ()
    """Folders below ``.venv/writers`` that it needs."""
    large = False
    """Whether only ``tools/writers/install --all`` installs it."""
    markers: tuple[str, ...] = ()
    """Files of a checkpoint that may lie there from an earlier one, and lie."""
    commit = ""
    """The file of a checkpoint by which the library itself knows, when it begins again, that it was saved."""
    cases: tuple[str, ...] = ("ordinary", "overwritten", "rotation", "crash", "lies")

    def prepare(self) -> None:
        """Import what is slow to import, and make what all processes share."""

    def start(self, context: Context) -> None:
        """In each process, before its first save."""

    def path(self, step: int) -> str:
        """The checkpoint of a step, relative to the run's folder."""
        return f"checkpoint-{step}"

    def save(self, context: Context, place: Path, step: int) -> None:
        """Write one checkpoint, with contents that ``context.seed(step)`` decides."""
        raise NotImplementedError

    def session(self, context: Context, steps: Iterable[int], keep: int = 0) -> None:
        """Save the checkpoints of ``steps``, keeping the last ``keep``."""
        saved: list[str] = []
        for step in steps:
            path = self.path(step)
            context.begin(path)
            self.save(context, context.root / path, step)
            context.done(path)
            saved.append(path)
            if keep:
                context.keep(saved, keep)
            time.sleep(0.3)

    def plant(self, context: Context, source: int, target: int) -> None:
        """Leave the markers of the checkpoint of step ``source`` in that of step ``target``, which does not exist."""
        if context.rank == 0:
            for marker in self.markers:
                found = context.root / self.path(source) / marker
                place = context.root / self.path(target) / marker
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(found, place)
        context.barrier()


def files_of(place: Path) -> dict[str, str]:
    """SHA-256 of each file of a checkpoint, by its path inside (for a lone file its name)."""
    if not place.is_dir():
        return {place.name: hashlib.sha256(place.read_bytes()).hexdigest()}
    found = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        if path.is_file() and not is_temporary(os.fsencode(name)):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def sizes_of(place: Path) -> list[tuple[str, int]]:
    """(path inside, size) of each file of a checkpoint, the one that was written last at the end."""
    paths = [path for path in place.rglob("*") if path.is_file()] if place.is_dir() else [place]
    found = [(path.stat().st_mtime_ns, path) for path in paths if not is_temporary(os.fsencode(path.name))]
    return [
        (str(path.relative_to(place)) if path != place else path.name, path.stat().st_size) for _, path in sorted(found)
    ]
