"""Tables of plain text: aligned everywhere, cut to the terminal's width on a terminal only."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence

import click

from arzstream.cli.text import cells, shorten

__all__ = ["Column", "Row", "coloured", "room", "table"]

GAP = "  "
LEAST = 16
"""Columns that a cell which may be shortened keeps, however narrow the terminal."""


@dataclasses.dataclass(frozen=True)
class Column:
    """``give`` says that its cells may be shortened."""

    title: str
    right: bool = False
    give: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """One line, and remarks that go below it."""

    cells: tuple[str, ...]
    notes: tuple[str, ...] = ()


def room() -> int | None:
    """The terminal's width in columns; None if standard output is no terminal."""
    return max(40, shutil.get_terminal_size().columns) if sys.stdout.isatty() else None


def coloured() -> bool:
    """May standard output be given colours and weights? (https://no-color.org)"""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def table(columns: Sequence[Column], rows: Sequence[Row], width: int | None) -> Iterator[str]:
    """Lines of a table, the titles first; at most ``width`` columns wide unless that is None."""
    widths = [max(map(cells, (column.title, *(row.cells[i] for row in rows)))) for i, column in enumerate(columns)]
    if width is not None:
        _squeeze(columns, widths, width)
    yield _emphasis(_line(columns, [column.title for column in columns], widths), bold=True)
    for row in rows:
        yield _line(columns, row.cells, widths)
        for note in row.notes:
            for line in _wrapped(note, width):
                yield _emphasis(line, dim=True)


def _squeeze(columns: Sequence[Column], widths: list[int], width: int) -> None:
    """Make the columns that give narrower, the widest first, until the table fits."""
    excess = sum(widths) + len(GAP) * (len(widths) - 1) - width
    giving = [i for i, column in enumerate(columns) if column.give]
    while excess > 0 and giving:
        widest = max(giving, key=lambda i: widths[i])
        if widths[widest] <= LEAST:
            return
        widths[widest] -= 1
        excess -= 1


def _line(columns: Sequence[Column], values: Sequence[str], widths: Sequence[int]) -> str:
    parts = []
    for column, value, width in zip(columns, values, widths, strict=True):
        shown = shorten(value, width) if column.give else value
        padding = " " * (width - cells(shown))
        parts.append(padding + shown if column.right else shown + padding)
    return GAP.join(parts).rstrip()


def _wrapped(note: str, width: int | None) -> list[str]:
    if width is None:
        return [f"    {note}"]
    return textwrap.wrap(note, width, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False) or [""]


def _emphasis(line: str, **how: bool) -> str:
    return click.style(line, **how) if coloured() else line
