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
I64 = NDArray[np.int64]
REACH = 3
"""How far a scale may move, in its own units."""


def _prices(freqs: U16, cut: context.Cut) -> I64:
    """Bits · COST_UNIT of each place of the window in each class, shape (classes, 2 + places): first what lies below or
    above and is escaped; signs that are coded count as those of their magnitude."""
    size = context.WINDOW // cut.step
    price = tables.prices(np.maximum(freqs, 1))
    inside = price[:, context.FIRST : context.FIRST + size * cut.step].reshape(len(freqs), size, cut.step).min(axis=2)
    escape = (price[:, context.ESCAPE] + 16 * tables.COST_UNIT)[:, None]
    return np.concatenate([escape, inside, escape], axis=1)


def refine(
    high: U16, cut: context.Cut, row_len: int, rows: U8, cols: U8, base: int, log_classes: int, freqs: U16
) -> tuple[U8, U8]:
    """Better ``rows`` and ``cols`` under the tables of ``freqs``. Rows are complete; either may be empty."""
    mag = (high & np.uint16((1 << cut.mag_bits) - 1)).astype(np.int32).reshape(-1, row_len)
    prices = _prices(freqs, cut)
    if len(rows):
        costs = _costs(mag, rows, cols, cut, base, log_classes, prices, axis=1)
        rows = _moved(costs, rows, int(cols.max()) if len(cols) else 0)
    if len(cols):
        costs = _costs(mag, rows, cols, cut, base, log_classes, prices, axis=0)
        cols = _moved(costs, cols, int(rows.max()) if len(rows) else 0)
    return rows, cols


def _costs(
    mag: NDArray[np.int32], rows: U8, cols: U8, cut: context.Cut, base: int, log_classes: int, prices: I64, axis: int
) -> I64:
    """Bits · COST_UNIT of each row (axis 1) or column (axis 0) with its scale moved by -REACH to REACH; zeros are left out."""
    flat = prices.reshape(-1).astype(np.int32)
    width = prices.shape[1]
    total = np.zeros((1, 1), np.int32)
    if len(rows):
        total = total + rows.astype(np.int32)[:, None]
    if len(cols):
        total = total + cols.astype(np.int32)
    zero = mag == 0
    found = []
    for move in range(-REACH, REACH + 1):
        scale = total + move
        place = mag - base - ((scale >> log_classes) << cut.top)
        at = (scale & ((1 << log_classes) - 1)) * width + np.clip(place, -1, width - 2) + 1
        found.append(np.where(zero, 0, flat[at]).sum(axis=axis, dtype=np.int64))
    return np.stack(found)


def _moved(costs: I64, scales: U8, others: int) -> U8:
    """The cheapest scale of each row or column, with what it takes in the model stream."""
    centre, k = rice_parameters(scales)
    moved = scales.astype(np.int64) + np.arange(-REACH, REACH + 1)[:, None]
    total = costs + rice_lengths(moved, centre, k) * tables.COST_UNIT
    total[(moved < 0) | (moved > 255 - others)] = np.iinfo(np.int64).max
    return np.take_along_axis(moved, total.argmin(axis=0)[None], axis=0)[0].astype(np.uint8)
