"""A new archive, in a local folder or behind a URL: written under a temporary name, looked at once more, then made
visible."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from arzstream.archive.verify import verify_reader
from arzstream.container.layout import MAGIC
from arzstream.errors import StorageError
from arzstream.store import local
from arzstream.store.address import is_remote, local_path, redacted, shown
from arzstream.store.folders import is_archive_name, same_place
from arzstream.store.notes import UploadNotes, state_folder
from arzstream.store.publishing import NewObject, stat_object, store_for_writing
from arzstream.store.ranges import LocalReader, open_reader

__all__ = ["NEEDED", "check_free", "check_free_file", "check_not_read", "new_archive", "new_object"]


TAKEN = "exists already; choose another name, or --force to replace it"
NO_ARCHIVE = "is no archive, and --force replaces nothing else; choose another name"
NEEDED = "is needed to read what would take its place; choose another name"


def check_free(dest: str, *, replace: bool, storage_options: Mapping[str, Any] | None = None) -> None:
    """Refuse a name that is taken before any work is done for it; raises StorageError."""
    if is_remote(dest):
        if dest.split("?", 1)[0].endswith("/"):
            raise StorageError(f"{redacted(dest)}: is a folder; name the archive", errno=errno.EISDIR)
        store_for_writing(dest, storage_options)
        if replace:
            _check_archive(dest, dest.split("?", 1)[0], storage_options)
        elif stat_object(dest, storage_options) is not None:
            _forget_upload(dest, storage_options)
            raise StorageError(f"{redacted(dest)}: {TAKEN}", errno=errno.EEXIST)
        return
    check_free_file(dest, replace=replace)


def check_free_file(dest: str, *, replace: bool) -> str:
    """:func:`check_free` for what :func:`new_archive` writes: a path, or a ``file://`` URL. Returns the path."""
    path = _free_path(dest, replace=replace)
    if replace:
        _check_archive(path, path)
    return path


def _free_path(dest: str, *, replace: bool) -> str:
    if is_remote(dest):
        raise StorageError(f"{redacted(dest)}: this is written to a local file only; name one and copy it there")
    path = local_path(dest)
    if os.path.isdir(path) or path.endswith((os.sep, os.altsep or os.sep)):
        example = os.path.join(path, "checkpoint.arz")
        raise StorageError(f"{path}: is a folder; name the archive, for example {example}", errno=errno.EISDIR)
    if os.path.lexists(path) and not replace:
        raise StorageError(f"{path}: {TAKEN}", errno=errno.EEXIST)
    return path


def _check_archive(place: str, name: str, storage_options: Mapping[str, Any] | None = None) -> None:
    """Refuse to replace what was hardly meant: a file that neither is called an archive, damaged or not, nor begins
    like one, and is not empty."""
    if is_archive_name(name):
        return
    try:
        with open_reader(place, storage_options, keep=False) as reader:
            begins = reader.read_at(0, min(len(MAGIC), reader.size))
    except StorageError as error:
        if error.errno == errno.ENOENT:
            return
        raise
    if begins and begins != MAGIC:
        raise StorageError(f"{shown(place)}: {NO_ARCHIVE}", errno=errno.EEXIST)


def check_not_read(dest: str, places: Iterable[str | bytes], why: str = NEEDED) -> None:
    """Refuse to replace one of the files ``places``, whatever --force says; raises StorageError."""
    if dest == "-" or (not is_remote(dest) and not os.path.lexists(local_path(dest))):
        return
    if any(same_place(os.fsdecode(place), dest) for place in places):
        raise StorageError(f"{shown(dest)}: {why}", errno=errno.EEXIST)


@contextlib.contextmanager
def new_archive(dest: str, *, replace: bool, mode: int = 0o600) -> Iterator[tuple[local.LocalSink, LocalReader]]:
    """Yield a sink to write the whole archive into, and a reader of what was written so far.

    When the block ends well, every header and stored byte is checked, and the archive gets its name; ``mode`` is that
    of the new file, less the umask. When it does not, nothing is left behind. Raises StorageError as
    :func:`check_free_file` does, but replaces whatever file it is.
    """
    final = os.path.abspath(_free_path(dest, replace=replace))
    local.make_folders(os.path.dirname(final))
    temporary = local.temporary_beside(final)
    sink = local.LocalSink(temporary, mode=mode)
    try:
        with LocalReader(temporary, name=dest) as reader:
            yield sink, reader
            # Durable first: what is checked must be what a power cut leaves.
            sink.sync()
            verify_reader(reader)
        sink.close()
        local.publish(temporary, final, replace=replace)
    except BaseException:
        sink.abort()
        raise


@contextlib.contextmanager
def new_object(
    dest: str, *, replace: bool, storage_options: Mapping[str, Any] | None = None, file_id: bytes | None = None,
    expected: int = 0,
) -> Iterator[tuple[NewObject, bytes]]:  # fmt: skip
    """Yield what to write a whole archive into, and to :meth:`~arzstream.store.publishing.NewObject.complete` then, and
    the file id that it is to have: ``file_id``, or that of an upload to ``dest`` which was interrupted and is gone on
    with, or a random one. ``expected`` is about how many bytes it is going to have at most; 0 if nobody knows.

    When the block ends well, the archive gets its name. When the store, or a source, cannot be reached any more, what
    was sent stays there for the next try. When it fails otherwise, nothing is left behind.
    """
    notes = _upload_notes(dest, storage_options)
    known = _id_of(notes) if notes is not None else None
    identity = file_id or known or secrets.token_bytes(16)
    try:
        resume = notes.started if notes is not None else None
        written = NewObject(dest, storage_options, resume=resume, expected=expected)
    except BaseException:
        if notes is not None:
            notes.keep()
        raise
    if notes is not None and not (written.resumed and known == identity):
        notes.begin(written.started, place=redacted(dest), file_id=identity.hex())
    try:
        yield written, identity
        written.publish(replace=replace)
    except BaseException as error:
        if notes is not None and isinstance(error, StorageError) and error.errno == errno.EAGAIN:
            written.park()
            notes.keep()
        else:
            written.abort()
            if notes is not None:
                notes.remove()
        raise
    if notes is not None:
        notes.remove()


def _upload_notes(dest: str, storage_options: Mapping[str, Any] | None) -> UploadNotes | None:
    """What is known of an upload to ``dest`` by this user on this machine; None if nothing can be, or if another
    process is at it."""
    store, _ = store_for_writing(dest, storage_options)
    if not store.properties.resumable:
        return None
    key = hashlib.sha256(redacted(dest).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    with contextlib.suppress(StorageError):
        return UploadNotes.claim(state_folder("uploads", key))
    return None


def _id_of(notes: UploadNotes) -> bytes | None:
    with contextlib.suppress(TypeError, ValueError):
        found = bytes.fromhex(notes.facts.get("file_id", ""))
        return found if len(found) == 16 else None
    return None


def _forget_upload(dest: str, storage_options: Mapping[str, Any] | None) -> None:
    """There is an archive, perhaps because its upload was interrupted in the last moment: remove what is left of
    that."""
    notes = _upload_notes(dest, storage_options)
    if notes is None:
        return
    if notes.started is not None:
        store, final = store_for_writing(dest, storage_options)
        temporary = final[: len(final) - len(final.rpartition("/")[2])] + notes.started.name
        with contextlib.suppress(Exception):
            store.remove(temporary)
    notes.remove()
