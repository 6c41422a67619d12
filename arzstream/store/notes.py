"""What this machine remembers of an upload, so that another process can go on with it.

Going on means to make the same bytes once more and not to send what the store has already, by digests that the store
made (:meth:`~arzstream.store.objects.Upload.has`). Coding again is cheaper than the link, and nothing that is written
down here has to be believed: a note that is wrong or lost makes bytes that differ, and these are sent. (To begin
behind the last part instead would take a writer's state that is believed, for bytes which no store lets anybody read
before the object is complete.)

An archive that is coded again has the same bytes if two things are the same: the random id that stands in each of its
frames, and, where it was coded while its files landed, the order and the places in which that was done. Those are
noted, with the name of the upload. The checkpoint is read, and what it is coded against is decoded, as the first time.

Notes are a file that its process keeps locked: two cannot go on with one upload at once. It is removed with the upload.
The name of an upload may be as good as a password (GCS), so the file can be read by its owner only.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from arzstream.errors import StorageError
from arzstream.store import local
from arzstream.store.lock import FileLock

__all__ = ["Started", "UploadNotes", "notes_in", "state_folder"]

KEPT_SECONDS = 7 * 86400.0
"""Older uploads are not gone on with but removed; stores and their rules keep them about as long."""
MOST_BYTES = 64 << 20


class Started(NamedTuple):
    """An upload that was begun: the last part of its temporary key, what the store calls it, and how long its parts
    are (:func:`~arzstream.store.publishing.part_bytes`)."""

    name: str
    upload: str
    steady: int = 0


class UploadNotes:
    """Facts by name, and a list of steps; held by one process. Losing what was noted last does no harm."""

    def __init__(self, lock: FileLock) -> None:
        """Use :meth:`claim`."""
        self._lock = lock
        self.path = lock.path
        self.facts: dict[str, Any] = {}
        self.steps: list[Any] = []
        self._read()

    @classmethod
    def claim(cls, path: str) -> UploadNotes | None:
        """Those at ``path``, or new ones; None if another process holds them. Raises StorageError."""
        local.make_folders(os.path.dirname(path), 0o700)
        while True:
            lock = FileLock(path, 0o600)
            if not lock.acquire():
                return None
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(path), os.fstat(lock.fileno())):
                    return cls(lock)
            lock.release()  # it was removed by the one who held it until now

    @property
    def started(self) -> Started | None:
        """The upload, if one was begun."""
        name, upload, steady = (self.facts.get(fact) for fact in Started._fields)
        if not (name and isinstance(name, str) and isinstance(upload, str)):
            return None
        return Started(name, upload, steady if isinstance(steady, int) else 0)

    @property
    def old(self) -> bool:
        since = self.facts.get("since")
        return not isinstance(since, (int, float)) or not 0 <= time.time() - since < KEPT_SECONDS

    def begin(self, started: Started, **facts: Any) -> None:
        """Forget what was noted; from now on it is about this upload."""
        self.facts, self.steps = {**started._asdict(), "since": time.time(), **facts}, []
        self._rewrite()

    def set(self, **facts: Any) -> None:
        """More facts, or other ones."""
        self.facts.update(facts)
        self._append({"facts": facts})

    def add(self, step: Any) -> None:
        """One more step: something that JSON has."""
        self.steps.append(step)
        self._append({"step": step})

    def cut(self, count: int) -> None:
        """Only the first ``count`` steps were taken."""
        del self.steps[count:]
        self._rewrite()

    def keep(self) -> None:
        """Let go of them; another one may claim them."""
        self._lock.release()

    def remove(self) -> None:
        """There is nothing left to go on with."""
        with contextlib.suppress(StorageError):
            if self._lock.held:
                local.unlink(self.path)
        self._lock.release()

    def _read(self) -> None:
        with open(self._lock.fileno(), "rb", closefd=False) as file:
            whole, _, cut = file.read(MOST_BYTES).rpartition(b"\n")
        if cut:  # killed while it wrote
            local.set_length(self._lock.fileno(), len(whole) + 1 if whole else 0, self.path)
        os.lseek(self._lock.fileno(), 0, os.SEEK_END)
        for line in whole.splitlines():
            try:
                found = json.loads(line)
                self.facts.update(found.get("facts", {}))
                if "step" in found:
                    self.steps.append(found["step"])
            except (ValueError, AttributeError, TypeError):
                self.facts, self.steps = {}, []
                return

    def _rewrite(self) -> None:
        with contextlib.suppress(StorageError):
            local.set_length(self._lock.fileno(), 0, self.path)
            os.lseek(self._lock.fileno(), 0, os.SEEK_SET)
        self._append({"facts": self.facts}, *({"step": step} for step in self.steps))

    def _append(self, *lines: dict[str, Any]) -> None:
        with contextlib.suppress(StorageError):  # then less can be gone on with
            data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
            local.append(self._lock.fileno(), data, self.path)


def state_folder(*names: str) -> str:
    """A folder below this user's XDG state folder, which need not be there."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "arzstream", *names)


def notes_in(folder: str) -> Iterator[UploadNotes]:
    """All that are in ``folder`` and that nobody holds."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    for name in names:
        with contextlib.suppress(StorageError):
            notes = UploadNotes.claim(os.path.join(folder, name))
            if notes is not None:
                yield notes
