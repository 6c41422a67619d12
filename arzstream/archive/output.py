"""A new archive, in a local folder or behind a URL: written under a temporary name, looked at once more, then made
visible."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from typing import Any

from arzstream.archive.verify import verify_reader
from arzstream.errors import StorageError
from arzstream.store import local
from arzstream.store.address import is_remote, redacted
from arzstream.store.publishing import NewObject, stat_object, store_for_writing
from arzstream.store.ranges import LocalReader

__all__ = ["check_free", "new_archive", "new_object"]


TAKEN = "exists already; choose another name, or --force to replace it"


def check_free(dest: str, *, replace: bool, storage_options: Mapping[str, Any] | None = None) -> None:
    """Refuse a name that is taken before any work is done for it; raises StorageError."""
    if is_remote(dest):
        if dest.split("?", 1)[0].endswith("/"):
            raise StorageError(f"{redacted(dest)}: is a folder; name the archive", errno=errno.EISDIR)
        store_for_writing(dest, storage_options)
        if not replace and stat_object(dest, storage_options) is not None:
            raise StorageError(f"{redacted(dest)}: {TAKEN}", errno=errno.EEXIST)
        return
    if os.path.isdir(dest):
        example = os.path.join(dest, "checkpoint.arz")
        raise StorageError(f"{dest}: is a folder; name the archive, for example {example}", errno=errno.EISDIR)
    if os.path.lexists(dest) and not replace:
        raise StorageError(f"{dest}: {TAKEN}", errno=errno.EEXIST)


@contextlib.contextmanager
def new_archive(dest: str, *, replace: bool, mode: int = 0o600) -> Iterator[tuple[local.LocalSink, LocalReader]]:
    """Yield a sink to write the whole archive into, and a reader of what was written so far.

    When the block ends well, every header and stored byte is checked, and the archive gets its name; ``mode`` is that
    of the new file, less the umask. When it does not, nothing is left behind.
    """
    final = os.path.abspath(dest)
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
def new_object(dest: str, *, replace: bool, storage_options: Mapping[str, Any] | None = None) -> Iterator[NewObject]:
    """Yield what to write a whole archive into, and to :meth:`~arzstream.store.publishing.NewObject.complete` then.

    When the block ends well, the archive gets its name. When it does not, nothing is left behind.
    """
    written = NewObject(dest, storage_options)
    try:
        yield written
        written.publish(replace=replace)
    except BaseException:
        written.abort()
        raise
