"""The tiles that a chunk refers to, one by one: decoded when looked at, of other units and of parents."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from arzstream.archive.decoding import Decoder
from arzstream.archive.references import Match, References, TileCache, covers, matches
from arzstream.codec import registry
from arzstream.codec.base import ChunkContext
from arzstream.codec.dtypes import DTYPES
from arzstream.codec.optim_ctx import OptimCtx, encode_optim
from arzstream.codec.roles import Role
from arzstream.container.directory import UnitEntry, open_directory
from arzstream.container.records import FileRecord, Member, Piece, Reference, ReferenceKind, Unit
from arzstream.container.writer import FrameWriter
from arzstream.errors import CorruptError, LimitError, MissingParentError
from arzstream.kernels.digests import blake3, sha256_hasher, xxh3_64
from arzstream.testing.xor import Xor

DATA = np.arange(6 * 8 * 4, dtype=np.uint8).reshape(6, 8, 4)


def _sealed(sink: Any, units: list[tuple[Unit, bytes]]) -> Any:
    """An archive of ``units``, each with its bytes, raw."""
    writer = FrameWriter(sink)
    pieces, content = [], b""
    for unit, data in units:
        number, array = writer.add_unit(unit), np.frombuffer(data, np.uint8).reshape(unit.shape[0], -1)
        for chunk in range(unit.chunk_count):
            tile, size = unit.tile(chunk), unit.type.itemsize
            part = array[tile.row0 : tile.row1, tile.col0 * size : tile.col1 * size].tobytes()
            writer.add_chunk(number, chunk, 0, part, len(part), xxh3_64(part))
        writer.commit("", [(number, (blake3(data),))])
        pieces.append(Piece(number, 0, len(data)))
        content += data
    sha256 = sha256_hasher()
    sha256.update(content)
    writer.add_file(FileRecord(b"f", size=len(content), sha256=sha256.digest(), recipe=tuple(pieces)))
    writer.commit("")
    writer.seal(range(len(units)))
    return sink


def _decoder(sink: Any) -> Decoder:
    return Decoder(sink, open_directory(sink), jobs=1)


def test_a_tile_is_decoded_when_it_is_looked_at_and_once() -> None:
    asked: list[int] = []
    tiles = References(3, lambda index: (asked.append(index), memoryview(bytes([index])))[1])
    assert len(tiles) == 3 and bool(tiles) and asked == []
    assert bytes(tiles[1]) == b"\1" and bytes(tiles[-2]) == b"\1" and asked == [1]
    assert [bytes(tile) for tile in tiles[1:]] == [b"\1", b"\2"] and asked == [1, 2]
    assert [bytes(tile) for tile in tiles] == [b"\0", b"\1", b"\2"]
    with pytest.raises(IndexError):
        tiles[3]
    assert not References(0, lambda index: memoryview(b""))


@pytest.mark.parametrize("grid", [(6, 8), (2, 8), (4, 3), (1, 5)])
@pytest.mark.parametrize("source_grid", [(6, 8), (4, 8), (3, 2)])
def test_tiles_of_another_unit_are_cut_like_the_unit_whatever_its_own_grid(
    grid: tuple[int, int], source_grid: tuple[int, int], new_sink: Callable[[], Any]
) -> None:
    source = Unit("F32", (6, 8), source_grid, (Member("s", (6, 8)),))
    refs = (Reference(ReferenceKind.UNIT, 0, 0, 48),)
    unit = Unit("BF16", (6, 8), grid, (Member("u", (6, 8)),), refs=refs)
    decoder = _decoder(_sealed(new_sink(), [(source, DATA.tobytes()), (unit, bytes(96))]))
    for chunk in range(unit.chunk_count):
        tile = unit.tile(chunk)
        wanted = DATA[tile.row0 : tile.row1, tile.col0 : tile.col1].tobytes()
        assert bytes(decoder.references(unit, chunk)[0]) == wanted


def test_a_reference_to_some_elements_of_a_unit_begins_there(new_sink: Callable[[], Any]) -> None:
    source = Unit("U8", (12, 1), (5, 1), (Member("s", (12,)),))
    unit = Unit("U8", (3, 2), (2, 1), (Member("u", (3, 2)),), refs=(Reference(ReferenceKind.UNIT, 0, 4, 6),))
    decoder = _decoder(_sealed(new_sink(), [(source, bytes(range(12))), (unit, bytes(6))]))
    tiles = [bytes(decoder.references(unit, chunk)[0]) for chunk in range(4)]
    assert tiles == [bytes([4, 6]), bytes([5, 7]), bytes([8]), bytes([9])]
    short = Unit("U8", (3, 2), (3, 2), (Member("u", (3, 2)),), refs=(Reference(ReferenceKind.UNIT, 0, 0, 5),))
    with pytest.raises(CorruptError, match="not as long as the unit"):
        decoder.references(short, 0)[0]


@pytest.fixture
def xor() -> Iterator[None]:
    registry.register(Xor())
    yield
    del registry._codecs[Xor.id]


@pytest.mark.usefixtures("xor")
def test_a_long_chain_of_units_is_decoded_to_the_limit(new_sink: Callable[[], Any]) -> None:
    sink, count = new_sink(), 80
    writer, values = FrameWriter(sink), []
    for number in range(count):
        refs = (Reference(ReferenceKind.UNIT, number - 1, 0, 4),) if number else ()
        unit = Unit("U8", (1, 4), (1, 4), (Member(f"u{number}", (4,)),), refs=refs)
        data = bytes([number, 1, 2, 3])
        values.append(data)
        mixed = bytes(a ^ b for a, b in zip(data, values[-2], strict=True)) if number else data
        writer.add_unit(unit)
        writer.add_chunk(number, 0, Xor.id, zlib.compress(mixed), 4, xxh3_64(data))
        writer.commit("", [(number, (blake3(data),))])
    decoder = _decoder(sink)
    assert decoder.unit_bytes(64, 0, 4) == values[64]
    with pytest.raises(LimitError, match="through more than 64"):
        _decoder(sink).unit_bytes(count - 1, 0, 4)
    assert decoder.unit_bytes(20, 0, 4) == values[20]


@pytest.mark.parametrize("wrong", ["", "another unit", "the other role", "a damaged unit"])
def test_state_against_a_wrong_unit_is_refused_and_never_another_value(wrong: str, new_sink: Callable[[], Any]) -> None:
    """A first moment that was coded given the second: its reference leads elsewhere, or to what is no longer it. All
    decode to something; the digest of what it was tells."""
    rng = np.random.default_rng(0)
    square, other = (rng.random((2, 64, 48)) ** 4).astype("<f4")
    moment = (np.sqrt(square) * rng.standard_normal(square.shape)).astype("<f4")
    ctx = ChunkContext(DTYPES["F32"], 64, 48, (memoryview(square.tobytes()),), role=Role.MOMENT, roles=(Role.SQUARE,))
    payload = encode_optim(memoryview(moment.tobytes()), ctx)
    assert payload is not None
    writer = FrameWriter(sink := new_sink())
    stored = bytearray(square.tobytes())
    stored[5] ^= wrong == "a damaged unit"
    source = {"another unit": 1, "the other role": 2}.get(wrong, 0)
    for number, (data, raw) in enumerate([(square, bytes(stored)), (other, None), (moment / 3, None)]):
        writer.add_unit(Unit("F32", (64, 48), (64, 48), (Member(f"u{number}", (64, 48)),)))
        writer.add_chunk(number, 0, 0, raw or data.tobytes(), data.nbytes, xxh3_64(raw or data.tobytes()))
        writer.commit("", [(number, (blake3(data.tobytes()),))])
    refs = (Reference(ReferenceKind.UNIT, source, 0, 64 * 48),)
    writer.add_unit(Unit("F32", (64, 48), (64, 48), (Member("m", (64, 48)),), refs=refs))
    writer.add_chunk(3, 0, OptimCtx.id, payload, moment.nbytes, xxh3_64(moment.tobytes()))
    writer.commit("", [(3, (blake3(moment.tobytes()),))])
    if not wrong:
        assert _decoder(sink).unit_bytes(3, 0, moment.nbytes) == moment.tobytes()
        return
    with pytest.raises(CorruptError, match="tensor 'm', chunk 0: the bytes decode to something else"):
        _decoder(sink).unit_bytes(3, 0, moment.nbytes)


def test_without_parents_at_hand_what_needs_them_says_so(new_sink: Callable[[], Any]) -> None:
    from arzstream.container.records import Parent

    sink = new_sink()
    writer = FrameWriter(sink)
    writer.add_parent(Parent(bytes(32), "p.arz"))
    unit = Unit("U8", (1, 4), (1, 4), (Member("u", (4,)),), refs=(Reference(ReferenceKind.INHERITED, 0, 0, 4),))
    writer.add_unit(unit)
    writer.commit("", [(0, (blake3(bytes(4)),))])
    with pytest.raises(MissingParentError, match="tensor 'u': its bytes are those of another archive"):
        _decoder(sink).unit_bytes(0, 0, 4)


def test_the_cache_keeps_what_was_used_last_and_at_least_two() -> None:
    cache = TileCache(8, kept_bytes=64 << 20)
    made: list[object] = []

    def make(key: object, nbytes: int = 4 << 20) -> memoryview:
        return cache.get((key,), nbytes, lambda tile: made.append(key))

    for key in range(17):
        make(key)
    make(16), make(1), make(0)
    assert made == [*range(17), 0]
    made.clear()
    make("a", 40 << 20), make("b", 40 << 20), make("a", 40 << 20), make("b", 40 << 20)
    assert made == ["a", "b"]
    with pytest.raises(ValueError, match="read-only"):
        np.frombuffer(make("b", 40 << 20), np.uint8)[:] = 1


def test_what_one_thread_makes_others_wait_for() -> None:
    cache, begun, made = TileCache(8), threading.Barrier(4), list[int]()

    def make(tile: np.ndarray) -> None:
        made.append(threading.get_ident())
        time.sleep(0.05)
        tile[...] = 7

    def ask(_: int) -> bytes:
        begun.wait()
        return bytes(cache.get(("tile",), 4, make))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == [bytes([7] * 4)] * 4
    assert len(made) == 1


def test_who_waited_for_what_failed_sees_it_fail() -> None:
    cache, begun = TileCache(8), threading.Barrier(2)

    def make(tile: np.ndarray) -> None:
        time.sleep(0.05)
        raise CorruptError("damaged")

    def ask(_: int) -> None:
        begun.wait()
        with pytest.raises(CorruptError, match="damaged"):
            cache.get(("tile",), 4, make)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(ask, range(2)))
    assert bytes(cache.get(("tile",), 1, lambda tile: tile.fill(1))) == b"\1"


def test_tiles_that_need_each_other_are_refused_in_threads_too() -> None:
    """Each thread makes what the other one needs: neither may wait for ever."""
    cache, begun = TileCache(8), threading.Barrier(2)

    def make(name: int, first: bool) -> Callable[[np.ndarray], None]:
        def needs_the_other(tile: np.ndarray) -> None:
            if first:
                begun.wait()
            cache.get((1 - name,), 1, make(1 - name, False))

        return needs_the_other

    def ask(name: int) -> None:
        with pytest.raises(LimitError, match="through more than 8"):
            cache.get((name,), 1, make(name, True))

    with ThreadPoolExecutor(2) as pool:
        for asked in [pool.submit(ask, name) for name in range(2)]:
            asked.result(timeout=20)


def _entry(unit: Unit, digests: tuple[bytes, ...]) -> UnitEntry:
    return UnitEntry(0, unit, digests, 0, 0, 0, 0)


def test_what_covers_a_unit_leaves_no_gap() -> None:
    unit = Unit("U8", (1, 10), (1, 10), (Member("a", (4,)), Member("b", (6,), 4)))
    entry = _entry(unit, (b"", b""))

    def match(start: int, count: int, same: bool = True) -> Match:
        return Match(start, entry, 0, count, same)

    assert covers(unit, [match(4, 6), match(0, 4)]) and covers(unit, [match(0, 8), match(3, 7)])
    assert not covers(unit, [match(0, 4), match(5, 5)]) and not covers(unit, [match(0, 9)])
    assert not covers(unit, [match(0, 4), match(4, 6, same=False)]) and not covers(unit, [])


def test_counterparts_have_the_dtype_the_strides_and_all_dimensions_but_the_first() -> None:
    from arzstream.archive.references import TensorAt

    def held(dtype: str, member: Member) -> dict[str, TensorAt]:
        unit = Unit(dtype, (1, 1000), (1, 1000), (member,))
        return {"t": TensorAt(_entry(unit, (b"d",)), member, b"d")}

    def found(mine: Member, theirs: Member, dtype: str = "F32") -> list[tuple[int, int, int]]:
        unit = Unit("F32", (1, 1000), (1, 1000), (mine,))
        return [(m.start, m.at, m.count) for m in matches(unit, held(dtype, theirs))]

    assert found(Member("t", (3, 4), 5), Member("t", (3, 4), 7)) == [(5, 7, 12)]
    assert found(Member("t", (3, 4)), Member("t", (9, 4))) == [(0, 0, 12)]
    assert found(Member("t", (9, 4)), Member("t", (3, 4))) == [(0, 0, 12)]
    assert found(Member("t", ()), Member("t", ())) == [(0, 0, 1)]
    assert found(Member("t", (3, 4), 0, (1, 3)), Member("t", (3, 4), 0, (1, 3))) == [(0, 0, 12)]
    for mine, theirs in (
        (Member("t", (3, 4)), Member("t", (3, 5))),
        (Member("t", (3, 4)), Member("t", (3, 4, 1))),
        (Member("t", ()), Member("t", (1,))),
        (Member("t", (3, 4), 0, (1, 3)), Member("t", (3, 4))),
        (Member("t", (3, 4), 0, (1, 3)), Member("t", (9, 4), 0, (1, 9))),
        (Member("t", (3, 4), 0, (1, 3)), Member("t", (2, 4), 0, (1, 3))),
        (Member("t", (0, 4)), Member("t", (3, 4))),
        (Member(None, (3, 4)), Member("t", (3, 4))),
    ):
        assert found(mine, theirs) == []
    assert found(Member("t", (3, 4)), Member("t", (3, 4)), "I32") == []
