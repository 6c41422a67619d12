"""What can go wrong, as one tree.

::

    ArzError
    ├── CorruptError          the data is bad                                   exit code 1
    │   └── LimitError        the data asks for more than we are willing to do  exit code 1
    ├── SourceChangedError    a source is not what it was when it was coded     exit code 1
    ├── UnsupportedError      a newer version or another part is needed         exit code 3
    │   └── MissingParentError    another archive is needed                     exit code 3
    └── StorageError          storage, permission, network                      exit code 4

A message is one line in the user's words: which file, what is wrong, what to do. Usage errors are the command line's
own.
"""

from __future__ import annotations

import errno
import os

__all__ = [
    "ArzError",
    "CorruptError",
    "LimitError",
    "MissingParentError",
    "SourceChangedError",
    "StorageError",
    "UnsupportedError",
]


class ArzError(Exception):
    """Root of the tree. ``exit_code`` is what the command line returns for it."""

    exit_code = 1


class CorruptError(ArzError):
    """Stored data is damaged or was never valid."""


class LimitError(CorruptError):
    """Stored data asks for more memory, depth or output than :class:`arzstream.limits.Limits` allows."""


class SourceChangedError(ArzError):
    """A source file changed while, or after, it was coded."""


class UnsupportedError(ArzError):
    """Valid as far as can be told, but a newer version or a missing part is needed to read it."""

    exit_code = 3


class MissingParentError(UnsupportedError):
    """An archive that this one was coded against cannot be found.

    ``elsewhere`` says the same of the archive that lacks its parent, for the message of one that needs that archive.
    """

    def __init__(self, message: str, *, elsewhere: str = "") -> None:
        super().__init__(message)
        self.elsewhere = elsewhere


class StorageError(ArzError):
    """The storage failed: permission, space, network, a vanished file."""

    exit_code = 4

    def __init__(self, message: str, *, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno

    @classmethod
    def from_os_error(
        cls, error: OSError, doing: str, path: str | bytes | os.PathLike[str] | None = None
    ) -> StorageError:
        """Turn ``error`` into one line: the file, what failed, and what to do where that is known."""
        name = path if path is not None else error.filename
        where = f"{os.fsdecode(name)}: " if name is not None else ""
        hint = _HINTS.get(error.errno or 0)
        return cls(f"{where}cannot {doing}: {error.strerror or error}{f'; {hint}' if hint else ''}", errno=error.errno)


_HINTS = {
    errno.ENOSPC: "free some space or choose another destination",
    errno.EDQUOT: "the quota is used up; free some space or choose another destination",
    errno.EACCES: "check the permissions of the file and of the folders above it",
    errno.EPERM: "check the permissions of the file and of the folders above it",
    errno.EROFS: "the file system is mounted read-only",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: "the device reports an error; check the disk",
}
