"""How far loading has come, and stopping it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

__all__ = ["Bar", "Meter", "Progress"]

Progress = Callable[[int, int, str], None]
"""``progress(done bytes, total bytes, what is being done)``."""


class Meter:
    """Counts the bytes of tensors as they are decoded, and reports them. Thread-safe.

    ``report`` is called from whichever thread decoded something, never from two at once. What it raises stops that
    read and every later one until :meth:`begin` is called again.
    """

    def __init__(self, report: Progress, total: int, what: str = "loading") -> None:
        self._report, self._what = report, what
        self._done, self._total = 0, total
        self._stopped: BaseException | None = None
        self._lock = threading.RLock()

    def begin(self, total: int) -> None:
        """Count from nothing again, up to ``total`` bytes."""
        with self._lock:
            self._done, self._total, self._stopped = 0, total, None

    def run(self, task: Callable[[], None], nbytes: int) -> None:
        """Do ``task``, which decodes ``nbytes``, unless loading was stopped."""
        if self._stopped is not None:
            raise self._stopped
        task()
        with self._lock:
            if self._stopped is not None:
                raise self._stopped
            self._done += nbytes
            try:
                self._report(self._done, max(self._done, self._total), self._what)
            except BaseException as error:
                self._stopped = error
                raise


class Bar:
    """A :data:`Progress` that draws a line on standard error, if that is a terminal, at most ten times a second."""

    WIDTH = 30
    SECONDS = 0.1

    def __init__(self) -> None:
        self._first = self._last = time.monotonic()

    def __call__(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        if not sys.stderr.isatty() or (now - self._last < self.SECONDS and done < total):
            return
        self._last = now
        filled = self.WIDTH * done // total if total else self.WIDTH
        speed = done / max(now - self._first, 1e-3) / 1e6
        bar = "#" * filled + "-" * (self.WIDTH - filled)
        end = "\n" if done >= total else ""
        sys.stderr.write(f"\r{what} [{bar}] {done / 1e6:,.0f} of {total / 1e6:,.0f} MB, {speed:,.0f} MB/s{end}")
        sys.stderr.flush()
