"""The kernels of differences to references as the codecs see them: arguments are checked here. See ``api.py``."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from arzstream.errors import CorruptError
from arzstream.kernels.api import check, kernels

__all__ = [
    "SCALES",
    "STEPS",
    "ZERO",
    "Cells",
    "Elements",
    "delta_count",
    "delta_decode",
    "delta_fields",
    "delta_raw",
    "delta_steps",
    "symbol_limit",
]

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]

SCALES, STEPS = 64, 16
"""Cells of scales for each exponent, and of steps for each group."""
ZERO = 1
"""The symbol of what did not change."""


@dataclasses.dataclass(frozen=True)
class Elements:
    """What elements are: bytes, and bits of exponent and mantissa below a sign; of integers none."""

    itemsize: int
    exponent_bits: int = 0
    mantissa_bits: int = 0

    @property
    def arguments(self) -> tuple[int, int, int]:
        return self.itemsize, self.exponent_bits, self.mantissa_bits


@dataclasses.dataclass(frozen=True)
class Cells:
    """How elements are sorted into cells: rows of ``row_len``, logarithms of the scales of rows and columns (empty
    where there are none), what is added to their sum, the first exponent of its own and how many there are."""

    row_len: int
    rows: U8
    cols: U8
    base: int
    first: int
    exponents: int

    @property
    def arguments(self) -> tuple[int, U8, U8, int, int, int]:
        return self.row_len, self.rows, self.cols, self.base, self.first, self.exponents


def symbol_limit(itemsize: int, top: int) -> int:
    """Symbols there are, for ``top`` bits below the leading one."""
    return (8 * itemsize - top + 1) << (top + 1)


def delta_fields(data: U8, parent: U8, kind: Elements) -> U16:
    """Sizes of changes as floats with two bits of mantissa: absolute ones, in units that only the type knows."""
    fields = np.empty(len(data) // kind.itemsize, np.uint16)
    kernels().delta_fields(data, parent, *kind.arguments, fields)
    return fields


def delta_count(data: U8, parent: U8, kind: Elements, top: int, cells: Cells) -> tuple[U8, U16, U32]:
    """(symbols, cells of scales, counts of shape (cells, 256))."""
    count = len(data) // kind.itemsize
    symbols, found = np.empty(count, np.uint8), np.empty(count, np.uint16)
    counts = np.empty(256 * SCALES * cells.exponents, np.uint32)
    kernels().delta_count(data, parent, *kind.arguments, top, *cells.arguments, symbols, found, counts)
    return symbols, found, counts.reshape(-1, 256)


def delta_steps(
    parent: U8, grandparent: U8, kind: Elements, step_base: int, groups: U8, n_groups: int, symbols: U8, cells: U16
) -> U32:
    """Cells of scales become those of ``groups`` and the step before, in place; counts of shape (cells, 256)."""
    counts = np.empty(256 * STEPS * n_groups, np.uint32)
    kernels().delta_steps(parent, grandparent, *kind.arguments, step_base, groups, symbols, cells, counts)
    return counts.reshape(-1, 256)


def delta_raw(
    data: U8, parent: U8, symbols: U8, kind: Elements, top: int, log_segment: int, raw_bits: int
) -> tuple[U8, U32]:
    """(raw streams of all segments, bytes of each). ``raw_bits``: how many there are."""
    raw_bytes = np.empty(-(-len(symbols) >> log_segment), np.uint32)
    out = np.empty(raw_bits // 8 + len(raw_bytes), np.uint8)
    written = kernels().delta_raw(data, parent, symbols, *kind.arguments, top, log_segment, out, raw_bytes)
    return out[:written], raw_bytes


def delta_decode(
    payload: U8,
    parent: U8,
    grandparent: U8,
    kind: Elements,
    top: int,
    log_segment: int,
    cells: Cells,
    step_base: int,
    groups: U8,
    classes: U8,
    freqs: U16,
    places: tuple[int, int],
    symbol_bytes: U32,
    raw_bytes: U32,
    out: U8,
) -> None:
    """Decode a chunk of codec ``delta_ctx`` into ``out``.

    ``groups``: of each cell of scales. ``classes``: of each group and step; empty without a grandparent, when groups
    are classes. ``freqs``: shape (classes, 256). ``places`` are the offsets of the symbol and raw streams. Raises
    CorruptError.
    """
    steps = len(classes) > 0
    if int(groups.max()) >= (len(classes) // STEPS if steps else len(freqs)) or (
        steps and int(classes.max()) >= len(freqs)
    ):
        raise CorruptError("a delta_ctx chunk has a class that does not exist; the chunk is damaged")
    if freqs[:, 0].any() or freqs[:, symbol_limit(kind.itemsize, top) :].any():
        raise CorruptError("a delta_ctx chunk has a symbol that does not exist; the chunk is damaged")
    settings = (*kind.arguments, top, log_segment, *cells.arguments, step_base)
    model = (groups, classes, np.ascontiguousarray(freqs).reshape(-1))
    streams = (*places, symbol_bytes, raw_bytes)
    check(kernels().delta_decode(payload, parent, grandparent, *settings, *model, *streams, out))
