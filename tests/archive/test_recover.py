"""What is whole comes back from a damaged archive, what is not is named, and the result is a good archive."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import arzstream
from arzstream.container.layout import NO_ORDINAL, FrameType
from arzstream.container.records import FileRecord, Member, Parent, Piece, Reference, Unit
from arzstream.container.scan import Replay
from arzstream.container.writer import FrameWriter
from arzstream.errors import CorruptError, LimitError, StorageError
from arzstream.kernels.digests import blake3, xxh3_64
from arzstream.store.ranges import LocalReader
from arzstream.testing import forge
from arzstream.testing.tensors import Tensor, model, safetensors_bytes

New = Callable[..., Any]
CONFIG = b'{"hidden": 128}\n'


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, torch_saved: New) -> dict[str, Any]:
    """A folder, its archive, and every tensor in it by name."""
    base = tmp_path_factory.mktemp("recover")
    source = base / "source"
    (source / "sub").mkdir(parents=True)
    tensors = model("llama", layers=2, width=192, vocabulary=300)
    first, second = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
    moments = torch.arange(200_000.0).reshape(400, 500)
    (source / "1.safetensors").write_bytes(safetensors_bytes(first))
    (source / "2.safetensors").write_bytes(safetensors_bytes(second))
    (source / "sub" / "o.pt").write_bytes(
        torch_saved({"exp_avg": moments.t(), "part": moments[7:9], "step": torch.ones(())})
    )
    (source / "config.json").write_bytes(CONFIG)
    (source / "link").symlink_to("config.json")
    arzstream.pack(source, base / "x.arz", reproducible=True)
    wanted = {t.name: t.data for t in tensors}
    wanted |= {"exp_avg": moments.t().contiguous().numpy().tobytes(), "part": moments[7:9].numpy().tobytes()}
    wanted["step"] = np.float32(1).tobytes()
    return {"source": source, "data": (base / "x.arz").read_bytes(), "tensors": wanted}


def recovered(data: bytes, checkpoint: dict[str, Any], tmp_path: Path) -> arzstream.RecoverReport:
    """Recover, and check that the result is good and true to the original in all that it holds."""
    (tmp_path / "bad.arz").write_bytes(data)
    report = arzstream.recover(tmp_path / "bad.arz", tmp_path / "good.arz", force=True)
    arzstream.verify(tmp_path / "good.arz", deep=True)
    with arzstream.open(tmp_path / "good.arz") as archive:
        assert set(archive.keys()) >= set(report.tensors)
        for name in report.tensors:
            assert np.ascontiguousarray(archive.numpy(name)).tobytes() == checkpoint["tensors"][name], name
        for path in report.files:
            place = checkpoint["source"] / path
            if place.is_file() and not place.is_symlink():
                assert archive.read_file(path) == place.read_bytes(), path
    assert sorted(os.listdir(tmp_path)) == ["bad.arz", "good.arz"]
    assert not set(report.tensors) & set(report.lost_tensors) and not set(report.files) & set(report.lost_files)
    return report


def everything(report: arzstream.RecoverReport, checkpoint: dict[str, Any]) -> bool:
    return (
        report.complete
        and set(report.tensors) == set(checkpoint["tensors"])
        and set(report.files) == {"1.safetensors", "2.safetensors", "sub", "sub/o.pt", "config.json", "link"}
    )


def flipped(data: bytes, *places: int) -> bytes:
    damaged = bytearray(data)
    for place in places:
        damaged[place] ^= 0x10
    return bytes(damaged)


def frames_of(data: bytes, kind: FrameType) -> list[forge.Frame]:
    return [frame for frame in forge.frames(data) if frame.kind == kind]


def test_a_good_archive_loses_nothing(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    report = recovered(checkpoint["data"], checkpoint, tmp_path)
    assert everything(report, checkpoint) and report.damaged_places == 0
    arzstream.verify(tmp_path / "good.arz", deep=True, against=checkpoint["source"])


@pytest.mark.parametrize("where", ["prologue", "trailer", "both", "no trailer", "index", "index and prologue", "table"])
def test_the_frames_are_enough(where: str, checkpoint: dict[str, Any], tmp_path: Path) -> None:
    """Damage to what only describes the frames costs nothing."""
    data = checkpoint["data"]
    index = frames_of(data, FrameType.INDEX)[0].offset
    damaged = {
        "prologue": flipped(data, 33),
        "trailer": flipped(data, len(data) - 30),
        "both": flipped(data, 5, len(data) - 3),
        "no trailer": data[:-128],
        "index": flipped(data, index + 150),
        "index and prologue": flipped(data, index + 8, 40),
        "table": flipped(data, frames_of(data, FrameType.TABLE)[0].offset + 130),
    }[where]
    with pytest.raises(CorruptError):
        (tmp_path / "bad.arz").write_bytes(damaged)
        arzstream.verify(tmp_path / "bad.arz")
    report = recovered(damaged, checkpoint, tmp_path)
    assert everything(report, checkpoint), (report.lost_tensors, report.lost_files)
    assert report.damaged_places > 0


@pytest.mark.parametrize("part", ["header", "payload"])
@pytest.mark.parametrize("kind", ["TENSOR", "FILE", "COMMIT"])
def test_the_index_stands_in_for_metadata_frames(
    kind: str, part: str, checkpoint: dict[str, Any], tmp_path: Path
) -> None:
    for frame in frames_of(checkpoint["data"], FrameType[kind]):
        damaged = flipped(checkpoint["data"], frame.offset + (20 if part == "header" else 140))
        report = recovered(damaged, checkpoint, tmp_path)
        assert everything(report, checkpoint), (frame.header, report.lost_tensors, report.lost_files)


@pytest.mark.parametrize("part", ["header", "payload"])
def test_a_damaged_chunk_costs_its_own_tensors_and_file(part: str, checkpoint: dict[str, Any], tmp_path: Path) -> None:
    data = checkpoint["data"]
    units = {number: unit for frame in forge.parse(data)[1] for number, unit in frame.units.items()}
    for frame in frames_of(data, FrameType.CHUNK):
        damaged = flipped(data, frame.offset + (60 if part == "header" else 130))
        report = recovered(damaged, checkpoint, tmp_path)
        names = {member[0] for member in units[frame.header.ordinal]["members"]} - {None}
        assert set(report.lost_tensors) == names and set(report.tensors) == set(checkpoint["tensors"]) - names
        assert report.lost_files and not report.complete


def test_damage_in_many_places(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    data, rng = checkpoint["data"], random.Random(3)
    for count in (1, 3, 10, 40):
        for _ in range(4):
            damaged = flipped(data, *(rng.randrange(len(data)) for _ in range(count)))
            report = recovered(damaged, checkpoint, tmp_path)
            assert set(report.tensors) | set(report.lost_tensors) >= set(checkpoint["tensors"]) or not report.indexed


def test_holes_of_zeros(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    data = checkpoint["data"]
    for start in range(0, len(data), len(data) // 7):
        damaged = data[:start] + bytes(min(70_000, len(data) - start)) + data[start + 70_000 :]
        recovered(damaged, checkpoint, tmp_path)


def test_every_truncation_at_a_frame(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    data = checkpoint["data"]
    seen = -1
    for frame in forge.frames(data)[::4]:
        for end in (frame.offset, frame.offset + 64):
            try:
                report = recovered(data[:end], checkpoint, tmp_path)
            except CorruptError as error:
                assert "nothing in it is whole" in str(error) or "not an arzstream archive" in str(error)
                assert seen <= 0 and not (tmp_path / "good.arz").exists()
                continue
            assert len(report.tensors) >= seen, "more of the file, more tensors"
            seen = len(report.tensors)
    assert seen > 0.9 * len(checkpoint["tensors"])


def test_dropped_frames(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    data = checkpoint["data"]
    for frame in forge.frames(data)[::3]:
        report = recovered(data[: frame.offset] + data[frame.end :], checkpoint, tmp_path)
        lost = frame.kind == FrameType.CHUNK
        assert report.complete != lost, frame.header


def test_doubled_frames_and_frames_of_another_archive(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    data = checkpoint["data"]
    prologue, frames = forge.parse(data)
    other = forge.assemble(type(prologue)(bytes(16)), frames)
    for frame in frames[::5]:
        twice = data[: frame.end] + data[frame.offset : frame.end] + data[frame.end :]
        assert everything(recovered(twice, checkpoint, tmp_path), checkpoint)
        foreign = data[: frame.end] + other[frame.offset : frame.end] + data[frame.end :]
        assert everything(recovered(foreign, checkpoint, tmp_path), checkpoint)


def test_an_archive_inside_an_archive_is_not_mistaken_for_it(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    """Raw chunks may hold another archive's frames, more of them than the outer one has."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "inner.arz").write_bytes(checkpoint["data"])
    (source / "config.json").write_bytes(CONFIG)
    arzstream.pack(source, tmp_path / "outer.arz")
    data = (tmp_path / "outer.arz").read_bytes()
    last = max(f.offset for f in forge.frames(data))
    for damaged in (flipped(data, 40), flipped(data, 40, len(data) - 60), flipped(data, 40, last + 3)):
        (tmp_path / "bad.arz").write_bytes(damaged)
        report = arzstream.recover(tmp_path / "bad.arz", tmp_path / "good.arz", force=True)
        assert report.complete and sorted(report.files) == ["config.json", "inner.arz"] and not report.tensors
        arzstream.verify(tmp_path / "good.arz", deep=True, against=source)


