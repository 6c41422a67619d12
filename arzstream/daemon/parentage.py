"""What one checkpoint is coded against: the first of its candidates that can be opened, is of its run, and pays.

Nothing that is wrong with a parent stops a checkpoint: another one is taken, or none, and a note says why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Hashable, Mapping

from arzstream.archive.ancestry import Ancestry
from arzstream.archive.gain import gain
from arzstream.archive.lineage import Lineage, ParentError, open_lineage
from arzstream.container.directory import TailReader, open_directory
from arzstream.container.state import ArchiveState
from arzstream.daemon.runs import held, same_run, share
from arzstream.errors import ArzError, MissingParentError
from arzstream.formats.base import Layout
from arzstream.store.address import is_url

__all__ = ["NONE", "Choice", "InUse", "Parentage"]

MOST_OPENED = 4
"""Candidates that are opened for one checkpoint."""
MOST_FAILURES = 2
"""Parents that turn out to be damaged, after which the checkpoint's own run is not asked any more."""
BASE_SHARE = 0.25
"""Share of a checkpoint's tensors that a base model must have, for it to be of any use."""
SAVES_AT_LEAST = 0.05
"""What coding against a parent must save of what the tensors would take alone, or the archive stands alone."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """What may be the parent of a checkpoint: places of archives, likeliest first, and of a base model, if any."""

    candidates: tuple[str, ...] = ()
    base: str = ""
    max_chain: int = 8
    layouts: Mapping[bytes, Layout] = dataclasses.field(default_factory=dict)
    """What is known of the checkpoint's files, by path inside it."""
    note: str = ""
    """What is wrong with candidates already."""


NONE = Choice()


