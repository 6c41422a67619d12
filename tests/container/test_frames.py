"""A whole archive, frame by frame: what the scan finds, what the index says, and what every truncation leaves."""

from __future__ import annotations

import bisect
import dataclasses
import random
from collections.abc import Callable
from typing import Any

import pytest

from arzstream.archive.verify import verify_reader
from arzstream.container.directory import open_directory
from arzstream.container.layout import FrameType, Prologue, Trailer
from arzstream.container.records import FileRecord, Kind, Member, Piece, Reference, Unit
from arzstream.container.scan import Replay
from arzstream.container.writer import FrameWriter
from arzstream.errors import ArzError, CorruptError, LimitError, UnsupportedError
from arzstream.kernels.digests import blake3
from arzstream.limits import Limits
from arzstream.testing import forge

Reader = Callable[[bytes], Any]


def test_the_scan_finds_what_was_written(sealed: Any, reader_of: Reader) -> None:
    replay = Replay(reader_of(sealed.data))
    kinds = [frame.header.type for frame in replay.run(len(sealed.data) - 128)]
    written = sealed.writer.state
    found = replay.state
    assert (found.units, found.chunks, found.files) == (written.units, written.chunks, written.files)
    assert (found.models, found.parents, found.digests) == (written.models, written.parents, written.digests)
    assert kinds[-1] == FrameType.INDEX and kinds.count(FrameType.COMMIT) == len(sealed.commits)
    assert replay.valid_end == sealed.commits[-1]


def test_the_index_says_what_the_scan_says(sealed: Any, reader_of: Reader) -> None:
    directory = open_directory(reader_of(sealed.data))
    state = sealed.writer.state
    assert [entry.number for entry in directory.units] == [1, 0, 2, 3]
    for entry in directory.units:
        assert entry.unit == state.units[entry.number] and entry.digests == state.digests[entry.number]
        assert directory.chunk_table(entry.number).tobytes() == state.table(entry.number).tobytes()
    assert dict(directory.files) == {n: record for n, record in state.files.items() if record.kind != Kind.WITHDRAWN}
    assert [record.path for _, record in directory.files] == [b"dir", b"dir/f.safetensors", b"link"]
    assert directory.content == sealed.content and directory.sealed


def test_dead_frames_are_counted(sealed: Any, reader_of: Reader) -> None:
    """The chunk that was coded again, the withdrawn file and its withdrawal."""
    frames = forge.frames(sealed.data)
    replaced = next(f for f in frames if f.kind == FrameType.CHUNK and (f.header.ordinal, f.header.chunk) == (0, 1))
    withdrawn = [f for f in frames if f.kind == FrameType.FILE and f.header.ordinal == 0]
    dead = [replaced, *withdrawn]
    assert len(withdrawn) == 2
    assert open_directory(reader_of(sealed.data)).dead == (3, sum(f.header.frame_bytes for f in dead))


def test_frames_partition_the_file(sealed: Any) -> None:
    at = 64
    for number, frame in enumerate(forge.frames(sealed.data)):
        assert frame.offset == at and at % 64 == 0 and frame.header.sequence == number
        at = frame.end
    assert at + 128 == len(sealed.data)


def expected_at(made: Any, length: int) -> Any:
    place = bisect.bisect_right(made.commits, length) - 1
    return made.snapshots[place] if place >= 0 else None


def test_every_truncation_opens_as_the_last_committed_state_or_is_refused(sealed: Any, reader_of: Reader) -> None:
    data = sealed.data
    assert len(data) < 8000, "so that every length can be tried"
    for length in range(len(data)):
        expected = expected_at(sealed, length)
        reader = reader_of(data[:length])
        if expected is None:
            try:
                directory = open_directory(reader)
            except CorruptError:
                continue
            assert not directory.sealed and not directory.units and not directory.files
            continue
        directory = open_directory(reader)
        digests, files = expected
        assert not directory.sealed and directory.content is None
        assert {entry.number: entry.digests for entry in directory.units} == digests
        known = {
            n: r
            for n, r in files.items()
            if r.kind != Kind.WITHDRAWN and all(isinstance(p, bytes) or p.unit in digests for p in r.recipe)
        }
        assert dict(directory.files) == known
        assert directory.valid_end == max(end for end in sealed.commits if end <= length)
        with pytest.raises(CorruptError):
            verify_reader(reader)


