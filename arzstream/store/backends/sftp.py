"""Files on another machine over SSH."""

from __future__ import annotations

import contextlib
import posixpath
import stat
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from arzstream.errors import ArzError
from arzstream.store.objects import ObjectChangedError, ObjectStore, Properties, Upload, Version
from arzstream.store.patience import Patience

__all__ = ["SftpStore"]

PIPELINED_BYTES = 1 << 20


class SftpStore(ObjectStore):
    """Files over SFTP, one request at a time over one connection.

    What is read is a file that stays open: replaced by a rename, it stays what it was. Versions are told by size and
    time, and compared when it is opened once more because the connection broke. A commit is a rename, which fails if
    there is such a file.
    """

    properties = Properties(concurrent=False, writable=True, repeatable=True, exclusive=True)

    def __init__(self, url: str, options: Mapping[str, Any], patience: Patience) -> None:
        self._url, self._options, self._patience = url, dict(options), patience
        self._lock = threading.RLock()
        self._fs: Any = None
        self._open: tuple[str, Any] | None = None
        self._version: Version | None = None
        """Of the file that is open, as far as it was asked for."""

    @classmethod
    def connect(cls, url: str, options: Mapping[str, Any], patience: Patience) -> tuple[ObjectStore, str]:
        import paramiko  # noqa: F401  (to be missed here)
        from fsspec.utils import infer_storage_options

        path = infer_storage_options(url)["path"]
        return cls(url, {"timeout": patience.stall, **options}, patience), str(path)

    def head(self, key: str) -> Version:
        with self._alone():
            status = self._file(key).stat()
            if stat.S_ISDIR(status.st_mode or 0):
                raise IsADirectoryError("is a folder; name a file")
            self._version = _version(status)
            return self._version

    def get_into(self, key: str, start: int, out: memoryview, version: Version) -> None:
        with self._alone():
            file = self._file(key)
            if self._version != version:
                self._version = _version(file.stat())
                if self._version != version:
                    raise ObjectChangedError("it was replaced")
            at = 0
            for block in file.readv([(start, len(out))]):
                out[at : at + len(block)] = block
                at += len(block)
            if at < len(out):
                raise ConnectionError(f"the answer ends after {at} of {len(out)} bytes")

    def upload(self, key: str) -> Upload:
        return _SftpUpload(self, key)

    def commit(self, temporary: str, final: str, version: Version, *, replace: bool) -> None:
        with self._alone():
            client = self._client()
            self._close_file()
            if replace:
                client.posix_rename(temporary, final)
                return
            try:
                client.rename(temporary, final)
            except OSError as error:  # the protocol has no word for a name that is taken
                if _broke(error):
                    raise
                try:
                    client.lstat(final)
                except FileNotFoundError:
                    pass
                else:
                    raise FileExistsError(final) from None
                raise

    def remove(self, key: str) -> None:
        with self._alone():
            self._close_file()
            try:
                self._client().remove(key)
            except FileNotFoundError:
                pass

    def close(self, key: str) -> None:
        with self._lock:
            self._close_file()
            fs, self._fs = self._fs, None
            if fs is not None:
                fs.client.close()

    def names(self, folder: str, *, deep: bool = False) -> Iterator[tuple[str, Version]]:
        with self._alone():
            try:
                found = self._client().listdir_attr(folder)
            except FileNotFoundError:
                return
        for item in found:
            if stat.S_ISREG(item.st_mode or 0):
                yield item.filename, _version(item)
            elif deep and stat.S_ISDIR(item.st_mode or 0):  # links are not followed: they may lead in a circle
                for name, version in self.names(posixpath.join(folder, item.filename), deep=True):
                    yield f"{item.filename}/{name}", version

    def make_folders(self, folder: str) -> None:
        """Create ``folder`` and what is missing above it."""
        with self._alone():
            client, missing = self._client(), []
            while folder and folder != "/":
                try:
                    client.stat(folder)
                    break
                except FileNotFoundError:
                    missing.append(folder)
                    folder = posixpath.dirname(folder)
            for name in reversed(missing):
                client.mkdir(name)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """The connection for oneself. One that failed within an answer is not used again: what comes next on it is the
        rest of that."""
        with self._lock:
            try:
                yield
            except BaseException as error:
                closed = self._fs is not None and self._fs.ftp.get_channel().closed
                if closed or _broke(error) or not isinstance(error, (OSError, ArzError)):
                    self._drop()
                if closed and isinstance(error, OSError) and not _broke(error):  # it says so in words only
                    raise ConnectionError(str(error)) from error
                raise

    def _drop(self) -> None:
        self._open = None
        fs, self._fs = self._fs, None
        if fs is not None:
            with contextlib.suppress(Exception):
                fs.client.close()

    def _client(self) -> Any:
        """The connection; a new one if it broke."""
        import fsspec.core

        if self._fs is not None:
            transport = self._fs.client.get_transport()
            if transport is not None and transport.is_active():
                return self._fs.ftp
            self._drop()
        self._fs, _ = fsspec.core.url_to_fs(self._url, **self._options, skip_instance_cache=True)
        self._fs.ftp.get_channel().settimeout(self._patience.stall)
        return self._fs.ftp

    def _file(self, key: str) -> Any:
        client = self._client()
        if self._open is None or self._open[0] != key:
            self._close_file()
            self._open, self._version = (key, client.open(key, "rb")), None
        return self._open[1]

    def _close_file(self) -> None:
        opened, self._open = self._open, None
        if opened is not None:
            try:
                opened[1].close()
            except (OSError, EOFError):
                pass


def _broke(error: BaseException) -> bool:
    return isinstance(error, (ConnectionError, TimeoutError))


def _version(status: Any) -> Version:
    return Version(int(status.st_size or 0), str(status.st_mtime or ""))


class _SftpUpload(Upload):
    """A file that is written from its beginning to its end."""

    def __init__(self, store: SftpStore, key: str) -> None:
        self._store, self._key, self._at = store, key, 0
        with store._alone():
            store.make_folders(posixpath.dirname(key))
            self._client = store._client()
            self._file = self._client.open(key, "wx")
            self._file.set_pipelined(True)

    def part(self, number: int, data: memoryview, last: bool) -> None:
        with self._store._alone():
            self._go_on()
            self._file.seek(self._at)
            for start in range(0, len(data), PIPELINED_BYTES):
                self._file.write(bytes(data[start : start + PIPELINED_BYTES]))
            self._at += len(data)

    def _go_on(self) -> None:
        """Open the file once more if the connection is another one. What was sent last may be lost with that: then it
        takes another upload."""
        client = self._store._client()
        if client is self._client:
            return
        self._file.set_pipelined(False)  # or it waits for answers
        with contextlib.suppress(Exception):
            self._file.close()
        self._file = client.open(self._key, "r+")
        there = int(self._file.stat().st_size or 0)
        if there < self._at:
            raise ConnectionError(f"it broke, and of {self._at} bytes that were sent {there} came")
        self._file.set_pipelined(True)
        self._client = client

    def finish(self) -> None:
        with self._store._alone():
            self._go_on()
            self._file.close()

    def abort(self) -> None:
        with self._store._alone():
            self._file.close()
            self._store.remove(self._key)
