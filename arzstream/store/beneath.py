"""Restoring below one folder and never outside it, whatever the names in an archive say."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from arzstream.errors import StorageError
from arzstream.store import local
from arzstream.store.local import Path

__all__ = ["Beneath"]

_NO_LINKS = local.FOLDER | getattr(os, "O_NOFOLLOW", 0)


class Beneath:
    """Creates files, folders and links below a folder.

    Every component is opened relative to its parent's descriptor without following links, and files are created
    exclusively. A name with an empty, ``.`` or ``..`` component or a NUL byte raises ``ValueError``: callers have
    checked them. Where the system has no folder descriptors (Windows) the components are checked one by one instead.
    """

    def __init__(self, root: Path) -> None:
        """Create ``root`` if it is missing (a link in ``root`` itself is the caller's own and is followed)."""
        self.root = os.fsdecode(root)
        local.make_folders(self.root)
        self._top: int | str = self._open_top() if local.HAS_DIR_FD else os.path.abspath(self.root)

    def create(self, path: bytes, mode: int = 0o600) -> int:
        """Create the regular file ``path`` exclusively, and the folders above it; a descriptor to read and write."""
        with self._parent(path, create=True) as (parent, name):
            place, dir_fd = _place(parent, name)
            return local.create_new(place, mode, readable=True, dir_fd=dir_fd, show=self._show(path))

    def folder(self, path: bytes, mode: int = 0o777) -> None:
        """Create the folder ``path``; one that exists already (and is no link) is kept."""
        with self._parent(path, create=True) as (parent, name):
            place = self._step(parent, name, self._show(path), create=True, mode=mode)
            _close(place)

    def symlink(self, path: bytes, target: bytes) -> None:
        """Create a symbolic link; its target is data and is not looked at."""
        with self._parent(path, create=True) as (parent, name):
            place, dir_fd = _place(parent, name)
            local.symlink(target, place, dir_fd=dir_fd, show=self._show(path))

    def unlink(self, path: bytes) -> None:
        """Remove a file or link that was created here, for instance one that could not be finished."""
        with self._parent(path, create=False) as (parent, name):
            place, dir_fd = _place(parent, name)
            local.unlink(place, dir_fd=dir_fd, show=self._show(path))

    def set_attributes(self, path: bytes, *, mode: int | None, mtime_ns: int) -> None:
        """Set mode and modification time of a folder, or (``mode`` None) the time of a link itself.

        Folders come last and deepest first: creating files in them changes their times.
        """
        with self._parent(path, create=False) as (parent, name):
            place, dir_fd = _place(parent, name)
            show = self._show(path)
            if mode is None or dir_fd is None:
                local.set_attributes(place, mode, mtime_ns, dir_fd=dir_fd, show=show)
                return
            folder = self._step(parent, name, show, create=False)  # opened without following links, then by descriptor
            assert isinstance(folder, int)
            try:
                local.set_mode(folder, mode, show)
                local.set_time(folder, mtime_ns, show)
            finally:
                os.close(folder)

    def finish(self, fd: int, path: bytes, *, mode: int, mtime_ns: int, durable: bool = False) -> None:
        """Give a file made by :meth:`create` its mode and time, make it durable if asked, and close it."""
        name = self._show(path)
        try:
            if durable:
                local.sync_file(fd, name)
            local.set_mode(fd, mode, name)
            by_descriptor = local.set_time(fd, mtime_ns, name)
        finally:
            local.close(fd, name)
        if not by_descriptor:
            self.set_attributes(path, mode=None, mtime_ns=mtime_ns)

    def sync(self) -> None:
        """Make the top folder's entries durable."""
        local.sync_folder(self.root)

    def close(self) -> None:
        top, self._top = self._top, ""
        _close(top)

    def __enter__(self) -> Beneath:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _open_top(self) -> int:
        try:
            return os.open(self.root, local.FOLDER)
        except OSError as error:
            raise StorageError.from_os_error(error, "open the folder", self.root) from error

    def _show(self, path: bytes) -> str:
        return os.path.join(self.root, os.fsdecode(path))

    @contextlib.contextmanager
    def _parent(self, path: bytes, *, create: bool) -> Iterator[tuple[int | str, bytes]]:
        """The opened folder above ``path``, and the last component."""
        *folders, name = _components(path)
        place = self._top
        opened: list[int | str] = []
        try:
            for folder in folders:
                place = self._step(place, folder, self._show(path), create=create)
                opened.append(place)
            yield place, name
        finally:
            for folder_above in opened:
                _close(folder_above)

    def _step(self, parent: int | str, name: bytes, show: str, *, create: bool, mode: int = 0o777) -> int | str:
        """Go from ``parent`` into the real folder ``name``, making it if allowed."""
        place, dir_fd = _place(parent, name)
        try:
            return _open_folder(place, dir_fd)
        except OSError as error:
            if error.errno != errno.ENOENT or not create:
                raise self._in_the_way(error, name, show) from error
        local.make_folder(place, mode, dir_fd=dir_fd, show=show)
        try:
            return _open_folder(place, dir_fd)
        except OSError as error:
            raise self._in_the_way(error, name, show) from error

    @staticmethod
    def _in_the_way(error: OSError, name: bytes, show: str) -> StorageError:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            what = f"{show}: {os.fsdecode(name)} is in the way and not a folder; choose an empty folder"
            return StorageError(what, errno=error.errno)
        return StorageError.from_os_error(error, "open the folder", show)


def _open_folder(place: bytes | str, dir_fd: int | None) -> int | str:
    if dir_fd is not None:
        return os.open(place, _NO_LINKS, dir_fd=dir_fd)
    full = os.fsdecode(place)
    if not os.path.lexists(full):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), full)
    if os.path.islink(full) or not os.path.isdir(full):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), full)
    return full


def _place(parent: int | str, name: bytes) -> tuple[bytes | str, int | None]:
    """What to hand to a system call: a name and the descriptor it is relative to, or a whole path and nothing."""
    if isinstance(parent, int):
        return name, parent
    return os.path.join(parent, os.fsdecode(name)), None


def _close(place: int | str) -> None:
    if isinstance(place, int):
        os.close(place)


def _components(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    if b"\0" in path or any(part in (b"", b".", b"..") for part in parts):
        raise ValueError(f"not a relative path: {path!r}")
    return parts