def test_every_damaged_byte_is_noticed(sealed: Any, reader_of: Reader) -> None:
    rng = random.Random(1)
    verify_reader(reader_of(sealed.data))
    for at in range(0, len(sealed.data), 3):
        damaged = bytearray(sealed.data)
        damaged[at] ^= 1 << rng.randrange(8)
        with pytest.raises((CorruptError, UnsupportedError)):
            verify_reader(reader_of(bytes(damaged)))


def test_more_bytes_than_the_archive_are_noticed(sealed: Any, reader_of: Reader) -> None:
    for extra in (b"\0", bytes(64), bytes(128), sealed.data[-128:], sealed.data, sealed.data[64:]):
        with pytest.raises(CorruptError):
            verify_reader(reader_of(sealed.data + extra))


def spans(data: bytes) -> list[tuple[int, int]]:
    return [(frame.offset, frame.end) for frame in forge.frames(data)]


def test_dropped_doubled_and_swapped_frames_are_noticed(sealed: Any, reader_of: Reader) -> None:
    data, where = sealed.data, spans(sealed.data)
    for i, (start, end) in enumerate(where):
        frame = data[start:end]
        changed = [data[:start] + data[end:], data[:end] + frame + data[end:]]
        for other, (start2, end2) in enumerate(where):
            if other > i:
                changed.append(data[:start] + data[start2:end2] + data[end:start2] + frame + data[end2:])
        for number, bad in enumerate(changed):
            with pytest.raises((CorruptError, UnsupportedError)):
                verify_reader(reader_of(bad))
            assert number == 0 or len(bad) >= len(data)


def test_frames_of_another_archive_are_noticed(sealed: Any, reader_of: Reader, write_unit: Any) -> None:
    """The same frames under another file id: each alone in the place of its twin."""
    prologue, frames = forge.parse(sealed.data)
    other = forge.assemble(type(prologue)(bytes(16)), frames)
    verify_reader(reader_of(other))
    assert len(other) == len(sealed.data)
    for start, end in [(0, 64), *spans(sealed.data), (len(other) - 128, len(other))]:
        with pytest.raises(CorruptError):
            verify_reader(reader_of(sealed.data[:start] + other[start:end] + sealed.data[end:]))


def test_what_comes_after_the_last_commit_does_not_count(reader_of: Reader, append_only: Any, write_unit: Any) -> None:
    sink = append_only()
    writer = FrameWriter(sink)
    done = write_unit(writer, Unit("U8", (4, 1), (2, 1), (Member("a", (4,)),)), b"abcd")
    writer.commit("a", [done])
    writer.add_file(FileRecord(b"f", size=4, recipe=(Piece(0, 0, 4),)))
    write_unit(writer, Unit("U8", (4, 1), (2, 1), (Member("b", (4,)),)), b"abcd")
    directory = open_directory(reader_of(b"".join(sink._parts)))
    assert [entry.unit.members[0].name for entry in directory.units] == ["a"] and not directory.files


def test_a_unit_with_a_new_chunk_cannot_be_read_before_the_commit_that_lists_it(
    reader_of: Reader, append_only: Any, write_unit: Any
) -> None:
    sink = append_only()
    writer = FrameWriter(sink)
    unit = Unit("U8", (4, 1), (2, 1), (Member("a", (4,)),))
    number, digests = write_unit(writer, unit, b"abcd")
    writer.commit("a", [(number, digests)])
    writer.add_chunk(number, 0, 0, b"AB", 2, 1)
    writer.commit("", [])
    assert not open_directory(reader_of(b"".join(sink._parts))).units
    writer.commit("", [(number, (blake3(b"ABcd"),))])
    assert open_directory(reader_of(b"".join(sink._parts))).units[0].digests == (blake3(b"ABcd"),)


