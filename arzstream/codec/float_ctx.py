"""Codec 5: exponents and the top of mantissas entropy-coded under the scales of their row and column.

What a lone checkpoint has to give beyond the distribution of its exponents: the density falls inside a binade, so the
top bits of the mantissa are not uniform; and rows and columns have scales. A class is a scale's fraction of an octave,
whole octaves shift the symbols: with two to eight tables all scales are covered, and a chunk can afford its own.
Every decision is made here and in ``scales``; the kernels carry them out.
"""

from __future__ import annotations

import dataclasses
import functools
import struct

import numpy as np
from numpy.typing import NDArray

from arzstream.codec import tables
from arzstream.codec.base import ChunkContext
from arzstream.codec.refine import refine
from arzstream.codec.scales import Scales, measure_scales, rice_parameters
from arzstream.errors import CorruptError
from arzstream.kernels import context

__all__ = ["EFFORTS", "Effort", "FloatCtx", "encode_ctx", "row_length"]

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]

_HEADER = struct.Struct("<BBBBBBhII")
_ROWS, _COLS = 1, 2
_NONE = np.empty(0, np.uint8)
MIN_ROW = 16
"""Elements of a row, at least."""
MAX_LOG_CLASSES = 3
TOP_BITS = 2
"""Mantissa bits in the symbol. A third would save 0.003 bits of a Gaussian and lose as much again: twice the symbols,
each with at least one slot of 4096, and tables twice as long."""
TAIL, TAIL_OCTAVES = 6, 6
"""Magnitudes below the 2^-TAIL quantile by more than so many octaves are escaped: one in 8000 of a Gaussian. Symbols of
their own would take more slots than they are worth."""
FLAT_ROW = 128
"""Length of the rows that elements without a matrix of their own are cut into."""
SAMPLE = 1 << 14
"""Elements that settings are chosen by, about; whole rows of them where there are rows."""
WINDOW_SAMPLE = 1 << 12
"""Elements by which the window is placed: its ends are octaves away from them."""
CUT_RUN, CUT_RUNS = 512, 16
"""Elements that lie together, and how many such runs, by which it is decided how to cut elements."""
CERTAIN = 6
"""Bits that the scale of a row or column must seem to save to be used without comparison; it takes about 4."""
SKEW = 0.3
"""Share of one sign below which signs are coded."""


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is tried: log2 of segments' length, log2 of the numbers of classes (none: no scales, one table),
    elements that settings are compared on, and how often scales are refined."""

    log_segment: int
    log_classes: tuple[int, ...]
    sample: int
    refinements: int


EFFORTS = {
    "fast": Effort(18, (), SAMPLE, 0),
    "balanced": Effort(19, (1, 2), SAMPLE, 0),
    "max": Effort(20, (1, 2, 3), 1 << 16, 2),
}


@dataclasses.dataclass(frozen=True)
class _Setting:
    """Which scales are used, and how finely."""

    use_rows: bool
    use_cols: bool
    log_classes: int


# ---- what the elements are like


def _trailing_zeros(x: int, most: int) -> int:
    return min(most, (x & -x).bit_length() - 1) if x else most


def _choose_cut(values: NDArray[np.unsignedinteger], float_bits: tuple[int, int]) -> context.Cut:
    """How to cut the elements: low bits that are always zero are dropped, a sign that is always 0 too."""
    exponent_bits, mantissa_bits = float_bits
    sign_at = exponent_bits + mantissa_bits
    runs = len(values) // CUT_RUN
    some = values if runs < 2 * CUT_RUNS else values[: runs * CUT_RUN].reshape(runs, CUT_RUN)[:: runs // CUT_RUNS]
    seen = int(np.bitwise_or.reduce(some, axis=None))
    negative = int(np.count_nonzero(some >> some.dtype.type(sign_at)))
    if not seen & 1 or not negative:
        seen = int(np.bitwise_or.reduce(values))
    dropped = _trailing_zeros(seen, mantissa_bits)
    left = mantissa_bits - dropped
    top = left if left <= TOP_BITS + 1 else TOP_BITS
    if not seen >> sign_at:
        sign = context.SIGN_NONE
    else:
        rarer = min(negative, some.size - negative)
        sign = context.SIGN_CODED if rarer < SKEW * some.size else context.SIGN_RAW
    return context.Cut(exponent_bits, mantissa_bits, dropped, top, sign)


def row_length(count: int, ctx: ChunkContext) -> tuple[int, bool]:
    """(length of rows, whether its columns mean anything)."""
    cols = ctx.cols * ctx.dtype.components
    if cols >= MIN_ROW and count >= 2 * cols:
        return cols, True
    return max(MIN_ROW, min(FLAT_ROW, count)), False


# ---- choosing


@dataclasses.dataclass(frozen=True)
class _Sample:
    """Whole rows of a chunk, evenly spaced: their numbers, and their high parts one after the other."""

    rows: NDArray[np.intp]
    row_len: int
    high: U16

    @classmethod
    def of(cls, high: U16, row_len: int, size: int) -> _Sample:
        whole = len(high) // row_len
        if not whole:
            return cls(np.zeros(1, np.intp), row_len, high)
        n = min(whole, max(4, size // row_len))
        rows = np.arange(n) * whole // n
        return cls(rows, row_len, high[: whole * row_len].reshape(whole, row_len)[rows].reshape(-1))

    def octaves(self, rows: U8, cols: U8, log_classes: int) -> NDArray[np.int32] | int:
        """Whole octaves of the scale of each element; 0 where there are no scales."""
        if not len(rows) and not len(cols):
            return 0
        total = np.zeros((len(self.rows), min(self.row_len, len(self.high))), np.uint8)
        if len(rows):
            total += rows[self.rows][:, None]
        if len(cols):
            total += cols[: total.shape[1]]
        octaves: NDArray[np.int32] = (total >> np.uint8(log_classes)).astype(np.int32).reshape(-1)
        return octaves


def _window_base(sample: _Sample, cut: context.Cut, rows: U8, cols: U8, log_classes: int) -> int:
    """Where the window of symbols begins: where nearly nothing is below, if it then reaches an octave above the largest
    magnitude of the sample, or leaves out less than if it did; else so that it does."""
    infinite = ((1 << cut.exponent_bits) - 1) << cut.top
    mag = (sample.high & np.uint16((1 << cut.mag_bits) - 1)).astype(np.int32)
    most = 255 >> log_classes << cut.top
    # What is 0, infinite or no number counts below everything else.
    place = np.where((mag > 0) & (mag < infinite), mag + 1, -most - 1)
    place += most - (sample.octaves(rows, cols, log_classes) << cut.top)
    counts = np.bincount(np.maximum(place, 0))
    counts[0] = 0
    below = np.cumsum(counts)
    if not below[-1]:
        return 0
    octave, size, shift = 1 << cut.top, context.WINDOW // cut.step, most + 1
    lowest = int(np.searchsorted(below, 0, side="right")) - shift
    quantile = int(np.searchsorted(below, int(below[-1]) >> TAIL, side="right")) - shift
    low = max(lowest - octave, quantile - TAIL_OCTAVES * octave)
    high = len(below) - shift + octave - size

    def escapes(base: int) -> int:
        """Elements outside of the window."""
        first, last = np.clip([base + shift - 1, base + shift + size - 1], 0, len(below) - 1)
        return int(below[-1] - (below[last] - below[first]))

    # A few that are far above all others, as where a text stands among floats, are not worth the others.
    if low < high and escapes(low) < escapes(high):
        high = low
    return max(-(1 << 15), low, high)


def _sampled_bits(sample: _Sample, cut: context.Cut, scales: Scales, setting: _Setting, count: int) -> int:
    """Bits of a chunk of ``count`` elements under ``setting``, as the sample has it, without what never changes."""
    rows, cols = scales.quantised(setting.use_rows, setting.use_cols, setting.log_classes)
    some = rows[sample.rows] if len(rows) else rows
    weights, sampled = tables.weighted_log(), len(sample.high)
    cost, used = context.ctx_cost(sample.high, cut, sample.row_len, some, cols, setting.log_classes, weights)
    bits = cost // tables.COST_UNIT
    # A table fitted to a sample flatters it by about 0.72 bits an entry; in the payload an entry takes about 4 bits.
    extra = used * (count * 3 // (4 * sampled) + 4)
    for side in (rows, cols):
        if len(side):
            extra += rice_parameters(side)[2]
    return bits * count // sampled + extra


def _choose(
    sample: _Sample, cut: context.Cut, scales: Scales, columns: bool, count: int, log_classes: tuple[int, ...]
) -> _Setting:
    """The setting with the fewest bits; first which scales are used, then how finely."""

    @functools.cache
    def bits(setting: _Setting) -> int:
        return _sampled_bits(sample, cut, scales, setting, count)

    middle = log_classes[len(log_classes) // 2 - 1] if len(log_classes) > 1 else log_classes[0]
    # What is certain to pay is not compared with doing without.
    certain = scales.worth(True, count) > CERTAIN
    if certain and columns and scales.worth(False, count) > CERTAIN:
        best = _Setting(True, True, middle)
    else:
        sides = [_Setting(True, False, middle)] + [_Setting(True, True, middle)] * columns
        best = min(sides if certain else [_Setting(False, False, 0), *sides], key=bits)
        if columns and best != sides[0]:
            best = min(best, _Setting(False, True, middle), key=bits)
    if not (best.use_rows or best.use_cols):
        return best
    return min((dataclasses.replace(best, log_classes=k) for k in log_classes), key=bits)


# ---- encoding


def encode_ctx(data: memoryview, ctx: ChunkContext, effort: Effort) -> bytes | None:
    """Payload for a chunk of floats; None if there are none."""
    float_bits = ctx.dtype.float_bits
    if float_bits is None or not len(data):
        return None
    elements = np.frombuffer(data, np.uint8)
    cut = _choose_cut(elements.view(f"<u{(1 + sum(float_bits)) // 8}"), float_bits)
    high, raw = context.split_high(elements, cut, effort.log_segment)
    row_len, columns = row_length(len(high), ctx)
    sample = _Sample.of(high, row_len, effort.sample)
    setting, rows, cols = _Setting(False, False, 0), _NONE, _NONE
    if effort.log_classes:
        scales = measure_scales(high, cut, row_len, sample.high & np.uint16((1 << cut.mag_bits) - 1))
        setting = _choose(sample, cut, scales, columns, len(high), effort.log_classes)
        rows, cols = scales.quantised(setting.use_rows, setting.use_cols, setting.log_classes)
        cols = cols[: len(high)]
    window_sample = _Sample.of(high, row_len, WINDOW_SAMPLE)
    base = _window_base(window_sample, cut, rows, cols, setting.log_classes)

    def coded() -> tuple[U8, U8, U16, U32, U16]:
        symbols, classes, escapes, escape_counts, counts = context.ctx_symbols(
            high, cut, row_len, rows, cols, base, setting.log_classes, effort.log_segment
        )
        return symbols, classes, escapes, escape_counts, tables.normalise_all(counts)

    symbols, classes, escapes, escape_counts, freqs = coded()
    if (len(rows) or len(cols)) and len(high) % row_len == 0:
        for _ in range(effort.refinements):
            rows, cols = refine(high, cut, row_len, rows, cols, base, setting.log_classes, freqs)
            symbols, classes, escapes, escape_counts, freqs = coded()
    streams, stream_bytes = context.rans_ctx_encode(symbols, classes, 1 << effort.log_segment, freqs)
    model = context.ctx_model_encode(_with_rice(rows), _with_rice(cols), freqs, cut.top, cut.step, base)
    flags = _ROWS * setting.use_rows | _COLS * setting.use_cols
    head = _HEADER.pack(
        cut.sign_mode, cut.dropped, cut.top, effort.log_segment, setting.log_classes, flags, base, row_len, len(model)
    )
    segments = np.stack([stream_bytes, escape_counts], axis=1).astype("<u4")
    return b"".join(
        [head, model, bytes(-len(model) % 8), segments.tobytes(), raw.data, streams.data, escapes.tobytes()]
    )


def _with_rice(scales: U8) -> tuple[U8, int, int]:
    return (scales, *rice_parameters(scales)[:2]) if len(scales) else (scales, 0, 0)


# ---- decoding


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise CorruptError(f"a float_ctx chunk has {what}; the chunk is damaged")


def _largest(scales: U8) -> int:
    return int(scales.max()) if len(scales) else 0


class FloatCtx:
    id = 5
    name = "float_ctx"

    def encode(self, data: memoryview, ctx: ChunkContext) -> bytes | None:
        """None for types without an exponent field, and for an empty chunk."""
        return encode_ctx(data, ctx, EFFORTS["balanced"])

    def decode(self, payload: memoryview, out: memoryview, ctx: ChunkContext) -> None:
        _require(ctx.dtype.float_bits is not None, "elements that are not floats")
        assert ctx.dtype.float_bits is not None
        exponent_bits, mantissa_bits = ctx.dtype.float_bits
        count, odd = divmod(len(out) * 8, 1 + exponent_bits + mantissa_bits)
        _require(not odd and count > 0 and len(payload) >= _HEADER.size, "a wrong length")
        sign, dropped, top, log_segment, log_classes, flags, base, row_len, model = _HEADER.unpack_from(payload)
        _require(
            sign <= context.SIGN_CODED
            and dropped + top <= mantissa_bits
            and exponent_bits + top <= 15
            and 10 <= log_segment <= 24
            and log_classes <= MAX_LOG_CLASSES
            and flags <= _ROWS | _COLS
            and row_len >= MIN_ROW,
            "a bad header",
        )
        cut = context.Cut(exponent_bits, mantissa_bits, dropped, top, sign)
        segments_at = _HEADER.size + model + -model % 8
        n_segments = -(-count >> log_segment)
        raw_at = segments_at + 8 * n_segments
        _require(len(payload) >= raw_at, "a model that is too long")
        _require(not any(payload[_HEADER.size + model : segments_at]), "bits that must be zero")
        stream = np.frombuffer(payload, np.uint8, model, _HEADER.size)
        n_rows = -(-count // row_len) if flags & _ROWS else 0
        n_cols = min(row_len, count) if flags & _COLS else 0
        rows, cols, freqs = context.ctx_model_decode(stream, n_rows, n_cols, 1 << log_classes, top, cut.step, base)
        _require(_largest(rows) + _largest(cols) <= 255, "scales out of range")

        segments = np.frombuffer(payload, "<u4", 2 * n_segments, segments_at).reshape(n_segments, 2)
        symbol_bytes, escape_counts = np.ascontiguousarray(segments.T)
        symbols_at = raw_at + cut.raw_size(count, log_segment)
        escapes_at = symbols_at + int(symbol_bytes.sum(dtype=np.int64))
        n_escapes = int(escape_counts.sum(dtype=np.int64))
        _require(escapes_at + 2 * n_escapes == len(payload), "streams of a wrong length")
        if n_escapes:
            escapes = np.frombuffer(payload, "<u2", n_escapes, escapes_at)
            bits = cut.mag_bits + (sign == context.SIGN_CODED)
            _require(int(escapes.max()) >> bits == 0, "an escape out of range")
        context.float_ctx_decode(
            np.frombuffer(payload, np.uint8),
            cut,
            log_segment,
            row_len,
            rows,
            cols,
            log_classes,
            base,
            freqs,
            (raw_at, symbols_at, escapes_at),
            symbol_bytes,
            escape_counts,
            np.frombuffer(out, np.uint8),
        )
