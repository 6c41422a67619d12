"""What is asked of a store: one interface, with a record of what each store can do instead of tests for its kind.

A key is what the store calls an object: a path, or bucket and name. Methods block, and may be called from several
threads at once. They try once and raise what they got: :mod:`arzstream.store.patience` says what that means and tries
again. (A commit of many steps tries each of them again.)
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from arzstream.errors import StorageError

__all__ = ["BadAnswer", "ObjectChangedError", "ObjectStore", "Properties", "StaleUploadError", "Upload", "Version"]


class Version(NamedTuple):
    """What tells one state of an object from the next. ``tag`` is its ETag, generation, or time; empty if the store
    says nothing."""

    size: int
    tag: str


class ObjectChangedError(StorageError):
    """The object is not the one that was opened."""


class StaleUploadError(StorageError):
    """What an earlier process sent is not what this one would have sent. Everything has to be sent again, from the
    beginning."""


class BadAnswer(Exception):
    """The store answered with something else than it was asked for. It is asked once more."""


@dataclasses.dataclass(frozen=True)
class Properties:
    """What a store can do."""

    pinned: bool = False
    """Reads say which version they are of (``If-Match``, a generation): another one is refused by the store. Without,
    versions are compared when something does not fit, and the archive's own checksums see to the rest."""
    suffix: bool = False
    """The last bytes of an object can be asked for without knowing how long it is."""
    concurrent: bool = True
    """Several reads at once are faster than one after the other."""
    writable: bool = False
    """Objects can be uploaded in parts, committed, removed."""
    repeatable: bool = False
    """A part that failed may be sent again."""
    unordered_parts: bool = False
    """Parts of an upload may be sent in any order and at once."""
    exclusive: bool = False
    """A commit that must not replace anything is refused by the store itself, in one step."""
    resumable: bool = False
    """Another process can go on with an upload: the store has digests, made by itself, of what was sent."""


class Upload(abc.ABC):
    """An object that is being written under a temporary name; nothing is there before :meth:`finish`."""

    id: str = ""
    """What :meth:`ObjectStore.resume` wants to know of it. It may be as good as a password: not for logs."""

    def has(self, number: int, data: memoryview) -> bool:
        """Does the store have just ``data`` as part ``number`` already? Then it need not be sent. Asked for each part,
        in order where parts go in order. A store whose digests are of the whole only may say so for now; then
        :meth:`finish` raises StaleUploadError if it was wrong."""
        return False

    @abc.abstractmethod
    def part(self, number: int, data: memoryview, last: bool) -> None:
        """Send part ``number``, counted from 0. Parts but the last are multiples of 256 KiB, and at least 5 MiB."""

    @abc.abstractmethod
    def finish(self) -> None:
        """All parts are there: make the object."""

    @abc.abstractmethod
    def abort(self) -> None:
        """Drop what was sent; no object was made."""


class ObjectStore(abc.ABC):
    """Objects behind one fsspec file system."""

    properties: Properties = Properties()

    @abc.abstractmethod
    def head(self, key: str) -> Version:
        """The object as it is now."""

    @abc.abstractmethod
    def get_into(self, key: str, start: int, out: memoryview, version: Version) -> None:
        """Fill ``out`` with the bytes of ``version`` from ``start`` on. Raises ObjectChangedError if the object is
        another one by now, BadAnswer if the answer is not what was asked for."""

    def tail(self, key: str, length: int) -> tuple[Version, bytes]:
        """The object as it is now, and its last ``length`` bytes, or all if it has fewer."""
        version = self.head(key)
        out = bytearray(min(length, version.size))
        if out:
            self.get_into(key, version.size - len(out), memoryview(out), version)
        return version, bytes(out)

    def upload(self, key: str) -> Upload:
        """Begin to write the object ``key``."""
        raise NotImplementedError

    def resume(self, key: str, upload: str) -> Upload | None:
        """Go on with the upload to ``key`` whose ``id`` is ``upload``, or with the object that it has become. None if
        there is nothing any more, or the store cannot do it."""
        return None

    def commit(self, temporary: str, final: str, version: Version, *, replace: bool) -> None:
        """Give the object ``temporary`` of ``version`` the name ``final``, without its bytes passing through here.
        Raises FileExistsError, and changes nothing, if there is such an object and not ``replace``; also where the
        store only says that a condition was not met, so that it has to be asked which."""
        raise NotImplementedError

    def remove(self, key: str) -> None:
        """Remove an object, if there is one, and uploads to it that nobody finished."""
        raise NotImplementedError

    def unfinished(self, folder: str) -> Iterator[str]:
        """Keys below ``folder``, from there on, of uploads that nobody finished, where the store keeps such."""
        return iter(())

    def stop(self) -> None:  # noqa: B027  (most wait)
        """Let reads that are under way fail where that is sooner than waiting for them: nobody wants them any more."""

    def close(self, key: str) -> None:  # noqa: B027  (most stores keep nothing open)
        """Nothing more is read from ``key``."""

    def names(self, folder: str, *, deep: bool = False) -> Iterator[tuple[str, Version]]:
        """The objects right in ``folder``, or (``deep``) in those below it, too: their names from there on, and what is
        there now. Nothing if there is no such folder."""
        raise NotImplementedError


def answered(headers: Any, status: int, start: int, length: int) -> int | None:
    """Check a range answer: its status and ``Content-Range``. Returns the object's length, None if it does not say.

    ``start`` is negative for the last ``length`` bytes, or all if there are fewer. Raises BadAnswer.
    """
    said = headers.get("Content-Range") or ""
    unit, _, rest = said.partition(" ")
    span, _, total = rest.partition("/")
    first, _, last = span.partition("-")
    if status != 206 or unit != "bytes" or not first.isdigit() or not last.isdigit() or not total.isdigit():
        raise BadAnswer(f"asked for a range, it answers with status {status} and Content-Range {said!r}")
    low, high, size = int(first), int(last), int(total)
    wanted = (start, start + length - 1) if start >= 0 else (max(0, size - length), size - 1)
    if (low, high) != wanted or high >= size:
        raise BadAnswer(f"asked for bytes {wanted[0]} to {wanted[1]}, it answers with {said!r}")
    return size