@pytest.mark.parametrize(
    "make_it_wrong",
    [
        pytest.param(lambda w, u: w.add_chunk(7, 0, 0, b"ab", 2, 0), id="chunk of no unit"),
        pytest.param(lambda w, u: w.add_chunk(u, 2, 0, b"ab", 2, 0), id="chunk beyond the unit"),
        pytest.param(lambda w, u: w.add_chunk(u, 2, 0, b"", 0, 0), id="empty chunk beyond the unit"),
        pytest.param(lambda w, u: w.add_chunk(u, 0, 0, b"a", 1, 0), id="chunk too short"),
        pytest.param(lambda w, u: w.add_chunk(u, 0, 0, b"abc", 3, 0), id="chunk too long"),
        pytest.param(lambda w, u: w.commit("", [(5, (bytes(32),))]), id="commit of no unit"),
        pytest.param(lambda w, u: w.commit("", [(u, ())]), id="commit without digests"),
        pytest.param(lambda w, u: w.add_file(FileRecord(b"x", size=5, recipe=(Piece(u, 0, 5),))), id="recipe too long"),
        pytest.param(
            lambda w, u: w.add_file(FileRecord(b"x", size=1, recipe=(Piece(9, 0, 1),))), id="recipe of no unit"
        ),
        pytest.param(lambda w, u: w.add_file(FileRecord(b"x"), 7), id="file number left out"),
        pytest.param(lambda w, u: w.add_unit(_unit(models=(0,))), id="model that is not there"),
        pytest.param(lambda w, u: w.add_unit(_unit(refs=(Reference(1, 0, 0, 1),))), id="parent that is not there"),
        pytest.param(lambda w, u: w.add_unit(_unit(refs=(Reference(0, 1, 0, 4),))), id="reference to itself"),
        pytest.param(lambda w, u: w.add_unit(_unit(refs=(Reference(0, u, 1, 4),))), id="reference beyond the unit"),
        pytest.param(lambda w, u: w.add_unit(_unit("I8", refs=(Reference(2, u, 0, 4),))), id="duplicate, other dtype"),
    ],
)
def test_the_writer_refuses_what_a_reader_would(
    make_it_wrong: Callable[[FrameWriter, int], Any], append_only: Any, write_unit: Any
) -> None:
    writer = FrameWriter(append_only())
    number, digests = write_unit(writer, _unit(), b"abcd")
    writer.commit("", [(number, digests)])
    with pytest.raises(CorruptError):
        make_it_wrong(writer, number)


def _unit(dtype: str = "U8", **fields: Any) -> Unit:
    return Unit(dtype, (4, 1), (2, 1), (Member("a", (4,)),), **fields)


def test_a_duplicate_of_a_duplicate_and_a_chunk_of_a_duplicate_are_refused(append_only: Any, write_unit: Any) -> None:
    writer = FrameWriter(append_only())
    number, _ = write_unit(writer, _unit(), b"abcd")
    copy = writer.add_unit(_unit(refs=(Reference(2, number, 0, 4),)))
    with pytest.raises(CorruptError):
        writer.add_unit(_unit(refs=(Reference(2, copy, 0, 4),)))
    with pytest.raises(CorruptError):
        writer.add_chunk(copy, 0, 0, b"ab", 2, 0)


def test_an_archive_with_an_unfinished_unit_or_a_path_twice_cannot_be_sealed(append_only: Any, write_unit: Any) -> None:
    for paths, units, why in [
        ([b"f"], False, "never completed"),
        ([b"f", b"f"], True, "two files"),
        ([b"f", b"f/g"], True, "at once"),
    ]:
        writer = FrameWriter(append_only())
        number, digests = write_unit(writer, _unit(), b"abcd")
        writer.commit("", [(number, digests)] if units else [])
        for path in paths:
            writer.add_file(FileRecord(path, size=4, recipe=(Piece(number, 0, 4),)))
        writer.commit("", [])
        with pytest.raises(CorruptError, match=why):
            writer.seal([number])


def skip_a_number(writer: Any) -> None:
    writer._sequence += 1


def forget_the_last_commit(writer: Any) -> None:
    writer._previous_commit = 0


def take_another_id(writer: Any) -> None:
    writer.prologue = Prologue(bytes(16))


@pytest.mark.parametrize("slip", [skip_a_number, forget_the_last_commit, take_another_id])
def test_a_slip_that_the_chain_does_not_show_is_noticed(
    slip: Callable[[Any], None], append_only: Any, write_unit: Any, reader_of: Reader
) -> None:
    """The headers are hashed as they are, so each of these has to be looked at for itself."""
    sink = append_only()
    writer = FrameWriter(sink)
    writer.commit("", [write_unit(writer, _unit(), b"abcd")])
    slip(writer)
    writer.commit("")
    with pytest.raises(CorruptError):
        list(Replay(reader_of(b"".join(sink._parts))).run(writer.offset))


def test_an_index_that_was_not_the_one_that_was_sealed_is_not_believed(sealed: Any, reader_of: Reader) -> None:
    trailer = Trailer.decode(sealed.data[-128:], len(sealed.data))
    other = dataclasses.replace(trailer, root=bytes(32)).encode()
    with pytest.raises(CorruptError, match="root digest"):
        open_directory(reader_of(sealed.data[:-128] + other))