class InUse:
    """Archives that are being coded against, which must not be removed, and those that turned out to be damaged.
    Whoever opens or removes archives holds ``lock`` meanwhile. Thread-safe."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._guard = threading.Lock()
        self._users: dict[int, frozenset[bytes]] = {}
        self._damaged: set[Hashable] = set()

    def use(self, user: object, contents: frozenset[bytes]) -> None:
        """``user`` needs archives with these contents, and no others, from now on."""
        with self._guard:
            self._users[id(user)] = contents

    def let_go(self, user: object) -> None:
        """``user`` needs none any more."""
        with self._guard:
            self._users.pop(id(user), None)

    @property
    def contents(self) -> frozenset[bytes]:
        with self._guard:
            return frozenset().union(*self._users.values())

    def set_damaged(self, place: str) -> None:
        """Do not code against the archive at ``place`` again, as long as it is that file."""
        with self._guard:
            self._damaged.add(_identity(place))

    def is_damaged(self, place: str) -> bool:
        with self._guard:
            return bool(self._damaged) and _identity(place) in self._damaged


class Parentage:
    """Used by one job. ``lineage`` is what its archive is coded against, while it is open."""

    def __init__(self, choice: Choice, in_use: InUse) -> None:
        self.lineage: Lineage | None = None
        self.note = choice.note
        self.judged = False
        """Is it settled whether the parent stays?"""
        self._choice, self._in_use = choice, in_use
        self._candidates = list(choice.candidates)
        self._base = choice.base
        self._failures = 0
        self._twins: set[str] = set()
        self._stack = contextlib.ExitStack()

    @property
    def place(self) -> str:
        """Where the parent lies; empty if there is none."""
        return self.lineage.parent.place if self.lineage is not None else ""

    def prefer(self, place: str) -> None:
        """What was begun was coded against the archive at ``place``, or alone: do it so again, if that can be."""
        if not place:
            self._candidates, self._base = [], ""
        elif place != self._base:
            self._candidates = [place, *(other for other in self._candidates if other != place)]
        else:
            self._candidates = []

    def open(self, dest: str) -> Lineage | None:
        """Choose, and open what was chosen, for an archive to be written as ``dest``."""
        with self._in_use.lock:
            self.lineage = self._choose(dest)
            if self.lineage is not None:
                self._in_use.use(self, frozenset(ancestor.content for ancestor in self.lineage.opened()))
            return self.lineage

    def close(self) -> None:
        self.lineage = None
        self._stack.close()
        self._in_use.let_go(self)

    # ------------------------------------------------------------------------------------ choosing

    def _choose(self, dest: str) -> Lineage | None:
        for place in self._candidates[:MOST_OPENED]:
            found, full = self._try(place, dest)
            if found is not None and same_run(self._choice.layouts, found.parent.tensors):
                return self._taken(found, place)
            self._stack.close()
            if full:  # the chain is as long as it may be: a new one begins
                break
        if self._base:
            found, full = self._try(self._base, dest)
            if found is not None and share(self._choice.layouts, held(found.parent.tensors)) >= BASE_SHARE:
                return self._taken(found, self._base)
            self._stack.close()
        if self.note and not self.note.endswith("alone"):
            self.note += "; coded alone"
        return None

    def _try(self, place: str, dest: str) -> tuple[Lineage | None, bool]:
        """The opened lineage, or None; and whether the chain behind it is too long."""
        try:
            found = self._stack.enter_context(open_lineage(place, dest, (), self._choice.max_chain))
        except ArzError as error:
            self._note(place, error)
            return None, False
        if found is None:
            return None, True
        damaged = next((a.place for a in found.opened() if self._in_use.is_damaged(a.place)), None)
        return (None, False) if damaged is not None else (found, False)

    def _taken(self, found: Lineage, place: str) -> Lineage:
        if self.note:
            self.note += f"; coded against {os.path.basename(place)}"
        return found

    def _note(self, place: str, error: ArzError) -> None:
        what = " ".join(str(error).split())
        self.note = what if os.path.basename(place) in what else f"{os.path.basename(place)}: {what}"

    # ------------------------------------------------------------------------------------ giving one up

    def fails(self, error: BaseException) -> bool:
        """Is ``error`` the parent's fault? Then it is not taken again."""
        seen: BaseException | None = error
        while seen is not None and not isinstance(seen, (ParentError, MissingParentError)):
            seen = seen.__cause__
        if seen is None or self.lineage is None:
            return False
        if isinstance(seen, ParentError):
            self._in_use.set_damaged(self.place)
        assert isinstance(seen, ArzError)
        self._give_up(self.place)
        self._note(self.place, seen)
        return True

    def pays(self, state: ArchiveState) -> bool:
        """Does what is written so far save enough? If not, the archive is to stand alone."""
        self.judged = True
        if self.lineage is None:
            return True
        known = [(ancestor.directory, ancestor.tensors) for ancestor in self.lineage.opened()]
        if gain(state, known).saved >= SAVES_AT_LEAST:
            return True
        if self.place == self._base:
            self._base = ""
        self._candidates = []
        self.judged = not self._base
        return False

    def take_twin(self, content: bytes) -> bool:
        """Does an archive further behind hold just what ours does? Then that is the one to code against."""
        twin = self.lineage.twin(content) if self.lineage is not None else None
        if twin is None:
            return False
        if twin in self._twins:  # it was tried, and could not be taken: then nothing that needs it may be, either
            self._candidates, self._base = [], ""
        else:
            self._twins.add(twin)
            self._candidates.insert(0, twin)
        self.judged = True
        return True

    def check(self, reader: TailReader, dest: str) -> None:
        """Can the sealed archive behind ``reader`` be read at ``dest``, as things are now? Else MissingParentError."""
        directory = open_directory(reader)
        if directory.parents:
            ancestry = Ancestry()
            try:
                ancestry.depth(directory, dest)
            finally:
                ancestry.close()

    def _give_up(self, place: str) -> None:
        if place == self._base:
            self._base = ""
        self._failures += 1
        again = self._failures < MOST_FAILURES
        self._candidates = [other for other in self._candidates if other != place] if again else []
        self.judged = False


def _identity(place: str) -> Hashable:
    if is_url(place):  # an archive in a store is never replaced by the daemon
        return place
    try:
        status = os.stat(place)
    except OSError:
        return (0, 0, 0)
    return status.st_dev, status.st_ino, status.st_mtime_ns
