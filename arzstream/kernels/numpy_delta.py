"""The kernels of differences to references in NumPy, the reference for the native ones. Layout: spec/registry.md.

Functions, arguments and results are those of the native module; ``delta.py`` has checked sizes and dtypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from arzstream.kernels.numpy_context import rans_ctx_decode
from arzstream.kernels.numpy_reference import OK

__all__ = ["delta_cells", "delta_classes", "delta_decode", "delta_fields", "delta_raw", "rans_tables"]

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]
I64 = NDArray[np.int64]

BAD_RAW = 6  # as in kernels.h
FIELD_TOP = 2
"""Bits of mantissa in the fields of changes."""
SLOTS = 4096
SCALES, STEPS = 64, 7
"""Expected sizes of changes, and sizes of those before."""
TOO_MANY = 2**64 - 1


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


def _numbers(data: U8, kind: _Type) -> NDArray[np.float32]:
    """Elements as binary32, but for a power of two in types whose bias is not half their exponents."""
    values = data.view(f"<u{kind.itemsize}").astype(np.uint32)
    sign = values >> np.uint32(kind.width - 1) << np.uint32(31)
    magnitude = (values & np.uint32((1 << kind.width - 1) - 1)) << np.uint32(23 - kind.mantissa_bits)
    bias = (1 << kind.exponent_bits - 1) - 1
    numbers: NDArray[np.float32] = (magnitude | sign).view(np.float32) * np.float32(2.0 ** (127 - bias))
    return numbers


def delta_fields(data: U8, parent: U8, itemsize: int, exponent_bits: int, mantissa_bits: int, fields: U16) -> None:
    """Sizes of changes: exponent and FIELD_TOP bits of mantissa of their binary32; 0 of what is no number."""
    kind = _Type(itemsize, exponent_bits, mantissa_bits)
    if exponent_bits:
        with np.errstate(invalid="ignore", over="ignore"):
            size = np.abs(_numbers(data, kind) - _numbers(parent, kind))
    else:
        change = np.abs(_signed(_ordered(data, kind) - _ordered(parent, kind), kind))
        size = (change & 0x7FFFFFFF).astype(np.float32)
    found = size.view(np.uint32) >> np.uint32(23 - FIELD_TOP)
    fields[...] = np.where(found < 255 << FIELD_TOP, found, 0)


class _Known(NamedTuple):
    """What is known of elements: their cells, and whether what is expected lowers the ordered integer."""

    cells: U16
    lowering: NDArray[np.bool_]


def _known(
    references: Sequence[U8], kind: _Type, row_len: int, rows: U8, cols: U8, base: int, step_base: int
) -> _Known:
    parent = references[0]
    at = np.arange(len(parent) // kind.itemsize)
    scale = base - 4 * _exponents(parent, kind)
    if len(rows):
        scale += rows[at // row_len]
    if len(cols):
        scale += cols[at % row_len]
    scale = np.clip(scale, 0, SCALES - 1)
    cells = scale | _mantissas(parent, kind) << 6
    lowering = _negative(parent, kind)
    if len(references) > 1:
        step = _signed(_ordered(parent, kind) - _ordered(references[1], kind), kind)
        size = np.clip(_bit_lengths(np.abs(step)) - (scale >> 2) + step_base, 1, STEPS)
        cells |= np.where(step != 0, size | ((step < 0) ^ lowering).astype(np.int64) << 3, 0) << 9
        lowering = np.where(step != 0, step < 0, lowering)
    if len(references) > 2:
        step = _signed(_ordered(references[1], kind) - _ordered(references[2], kind), kind)
        size = np.clip(_bit_lengths(np.abs(step)) - (scale >> 2) + step_base, 1, STEPS)
        cells |= np.where(step != 0, size, 0) << 13
    return _Known(cells.astype(np.uint16), lowering)


def _mantissas(data: U8, kind: _Type) -> I64:
    """The first three bits of the mantissa; of integers none."""
    if not kind.exponent_bits:
        return np.zeros(len(data) // kind.itemsize, np.int64)
    values = data.view(f"<u{kind.itemsize}").astype(np.int64)
    top: I64 = (values << 3 >> kind.mantissa_bits) & 7
    return top


def _negative(parent: U8, kind: _Type) -> NDArray[np.bool_]:
    """Whether a change away from zero lowers the ordered integer; of integers never."""
    if not kind.exponent_bits:
        return np.zeros(len(parent) // kind.itemsize, np.bool_)
    return parent.view(f"<i{kind.itemsize}") < 0


def delta_cells(
    data: U8,
    references: Sequence[U8],
    itemsize: int,
    exponent_bits: int,
    mantissa_bits: int,
    top: int,
    row_len: int,
    rows: U8,
    cols: U8,
    base: int,
    step_base: int,
    symbols: U8,
    cells: U16,
) -> None:
    """Symbols and cells."""
    kind = _Type(itemsize, exponent_bits, mantissa_bits)
    known = _known(references, kind, row_len, rows, cols, base, step_base)
    change = _signed(_ordered(data, kind) - _ordered(references[0], kind), kind)
    size = np.abs(change)
    symbols[...] = np.where(size == 0, 1, 2 * _tokens(size, top) + ((change < 0) ^ known.lowering)).astype(np.uint8)
    cells[...] = known.cells


def delta_classes(
    cells: U16, class_of: U8, freqs: U16, stand_ins: U8, symbols: U8, classes: U8, exceptions: U32
) -> int:
    """Classes; symbols without a frequency become their classes' stand-ins. Returns how many, or TOO_MANY."""
    classes[...] = class_of[cells]
    found = np.flatnonzero(freqs[classes.astype(np.int64) * 256 + symbols] == 0)
    if len(found) > len(exceptions):
        return TOO_MANY
    exceptions[: len(found)] = found
    symbols[found] = stand_ins[classes[found]]
    return len(found)


