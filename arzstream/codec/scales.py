"""Scales of rows and columns: what makes the floats of a matrix predictable beyond their common distribution.

A weight's magnitude is distributed around the scale of its row times the scale of its column. Both are estimated as
mean magnitudes, in integers throughout, so that every machine finds the same ones.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from numpy.typing import NDArray

from arzstream.kernels import context

__all__ = ["COLUMN_SAMPLE", "LOG_UNIT", "Scales", "log2_eighths", "measure_scales", "rice_lengths", "rice_parameters"]

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
I64 = NDArray[np.int64]

LOG_UNIT = 3
"""Scales are measured in units of 1/8 octave: log2 of the units in an octave."""
_STEPS = np.array([2**32 * 2 ** ((2 * k - 1) / 16) / 2 for k in range(1, 9)]).astype(np.uint64)
"""Mantissas, of 32 bits, from which on log2 is rounded up by k eighths; far enough from integers for any library."""
MAX_RICE = 5
"""Largest Rice parameter that is tried."""
COLUMN_SAMPLE = 512
"""Rows that the scales of columns are measured on, at least, where there are more."""


@dataclasses.dataclass(frozen=True)
class Scales:
    """Logarithms of scales, in 1/8 octave above the smallest that is not clipped."""

    rows: I64
    cols: I64
    _known: dict[tuple[bool, bool, int], tuple[U8, U8]] = dataclasses.field(default_factory=dict)

    def worth(self, of_rows: bool, count: int) -> int:
        """About how many bits each scale of the rows, or columns, of ``count`` elements saves: for a Gaussian, log2(e)
        times the variance of their natural logarithm an element."""
        scales = self.rows if of_rows else self.cols
        n, total = len(scales), int(scales.sum())
        spread = n * int(scales @ scales) - total * total  # n^2 times the variance, in 1/64 octave^2
        return spread * count // (92 * n**3)  # 64 / ln 2

    def quantised(self, use_rows: bool, use_cols: bool, log_classes: int) -> tuple[U8, U8]:
        """Scales in 1 / 2^log_classes octaves, as bytes whose largest sum is at most 255; empty where not used."""
        key = (use_rows, use_cols, log_classes)
        if key not in self._known:
            self._known[key] = self._quantised(*key)
        return self._known[key]

    def _quantised(self, use_rows: bool, use_cols: bool, log_classes: int) -> tuple[U8, U8]:
        shift = LOG_UNIT - log_classes
        cols = _rounded(self.cols - self.cols.min(), shift) if use_cols else np.empty(0, np.int64)
        most = min(200, int(cols.max())) if use_cols else 0
        rows = _rounded(self.rows - self.rows.max(), shift) if use_rows else np.empty(0, np.int64)
        if use_rows:
            rows = np.maximum(rows, -(255 - most))
            rows -= rows.min()
        return rows.astype(np.uint8), np.minimum(cols, most).astype(np.uint8)


def _rounded(x: I64, shift: int) -> I64:
    return (x + (1 << shift >> 1)) >> shift


def log2_eighths(sums: NDArray[np.uint64]) -> I64:
    """round(8 · log2(x)), of 0 as of 1. Exact: x is below 2^53, and only its leading 32 bits are compared."""
    mantissa, exponent = np.frexp(np.maximum(sums, 1).astype(np.float64))
    leading = (mantissa * 2.0**32).astype(np.uint64)
    above = np.searchsorted(_STEPS, leading, side="right")
    return (exponent.astype(np.int64) - 1) * 8 + above


def _highest(sample: U16, cut: context.Cut) -> int:
    """The largest exponent in ``sample`` that is finite, or 0."""
    infinite = ((1 << cut.exponent_bits) - 1) << cut.top
    most = int(sample.max())
    if most >= infinite:
        most = int(np.where(sample < infinite, sample, np.uint16(0)).max())
    return most >> cut.top


def measure_scales(high: U16, cut: context.Cut, row_len: int, sample: U16) -> Scales:
    """Scales of the rows of ``row_len`` elements, then of the columns of what they leave.

    ``sample``: some of the magnitudes, from which the range of the sums is taken.
    """
    highest = _highest(sample, cut)
    sums = context.row_sums(high, cut, row_len, highest)
    tail = len(high) % row_len
    if tail:
        sums[-1] = int(sums[-1]) * row_len // tail
    rows = log2_eighths(sums)
    units = ((rows - rows.max()) << cut.top) >> LOG_UNIT
    adjust = np.maximum(units, -(1 << 14)).astype(np.int16)
    step = len(high) // row_len // COLUMN_SAMPLE
    if step > 1:
        whole = len(high) // row_len
        high = np.ascontiguousarray(high[: whole * row_len].reshape(whole, row_len)[::step]).reshape(-1)
        adjust = np.ascontiguousarray(adjust[:whole][::step])
    cols = log2_eighths(context.col_sums(high, cut, row_len, highest, adjust))
    return Scales(rows, cols)


@functools.cache
def _rice_table() -> I64:
    """Bits of the difference d from the centre with parameter k: entry (k, 255 + d)."""
    d = np.arange(-255, 256)
    u = np.where(d > 0, 2 * d - 1, -2 * d)
    return np.stack([np.where(u >> k < 12, (u >> k) + 1 + k, 21) for k in range(MAX_RICE + 1)])


def rice_lengths(scales: NDArray[np.integer], centre: int, k: int) -> I64:
    """Bits of each of ``scales``, from 0 to 255, in the model stream."""
    lengths: I64 = _rice_table()[k]
    return lengths[scales.astype(np.int64) + (255 - centre)]


def rice_parameters(scales: U8) -> tuple[int, int, int]:
    """(centre, parameter k, bits with both) that make ``scales`` short in the model stream."""
    return _rice_parameters(scales.tobytes())


@functools.lru_cache(maxsize=64)
def _rice_parameters(scales: bytes) -> tuple[int, int, int]:
    counts = np.bincount(np.frombuffer(scales, np.uint8), minlength=256)
    centre = int(np.searchsorted(np.cumsum(counts), len(scales) // 2, side="right"))
    bits = _rice_table()[:, 255 - centre : 511 - centre] @ counts
    k = int(bits.argmin())
    return centre, k, 11 + int(bits[k])
