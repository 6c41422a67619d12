"""What a running daemon can be told by signals: end, read the settings again, pause, go on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Orders"]


class Orders:
    """Flags set by signal handlers, which do nothing else but wake the main loop. A context manager: outside it the
    signals mean what they meant before. Off the main thread no signal is caught."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.end = False
        self.reload = False
        self.paused = False
        self.signal = 0
        self._wake = wake
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Orders:
        if threading.current_thread() is threading.main_thread():
            handlers = {
                "SIGTERM": self._end, "SIGINT": self._end, "SIGHUP": self._reload,
                "SIGUSR1": self._pause, "SIGUSR2": self._go_on,
            }  # fmt: skip
            for name, handler in handlers.items():
                number = getattr(signal, name, None)
                if number is not None:
                    self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _end(self, number: int, _frame: object) -> None:
        if self.end:
            os._exit(130 if number == signal.SIGINT else 128 + number)  # told twice: now; the next start tidies up
        self.end, self.signal = True, number
        self._wake()

    def _reload(self, _number: int, _frame: object) -> None:
        self.reload = True
        self._wake()

    def _pause(self, _number: int, _frame: object) -> None:
        self.paused = True
        self._wake()

    def _go_on(self, _number: int, _frame: object) -> None:
        self.paused = False
        self._wake()
