"""The kernels of optimiser state in NumPy, the reference for the native ones. Layout: spec/registry.md, section 9.

Functions, arguments and results are those of the native module; ``optim.py`` has checked sizes and dtypes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from arzstream.kernels.numpy_context import rans_ctx_decode
from arzstream.kernels.numpy_delta import BAD_RAW, _tokens, read_raw, write_raw
from arzstream.kernels.numpy_reference import OK

__all__ = ["optim_count", "optim_decode", "optim_predict", "optim_ratios", "optim_raw"]

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]
I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

TOP = 2
"""Bits below the leading one in a token."""
BF16 = 1
"""Kinds of halves: 0 none, 1 bfloat16, 2 binary16."""
PLACES = 15
"""Places in the interval of what rounds to a half that are told apart."""
ALL, SIGN = (1 << 32) - 1, 1 << 31


class _Rule(NamedTuple):
    scaled: bool
    raw: int
    halves: int
    base: int


class _Expected(NamedTuple):
    """Elements lie near ``centre``, from ``low`` to ``low + mask``; scaled, magnitudes do, and ``low`` is the sign."""

    centre: I64
    low: I64
    mask: I64
    cells: I64


def _plain(data: U8) -> F64:
    """Numbers, 0 in place of what is subnormal or not finite."""
    bits = data.view("<u4")
    exponent = bits >> 23 & 255
    return np.where((exponent > 0) & (exponent < 255), bits, 0).astype("<u4").view("<f4").astype(np.float64)


def _step(moment: U8, square: U8, epsilon: float) -> F64:
    v = _plain(square)
    result: F64 = _plain(moment) / (np.sqrt(np.where(v > 0, v, 0.0)) + epsilon)
    return result


def optim_predict(parent: U8, moment: U8, square: U8, factors: F64, out: U8) -> None:
    """The parent's numbers times a factor plus a step of Adam times another, in binary64, as binary32."""
    of_parent, of_step, epsilon = factors.tolist()
    total = of_parent * _plain(parent)
    if len(moment):
        total = total + of_step * _step(moment, square, epsilon)
    size = np.abs(total)
    small, large = size < 2.0**-126, size >= 2.0**127
    bits = np.where(small | large, 0.0, total).astype("<f4").view("<u4")
    out.view("<u4")[...] = np.where(large, parent.view("<u4"), np.where(small, np.uint32(0), bits))


def _ordered(bits: I64) -> I64:
    """Floats as signed integers in their order."""
    signed = bits - ((bits & SIGN) << 1)
    return np.where(signed < 0, signed ^ (SIGN - 1), signed)


def _signed(values: I64) -> I64:
    wrapped: I64 = (values + SIGN & ALL) - SIGN
    return wrapped


