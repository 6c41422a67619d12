"""Digests of members, whatever their strides and however the unit is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arzstream.archive import pipeline
from arzstream.archive.pipeline import MemberDigests, gathered
from arzstream.archive.plan import CHUNK_BYTES, Extent, Planned, choose_grid
from arzstream.container.records import Member, Unit
from arzstream.kernels.digests import blake3


def strided(data: bytes, member: Member, itemsize: int) -> bytes:
    base = np.frombuffer(data, f"V{itemsize}")[member.start :]
    steps = tuple(s * itemsize for s in member.strides or ())
    return np.lib.stride_tricks.as_strided(base, member.shape, steps).tobytes()


@pytest.mark.parametrize("most", [1, 4, 50, 1000, 16 << 20])
@given(shape=st.lists(st.integers(0, 6), max_size=4), strides=st.lists(st.integers(0, 9), min_size=4, max_size=4))
def test_strided_elements_are_gathered_in_order(most: int, shape: list[int], strides: list[int]) -> None:
    data = np.random.default_rng(0).bytes(4 * 300)
    member = Member("m", tuple(shape), 3, tuple(strides[: len(shape)]))
    before, pipeline.GATHER_BYTES = pipeline.GATHER_BYTES, most
    try:
        parts = list(gathered(memoryview(data), member, 4))
    finally:
        pipeline.GATHER_BYTES = before
    assert b"".join(parts) == (strided(data, member, 4) if member.elements else b"")
    assert all(len(part) <= max(most, 4) for part in parts)


def test_a_long_vector_with_a_step_is_gathered_in_few_pieces() -> None:
    data = bytes(64 << 20)
    assert len(list(gathered(memoryview(data), Member("m", (16 << 20,), 0, (2,)), 2))) <= 4


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    grid=st.tuples(st.integers(1, 10), st.integers(1, 10)),
    data=st.data(),
)
def test_digests_do_not_depend_on_the_grid(rows: int, columns: int, grid: tuple[int, int], data: st.DataObject) -> None:
    elements = rows * columns
    content = np.random.default_rng(1).bytes(elements * 2)
    start = data.draw(st.integers(0, elements))
    members = (
        Member("all", (rows, columns)),
        Member("part", (elements - start,), start),
        Member("transposed", (columns, rows), 0, (1, columns)),
        Member("nothing", (0,), start),
    )
    unit = Unit("BF16", (rows, columns), grid, members)
    planned = Planned(unit, (Extent(0, 10, elements * 2),))
    file = b"0123456789" + content
    digests = MemberDigests(unit)
    for chunk in range(unit.chunk_count):
        part = planned.read_chunk(lambda offset, length: file[offset : offset + length], chunk)
        tile = unit.tile(chunk)
        whole = np.frombuffer(content, "<u2").reshape(rows, columns)
        assert part == whole[tile.row0 : tile.row1, tile.col0 : tile.col1].tobytes()
        digests.update(part)
    assert digests.result() == (
        blake3(content),
        blake3(content[start * 2 :]),
        blake3(np.frombuffer(content, "<u2").reshape(rows, columns).T.tobytes()),
        blake3(b""),
    )


@given(
    st.integers(0, 1 << 26),
    st.integers(1, 1 << 26),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.sampled_from([1, 2, 3, 4, 8, 64]),
)
def test_chunks_are_neither_too_large_nor_too_many(rows: int, columns: int, itemsize: int, parallel: int) -> None:
    high, wide = choose_grid((rows, columns), itemsize, parallel)
    assert high >= 1 and 1 <= wide <= columns and high * wide * itemsize <= CHUNK_BYTES
    if rows and parallel == 1:
        count = -(-rows // high) * -(-columns // wide)
        assert count <= 2 * (rows * columns // (1 << 20) + 1) + (rows if columns > 1 << 19 else 0)
    if parallel > 1 and columns % parallel == 0 and columns // parallel >= 128:
        assert columns // parallel % wide == 0 or wide >= 1 << 19, "a rank's columns are chunks of their own"


@pytest.mark.parametrize(
    ("shape", "parallel", "aligned"),
    [
        ((128256, 4096), 4, True),
        ((151936, 3584), 8, True),
        ((152064, 8192), 4, True),
        ((4096, 14336), 8, True),
        ((8 * 18979, 3584), 8, False),  # a prime number
    ],
)
def test_the_rows_of_a_rank_are_chunks_of_their_own_where_a_divisor_fits(
    shape: tuple[int, int], parallel: int, aligned: bool
) -> None:
    high, wide = choose_grid(shape, 2, parallel)
    share = shape[0] // parallel
    assert (share % high == 0) == aligned
    assert high * wide >= 1 << 18 or high == share
