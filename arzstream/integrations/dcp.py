"""torch.distributed.checkpoint (DCP): items compressed as they are saved, and checkpoints loaded out of archives.

Saving: ``FileSystemWriter(path, _extensions=[ArzExtension()])``; every item of a ``.distcp`` file is then an archive of
its own, with all its checksums. Loading: ``FileSystemReader(path, _extension_registry=registry())``. The extensions of
DCP are experimental in torch 2.13.

A checkpoint folder that was saved without it and packed afterwards loads with :class:`ArchiveReader`, from any URL.
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import threading
from collections.abc import Iterator
from typing import IO, Any, cast

from torch.distributed.checkpoint._extension import ExtensionRegistry, StreamTransformExtension
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader

from arzstream.archive.ancestry import SearchPath
from arzstream.archive.builder import CheckpointBuilder
from arzstream.archive.reader import Archive
from arzstream.archive.reader import open as open_archive
from arzstream.archive.saving import MemorySource
from arzstream.errors import StorageError

__all__ = ["ArchiveReader", "ArzExtension", "registry"]

VERSION = "1"
MEMBER = b"item.pt"


class ArzExtension(StreamTransformExtension):
    """Codes every item that DCP saves: tensors as tensors, other objects as bytes. Each is decoded and compared before
    it is written. ``profile`` and ``jobs`` as in
    :func:`arzstream.pack`. An item is in memory once more, compressed or not, until it is written."""

    def __init__(self, profile: str = "balanced", jobs: int = 1) -> None:
        self._profile, self._jobs = profile, jobs

    @staticmethod
    def registry_name() -> str:
        return "stream.arz"

    @staticmethod
    def from_descriptor(version: str) -> ArzExtension:
        if version.partition(".")[0] != VERSION:
            raise ValueError(f"stream.arz/{version}: only version {VERSION} is known; install a newer arzstream")
        return ArzExtension()

    def get_descriptor(self) -> str:
        return f"{self.registry_name()}/{VERSION}"

    def transform_to(self, output: IO[bytes]) -> IO[bytes]:
        return cast("IO[bytes]", _ItemWriter(output, self._profile, self._jobs))

    def transform_from(self, input: IO[bytes]) -> IO[bytes]:
        archive = Archive(_StreamReader(input), jobs=1)
        return archive.open_file(MEMBER.decode())


def registry() -> ExtensionRegistry:
    """What ``FileSystemReader`` needs to read items that :class:`ArzExtension` saved."""
    known = ExtensionRegistry()
    known.register(ArzExtension)
    return known


class _ItemWriter(io.RawIOBase):
    """Takes an item's bytes; writes them as an archive when it is closed."""

    def __init__(self, output: IO[bytes], profile: str, jobs: int) -> None:
        self._output, self._profile, self._jobs = output, profile, jobs
        self._item = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._item += view
        return len(view)

    def close(self) -> None:
        if self.closed:
            return
        try:
            source, written = MemorySource([memoryview(self._item)]), _InMemory()
            with CheckpointBuilder(written, profile=self._profile, jobs=self._jobs) as builder:
                job = builder.add_file(MEMBER, source)
                builder.finish(job, size=source.size, mode=0o644, mtime=0)
                builder.seal()
                builder.verify_written(_StreamReader(written.stream))
            self._output.write(written.stream.getbuffer())
            self._output.close()
        finally:
            super().close()


class _InMemory:
    """An append-only archive that is decoded and compared before DCP gets it."""

    name = "DCP item"

    def __init__(self) -> None:
        self.stream = io.BytesIO()

    def write(self, data: bytes | memoryview) -> None:
        self.stream.seek(0, os.SEEK_END)
        self.stream.write(data)


class _StreamReader:
    """Ranges of a seekable stream."""

    name = "DCP item"

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        stream.seek(0, os.SEEK_END)
        self._size = stream.tell()

    @property
    def size(self) -> int:
        return self._size

    def read_at(self, offset: int, length: int) -> bytes:
        parts, left = [], length
        with self._lock:
            self._stream.seek(offset)
            while left and offset + length <= self._size:
                part = self._stream.read(left)
                if not part:
                    break
                parts.append(part)
                left -= len(part)
        if left:
            raise StorageError(f"{self.name}: ends {left} bytes before it should; was the file truncated?")
        return b"".join(parts)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer.cast("B")[:] = self.read_at(offset, buffer.nbytes)

    def tail(self, length: int) -> tuple[int, bytes]:
        start = max(0, self._size - length)
        return self._size, self.read_at(start, self._size - start)

    def close(self) -> None:
        """The stream is DCP's to close."""


class ArchiveReader(FileSystemReader):
    """A DCP ``StorageReader`` over an archive of a checkpoint folder; only the items that are asked for are decoded.

    ``source`` is a path, a URL or an open archive; ``folder`` the checkpoint's path in it. ``extensions`` is needed if
    the checkpoint was saved with some. ``storage_options`` and ``parents`` as in :func:`arzstream.open`. DCP itself
    unpickles the folder's ``.metadata``: load only what you trust.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Archive,
        folder: str = "",
        storage_options: dict[str, Any] | None = None,
        extensions: ExtensionRegistry | None = None,
        *,
        parents: SearchPath = None,
    ) -> None:
        super().__init__(folder, _extension_registry=extensions or registry())
        self._own = not isinstance(source, Archive)
        self.archive = source if isinstance(source, Archive) else open_archive(source, storage_options, parents)
        self.fs, self.path = _ArchivedFolder(self.archive), folder

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        folder = self.path
        super().reset(None)
        self.path = folder

    def close(self) -> None:
        if self._own:
            self.archive.close()


class _ArchivedFolder(FileSystem):
    """As much of a file system as DCP's reader uses."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    @contextlib.contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        if mode != "rb":
            raise StorageError(f"{self._archive.name}: archives are read-only")
        with self._archive.open_file(os.fspath(path)) as stream:
            yield stream

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str | os.PathLike[str]:
        return posixpath.join(os.fspath(path), suffix) if os.fspath(path) else suffix

    def init_path(self, path: str | os.PathLike[str]) -> str | os.PathLike[str]:
        return path

    def exists(self, path: str | os.PathLike[str]) -> bool:
        return os.fspath(path) in self._archive.files()
