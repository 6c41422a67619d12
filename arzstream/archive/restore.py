"""Restoring the original files, byte for byte, beneath one folder."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from arzstream.archive.ancestry import SearchPath
from arzstream.archive.decoding import Decoder
from arzstream.archive.files import families, piece_starts, range_tasks, spans, together
from arzstream.archive.forecast import Forecast
from arzstream.archive.links import links_outside
from arzstream.archive.reader import Archive
from arzstream.archive.reader import open as open_archive
from arzstream.archive.verify import NO_END
from arzstream.container.records import FileRecord, Kind, show
from arzstream.errors import CorruptError, StorageError
from arzstream.store import local
from arzstream.store.address import is_remote, local_path, redacted
from arzstream.store.beneath import Beneath

__all__ = ["unpack"]

RESTORED_MODE = 0o1777
"""Set-user-id and set-group-id bits of an archive are not believed."""
Progress = Callable[[int, int, str], None]


def unpack(
    archive: str | os.PathLike[str] | Archive,
    dest: str | os.PathLike[str],
    *,
    only: str | None = None,
    progress: Progress | None = None,
    parents: SearchPath = None,
    storage_options: dict[str, Any] | None = None,
) -> list[str]:
    """Restore the files of ``archive`` (a path, a URL or an open archive) below ``dest``, a local folder; returns their
    paths.

    ``only`` is a glob over paths; ``parents`` and ``storage_options`` as in :func:`arzstream.open`. Modes and
    modification times come back;
    existing files are never overwritten (StorageError).
    Raises CorruptError before anything is written if the archive is not sealed.
    """
    if is_remote(dest):
        raise StorageError(f"{redacted(os.fspath(dest))}: files go to a local folder only; name one and copy it there")
    if not isinstance(archive, Archive):
        with open_archive(archive, storage_options, parents) as opened:
            return unpack(opened, dest, only=only, progress=progress)
    if not archive.sealed:
        raise CorruptError(f"{archive.name}: {NO_END}")
    chosen = [r for _, r in archive.directory.files if only is None or fnmatch.fnmatchcase(os.fsdecode(r.path), only)]
    _check_links(archive, chosen)
    total, done = sum(record.size for record in chosen), 0
    known = families(archive.directory)
    with Beneath(local_path(os.fspath(dest))) as folder:
        # Links last: by then the folders that they lead through are there, or were refused.
        for record in sorted(chosen, key=lambda r: r.kind == Kind.LINK):
            if record.kind == Kind.DIRECTORY:
                folder.folder(record.path, 0o700)
            elif record.kind == Kind.LINK:
                folder.symlink(record.path, record.target)
                folder.set_attributes(record.path, mode=None, mtime_ns=record.mtime)
            else:
                for nbytes in _restore_file(archive, folder, record, known):
                    done += nbytes
                    if progress is not None:
                        progress(done, total, "unpacking")
        for record in sorted(chosen, key=lambda r: r.path.count(b"/"), reverse=True):
            if record.kind == Kind.DIRECTORY:
                folder.set_attributes(record.path, mode=record.mode & RESTORED_MODE, mtime_ns=record.mtime)
    return [os.fsdecode(record.path) for record in chosen]


def _check_links(archive: Archive, chosen: Sequence[FileRecord]) -> None:
    """A link may only lead to something below the folder that is restored."""
    for record in links_outside(chosen):
        raise CorruptError(f"{archive.name}: the link {show(record.path)} leads outside the folder it is restored to")


def _restore_file(archive: Archive, folder: Beneath, record: FileRecord, known: Mapping[int, int]) -> Iterator[int]:
    """Write one file; yields the bytes written. A file that cannot be finished is removed."""
    fd = folder.create(record.path)
    name = os.path.join(folder.root, os.fsdecode(record.path))
    try:
        yield from _write_spans(archive.decoder, known, record, fd, name)
    except BaseException:
        local.close(fd, name)
        folder.unlink(record.path)
        raise
    folder.finish(fd, record.path, mode=record.mode & RESTORED_MODE, mtime_ns=record.mtime)


def _write_spans(decoder: Decoder, known: Mapping[int, int], record: FileRecord, fd: int, name: str) -> Iterator[int]:
    """Decode the file span by span, in whatever thread is free, each to its place while it is in that core's cache."""
    starts = piece_starts(record)

    def restore(group: Sequence[tuple[int, int]]) -> None:
        for start, end in group:
            out = decoder.scratch.get("span", end - start)
            for task in range_tasks(decoder, record, starts, start, end, np.frombuffer(out, np.uint8)):
                task()
            local.write_at(fd, start, out, name)

    todo = together(decoder, known, record, starts, spans(decoder, record))
    if len(todo) > 1:
        local.set_length(fd, record.size, name)
    with Forecast(decoder) as forecast:

        def announce(group: Sequence[tuple[int, int]]) -> int:
            for start, end in group:
                forecast.file(record, starts, start, end)
            return sum(end - start for start, end in group)

        coming = forecast.ahead(todo, announce)
        done = decoder.in_order(restore, coming) if len(todo) > 1 else map(restore, coming)
        for group, _ in zip(todo, done, strict=True):
            yield sum(end - start for start, end in group)
