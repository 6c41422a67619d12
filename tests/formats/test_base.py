from __future__ import annotations

import pytest

from arzstream.formats.base import Layout, Malformed, Notes, Piece, Storage, View, element_count, pieces, problem_of


def test_pieces_alternate_between_literals_and_storages_and_cover_the_file() -> None:
    empty, one, two = Storage("F32", 8, 0), Storage("F32", 8, 8), Storage("U8", 20, 3)
    layout = Layout("x", (empty, one, two), 25, True)
    assert list(pieces(layout, 25)) == [
        Piece(0, 8, None),
        Piece(8, 0, empty),
        Piece(8, 8, one),
        Piece(16, 4, None),
        Piece(20, 3, two),
        Piece(23, 2, None),
    ]


def test_pieces_of_a_storage_that_the_file_does_not_hold_are_literal() -> None:
    assert list(pieces(Layout("x", (Storage("U8", 4, 10),)), 9)) == [Piece(0, 9, None)]
    assert list(pieces(Layout("opaque"), 0)) == []


@pytest.mark.parametrize(
    ("storages", "problem"),
    [
        ((Storage("F32", 0, 8), Storage("F32", 4, 8)), "overlaps"),
        ((Storage("F32", 0, 6),), "whole number"),
        ((Storage("F128", 0, 8),), "unknown dtype"),
        ((Storage("F32", 0, 8, (View("a", (3,)),)),), "outside"),
        ((Storage("F32", 0, 8, (View("a", (1,), 2),)),), "outside"),
        ((Storage("F32", 0, 8, (View("a", (2, 2), 0, (1, 1)),)),), "outside"),
        ((Storage("F32", 0, 8, (View("a", (2,), 0, (-1,)),)),), "negative"),
        ((Storage("F32", 0, 8, (View("a", (1 << 40, 2), 0, (0, 1)),)),), "too often"),
        ((Storage("F32", 0, 8, (View("a", (2,)), View("a", (1,)))),), "twice"),
        ((Storage("F32", 0, 8, (View("\ud800", (2,)),)),), "Unicode"),
        ((Storage("F32", 0, 8, (View("a", (1,) * 33),)),), "dimensions"),
        ((Storage("F32", 0, 8, (View("", (2,)),)),), "no name"),
    ],
)
def test_a_layout_that_breaks_its_promises_is_noticed(storages: tuple[Storage, ...], problem: str) -> None:
    assert problem in problem_of(Layout("x", storages, 100, True))


def test_element_counts_do_not_overflow() -> None:
    assert element_count(()) == 1
    assert element_count((0, 1 << 62)) == 0
    with pytest.raises(Malformed):
        element_count((1 << 62, 4))


def test_notes_stay_short() -> None:
    notes = Notes()
    for i in range(1000):
        notes.add(f"remark {i}")
    assert str(notes) == "remark 0; remark 1; remark 2; and 997 more like these"
