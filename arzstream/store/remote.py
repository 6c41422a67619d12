"""Reading a file behind a URL: pinned to what it was when it was opened, checked, patient, and ahead of who reads."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

from arzstream.errors import StorageError
from arzstream.store.address import redacted
from arzstream.store.backends import connect
from arzstream.store.blocks import BlockCache
from arzstream.store.objects import ObjectChangedError, ObjectStore, Version
from arzstream.store.patience import PATIENCE, Patience, patiently
from arzstream.store.window import REQUEST_BYTES, Announced, Window

__all__ = ["TAIL_BYTES", "RemoteReader"]

TAIL_BYTES = 256 << 10
"""Opening asks for the end: an archive's index lies there, and a small archive is all there is."""
THREADS = 8
WINDOW_BYTES = 64 << 20
ENVIRONMENT_CACHE = "ARZ_CACHE"


class RemoteReader:
    """A file behind any fsspec URL. Thread-safe.

    Every answer's length and place is checked. All answers are of the version that was opened, or reading raises
    ObjectChangedError: the store refuses others where it can, and elsewhere they are compared when something is odd.
    """

    def __init__(
        self,
        url: str,
        storage_options: Mapping[str, Any] | None = None,
        *,
        patience: Patience | None = None,
        cache: BlockCache | None = None,
        threads: int = THREADS,
        window_bytes: int = WINDOW_BYTES,
        keep: bool = True,
    ) -> None:
        """Open it, with one request for its end, or two where the store wants to be asked for the length first.

        ``storage_options`` go to the fsspec file system as they are. ``cache`` keeps what was read; without one, the
        folder that ``ARZ_CACHE`` names does, unless not ``keep``. Raises StorageError or UnsupportedError.
        """
        self.name = redacted(url)
        self._options = dict(storage_options or {})
        self._patience = patience or PATIENCE
        self._url = url
        self._store: ObjectStore
        self._store, self._key = connect(url, self._options, self._patience)
        self._process = os.getpid()
        self._closed = False
        self.requests = self.bytes_moved = 0
        """Requests for bytes, tries not counted, and how much they brought."""
        self._counting = threading.Lock()
        try:
            self.version, self.end = self._opened()
        except BaseException:
            self._store.close(self._key)
            raise
        self._tail = self.end
        if cache is None and keep and os.environ.get(ENVIRONMENT_CACHE):
            cache = BlockCache(os.environ[ENVIRONMENT_CACHE])
        self._blocks = cache.file(url, self.version, self._fetch) if cache is not None and self.version.tag else None
        self._sizes = (threads if self._store.properties.concurrent else 1, window_bytes)
        self._window = self._new_window()

    @property
    def size(self) -> int:
        return self.version.size

    @property
    def pinned(self) -> bool:
        """Does the store see to it that all reads are of one version?"""
        return self._store.properties.pinned and bool(self.version.tag)

    def read_at(self, offset: int, length: int) -> bytes:
        if length <= 0:
            return b""
        self._check(offset, length)
        out = bytearray(length)
        self.read_into(offset, memoryview(out))
        return bytes(out)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._survive_fork()
        view = buffer if buffer.format == "B" and buffer.ndim == 1 else buffer.cast("B")
        self._check(offset, len(view))
        tail = self._tail  # another thread may let go of it
        kept = self.size - len(tail)
        head = view[: max(0, kept - offset)]
        if len(head) < len(view):
            start = offset + len(head) - kept
            view[len(head) :] = tail[start : start + len(view) - len(head)]
        while len(head):
            got = self._window.take(offset, head)
            if not got:
                after = self._window.until(offset)
                got = min(len(head), after - offset) if after is not None else len(head)
                self._read_now(offset, head[:got])
            head, offset = head[got:], offset + got

    def tail(self, length: int) -> tuple[int, bytes]:
        start = max(0, self.size - length)
        return self.size, self.read_at(start, self.size - start)

    def announce(self) -> Announced:
        """Say what will be read, so that it is fetched ahead; see :mod:`arzstream.store.window`."""
        self._survive_fork()
        return self._window.announce()

    def forget(self, offset: int, length: int) -> bool:
        """What was read there is damaged: let go of copies of it, so that reading it again asks the store.

        Raises ObjectChangedError if the object is another one by now. Returns True: it may be good the next time.
        """
        end = offset + length
        self._window.forget(offset, end)
        if self._blocks is not None:
            self._blocks.forget(offset, end)
        if end > self.size - len(self._tail):
            self._tail = b""
        if not self._store.properties.pinned and self._ask_version() != self.version:
            raise self._changed()
        return True

    def rest(self) -> None:
        """Let go of the threads, the memory for reading ahead, and the end that opening brought. It can be read all the
        same, and something be announced again; what is announced now will not be fetched ahead."""
        self._tail = self.end = b""
        if self._window.started:
            window, self._window = self._window, self._new_window()
            window.close(wait=False)

    def check_version(self) -> None:
        """Raises ObjectChangedError if the object is another one by now."""
        if self._ask_version() != self.version:
            raise self._changed()

    def close(self) -> None:
        """End the threads. (fsspec keeps one session per file system.)"""
        self._closed = True
        if self._process == os.getpid():
            self._store.stop()
            self._window.close()
            self._store.close(self._key)

    def __enter__(self) -> RemoteReader:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # -- requests

    def _new_window(self) -> Window:
        return Window(self._read_ahead, threads=self._sizes[0], most_bytes=self._sizes[1])

    def _survive_fork(self) -> None:
        """In a child process there are neither the threads nor the connections of its parent: it gets its own."""
        if self._process != os.getpid():
            self._counting, self._window = threading.Lock(), self._new_window()
            self._store, self._key = connect(self._url, self._options, self._patience)
            self._process = os.getpid()

    def _opened(self) -> tuple[Version, bytes]:
        version, tail = patiently(
            lambda: self._store.tail(self._key, TAIL_BYTES), self.name, "open it",
            patience=self._patience, options=self._options,
        )  # fmt: skip
        self._count(len(tail))
        return version, tail

    def _ask_version(self) -> Version:
        return patiently(
            lambda: self._store.head(self._key), self.name, "look at it",
            patience=self._patience, options=self._options, stopped=lambda: self._closed,
        )  # fmt: skip

    def _read_now(self, offset: int, out: memoryview) -> None:
        """What nobody announced; announced now, if that makes several requests of it."""
        if len(out) > REQUEST_BYTES:
            announced = self._window.announce()
            announced.add([(offset, len(out))])
            try:
                done = 0
                while done < len(out):
                    got = self._window.take(offset + done, out[done:])
                    if not got:  # let go of in between
                        got = min(REQUEST_BYTES, len(out) - done)
                        self._read_ahead(offset + done, out[done : done + got])
                    done += got
            finally:
                announced.release()
        else:
            self._read_ahead(offset, out)

    def _read_ahead(self, offset: int, out: memoryview) -> None:
        if self._blocks is not None:
            self._blocks.read_into(offset, out)
        else:
            self._fetch(offset, out)

    def _fetch(self, offset: int, out: memoryview) -> None:
        self._check_open()
        try:
            patiently(
                lambda: self._store.get_into(self._key, offset, out, self.version),
                self.name, f"read {len(out)} bytes at byte {offset}",
                patience=self._patience, options=self._options, stopped=lambda: self._closed,
            )  # fmt: skip
        except ObjectChangedError as error:
            raise self._changed() from error
        self._check_open()  # what came while connections were ended is not for the cache
        self._count(len(out))

    def _count(self, nbytes: int) -> None:
        with self._counting:
            self.requests += 1
            self.bytes_moved += nbytes

    def _changed(self) -> ObjectChangedError:
        return ObjectChangedError(f"{self.name}: was replaced since it was opened; open it again")

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError(f"{self.name}: was closed; open it again")

    def _check(self, offset: int, length: int) -> None:
        if offset + length > self.size:
            raise StorageError(
                f"{self.name}: ends at byte {self.size}, {length} bytes at {offset} were asked for; was it truncated?"
            )
