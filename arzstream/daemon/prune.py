"""Removing archives, and coding others anew before that, so that at no moment a kept one cannot be read.

The order is: code anew what shall need less (written, proved, and put in the place of the old one in one step), look at
everything again, write down what is to go, then remove it, children before parents. Whoever is killed in between leaves
archives that all can be read; what was written down and is still there simply stays until the next time.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Sequence

from arzstream.archive.rebase import rebase
from arzstream.daemon import log
from arzstream.daemon.inventory import Inventory, identity_of
from arzstream.daemon.journal import Archive, Entry
from arzstream.daemon.memory import Memory
from arzstream.daemon.retain import Plan, Rebase
from arzstream.daemon.states import State
from arzstream.errors import ArzError, StorageError
from arzstream.store import local

__all__ = ["Rebased", "Removed", "code_again", "remove", "settle_retired"]

RETIRED_WORDS = "its archive was removed, as the rules of retention say"


@dataclasses.dataclass(frozen=True)
class Rebased:
    """An archive that was coded anew, against ``parent`` or alone; bytes before and after."""

    name: str
    parent: str
    before: int
    after: int


@dataclasses.dataclass
class Removed:
    """What was removed, and what stopped the removal of more."""

    names: list[str] = dataclasses.field(default_factory=list)
    bytes: int = 0
    problem: ArzError | None = None


def settle_retired(dest: str, memory: Memory) -> None:
    """After a kill: what was to be removed and is there stays for now; what is gone is forgotten."""
    marked = [archive for archive in memory.archives.values() if archive.retired]
    there = [archive for archive in marked if os.path.lexists(os.path.join(dest, archive.name))]
    memory.restore(there)
    _forget(memory, [archive for archive in marked if archive not in there])


def code_again(
    dest: str, memory: Memory, plan: Plan, *, profile: str = "balanced", jobs: int | None = None, max_chain: int = 8
) -> tuple[list[Rebased], list[ArzError]]:
    """Do what ``plan`` says about coding archives anew; what was done, and what could not be."""
    done: list[Rebased] = []
    problems: list[ArzError] = []
    for step in plan.rebase:
        try:
            done.append(_code_again(dest, step, profile, jobs, max_chain))
        except ArzError as error:
            problems.append(error)
            break  # those that follow may be coded against this one
        archive = memory.archives[step.name]
        status = os.stat(os.path.join(dest, step.name))
        memory.restore([dataclasses.replace(archive, bytes_out=status.st_size, parent=done[-1].parent)])
        entry = memory.entries.get(archive.path)
        if entry is not None and entry.archive == archive.name:
            entry.bytes_out, entry.parent = status.st_size, done[-1].parent
            memory.changed(entry)
    return done, problems


def _code_again(dest: str, step: Rebase, profile: str, jobs: int | None, max_chain: int) -> Rebased:
    place = os.path.join(dest, step.name)
    parent = os.path.join(dest, step.parent) if step.parent else None
    before = os.stat(place).st_size
    try:
        summary = rebase(place, parent=parent, profile=profile, jobs=jobs, max_chain=max_chain)
    except StorageError as error:
        if error.errno is not None or parent is None:
            raise
        summary = rebase(place, profile=profile, jobs=jobs)  # the parent needs it, however that came about
    against = step.parent if summary.parents else ""
    log.event("coded-again", archive=step.name, parent=against or None, bytes_before=before, bytes=summary.bytes_out)
    return Rebased(step.name, against, before, summary.bytes_out)


def remove(
    dest: str, memory: Memory, inventory: Inventory, names: Sequence[str], in_use: Collection[bytes] = ()
) -> Removed:
    """Remove archives, children first, but for those that ``in_use`` says are needed now, or that are not what they
    were when ``inventory`` was taken."""
    needed = inventory.needed_by([], in_use)
    wanted = [name for name in names if name not in needed and name in memory.archives]
    result = Removed()
    if not wanted or not memory.retire([memory.archives[name] for name in wanted]):
        return result
    try:
        for name in wanted:
            place = os.path.join(dest, name)
            if identity_of(place) != inventory.held[name].identity:
                break
            local.unlink(place)
            result.names.append(name)
            result.bytes += inventory.held[name].size
            log.event("removed", archive=name, bytes=inventory.held[name].size)
    except OSError as error:
        result.problem = StorageError.from_os_error(error, "look at it", place)
    except StorageError as error:
        result.problem = error
    try:
        for folder in {os.path.dirname(os.path.join(dest, name)) for name in result.names}:
            local.sync_folder(folder)
    except StorageError as error:
        result.problem = error
    _forget(memory, [memory.archives[name] for name in result.names])
    memory.restore([memory.archives[name] for name in wanted if name in memory.archives])
    return result


def _forget(memory: Memory, archives: Sequence[Archive]) -> None:
    """These are gone, and their checkpoints are done with, unless they have a newer archive."""
    entries: list[Entry] = []
    for archive in archives:
        entry = memory.entries.get(archive.path)
        if entry is not None and entry.archive == archive.name:
            if entry.state is State.PUBLISHED:
                entry.move(State.RETIRED, waiting=RETIRED_WORDS)
            entry.archive = ""
            entries.append(entry)
    if archives:
        memory.removed([archive.name for archive in archives], entries)
