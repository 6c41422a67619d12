"""The kernels of optimiser state as the codecs see them: arguments are checked here. See ``api.py``."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from arzstream.errors import CorruptError
from arzstream.kernels.api import check, kernels

__all__ = [
    "BF16",
    "CELLS",
    "F16",
    "MAX_RAW",
    "NO_HALVES",
    "TOP",
    "Expectation",
    "optim_count",
    "optim_decode",
    "optim_predict",
    "optim_ratios",
    "optim_raw",
    "raw_lengths",
    "symbol_exists",
    "widened",
]

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]

NO_HALVES, BF16, F16 = range(3)
CELLS = 1024
MAX_RAW = 24
TOP = 2
"""Bits below the leading one in a token."""


def _none() -> U8:
    return np.empty(0, np.uint8)


@dataclasses.dataclass(frozen=True)
class Expectation:
    """What is known of elements before they are: bytes of binary32 numbers that they are near (``expected``), which lie
    where they round to ``halves``; or, ``scaled``, whose roots they are about as large as, and numbers that they
    resemble (``before``). And scales of rows and columns, ``base`` added, and how many low bits are raw."""

    expected: U8
    row_len: int
    rows: U8 = dataclasses.field(default_factory=_none)
    cols: U8 = dataclasses.field(default_factory=_none)
    base: int = 0
    raw: int = 0
    scaled: bool = False
    before: U8 = dataclasses.field(default_factory=_none)
    halves: U8 = dataclasses.field(default_factory=_none)
    kind: int = NO_HALVES

    def scaled_by(self, row_len: int, rows: U8, cols: U8, base: int, raw: int) -> Expectation:
        return dataclasses.replace(self, row_len=row_len, rows=rows, cols=cols, base=base, raw=raw)

    @property
    def arguments(self) -> tuple[U8, U8, U8, bool, int, int, int, int, U8, U8]:
        rule = (self.scaled, self.raw, self.kind, self.base)
        return self.expected, self.before, self.halves, *rule, self.row_len, self.rows, self.cols


def symbol_exists(scaled: bool, raw: int) -> NDArray[np.bool_]:
    """Of each of 256 symbols, whether it stands for anything."""
    symbols = np.arange(256)
    exists: NDArray[np.bool_] = (symbols % 128 if scaled else symbols) < (31 - raw) << TOP + 1
    exists[128] &= not scaled
    return exists


def raw_lengths(scaled: bool, raw: int) -> NDArray[np.int64]:
    """Raw bits of an element with each of 256 symbols."""
    symbols = np.arange(256)
    octave = np.maximum(((symbols % 128 if scaled else symbols) >> 1 >> TOP) - 1, 0)
    lengths: NDArray[np.int64] = np.where(symbols > 0, raw + octave, 0 if scaled else 32)
    return lengths


def widened(halves: U8, kind: int) -> U8:
    """Numbers in half precision as binary32; of those of binary16 that are no normal numbers what they would be, if
    their exponents were ordinary ones."""
    h = halves.view("<u2").astype(np.uint32)
    wide = h << 16 if kind == BF16 else (h >> 15 << 31) | ((h & 0x7FFF) << 13) + np.uint32(112 << 23)
    return np.ascontiguousarray(wide, "<u4").view(np.uint8)


def optim_predict(parent: U8, factors: tuple[float, float, float], moment: U8, square: U8) -> U8:
    """``factors[0]`` times the parent, plus ``factors[1]`` times m / (sqrt(v) + ``factors[2]``), as binary32. Moment
    and square may be empty: then there is no such step."""
    out = np.empty_like(parent)
    kernels().optim_predict(parent, moment, square, np.array(factors), out)
    return out


def optim_ratios(data: U8, squares: U8) -> U16:
    """Magnitudes by roots of squares, about, as floats with two bits of mantissa and a bias of their own."""
    fields = np.empty(len(data) // 4, np.uint16)
    kernels().optim_ratios(data, squares, fields)
    return fields


def optim_count(data: U8, to: Expectation) -> tuple[U8, U16, U32]:
    """(symbols, cells, counts of shape (cells, 256))."""
    symbols, cells = np.empty(len(data) // 4, np.uint8), np.empty(len(data) // 4, np.uint16)
    counts = np.empty(256 * CELLS, np.uint32)
    kernels().optim_count(data, *to.arguments, symbols, cells, counts)
    return symbols, cells, counts.reshape(-1, 256)


def optim_raw(data: U8, symbols: U8, to: Expectation, log_segment: int, raw_bits: int) -> tuple[U8, U32]:
    """(raw streams of all segments, bytes of each). ``raw_bits``: how many there are."""
    raw_bytes = np.empty(-(-len(symbols) >> log_segment), np.uint32)
    out = np.empty(raw_bits // 8 + len(raw_bytes), np.uint8)
    written = kernels().optim_raw(data, symbols, *to.arguments, log_segment, out, raw_bytes)
    return out[:written], raw_bytes


def optim_decode(
    payload: U8,
    to: Expectation,
    log_segment: int,
    classes: U8,
    freqs: U16,
    places: tuple[int, int],
    symbol_bytes: U32,
    raw_bytes: U32,
    out: U8,
) -> None:
    """Decode a chunk of codec ``optim_ctx`` into ``out``.

    ``classes``: of each cell. ``freqs``: shape (classes, 256). ``places`` are the offsets of the symbol and raw
    streams. Raises CorruptError.
    """
    if int(classes.max()) >= len(freqs):
        raise CorruptError("an optim_ctx chunk has a class that does not exist; the chunk is damaged")
    if freqs[:, ~symbol_exists(to.scaled, to.raw)].any():
        raise CorruptError("an optim_ctx chunk has a symbol that does not exist; the chunk is damaged")
    model = (classes, np.ascontiguousarray(freqs).reshape(-1))
    check(kernels().optim_decode(payload, *to.arguments, log_segment, *model, *places, symbol_bytes, raw_bytes, out))
