"""A watched file, opened so that nobody can slip another one under us, and kept open so that it can be deleted."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterator

from arzstream.archive.filejob import FileJob
from arzstream.daemon.frontier import Frontier
from arzstream.daemon.scan import Identity
from arzstream.daemon.settle import has_writer
from arzstream.errors import SourceChangedError, StorageError
from arzstream.store.ranges import LocalReader

__all__ = ["SourceError", "SourceFile", "followed"]

_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
_FILE = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


class SourceError(StorageError):
    """The storage failed on the source's side, as opposed to the destination's."""


class SourceFile:
    """One regular file below ``root``, read as its bytes stand behind one descriptor. Thread-safe for reading.

    With ``keep`` the descriptor stays open, so the file can be finished although it was deleted; without, it is
    opened for each use and must still be the same file. ``path`` may change (a rename), the inode may not.
    """

    distant = False
    """Does each byte that is read cost a transfer?"""

    def __init__(self, root: bytes, path: bytes, *, keep: bool, target: bytes = b"") -> None:
        """Open ``root/path``, or, for a link that is followed, the absolute path ``target``."""
        self.root, self.path, self.target, self.keep = root, path, target, keep
        self.job: FileJob | None = None
        self.coded = 0
        """Frontier up to which the builder was told to code."""
        self._lock = threading.Lock()
        self._reader: LocalReader | None = None
        with self._opened() as reader:
            self.identity = Identity.of(reader.status())
            self._frontier = Frontier(reader.fileno())
        self.status()

    @property
    def name(self) -> str:
        return os.path.join(os.fsdecode(self.root), os.fsdecode(self.path))

    @property
    def size(self) -> int:
        return self.status().st_size

    def status(self) -> os.stat_result:
        """``fstat`` of the open file."""
        try:
            with self._opened() as reader:
                return reader.status()
        except StorageError as error:
            raise SourceError(str(error), errno=error.errno) from error

    def frontier(self) -> int:
        """How far it is believed to be written. Files that are not kept open are small: their size must do."""
        if not self.keep:
            return self.size
        try:
            return self._frontier.update(self.status())
        except OSError as error:
            raise SourceError(*_args(error, self.name), errno=error.errno) from error

    def read_at(self, offset: int, length: int) -> bytes:
        with self._reading() as reader:
            return reader.read_at(offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        with self._reading() as reader:
            reader.read_into(offset, buffer)

    def has_writer(self) -> bool | None:
        """Has anyone it open for writing? None if that cannot be told."""
        with self._opened() as reader:
            return has_writer(reader.fileno())

    @contextlib.contextmanager
    def announced(self, start: int, end: int) -> Iterator[None]:
        """What is between ``start`` and ``end`` will be read, about in order."""
        yield

    def close(self) -> None:
        with self._lock:
            reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[LocalReader]:
        try:
            with self._opened() as reader:
                yield reader
        except StorageError as error:
            if error.errno is None:  # not the system's complaint: the file ended early
                raise SourceChangedError(str(error)) from error
            raise SourceError(str(error), errno=error.errno) from error

    @contextlib.contextmanager
    def _opened(self) -> Iterator[LocalReader]:
        with self._lock:
            reader = self._reader
            if reader is None:
                reader = self._open()
                if self.keep:
                    self._reader = reader
        try:
            yield reader
        finally:
            if not self.keep:
                reader.close()

    def _open(self) -> LocalReader:
        try:
            fd = os.open(self.target, _FILE) if self.target else _open_below(self.root, self.path)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise SourceChangedError(f"{self.name}: is not what it was when the folder was read") from error
            raise SourceError(*_args(error, self.name), errno=error.errno) from error
        try:
            reader = LocalReader(fd, name=self.name)
        except StorageError as error:
            raise SourceChangedError(str(error)) from error
        known = getattr(self, "identity", None)
        if known is not None and Identity.of(reader.status())[:2] != known[:2]:
            reader.close()
            raise SourceChangedError(f"{self.name}: was replaced while it was read; it is coded again")
        return reader


def followed(root: bytes, checkpoint: bytes, path: bytes) -> bytes:
    """The absolute path of the file that is read instead of a link, or nothing if there is none to read.

    As ``pack`` does, links that point inside the checkpoint are kept, and links to files outside are followed. But a
    folder that others can write to must not make a privileged daemon read what they cannot: the target must belong to
    whoever made the link, or be readable by everybody; else :class:`SourceError`.
    """
    link = os.path.join(root, path)
    inside = os.path.realpath(os.path.join(root, checkpoint)) if checkpoint else os.path.realpath(root)
    target = os.path.realpath(link)
    if target == inside or target.startswith(inside + b"/"):
        return b""
    try:
        own, other = os.lstat(link), os.stat(target)
    except OSError:
        return b""
    if not stat.S_ISREG(other.st_mode):
        return b""
    if own.st_uid != other.st_uid and not other.st_mode & stat.S_IROTH:
        text = f"{os.fsdecode(link)}: links to a file that its owner may not read; remove the link, or copy the file"
        raise SourceError(text, errno=errno.EACCES)
    return target


def _open_below(root: bytes, path: bytes) -> int:
    """Open ``root/path``, following no link on the way."""
    if os.open not in os.supports_dir_fd:
        return os.open(os.path.join(root, path), _FILE)
    *folders, name = path.split(b"/")
    place = os.open(root, _FOLDER & ~getattr(os, "O_NOFOLLOW", 0))
    try:
        for folder in folders:
            deeper = os.open(folder, _FOLDER, dir_fd=place)
            os.close(place)
            place = deeper
        return os.open(name, _FILE, dir_fd=place)
    finally:
        os.close(place)


def _args(error: OSError, name: str) -> tuple[str]:
    return (str(StorageError.from_os_error(error, "read it", name)),)
