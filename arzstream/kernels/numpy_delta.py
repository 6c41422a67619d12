"""The kernels of differences to references in NumPy, the reference for the native ones. Layout: spec/registry.md.

Functions, arguments and results are those of the native module; ``delta.py`` has checked sizes and dtypes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from arzstream.kernels.numpy_context import rans_ctx_decode
from arzstream.kernels.numpy_reference import OK

__all__ = ["delta_count", "delta_decode", "delta_fields", "delta_raw", "delta_steps"]

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]
I64 = NDArray[np.int64]

BAD_RAW = 6  # as in kernels.h
FIELD_TOP = 2
"""Bits below the leading one in the fields of changes."""
SCALES, STEPS = 64, 16
"""Cells of scales, and of steps; of the latter one is never used."""


class _Type(NamedTuple):
    itemsize: int
    exponent_bits: int
    mantissa_bits: int

    @property
    def width(self) -> int:
        return 8 * self.itemsize


def _ordered(data: U8, kind: _Type) -> I64:
    """Elements as integers in numeric order; of floats, those with a sign count down from -1."""
    values: I64 = data.view(f"<i{kind.itemsize}").astype(np.int64)
    if kind.exponent_bits:
        values = np.where(values < 0, values ^ ((1 << (kind.width - 1)) - 1), values)
    return values


def _signed(values: I64, kind: _Type) -> I64:
    """Modulo 2^width, as a signed number."""
    half = 1 << (kind.width - 1)
    wrapped: I64 = (values + half & (2 * half - 1)) - half
    return wrapped


def _bit_lengths(values: I64) -> I64:
    """Bits without leading zeros; exact below 2^53."""
    lengths: I64 = np.frexp(values.astype(np.float64))[1].astype(np.int64)
    return lengths


def _exponents(data: U8, kind: _Type) -> I64:
    """Exponent fields, at least 1: an element's last place is worth 2 to this power, but for a constant."""
    values = data.view(f"<u{kind.itemsize}").astype(np.int64)
    exponents: I64 = np.maximum(values >> kind.mantissa_bits & (1 << kind.exponent_bits) - 1, 1)
    return exponents


def delta_fields(data: U8, parent: U8, itemsize: int, exponent_bits: int, mantissa_bits: int, fields: U16) -> None:
    """Sizes of changes as small floats: exponent and FIELD_TOP bits; 0 where nothing changed."""
    kind = _Type(itemsize, exponent_bits, mantissa_bits)
    size = np.abs(_signed(_ordered(data, kind) - _ordered(parent, kind), kind))
    length = _bit_lengths(size)
    below = size << FIELD_TOP >> np.maximum(length - 1, 0) & (1 << FIELD_TOP) - 1
    fields[...] = np.where(size, _exponents(parent, kind) + length << FIELD_TOP | below, 0)


