"""Sources that change, and archives built in memory."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest

from arzstream.archive.builder import CheckpointBuilder
from arzstream.archive.reader import Archive
from arzstream.errors import StorageError


class Source:
    """A source file in memory that tests write to, cut short, or hook into."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.before_read: Callable[[int, int], None] = lambda offset, length: None

    @property
    def size(self) -> int:
        return len(self.data)

    def read_at(self, offset: int, length: int) -> bytes:
        self.before_read(offset, length)
        if offset + length > len(self.data):
            raise StorageError("source: ends too early")
        return bytes(self.data[offset : offset + length])

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.read_at(offset, len(buffer))


class Sink:
    """An append-only archive in memory that can be read while it grows."""

    name = "memory.arz"

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes | memoryview) -> None:
        self.data += data

    @property
    def size(self) -> int:
        return len(self.data)

    def read_at(self, offset: int, length: int) -> bytes:
        if offset < 0 or offset + length > len(self.data):
            raise StorageError(f"{self.name}: ends too early")
        return bytes(self.data[offset : offset + length])

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.read_at(offset, len(buffer))

    def tail(self, length: int) -> tuple[int, bytes]:
        start = max(0, len(self.data) - length)
        return len(self.data), bytes(self.data[start:])

    def close(self) -> None:
        pass

    def archive(self, **options: Any) -> Archive:
        return Archive(self, **options)


def build(files: dict[bytes, bytes], **options: Any) -> Sink:
    """An archive of complete files."""
    sink = Sink()
    with CheckpointBuilder(sink, **options) as builder:
        for path, data in files.items():
            job = builder.add_file(path, Source(data))
            builder.finish(job, size=len(data), mode=0o644, mtime=0)
        builder.seal()
    return sink


def saved(tensors: Any) -> bytes:
    """What torch.save writes."""
    import torch

    out = io.BytesIO()
    torch.save(tensors, out)
    return out.getvalue()


@pytest.fixture(scope="session")
def new_source() -> type[Source]:
    return Source


@pytest.fixture(scope="session")
def new_sink() -> type[Sink]:
    return Sink


@pytest.fixture(scope="session")
def built() -> Callable[..., Sink]:
    return build


@pytest.fixture(scope="session")
def torch_saved() -> Callable[[Any], bytes]:
    return saved