def test_tensors_with_strides_come_back_without_their_file(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    data = checkpoint["data"]
    frames = forge.parse(data)[1]
    small = next(  # the literals of all files: without it no file can be made again
        number
        for frame in frames
        for number, unit in frame.units.items()
        if unit["members"][0][0] is None and unit["dtype"] == "U8"
    )
    chunk = next(f for f in frames if f.kind == FrameType.CHUNK and f.header.ordinal == small)
    report = recovered(flipped(data, chunk.offset + 130), checkpoint, tmp_path)
    assert set(report.tensors) == set(checkpoint["tensors"]) and "sub/o.pt" in report.lost_files
    with arzstream.open(tmp_path / "good.arz") as archive:
        assert archive.get_tensor("exp_avg").shape == (500, 400)
        import safetensors.torch

        loaded = safetensors.torch.load(archive.read_file("recovered.safetensors"))
        assert torch.equal(loaded["exp_avg"], archive.get_tensor("exp_avg"))
        assert set(loaded) == set(checkpoint["tensors"])


def referring(tmp_path: Path) -> tuple[bytes, dict[str, bytes]]:
    """Units that use a model, a parent and another unit, as later codecs will; here their chunks are raw."""
    parts: list[bytes] = []

    class Parts:
        def write(self, data: bytes | memoryview) -> None:
            parts.append(bytes(data))

    writer = FrameWriter(Parts(), file_id=bytes(16))
    parent = writer.add_parent(Parent(bytes(range(32)), "older.arz"))
    models = [writer.add_model(b"model %d" % n) for n in range(2)]
    done, pieces, contents = [], [], {}
    uses: list[dict[str, Any]] = [
        {},
        {"models": (models[1],)},
        {"refs": (Reference(1, parent, 0, 100),)},
        {"refs": (Reference(0, 0, 0, 3),)},
        {"refs": (Reference(0, 3, 0, 2), Reference(0, 1, 0, 2))},
        {"refs": (Reference(2, 0, 0, 100),)},
    ]
    for number, use in enumerate(uses):
        data = bytes([number]) * 99 + b"!" if number < 5 else contents["t0"]
        contents[f"t{number}"] = data
        unit = Unit("U8", (100, 1), (100, 1), (Member(f"t{number}", (100,)),), f"layers.{number}", **use)
        assert writer.add_unit(unit) == number
        if number < 5:
            writer.add_chunk(number, 0, 0, data, 100, xxh3_64(data))
        done.append((number, (blake3(data),)))
        pieces.append(Piece(number, 0, 100))
        writer.commit(unit.layer, done[-1:])
    content = b"".join(contents.values())
    writer.add_file(FileRecord(b"f", size=600, sha256=hashlib.sha256(content).digest(), recipe=tuple(pieces)))
    writer.commit("")
    writer.seal(range(6))
    return b"".join(parts), contents


def test_models_and_parents_are_kept_and_what_needs_a_lost_one_is_lost(tmp_path: Path) -> None:
    data, contents = referring(tmp_path)
    everything = set(contents)

    def saved(damaged: bytes) -> set[str]:
        (tmp_path / "bad.arz").write_bytes(damaged)
        report = arzstream.recover(tmp_path / "bad.arz", tmp_path / "good.arz", force=True)
        arzstream.verify(tmp_path / "good.arz", deep=True)
        with arzstream.open(tmp_path / "good.arz") as archive:
            for name in report.tensors:
                assert archive.numpy(name).tobytes() == contents[name]
        assert set(report.tensors) | set(report.lost_tensors) == everything
        return set(report.tensors)

    cut = data[: frames_of(data, FrameType.INDEX)[0].offset]
    assert saved(data) == saved(cut) == everything
    with LocalReader(tmp_path / "good.arz") as reader:
        replay = Replay(reader)
        list(replay.run(reader.size - 128))
        assert [parent.hint for parent in replay.state.parents] == ["older.arz"] and len(replay.state.models) == 2
    where = {kind: frames_of(data, FrameType[kind]) for kind in ("MODEL", "PARENT", "CHUNK", "TENSOR")}
    for base in (data, cut):
        assert saved(flipped(base, where["MODEL"][0].offset + 130)) == everything, "no one uses it"
        assert saved(flipped(base, where["MODEL"][1].offset + 130)) == everything - {"t1", "t4"}
        assert saved(flipped(base, where["PARENT"][0].offset + 130)) == everything - ({"t2"} if base is cut else set())
        assert saved(flipped(base, where["CHUNK"][0].offset + 130)) == {"t1", "t2"}
        assert saved(flipped(base, where["CHUNK"][3].offset + 130)) == everything - {"t3", "t4"}


def test_hostile_repetition_is_refused(tmp_path: Path, new_sink: New) -> None:
    sink = new_sink()
    writer = FrameWriter(sink)
    number = writer.add_unit(Unit("U8", (1, 1), (1, 1), (Member("a", (1 << 50,), 0, (0,)),)))
    writer.add_chunk(number, 0, 0, b"x", 1, xxh3_64(b"x"))
    (tmp_path / "bad.arz").write_bytes(sink.data)
    with pytest.raises(LimitError, match="decode"):
        arzstream.recover(tmp_path / "bad.arz", tmp_path / "good.arz")
    assert os.listdir(tmp_path) == ["bad.arz"]


def test_a_stale_chunk_does_not_come_back(tmp_path: Path, new_sink: New) -> None:
    """A chunk was coded again, and the new frame is damaged: the old one is not what counts."""
    sink = new_sink()
    writer = FrameWriter(sink)
    number = writer.add_unit(Unit("U8", (4, 1), (2, 1), (Member("a", (4,)),)))
    for chunk, part in enumerate((b"ab", b"cd")):
        writer.add_chunk(number, chunk, 0, part, 2, xxh3_64(part))
    writer.commit("", [(number, (blake3(b"abcd"),))])
    again = sink.size
    writer.add_chunk(number, 0, 0, b"AB", 2, xxh3_64(b"AB"))
    writer.commit("", [(number, (blake3(b"ABcd"),))])
    for place in (again + 20, again + 128):
        (tmp_path / "bad.arz").write_bytes(flipped(bytes(sink.data), place))
        with pytest.raises(CorruptError, match="nothing in it is whole"):
            arzstream.recover(tmp_path / "bad.arz", tmp_path / "good.arz")
    # The same where no COMMIT is left to tell.
    damaged = flipped(
        bytes(sink.data), *(f.offset + 140 for f in frames_of(bytes(sink.data), FrameType.COMMIT)), again + 128
    )
    (tmp_path / "bad.arz").write_bytes(damaged)
    with pytest.raises(CorruptError, match="nothing in it is whole"):
        arzstream.recover(tmp_path / "bad.arz", tmp_path / "good.arz")
    (tmp_path / "bad.arz").write_bytes(bytes(sink.data))
    arzstream.recover(tmp_path / "bad.arz", tmp_path / "good.arz")
    with arzstream.open(tmp_path / "good.arz") as archive:
        assert archive.numpy("a").tobytes() == b"ABcd"


def test_an_existing_file_is_not_overwritten(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "bad.arz").write_bytes(checkpoint["data"])
    (tmp_path / "good.arz").write_text("mine")
    with pytest.raises(StorageError, match="exists"):
        arzstream.recover(tmp_path / "bad.arz", tmp_path / "good.arz")
    assert (tmp_path / "good.arz").read_text() == "mine"
    with pytest.raises(StorageError):
        arzstream.recover(tmp_path / "bad.arz", tmp_path, force=True)


def test_a_growing_archive_is_recovered_too(tmp_path: Path, new_source: New, new_sink: New) -> None:
    from arzstream.archive.builder import CheckpointBuilder

    tensors = [Tensor(f"layers.{i}.w", "F32", (30_000,), np.random.default_rng(i).bytes(120_000)) for i in range(4)]
    data = safetensors_bytes(tensors)
    sink = new_sink()
    with CheckpointBuilder(sink) as builder:
        job = builder.add_file(b"m.safetensors", new_source(data))
        builder.update(job, len(data) - 120_000)
    (tmp_path / "bad.arz").write_bytes(sink.data)
    report = arzstream.recover(tmp_path / "bad.arz", tmp_path / "good.arz")
    assert report.tensors == [t.name for t in tensors[:3]] and report.files == [] and not report.indexed
    with arzstream.open(tmp_path / "good.arz") as archive:
        assert archive.files() == ["recovered.safetensors"]
        assert [archive.numpy(t.name).tobytes() for t in tensors[:3]] == [t.data for t in tensors[:3]]


def test_the_one_digest_of_a_shared_unit_tells_which_version_of_a_chunk_counts(tmp_path: Path, new_sink: New) -> None:
    """Of a chunk that was coded again the last frame may be good and not the one that was committed."""
    unit = Unit("U8", (1, 8), (1, 8), (Member("a", (3,)), Member("b", (5,), 3)))
    for committed, saved in ((b"abcdefgh", False), (b"ABCdefgh", True)):
        sink = new_sink()
        writer = FrameWriter(sink)
        number = writer.add_unit(unit)
        for data in (b"abcdefgh", b"ABCdefgh"):
            writer.add_chunk(number, 0, 0, data, 8, xxh3_64(data))
        writer.commit("", [(number, (blake3(committed[:3]), blake3(committed[3:])))])
        other = writer.add_unit(Unit("U8", (1, 4), (1, 4), (Member("other", (4,)),)))
        writer.add_chunk(other, 0, 0, b"1234", 4, xxh3_64(b"1234"))
        writer.commit("", [(other, (blake3(b"1234"),))])
        damaged = tmp_path / f"{saved}.arz"
        damaged.write_bytes(sink.data)
        report = arzstream.recover(damaged, tmp_path / f"rescued-{saved}.arz")
        assert report.lost_tensors == ([] if saved else ["a", "b"])
        with arzstream.open(tmp_path / f"rescued-{saved}.arz") as opened:
            assert ("a" in opened) == saved and bytes(opened.numpy("other")) == b"1234"


# -- files that take one place


def raw_unit(writer: FrameWriter, name: str | None, data: bytes, **options: Any) -> int:
    """A committed unit of one raw chunk."""
    number = writer.add_unit(Unit("U8", (len(data), 1), (len(data), 1), (Member(name, (len(data),)),), **options))
    writer.add_chunk(number, 0, 0, data, len(data), xxh3_64(data))
    writer.commit("", [(number, (blake3(data),))])
    return number


def file_of(path: bytes, number: int, data: bytes) -> FileRecord:
    sha256 = hashlib.sha256(data).digest()
    return FileRecord(path, size=len(data), sha256=sha256, recipe=(Piece(number, 0, len(data)),))


def withdrawn_and_written_again(sink: Any, again: bytes) -> tuple[int, int, int]:
    """A file ``a`` that was withdrawn, and one called ``again`` that came after; where the frame that withdrew it, the
    second's chunk and the end are."""
    writer, old, new = FrameWriter(sink), b"abcd" * 25, b"efgh" * 25
    first = writer.add_file(file_of(b"a", raw_unit(writer, "old", old), old))
    writer.commit("")
    withdrawal = sink.size
    writer.add_file(FileRecord.withdrawn(b"a"), first)
    writer.commit("")
    chunk = sink.size
    writer.add_file(file_of(again, raw_unit(writer, "new", new), new))
    writer.commit("")
    return withdrawal, chunk, sink.size


@pytest.mark.parametrize("again", [b"a", b"a/b"])
def test_of_two_files_that_take_one_place_the_later_one_comes_back(tmp_path: Path, new_sink: New, again: bytes) -> None:
    sink = new_sink()
    withdrawal, _, _ = withdrawn_and_written_again(sink, again)
    bad, good = tmp_path / "bad.arz", tmp_path / "good.arz"
    bad.write_bytes(flipped(bytes(sink.data), withdrawal + 140))
    report = arzstream.recover(bad, good)
    assert report.files == [again.decode()] and sorted(report.tensors) == ["new", "old"] and not report.lost_tensors
    assert report.lost_files == ([] if again == b"a" else ["a"])
    with arzstream.open(good) as archive:
        assert sorted(archive.files()) == [again.decode(), "recovered.safetensors"]
        assert archive.read_file(again.decode()) == b"efgh" * 25 and archive.numpy("old").tobytes() == b"abcd" * 25


@pytest.mark.parametrize("again", [b"a", b"a/b"])
def test_an_earlier_file_does_not_come_back_in_the_place_of_a_later_one(
    tmp_path: Path, new_sink: New, again: bytes
) -> None:
    sink = new_sink()
    withdrawal, second, _ = withdrawn_and_written_again(sink, again)
    chunk = next(f for f in frames_of(bytes(sink.data), FrameType.CHUNK) if f.offset > second)
    bad, good = tmp_path / "bad.arz", tmp_path / "good.arz"
    bad.write_bytes(flipped(bytes(sink.data), withdrawal + 140, chunk.offset + 130))
    report = arzstream.recover(bad, good)
    assert report.files == [] and report.lost_files == sorted({"a", again.decode()}, reverse=True)
    assert report.tensors == ["old"] and report.lost_tensors == ["new"]


# -- records that do not fit together


class Loose(FrameWriter):
    """Writes whatever it is told to, with good checksums."""

    def record(self, kind: FrameType, value: Any, ordinal: int) -> None:
        self._metadata(kind, value, ordinal)

    def chunk(self, number: int, nbytes: int, codec: int = 8) -> None:
        """One that looks at the references of its unit."""
        self._frame(FrameType.CHUNK, codec, bytes(64), nbytes, xxh3_64(bytes(64)), 0, number, 0)


def loose_unit(data: bytes, *refs: Reference, name: str = "forged") -> Any:
    return Unit("U8", (len(data), 1), (len(data), 1), (Member(name, (len(data),)),), refs=refs).to_map()


DATA = b"abcd" * 25


def longer_recipe(writer: Loose) -> None:
    record = file_of(b"forged", 0, DATA)
    writer.record(FrameType.FILE, dataclasses.replace(record, size=300, recipe=(Piece(0, 0, 300),)).to_map(), 0)


def larger_duplicate(writer: Loose) -> None:
    writer.record(FrameType.TENSOR, loose_unit(DATA * 2, Reference(2, 0, 0, 200)), 1)


def duplicate_of_another_type(writer: Loose) -> None:
    unit = Unit("BF16", (100, 1), (100, 1), (Member("forged", (100,)),), refs=(Reference(2, 0, 0, 100),))
    writer.record(FrameType.TENSOR, unit.to_map(), 1)


def reference_beyond_its_source(writer: Loose) -> None:
    writer.record(FrameType.TENSOR, loose_unit(DATA, Reference(0, 0, 50, 100)), 1)
    writer.chunk(1, 100)


def transposed_of_a_smaller_one(writer: Loose) -> None:
    writer.record(FrameType.TENSOR, loose_unit(DATA * 2, Reference(4, 0, 0, 200)), 1)
    writer.chunk(1, 200)


INDEX: dict[str, Any] = {"chain": b"", "content": b"", "dead": [0, 0]}
INDEX |= {key: [] for key in ("files", "models", "parents", "tables", "units", "volumes")}


def index_with_a_name_for_a_unit(writer: Loose) -> None:
    listed = [[number, loose_unit(DATA, name=f"t{number}"), [blake3(DATA)]] for number in (0, "a")]
    writer.record(FrameType.INDEX, {**INDEX, "units": listed}, NO_ORDINAL)


def index_with_a_name_for_a_file(writer: Loose) -> None:
    record = file_of(b"forged", 0, DATA).to_map()
    listed = [[0, loose_unit(DATA, name="t0"), [blake3(DATA)]]]
    writer.record(FrameType.INDEX, {**INDEX, "units": listed, "files": [[0, record], ["a", record]]}, NO_ORDINAL)


def index_of_lists(writer: Loose) -> None:
    writer.record(FrameType.INDEX, {**INDEX, "files": [[[0], []]], "units": 5}, NO_ORDINAL)


@pytest.mark.parametrize(
    "forge_it",
    [
        longer_recipe, larger_duplicate, duplicate_of_another_type, reference_beyond_its_source,
        transposed_of_a_smaller_one, index_with_a_name_for_a_unit, index_with_a_name_for_a_file, index_of_lists,
    ],
)  # fmt: skip
def test_records_that_do_not_fit_together_are_lost_and_nothing_else(
    forge_it: Callable[[Loose], None], tmp_path: Path, new_sink: New
) -> None:
    sink = new_sink()
    writer = Loose(sink)
    raw_unit(writer, "t0", DATA)
    forge_it(writer)
    writer.commit("")
    (tmp_path / "bad.arz").write_bytes(sink.data)
    report = arzstream.recover(tmp_path / "bad.arz", tmp_path / "good.arz")
    assert report.tensors == ["t0"] and report.files == []
    assert report.lost_tensors in ([], ["forged"]) and report.lost_files in ([], ["forged"])
    assert bool(report.lost_tensors or report.lost_files) != forge_it.__name__.startswith("index")
    with arzstream.open(tmp_path / "good.arz") as archive:
        assert archive.numpy("t0").tobytes() == DATA


def test_what_cannot_be_checked_is_kept_where_another_unit_refers_to_it(tmp_path: Path, new_sink: New) -> None:
    """Its own file is lost, that of its duplicate is not."""
    sink = new_sink()
    writer = Loose(sink)
    writer.add_parent(Parent(bytes(range(32)), "older.arz"))
    writer.add_unit(Unit("U8", (100, 1), (100, 1), (Member("a", (100,)),), refs=(Reference(1, 0, 0, 100),)))
    writer.add_chunk(0, 0, 8, bytes(64), 100, xxh3_64(DATA))
    writer.add_unit(Unit("U8", (100, 1), (100, 1), (Member("b", (100,)),), refs=(Reference(2, 0, 0, 100),)))
    writer.commit("", [(number, (blake3(DATA),)) for number in (0, 1)])
    lost = raw_unit(writer, "lost", DATA)
    damage = frames_of(bytes(sink.data), FrameType.CHUNK)[-1].offset + 130
    both = (Piece(0, 0, 100), Piece(lost, 0, 100))
    writer.add_file(FileRecord(b"1", size=200, sha256=hashlib.sha256(DATA * 2).digest(), recipe=both))
    writer.add_file(file_of(b"2", 1, DATA))
    writer.commit("")
    (tmp_path / "bad.arz").write_bytes(flipped(bytes(sink.data), damage))
    report = arzstream.recover(tmp_path / "bad.arz", tmp_path / "good.arz")
    assert (report.files, report.lost_files, report.lost_tensors) == (["2"], ["1"], ["lost"])
    assert report.unchecked == report.tensors == ["a", "b"]
    arzstream.verify(tmp_path / "good.arz")
