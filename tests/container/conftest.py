"""Small archives made frame by frame, and readers that count."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from arzstream.codec import registry
from arzstream.container.records import FileRecord, Member, Parent, Piece, Reference, Unit
from arzstream.container.writer import FrameWriter
from arzstream.errors import StorageError
from arzstream.kernels.digests import blake3, sha256_hasher, xxh3_64


class AppendOnly:
    """A sink that has ``write`` and nothing else: no seek, no tell, no truncate."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes | memoryview) -> None:
        self._parts.append(bytes(data))


class CountingReader:
    """Bytes as a file. Refuses short answers, remembers every read, and the longest."""

    name = "memory.arz"

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads: list[tuple[int, int]] = []

    @property
    def size(self) -> int:
        return len(self.data)

    def read_at(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        if offset < 0 or length < 0 or offset + length > len(self.data):
            raise StorageError(f"{self.name}: bytes {offset} to {offset + length} of {len(self.data)}")
        return self.data[offset : offset + length]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.read_at(offset, len(buffer))

    def tail(self, length: int) -> tuple[int, bytes]:
        start = max(0, len(self.data) - length)
        self.reads.append((start, len(self.data) - start))
        return len(self.data), self.data[start:]

    def close(self) -> None:
        pass


@dataclasses.dataclass
class Made:
    """An archive and what should be found in it."""

    data: bytes
    commits: list[int]
    """Ends of the COMMIT frames."""
    snapshots: list[tuple[dict[int, tuple[bytes, ...]], dict[int, FileRecord]]]
    """Units that can be read and files, as of each COMMIT."""
    content: bytes
    writer: FrameWriter


def add_unit(writer: FrameWriter, unit: Unit, data: bytes, codec: int = 0) -> tuple[int, tuple[bytes, ...]]:
    """Announce a unit of whole-row chunks and write its chunks; returns what a COMMIT lists."""
    number = writer.add_unit(unit)
    itemsize, columns = unit.type.itemsize, unit.shape[1]
    for chunk in range(unit.chunk_count):
        tile = unit.tile(chunk)
        part = data[tile.row0 * columns * itemsize : tile.row1 * columns * itemsize]
        payload = registry.get(codec).encode(memoryview(part), None) if codec else part  # type: ignore[arg-type]
        assert payload is not None
        writer.add_chunk(number, chunk, codec, payload, len(part), xxh3_64(part))
    digests = tuple(
        blake3(data[m.start * itemsize : (m.start + m.elements) * itemsize]) for m in unit.members if m.strides is None
    )
    return number, digests


def file_record(path: bytes, pieces: Sequence[bytes | Piece], content: bytes, **fields: Any) -> FileRecord:
    hasher = sha256_hasher()
    hasher.update(content)
    return FileRecord(path, size=len(content), sha256=hasher.digest(), recipe=tuple(pieces), **fields)


def tensor(name: str, dtype: str, shape: tuple[int, int], grid: tuple[int, int], **fields: Any) -> Unit:
    return Unit(dtype, shape, grid, (Member(name, shape),), **fields)


def make(*, seal: bool = True, width: int = 2) -> Made:
    """Two tensors, a duplicate, one of no elements, a chunk coded again, a file withdrawn, a parent, a model."""
    sink = AppendOnly()
    writer = FrameWriter(sink, file_id=bytes(range(16)))
    made = Made(b"", [], [], b"", writer)

    def commit(layer: str, units: Sequence[tuple[int, tuple[bytes, ...]]]) -> None:
        made.commits.append(writer.commit(layer, units))
        made.snapshots.append((dict(writer.state.digests), dict(writer.state.files)))

    writer.add_parent(Parent(bytes(range(32)), "older.arz"))
    model = writer.add_model(b"a model")
    first = bytes(range(6 * width))
    a = add_unit(writer, tensor("a", "U8", (6, width), (4, width), layer="layers.0"), first)
    commit("layers.0", [a])
    second = bytes(range(100, 100 + 4 * width))
    b = add_unit(writer, tensor("b", "I16", (2, width), (2, width), layer="layers.1", models=(model,)), second)
    commit("layers.1", [b])
    copy = writer.add_unit(tensor("copy", "U8", (6, width), (4, width), refs=(Reference(2, a[0], 0, 6 * width),)))
    none = writer.add_unit(tensor("none", "F32", (0, 1), (1, 1)))
    commit("", [(copy, a[1]), (none, (blake3(b""),))])
    gone = writer.add_file(file_record(b"gone", [Piece(b[0], 0, 2)], second[:2]))
    commit("", [])
    writer.add_file(FileRecord.withdrawn(b"gone"), gone)
    again = first[: 4 * width] + bytes(2 * width)
    writer.add_chunk(a[0], 1, 0, again[4 * width :], 2 * width, xxh3_64(again[4 * width :]))
    commit("", [(a[0], (blake3(again),)), (copy, (blake3(again),))])
    pieces = [
        b"head",
        Piece(a[0], 0, 6 * width),
        Piece(b[0], 0, 4 * width),
        Piece(copy, 0, 6 * width),
        Piece(none, 0, 0),
    ]
    content = b"head" + again + second + again
    writer.add_file(file_record(b"dir/f.safetensors", pieces, content, format="safetensors", metadata={"k": "v"}))
    writer.add_file(FileRecord(b"dir", 2, 0o755, 5))
    writer.add_file(FileRecord(b"link", 1, 0o777, 6, target=b"dir"))
    commit("", [])
    if seal:
        made.content = writer.seal([b[0], a[0], copy, none])
    made.data = b"".join(sink._parts)
    return made


@pytest.fixture(scope="session")
def sealed() -> Made:
    return make()


@pytest.fixture(scope="session")
def reader_of() -> Callable[[bytes], CountingReader]:
    return CountingReader


@pytest.fixture(scope="session")
def append_only() -> Callable[[], AppendOnly]:
    return AppendOnly


@pytest.fixture(scope="session")
def write_unit() -> Callable[..., tuple[int, tuple[bytes, ...]]]:
    return add_unit


@pytest.fixture(scope="session")
def record_of() -> Callable[..., FileRecord]:
    return file_record
