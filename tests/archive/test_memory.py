"""What a small archive may make its reader remember: zeros compress to nothing, frame by frame within the limits."""

from __future__ import annotations

import contextlib
import hashlib
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import arzstream
from arzstream.archive import models
from arzstream.archive.models import StoredModels
from arzstream.codec import zstd
from arzstream.container.layout import FrameType
from arzstream.container.records import FileRecord, Kind, Member, Piece, Unit
from arzstream.container.state import TableRef
from arzstream.container.writer import FrameWriter
from arzstream.errors import ArzError, LimitError
from arzstream.kernels.digests import blake3, xxh3_64
from arzstream.limits import DEFAULT_LIMITS, Limits
from arzstream.store.ranges import LocalReader

New = Callable[..., Any]
MIB = 1 << 20
ZEROS = bytes(3 * MIB)
CODEC, PACKED = zstd.encode_metadata(ZEROS)
LITTLE = 130 * MIB
"""Far less than the 300 MiB or more that these archives hold."""


@contextlib.contextmanager
def takes_little() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < LITTLE
    finally:
        tracemalloc.stop()


def directory_only(writer: FrameWriter) -> None:
    writer.add_file(FileRecord(b"a", Kind.DIRECTORY, 0o755))
    writer.commit("")


def a_tensor(writer: FrameWriter, name: str = "t", *, models: tuple[int, ...] = ()) -> None:
    data = b"abcd" * 25
    unit = Unit("U8", (100, 1), (100, 1), (Member(name, (100,)),), models=models)
    number = writer.add_unit(unit)
    writer.add_chunk(number, 0, 0, data, 100, xxh3_64(data))
    writer.commit("", [(number, (blake3(data),))])
    record = FileRecord(name.encode(), size=100, sha256=hashlib.sha256(data).digest(), recipe=(Piece(number, 0, 100),))
    writer.add_file(record)
    writer.commit("")


def models_of_zeros(writer: FrameWriter) -> tuple[int, ...]:
    return tuple(writer.add_model(PACKED, CODEC, ZEROS) for _ in range(100))


def test_chunk_tables_of_an_unsealed_archive_are_not_kept(tmp_path: Path, new_sink: New) -> None:
    sink = new_sink()
    writer = FrameWriter(sink)
    directory_only(writer)
    for number in range(100):
        writer._frame(FrameType.TABLE, CODEC, PACKED, len(ZEROS), xxh3_64(PACKED), xxh3_64(ZEROS), number, 0)
    (tmp_path / "x.arz").write_bytes(sink.data)
    with takes_little():
        with arzstream.open(tmp_path / "x.arz") as archive:
            assert not archive.sealed and list(archive.catalog.files) == ["a"]
        with pytest.raises(ArzError):
            arzstream.verify(tmp_path / "x.arz")


def test_a_chunk_table_has_no_more_rows_than_there_are_chunks(tmp_path: Path, new_sink: New) -> None:
    sink = new_sink()
    writer = FrameWriter(sink)
    a_tensor(writer)
    seal_with(writer, lambda plain: plain + bytes(48))
    (tmp_path / "x.arz").write_bytes(sink.data)
    with pytest.raises(arzstream.CorruptError, match="more entries than there are chunks"):
        arzstream.verify(tmp_path / "x.arz")


def seal_with(writer: Any, padded: Callable[[bytes], bytes]) -> None:
    """Seal, with other chunk tables than there should be: one for each unit."""

    def table(number: int, batch: list[Any]) -> TableRef:
        offset, plain = writer.offset, padded(b"".join(rows.tobytes() for rows in batch))
        codec, payload = zstd.encode_metadata(plain)
        length = writer._frame(FrameType.TABLE, codec, payload, len(plain), xxh3_64(payload), xxh3_64(plain), number, 0)
        return TableRef(offset, length, xxh3_64(payload))

    writer._table = table
    writer.seal(range(len(writer.state.units)))


