"""Retention: which archives stay, which may go, and which are coded anew first so that others may go.

An archive that a kept one needs stays, whatever the rules say of it; those of destinations below are kept ones. Only
archives that the journal knows, of runs whose newest one stays, are ever removed. Deciding changes nothing; see
``prune``.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Collection

from arzstream.daemon.config import Settings
from arzstream.daemon.inventory import Held, Inventory
from arzstream.daemon.runs import family, step_of

__all__ = ["Plan", "Rebase", "Rules", "plan"]

DAY = 86400.0
SECOND_REFERENCE = 1.1
"""How much larger, at most, an archive is taken to become that loses the second of its two parents."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """What stays; whatever one rule keeps stays. Without any rule everything does."""

    last: int = 0
    every: int = 0
    days: float = 0.0
    full: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Rules:
        return cls(settings.keep_last, settings.keep_every, settings.keep_days, settings.keep_full)

    @property
    def any(self) -> bool:
        return self != Rules()

    def keep(self, run: Collection[Held], now: float) -> dict[str, str]:
        """Name → why, of the archives of one run that stay. The newest always does."""
        if not self.any:
            return {held.name: "no rule" for held in run}
        kept: dict[str, str] = {}
        # Steps and times agree as long as nothing odd happens; where they do not, both count.
        by_step = sorted(run, key=lambda held: (family(held.path)[1], held.published, held.name))
        by_time = sorted(run, key=lambda held: (held.published, held.name))
        for order in (by_step, by_time):
            kept.update({held.name: "one of the last" for held in order[-max(1, self.last) :]})
        for held in run:
            step = step_of(held.path)
            if self.every and step is not None and step % self.every == 0:
                kept.setdefault(held.name, f"step {step}")
            if self.days and now - held.published < self.days * DAY:
                kept.setdefault(held.name, "young")
            if self.full and held.alone:
                kept.setdefault(held.name, "stands alone")
        return kept


@dataclasses.dataclass(frozen=True)
class Rebase:
    """Code the archive ``name`` anew, against ``parent`` (a name), or alone if that is empty."""

    name: str
    parent: str


@dataclasses.dataclass
class Plan:
    """Archives by name: ``keep`` and why, ``needed`` and by whom, ``remove``, those that need others first."""

    keep: dict[str, str] = dataclasses.field(default_factory=dict)
    needed: dict[str, str] = dataclasses.field(default_factory=dict)
    remove: list[str] = dataclasses.field(default_factory=list)
    rebase: list[Rebase] = dataclasses.field(default_factory=list)
    frees: int = 0
    """Bytes of what is removed."""
    costs: int = 0
    """Bytes by which archives that are coded anew may grow, estimated."""
    left_alone: dict[str, str] = dataclasses.field(default_factory=dict)
    """Folders in which nothing is removed, and why."""


def plan(
    inventory: Inventory,
    rules: Rules,
    *,
    in_use: Collection[bytes] = (),
    rebase: bool = False,
    max_chain: int = 8,
    now: float | None = None,
) -> Plan:
    """What ``rules`` mean for the archives of ``inventory``. ``in_use`` are contents that something else needs now;
    ``rebase`` allows to code archives anew where that frees more than it costs."""
    result = Plan()
    runs: dict[str, list[Held]] = {}
    for name, reason in inventory.unreadable.items():
        result.left_alone.setdefault(os.path.dirname(name), reason)
    for reason in inventory.unknown.values():
        for name in inventory.held:
            result.left_alone.setdefault(os.path.dirname(name), reason)
    for held in inventory.held.values():
        if held.ours and os.path.dirname(held.name) not in result.left_alone:
            runs.setdefault(held.run, []).append(held)
        else:
            result.keep[held.name] = "not of a run" if not held.ours else "left alone"
    for run in runs.values():
        result.keep.update(rules.keep(run, time.time() if now is None else now))
    result.needed = {
        name: user for name, user in inventory.needed_by(result.keep, in_use).items() if name not in result.keep
    }
    if rebase and result.needed:
        _rebase(inventory, result, in_use, max_chain)
    gone = inventory.held.keys() - result.keep.keys() - result.needed.keys()
    result.remove = _children_first(inventory, gone)
    result.frees = sum(inventory.held[name].size for name in gone)
    return result


def _rebase(inventory: Inventory, result: Plan, in_use: Collection[bytes], max_chain: int) -> None:
    """Move archives from ``needed`` to those that go, for each tree of archives where that frees more than it costs."""
    elsewhere = inventory.needed_by([name for name in result.keep if not inventory.held[name].ours], in_use)
    for tree in _trees(inventory):
        needed = {name for name in tree if name in result.needed}
        if not needed or needed & elsewhere.keys():
            continue
        broken = [
            held
            for held in sorted((inventory.held[name] for name in tree & result.keep.keys()), key=_order)
            if inventory.needed_by([held.name]).keys() & needed
        ]
        if not all(inventory.whole(held) for held in broken):
            continue  # something is missing already: it cannot be decoded
        steps, costs = _new_parents(inventory, tree, tree & result.keep.keys(), broken, max_chain)
        frees = sum(inventory.held[name].size for name in needed)
        if frees > costs:
            result.rebase += steps
            result.costs += costs
            for name in needed:
                del result.needed[name]


def _new_parents(
    inventory: Inventory, tree: set[str], kept: set[str], broken: list[Held], max_chain: int
) -> tuple[list[Rebase], int]:
    """A parent among the kept for each archive that loses one, and by how much all of them grow, at most."""
    alone = [inventory.held[name] for name in tree if inventory.held[name].alone and inventory.held[name].bytes_in]
    rate = min(1.0, max((held.size / held.bytes_in for held in alone), default=1.0))
    depth: dict[str, int] = {}
    changes, steps, costs = {held.name for held in broken}, list[Rebase](), 0
    last: Held | None = None
    for held in sorted((inventory.held[name] for name in kept), key=_order):
        if held.name not in changes:
            depth[held.name] = inventory.depths[held.name]
        else:
            parent = last if last is not None and last.run == held.run and depth[last.name] < max_chain else None
            steps.append(Rebase(held.name, parent.name if parent is not None else ""))
            depth[held.name] = depth[parent.name] + 1 if parent is not None else 0
            grown = max(rate * held.bytes_in, held.size)
            if parent is not None and held.parents[0] == parent.content:  # only its second reference is another one
                grown = min(grown, SECOND_REFERENCE * held.size)
            costs += round(grown) - held.size
        last = held
    return steps, costs


def _order(held: Held) -> tuple[float, str]:
    return held.published, held.name


def _trees(inventory: Inventory) -> list[set[str]]:
    """Archives that need each other, however indirectly."""
    providers, links = inventory.providers, {name: {name} for name in inventory.held}
    for held in inventory.held.values():
        for content in held.parents:
            for other in providers.get(content, ()):
                links[held.name].add(other.name)
                links[other.name].add(held.name)
    trees, left = [], set(links)
    while left:
        todo, tree = [left.pop()], set()
        while todo:
            name = todo.pop()
            if name not in tree:
                tree.add(name)
                todo += links[name]
        left -= tree
        trees.append(tree)
    return trees


def _children_first(inventory: Inventory, gone: Collection[str]) -> list[str]:
    """An order to remove archives in, so that whatever is left at any moment can be read."""
    return sorted(gone, key=lambda name: (inventory.depths[name], name), reverse=True)
