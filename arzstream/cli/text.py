"""Numbers and names as people read them."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["cells", "counted", "duration", "percent", "safe", "shape", "shorten", "size"]

_PLAIN = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
LEAST_PART = 3
"""Columns that a part of a shortened name keeps while others are longer."""


def size(nbytes: float) -> str:
    """Bytes in powers of 1000, three digits: ``90.9 MB``."""
    if nbytes < 1000:
        return f"{nbytes:.0f} B"
    value, units = float(nbytes), iter(("kB", "MB", "GB", "TB", "PB", "EB", "ZB"))
    unit = "B"
    while value >= 999.5:
        value /= 1000
        unit = next(units)
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


def percent(ratio: float | None) -> str:
    """``66.5 %``; nothing for None. What is not nothing is never shown as 0."""
    if ratio is None:
        return ""
    return f"{ratio:.1%}".replace("%", " %") if ratio >= 0.0005 or ratio == 0 else "<0.1 %"


def duration(seconds: float) -> str:
    """``0.8 s``, ``2 min 5 s``, ``1 h 3 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def counted(number: int, noun: str) -> str:
    """``1 tensor``, ``1,206 tensors``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shape(dimensions: tuple[int, ...] | list[int]) -> str:
    """``4096×1024``; a tensor without dimensions is a ``scalar``."""
    return "×".join(map(str, dimensions)) or "scalar"


def safe(text: str) -> str:
    """``text`` on one line; what could play tricks on a terminal becomes an escape, not UTF-8 becomes ``\\xff``."""
    if text.isascii() and text.isprintable() and text == text.strip():
        return text
    shown = "".join(char if char.isprintable() else _escape(char) for char in text)
    inner = shown.strip(" ")
    if shown == inner:
        return shown
    before = len(shown) - len(shown.lstrip(" "))
    return "\\x20" * before + inner + "\\x20" * (len(shown) - len(inner) - before)


def _escape(char: str) -> str:
    code = ord(char)
    if char in _PLAIN:
        return _PLAIN[char]
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def cells(text: str) -> int:
    """How many columns of a terminal ``text`` takes."""
    if text.isascii():
        return len(text)
    return sum(map(_cells_of, text))


def _cells_of(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def shorten(text: str, room: int) -> str:
    """``text`` in at most ``room`` columns.

    A name of several parts loses the middles of its longest parts first, its numbers last: what tells
    ``model.layers.7.mlp.up_proj.weight`` from its neighbours should stay. ``…`` stands for what is gone.
    """
    parts = re.split(r"([./:])", text)
    widths = [cells(part) for part in parts]
    giving = [i for i, part in enumerate(parts) if not part.isdigit()]
    while sum(widths) > room:
        longest = max(giving, key=lambda i: widths[i], default=None)
        if longest is None or widths[longest] <= LEAST_PART:
            return _without_middle(text, room)
        widths[longest] -= 1
    return "".join(map(_without_middle, parts, widths))


def _without_middle(text: str, room: int) -> str:
    if cells(text) <= room:
        return text
    if room < 3:
        return "…"[:room]
    tail = _fitting(text[::-1], (room - 1) // 2)[::-1]
    return f"{_fitting(text, room - 1 - cells(tail))}…{tail}"


def _fitting(text: str, room: int) -> str:
    """The longest beginning of ``text`` that takes at most ``room`` columns."""
    used = 0
    for position, char in enumerate(text):
        used += _cells_of(char)
        if used > room:
            return text[:position]
    return text
