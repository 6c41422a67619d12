"""Has a file come to rest? By what is seen to change, by being closed, and by the age of its own times."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import signal
import sys
import threading
import time
from collections.abc import Mapping

from arzstream.daemon.scan import Identity

__all__ = ["Clock", "Settle", "enable_leases", "has_writer"]

DRIFT = 1.0
"""By how many seconds wall clock and monotonic clock may drift apart before file times are no longer believed."""

_F_SETLEASE = 1024
_leases = False


class Clock:
    """Both clocks; notices when the wall clock was set."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()
        self.trusted = True

    def now(self) -> tuple[float, float]:
        """(monotonic seconds, seconds since 1970)."""
        monotonic, wall = time.monotonic(), time.time()
        if abs(wall - monotonic - self._offset) > DRIFT:
            self.trusted = False
        return monotonic, wall


@dataclasses.dataclass
class _Rest:
    identity: Identity
    since: float
    closed: Identity | None = None


class Settle:
    """Follows the files of one checkpoint."""

    def __init__(self) -> None:
        self._files: dict[bytes, _Rest] = {}
        self._looked = False

    def look(self, snapshot: Mapping[bytes, Identity], now: tuple[float, float], *, trusted: bool) -> bool:
        """Take note of what is there now; True if it differs from the last look.

        At the first look the age of the files' own times counts, if the clock is ``trusted``: a folder of
        yesterday need not be waited for. ctime is used as well, because mtime can be set to anything.
        """
        monotonic, wall = now
        changed = not self._looked or self._files.keys() != snapshot.keys()
        for path in self._files.keys() - snapshot.keys():
            del self._files[path]
        for path, identity in snapshot.items():
            rest = self._files.get(path)
            if rest is None:
                age = wall - max(identity.mtime_ns, identity.ctime_ns) / 1e9
                old = not self._looked and trusted and age > 0
                self._files[path] = _Rest(identity, monotonic - age if old else monotonic)
            elif rest.identity != identity:
                if not rest.identity.same_content(identity):
                    rest.since = monotonic
                rest.identity = identity
                changed = True
        self._looked = True
        return changed

    def renamed(self, old: bytes, new: bytes) -> None:
        """The file has another name; what is known of it stays."""
        rest = self._files.pop(old, None)
        if rest is not None:
            self._files[new] = rest

    def closed(self, path: bytes, identity: Identity) -> None:
        """The writer closed this file, or moved it into place, and then it looked like this."""
        rest = self._files.get(path)
        if rest is not None:
            rest.closed = identity

    def is_closed(self, path: bytes) -> bool:
        """Was it closed, and not changed since?"""
        rest = self._files.get(path)
        return rest is not None and rest.closed is not None and rest.closed.same_content(rest.identity)

    def quiet(self, path: bytes, monotonic: float) -> float:
        """Seconds without a change."""
        rest = self._files.get(path)
        return 0.0 if rest is None else max(0.0, monotonic - rest.since)


def enable_leases() -> None:
    """Allow :func:`has_writer` to ask. Only in the main thread: a lease that is broken sends SIGIO, which kills."""
    global _leases
    if sys.platform.startswith("linux") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        _leases = True


def has_writer(fd: int) -> bool | None:
    """Has anyone the file open for writing, or mapped? None if the system will not say.

    A read lease is only granted on a file that nobody has open for writing; it is given back at once, and who opens
    the file for writing in between waits so long (some microseconds). Hints about closed files can get lost, in
    particular right after their folder was made; this cannot.
    """
    if not _leases:
        return None
    import fcntl

    try:
        fcntl.fcntl(fd, _F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, _F_SETLEASE, fcntl.F_UNLCK)
    return False
