"""A destination behind a URL: objects that appear whole, and a journal that lies on this machine.

Several daemons may archive into one bucket. The store sees to it that each name is given once; temporary objects carry
whose they are, so that a daemon sweeps its own only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from arzstream.daemon.destination import Destination, DestinationError, Folder, Growing
from arzstream.errors import StorageError
from arzstream.store import local
from arzstream.store.address import is_remote, redacted
from arzstream.store.folders import is_archive_name
from arzstream.store.objects import Version
from arzstream.store.patience import Patience, patiently
from arzstream.store.publishing import TOKEN_BYTES, NewObject, store_for_writing
from arzstream.store.ranges import RangeReader

__all__ = ["Bucket", "destination_at", "home_of"]

T = TypeVar("T")

LISTED_SECONDS = 5.0
"""For so long a listing is believed where being wrong costs time only."""
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
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    address = redacted(url).rstrip("/")
    key = hashlib.sha256(address.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    name = "".join(c if c.isalnum() or c in ".-_" else "_" for c in address.partition("://")[2])[:64]
    return os.path.join(state, "arzstream", f"{name}-{key}")


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

    def new(self, name: str, folder_mode: int) -> Growing:
        return _GrowingObject(self, NewObject(self.place_of(name), owner=self._owner), self.place_of(name))

    def own(self, owner: str) -> None:
        """Temporary objects carry this from now on, hexadecimal digits that no other daemon has: those are ours."""
        self._owner = owner

    def sweep(self) -> list[str]:
        names = sorted(self._temporaries()) if self._owner else []
        for name in names:
            self._remove(name)
        return names

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

    def _patiently(self, function: Callable[[], T], doing: str) -> T:
        try:
            return patiently(function, self.shown, doing, patience=HASTE)
        except StorageError as error:
            raise DestinationError(str(error), errno=error.errno) from error
        except NotImplementedError as error:
            raise DestinationError(f"{self.shown}: this kind of store cannot be listed; choose another one") from error


class _GrowingObject(Growing):
    """A multipart upload; what it holds can be read when it is complete."""

    def __init__(self, bucket: Bucket, sink: NewObject, place: str) -> None:
        self.place, self.sink = place, sink
        self._bucket, self._object = bucket, sink
        self._reader: RangeReader | None = None

    @property
    def reader(self) -> RangeReader | None:
        return self._reader

    def complete(self) -> RangeReader:
        if self._reader is None:
            self._reader = self._object.complete()
        return self._reader

    def publish(self, name: str, mode: int) -> None:
        self._object.publish(name=os.path.basename(name))
        self._bucket.published(name)

    def abort(self) -> None:
        self._bucket.abort(self._object.abort)
