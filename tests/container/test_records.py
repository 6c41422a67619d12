"""Units, files, commits and parents: their maps, every rule one of them can break, and the tiling of a unit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arzstream.codec.dtypes import DTYPES
from arzstream.container import metadata
from arzstream.container.records import (
    Commit,
    FileRecord,
    Kind,
    Member,
    Parent,
    Part,
    Piece,
    Reference,
    Unit,
    check_path,
    committed_digests,
)
from arzstream.errors import ArzError, CorruptError, LimitError, UnsupportedError
from arzstream.kernels.digests import blake3
from arzstream.limits import Limits

EMPTY = FileRecord(b"x").sha256


@st.composite
def units(draw: st.DrawFn) -> Unit:
    rows, columns = draw(st.integers(0, 12)), draw(st.integers(0, 12))
    grid = (draw(st.integers(1, 14)), draw(st.integers(1, 14)))
    elements = rows * columns
    start = draw(st.integers(0, elements))
    members = [Member(draw(st.none() | st.text(max_size=20)), (elements - start,), start)]
    if elements:
        members.append(Member("strided", (2, 3), elements - 1, (0, 0)))
    return Unit(
        draw(st.sampled_from(sorted(DTYPES))),
        (rows, columns),
        grid,
        tuple(members),
        draw(st.text(max_size=10)),
        source=((None, 5, 6), (3, 0, 0)),
    )


@given(units())
def test_a_unit_comes_back(unit: Unit) -> None:
    assert Unit.from_map(metadata.unpack(metadata.pack(unit.to_map()))) == unit


@given(units(), st.data())
def test_chunks_tile_a_unit_exactly(unit: Unit, data: st.DataObject) -> None:
    owner = np.full(unit.shape, -1)
    for chunk in range(unit.chunk_count):
        tile = unit.tile(chunk)
        assert 0 < tile.row1 - tile.row0 <= unit.grid[0] and 0 < tile.col1 - tile.col0 <= unit.grid[1]
        assert (owner[tile.row0 : tile.row1, tile.col0 : tile.col1] == -1).all()
        owner[tile.row0 : tile.row1, tile.col0 : tile.col1] = chunk
    assert (owner >= 0).all()
    row0 = data.draw(st.integers(0, unit.shape[0]))
    row1 = data.draw(st.integers(row0, unit.shape[0]))
    assert list(unit.chunks_of_rows(row0, row1)) == sorted(set(owner[row0:row1].reshape(-1)))


def good_unit() -> dict[str, Any]:
    return Unit("F32", (4, 3), (2, 3), (Member("t", (4, 3)),), "layer", refs=(Reference(0, 0, 2, 5),)).to_map()


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("dtype", "F31", UnsupportedError),
        ("dtype", b"F32", CorruptError),
        ("dtype", None, CorruptError),
        ("grid", [0, 3], CorruptError),
        ("grid", [2, 0], CorruptError),
        ("grid", [2], CorruptError),
        ("grid", [2, True], CorruptError),
        ("grid", [2, -1], CorruptError),
        ("layer", None, CorruptError),
        ("layer", b"x", CorruptError),
        ("members", [], CorruptError),
        ("members", None, CorruptError),
        ("members", [["t", [4, 3], 0]], CorruptError),
        ("members", [[b"t", [4, 3], 0, None]], CorruptError),
        ("members", [["t", [4, 4], 0, None]], CorruptError),
        ("members", [["t", [4, 3], 1, None]], CorruptError),
        ("members", [["t", [0], 13, None]], CorruptError),
        ("members", [["t", [4, 3], -1, None]], CorruptError),
        ("members", [["t", [4, -3], 0, None]], CorruptError),
        ("members", [["t", [2, 2], 0, [11, 1]]], CorruptError),
        ("members", [["t", [2, 2], 0, [-1, 1]]], CorruptError),
        ("members", [["t", [2, 2], 0, [1]]], CorruptError),
        ("members", [["t", [2**40, 2**40], 0, [0, 0]]], CorruptError),
        ("members", [["t", [1] * 33, 0, None]], LimitError),
        ("members", [["x" * 1025, [4, 3], 0, None]], LimitError),
        ("members", [["ü" * 513, [4, 3], 0, None]], LimitError),
        ("models", [-1], CorruptError),
        ("models", None, CorruptError),
        ("part", [[4], [0]], CorruptError),
        ("part", [[4, 3], [0]], CorruptError),
        ("part", [[4, 3], [1, 0]], CorruptError),
        ("part", [[4, 3]], CorruptError),
        ("refs", [[2, 0, 0, 1]], CorruptError),
        ("refs", [[0, 0, 0]], CorruptError),
        ("refs", [[0, -1, 0, 1]], CorruptError),
        ("shape", [4], CorruptError),
        ("shape", [2**40, 2**40], CorruptError),
        ("shape", [2**62, 1], CorruptError),
        ("shape", [4, None], CorruptError),
        ("shape", [4.0, 3], CorruptError),
        ("source", [[None, 0]], CorruptError),
        ("source", [[-1, 0, 0]], CorruptError),
        ("source", None, CorruptError),
    ],
)
def test_a_unit_that_breaks_a_rule_is_refused(key: str, value: Any, error: type[ArzError]) -> None:
    Unit.from_map(good_unit())
    with pytest.raises(error):
        Unit.from_map({**good_unit(), key: value})


def test_a_part_lies_inside_its_tensor() -> None:
    unit = Unit("F32", (4, 3), (2, 3), (Member("t", (4, 3), part=Part((8, 6), (4, 3))),))
    assert Unit.from_map(unit.to_map()) == unit


def test_of_several_members_each_may_be_a_part() -> None:
    members = (Member("a[4:6]", (2,), 0, None, Part((6,), (4,))), Member("b", (2,), 2))
    unit = Unit("F32", (1, 4), (1, 4), members)
    assert unit.to_map()["part"] == [[[6], [4]], None]
    assert Unit.from_map(unit.to_map()) == unit
    for bad in ([None, None], [[[6], [4]]], [[[6], [5]], None], [[6], [4]], [[[6], [4]], None, None]):
        with pytest.raises(CorruptError):
            Unit.from_map({**unit.to_map(), "part": bad})


def test_a_part_goes_by_the_name_of_the_whole_and_where_it_lies() -> None:
    part = Part((6, 8), (4, 0))
    assert Member("w[4:6,0:3]", (2, 3), part=part).whole == "w"
    assert Member("w[4:6,0:4]", (2, 3), part=part).whole == "w[4:6,0:4]"
    assert Member("w[4:6,0:3]", (2, 3)).whole == "w[4:6,0:3]"


@pytest.mark.parametrize("kind", ["unit", "file", "commit", "parent"])
def test_a_map_has_exactly_its_keys(kind: str) -> None:
    good, read = {
        "unit": (good_unit(), Unit.from_map),
        "file": (good_file(), FileRecord.from_map),
        "commit": (Commit(bytes(32), "", 0, ()).to_map(), Commit.from_map),
        "parent": (Parent(bytes(32)).to_map(), Parent.from_map),
    }[kind]
    read(good)  # type: ignore[operator]
    for bad in [{**good, "new": 1}, *({k: v for k, v in good.items() if k != gone} for gone in good), None, [], 3]:  # type: ignore[attr-defined]
        with pytest.raises(CorruptError):
            read(bad)  # type: ignore[operator]


def test_limits_of_a_unit() -> None:
    big = Unit("U8", (1 << 21, 1), (1, 1), (Member("t", (1 << 21,)),))
    with pytest.raises(LimitError, match="chunks"):
        Unit.from_map(big.to_map())
    with pytest.raises(LimitError, match="chunk of"):
        Unit.from_map(Unit("F64", (1 << 30, 1), (1 << 30, 1), (Member("t", (1,)),)).to_map())
    many = Unit("U8", (1, 1), (1, 1), (Member("t", (1,)),) * 11)
    with pytest.raises(LimitError, match="members"):
        Unit.from_map(many.to_map(), Limits(members=10))


def good_file() -> dict[str, Any]:
    return FileRecord(b"a/b", size=5, recipe=(b"abc", Piece(0, 0, 2)), metadata={"k": "v"}).to_map()


@given(
    st.binary(min_size=1, max_size=30).filter(lambda p: b"\0" not in p and not {b"", b".", b".."} & set(p.split(b"/"))),
    st.integers(0, 0o7777),
    st.integers(-(2**63), 2**63 - 1),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5)),
)
def test_a_file_comes_back(path: bytes, mode: int, mtime: int, extra: dict[str, str]) -> None:
    record = FileRecord(path, Kind.REGULAR, mode, mtime, 3, bytes(32), (b"", Piece(7, 8, 3)), metadata=extra)
    assert FileRecord.from_map(metadata.unpack(metadata.pack(record.to_map()))) == record


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("path", b"", CorruptError),
        ("path", "text", CorruptError),
        ("path", b"/a", CorruptError),
        ("path", b"a/", CorruptError),
        ("path", b"a//b", CorruptError),
        ("path", b".", CorruptError),
        ("path", b"a/../b", CorruptError),
        ("path", b"..", CorruptError),
        ("path", b"a\0", CorruptError),
        ("path", b"x" * 4097, LimitError),
        ("kind", 4, CorruptError),
        ("kind", True, CorruptError),
        ("kind", Kind.LINK, CorruptError),
        ("kind", Kind.DIRECTORY, CorruptError),
        ("kind", Kind.WITHDRAWN, CorruptError),
        ("mode", 0o10000, CorruptError),
        ("mode", -1, CorruptError),
        ("mtime", 2**63, CorruptError),
        ("mtime", None, CorruptError),
        ("size", 6, CorruptError),
        ("size", 4, CorruptError),
        ("size", -1, CorruptError),
        ("sha256", bytes(31), CorruptError),
        ("sha256", "x" * 32, CorruptError),
        ("recipe", [b"abcde", [0, 0]], CorruptError),
        ("recipe", [b"abc", [0, -1, 2]], CorruptError),
        ("recipe", ["abcde"], CorruptError),
        ("recipe", [[0, 0, 2**63]], CorruptError),
        ("target", b"somewhere", CorruptError),
        ("target", "", CorruptError),
        ("format", b"", CorruptError),
        ("note", None, CorruptError),
        ("metadata", {"k": 1}, CorruptError),
        ("metadata", [], CorruptError),
    ],
)
def test_a_file_that_breaks_a_rule_is_refused(key: str, value: Any, error: type[ArzError]) -> None:
    FileRecord.from_map(good_file())
    with pytest.raises(error):
        FileRecord.from_map({**good_file(), key: value})


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": Kind.LINK, "target": b""},
        {"kind": Kind.LINK, "target": b"a\0b"},
        {"kind": Kind.LINK, "target": b"a", "sha256": bytes(32)},
        {"kind": Kind.LINK, "target": b"a", "recipe": [b""]},
        {"kind": Kind.DIRECTORY, "recipe": [b""]},
        {"kind": Kind.DIRECTORY, "sha256": bytes(32)},
        {"kind": Kind.WITHDRAWN, "target": b"a"},
        {"kind": Kind.WITHDRAWN, "mode": 0o644},
        {"kind": Kind.WITHDRAWN, "mtime": 5},
        {"kind": Kind.WITHDRAWN, "note": "x"},
        {"kind": Kind.WITHDRAWN, "metadata": {"k": "v"}},
    ],
)
def test_links_folders_and_the_withdrawn_have_no_content(fields: dict[str, Any]) -> None:
    empty = {**good_file(), "recipe": [], "size": 0, "sha256": EMPTY, "metadata": {}, "mode": 0, "mtime": 0}
    with pytest.raises(CorruptError):
        FileRecord.from_map({**empty, **fields})


@pytest.mark.parametrize("path", [b"a", b"a/b", b"...", b"a\\..\\b", b"\xff\xfe", b" ", b"x" * 4096, b"C:"])
def test_plain_paths_are_plain(path: bytes) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("chain", bytes(31)),
        ("layer", 1),
        ("previous", -1),
        ("units", [[1, [bytes(32)]], [0, [bytes(32)]]]),
        ("units", [[1, [bytes(32)]], [1, [bytes(32)]]]),
        ("units", [[0, [bytes(31)]]]),
        ("units", [[0]]),
        ("units", [[-1, []]]),
        ("units", None),
    ],
)
def test_a_commit_that_breaks_a_rule_is_refused(key: str, value: Any) -> None:
    good = Commit(bytes(32), "", 0, ((0, (bytes(32),)),)).to_map()
    assert Commit.from_map(good).to_map() == good
    with pytest.raises(CorruptError):
        Commit.from_map({**good, key: value})


def test_a_commit_lists_one_digest_for_all_members_but_each_of_an_inherited_unit() -> None:
    one, two = bytes(range(32)), bytes(range(32, 64))
    pair = Unit("U8", (1, 8), (1, 8), (Member("a", (3,)), Member("b", (5,), 3)))
    alone = Unit("U8", (1, 8), (1, 8), (Member("a", (8,)),))
    inherited = Unit("U8", (1, 8), (1, 8), pair.members, refs=(Reference(3, 0, 0, 8),))
    assert committed_digests(pair, (one, two)) == (blake3(one + two),)
    assert committed_digests(alone, (one,)) == (one,)
    assert committed_digests(inherited, (one, two)) == (one, two)
