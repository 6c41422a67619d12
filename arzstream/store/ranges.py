"""Reading ranges of bytes, from a local file or from any fsspec URL.

A reader answers exactly what it is asked for or raises :class:`~arzstream.errors.StorageError`: a short answer is
never passed on, because a store that ignores ranges and a file that was truncated both look like one.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from arzstream.errors import StorageError
from arzstream.store.address import is_remote, is_url
from arzstream.store.remote import RemoteReader
from arzstream.store.window import Announced

__all__ = ["DistantReader", "LocalReader", "RangeReader", "RemoteReader", "is_url", "open_reader"]

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_NON_BLOCK = getattr(os, "O_NONBLOCK", 0)
_ALWAYS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_PREAD_LIMIT = 1 << 30  # Linux transfers at most 0x7ffff000 bytes a call


class RangeReader(Protocol):
    """What the container and the archive read from. All methods may be called from several threads at once."""

    name: str
    """For messages: a path or a URL without credentials."""

    @property
    def size(self) -> int:
        """Length in bytes, now."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset`` on; :class:`StorageError` if they cannot be had."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` (writable, contiguous) from ``offset`` on."""

    def tail(self, length: int) -> tuple[int, bytes]:
        """The size and the last ``length`` bytes (all of them if there are fewer)."""

    def close(self) -> None: ...


@runtime_checkable
class DistantReader(RangeReader, Protocol):
    """A reader that is worth telling what will be read, and whose answers may be damaged on the way."""

    def announce(self) -> Announced: ...

    def forget(self, offset: int, length: int) -> bool: ...


class LocalReader:
    """A local regular file, read with ``pread``; the descriptor is kept, so a deleted file stays readable.

    ``size`` is asked for anew each time, because a growing archive and a source that lands are read too.
    """

    def __init__(
        self, path: str | bytes | os.PathLike[str] | int, *, follow: bool = True, name: str | None = None
    ) -> None:
        """Open ``path``, or take over the descriptor ``path`` if it is an integer.

        ``follow=False`` refuses a symbolic link in the last component. The open never blocks on a FIFO or a
        device: whatever is not a regular file is refused with :class:`StorageError`.
        """
        self.name = name or (f"descriptor {path}" if isinstance(path, int) else os.fsdecode(path))
        self._lock = threading.Lock()
        if isinstance(path, int):
            self._fd = path
        else:
            flags = os.O_RDONLY | _NON_BLOCK | _ALWAYS | (0 if follow else _NO_FOLLOW)
            try:
                self._fd = os.open(path, flags)
            except OSError as error:
                raise StorageError.from_os_error(error, "open it for reading", self.name) from error
        try:
            regular = stat.S_ISREG(self.status().st_mode)
        except StorageError:
            self.close()
            raise
        if not regular:
            self.close()
            raise StorageError(f"{self.name}: not a regular file; name a file")

    def _open(self) -> int:
        """The descriptor. StorageError after :meth:`close`."""
        if self._fd < 0:
            raise StorageError(f"{self.name}: was closed; open it again")
        return self._fd

    def status(self) -> os.stat_result:
        """``fstat`` of the open file."""
        try:
            return os.fstat(self._open())
        except OSError as error:
            raise StorageError.from_os_error(error, "look at it", self.name) from error

    @property
    def size(self) -> int:
        return self.status().st_size

    def fileno(self) -> int:
        return self._fd

    def read_at(self, offset: int, length: int) -> bytes:
        if length <= _PREAD_LIMIT:
            data = self._pread(offset, length)
            if len(data) == length:
                return data
        out = bytearray(length)
        self.read_into(offset, memoryview(out))
        return bytes(out)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        view = buffer if buffer.format == "B" and buffer.ndim == 1 else buffer.cast("B")
        done = 0
        while done < len(view):
            part = view[done : done + _PREAD_LIMIT]
            got = self._preadv(offset + done, part)
            if got == 0:
                raise StorageError(
                    f"{self.name}: ends at byte {offset + done}, {len(view) - done} bytes short of what was asked for; "
                    "was it truncated?"
                )
            done += got

    def tail(self, length: int) -> tuple[int, bytes]:
        size = self.size
        start = max(0, size - length)
        return size, self.read_at(start, size - start)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> LocalReader:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _pread(self, offset: int, length: int) -> bytes:
        try:
            if hasattr(os, "pread"):
                return os.pread(self._open(), length, offset)
            with self._lock:  # Windows: the position is shared, so seek and read are one step
                os.lseek(self._open(), offset, os.SEEK_SET)
                return os.read(self._open(), length)
        except OSError as error:
            raise StorageError.from_os_error(error, f"read at byte {offset}", self.name) from error

    def _preadv(self, offset: int, view: memoryview) -> int:
        if hasattr(os, "preadv"):
            try:
                return os.preadv(self._open(), [view], offset)
            except OSError as error:
                raise StorageError.from_os_error(error, f"read at byte {offset}", self.name) from error
        data = self._pread(offset, len(view))
        view[: len(data)] = data
        return len(data)


def open_reader(
    path: str | bytes | os.PathLike[str], storage_options: Mapping[str, Any] | None = None, *, keep: bool = True
) -> LocalReader | RemoteReader:
    """A reader for a local path or an fsspec URL (``file://`` counts as local). Not ``keep``: no cache is used, because
    what the store has is what is asked about."""
    if not isinstance(path, str) or not is_url(path):
        return LocalReader(path)
    if not is_remote(path):
        return LocalReader(path[len("file://") :])
    return RemoteReader(path, storage_options, keep=keep)
