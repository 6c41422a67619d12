"""Every call of the project that changes a file system, so that faults can be injected in one place.

Each function here is one step (create, write, fsync, rename, …) or a short list of steps with a comment each. All of
them go through :func:`_call`, which turns an ``OSError`` into a :class:`~arzstream.errors.StorageError` that names the
file; a test that wants the Nth call to fail replaces that one function. (SQLite writes the daemon's journal itself.)

What is assumed of a file system: a rename within one folder is atomic; what was fsynced, and whose folder was fsynced,
survives a power cut; after a failed fsync nothing is known about the file, so it is abandoned and written again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

from arzstream.errors import StorageError

__all__ = [
    "FOLDER",
    "HAS_DIR_FD",
    "TEMPORARY_PREFIX",
    "LocalSink",
    "Path",
    "PipeSink",
    "Sink",
    "append",
    "close",
    "create_new",
    "is_temporary",
    "make_folder",
    "make_folders",
    "open_shared",
    "permissions_at_most",
    "publish",
    "remove_folder",
    "set_attributes",
    "set_length",
    "set_mode",
    "set_time",
    "start_writeback",
    "symlink",
    "sync_file",
    "sync_folder",
    "temporary_beside",
    "unlink",
    "write_at",
]

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
T = TypeVar("T")

TEMPORARY_PREFIX = ".arz-tmp-"
"""Archives are written as ``.arz-tmp-<name>-<12 hex digits>`` beside their final name; nothing else is called so."""

FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
"""Flags to open a folder with."""
HAS_DIR_FD = os.open in os.supports_dir_fd
"""Can names be resolved relative to an open folder? (Not on Windows.)"""

_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_WRITE_LIMIT = 1 << 30  # Linux transfers at most 0x7ffff000 bytes a call


def _call(doing: str, path: Path | None, function: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
    """Make one system call; ``doing`` and ``path`` are for the message."""
    try:
        return function(*arguments, **keywords)
    except OSError as error:
        raise StorageError.from_os_error(error, doing, None if path is None else os.fsdecode(path)) from error


def _at(dir_fd: int | None) -> dict[str, int]:
    return {} if dir_fd is None else {"dir_fd": dir_fd}


# ---------------------------------------------------------------------------------------------- single steps
# ``dir_fd`` is an open folder that the name is relative to; ``show`` is the name for messages, if it is another one.


def create_new(
    path: Path, mode: int = 0o600, *, readable: bool = False, dir_fd: int | None = None, show: Path | None = None
) -> int:
    """Create ``path``, which must not exist (not even as a dangling link), and return a descriptor to write with."""
    flags = os.O_CREAT | os.O_EXCL | _SAFE | (os.O_RDWR if readable else os.O_WRONLY)
    return _call("create it", show or path, os.open, path, flags, mode, **_at(dir_fd))


def open_shared(path: Path, mode: int = 0o644) -> int:
    """Open ``path`` to read and write, creating it if it is missing; for files that stay, such as locks."""
    return _call("open it", path, os.open, path, os.O_RDWR | os.O_CREAT | _SAFE, mode)


def append(fd: int, data: bytes | bytearray | memoryview, path: Path) -> None:
    """Write all of ``data`` at the descriptor's position, however many calls that takes."""
    view = memoryview(data).cast("B")
    while len(view):
        written = _call("write", path, os.write, fd, view[:_WRITE_LIMIT])
        if written == 0:
            raise StorageError(f"{os.fsdecode(path)}: cannot write: the system takes no more bytes; free some space")
        view = view[written:]


def write_at(fd: int, offset: int, data: bytes | bytearray | memoryview, path: Path) -> None:
    """Write all of ``data`` at ``offset``; several threads may do so at once, at different places of one file."""
    view = memoryview(data).cast("B")
    while len(view):
        written = _call("write", path, _pwrite, fd, view[:_WRITE_LIMIT], offset)
        if written == 0:
            raise StorageError(f"{os.fsdecode(path)}: cannot write: the system takes no more bytes; free some space")
        view, offset = view[written:], offset + written


_seeking = threading.Lock()


def _pwrite(fd: int, view: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, view, offset)
    with _seeking:  # Windows: the position is shared, so seek and write are one step
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, view)


def set_length(fd: int, length: int, path: Path) -> None:
    """Make the file ``length`` bytes long, so that writes from its end backwards need not extend it."""
    _call("make room for it", path, os.ftruncate, fd, length)


def sync_file(fd: int, path: Path) -> None:
    """fsync. After an error the file must be abandoned: a second fsync falsely succeeds."""
    _call("write it safely to the disk (fsync)", path, os.fsync, fd)


