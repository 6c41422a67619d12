"""A destination behind a URL: objects that appear whole, and a journal that lies on this machine.

Several daemons may archive into one bucket. The store sees to it that each name is given once; temporary objects carry
whose they are, so that a daemon sweeps its own only. Of an upload that was interrupted there are notes beside the
journal, which are this daemon's as well: no other one knows of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from arzstream.daemon import log
from arzstream.daemon.destination import Destination, DestinationError, Folder, Growing
from arzstream.daemon.journal import FOLDER
from arzstream.daemon.script import Script
from arzstream.errors import StorageError
from arzstream.store import local
from arzstream.store.address import is_remote, redacted
from arzstream.store.folders import is_archive_name
from arzstream.store.notes import UploadNotes, notes_in, state_folder
from arzstream.store.objects import Version
from arzstream.store.patience import Patience, patiently
from arzstream.store.publishing import TOKEN_BYTES, NewObject, store_for_writing
from arzstream.store.ranges import RangeReader

__all__ = ["Bucket", "destination_at", "home_of"]

T = TypeVar("T")

LISTED_SECONDS = 5.0
"""For so long a listing is believed where being wrong costs time only."""
UPLOADS = "uploads"
"""Below the journal's folder: notes about uploads that are not published."""
HASTE = Patience(attempts=3, longest=1.0, stall=10.0)
"""Of what the main loop waits for."""


def destination_at(place: str) -> Destination:
    """The destination that a path or URL names. Raises UnsupportedError if it is a store that can only be read."""
    return Bucket(place) if is_remote(place) else Folder(place.removeprefix("file://"))


def home_of(place: str) -> str:
    """The folder that the journal of a destination lies below: itself, or for a URL one in the XDG state folder, by the
    URL without credentials."""
    return _state_folder(place) if is_remote(place) else os.path.abspath(place.removeprefix("file://"))


