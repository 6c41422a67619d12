"""Looking at a folder: what is in it now. This is the truth that hints only hurry along."""

from __future__ import annotations

import enum
import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from arzstream.daemon.journal import FOLDER
from arzstream.errors import StorageError
from arzstream.store import local

__all__ = ["Identity", "Item", "Kind", "Listing", "fingerprint", "scan"]


class Kind(enum.Enum):
    FILE = "file"
    LINK = "link"
    FOLDER = "folder"
    OTHER = "other"
    """FIFOs, sockets, devices: never opened."""


class Identity(NamedTuple):
    """What tells one state of a file from another without reading it."""

    dev: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def same_content(self, other: Identity) -> bool:
        """Equal but for ctime, which renaming, linking and deleting change too."""
        return self[:4] == other[:4]


class Item(NamedTuple):
    """One name. ``status`` is of the name itself, links not followed."""

    kind: Kind
    status: os.stat_result
    target: bytes = b""

    @property
    def identity(self) -> Identity:
        return Identity.of(self.status)


class Listing(NamedTuple):
    """Everything below a folder, by relative path, and the folders that could not be looked into, with the reason."""

    items: dict[bytes, Item]
    unreadable: dict[bytes, StorageError]


def scan(root: bytes, below: bytes = b"", *, skip: frozenset[tuple[int, int]] = frozenset()) -> Listing:
    """Look at ``root/below``; paths in the answer are relative to ``root``.

    Links are not followed. Folders whose (device, inode) is in ``skip`` are left out, and so is what this program
    writes itself. Raises :class:`StorageError` if ``root/below`` itself cannot be looked at.
    """
    items: dict[bytes, Item] = {}
    unreadable: dict[bytes, StorageError] = {}
    todo = [below]
    while todo:
        folder = todo.pop()
        place = os.path.join(root, folder) if folder else root
        try:
            with os.scandir(place) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            failure = StorageError.from_os_error(error, "look into the folder", place)
            if folder == below:
                raise failure from error
            if not isinstance(error, FileNotFoundError):
                unreadable[folder] = failure
            continue
        for entry in found:
            if local.is_temporary(entry.name) or entry.name == FOLDER.encode():
                continue
            path = os.path.join(folder, entry.name) if folder else entry.name
            item = _item(entry)
            if item is None or (item.kind is Kind.FOLDER and (item.status.st_dev, item.status.st_ino) in skip):
                continue
            items[path] = item
            if item.kind is Kind.FOLDER:
                todo.append(path)
    return Listing(items, unreadable)


def look(root: bytes, path: bytes) -> Item | None:
    """One name, or None if there is nothing."""
    place = os.path.join(root, path)
    try:
        status = os.lstat(place)
        return Item(_kind(status), status, os.readlink(place) if stat.S_ISLNK(status.st_mode) else b"")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError.from_os_error(error, "look at it", place) from error


def _item(entry: os.DirEntry[bytes]) -> Item | None:
    try:
        status = entry.stat(follow_symlinks=False)
        kind = _kind(status)
        return Item(kind, status, os.readlink(entry.path) if kind is Kind.LINK else b"")
    except OSError:  # gone since the folder was read
        return None


def _kind(status: os.stat_result) -> Kind:
    mode = status.st_mode
    if stat.S_ISREG(mode):
        return Kind.FILE
    if stat.S_ISDIR(mode):
        return Kind.FOLDER
    return Kind.LINK if stat.S_ISLNK(mode) else Kind.OTHER


def fingerprint(items: Mapping[bytes, Item] | Iterable[tuple[bytes, Item]]) -> str:
    """One short text for the identities of many names; folders count by name only, since their times mean little."""
    digest = hashlib.blake2b(digest_size=16)
    pairs = items.items() if isinstance(items, Mapping) else items
    for path, item in sorted(pairs, key=lambda pair: pair[0]):
        what = item.identity if item.kind is Kind.FILE else item.target
        digest.update(repr((path, item.kind.value, what)).encode())
    return digest.hexdigest()