def _scales(count: int, row_len: int, rows: U8, cols: U8, base: int) -> I64:
    at = np.arange(count)
    scale: I64 = np.full(count, base, np.int64)
    if len(rows):
        scale += rows[at // row_len]
    if len(cols):
        scale += cols[at % row_len]
    return scale


def _widened(halves: U8, kind: int) -> tuple[I64, I64]:
    """(patterns of the numbers that halves are, bits of how many integers round to each)."""
    h = halves.view("<u2").astype(np.int64)
    if kind == BF16:
        return h << 16, np.full(len(h), 16)
    exponent = h >> 10 & 31
    bits = np.where((exponent > 0) & (exponent < 31), 13, 32)
    return (h >> 15 << 31) | ((h & 0x7FFF) << 13) + (112 << 23), bits


def _expect(rule: _Rule, expected: U8, before: U8, halves: U8, row_len: int, rows: U8, cols: U8) -> _Expected:
    q = expected.view("<u4").astype(np.int64)
    scale = _scales(len(q), row_len, rows, cols, rule.base)
    none = np.zeros(len(q), np.int64)
    if rule.scaled:
        p = before.view("<u4").astype(np.int64) if len(before) else none
        centre = (q >> 1) + (scale << 20) & ALL
        size = p & SIGN - 1
        z = np.where(size > 0, np.clip((_signed(size - centre) >> 22) + 13, 0, 15), 0)
        return _Expected(centre, p >> 31, none, z << 6 | q >> 21 & 7)
    exponent = np.maximum(q >> 23 & 255, 1)
    cells = np.clip(scale - 4 * exponent, 0, 63)
    centre = _ordered(q)
    if not rule.halves:
        return _Expected(centre, none, none + ALL, cells)
    w, bits = _widened(halves, rule.halves)
    inside, width = bits < 32, np.where(bits < 32, bits, 16)
    first = _ordered(w) - (1 << width - 1)
    near = np.clip(centre, first, first + (1 << width) - 1)
    place = np.where(inside, (near - first) * PLACES >> width, 15)
    return _Expected(
        np.where(inside, near, centre), np.where(inside, first, 0), np.where(inside, (1 << width) - 1, ALL),
        place << 6 | cells,
    )  # fmt: skip


def optim_ratios(data: U8, squares: U8, fields: U16) -> None:
    """Magnitudes by roots of squares as floats with two bits of mantissa, in units that only the type knows."""
    size = data.view("<u4").astype(np.int64) & SIGN - 1
    ratio = np.clip(_signed(size - (squares.view("<u4").astype(np.int64) >> 1)) >> 21, 0, 1023)
    fields[...] = np.where(size > 0, ratio, 0)


def _differences(rule: _Rule, data: U8, to: _Expected) -> tuple[I64, NDArray[np.bool_]]:
    """(differences to what is expected, whether an element can be coded by one)."""
    v = data.view("<u4").astype(np.int64)
    if rule.scaled:
        return _signed((v & SIGN - 1) - to.centre), v != 0
    o, half = _ordered(v), to.mask + 1 >> 1
    return ((o - to.centre) + half & to.mask) - half, (o - to.low & ALL) <= to.mask


def optim_count(
    data: U8,
    expected: U8,
    before: U8,
    halves: U8,
    scaled: bool,
    raw: int,
    kind: int,
    base: int,
    row_len: int,
    rows: U8,
    cols: U8,
    symbols: U8,
    cells: U16,
    counts: U32,
) -> None:
    """Symbols, cells, and how often each symbol occurs in each cell."""
    rule = _Rule(scaled, raw, kind, base)
    to = _expect(rule, expected, before, halves, row_len, rows, cols)
    difference, there = _differences(rule, data, to)
    part = difference >> raw
    found = np.where(part == 0, 1, 2 * _tokens(np.abs(part), TOP) + (part < 0))
    if scaled:
        found |= (data.view("<u4") >> 31 ^ to.low) << 7
    symbols[...] = np.where(there, found, 0)
    cells[...] = to.cells
    counts[...] = np.bincount(to.cells * 256 + symbols, minlength=len(counts))


def _raw_bits(rule: _Rule, symbols: U8) -> I64:
    """How many raw bits belong to each symbol."""
    y = symbols.astype(np.int64)
    token = (y & 127 if rule.scaled else y) >> 1
    return np.where(y > 0, rule.raw + np.maximum((token >> TOP) - 1, 0), 0 if rule.scaled else 32)


def optim_raw(
    data: U8,
    symbols: U8,
    expected: U8,
    before: U8,
    halves: U8,
    scaled: bool,
    raw: int,
    kind: int,
    base: int,
    row_len: int,
    rows: U8,
    cols: U8,
    log_segment: int,
    out: U8,
    raw_bytes: U32,
) -> int:
    """The raw streams of all segments; returns their length."""
    rule = _Rule(scaled, raw, kind, base)
    to = _expect(rule, expected, before, halves, row_len, rows, cols)
    difference, _ = _differences(rule, data, to)
    inside = np.abs(difference >> raw) << raw | difference & (1 << raw) - 1
    values = np.where(symbols > 0, inside, data.view("<u4").astype(np.int64))
    bits = _raw_bits(rule, symbols)
    return write_raw(values, bits, 1 << log_segment, out, raw_bytes)


def optim_decode(
    payload: U8,
    expected: U8,
    before: U8,
    halves: U8,
    scaled: bool,
    raw: int,
    kind: int,
    base: int,
    row_len: int,
    rows: U8,
    cols: U8,
    log_segment: int,
    classes: U8,
    freqs: U16,
    symbols_at: int,
    raw_at: int,
    symbol_bytes: U32,
    raw_bytes: U32,
    out: U8,
) -> int:
    """A chunk of codec ``optim_ctx`` into ``out``. Returns a status."""
    rule = _Rule(scaled, raw, kind, base)
    to = _expect(rule, expected, before, halves, row_len, rows, cols)
    symbols = np.empty(len(to.cells), np.uint8)
    streams = payload[symbols_at:raw_at]
    status: int = rans_ctx_decode(streams, symbol_bytes, 1 << log_segment, classes[to.cells], freqs, symbols)
    if status != OK:
        return status
    bits = _raw_bits(rule, symbols)
    low = read_raw(payload[raw_at:], raw_bytes, bits, 1 << log_segment)
    if low is None:
        return BAD_RAW
    y = symbols.astype(np.int64)
    token = (y & 127 if scaled else y) >> 1
    octave = np.maximum((token >> TOP) - 1, 0)
    size = (token - (octave << TOP) << octave) + (low >> raw)
    difference = (np.where(y & 1, -size, size) << raw) + (low & (1 << raw) - 1)
    if scaled:
        values = to.centre + difference & SIGN - 1 | (to.low ^ y >> 7) << 31
        values = np.where(y > 0, values, 0)
    else:
        ordered = _signed(to.low + (to.centre + difference - to.low & to.mask))
        values = np.where(ordered < 0, ordered ^ (SIGN - 1), ordered) & ALL
        values = np.where(y > 0, values, low)
    out.view("<u4")[...] = values.astype("<u4")
    return OK
