"""Numbers, names and tables as they are drawn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arzstream.cli.table import Column, Row, table
from arzstream.cli.text import cells, counted, duration, percent, safe, shape, shorten, size


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (1005, "1.00 kB"), (9_994, "9.99 kB"), (9_996, "10.0 kB"),
        (99_960, "100 kB"), (999_499, "999 kB"), (999_500, "1.00 MB"), (90_900_000, "90.9 MB"), (1 << 40, "1.10 TB"),
        (16 << 60, "18.4 EB"),
    ],
)  # fmt: skip
def test_sizes_have_three_digits(nbytes: int, text: str) -> None:
    assert size(nbytes) == text


def test_numbers() -> None:
    assert [percent(r) for r in (None, 0, 0.0001, 0.665, 1, 12.5)] == [
        "",
        "0.0 %",
        "<0.1 %",
        "66.5 %",
        "100.0 %",
        "1250.0 %",
    ]
    assert [duration(s) for s in (0.04, 59.9, 61, 3600, 3785)] == [
        "0.0 s",
        "59.9 s",
        "1 min 1 s",
        "1 h 0 min",
        "1 h 3 min",
    ]
    assert [counted(n, "file") for n in (0, 1, 1206)] == ["0 files", "1 file", "1,206 files"]
    assert [shape(s) for s in ((), (7,), (2, 3, 4))] == ["scalar", "7", "2×3×4"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("model.größe.重み", "model.größe.重み"),
        ("a\tb\nc\r", r"a\tb\nc\r"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\udcff\udcfe", r"\xff\xfe"),
        ("\u2028", r"\u2028"),
        ("\U000e0041", r"\U000e0041"),
        ("  two ", r"\x20\x20two\x20"),
        (" ", r"\x20"),
        ("", ""),
    ],
)
def test_names_cannot_play_tricks(text: str, shown: str) -> None:
    assert safe(text) == shown


@given(st.text(st.characters(codec=None, exclude_categories=())))
def test_safe_text_is_printable_and_stays(text: str) -> None:
    shown = safe(text)
    assert all(char.isprintable() for char in shown)
    assert safe(shown) == shown
    assert shown.encode("utf-8") or not text


@given(st.text("ab1.重/…:é", max_size=60), st.integers(0, 70))
def test_shortened_text_fits(text: str, room: int) -> None:
    shown = shorten(text, room)
    assert cells(shown) <= room
    if cells(text) <= room:
        assert shown == text


def test_shortened_names_can_still_be_told_apart() -> None:
    names = [f"language_model.model.layers.{i}.block_sparse_moe.experts.7.down_projection.weight" for i in range(100)]
    for room in (78, 60, 48, 40, 34):
        assert len({shorten(name, room) for name in names}) == 100, room
    numbers = [f"optimizer.state.{i}.exp_avg_sq" for i in range(123_000, 124_000)]
    assert len({shorten(name, 24) for name in numbers}) == 1000
    assert shorten(names[77], 60) == "lang…del.model.layers.77.bloc…moe.experts.7.down…tion.weight"


ROWS = [
    Row(("model.layers.10.mlp.experts.3.up_projection.weight", "BF16", "66.5 %")),
    Row(("größe.重み", "F8_E4M3", "100.0 %"), ("dup of something with a name that is very long and wraps",)),
]


@pytest.mark.parametrize("width", [40, 50, 80, 120, None])
def test_tables_are_aligned_and_fit(width: int | None) -> None:
    columns = (Column("NAME", give=True), Column("DTYPE"), Column("RATIO", right=True))
    lines = list(table(columns, ROWS, width))
    rows = [line for line in lines if not line.startswith("    ")]
    assert len(rows) == 3
    assert len({cells(line) for line in rows}) == 1  # the last column is right-aligned
    if width is None:
        assert ROWS[0].cells[0] in lines[1] and lines[3] == f"    {ROWS[1].notes[0]}"
    else:
        assert all(cells(line) <= width for line in lines)
