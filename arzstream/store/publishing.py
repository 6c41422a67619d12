"""Writing a new object behind a URL: in parts as they come, under a temporary name, until it is given its own.

The temporary object lies beside the final one, where listings for archives do not find it. It is complete before anyone
looks at it, can be read back, and is given its name by the store itself in one step, which fails if that is taken.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import secrets
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from arzstream.errors import StorageError, UnsupportedError
from arzstream.store.address import one_line, redacted
from arzstream.store.backends import connect
from arzstream.store.local import TEMPORARY_PREFIX
from arzstream.store.notes import Started
from arzstream.store.objects import ObjectStore, Upload, Version
from arzstream.store.patience import PATIENCE, Patience, patiently
from arzstream.store.remote import RemoteReader

__all__ = ["TOKEN_BYTES", "NewObject", "part_bytes", "stat_object", "steady_bytes", "store_for_writing"]

PART_BYTES = 8 << 20
MOST_PART_BYTES = 4000 << 20
"""Azure's longest block."""
QUANTUM_BYTES = 256 << 10
"""Parts are multiples of it."""
STEADY_PARTS = 9000
"""Of the 10,000 parts that stores take: so many hold what is expected, and the others what nobody expected."""
IN_FLIGHT_BYTES = 32 << 20
THREADS = 4
TOKEN_BYTES = 6
LONGEST_NAME = 255


