"""The kernels of context-switched coding as the codecs see them: arguments are checked here. See ``api.py``."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arzstream.kernels.api import STATE_BYTES, check, kernels

__all__ = [
    "ESCAPE",
    "FIRST",
    "MOVES",
    "SIGN_CODED",
    "SIGN_NONE",
    "SIGN_RAW",
    "WINDOW",
    "ZERO",
    "Cut",
    "col_sums",
    "ctx_cost",
    "ctx_model_decode",
    "ctx_model_encode",
    "ctx_symbols",
    "float_ctx_decode",
    "move_costs",
    "rans_ctx_decode",
    "rans_ctx_encode",
    "row_sums",
    "split_high",
]

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
I16 = NDArray[np.int16]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]

SIGN_RAW, SIGN_NONE, SIGN_CODED = range(3)
"""Where the sign of an element is: in the raw stream, nowhere because it is always 0, in the symbol."""
ESCAPE, ZERO, FIRST = range(3)
"""Symbols: an escape, a zero, the first of the window."""
WINDOW = 256 - FIRST
"""Symbols of the window."""
MAX_TABLES = 64
MOVES = 8
"""Costs that :func:`move_costs` sums at once."""


@dataclasses.dataclass(frozen=True)
class Cut:
    """How a float is cut: its low ``dropped`` bits are zero, ``top`` mantissa bits are coded with the exponent, the
    rest of the mantissa is raw."""

    exponent_bits: int
    mantissa_bits: int
    dropped: int
    top: int
    sign_mode: int

    @property
    def itemsize(self) -> int:
        return (1 + self.exponent_bits + self.mantissa_bits) // 8

    @property
    def low_bits(self) -> int:
        """Raw bits of the mantissa."""
        return self.mantissa_bits - self.dropped - self.top

    @property
    def raw_bits(self) -> int:
        """Raw bits of an element."""
        return self.low_bits + (self.sign_mode == SIGN_RAW)

    @property
    def mag_bits(self) -> int:
        """Bits of exponent and top mantissa bits."""
        return self.exponent_bits + self.top

    @property
    def step(self) -> int:
        """Symbols of a magnitude."""
        return 2 if self.sign_mode == SIGN_CODED else 1

    def raw_size(self, count: int, log_segment: int) -> int:
        """Bytes of the raw streams of ``count`` elements."""
        full = 1 << log_segment
        whole, planes = divmod(self.raw_bits, 8)
        tail = count % full
        return count * whole + planes * (count // full * (full // 8) + -(-tail // 8))

    @property
    def arguments(self) -> tuple[int, int, int, int, int, int]:
        return self.itemsize, self.exponent_bits, self.mantissa_bits, self.dropped, self.top, self.sign_mode


def split_high(data: U8, cut: Cut, log_segment: int) -> tuple[U16, U8]:
    """(high parts of all elements, raw streams of all segments)."""
    count = len(data) // cut.itemsize
    high, raw = np.empty(count, np.uint16), np.empty(cut.raw_size(count, log_segment), np.uint8)
    kernels().split_high(data, *cut.arguments, log_segment, high, raw)
    return high, raw


def row_sums(high: U16, cut: Cut, row_len: int, highest: int) -> U64:
    """Of each row of ``row_len`` elements, the sum of magnitudes.

    In units of 2^-25 of where the octave with exponent field ``highest`` begins: a magnitude counts its middle, at
    least 1; one above that octave its beginning; a zero nothing.
    """
    sums = np.empty(-(-len(high) // row_len), np.uint64)
    kernels().row_sums(high, row_len, highest, cut.top, cut.mag_bits, sums)
    return sums


def col_sums(high: U16, cut: Cut, row_len: int, highest: int, adjust: I16) -> U64:
    """The same of each column, for magnitude fields less ``adjust`` of their row, clipped to those that there are."""
    if len(adjust) != -(-len(high) // row_len):
        raise ValueError(f"{len(adjust)} rows for {len(high)} elements in rows of {row_len}")
    sums = np.empty(row_len, np.uint64)
    kernels().col_sums(high, row_len, highest, cut.top, cut.mag_bits, adjust, sums)
    return sums


def ctx_cost(
    high: U16, cut: Cut, row_len: int, rows: U8, cols: U8, log_classes: int, weights: NDArray[np.int64]
) -> tuple[int, int]:
    """(entropy of magnitudes less shifts under classes, distributions counted at least twice).

    ``weights[c]`` is c · log2(c) in the unit of the result; where it has no entry for ``len(high)``, counts are halved
    until it has.
    """
    cost, used = kernels().ctx_cost(
        high, row_len, rows, cols, cut.top, log_classes, cut.sign_mode, cut.mag_bits, weights
    )
    return int(cost), int(used)


def ctx_symbols(
    high: U16, cut: Cut, row_len: int, rows: U8, cols: U8, base: int, log_classes: int, log_segment: int
) -> tuple[U8, U8, U16, U32, U32]:
    """(symbols, classes, escaped high parts, escapes per segment, counts of shape (classes, 256))."""
    count = len(high)
    symbols, classes = np.empty(count, np.uint8), np.empty(count, np.uint8)
    escapes = np.empty(count + 64, np.uint16)
    escape_counts = np.empty(-(-count >> log_segment), np.uint32)
    counts = np.empty(256 << log_classes, np.uint32)
    total = kernels().ctx_symbols(
        high,
        row_len,
        rows,
        cols,
        base,
        cut.top,
        log_classes,
        cut.sign_mode,
        cut.mag_bits,
        log_segment,
        symbols,
        classes,
        escapes,
        escape_counts,
        counts,
    )
    return symbols, classes, escapes[:total], escape_counts, counts.reshape(-1, 256)


def move_costs(
    high: U16, cut: Cut, row_len: int, rows: U8, cols: U8, first: int, log_classes: int, lut: U32, of_rows: bool
) -> U64:
    """Sums over each row, or else each column, of ``lut[class, magnitude - first - shift]``, clipped to its ends.

    ``lut``: shape (classes, places, MOVES). Zeros are left out. Shape (rows or columns, MOVES); no entry of ``lut`` may
    be so large that a sum passes 2^32.
    """
    n = -(-len(high) // row_len) if of_rows else row_len
    costs = np.empty(n * MOVES, np.uint64)
    flat = np.ascontiguousarray(lut).reshape(-1)
    arguments = (first, cut.top, log_classes, cut.mag_bits, flat, of_rows, costs)
    kernels().move_costs(high, row_len, rows, cols, *arguments)
    return costs.reshape(n, MOVES)


def rans_ctx_encode(symbols: U8, classes: U8, per_segment: int, freqs: U16) -> tuple[U8, U32]:
    """(streams of all segments, bytes of each).

    ``freqs``: shape (tables, 256), 1 to 64 tables; those used sum to 4096, each entry below it. Symbol i is coded with
    table ``classes[i]``. Raises ValueError if a symbol has no frequency.
    """
    segments = -(-len(symbols) // per_segment)
    out = np.empty(2 * len(symbols) + STATE_BYTES * segments + 64, np.uint8)
    stream_bytes = np.empty(segments, np.uint32)
    start = kernels().rans_ctx_encode(symbols, classes, per_segment, _flat(freqs), out, stream_bytes)
    return out[start:], stream_bytes


def rans_ctx_decode(streams: U8, stream_bytes: U32, per_segment: int, classes: U8, freqs: U16, symbols: U8) -> None:
    """Undo :func:`rans_ctx_encode` into ``symbols``. Raises CorruptError."""
    if len(stream_bytes) != -(-len(symbols) // per_segment) or len(classes) != len(symbols):
        raise ValueError(f"{len(stream_bytes)} streams and {len(classes)} classes for {len(symbols)} symbols")
    check(kernels().rans_ctx_decode(streams, stream_bytes, per_segment, classes, _flat(freqs), symbols))


def _flat(freqs: U16) -> U16:
    if freqs.ndim != 2 or freqs.shape[1] != 256 or not 1 <= len(freqs) <= MAX_TABLES:
        raise ValueError(f"tables of shape {freqs.shape}")
    return np.ascontiguousarray(freqs).reshape(-1)


def ctx_model_encode(
    rows: tuple[U8, int, int], cols: tuple[U8, int, int], freqs: U16, top: int, step: int, base: int
) -> bytes:
    """The model stream of codec 5. ``rows`` and ``cols``: (scales, centre, Rice parameter), empty where there are none.

    ``freqs``: shape (classes, 256); there may be no classes.
    """
    tables = _flat(freqs) if len(freqs) else np.empty(0, np.uint16)
    return bytes(kernels().ctx_model_encode(*rows, *cols, tables, top, step, base))


def ctx_model_decode(
    data: U8, n_rows: int, n_cols: int, classes: int, top: int, step: int, base: int
) -> tuple[U8, U8, U16]:
    """Undo :func:`ctx_model_encode`: (rows, columns, tables of shape (classes, 256)). Raises CorruptError."""
    rows, cols = np.empty(n_rows, np.uint8), np.empty(n_cols, np.uint8)
    freqs = np.empty(256 * classes, np.uint16)
    check(kernels().ctx_model_decode(data, top, step, base, rows, cols, freqs))
    return rows, cols, freqs.reshape(-1, 256)


def float_ctx_decode(
    payload: U8,
    cut: Cut,
    log_segment: int,
    row_len: int,
    rows: U8,
    cols: U8,
    log_classes: int,
    base: int,
    freqs: U16,
    places: tuple[int, int, int],
    symbol_bytes: U32,
    escape_counts: U32,
    out: U8,
) -> None:
    """Decode a chunk of codec ``float_ctx`` into ``out``.

    ``places`` are the offsets of the raw, symbol and escape streams. Raises CorruptError.
    """
    arguments: list[Any] = [log_segment, row_len, rows, cols, log_classes, base, _flat(freqs), *places]
    check(kernels().float_ctx_decode(payload, *cut.arguments, *arguments, symbol_bytes, escape_counts, out))
