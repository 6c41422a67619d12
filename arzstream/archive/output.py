"""A new archive in a local folder: written under a temporary name, looked at once more, then made visible."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from arzstream.archive.verify import verify_reader
from arzstream.errors import StorageError
from arzstream.store import local
from arzstream.store.ranges import LocalReader

__all__ = ["check_free", "new_archive"]


def check_free(dest: str, *, replace: bool) -> None:
    """Refuse a name that is taken before any work is done for it; raises StorageError."""
    if os.path.isdir(dest):
        example = os.path.join(dest, "checkpoint.arz")
        raise StorageError(f"{dest}: is a folder; name the archive, for example {example}", errno=errno.EISDIR)
    if os.path.lexists(dest) and not replace:
        raise StorageError(f"{dest}: exists already; choose another name, or --force to replace it", errno=errno.EEXIST)


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
