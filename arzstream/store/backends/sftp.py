"""Files on another machine over SSH."""

from __future__ import annotations

import posixpath
import stat
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from arzstream.store.objects import ObjectStore, Properties, Upload, Version
from arzstream.store.patience import Patience

__all__ = ["SftpStore"]

PIPELINED_BYTES = 1 << 20


class SftpStore(ObjectStore):
    """Files over SFTP, one request at a time over one connection.

    What is read is a file that stays open: replaced by a rename, it stays what it was. Versions are told by size and
    time. A commit is a rename, which fails if there is such a file.
    """

    properties = Properties(concurrent=False, writable=True, repeatable=True, exclusive=True)

    def __init__(self, url: str, options: Mapping[str, Any], patience: Patience) -> None:
        self._url, self._options, self._patience = url, dict(options), patience
        self._lock = threading.RLock()
        self._fs: Any = None
        self._open: tuple[str, Any] | None = None

    @classmethod
    def connect(cls, url: str, options: Mapping[str, Any], patience: Patience) -> tuple[ObjectStore, str]:
        import paramiko  # noqa: F401  (to be missed here)
        from fsspec.utils import infer_storage_options

        path = infer_storage_options(url)["path"]
        return cls(url, {"timeout": patience.stall, **options}, patience), str(path)

    def head(self, key: str) -> Version:
        with self._lock:
            status = self._file(key).stat()
        if stat.S_ISDIR(status.st_mode or 0):
            raise IsADirectoryError("is a folder; name a file")
        return _version(status)

    def get_into(self, key: str, start: int, out: memoryview, version: Version) -> None:
        with self._lock:
            file = self._file(key)
            at = 0
            for block in file.readv([(start, len(out))]):
                out[at : at + len(block)] = block
                at += len(block)
            if at < len(out):
                raise ConnectionError(f"the answer ends after {at} of {len(out)} bytes")

    def upload(self, key: str) -> Upload:
        return _SftpUpload(self, key)

    def commit(self, temporary: str, final: str, version: Version, *, replace: bool) -> None:
        with self._lock:
            client = self._client()
            self._close_file()
            if replace:
                client.posix_rename(temporary, final)
                return
            try:
                client.rename(temporary, final)
            except OSError:  # the protocol has no word for a name that is taken
                try:
                    client.lstat(final)
                except OSError:
                    pass
                else:
                    raise FileExistsError(final) from None
                raise

    def remove(self, key: str) -> None:
        with self._lock:
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
        with self._lock:
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
        with self._lock:
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

    def _client(self) -> Any:
        """The connection; a new one if it broke."""
        import fsspec.core

        if self._fs is not None:
            transport = self._fs.client.get_transport()
            if transport is not None and transport.is_active():
                return self._fs.ftp
            self._open = None
        self._fs, _ = fsspec.core.url_to_fs(self._url, **self._options, skip_instance_cache=True)
        self._fs.ftp.get_channel().settimeout(self._patience.stall)
        return self._fs.ftp

    def _file(self, key: str) -> Any:
        client = self._client()
        if self._open is None or self._open[0] != key:
            self._close_file()
            self._open = (key, client.open(key, "rb"))
        return self._open[1]

    def _close_file(self) -> None:
        opened, self._open = self._open, None
        if opened is not None:
            try:
                opened[1].close()
            except (OSError, EOFError):
                pass


def _version(status: Any) -> Version:
    return Version(int(status.st_size or 0), str(status.st_mtime or ""))


class _SftpUpload(Upload):
    """A file that is written from its beginning to its end."""

    def __init__(self, store: SftpStore, key: str) -> None:
        self._store, self._key = store, key
        with store._lock:
            store.make_folders(posixpath.dirname(key))
            self._file = store._client().open(key, "wx")
            self._file.set_pipelined(True)
            self._at = 0

    def part(self, number: int, data: memoryview, last: bool) -> None:
        with self._store._lock:
            self._file.seek(self._at)
            for start in range(0, len(data), PIPELINED_BYTES):
                self._file.write(bytes(data[start : start + PIPELINED_BYTES]))
            self._at += len(data)

    def finish(self) -> None:
        with self._store._lock:
            self._file.close()

    def abort(self) -> None:
        with self._store._lock:
            self._file.close()
            self._store.remove(self._key)