def rewritten(data: bytes, change: Callable[[list[forge.Frame]], None], **edits: Any) -> bytes:
    prologue, frames = forge.parse(data)
    change(frames)
    return forge.assemble(prologue, frames, **edits)


def _nothing(frames: list[forge.Frame]) -> None:
    pass


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("chain", bytes(32)),
        ("content", bytes(32)),
        ("content", b""),
        ("dead", [0, 0]),
        ("dead", [3]),
        ("files", []),
        ("models", []),
        ("parents", []),
        ("tables", []),
        ("units", []),
        ("units", None),
        ("files", 3),
    ],
)
def test_an_index_that_says_something_else_than_the_frames_is_noticed(
    sealed: Any, reader_of: Reader, key: str, value: Any
) -> None:
    bad = rewritten(sealed.data, _nothing, edit_index=lambda index: index.update({key: value}))
    with pytest.raises(CorruptError):
        verify_reader(reader_of(bad))


@pytest.mark.parametrize("place", range(7))
def test_every_field_of_a_unit_in_the_index_is_checked(sealed: Any, reader_of: Reader, place: int) -> None:
    def edit(index: dict[str, Any]) -> None:
        unit = index["units"][0]
        if place == 1:
            unit[1] = {**unit[1], "layer": "elsewhere"}
        elif place == 2:
            unit[2] = [bytes(32)] * len(unit[2])
        else:
            unit[place] += 1

    with pytest.raises(CorruptError):
        verify_reader(reader_of(rewritten(sealed.data, _nothing, edit_index=edit)))


@pytest.mark.parametrize("field", ["offset", "stored", "decoded", "stored_xxh3", "decoded_xxh3", "codec", "reserved"])
def test_every_field_of_a_chunk_table_is_checked(sealed: Any, reader_of: Reader, field: str) -> None:
    def edit(table: Any) -> None:
        table[field][0] = b"\1" * 6 if field == "reserved" else int(table[field][0]) + 1

    with pytest.raises(CorruptError):
        verify_reader(reader_of(rewritten(sealed.data, _nothing, edit_table=edit)))


def test_frame_types_that_are_not_known(sealed: Any, reader_of: Reader) -> None:
    """An ancillary one is skipped, whatever its codec and ordinal; another one needs a newer reader."""

    def insert(kind: int, codec: int = 0) -> bytes:
        def change(frames: list[forge.Frame]) -> None:
            model = next(f for f in frames if f.kind == FrameType.MODEL)
            frames.insert(3, forge.recode(model, type=kind, codec=codec, ordinal=77, chunk=9, decoded=1 << 60))

        return rewritten(sealed.data, change)

    for kind in (0x8001, 0x800A, 0xC00A, 0xFFFF):
        data = insert(kind, 999)
        verify_reader(reader_of(data))
        assert open_directory(reader_of(data)).content == sealed.content
    for kind in (9, 0, 0x4001, 0x7FFF):
        with pytest.raises(UnsupportedError, match="frame type"):
            verify_reader(reader_of(insert(kind)))
        with pytest.raises(UnsupportedError):
            list(Replay(reader_of(insert(kind))).run(len(insert(kind)) - 128))


def test_an_unknown_frame_in_a_growing_archive_counts_if_a_commit_follows_it(sealed: Any, reader_of: Reader) -> None:
    prologue, frames = forge.parse(sealed.data)
    last = max(i for i, f in enumerate(frames) if f.kind == FrameType.COMMIT)
    strange = forge.recode(frames[0], type=77)
    strange.value = None
    for place, refused in [(last + 1, False), (last, True), (1, True)]:
        data = forge.assemble(prologue, [*frames[:place], strange, *frames[place : last + 1], frames[-1]])
        growing = data[: forge.frames(data)[-1].offset]
        if refused:
            with pytest.raises(UnsupportedError, match="frame type 77"):
                open_directory(reader_of(growing))
        else:
            assert len(open_directory(reader_of(growing)).units) == 4


def test_limits_on_numbers_of_units_and_files(sealed: Any, reader_of: Reader) -> None:
    for limits in (Limits(units=3), Limits(files=2), Limits(metadata_bytes=100), Limits(name_bytes=3)):
        with pytest.raises(LimitError):
            open_directory(reader_of(sealed.data), limits)
        with pytest.raises(ArzError):
            list(Replay(reader_of(sealed.data), limits).run(len(sealed.data) - 128))
    open_directory(reader_of(sealed.data), Limits(units=4, files=3))
