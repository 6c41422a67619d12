"""An advisory lock on a file: two daemons on one destination must not both publish."""

from __future__ import annotations

import errno
import os
import sys

from arzstream.errors import StorageError
from arzstream.store.local import Path, open_shared

__all__ = ["FileLock"]


class FileLock:
    """Held by an open descriptor, so it dies with the process, however that dies."""

    def __init__(self, path: Path, mode: int = 0o644) -> None:
        """``mode`` is that of the file, if it has to be made."""
        self.path = os.fsdecode(path)
        self._mode = mode
        self._fd = -1

    def acquire(self) -> bool:
        """Take the lock without waiting; False if another process (or another lock object) holds it."""
        # The file stays for good: removing a lock file while others may hold it open is a race.
        fd = open_shared(self.path, self._mode)
        try:
            taken = _try_lock(fd)
        except OSError as error:
            os.close(fd)
            raise StorageError.from_os_error(error, "lock it", self.path) from error
        if taken:
            self._fd = fd
        else:
            os.close(fd)
        return taken

    def release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)  # closing releases

    def fileno(self) -> int:
        """The descriptor of the file, while the lock is held."""
        return self._fd

    @property
    def held(self) -> bool:
        return self._fd >= 0


def _try_lock(fd: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            return False
        raise
    return True
