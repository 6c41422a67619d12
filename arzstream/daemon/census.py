"""Which checkpoints are there, and what each consists of."""

from __future__ import annotations

import os
from collections.abc import Mapping

from arzstream.daemon.scan import Item, Kind, Listing, look, scan
from arzstream.daemon.source import SourceFile
from arzstream.errors import StorageError
from arzstream.formats.checkpoint import group, is_temporary

__all__ = ["Census", "grouped"]

MASK = b"\0"
"""Disguises temporary names; no path has it."""


class Census:
    """Looks at a source folder; leaves out the destination, should it lie inside."""

    distant = False
    """Is it a store's, whose times mean nothing, and which is looked at no more often than it must be?"""

    def __init__(self, source: str, dest: str) -> None:
        self.root = os.fsencode(source)
        self._dest = dest

    def everything(self) -> tuple[dict[bytes, dict[bytes, Item]], dict[bytes, StorageError]]:
        """All checkpoints by path, each with its names; and the folders that could not be looked into."""
        listing = scan(self.root, skip=self._skipped())
        return grouped(listing), listing.unreadable

    def one(self, checkpoint: bytes) -> dict[bytes, Item]:
        """The names of one checkpoint, or nothing if it is none any more. Raises StorageError if it cannot be told."""
        item = look(self.root, checkpoint) if checkpoint else None
        if checkpoint and item is None:
            return {}
        if item is not None and item.kind is not Kind.FOLDER:
            return {checkpoint: item} if item.kind in (Kind.FILE, Kind.LINK) else {}
        listing = scan(self.root, checkpoint, skip=self._skipped())
        if item is not None:
            listing.items[checkpoint] = item
        for error in listing.unreadable.values():
            raise error
        return grouped(listing).get(checkpoint, {})

    def unchanged(self, checkpoint: bytes, items: Mapping[bytes, Item]) -> bool:
        """Does the checkpoint still hold these files and no others? Names that were deleted do not count: whoever
        deletes a complete checkpoint while it is archived wants it archived no less."""
        try:
            now = self.one(checkpoint)
        except StorageError:
            return not os.path.lexists(os.path.join(self.root, checkpoint))
        for path, item in now.items():
            before = items.get(path)
            if before is None:
                if item.kind is not Kind.FOLDER:
                    return False
                continue
            replaced = item.kind is Kind.FILE and before.identity[:2] != item.identity[:2]
            if replaced or before.kind is not item.kind or before.target != item.target:
                return False
        return True

    def open_file(self, path: bytes, *, keep: bool, target: bytes = b"") -> SourceFile:
        """Open a file of a checkpoint; see :class:`~arzstream.daemon.source.SourceFile`."""
        return SourceFile(self.root, path, keep=keep, target=target)

    def read_beside(self, path: bytes, most: int) -> tuple[bytes, int] | None:
        """A file of up to ``most`` bytes that need not belong to a checkpoint, and when it was written (ns)."""
        file = SourceFile(self.root, path, keep=False)
        status = file.status()
        return (file.read_at(0, status.st_size), status.st_mtime_ns) if status.st_size <= most else None

    def _skipped(self) -> frozenset[tuple[int, int]]:
        try:
            status = os.stat(self._dest)
        except OSError:
            return frozenset()
        return frozenset({(status.st_dev, status.st_ino)})


def grouped(listing: Listing) -> dict[bytes, dict[bytes, Item]]:
    """Checkpoints by path, each with its names."""
    names = [path for path, item in listing.items.items() if item.kind in (Kind.FILE, Kind.LINK)]
    groups = {key: {path: listing.items[path] for path in paths} for key, paths in _groups(names).items()}
    owners = {path: key for key, paths in groups.items() for path in paths}
    used = _folders_above(owners)
    for path, item in listing.items.items():
        if item.kind is not Kind.FOLDER or path in groups:
            continue
        inside = used.get(path)
        if inside is None:  # an empty folder goes with the checkpoint around it
            key = next((above for above in _above(path) if above in groups), None)
            inside = set() if key is None else {key}
        for key in inside:
            if not key or path.startswith(key + b"/"):
                groups[key][path] = item
    return groups


def _groups(names: list[bytes]) -> dict[bytes, list[bytes]]:
    """As :func:`group`, and whole folders with temporary names too, so that they can be coded before they are renamed.

    For that, such a folder's name is disguised; a temporary folder inside a checkpoint is still left out.
    """
    groups: dict[bytes, list[bytes]] = {}
    for key, paths in group(map(_disguised, names)).items():
        plain = _plain(key)
        inside = len(plain) + 1 if plain else 0
        members = [path for path in map(_plain, paths) if not is_temporary(path[inside:].rpartition(b"/")[0])]
        if members:
            groups[plain] = members
    return groups


def _disguised(path: bytes) -> bytes:
    folder, slash, name = path.rpartition(b"/")
    if not is_temporary(folder):
        return path
    parts = [MASK + part + b"." + MASK if is_temporary(part) else part for part in folder.split(b"/")]
    return b"/".join(parts) + slash + name


def _plain(path: bytes) -> bytes:
    return path.replace(b"." + MASK, b"").replace(MASK, b"")


def _folders_above(owners: Mapping[bytes, bytes]) -> dict[bytes, set[bytes]]:
    """For each folder the checkpoints that have a file in or below it."""
    used: dict[bytes, set[bytes]] = {}
    for path, key in owners.items():
        for above in _above(path):
            if key in used.setdefault(above, set()):
                break
            used[above].add(key)
    return used


def _above(path: bytes) -> list[bytes]:
    """The folders above a path, the nearest first, ending with the source itself."""
    parts = path.split(b"/")[:-1]
    return [b"/".join(parts[:n]) for n in range(len(parts), -1, -1)]
