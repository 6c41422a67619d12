"""Where archives go: what lies there, and new archives that grow there. Here are local folders; see ``bucket``.

Names are relative to the destination, places are paths or URLs.
"""

from __future__ import annotations

import abc
import contextlib
import os
from collections.abc import Iterator

from arzstream.container.directory import open_directory
from arzstream.daemon.journal import FOLDER
from arzstream.daemon.script import Script
from arzstream.errors import ArzError, StorageError
from arzstream.store import local
from arzstream.store.folders import is_archive_name
from arzstream.store.ranges import LocalReader, RangeReader, open_reader

__all__ = ["Destination", "DestinationError", "Folder", "Growing", "sweep"]


class DestinationError(StorageError):
    """The destination cannot be looked at, as opposed to the source."""


class Growing(abc.ABC):
    """An archive under a temporary name. ``place`` is where parents are looked for beside it; ``script`` is how it was
    coded, if it was begun in an earlier life."""

    place: str
    sink: local.Sink
    script: Script

    @property
    @abc.abstractmethod
    def reader(self) -> RangeReader | None:
        """Reads what was written so far; None where that cannot be read before it is complete."""

    @abc.abstractmethod
    def complete(self) -> RangeReader:
        """Nothing more is written: a reader of all of it."""

    def sync(self) -> None:  # noqa: B027  (an object is durable when it is there)
        """Make it durable."""

    def start_writeback(self) -> None:  # noqa: B027
        """Let the system begin with that."""

    @abc.abstractmethod
    def publish(self, name: str, mode: int) -> None:
        """Give it its name beside it; StorageError with EEXIST if that is taken. Nothing is ever replaced."""

    @abc.abstractmethod
    def abort(self) -> None:
        """Remove it."""

    def park(self) -> None:
        """Leave what a later life can go on with, if there can be such."""
        self.abort()


class Destination(abc.ABC):
    """See the module's text. Thread-safe."""

    shown: str
    """For people."""
    home: str
    """The folder that the journal and the lock lie below."""
    remote: bool

    @abc.abstractmethod
    def place_of(self, name: str) -> str:
        """Where the archive ``name`` lies."""

    @abc.abstractmethod
    def name_of(self, place: str) -> str:
        """How what lies at ``place`` is called here; its place, if it lies elsewhere."""

    @abc.abstractmethod
    def names_in(self, folder: str, *, now: bool = False) -> list[str]:
        """What is taken right in ``folder``, without the folder. ``now``: as it is now; else it may be as it was some
        seconds ago. Raises DestinationError."""

    @abc.abstractmethod
    def archives_in(self, folder: str) -> dict[str, float]:
        """Archives right in ``folder``: name → seconds since 1970 when it was written, 0 if the store does not say.
        May be as it was some seconds ago. Raises DestinationError."""

    @abc.abstractmethod
    def exists(self, name: str) -> bool:
        """Is there an archive of this name, or was there some seconds ago? Raises DestinationError."""

    @abc.abstractmethod
    def facts(self, name: str) -> tuple[int, float]:
        """(bytes, seconds since 1970 when it was written, or 0) of an archive."""

    @abc.abstractmethod
    def new(self, name: str, folder_mode: int, expected: int = 0) -> Growing:
        """Begin an archive that is to be called ``name``, or so, or go on with one that was parked; folders that have
        to be made get ``folder_mode``. ``expected``: about how many bytes it will have at most; 0 if nobody knows."""

    def drop(self, name: str) -> None:  # noqa: B027  (what lies in a folder is not parked)
        """What was parked of the archive ``name`` is of no use any more."""

    @abc.abstractmethod
    def sweep(self) -> list[str]:
        """Remove what an earlier life of this daemon left half written; call it with the lock held. Their names."""

    def free(self) -> int:
        """Bytes of room; -1 if that cannot be told."""
        return -1

    def close(self) -> None:  # noqa: B027
        """Wait for what is being removed."""

    def content_of(self, name: str) -> bytes:
        """The content digest of the archive ``name``; nothing if it cannot be read."""
        try:
            with open_reader(self.place_of(name)) as reader:
                directory = open_directory(reader)
                return (directory.content or b"") if directory.sealed else b""
        except ArzError:
            return b""


class Folder(Destination):
    """A local folder."""

    remote = False

    def __init__(self, place: str) -> None:
        self.path = self.shown = self.home = os.path.abspath(place)

    def place_of(self, name: str) -> str:
        return os.path.join(self.path, name)

    def name_of(self, place: str) -> str:
        inside = os.path.relpath(place, self.path) if place else ""
        return place if inside.startswith("..") else inside

    def names_in(self, folder: str, *, now: bool = False) -> list[str]:
        try:
            return os.listdir(os.path.join(self.path, folder))
        except OSError:
            return []

    def archives_in(self, folder: str) -> dict[str, float]:
        found = {}
        try:
            entries = list(os.scandir(os.path.join(self.path, folder)))
        except OSError:
            return {}
        for entry in entries:
            with contextlib.suppress(OSError):  # gone since the folder was read
                if is_archive_name(entry.name) and entry.is_file(follow_symlinks=False):
                    found[os.path.join(folder, entry.name)] = entry.stat(follow_symlinks=False).st_mtime
        return found

    def exists(self, name: str) -> bool:
        return os.path.lexists(os.path.join(self.path, name))

    def facts(self, name: str) -> tuple[int, float]:
        status = os.stat(os.path.join(self.path, name))
        return status.st_size, status.st_mtime

    def new(self, name: str, folder_mode: int, expected: int = 0) -> Growing:
        final = os.path.join(self.path, name)
        local.make_folders(os.path.dirname(final), folder_mode)
        return _GrowingFile(local.temporary_beside(final))

    def sweep(self) -> list[str]:
        return [os.path.relpath(name, self.path) for name in sweep(self.path)]

    def free(self) -> int:
        try:
            status = os.statvfs(self.path)
        except (OSError, AttributeError):
            return -1
        return status.f_bavail * status.f_frsize


class _GrowingFile(Growing):
    def __init__(self, place: str) -> None:
        self.place, self.script = place, Script()
        self.sink: local.LocalSink = local.LocalSink(place)
        self._closed = False
        try:
            self._reader = LocalReader(place)
        except StorageError:
            with contextlib.suppress(StorageError):
                self.sink.abort()
            raise

    @property
    def reader(self) -> LocalReader:
        return self._reader

    def complete(self) -> LocalReader:
        return self._reader

    def sync(self) -> None:
        self.sink.sync()

    def start_writeback(self) -> None:
        self.sink.start_writeback()

    def publish(self, name: str, mode: int) -> None:
        if not self._closed:  # another name was taken
            self.sink.set_mode(mode)
            self.sink.close()
            self._closed = True
        local.publish(self.place, os.path.join(os.path.dirname(self.place), os.path.basename(name)))
        self._reader.close()

    def abort(self) -> None:
        self._reader.close()
        with contextlib.suppress(StorageError):  # the next start sweeps what cannot be removed now
            self.sink.abort()


def sweep(dest: str) -> list[str]:
    """Remove what an earlier daemon left half written; call it only with the destination's lock held.

    Folders below that are destinations of their own (they have a journal) are not ours to sweep.
    """
    removed = []
    for name in _leftovers(dest):
        if local.unlink(name):
            removed.append(name)
    return removed


def _leftovers(dest: str) -> Iterator[str]:
    for folder, folders, names in os.walk(dest):
        if folder != dest and FOLDER in folders:
            folders.clear()
            continue
        folders[:] = [name for name in folders if name != FOLDER]
        yield from (os.path.join(folder, name) for name in names if local.is_temporary(name))
