"""Scales chosen by what they cost: for each row, then each column, the one with the fewest bits, its own included."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from arzstream.codec import tables
from arzstream.codec.scales import rice_lengths, rice_parameters
from arzstream.kernels import context

__all__ = ["refine"]

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
REACH = context.MOVES // 2 - 1
"""How far a scale may move, in its own units."""
_UNIT = tables.COST_UNIT // 64
"""Costs here are in 1/64 bit, so that those of a column of 2^20 elements fit 32 bits."""


def _prices(freqs: U16, cut: context.Cut) -> I64:
    """Cost of each place of the window in each class, shape (classes, 2 + places), and around them that of an escape.

    A sign that is coded with the magnitude counts as the likelier one.
    """
    size = context.WINDOW // cut.step
    price = tables.prices(np.maximum(freqs, 1))
    inside = price[:, context.FIRST : context.FIRST + size * cut.step].reshape(len(freqs), size, cut.step).min(axis=2)
    escape = (price[:, context.ESCAPE] + 16 * tables.COST_UNIT)[:, None]
    return np.concatenate([escape, inside, escape], axis=1) // _UNIT


def _moved_prices(prices: I64, cut: context.Cut) -> tuple[U32, int]:
    """(costs of a place whose scale is moved by -REACH to REACH, shape (classes, places, MOVES); the place of entry 0).

    The last of the moves is none, and costs nothing.
    """
    classes, size = prices.shape
    first = -((REACH + 1) << cut.top)
    places = np.arange(first, size - first)
    lut = np.zeros((classes, len(places), context.MOVES), np.uint32)
    for k in range(classes):
        for m in range(2 * REACH + 1):
            octaves, moved = divmod(k + m - REACH, classes)
            lut[k, :, m] = prices[moved, np.clip(places - (octaves << cut.top) + 1, 0, size - 1)]
    return lut, first


def refine(
    high: U16, cut: context.Cut, row_len: int, rows: U8, cols: U8, base: int, log_classes: int, freqs: U16
) -> tuple[U8, U8]:
    """Better ``rows`` and ``cols`` under the tables of ``freqs``; either may be empty, and then stays so."""
    lut, first = _moved_prices(_prices(freqs, cut), cut)

    def costs(of_rows: bool) -> U64:
        return context.move_costs(high, cut, row_len, rows, cols, base + first, log_classes, lut, of_rows)

    if len(rows):
        rows = _cheapest(costs(True), rows, int(cols.max()) if len(cols) else 0)
    if len(cols):
        cols = _cheapest(costs(False), cols, int(rows.max()) if len(rows) else 0)
    return rows, cols


def _cheapest(costs: U64, scales: U8, others: int) -> U8:
    """The best scale of each row or column, counting what it takes in the model stream."""
    centre, k, _ = rice_parameters(scales)
    moved = scales.astype(np.int64)[:, None] + np.arange(-REACH, REACH + 1)
    own = rice_lengths(np.clip(moved, 0, 255), centre, k) * (tables.COST_UNIT // _UNIT)
    total = costs[:, : 2 * REACH + 1].astype(np.int64) + own
    total[(moved < 0) | (moved > 255 - others)] = np.iinfo(np.int64).max
    return np.take_along_axis(moved, total.argmin(axis=1)[:, None], axis=1)[:, 0].astype(np.uint8)