def rans_tables(freqs: U16, halved: bool, slots: U32) -> bool:
    """Of each slot the frequency, the place in it, and the symbol of whom it is; ``halved``: of each second one."""
    tables = freqs.reshape(-1, 256).astype(np.int64)
    if (tables.sum(axis=1) != SLOTS).any() or (tables >= SLOTS).any() or (halved and (tables % 2).any()):
        return False
    each = 1 + halved
    for table, part in zip(tables, slots.reshape(-1, SLOTS // each), strict=True):
        symbol = np.repeat(np.arange(256), table)
        place = np.arange(SLOTS) - (np.cumsum(table) - table)[symbol]
        part[...] = (table[symbol] | place << 12 | symbol << 24)[::each]
    return True


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
    per_segment: int,
    out: U8,
    raw_bytes: U32,
) -> int:
    """The raw streams of all segments; returns their length."""
    kind = _Type(itemsize, exponent_bits, mantissa_bits)
    size = np.abs(_signed(_ordered(data, kind) - _ordered(parent, kind), kind))
    bits = _raw_bits(symbols, top)
    return write_raw(size, bits, per_segment, out, raw_bytes)


def write_raw(values: I64, bits: I64, per_segment: int, out: U8, raw_bytes: U32) -> int:
    """So many bits of each of ``values``, segment by segment; returns their length."""
    at = 0
    for k in range(len(raw_bytes)):
        part = slice(k * per_segment, (k + 1) * per_segment)
        stream = _pack(values[part], bits[part])
        out[at : at + len(stream)] = stream
        raw_bytes[k] = len(stream)
        at += len(stream)
    return at


def read_raw(streams: U8, raw_bytes: U32, bits: I64, per_segment: int) -> I64 | None:
    """Undo :func:`write_raw`; None if a stream is not as long as it must be, or goes on after its end."""
    low = np.empty(len(bits), np.int64)
    at = 0
    for k, length in enumerate(raw_bytes.tolist()):
        part = slice(k * per_segment, (k + 1) * per_segment)
        values = _unpack(streams[at : at + length], bits[part])
        if values is None:
            return None
        low[part] = values
        at += length
    return low


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
    references: Sequence[U8],
    itemsize: int,
    exponent_bits: int,
    mantissa_bits: int,
    top: int,
    per_segment: int,
    row_len: int,
    rows: U8,
    cols: U8,
    base: int,
    step_base: int,
    class_of: U8,
    slots: U32,
    halved: bool,
    symbols_at: int,
    raw_at: int,
    symbol_bytes: U32,
    raw_bytes: U32,
    out: U8,
) -> int:
    """The symbols and raw bits of a chunk of codec ``delta_ctx`` into ``out``. Returns a status."""
    kind = _Type(itemsize, exponent_bits, mantissa_bits)
    known = _known(references, kind, row_len, rows, cols, base, step_base)
    owners = (slots >> np.uint32(24)).reshape(-1, SLOTS >> halved)
    freqs = np.concatenate([np.bincount(of, minlength=256) << halved for of in owners]).astype(np.uint16)
    symbols = np.empty(len(known.cells), np.uint8)
    streams = payload[symbols_at:raw_at]
    status: int = rans_ctx_decode(streams, symbol_bytes, per_segment, class_of[known.cells], freqs, symbols)
    if status != OK:
        return status
    bits = _raw_bits(symbols, top)
    low = read_raw(payload[raw_at:], raw_bytes, bits, per_segment)
    if low is None:
        return BAD_RAW
    token = symbols.astype(np.int64) >> 1
    size = (token - (bits << top) << bits) + low
    change = np.where((symbols & 1).astype(np.bool_) ^ known.lowering, -size, size)
    changed = _signed(_ordered(references[0], kind) + change, kind)
    if exponent_bits:
        changed = np.where(changed < 0, changed ^ ((1 << (kind.width - 1)) - 1), changed)
    out.view(f"<i{itemsize}")[...] = changed.astype(f"<i{itemsize}")
    return OK
