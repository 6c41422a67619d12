"""What is packed: a file, a folder with everything in it, several of them, or what lies behind a URL."""

from __future__ import annotations

import dataclasses
import errno
import os
import posixpath
import stat
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from arzstream.archive.links import leads_outside, links_outside
from arzstream.container.records import Kind
from arzstream.errors import StorageError
from arzstream.store.address import redacted
from arzstream.store.folders import objects_below
from arzstream.store.ranges import LocalReader, RemoteReader, is_url, open_reader

__all__ = ["EntriesBeside", "SourceEntry", "collect", "kept_target", "open_source"]


@dataclasses.dataclass(frozen=True)
class SourceEntry:
    """One file, link or folder to pack; ``path`` is its name in the archive, ``where`` its place outside."""

    path: bytes
    where: bytes | str
    kind: int
    mode: int
    mtime: int
    size: int
    target: bytes = b""


def collect(
    sources: Sequence[str | os.PathLike[str]], storage_options: Mapping[str, Any] | None = None
) -> list[SourceEntry]:
    """Everything below ``sources``, by path. One folder gives names relative to itself, more than one source also its
    name.

    Links that point inside the folder stay links, others are followed. Raises StorageError for what cannot be packed.
    """
    found: dict[bytes, SourceEntry] = {}
    for source in sources:
        for entry in _entries(source, storage_options, alone=len(sources) == 1):
            if entry.path in found:
                raise StorageError(
                    f"{os.fsdecode(entry.where)}: another source has a file called {os.fsdecode(entry.path)} too; "
                    "pack them separately"
                )
            found[entry.path] = entry
    listed = [found[path] for path in sorted(found)]
    for entry in links_outside(listed):  # none that was found in a folder does: see kept_target
        raise StorageError(
            f"{os.fsdecode(entry.where)}: leads outside once it is restored; let it lead straight to its end"
        )
    return listed


def _entries(
    source: str | os.PathLike[str], storage_options: Mapping[str, Any] | None, *, alone: bool
) -> Iterator[SourceEntry]:
    if is_url(source):
        yield from _remote(str(source), storage_options, alone=alone)
        return
    where = os.fsencode(os.path.abspath(source))
    status = _stat(where)
    if stat.S_ISDIR(status.st_mode):
        root = os.path.realpath(where)
        yield from _folder(root, root, b"" if alone else os.path.basename(where) + b"/", frozenset())
    else:
        yield _regular(os.path.basename(where), where, status)


def _remote(url: str, storage_options: Mapping[str, Any] | None, *, alone: bool) -> Iterator[SourceEntry]:
    """The object behind ``url``; or, if there is none, or if it ends with a slash, the objects below it."""
    if not url.endswith("/"):
        try:
            with open_reader(url, storage_options, keep=False) as reader:
                name = posixpath.basename(reader.name)
                yield SourceEntry(os.fsencode(name), url, Kind.REGULAR, 0o644, 0, reader.size)
            return
        except StorageError as error:
            if error.errno not in (errno.ENOENT, errno.EISDIR):
                raise
            missing = error
    else:
        missing = StorageError(f"{redacted(url)}: there is nothing in it; check the address", errno=errno.ENOENT)
    folder = url.rstrip("/")
    prefix = "" if alone else posixpath.basename(redacted(folder)) + "/"
    found = objects_below(folder, storage_options)
    for name, size in found:
        if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
            raise StorageError(f"{redacted(folder)}: has an object called {name!r}, which is no path; pack it alone")
        yield SourceEntry(os.fsencode(prefix + name), f"{folder}/{name}", Kind.REGULAR, 0o644, 0, size)
    if not found:
        raise missing


def _folder(root: bytes, folder: bytes, prefix: bytes, above: frozenset[tuple[int, int]]) -> Iterator[SourceEntry]:
    status = _stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        raise StorageError(f"{os.fsdecode(folder)}: a link leads back to a folder above it; remove the link")
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise StorageError.from_os_error(error, "list the folder", folder) from error
    for name in names:
        where, path = os.path.join(folder, name), prefix + name
        if os.path.islink(where):
            target = kept_target(root, where)
            if target is not None:
                own = os.lstat(where)
                yield SourceEntry(path, where, Kind.LINK, stat.S_IMODE(own.st_mode), own.st_mtime_ns, 0, target)
                continue
        entry = _stat(where)
        if stat.S_ISDIR(entry.st_mode):
            yield SourceEntry(path, where, Kind.DIRECTORY, stat.S_IMODE(entry.st_mode), entry.st_mtime_ns, 0)
            yield from _folder(root, where, path + b"/", above | {identity})
        else:
            yield _regular(path, where, entry)


def kept_target(root: bytes, link: bytes) -> bytes | None:
    """What ``link``, below ``root`` (resolved), says in the archive if it leads to something inside ``root``: its
    target where that still leads there when restored, else the way there from where the link will be. None if it leads
    outside."""
    target, real = os.readlink(link), os.path.realpath(link)
    if real != root and not real.startswith(root.rstrip(b"/") + b"/"):
        return None
    folder = os.path.dirname(link)

    def is_folder(place: bytes) -> bool:
        where = os.path.join(root, place)
        return os.path.isdir(where) and os.path.realpath(where) == where

    # A relative target may lead through links, or leave the folder and come back by its name; and where the link is in
    # a folder that was followed, it starts from somewhere else.
    if not leads_outside(os.path.relpath(link, root), target, is_folder):
        lexical = os.path.normpath(os.path.join(folder, target))
        if os.path.realpath(lexical) == real:
            return target
    return os.path.relpath(real, folder)


def _regular(path: bytes, where: bytes, status: os.stat_result) -> SourceEntry:
    if not stat.S_ISREG(status.st_mode):
        raise StorageError(f"{os.fsdecode(where)}: is neither a file, a folder nor a link; move it out of the folder")
    return SourceEntry(path, where, Kind.REGULAR, stat.S_IMODE(status.st_mode), status.st_mtime_ns, status.st_size)


def _stat(where: bytes) -> os.stat_result:
    try:
        return os.stat(where)
    except OSError as error:
        raise StorageError.from_os_error(
            error, "find it" if isinstance(error, FileNotFoundError) else "look at it", where
        ) from error


class EntriesBeside:
    """What is packed, for parsers that look at more than one file; each is opened when it is looked at."""

    def __init__(self, entries: Sequence[SourceEntry], storage_options: Mapping[str, Any] | None = None) -> None:
        self._options = storage_options
        self._entries = {entry.path: entry for entry in entries if entry.kind == Kind.REGULAR}

    def paths(self) -> Iterable[bytes]:
        return self._entries

    def version(self, path: bytes) -> Hashable:
        entry = self._entries.get(path)
        return None if entry is None else (entry.size, entry.mtime)

    def size(self, path: bytes) -> int:
        return self._entries[path].size if path in self._entries else 0

    def read(self, path: bytes, offset: int, length: int) -> bytes:
        entry = self._entries.get(path)
        if entry is None:
            return b""
        with open_source(entry, self._options) as source:
            return source.read_at(offset, max(0, min(length, source.size - offset)))

    def foretold(self, path: bytes) -> bytes | None:
        return None


def open_source(entry: SourceEntry, storage_options: Mapping[str, Any] | None = None) -> LocalReader | RemoteReader:
    """A reader for a regular file. It is read twice, to code it and to compare, so no cache answers for the store."""
    if isinstance(entry.where, bytes):
        return LocalReader(entry.where)
    return open_reader(entry.where, storage_options, keep=False)
