"""Retention in the daemon: after each publication, what the rules let go and nothing needs any more is removed.

Archives are not coded anew here: chains are bounded, so what a kept archive needs now is free some publications later.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from arzstream.daemon import log
from arzstream.daemon.handover import Shared
from arzstream.daemon.inventory import Inventory, take
from arzstream.daemon.memory import Memory
from arzstream.daemon.prune import remove
from arzstream.daemon.retain import Plan, Rules, plan

__all__ = ["Keeper"]

Planned = tuple[Inventory, Plan]


class Keeper:
    """Used by the supervisor's thread; looks at archives in a thread of its own."""

    def __init__(self, dest: str, shared: Shared, memory: Memory) -> None:
        self._dest, self._shared, self._memory = dest, shared, memory
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="arz-retain")
        self._future: Future[Planned] | None = None
        self._inventory: Inventory | None = None
        self._rules = self._planned_by = Rules()
        self._asked = self._done = -1
        """Numbers of publications."""
        self._said: dict[str, str] = {}

    def look(self, published: int) -> None:
        """One step, if there is one to take; ``published`` counts publications."""
        rules = Rules.of(self._shared.settings)
        if rules != self._rules:
            self._rules, self._done = rules, -1
        if not rules.any:
            return
        if self._future is None:
            if published != self._done:
                self._asked, self._planned_by = published, rules
                self._future = self._thread.submit(self._plan(rules))
                self._future.add_done_callback(lambda _: self._shared.wake())
        elif self._future.done() and self._shared.in_use.lock.acquire(blocking=False):
            try:
                self._take(self._future, published)
            finally:
                self._shared.in_use.lock.release()

    def busy(self, published: int) -> bool:
        """Is anything left to do?"""
        return Rules.of(self._shared.settings).any and (self._future is not None or published != self._done)

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _plan(self, rules: Rules) -> Callable[[], Planned]:
        archives, before = dict(self._memory.archives), self._inventory

        def work() -> Planned:
            inventory = take(self._dest, archives, before)
            return inventory, plan(inventory, rules)

        return work

    def _take(self, future: Future[Planned], published: int) -> None:
        self._future = None
        if published != self._asked or self._planned_by != self._rules:
            return  # something new may need what was to go: look again
        self._done = published
        try:
            self._inventory, found = future.result()
        except Exception:  # noqa: BLE001 (a mistake of ours must not stop the daemon, and must be seen)
            log.event("internal-error", level=logging.ERROR, traceback=traceback.format_exc())
            return
        for folder, reason in found.left_alone.items():
            if self._said.get(folder) != reason:
                log.event("not-removed", level=logging.WARNING, folder=folder or ".", reason=reason)
        self._said = found.left_alone
        gone = remove(self._dest, self._memory, self._inventory, found.remove, self._shared.in_use.contents)
        if gone.problem is not None:
            log.event("not-removed", level=logging.WARNING, reason=gone.problem)