def start_writeback(fd: int) -> None:
    """``sync_file_range(SYNC_FILE_RANGE_WRITE)``: a hint, without waiting and without any promise."""
    if sys.platform.startswith("linux"):
        import ctypes

        function = getattr(ctypes.CDLL(None), "sync_file_range", None)
        if function is not None:
            function(fd, ctypes.c_int64(0), ctypes.c_int64(0), 2)


def sync_folder(path: Path) -> None:
    """Make creations, renames and removals in ``path`` durable. Nothing to do on Windows."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    fd = _call("open the folder", path, os.open, path, FOLDER)
    try:
        _call("write the folder safely to the disk (fsync)", path, os.fsync, fd)
    except StorageError as error:
        # Some network file systems cannot; there a rename is as durable as it gets.
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def close(fd: int, path: Path) -> None:
    """Close a descriptor that was written to; network file systems report a full disk only here."""
    _call("close it", path, os.close, fd)


def unlink(path: Path, *, missing_ok: bool = True, dir_fd: int | None = None, show: Path | None = None) -> bool:
    """Remove a file's name; False if there was none and that is allowed."""
    try:
        _call("remove it", show or path, os.unlink, path, **_at(dir_fd))
    except StorageError as error:
        if missing_ok and error.errno == errno.ENOENT:
            return False
        raise
    return True


def remove_folder(path: Path) -> None:
    """Remove an empty folder."""
    _call("remove the folder", path, os.rmdir, path)


def make_folder(path: Path, mode: int = 0o777, *, dir_fd: int | None = None, show: Path | None = None) -> None:
    """Create a folder; something of that name that is there already is left alone, the caller looks at what it is."""
    try:
        _call("create the folder", show or path, os.mkdir, path, mode, **_at(dir_fd))
    except StorageError as error:
        if error.errno != errno.EEXIST:
            raise


def make_folders(path: Path, mode: int = 0o777) -> None:
    """Create ``path`` and what is missing above it, each made durable in its parent; existing folders are kept."""
    missing: list[str] = []
    place = os.path.abspath(os.fsdecode(path))
    while not os.path.lexists(place):
        missing.append(place)
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        raise StorageError(f"{place}: is in the way and not a folder; choose another name", errno=errno.ENOTDIR)
    for folder in reversed(missing):
        make_folder(folder, mode)
        sync_folder(os.path.dirname(folder))


def symlink(target: bytes, path: Path, *, dir_fd: int | None = None, show: Path | None = None) -> None:
    """Create a symbolic link; the name must be free."""
    text = target if os.name == "posix" else os.fsdecode(target)
    _call("create the link", show or path, os.symlink, text, path, **_at(dir_fd))


def set_mode(fd: int, mode: int, path: Path) -> None:
    """Set the permission bits of an open file, where the system has them."""
    if hasattr(os, "fchmod"):
        _call("set its permissions", path, os.fchmod, fd, mode)


def set_time(fd: int, mtime_ns: int, path: Path) -> bool:
    """Set the modification time of an open file; False where that needs a name instead."""
    if os.utime not in os.supports_fd:
        return False
    _call("set its time", path, os.utime, fd, ns=(mtime_ns, mtime_ns))
    return True


def set_attributes(
    path: Path, mode: int | None, mtime_ns: int, *, dir_fd: int | None = None, show: Path | None = None
) -> None:
    """Set permission bits (unless None) and modification time by name; a link's own time, never its target's."""
    if mode is not None:
        _call("set its permissions", show or path, os.chmod, path, mode, **_at(dir_fd))
    own: dict[str, Any] = {"follow_symlinks": False} if os.utime in os.supports_follow_symlinks else {}
    _call("set its time", show or path, os.utime, path, ns=(mtime_ns, mtime_ns), **_at(dir_fd), **own)


# ---------------------------------------------------------------------------------------------- publishing


def temporary_beside(final: Path) -> str:
    """A new temporary name in the folder of ``final``."""
    folder, name = os.path.split(os.fsdecode(final))
    token = secrets.token_hex(6)
    room = 255 - len(TEMPORARY_PREFIX) - len(token) - 1  # names are at most 255 bytes on common file systems
    short = os.fsdecode(os.fsencode(name)[:room])
    return os.path.join(folder, f"{TEMPORARY_PREFIX}{short}-{token}")


def is_temporary(name: str | bytes) -> bool:
    """Was this name (without folder) made by :func:`temporary_beside`?"""
    return os.fsdecode(name).startswith(TEMPORARY_PREFIX)


