"""How large the changes of a chunk are: scales of its rows and columns, which the payload tells.

Optimisers move the elements of a row, and of a column, about as far; an element's expected change is the scale of its
row times that of its column. Both are mean changes of the numbers themselves, not of their ordered integers: those of
an element near zero are far apart. All in integers, so that every machine finds the same ones.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from arzstream.codec.scales import COLUMN_SAMPLE, log2_eighths, rice_parameters
from arzstream.kernels import context, delta

__all__ = ["ChangeScales", "measure_changes"]

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
I64 = NDArray[np.int64]

_FIELD = context.Cut(9, 2, 0, 2, context.SIGN_NONE)
"""Of what ``delta_fields`` gives: the exponent of a binary32 and two bits of mantissa."""
_BIAS, _COUNTED = 127, 24
"""Of binary32; and log2 of what a change counts that has the highest exponent."""
DAMP = 10
"""Scales of rows and columns are at most so many octaves below their mean, and not below what half a change of the mean
size would make: what hardly changed has no scale."""
MAX_SCALE = 127
SPREAD_BITS = 368
"""What divides n^2 times the variance of n logarithms in 1/8 octave, to give n^2 times the bits an element saves for
being told its scale, where it changed: half of log2(e) / 2 times the variance of the natural logarithm of a Laplace
distribution's scale. (Half of it: measured where one element in sixty changes, that is what they turn out to save.)"""
CHANCE = 133
"""The variance of a logarithm, in 1/64 octave^2, of a mean of k numbers from a Laplace distribution is so much over k:
(8 / ln 2)^2."""
_NONE = np.empty(0, np.uint8)


@dataclasses.dataclass(frozen=True)
class ChangeScales:
    """Logarithms of the scales of rows and columns in quarters of an octave from 0 on, empty where they are not used.
    Their sum plus ``offset``, less four times the exponent of an element, is that of its expected change in units of
    its last place."""

    rows: U8
    cols: U8
    offset: int


@dataclasses.dataclass(frozen=True)
class _Side:
    """Logarithms of the mean changes of rows or columns, in eighths of an octave, that of the mean of these, and the
    bits that telling them saves: some of their variance is chance, all the more if few elements changed, so they are
    drawn to their mean as much as that makes of it."""

    logs: I64
    mean: int
    saves: int

    @classmethod
    def of(cls, sums: NDArray[np.uint64], changed: int) -> _Side:
        n, changed = len(sums), max(1, changed)
        mean = int(sums.sum(dtype=np.float64)) // n
        least = max(1, mean >> DAMP, min(mean, mean * n // (2 * changed)))
        logs = log2_eighths(np.maximum(sums, np.uint64(least)))
        total = int(logs.sum())
        spread = n * int(logs @ logs) - total * total
        known = max(0, spread - CHANCE * n**3 // changed)
        middle = total // n
        drawn = middle + (logs - middle) * (known >> 8) // max(1, spread >> 8)
        saves = known * known // max(1, spread) * changed // (SPREAD_BITS * n * n)
        return cls(drawn, int(log2_eighths(np.array([mean], np.uint64))[0]), saves)

    @property
    def lowest(self) -> int:
        return int(self.logs.min())

    def quarters(self) -> U8:
        scales: U8 = np.minimum(self.logs - self.lowest + 1 >> 1, MAX_SCALE).astype(np.uint8)
        return scales

    def pays(self, scales: U8) -> bool:
        """Do they save more bits than they take?"""
        return self.saves > rice_parameters(scales)[2]


def measure_changes(data: U8, parent: U8, kind: delta.Elements, row_len: int, columns: bool) -> ChangeScales:
    """The scales that pay; of columns only with ``columns``."""
    fields = delta.delta_fields(data, parent, kind)
    # One unit in the last place of exponent field 0, as an exponent of binary32.
    bias = (1 << kind.exponent_bits - 1) - 1 if kind.exponent_bits else 1
    unit = _BIAS - bias - kind.mantissa_bits
    highest, changed = int(fields.max()) >> _FIELD.top, int(np.count_nonzero(fields))
    sums = context.row_sums(fields, _FIELD, row_len, highest)
    tail = len(fields) % row_len
    if tail:
        sums[-1] = int(sums[-1]) * row_len // tail
    rows = _Side.of(sums, changed)
    # The change, in eighths, that a sum of 1 over a row stands for.
    origin = 8 * (highest - _COUNTED - unit) - int(log2_eighths(np.array([row_len], np.uint64))[0])
    row_scales = rows.quarters()
    use_rows = len(row_scales) > 1 and rows.pays(row_scales)
    row_part = rows.lowest if use_rows else rows.mean
    if not columns:
        return ChangeScales(row_scales if use_rows else _NONE, _NONE, origin + row_part >> 1)
    cols = _columns(fields, row_len, highest, rows.logs, changed)
    col_scales = cols.quarters()
    use_cols = cols.pays(col_scales)
    col_part = cols.lowest - cols.mean if use_cols else 0
    return ChangeScales(
        row_scales if use_rows else _NONE, col_scales if use_cols else _NONE, origin + row_part + col_part >> 1
    )


def _columns(fields: U16, row_len: int, highest: int, row_logs: I64, changed: int) -> _Side:
    """Of what rows leave, by some of them."""
    adjust = np.maximum((row_logs - row_logs.max() << _FIELD.top) >> 3, -(1 << 14)).astype(np.int16)
    whole = len(fields) // row_len
    step = max(1, whole // COLUMN_SAMPLE)
    some = fields[: whole * row_len]
    if step > 1:
        some = np.ascontiguousarray(some.reshape(whole, row_len)[::step]).reshape(-1)
    sums = context.col_sums(some, _FIELD, row_len, highest, np.ascontiguousarray(adjust[:whole][::step]))
    return _Side.of(sums, changed // step)
