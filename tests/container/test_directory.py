"""Opening costs two reads at most, and a hostile archive makes no one allocate what it does not hold."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import arzstream
from arzstream.container import directory as module
from arzstream.container.directory import open_directory
from arzstream.container.layout import NO_ORDINAL, FrameHeader, FrameType, Prologue
from arzstream.container.records import FileRecord, Member, Piece, Unit
from arzstream.container.writer import FrameWriter
from arzstream.errors import ArzError, CorruptError, LimitError
from arzstream.kernels.digests import blake3, xxh3_64
from arzstream.limits import Limits
from arzstream.testing import forge

Reader = Callable[[bytes], Any]


def many_units(append_only: Any, units: int, chunks: int) -> bytes:
    sink = append_only()
    writer = FrameWriter(sink)
    done = []
    for number in range(units):
        writer.add_unit(Unit("U8", (chunks, 1), (1, 1), (Member(f"layers.{number}.weight", (chunks, 1)),)))
        for chunk in range(chunks):
            writer.add_chunk(number, chunk, 0, b"%c" % (chunk % 251), 1, xxh3_64(b"%c" % (chunk % 251)))
        done.append((number, (blake3(bytes(c % 251 for c in range(chunks))),)))
    writer.commit("", done)
    writer.add_file(FileRecord(b"f", size=units * chunks, recipe=tuple(Piece(n, 0, chunks) for n in range(units))))
    writer.commit("")
    writer.seal(range(units))
    return b"".join(sink._parts)


def test_a_small_archive_opens_with_one_read(sealed: Any, reader_of: Reader) -> None:
    reader = reader_of(sealed.data)
    directory = open_directory(reader)
    for entry in directory.units:
        directory.chunk_table(entry.number)
    assert len(reader.reads) == 1


@pytest.mark.parametrize("at_once", [1 << 10, 4 << 20], ids=["tables on demand", "tables with the index"])
def test_a_large_archive_opens_with_two(
    append_only: Any, reader_of: Reader, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    data = many_units(append_only, units=300, chunks=40)
    monkeypatch.setattr(module, "TAIL_BYTES", 512)
    monkeypatch.setattr(module, "TABLES_AT_ONCE", at_once)
    monkeypatch.setattr("arzstream.container.writer.TABLE_ENTRIES", 200)
    reader = reader_of(data)
    directory = open_directory(reader)
    assert len(reader.reads) == 2
    assert sum(length for _, length in reader.reads) < len(data) / 3
    before = len(reader.reads)
    for entry in directory.units:
        assert [int(n) for n in directory.chunk_table(entry.number)["decoded"]] == [1] * 40
    assert len(reader.reads) == before if at_once > 1 << 20 else before < len(reader.reads) < 40


def test_chunk_tables_of_a_large_archive_are_read_when_asked_for(
    append_only: Any, reader_of: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables too long to come with the index: it comes alone, and one tensor costs one table."""
    monkeypatch.setattr(module, "TABLES_AT_ONCE", 8 << 10)
    monkeypatch.setattr(module, "TAIL_BYTES", 2 << 10)
    data = many_units(append_only, units=17, chunks=1000)
    reader = reader_of(data)
    directory = open_directory(reader)
    assert len(reader.reads) <= 2
    opened = sum(length for _, length in reader.reads)
    directory.chunk_table(directory.units[3].number)
    table = sum(length for _, length in reader.reads) - opened
    assert 0 < table < 4096 * 48


def forged(data: bytes, change: Callable[[list[forge.Frame]], None], **edits: Any) -> bytes:
    prologue, frames = forge.parse(data)
    change(frames)
    return forge.assemble(prologue, frames, **edits)


def _of_unit(frames: list[forge.Frame], number: int) -> forge.Frame:
    return next(f for f in frames if f.kind == FrameType.TENSOR and f.header.ordinal == number)


def hostile(sealed: Any) -> dict[str, bytes]:
    def unit(**fields: Any) -> bytes:
        def edit(index: dict[str, Any]) -> None:
            for entry in index["units"]:
                if entry[0] == 0:
                    entry[1] = {**entry[1], **fields}

        def change(frames: list[forge.Frame]) -> None:
            _of_unit(frames, 0).value.update(fields)

        return forged(sealed.data, change, edit_index=edit)

    def index(edit: Callable[[dict[str, Any]], Any]) -> bytes:
        return forged(sealed.data, lambda frames: None, edit_index=edit)

    def header(kind: FrameType, **fields: int) -> bytes:
        def change(frames: list[forge.Frame]) -> None:
            at = next(i for i, f in enumerate(frames) if f.kind == kind)
            frames[at] = forge.recode(frames[at], **fields)
            frames[at].value = None

        return forged(sealed.data, change)

    def counts(index: dict[str, Any]) -> None:
        index["units"][0][5] = 1 << 50

    def tables(index: dict[str, Any]) -> None:
        index["tables"] = [[64, 1 << 60, 0]]

    def file_size(index: dict[str, Any]) -> None:
        index["files"][1][1]["size"] = 1 << 50
        index["files"][1][1]["recipe"] = [[0, 0, 1 << 50]]

    return {
        "a unit of 2^62 bytes": unit(shape=[1 << 62, 1]),
        "a unit of 2^62 bytes in one chunk": unit(shape=[1 << 62, 1], grid=[1 << 62, 1]),
        "a unit of 2^62 bytes of no rows": unit(shape=[0, 1 << 62]),
        "a tensor of 2^62 elements": unit(members=[["a", [1 << 31, 1 << 31], 0, None]]),
        "a tensor that repeats one element 2^62 times": unit(members=[["a", [1 << 62], 0, [0]]]),
        "a tensor that repeats one element 2^50 times": unit(members=[["a", [1 << 50], 0, [0]]]),
        "2^50 chunks": index(counts),
        "a table of 2^60 bytes": index(tables),
        "a file of 2^50 bytes": index(file_size),
        "a chunk of 2^60 bytes": header(FrameType.CHUNK, decoded=1 << 60),
        "a model of 2^60 bytes": header(FrameType.MODEL, decoded=1 << 60),
        "a unit record of 2^60 bytes": header(FrameType.TENSOR, decoded=1 << 60),
        "a unit record of 64 MiB": header(FrameType.TENSOR, decoded=64 << 20),
    }