def publish(temporary: Path, final: Path, *, replace: bool = False) -> None:
    """Give a finished, fsynced file its final name in the same folder; the single moment at which it becomes visible.

    Without ``replace`` an existing ``final`` is left alone and raises :class:`StorageError` with ``errno.EEXIST``.
    """
    if replace:
        # One atomic step: readers see the old file or the new one.
        _call("publish it", final, os.replace, temporary, final)
    else:
        _rename_new(temporary, final)
    # The new name must survive a power cut before anyone is told about it.
    sync_folder(os.path.dirname(os.path.abspath(os.fsdecode(final))))


def _rename_new(temporary: Path, final: Path) -> None:
    """Rename without replacing: ``renameat2`` where there is one, else a second link and the removal of the first."""
    if sys.platform == "win32":  # rename refuses an existing target by itself
        _call("publish it", final, os.rename, temporary, final)
        return
    if _call("publish it", final, _renameat2_noreplace, temporary, final):
        return
    try:
        # link() fails if the name exists; a crash before the next step leaves a second name, swept at the next start.
        _call("publish it", final, os.link, temporary, final, follow_symlinks=False)
    except StorageError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
    else:
        unlink(temporary)
        return
    # A file system without hard links: look first. The daemon's lock keeps other daemons out of the gap between.
    if os.path.lexists(final):
        raise StorageError(f"{os.fsdecode(final)}: cannot publish it: the name is taken", errno=errno.EEXIST)
    _call("publish it", final, os.rename, temporary, final)


def _renameat2_noreplace(temporary: Path, final: Path) -> bool:
    """``renameat2(RENAME_NOREPLACE)``; False where the C library, the kernel or the file system has none."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    at_cwd, noreplace = -100, 1
    if function(at_cwd, os.fsencode(temporary), at_cwd, os.fsencode(final), noreplace) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code))


def permissions_at_most(sources: Iterable[os.stat_result]) -> int:
    """The widest mode for an archive that lets nobody read what the sources did not let them read.

    Bits that any source lacks are dropped, execute bits always. The archive belongs to this process's user and group:
    where a source's group is another one, its group bits are granted only as far as "others" had them too.
    """
    group = os.getegid() if hasattr(os, "getegid") else 0
    allowed = 0o666
    for status in sources:
        mode = stat.S_IMODE(status.st_mode)
        if status.st_gid != group:
            mode = (mode & ~0o070) | ((mode & 0o007) << 3)
        allowed &= mode | 0o600
    return allowed


# ---------------------------------------------------------------------------------------------- sinks


class Sink(Protocol):
    """Where an archive is written, strictly forwards. The container calls ``write`` and nothing else."""

    def write(self, data: bytes | bytearray | memoryview) -> None: ...

    def tell(self) -> int:
        """Bytes written so far."""

    def sync(self) -> None:
        """Make what was written durable, as far as the sink can."""


class LocalSink:
    """A new local file, written by appending. Nothing is buffered here: what was written can be read back at once.

    After a failed write or sync the file is beyond repair: every later call raises, ``abort`` removes it.
    """

    def __init__(self, path: Path, *, mode: int = 0o600) -> None:
        self.path = os.fsdecode(path)
        self._position = 0
        self._broken = False
        # The file must be new: an archive never grows onto something else. Readable too, to verify what was written.
        self._fd = create_new(self.path, mode, readable=True)

    def fileno(self) -> int:
        return self._fd

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._check()
        try:
            append(self._fd, data, self.path)
        except StorageError:
            self._broken = True
            raise
        self._position += memoryview(data).nbytes

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        """Nothing is buffered; here because files have it."""
        self._check()

    def start_writeback(self) -> None:
        """Let the system begin to write what is there, so that a later :meth:`sync` has less to wait for."""
        start_writeback(self._fd)

    def sync(self) -> None:
        self._check()
        try:
            sync_file(self._fd, self.path)
        except StorageError:
            self._broken = True
            raise

    def set_mode(self, mode: int) -> None:
        set_mode(self._fd, mode, self.path)

    def close(self) -> None:
        """Close; may raise, because some file systems report a full disk only now."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close(fd, self.path)

    def abort(self) -> None:
        """Close and remove the file."""
        self._broken = True
        with contextlib.suppress(StorageError):
            self.close()
        unlink(self.path)

    def _check(self) -> None:
        if self._broken or self._fd < 0:
            raise StorageError(f"{self.path}: an earlier write failed or the file was closed; it must be written again")


class PipeSink:
    """Standard output, or any descriptor that only takes bytes."""

    def __init__(self, fd: int = 1, name: str = "standard output") -> None:
        self.path = name
        self._fd = fd
        self._position = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        append(self._fd, data, self.path)
        self._position += memoryview(data).nbytes

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        """Nothing is buffered."""

    def sync(self) -> None:
        """A pipe cannot be made durable; whoever reads it answers for that."""

    def close(self) -> None:
        """The descriptor is not ours."""