def _scale_cells(
    parent: U8, kind: _Type, row_len: int, rows: U8, cols: U8, base: int, first: int, exponents: int
) -> U16:
    """Of each element the expected size of its change, in quarters of an octave, and its parent's exponent."""
    at = np.arange(len(parent) // kind.itemsize)
    exponent = _exponents(parent, kind)
    scale = base - 4 * exponent
    if len(rows):
        scale += rows[at // row_len]
    if len(cols):
        scale += cols[at % row_len]
    cells = np.clip(exponent - first, 0, exponents - 1) * SCALES + np.clip(scale, 0, SCALES - 1)
    return cells.astype(np.uint16)


def _steps(parent: U8, grandparent: U8, kind: _Type, cells: U16, step_base: int) -> I64:
    """Size and direction of the changes before: 0 for none, 1 to 7 away from zero, 8 to 14 towards it."""
    before = _signed(_ordered(parent, kind) - _ordered(grandparent, kind), kind)
    size = np.clip(_bit_lengths(np.abs(before)) - (cells.astype(np.int64) % SCALES >> 2) + step_base, 1, 7)
    return np.where(before == 0, 0, size + 7 * ((before < 0) ^ _negative(parent, kind)))


def _negative(parent: U8, kind: _Type) -> NDArray[np.bool_]:
    """Whether a change away from zero lowers the ordered integer; of integers never."""
    if not kind.exponent_bits:
        return np.zeros(len(parent) // kind.itemsize, np.bool_)
    return parent.view(f"<i{kind.itemsize}") < 0


def delta_count(
    data: U8,
    parent: U8,
    itemsize: int,
    exponent_bits: int,
    mantissa_bits: int,
    top: int,
    row_len: int,
    rows: U8,
    cols: U8,
    base: int,
    first: int,
    exponents: int,
    symbols: U8,
    cells: U16,
    counts: U32,
) -> None:
    """Symbols, cells, and how often each symbol occurs in each cell."""
    kind = _Type(itemsize, exponent_bits, mantissa_bits)
    change = _signed(_ordered(data, kind) - _ordered(parent, kind), kind)
    size = np.abs(change)
    token = _tokens(size, top)
    symbols[...] = np.where(size == 0, 1, 2 * token + ((change < 0) ^ _negative(parent, kind))).astype(np.uint8)
    cells[...] = _scale_cells(parent, kind, row_len, rows, cols, base, first, exponents)
    counts[...] = np.bincount(cells.astype(np.int64) * 256 + symbols, minlength=len(counts))


def delta_steps(
    parent: U8,
    grandparent: U8,
    itemsize: int,
    exponent_bits: int,
    mantissa_bits: int,
    step_base: int,
    groups: U8,
    symbols: U8,
    cells: U16,
    counts: U32,
) -> None:
    """Cells become groups[cell] and the step before; and how often each symbol occurs in each of those."""
    kind = _Type(itemsize, exponent_bits, mantissa_bits)
    steps = _steps(parent, grandparent, kind, cells, step_base)
    cells[...] = groups[cells].astype(np.uint16) * STEPS + steps.astype(np.uint16)
    counts[...] = np.bincount(cells.astype(np.int64) * 256 + symbols, minlength=len(counts))


def _tokens(size: I64, top: int) -> I64:
    octave = np.maximum(_bit_lengths(size) - top - 1, 0)
    return (octave << top) + (size >> octave)


def _raw_bits(symbols: U8, top: int) -> I64:
    """How many raw bits belong to each symbol."""
    bits: I64 = np.maximum((symbols.astype(np.int64) >> 1 >> top) - 1, 0)
    return bits


def delta_raw(
    data: U8,
    parent: U8,
    symbols: U8,
    itemsize: int,
    exponent_bits: int,
    mantissa_bits: int,
    top: int,
    log_segment: int,
    out: U8,
    raw_bytes: U32,
) -> int:
    """The raw streams of all segments; returns their length."""
    kind = _Type(itemsize, exponent_bits, mantissa_bits)
    size = np.abs(_signed(_ordered(data, kind) - _ordered(parent, kind), kind))
    bits = _raw_bits(symbols, top)
    at = 0
    for k in range(len(raw_bytes)):
        part = slice(k << log_segment, (k + 1) << log_segment)
        stream = _pack(size[part], bits[part])
        out[at : at + len(stream)] = stream
        raw_bytes[k] = len(stream)
        at += len(stream)
    return at


def _places(bits: I64) -> tuple[NDArray[np.intp], I64]:
    """(element of each bit of a stream, its place in the element)."""
    owner = np.repeat(np.arange(len(bits)), bits)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(bits) - bits, bits)


def _pack(values: I64, bits: I64) -> U8:
    owner, place = _places(bits)
    return np.packbits((values[owner] >> place & 1).astype(np.uint8), bitorder="little")


def _unpack(stream: U8, bits: I64) -> I64 | None:
    """Values of the stream's bits; None unless it has just as many bytes as it must and zeros behind."""
    owner, place = _places(bits)
    if len(stream) != -(-len(owner) // 8):
        return None
    digits = np.unpackbits(stream, bitorder="little")
    if digits[len(owner) :].any():
        return None
    values = np.zeros(len(bits), np.int64)
    np.add.at(values, owner, digits[: len(owner)].astype(np.int64) << place)
    return values


def delta_decode(
    payload: U8,
    parent: U8,
    grandparent: U8,
    itemsize: int,
    exponent_bits: int,
    mantissa_bits: int,
    top: int,
    log_segment: int,
    row_len: int,
    rows: U8,
    cols: U8,
    base: int,
    first: int,
    exponents: int,
    step_base: int,
    groups: U8,
    classes_of: U8,
    freqs: U16,
    symbols_at: int,
    raw_at: int,
    symbol_bytes: U32,
    raw_bytes: U32,
    out: U8,
) -> int:
    """A chunk of codec ``delta_ctx`` into ``out``. Returns a status.

    ``groups`` are of the cells of scales; ``classes_of``, empty without a grandparent, of those of groups and steps.
    """
    kind = _Type(itemsize, exponent_bits, mantissa_bits)
    cells = _scale_cells(parent, kind, row_len, rows, cols, base, first, exponents)
    classes = groups[cells]
    if len(classes_of):
        steps = _steps(parent, grandparent, kind, cells, step_base)
        classes = classes_of[classes.astype(np.int64) * STEPS + steps]
    symbols = np.empty(len(cells), np.uint8)
    streams = payload[symbols_at:raw_at]
    status: int = rans_ctx_decode(streams, symbol_bytes, 1 << log_segment, classes, freqs, symbols)
    if status != OK:
        return status
    bits = _raw_bits(symbols, top)
    low = np.empty(len(symbols), np.int64)
    at = raw_at
    for k, length in enumerate(raw_bytes.tolist()):
        part = slice(k << log_segment, (k + 1) << log_segment)
        values = _unpack(payload[at : at + length], bits[part])
        if values is None:
            return BAD_RAW
        low[part] = values
        at += length
    token = symbols.astype(np.int64) >> 1
    size = (token - (bits << top) << bits) + low
    change = np.where((symbols & 1).astype(np.bool_) ^ _negative(parent, kind), -size, size)
    changed = _signed(_ordered(parent, kind) + change, kind)
    if exponent_bits:
        changed = np.where(changed < 0, changed ^ ((1 << (kind.width - 1)) - 1), changed)
    out.view(f"<i{itemsize}")[...] = changed.astype(f"<i{itemsize}")
    return OK
