"""Writing a set: the small archive that names others, its volumes; ARZ-1 section 5.8."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from arzstream.archive.output import check_free_file, check_not_read, new_archive
from arzstream.container.directory import open_directory
from arzstream.container.records import Volume
from arzstream.container.state import check_paths
from arzstream.container.writer import FrameWriter
from arzstream.errors import CorruptError
from arzstream.store.ranges import LocalReader

__all__ = ["write_set"]


def write_set(dest: str | os.PathLike[str], volumes: Sequence[str | os.PathLike[str]], *, force: bool = False) -> None:
    """Write the set ``dest`` of local, sealed archives that lie in its folder or below, in the order in which their
    tensors are to be read. Raises StorageError, CorruptError, or ValueError for a volume that lies elsewhere."""
    final = os.path.abspath(check_free_file(os.fspath(dest), replace=force))
    check_not_read(final, map(os.fspath, volumes))
    named = [(os.path.relpath(os.path.abspath(os.fspath(v)), os.path.dirname(final)), v) for v in volumes]
    with contextlib.ExitStack() as stack:
        records, paths = [], []
        for name, volume in named:
            if name.split(os.sep)[0] == os.pardir:
                raise ValueError(
                    f"{os.fspath(volume)}: does not lie in the folder of the set or below it; move it there"
                )
            reader = stack.enter_context(LocalReader(volume))
            directory = open_directory(reader)
            if not directory.sealed or directory.volumes or directory.root is None or directory.content is None:
                raise CorruptError(f"{reader.name}: is not a sealed archive of its own, so it cannot be a volume")
            path = os.fsencode(name.replace(os.sep, "/"))
            records.append(Volume(path, reader.size, directory.root, directory.content))
            paths += [(record.path, record.kind) for _, record in directory.files]
        check_paths(paths)
        with new_archive(os.fspath(dest), replace=force, mode=0o666) as (sink, _):
            writer = FrameWriter(sink)
            for record in records:
                writer.add_volume(record)
            writer.commit("")
            writer.seal([])