def test_hostile_sizes_are_refused_without_allocating(sealed: Any, reader_of: Reader) -> None:
    from arzstream.archive.verify import verify_reader

    for what, data in hostile(sealed).items():
        for cut in (0, 128):  # sealed, and growing
            reader = reader_of(data[: len(data) - cut])
            tracemalloc.start()
            try:
                with pytest.raises(ArzError):
                    open_directory(reader)
                    verify_reader(reader)
                assert tracemalloc.get_traced_memory()[1] < 8 << 20, what
            finally:
                tracemalloc.stop()


def test_a_growing_archive_is_charged_for_what_it_would_decode_to(sealed: Any, reader_of: Reader) -> None:
    data = hostile(sealed)["a tensor that repeats one element 2^50 times"]
    for cut in (0, 128):
        with pytest.raises(LimitError, match="decode"):
            open_directory(reader_of(data[: len(data) - cut]))


def test_expansion_is_limited_for_input_that_is_not_trusted(
    append_only: Any, reader_of: Reader, write_unit: Any
) -> None:
    sink = append_only()
    writer = FrameWriter(sink)
    size = 1 << 20
    unit = Unit("U8", (size, 1), (size, 1), (Member("zeros", (size,)),))
    number = writer.add_unit(unit)
    writer.add_chunk(number, 0, 1, b"\0", size, xxh3_64(bytes(size)))
    writer.commit("", [(number, (blake3(bytes(size)),))])
    writer.add_file(FileRecord(b"f", size=size, recipe=(Piece(number, 0, size),)))
    writer.commit("")
    growing = b"".join(sink._parts)
    writer.seal([number])
    data = b"".join(sink._parts)
    for archive in (data, growing):
        open_directory(reader_of(archive))
        open_directory(reader_of(archive), Limits(expansion=size // len(archive) + 1))
        with pytest.raises(LimitError, match="decode"):
            open_directory(reader_of(archive), Limits(expansion=64))
        with pytest.raises(LimitError, match="decode"):
            open_directory(reader_of(archive), Limits(total_bytes=size - 1))


def test_hostile_sizes_under_a_limit_of_address_space(sealed: Any, tmp_path: Path) -> None:
    for number, data in enumerate(hostile(sealed).values()):
        (tmp_path / f"{number}.arz").write_bytes(data)
    script = """
import resource, sys
import arzstream
from arzstream.archive.verify import verify
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
for path in sys.argv[1:]:
    try:
        verify(path, deep=True)
    except arzstream.ArzError as error:
        print(type(error).__name__)
# Not ru_maxrss: Linux hands it on to the program that a process runs.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    done = subprocess.run(
        [sys.executable, "-c", script, *paths], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    *errors, peak = done.stdout.split()
    assert len(errors) == len(paths)
    assert int(peak) < 1 << 20  # KiB


def test_a_sparse_file_is_not_read_into_memory(tmp_path: Path) -> None:
    """64 GiB of zeros take no place on a disk, and lie inside the file, as they should."""
    prologue = Prologue(bytes(16), frame_log2=40)
    for kind in (FrameType.PAD, FrameType.CHUNK, 0x8055):
        ordinal = NO_ORDINAL if kind == FrameType.PAD else 0
        header = FrameHeader(kind, 0, 0, bytes(8), ordinal, 0, 1 << 36, 1 << 20, 0, 0)
        with open(tmp_path / "x.arz", "wb") as file:
            file.write(prologue.encode() + header.encode())
            file.truncate(1 << 37)
        tracemalloc.start()
        try:
            for call in (arzstream.open, arzstream.verify):
                with pytest.raises(CorruptError):
                    call(tmp_path / "x.arz")
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    "data", [b"", b"\x89", b"hello", bytes(63), bytes(64), bytes(1000), b"PK\x03\x04" + bytes(500)]
)
def test_what_is_no_archive_is_said_to_be_none(reader_of: Reader, data: bytes) -> None:
    with pytest.raises(CorruptError, match=r"^memory\.arz: (not an arzstream archive|truncated)"):
        open_directory(reader_of(data))
