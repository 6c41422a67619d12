"""A source behind a URL: what the store lists is what there is, and each object is whole when it appears.

Objects have no inodes: key, length and version tell one from another. Nothing is believed of their times.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import threading
from collections.abc import Iterator, Mapping

from arzstream.daemon.bucket import HASTE
from arzstream.daemon.census import Census, grouped
from arzstream.daemon.journal import FOLDER
from arzstream.daemon.kept import Kept
from arzstream.daemon.scan import Identity, Item, Kind, Listing
from arzstream.daemon.source import SourceError, SourceFile
from arzstream.errors import SourceChangedError, StorageError
from arzstream.store import local
from arzstream.store.address import redacted
from arzstream.store.backends import connect
from arzstream.store.objects import ObjectChangedError, Version
from arzstream.store.patience import patiently
from arzstream.store.remote import TAIL_BYTES, RemoteReader

__all__ = ["DistantCensus", "DistantFile"]

MODE = 0o644
"""As ``pack`` gives to what lies in stores."""
THREADS, WINDOW_BYTES = 4, 32 << 20
"""Requests at once for one object, and how much of it is fetched ahead."""
BLOCK_BYTES, BLOCKS = 4 << 20, 6
"""How much of an object is kept for the next look at it, while it is coded."""
KEPT_BYTES = 96 << 20
"""And of all objects together: of four that are coded at a time."""
READ_BEFORE = 32
"""Small files that are kept open because rules read them again and again."""


class DistantFile(SourceFile):
    """One object, read as it was when it was listed, or not at all. Opened when it is first read."""

    distant = True

    def __init__(self, url: str, path: bytes, item: Item, kept: Kept) -> None:
        self.root, self.path, self.target, self.keep = b"", path, b"", False
        self.job, self.coded = None, 0
        self.identity = Identity.of(item.status)
        self._url, self._status = url, item.status
        self._opening, self._reading_blocks = threading.Lock(), threading.Lock()
        self._kept = kept
        self._remote: RemoteReader | None = None
        self._announcements = 0
        """Without any, nothing is held open for it but what ``kept`` has: there may be thousands of objects."""

    @property
    def name(self) -> str:
        return redacted(self._url)

    def status(self) -> os.stat_result:
        """Made up of what the store said."""
        return self._status

    def frontier(self) -> int:
        return self.size

    def read_at(self, offset: int, length: int) -> bytes:
        out = bytearray(max(0, length))
        self.read_into(offset, memoryview(out))
        return bytes(out)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        view = buffer if buffer.format == "B" and buffer.ndim == 1 else buffer.cast("B")
        if offset + len(view) > self.size:
            raise SourceChangedError(f"{self.name}: ends at byte {self.size}; it is coded again")
        with self._translated():
            while len(view):
                block = self._block(offset // BLOCK_BYTES)
                start = offset % BLOCK_BYTES
                count = min(len(view), len(block) - start)
                view[:count] = block[start : start + count]
                view, offset = view[count:], offset + count

    def _block(self, number: int) -> bytes:
        """Coding looks at the same bytes several times: at the names, the parent, other tensors, the digest."""
        with self._reading_blocks:
            block = self._kept.take(self, number)
            if block is None:
                start = number * BLOCK_BYTES
                reader = self._reader_now()
                block = reader.read_at(start, min(BLOCK_BYTES, self.size - start))
                self._kept.put(self, number, block)
                with self._opening:
                    if not self._announcements:
                        reader.rest()
            return block

    def has_writer(self) -> bool | None:
        return False

    @contextlib.contextmanager
    def announced(self, start: int, end: int) -> Iterator[None]:
        if end - start <= TAIL_BYTES:
            yield
            return
        with self._translated():
            reader = self._reader_now()
        with self._opening:
            self._announcements += 1
            announced = reader.announce()
        try:
            announced.add([(start, end - start)])
            yield
        finally:
            announced.release()
            with self._opening:
                self._announcements -= 1
                if not self._announcements:
                    reader.rest()
            self._kept.forget(self)

    def close(self) -> None:
        with self._opening:
            reader, self._remote = self._remote, None
        self._kept.forget(self)
        if reader is not None:
            reader.close()

    def _reader_now(self) -> RemoteReader:
        with self._opening:
            if self._remote is None:
                self._remote = RemoteReader(self._url, threads=THREADS, window_bytes=WINDOW_BYTES, keep=False)
            if self._remote.size != self.size:
                raise SourceChangedError(f"{self.name}: was replaced since it was listed; it is coded again")
            return self._remote

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except ObjectChangedError as error:
            raise SourceChangedError(str(error)) from error
        except StorageError as error:
            if isinstance(error, SourceChangedError):
                raise
            if error.errno == errno.ENOENT:
                raise SourceChangedError(f"{self.name}: was removed since it was listed") from error
            raise SourceError(str(error), errno=error.errno) from error


class DistantCensus(Census):
    """Lists the objects below a URL; leaves out the destination, should it lie inside. Thread-safe.

    Between two looks at everything, a checkpoint is what it was at the last one.
    """

    distant = True

    def __init__(self, url: str, dest: str) -> None:
        super().__init__(redacted(url).rstrip("/"), "")
        self._url = url.split("?", 1)[0].rstrip("/")
        self._store, self._key = connect(self._url, None, HASTE)
        inside = dest.rstrip("/").removeprefix(self._url + "/")
        self._left_out = "" if inside == dest.rstrip("/") else inside + "/"
        self._groups: dict[bytes, dict[bytes, Item]] = {}
        self._kept = Kept(KEPT_BYTES, BLOCKS)
        self._read_before: dict[bytes, DistantFile] = {}

    def everything(self) -> tuple[dict[bytes, dict[bytes, Item]], dict[bytes, StorageError]]:
        self._groups = grouped(Listing(self._list(""), {}))
        return self._groups, {}

    def one(self, checkpoint: bytes) -> dict[bytes, Item]:
        return self._groups.get(checkpoint, {})

    def unchanged(self, checkpoint: bytes, items: Mapping[bytes, Item]) -> bool:
        """As that of folders, and asks the store. Raises SourceError if it cannot be told."""
        try:
            now = self._now(checkpoint)
        except StorageError as error:
            raise SourceError(str(error), errno=error.errno) from error
        return all(path in items and item.identity == items[path].identity for path, item in now.items())

    def open_file(self, path: bytes, *, keep: bool, target: bytes = b"") -> SourceFile:
        item = next((items[path] for items in self._groups.values() if path in items), None)
        if item is None:
            raise SourceChangedError(f"{self._url}/{os.fsdecode(path)}: is not there any more")
        return DistantFile(f"{self._url}/{os.fsdecode(path)}", path, item, self._kept)

    def read_beside(self, path: bytes, most: int) -> tuple[bytes, int] | None:
        item = next((items[path] for items in self._groups.values() if path in items), None)
        if item is None or item.status.st_size > most:
            return None
        known = self._read_before.get(path)
        if known is None or known.identity != item.identity:
            while len(self._read_before) >= READ_BEFORE:
                self._read_before.pop(next(iter(self._read_before))).close()
            known = self._read_before[path] = DistantFile(f"{self._url}/{os.fsdecode(path)}", path, item, self._kept)
        return known.read_at(0, item.status.st_size), item.status.st_mtime_ns

    def _now(self, checkpoint: bytes) -> dict[bytes, Item]:
        """One checkpoint as it is now: its folder is listed, or that of the file that it is."""
        lone = list(self._groups.get(checkpoint, {})) == [checkpoint]
        folder = os.fsdecode(os.path.dirname(checkpoint) if lone else checkpoint)
        items = self._list(folder, deep=not lone)
        if lone:
            return {checkpoint: items[checkpoint]} if checkpoint in items else {}
        return grouped(Listing(items, {})).get(checkpoint, {})

    def _list(self, folder: str, *, deep: bool = True) -> dict[bytes, Item]:
        key, prefix = (f"{self._key.rstrip('/')}/{folder}", folder + "/") if folder else (self._key, "")
        try:
            found = patiently(
                lambda: list(self._store.names(key, deep=deep)), redacted(self._url), "list it", patience=HASTE
            )  # fmt: skip
        except NotImplementedError as error:
            raise StorageError(f"{redacted(self._url)}: this kind of store cannot be listed") from error
        named = ((prefix + name, version) for name, version in found)
        return {os.fsencode(name): _item(name, version) for name, version in named if self._counts(name)}

    def _counts(self, name: str) -> bool:
        """Is this the path of a file that somebody else wrote?"""
        parts = name.split("/")
        odd = any(part in ("", ".", "..", FOLDER) for part in parts) or "\0" in name or local.is_temporary(parts[-1])
        return not odd and not (self._left_out and name.startswith(self._left_out))


def _item(name: str, version: Version) -> Item:
    text = repr((name, version.size, version.tag))
    number = int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=7).digest(), "big")
    gid = os.getegid() if hasattr(os, "getegid") else 0
    plain = (stat.S_IFREG | MODE, number, 0, 1, 0, gid, version.size, 0, 0, 0)
    times = {"st_atime_ns": 0, "st_mtime_ns": 0, "st_ctime_ns": 0}
    return Item(Kind.FILE, os.stat_result(plain, times))
