"""Names of parts, and whether parts make up a tensor."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arzstream.codec.parts import Box, part_name, split_name, tiles_whole, whole_name

SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


def grid(whole: tuple[int, ...], cuts: list[list[int]]) -> list[Box]:
    spans = [
        [(low, high - low) for low, high in itertools.pairwise(sorted({0, length, *(c % length for c in cut)}))]
        for length, cut in zip(whole, cuts, strict=True)
    ]
    return [(tuple(o for o, _ in box), tuple(n for _, n in box)) for box in itertools.product(*spans)]


def covered_once(whole: tuple[int, ...], boxes: list[Box]) -> bool:
    times = np.zeros(whole, int)
    for offset, shape in boxes:
        times[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))] += 1
    return bool((times == 1).all())


@given(st.data())
def test_boxes_cover_a_tensor_once_or_they_are_not_said_to(data: st.DataObject) -> None:
    whole = data.draw(SHAPES)
    cuts = [data.draw(st.lists(st.integers(0, 9), max_size=2)) for _ in whole]
    boxes = data.draw(st.permutations(grid(whole, cuts)))
    assert tiles_whole(whole, boxes)
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, max(0, len(boxes) - 1)))
        offset = tuple(data.draw(st.integers(0, n - 1)) for n in whole)
        shape = tuple(data.draw(st.integers(1, n - o)) for n, o in zip(whole, offset, strict=True))
        boxes[at : at + data.draw(st.integers(0, 1))] = [(offset, shape)]
    assert tiles_whole(whole, boxes) == covered_once(whole, boxes)


def test_a_tiling_that_is_no_grid_is_one() -> None:
    pinwheel = [((0, 0), (1, 2)), ((0, 2), (2, 1)), ((2, 1), (1, 2)), ((1, 0), (2, 1)), ((1, 1), (1, 1))]
    assert tiles_whole((3, 3), pinwheel)
    assert not tiles_whole((3, 3), [*pinwheel[:-1], ((1, 1), (2, 1))])


def test_nothing_and_empty_parts_make_up_nothing() -> None:
    assert not tiles_whole((3,), [])
    assert not tiles_whole((3,), [((3,), (0,)), ((0,), (0,))])
    assert not tiles_whole((0, 3), [((0, 0), (0, 3))])


def test_empty_parts_neither_help_nor_hinder() -> None:
    four = [((0, 0), (2, 3)), ((2, 0), (2, 3)), ((4, 0), (1, 3)), ((5, 0), (0, 3))]  # torch's cut of 5 rows for 4 ranks
    assert tiles_whole((5, 3), four)
    assert tiles_whole((5, 3), [((1, 1), (3, 0)), ((0, 0), (0, 0)), *four])
    assert not tiles_whole((5, 3), four[1:])
    assert not tiles_whole((5, 3), [*four, ((2, 2), (1, 1))])


def test_many_dimensions_that_are_cut_are_given_up_on_quickly() -> None:
    whole = (2,) * 32
    assert not tiles_whole(whole, [((0,) * 32, (1,) * 32), ((1,) * 32, (1,) * 32)])


@pytest.mark.parametrize("name", ["w", "w[0:1]", "", "層"])
def test_a_part_is_called_as_the_whole_and_where_it_lies(name: str) -> None:
    called = part_name(name, (3, 0), (2, 64))
    assert called == f"{name}[3:5,0:64]"
    assert whole_name(called, (3, 0), (2, 64)) == name
    assert whole_name(called, (3, 0), (2, 63)) == called


def test_what_looks_like_a_place_is_split_off() -> None:
    assert split_name("m.w[3:5,0:64]") == ("m.w", "[3:5,0:64]")
    for name in ("w", "[0:1]", "w[]", "w[a]", "w[0:1].x", "]"):
        assert split_name(name) == (name, "")
