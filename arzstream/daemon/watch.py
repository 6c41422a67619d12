"""Hints that something changed, so that nobody waits for the next rescan. They may be late, doubled or missing.

Nothing is ever decided on a hint alone: inotify's queue overflows silently, and network file systems send
nothing. A rescan is the truth, so where no observer can be had the daemon only looks more often, which is all a
polling observer would do.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import warnings
from typing import Any

from arzstream.daemon import log

__all__ = ["Hint", "Hints"]

MOST = 10_000
"""Hints kept; beyond that only "look at everything" is kept, which is what so many mean anyway."""


@dataclasses.dataclass(frozen=True)
class Hint:
    """``kind`` is closed, moved, created or deleted; paths are absolute bytes."""

    kind: str
    path: bytes
    moved_to: bytes = b""


class Hints:
    """Collects hints below ``root`` and wakes whoever waits. ``live``: does the system report changes at all?"""

    def __init__(self, root: str) -> None:
        self.root = root
        self.live = False
        self._condition = threading.Condition()
        self._hints: list[Hint] = []
        self._poked = False
        self._observer: Any = None

    def start(self) -> None:
        """Watch, if the system lets us; else say so once. Safe to call again after :meth:`stop`."""
        from watchdog import events
        from watchdog.observers import Observer

        # It looks into a new folder twice, once for the folder and once for the one around it, and is right to; but it
        # says so, with all that it watches, as a warning that Python would keep.
        warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning, r"watchdog\.")
        observer = Observer()
        kinds = [
            events.FileClosedEvent,
            events.FileMovedEvent,
            events.FileCreatedEvent,
            events.FileDeletedEvent,
            events.DirCreatedEvent,
            events.DirMovedEvent,
            events.DirDeletedEvent,
        ]  # not FileModified: one for every write of a large file would cost more than looking
        handler: Any = _Handler(self)
        try:
            observer.schedule(handler, self.root, recursive=True, event_filter=kinds)
            observer.start()
        except OSError as error:
            log.event("no-observer", level=30, source=self.root, reason=error.strerror or error, consequence="polling")
            return
        self._observer = observer
        self.live = True

    def stop(self) -> None:
        observer, self._observer = self._observer, None
        self.live = False
        if observer is not None:
            observer.stop()
            observer.join(5)

    @property
    def dead(self) -> bool:
        """The observer's thread ended by itself (for instance because the folder was removed)."""
        return self._observer is not None and not self._observer.is_alive()

    def poke(self) -> None:
        """Wake the waiter without a hint."""
        with self._condition:
            self._poked = True
            self._condition.notify_all()

    def add(self, hint: Hint) -> None:
        with self._condition:
            if len(self._hints) < MOST:
                self._hints.append(hint)
            self._condition.notify_all()

    def wait(self, timeout: float) -> list[Hint]:
        """Hints since the last call, as soon as there are any or somebody pokes; none after ``timeout`` seconds."""
        with self._condition:
            if not self._hints and not self._poked:
                self._condition.wait(timeout)
            hints, self._hints, self._poked = self._hints, [], False
            return hints


class _Handler:
    """Called by watchdog in its own thread."""

    def __init__(self, hints: Hints) -> None:
        self._hints = hints

    def dispatch(self, event: Any) -> None:
        moved_to = os.fsencode(event.dest_path) if getattr(event, "dest_path", "") else b""
        self._hints.add(Hint(event.event_type, os.fsencode(event.src_path), moved_to))