def _state_folder(url: str) -> str:
    address = redacted(url).rstrip("/")
    key = hashlib.sha256(address.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    name = "".join(c if c.isalnum() or c in ".-_" else "_" for c in address.partition("://")[2])[:64]
    return state_folder(f"{name}-{key}")


class Bucket(Destination):
    """A folder behind a URL. Options and credentials are those of the environment."""

    remote = True

    def __init__(self, url: str) -> None:
        self._url = url.split("?", 1)[0].rstrip("/")
        self.shown, self.home = redacted(url).rstrip("/"), _state_folder(url)
        self._store, self._key = store_for_writing(self._url, None, HASTE)
        self._lock = threading.Lock()
        self._listed: dict[str, tuple[float, dict[str, Version]]] = {}
        self._aborting = ThreadPoolExecutor(2, thread_name_prefix="arz-abort")
        self._owner = ""
        self._parked: dict[str, UploadNotes] = {}
        """By the archive's name: uploads that can be gone on with."""

    def place_of(self, name: str) -> str:
        return f"{self._url}/{name}"

    def name_of(self, place: str) -> str:
        return place.removeprefix(self._url + "/")

    def names_in(self, folder: str, *, now: bool = False) -> list[str]:
        return list(self._list(folder, now))

    def archives_in(self, folder: str) -> dict[str, float]:
        return {posixpath.join(folder, name): 0.0 for name in self._list(folder) if is_archive_name(name)}

    def exists(self, name: str) -> bool:
        folder, _, base = name.rpartition("/")
        return base in self._list(folder)

    def facts(self, name: str) -> tuple[int, float]:
        folder, _, base = name.rpartition("/")
        version = self._list(folder).get(base)
        return (version.size if version is not None else 0), time.time()

    def _list(self, folder: str, now: bool = False) -> dict[str, Version]:
        with self._lock:
            then, known = self._listed.get(folder, (float("-inf"), {}))
        if not now and time.monotonic() - then < LISTED_SECONDS:
            return known
        asked, key = time.monotonic(), self._key_of(folder)
        listed = dict(self._patiently(lambda: list(self._store.names(key)), "list it"))
        with self._lock:
            self._listed[folder] = (asked, listed)
        return listed

    def _key_of(self, name: str) -> str:
        return f"{self._key.rstrip('/')}/{name}" if name else self._key

    def new(self, name: str, folder_mode: int, expected: int = 0) -> Growing:
        with self._lock:
            notes = self._parked.pop(name, None)
        if notes is None and self._store.properties.resumable:
            with contextlib.suppress(StorageError):
                notes = UploadNotes.claim(self._notes_folder(secrets.token_hex(8)))
        try:
            resume = notes.started if notes else None
            sink = NewObject(self.place_of(name), owner=self._owner, resume=resume, expected=expected)
        except BaseException:
            if notes is not None:
                self.park(notes)
            raise
        if notes is not None and not sink.resumed:
            notes.begin(sink.started, archive=name)
        return _GrowingObject(self, sink, self.place_of(name), notes)

    def _notes_folder(self, name: str = "") -> str:
        return os.path.join(self.home, FOLDER, UPLOADS, name)

    def park(self, notes: UploadNotes) -> None:
        """Keep them until the archive is begun again, or not needed any more."""
        name = notes.facts.get("archive")
        with self._lock:
            good = isinstance(name, str) and notes.started is not None and name not in self._parked
            if good:
                self._parked[str(name)] = notes
        if not good:
            self._discard(notes)

    def drop(self, name: str) -> None:
        with self._lock:
            notes = self._parked.pop(name, None)
        if notes is not None:
            self._aborting.submit(self._discard, notes)

    def _discard(self, notes: UploadNotes) -> str:
        """Remove what was sent; its name."""
        name = ""
        if notes.started is not None:
            name = posixpath.join(posixpath.dirname(str(notes.facts.get("archive", ""))), notes.started.name)
            with contextlib.suppress(StorageError):
                self._remove(name)
        notes.remove()
        return name

    def own(self, owner: str) -> None:
        """Temporary objects carry this from now on, hexadecimal digits that no other daemon has: those are ours."""
        self._owner = owner

    def sweep(self) -> list[str]:
        """As in folders; but what can be gone on with stays, for some days."""
        old = []
        for notes in list(notes_in(self._notes_folder())):
            if notes.old:
                old.append(self._discard(notes))
            else:
                self.park(notes)
        kept = {notes.started.name for notes in self._parked.values() if notes.started is not None}
        found = sorted(self._temporaries()) if self._owner else []
        names = [name for name in found if posixpath.basename(name) not in kept]
        for name in names:
            self._remove(name)
        return [*filter(None, old), *names]

    def _remove(self, name: str) -> None:
        self._patiently(lambda: self._store.remove(self._key_of(name)), "sweep it")

    def _temporaries(self) -> set[str]:
        """Ours: objects, and uploads that were never finished."""
        found = self._patiently(lambda: [name for name, _ in self._store.names(self._key, deep=True)], "list it")
        with contextlib.suppress(StorageError):  # listing them may not be allowed; the bucket's own rules remove them
            found += self._patiently(lambda: list(self._store.unfinished(self._key)), "list unfinished uploads")
        own = f"-{self._owner}"
        return {
            name
            for name in found
            if local.is_temporary(posixpath.basename(name)) and name[: -2 * TOKEN_BYTES].endswith(own)
        }

    def published(self, name: str) -> None:
        """It is there now, whatever a listing said before."""
        with self._lock:
            self._listed.pop(os.path.dirname(name), None)

    def abort(self, action: Callable[[], None]) -> None:
        """Do it in the background: a store that cannot be reached must not hold up what else is to be done."""
        self._aborting.submit(action)

    def close(self) -> None:
        self._aborting.shutdown(wait=True)
        for notes in self._parked.values():
            notes.keep()

    def _patiently(self, function: Callable[[], T], doing: str) -> T:
        try:
            return patiently(function, self.shown, doing, patience=HASTE)
        except StorageError as error:
            raise DestinationError(str(error), errno=error.errno) from error
        except NotImplementedError as error:
            raise DestinationError(f"{self.shown}: this kind of store cannot be listed; choose another one") from error


class _GrowingObject(Growing):
    """A multipart upload; what it holds can be read when it is complete."""

    def __init__(self, bucket: Bucket, sink: NewObject, place: str, notes: UploadNotes | None) -> None:
        self.place, self.sink, self.script = place, sink, Script(notes)
        self._bucket, self._object, self._notes = bucket, sink, notes
        self._reader: RangeReader | None = None

    @property
    def reader(self) -> RangeReader | None:
        return self._reader

    def complete(self) -> RangeReader:
        if self._reader is None:
            self._reader = self._object.complete()
            if self._object.resumed:
                found = self._object.bytes_found
                log.event("upload-resumed", place=self._object.name, bytes=self._object.tell(), not_sent_again=found)
        return self._reader

    def publish(self, name: str, mode: int) -> None:
        self._object.publish(name=os.path.basename(name))
        self._bucket.published(name)
        if self._notes is not None:
            self._notes.remove()

    def abort(self) -> None:
        self._bucket.abort(self._abort)

    def _abort(self) -> None:
        self._object.abort()
        if self._notes is not None:
            self._notes.remove()

    def park(self) -> None:
        if self._notes is None:
            self.abort()
        else:
            self._object.park()
            self._bucket.park(self._notes)
