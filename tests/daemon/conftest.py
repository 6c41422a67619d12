"""A daemon inside the test's process, and ways to wait for it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from arzstream.daemon import log
from arzstream.daemon.config import Settings
from arzstream.daemon.journal import Entry, Journal
from arzstream.daemon.supervisor import Supervisor
from arzstream.store import local

TIMEOUT = 60.0


class Running:
    """``Supervisor`` in a thread. Signals and leases need the main thread; tests of those start processes."""

    def __init__(self, source: Path, dest: Path, **settings: Any) -> None:
        self.source, self.dest = source, dest
        settings.setdefault("quiet_time", 0.3)
        settings.setdefault("rescan", 1.0)
        log.logger.handlers.clear()  # of a command that ran in this process, whose standard error is closed by now
        self.supervisor = Supervisor(Settings(source=str(source), dest=str(dest), **settings))
        self.exit_code: int | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        self.exit_code = self.supervisor.run()

    def __enter__(self) -> Running:
        self._thread.start()
        self.until(lambda: self.supervisor._hints.live, "the daemon to watch")
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.supervisor.stop()
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()

    def until(self, condition: Callable[[], Any], what: str, timeout: float = TIMEOUT) -> Any:
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            assert time.monotonic() < deadline, f"waited too long for {what}; {self.entries()}"
            assert self._thread.is_alive(), f"the daemon ended before {what}"
            time.sleep(0.005)
        return value

    def entries(self) -> dict[bytes, Entry]:
        with Journal.read(str(self.dest)) as journal:
            return journal.entries()

    def entry(self, name: str) -> Entry | None:
        return self.supervisor._entries.get(os.fsencode(name))

    def published(self, name: str, timeout: float = TIMEOUT) -> Path:
        """Wait for the archive ``name``."""
        path = self.dest / name
        self.until(path.exists, name, timeout)
        return path

    def state(self, name: str, state: str, timeout: float = TIMEOUT) -> Entry:
        """Wait until the checkpoint ``name`` is in ``state``."""

        def there() -> Entry | None:
            entry = self.entry(name)
            return entry if entry is not None and entry.state.value == state else None

        return self.until(there, f"{name} to be {state}", timeout)


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    source, dest = tmp_path / "source", tmp_path / "dest"
    source.mkdir()
    return source, dest


@pytest.fixture
def running(places: tuple[Path, Path]) -> Iterator[Callable[..., Running]]:
    """Start a daemon on the test's folders; it is stopped at the end."""
    with contextlib.ExitStack() as stack:

        def start(**settings: Any) -> Running:
            return stack.enter_context(Running(*places, **settings))

        yield start


def temporaries(dest: Path) -> list[str]:
    """Half-written archives below ``dest``."""
    return [str(path) for path in dest.rglob("*") if local.is_temporary(path.name)]