@pytest.mark.parametrize("limits", [DEFAULT_LIMITS, Limits(expansion=64)])
def test_chunk_tables_of_a_sealed_archive_are_charged(
    limits: Limits, tmp_path: Path, new_sink: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arzstream.container.writer.TABLE_ENTRIES", 1)
    sink = new_sink()
    writer = FrameWriter(sink)
    for number in range(20):
        a_tensor(writer, f"t{number}")
    seal_with(writer, lambda plain: plain + ZEROS)
    (tmp_path / "x.arz").write_bytes(sink.data)
    with takes_little(), arzstream.open(tmp_path / "x.arz", limits=limits) as archive:
        with pytest.raises(LimitError, match="metadata would decode to"):
            for name in [f"t{number}" for number in range(20)]:
                archive.numpy(name)
        assert archive.numpy("t0").tobytes() == b"abcd" * 25


def test_models_that_no_chunk_asks_for_are_not_read(tmp_path: Path, new_sink: New) -> None:
    sink = new_sink()
    writer = FrameWriter(sink)
    a_tensor(writer, models=models_of_zeros(writer))
    writer.seal([0])
    (tmp_path / "x.arz").write_bytes(sink.data)
    with takes_little(), arzstream.open(tmp_path / "x.arz") as archive:
        assert archive.numpy("t").tobytes() == b"abcd" * 25


def test_models_that_were_read_are_kept_up_to_a_bound(
    tmp_path: Path, new_sink: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "KEPT_BYTES", 10 * MIB)
    sink = new_sink()
    writer = FrameWriter(sink)
    models_of_zeros(writer)
    (tmp_path / "x.arz").write_bytes(sink.data)
    with takes_little(), LocalReader(tmp_path / "x.arz") as reader:
        found = StoredModels(DEFAULT_LIMITS).of(reader, writer.prologue, writer.state.models)
        assert len(found) == 100 and all(found[number] == ZEROS for number in range(100))
        assert found[-1] is found[99] and [len(data) for data in found[1:3]] == [len(ZEROS)] * 2


@pytest.mark.parametrize("limits", [DEFAULT_LIMITS, Limits(expansion=64)])
def test_recovery_keeps_and_writes_no_more_models_than_an_archive_may_hold(
    limits: Limits, tmp_path: Path, new_sink: New
) -> None:
    sink = new_sink()
    writer = FrameWriter(sink)
    a_tensor(writer)
    models_of_zeros(writer)
    writer.commit("")
    (tmp_path / "x.arz").write_bytes(sink.data)
    with takes_little():
        report = arzstream.recover(tmp_path / "x.arz", tmp_path / "y.arz", limits=limits)
    assert report.tensors == ["t"] and (tmp_path / "y.arz").stat().st_size < 20 * MIB


def test_a_model_of_an_impossible_number_makes_no_list_of_that_length(tmp_path: Path, new_sink: New) -> None:
    sink = new_sink()
    writer = FrameWriter(sink)
    a_tensor(writer)
    writer._frame(FrameType.MODEL, 0, b"model", 5, xxh3_64(b"model"), xxh3_64(b"model"), 1 << 24, 0)
    writer.commit("")
    (tmp_path / "x.arz").write_bytes(sink.data)
    with takes_little():
        report = arzstream.recover(tmp_path / "x.arz", tmp_path / "y.arz")
    assert report.tensors == ["t"] and report.damaged_places == 2  # that, and the end that is missing


def files_that_say_much(writer: FrameWriter) -> None:
    a_tensor(writer)
    for number in range(150):
        writer.add_file(FileRecord(b"%d" % number, note="x" * (2 * MIB)))
        writer.commit("")


@pytest.mark.parametrize("limits", [DEFAULT_LIMITS, Limits(expansion=64)])
@pytest.mark.parametrize("opens", ["open", "recover"])
def test_the_metadata_of_all_frames_is_charged(limits: Limits, opens: str, tmp_path: Path, new_sink: New) -> None:
    """Each FILE says 2 MiB of text, which is remembered."""
    with pytest.raises(LimitError, match="metadata would decode to"):
        files_that_say_much(FrameWriter(new_sink()))
    sink = new_sink()
    files_that_say_much(FrameWriter(sink, limits=Limits(expansion=1 << 20)))
    (tmp_path / "x.arz").write_bytes(sink.data)
    with takes_little():
        if opens == "open":
            with pytest.raises(LimitError, match=r"metadata would decode to .* bytes; at most 16777216"):
                arzstream.open(tmp_path / "x.arz", limits=limits)
        else:
            report = arzstream.recover(tmp_path / "x.arz", tmp_path / "y.arz", limits=limits)
            assert report.tensors == ["t"] and 1 < len(report.files) < 9