def steady_bytes(expected: int) -> int:
    """How long the parts of an object of about so many bytes should be. They are held in memory, so: not longer."""
    quanta = -(-expected // (STEADY_PARTS * QUANTUM_BYTES))
    return min(MOST_PART_BYTES, max(PART_BYTES, quanta * QUANTUM_BYTES))


def part_bytes(number: int, steady: int = 0) -> int:
    """How long part ``number`` of an upload is, unless it is the last.

    They are as long as ``steady`` says, and grow fast only if there are many more bytes than were expected. If it is 0,
    nobody knows what to expect: they grow from the start, since objects may have terabytes.
    """
    doubled = (number - STEADY_PARTS) // 100 + 1 if steady else number // 1000
    return min(MOST_PART_BYTES, (steady or PART_BYTES) << max(0, min(9, doubled)))


def store_for_writing(
    url: str, storage_options: Mapping[str, Any] | None = None, patience: Patience | None = None
) -> tuple[ObjectStore, str]:
    """The store of ``url`` and its key there. Raises UnsupportedError if it is one to read from only."""
    store, key = connect(url, storage_options, patience or PATIENCE)
    if not store.properties.writable:
        raise UnsupportedError(f"{redacted(url)}: this kind of store can only be read; choose another destination")
    return store, key


class NewObject:
    """An object that is being written: :meth:`write`, then :meth:`complete` and read it back, then :meth:`publish`.

    At most about 32 MiB, and the part that grows, are held, of objects of 280 GiB and more two parts; parts are sent
    while more is written. ``abort`` leaves nothing behind, ``park`` what another process can go on with.
    """

    def __init__(
        self,
        url: str,
        storage_options: Mapping[str, Any] | None = None,
        *,
        patience: Patience | None = None,
        owner: str = "",
        resume: Started | None = None,
        expected: int = 0,
    ) -> None:
        """Begin to write, or go on with what another process began, if the store has any of it: all of it is to be
        written, and what is there already is not sent. ``owner`` stands in the temporary name, before the random part.
        ``expected`` is about how many bytes it is going to have at most; 0 if nobody knows. Raises StorageError or
        UnsupportedError."""
        self.name = redacted(url)
        self._url, self._options, self._patience = url, dict(storage_options or {}), patience or PATIENCE
        self._store, self._final = store_for_writing(url, self._options, self._patience)
        name = self._final.rpartition("/")[2]
        token = owner + secrets.token_hex(TOKEN_BYTES)
        short = name[: LONGEST_NAME - len(TEMPORARY_PREFIX) - len(token) - 1]
        self._temporary = _beside(self._final, f"{TEMPORARY_PREFIX}{short}-{token}")
        self.bytes_found = 0
        """What was not sent because the store has it."""
        self._counting = threading.Lock()
        self._upload: Upload | None = self._resumed(resume) if resume is not None else None
        self.resumed = self._upload is not None
        if self._upload is None:
            self._upload = self._try(lambda: self._store.upload(self._temporary), "begin to write it")
        # Parts that were sent can be told only from parts of the same lengths.
        self._steady = _noted(resume) if resume is not None and self.resumed else expected and steady_bytes(expected)
        self.started = Started(self._temporary.rpartition("/")[2], self._upload.id, self._steady)
        self._threads = THREADS if self._store.properties.unordered_parts else 1
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="arz-upload")
        self._sending: collections.deque[Future[None]] = collections.deque()
        self._buffer, self._filled = bytearray(part_bytes(0, self._steady)), 0
        self._number = self._position = 0
        self._reader: RemoteReader | None = None
        self._given_up = False

    def _resumed(self, earlier: Started) -> Upload | None:
        """The upload that an earlier process began, if there is something of it."""
        key = _beside(self._final, earlier.name)
        try:
            found: Upload | None = self._try(
                lambda: self._store.resume(key, earlier.upload), "ask what was sent of it"
            )  # fmt: skip
        except StorageError as error:
            if error.errno == errno.EAGAIN:
                raise
            found = None  # it may not be asked
        if found is not None:
            self._temporary = key
        else:
            with contextlib.suppress(StorageError):
                self._try(lambda: self._store.remove(key), "remove what was sent of it")
        return found

    # -- a sink

    def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        self._position += len(view)
        while len(view):
            if self._filled == len(self._buffer):  # more is to come, so it is not the last part
                self._send(last=False)
            count = min(len(view), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + count] = view[:count]
            self._filled += count
            view = view[count:]

    def tell(self) -> int:
        return self._position

    def sync(self) -> None:
        """Nothing is durable before the object is."""

    # -- the end

    def complete(self) -> RemoteReader:
        """Everything is written: make the temporary object, and open it."""
        self._send(last=True)
        while self._sending:
            self._sending.popleft().result()
        assert self._upload is not None
        self._try(self._upload.finish, "finish writing it")
        self._upload = None
        place = self._url.split("?", 1)[0].removesuffix(self._final.rpartition("/")[2])
        self._reader = RemoteReader(
            place + self._temporary.rpartition("/")[2], self._options, patience=self._patience, keep=False
        )
        self._reader.name = self.name
        if self._reader.size != self._position:
            raise StorageError(f"{self.name}: the store has {self._reader.size} bytes of {self._position}; try again")
        return self._reader

    def publish(self, *, replace: bool = False, name: str = "") -> None:
        """Give it its name, in one step; another ``name`` beside the one it was begun for, if that is given. Raises
        StorageError with EEXIST if it is taken and not ``replace``; then another one may be tried."""
        assert self._reader is not None
        if name:
            self._final = _beside(self._final, name)
        version = self._reader.version
        try:
            self._try(
                lambda: self._store.commit(self._temporary, self._final, version, replace=replace), "publish it"
            )  # fmt: skip
        except (FileExistsError, StorageError) as error:
            # An answer that was lost on its way looks like this, too: is it ours that lies there?
            if not self._is_published(self._reader):
                if isinstance(error, FileExistsError):
                    raise self._refusal(error, taken=not replace and self._is_taken()) from error
                raise
        self._close()
        with contextlib.suppress(StorageError):  # it is published; what stays behind is swept some day
            self._try(lambda: self._store.remove(self._temporary), "remove its temporary object")
        self._store.close(self._final)

    def abort(self) -> None:
        """Remove whatever there is of it, as far as the store can be reached. Parts on their way are waited for, but
        not sent again."""
        self._given_up = True
        self._close()
        upload, self._upload = self._upload, None
        if upload is not None:
            with contextlib.suppress(Exception):
                self._try(upload.abort, "drop what was written")
        with contextlib.suppress(Exception):
            self._try(lambda: self._store.remove(self._temporary), "remove its temporary object")
        with contextlib.suppress(Exception):
            self._store.close(self._final)

    def park(self) -> None:
        """Leave what was sent where it is, for another process to go on with. Parts on their way are waited for."""
        self._given_up = True
        self._close()
        with contextlib.suppress(Exception):
            self._store.close(self._final)

    def _close(self) -> None:
        for future in self._sending:
            future.cancel()
        wait([future for future in self._sending if not future.cancelled()])
        self._sending.clear()
        self._pool.shutdown(wait=True)
        if self._reader is not None:
            self._reader.close()

    def _is_published(self, written: RemoteReader) -> bool:
        """Is the final object this one? Its end, which has a digest of everything before, says so."""
        try:
            found, tail = self._try(lambda: self._store.tail(self._final, len(written.end)), "look at it")
        except (StorageError, FileExistsError):
            return False
        return bool(found.size == written.size and tail == written.end)

    def _is_taken(self) -> bool:
        """Is there any object of the final name? A store that refuses need not have meant that."""
        return _found(self._store, self._final, self.name, self._options, self._patience) is not None

    def _refusal(self, error: FileExistsError, *, taken: bool) -> StorageError:
        if taken:
            advice = "choose another name, or --force to replace it"
            return StorageError(f"{self.name}: exists already; {advice}", errno=errno.EEXIST)
        said = one_line(error.__cause__ or error, self._options)
        return StorageError(
            f"{self.name}: the store refused to publish it, and not for its name: {said}; try again later",
            errno=errno.EAGAIN,
        )

    def _send(self, *, last: bool) -> None:
        number, data = self._number, memoryview(self._buffer)[: self._filled]
        self._number += 1
        self._filled = 0
        most = max(1, min(self._threads, IN_FLIGHT_BYTES // max(1, len(data))))
        while len(self._sending) >= most:
            self._sending.popleft().result()
        self._buffer = bytearray(part_bytes(self._number, self._steady) if not last else 0)
        upload = self._upload
        assert upload is not None
        # Out of here, only the call that sends it holds it: the pool keeps what it was given until after the result.
        waiting = [data]
        del data

        def send() -> None:
            data = waiting.pop()
            if upload.has(number, data):
                with self._counting:
                    self.bytes_found += len(data)
                return
            self._try(
                lambda: upload.part(number, data, last), f"write part {number + 1}",
                stopped=lambda: self._given_up or not self._store.properties.repeatable,
            )  # fmt: skip

        self._sending.append(self._pool.submit(send))

    def _try(self, function: Any, doing: str, stopped: Callable[[], bool] = lambda: False) -> Any:
        return patiently(
            function, self.name, doing, patience=self._patience, options=self._options, stopped=stopped
        )  # fmt: skip


def _noted(started: Started) -> int:
    """How long the parts are, as somebody wrote down; what cannot be was not us."""
    good = PART_BYTES <= started.steady <= MOST_PART_BYTES and started.steady % QUANTUM_BYTES == 0
    return started.steady if good else 0


def _beside(key: str, name: str) -> str:
    """The key of an object called ``name`` in the same folder."""
    folder, slash, _ = key.rpartition("/")
    return folder + slash + name


def stat_object(url: str, storage_options: Mapping[str, Any] | None = None) -> Version | None:
    """The object behind ``url`` as it is now; None if there is none, or none that may be known of (S3 says so to those
    who may not list a bucket). Raises StorageError."""
    store, key = connect(url, storage_options)
    try:
        return _found(store, key, redacted(url), storage_options)
    finally:
        store.close(key)


def _found(
    store: ObjectStore, key: str, name: str, options: Mapping[str, Any] | None, patience: Patience = PATIENCE
) -> Version | None:
    try:
        return patiently(lambda: store.head(key), name, "look at it", patience=patience, options=options)
    except StorageError as error:
        if error.errno in (errno.ENOENT, errno.EACCES):
            return None
        raise
