"""What was read from stores, kept in a local folder for the next time: blocks by object and version, bounded.

A block is a file of its own, written under a temporary name and renamed, with its XXH3-64 at its end. Nothing here is
needed: what is damaged, or was removed by somebody, is read from the store again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable

from arzstream.errors import StorageError
from arzstream.kernels.digests import xxh3_64
from arzstream.store import local
from arzstream.store.address import redacted
from arzstream.store.objects import Version

__all__ = ["BlockCache", "CachedFile"]

BLOCK_BYTES = 1 << 20
DIGEST_BYTES = 8
MOST_BYTES = 16 << 30
SWEEP_SHARE = 16
"""The folder is looked through each time that this part of what it may hold was written."""

Fetch = Callable[[int, memoryview], None]


class BlockCache:
    """A folder of blocks, at most about ``most_bytes`` of them: those used longest ago go first. Thread-safe."""

    def __init__(self, folder: str | os.PathLike[str], most_bytes: int = MOST_BYTES) -> None:
        """Raises StorageError if the folder cannot be made."""
        self.folder, self._most = os.path.abspath(os.fspath(folder)), most_bytes
        self._lock = threading.Lock()
        self._unswept = most_bytes
        local.make_folders(self.folder, 0o700)

    def file(self, url: str, version: Version, fetch: Fetch) -> CachedFile:
        """The blocks of one version of an object; ``fetch(offset, buffer)`` reads what is not here."""
        identity = f"{redacted(url)}\0{version.size}\0{version.tag}"
        place = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()
        return CachedFile(self, os.path.join(self.folder, place[:2], place[2:]), version.size, fetch)

    def wrote(self, nbytes: int) -> None:
        """Take note, and make room if it is time to."""
        with self._lock:
            self._unswept += nbytes
            if self._unswept < self._most // SWEEP_SHARE:
                return
            self._unswept = 0
        self._sweep()

    def _sweep(self) -> None:
        found = []
        for folder, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(OSError):
                    status = os.stat(os.path.join(folder, name))
                    found.append((status.st_mtime_ns, status.st_size, os.path.join(folder, name)))
        total = sum(size for _, size, _ in found)
        for _, size, place in sorted(found):
            if total <= self._most:
                return
            with contextlib.suppress(StorageError):
                local.unlink(place)
                total -= size


class CachedFile:
    """One version of an object. Thread-safe."""

    def __init__(self, cache: BlockCache, folder: str, size: int, fetch: Fetch) -> None:
        self._cache, self._folder, self._size, self._fetch = cache, folder, size, fetch

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill ``out``; blocks that are not here are fetched whole, neighbours together, and kept."""
        number, end = offset // BLOCK_BYTES, offset + len(out)
        missing: list[int] = []
        while number * BLOCK_BYTES < end:
            data = self._kept(number)
            if data is None:
                missing.append(number)
            else:
                self._fetch_and_keep(missing, offset, out)
                missing = []
                _place(data, number * BLOCK_BYTES, offset, out)
            number += 1
        self._fetch_and_keep(missing, offset, out)

    def forget(self, start: int, end: int) -> None:
        """Remove the blocks that have bytes from ``start`` to ``end``."""
        for number in range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
            with contextlib.suppress(StorageError):
                local.unlink(self._path(number))

    def _fetch_and_keep(self, numbers: list[int], offset: int, out: memoryview) -> None:
        if not numbers:
            return
        start, end = numbers[0] * BLOCK_BYTES, min(self._size, (numbers[-1] + 1) * BLOCK_BYTES)
        data = memoryview(bytearray(end - start))
        self._fetch(start, data)
        _place(data, start, offset, out)
        for number in numbers:
            with contextlib.suppress(StorageError):  # a full disk is no reason not to read
                at = number * BLOCK_BYTES - start
                self._keep(number, data[at : at + BLOCK_BYTES])

    def _path(self, number: int) -> str:
        return os.path.join(self._folder, f"{number:x}")

    def _kept(self, number: int) -> memoryview | None:
        path = self._path(number)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError:
            return None
        length = min(BLOCK_BYTES, self._size - number * BLOCK_BYTES)
        body = memoryview(data)[:length]
        if len(data) != length + DIGEST_BYTES or data[length:] != _digest(body):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return body

    def _keep(self, number: int, data: memoryview) -> None:
        path = self._path(number)
        local.make_folders(self._folder, 0o700)
        temporary = local.temporary_beside(path)
        try:
            with contextlib.closing(local.LocalSink(temporary)) as sink:
                sink.write(data)
                sink.write(_digest(data))
            local.publish(temporary, path, replace=True)
        except BaseException:
            local.unlink(temporary)
            raise
        self._cache.wrote(len(data) + DIGEST_BYTES)


def _digest(data: memoryview) -> bytes:
    return xxh3_64(data).to_bytes(DIGEST_BYTES, "little")


def _place(data: memoryview, start: int, offset: int, out: memoryview) -> None:
    """Copy what ``data``, which begins at ``start``, has of ``out``, which begins at ``offset``."""
    low, high = max(start, offset), min(start + len(data), offset + len(out))
    if low < high:
        out[low - offset : high - offset] = data[low - start : high - start]
