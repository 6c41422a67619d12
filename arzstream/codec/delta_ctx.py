"""Codec 8: a tensor given its predecessor: differences of ordered integers, under classes that the references give.

Elements become integers whose order is that of the numbers, and the difference to the parent's a token (direction,
octave, leading bits) with raw bits. How large a change will be is known beforehand: optimisers move all elements of a
row and a column about as far, which in units of the element's last place is far for small ones and hardly anything for
large ones; and the change before tells size and direction. ``delta_classes`` folds all that into few tables.
"""

from __future__ import annotations

import dataclasses
import struct

import numpy as np
from numpy.typing import NDArray

from arzstream.codec import tables
from arzstream.codec.base import ChunkContext
from arzstream.codec.delta_classes import MAX_CLASSES, fold, map_moves, unfold_moves
from arzstream.codec.float_ctx import row_length
from arzstream.codec.scales import COLUMN_SAMPLE, log2_eighths, rice_parameters
from arzstream.errors import CorruptError
from arzstream.kernels import context, delta

__all__ = ["DeltaCtx", "encode_delta"]

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
I64 = NDArray[np.int64]

_HEADER = struct.Struct("<BBBBhBBbBBBIII")
_ROWS, _COLS = 1, 2
_NONE = np.empty(0, np.uint8)
_FIELD = context.Cut(9, 2, 0, 2, context.SIGN_NONE)
"""Of what ``delta_fields`` gives: exponents of parents plus bits of changes, and two bits of mantissa."""
TOP_BITS = 2
"""Bits below the leading one in a token."""
LOG_SEGMENT, SPARSE = 18, 2
"""log2 of the elements of a segment, which takes 128 bytes; and how much more where hardly anything changed."""
MAX_GROUPS = 32
"""Groups of cells of scales that the step before is then combined with."""
EXPONENTS = 16
"""Exponents of a parent that are told apart."""
MIDDLE = 28
"""Where in the 64 cells of scales the mean element is put."""
DAMP = 5
"""Scales of rows and columns are at most so many octaves below their mean: what hardly changed has no scale."""
MAX_SCALE = 127
_DIRECTIONS = np.repeat(np.array([1, 2, 0], np.uint8), [1, 7, 8])
"""Of each step: none before, away from zero, towards it."""
SAMPLE = 1 << 12
"""Elements whose exponents are looked at."""
CHOICE_SAMPLE = 1 << 15
"""Elements by which it is chosen how cells are made, about."""


# ---- scales of changes


@dataclasses.dataclass(frozen=True)
class _Scales:
    """Logarithms of the scales of the changes of rows and columns, in quarters of an octave from 0 on, empty where they
    are not used; and the same of a change of one unit in the last place of an element whose exponent is 0."""

    rows: U8
    cols: U8
    unit: int

    @property
    def bits(self) -> int:
        return sum(rice_parameters(side)[2] for side in (self.rows, self.cols) if len(side))


def _log_scales(sums: NDArray[np.uint64]) -> tuple[I64, int]:
    """(log2 of each sum, log2 of their mean), in 1/8 octave."""
    mean = int(sums.sum(dtype=np.float64)) // len(sums)
    damped = np.maximum(sums, np.uint64(max(1, mean >> DAMP)))
    return log2_eighths(damped), int(log2_eighths(np.array([mean], np.uint64))[0])


def _measure(fields: U16, row_len: int, columns: bool) -> list[_Scales]:
    """Ways to use scales, the likeliest first: those of rows and columns, none."""
    highest = int(fields.max()) >> _FIELD.top
    sums = context.row_sums(fields, _FIELD, row_len, highest)
    tail = len(fields) % row_len
    if tail:
        sums[-1] = int(sums[-1]) * row_len // tail
    logs, mean = _log_scales(sums)
    # A change of one unit has field exponent e + 1, and that of the highest counts 2^24.
    eighths = 8 * (24 - highest + 1) + int(log2_eighths(np.array([row_len], np.uint64))[0])
    low = int(logs.min())
    rows = np.minimum(logs - low + 1 >> 1, MAX_SCALE).astype(np.uint8)
    flat = _Scales(_NONE, _NONE, eighths - mean >> 1)
    if not columns:
        return [_Scales(rows, _NONE, eighths - low >> 1), flat]
    adjust = np.maximum((logs - logs.max() << _FIELD.top) >> 3, -(1 << 14)).astype(np.int16)
    whole = len(fields) // row_len
    step = max(1, whole // COLUMN_SAMPLE)
    some = np.ascontiguousarray(fields[: whole * row_len].reshape(whole, row_len)[::step]).reshape(-1)
    sums = context.col_sums(some, _FIELD, row_len, highest, np.ascontiguousarray(adjust[:whole][::step]))
    logs, mean = _log_scales(sums)
    left = int(logs.min())
    cols = np.minimum(logs - left + 1 >> 1, MAX_SCALE).astype(np.uint8)
    return [_Scales(rows, cols, eighths - low - (left - mean) >> 1), flat]


# ---- choosing


@dataclasses.dataclass(frozen=True)
class _Way:
    """How cells are made, and what that took on a sample."""

    scales: _Scales
    cells: delta.Cells
    bits: int


def _exponents(parent: U8, kind: delta.Elements) -> I64:
    """Exponents of some elements."""
    values = parent.view(f"<u{kind.itemsize}")
    some = values[:: max(1, len(values) // SAMPLE)].astype(np.int64)
    exponents: I64 = np.maximum(some >> kind.mantissa_bits & (1 << kind.exponent_bits) - 1, 1)
    return exponents


def _cells(exponents: I64, kind: delta.Elements, row_len: int, scales: _Scales) -> delta.Cells:
    """Cells that have the mean element in their middle."""
    total = 4 * int(exponents.sum()) // len(exponents)
    for side in (scales.rows, scales.cols):
        total -= int(side.sum(dtype=np.int64)) // max(1, len(side))
    base = min(max(MIDDLE + total, -4096), 4095)
    n = EXPONENTS if kind.exponent_bits else 1
    first = max(0, int(np.sort(exponents)[-1 - len(exponents) // 1024]) + 1 - n)
    return delta.Cells(row_len, scales.rows, scales.cols, base, first, n)


def _choose(data: U8, parent: U8, kind: delta.Elements, row_len: int, ways: list[_Scales], most: int) -> _Way:
    """The way with the fewest bits, by evenly spaced rows: which scales, and whether with exponents."""
    exponents = _exponents(parent, kind)
    row_bytes = row_len * kind.itemsize
    whole, step = len(data) // row_bytes, max(1, len(data) // kind.itemsize // CHOICE_SAMPLE)
    times = 1
    if step > 1 and whole >= 4 * step:
        rows = np.arange(0, whole, step)
        data, parent = (x[: whole * row_bytes].reshape(whole, row_bytes)[rows].reshape(-1) for x in (data, parent))
        times = step
    else:
        rows = np.arange(-(-len(data) // row_bytes))
    tried = []
    for scales in ways:
        cells = _cells(exponents, kind, row_len, scales)
        some = dataclasses.replace(cells, rows=scales.rows[rows] if len(scales.rows) else scales.rows)
        counts = delta.delta_count(data, parent, kind, TOP_BITS, some)[2] * np.uint32(times)
        tried.append(_Way(scales, cells, scales.bits + fold(counts, most).bits))
        if cells.exponents > 1:
            plain = counts.reshape(-1, delta.SCALES, 256).sum(axis=0, dtype=np.uint32)
            cells = dataclasses.replace(cells, first=0, exponents=1)
            tried.append(_Way(scales, cells, scales.bits + fold(plain, most).bits))
    return min(tried, key=lambda way: way.bits)


def _normalised(counts: I64) -> U16:
    """Frequencies in which symbol 0, which does not exist, has none."""
    freqs = tables.normalise_all(counts)
    for row in np.flatnonzero(freqs[:, 0]).tolist():
        freqs[row, 2 if freqs[row, 1] else 1] = freqs[row, 0]
        freqs[row, 0] = 0
    return freqs


@dataclasses.dataclass(frozen=True)
class _Coded:
    """Tables, the model stream with them and the maps, and the bits that it and the symbols take."""

    freqs: U16
    model: bytes
    bits: int

    @classmethod
    def of(cls, counts: I64, groups: U8, classes: U8) -> _Coded:
        freqs = _normalised(counts)
        maps = (_with_rice(map_moves(groups)), _with_rice(map_moves(classes) if len(classes) else classes))
        model = context.ctx_model_encode(*maps, freqs, TOP_BITS, 2, 1)
        symbols = sum(tables.cost(c, f) for c, f in zip(counts, freqs, strict=True)) // tables.COST_UNIT
        return cls(freqs, model, symbols + 8 * len(model))


# ---- encoding


def _elements(ctx: ChunkContext) -> delta.Elements | None:
    size = ctx.dtype.itemsize // ctx.dtype.components
    return delta.Elements(size, *(ctx.dtype.float_bits or ())) if size <= 4 else None


def encode_delta(data: memoryview, ctx: ChunkContext) -> bytes | None:
    """Payload for a chunk with references; None if there are none, or elements of eight bytes."""
    kind = _elements(ctx)
    if kind is None or not len(data) or not ctx.references:
        return None
    elements, parent = np.frombuffer(data, np.uint8), np.frombuffer(ctx.references[0], np.uint8)
    if np.array_equal(elements, parent):
        return b"\0"
    fields = delta.delta_fields(elements, parent, kind)
    row_len, columns = row_length(len(fields), ctx)
    most = MAX_GROUPS if len(ctx.references) > 1 else MAX_CLASSES
    way = _choose(elements, parent, kind, row_len, _measure(fields, row_len, columns), most)
    symbols, found, counts = delta.delta_count(elements, parent, kind, TOP_BITS, way.cells)
    folding = fold(counts, most)
    groups, n_groups, classes, refs, step_base = folding.classes, len(folding.counts), _NONE, 1, 0
    coded = _Coded.of(folding.counts, groups, _NONE)
    if len(ctx.references) > 1:
        grandparent = np.frombuffer(ctx.references[1], np.uint8)
        step_base = min(max(3 + (way.cells.base + way.scales.unit >> 2), -128), 127)
        cells = found.copy()
        counts = delta.delta_steps(parent, grandparent, kind, step_base, groups, n_groups, symbols, cells)
        folded = fold(counts, kinds=np.tile(_DIRECTIONS, n_groups))
        with_steps = _Coded.of(folded.counts, groups, folded.classes)
        if with_steps.bits < coded.bits:
            coded, classes, found, refs = with_steps, folded.classes, cells, 2
        else:
            step_base = 0
    freqs, model = coded.freqs, coded.model
    log_segment = LOG_SEGMENT if 4 * coded.bits > len(symbols) else LOG_SEGMENT + SPARSE
    of_elements = (classes if refs > 1 else groups)[found]
    streams, symbol_bytes = context.rans_ctx_encode(symbols, of_elements, 1 << log_segment, freqs)
    octaves = np.maximum((np.arange(256) >> 1 >> TOP_BITS) - 1, 0)
    raw_bits = int(folding.counts.sum(axis=0) @ octaves)
    raw, raw_bytes = delta.delta_raw(elements, parent, symbols, kind, TOP_BITS, log_segment, raw_bits)
    none = np.empty((0, 256), np.uint16)
    scales = context.ctx_model_encode(_with_rice(way.scales.rows), _with_rice(way.scales.cols), none, 0, 1, 0)
    sides = _ROWS * bool(len(way.scales.rows)) | _COLS * bool(len(way.scales.cols))
    cells_of = way.cells
    head = _HEADER.pack(
        *(refs, TOP_BITS, log_segment, sides, cells_of.base, cells_of.first, cells_of.exponents, step_base),
        *(n_groups, len(freqs), 0, row_len, len(scales), len(model)),
    )
    segments = np.stack([symbol_bytes, raw_bytes], axis=1).astype("<u4")
    padding = bytes(-(len(scales) + len(model)) % 8)
    return b"".join([head, scales, model, padding, segments.tobytes(), streams.data, raw.data])


def _with_rice(scales: U8) -> tuple[U8, int, int]:
    return (scales, *rice_parameters(scales)[:2]) if len(scales) else (scales, 0, 0)


# ---- decoding


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise CorruptError(f"a delta_ctx chunk has {what}; the chunk is damaged")


def _reference(ctx: ChunkContext, k: int, length: int) -> U8:
    _require(len(ctx.references) > k and len(ctx.references[k]) == length, "no such reference")
    return np.frombuffer(ctx.references[k], np.uint8)


class DeltaCtx:
    id = 8
    name = "delta_ctx"

    def encode(self, data: memoryview, ctx: ChunkContext) -> bytes | None:
        """None without references, for an empty chunk, and for elements of eight bytes."""
        return encode_delta(data, ctx)

    def decode(self, payload: memoryview, out: memoryview, ctx: ChunkContext) -> None:
        kind = _elements(ctx)
        _require(kind is not None, "elements of a type that it does not apply to")
        assert kind is not None
        count, odd = divmod(len(out), kind.itemsize)
        _require(not odd and count > 0, "a wrong length")
        parent = _reference(ctx, 0, len(out))
        if bytes(payload[:2]) == b"\0":
            out[:] = ctx.references[0]
            return
        _require(len(payload) >= _HEADER.size, "a wrong length")
        fields = _HEADER.unpack_from(payload)
        refs, top, log_segment, sides, base, first, exponents, step_base, n_groups, n_classes, zero = fields[:11]
        row_len, scales_bytes, model_bytes = fields[11:]
        _require(
            1 <= refs <= 2
            and top <= 4
            and delta.symbol_limit(kind.itemsize, top) <= 256
            and 10 <= log_segment <= 24
            and sides <= _ROWS | _COLS
            and -4096 <= base <= 4095
            and 1 <= exponents <= EXPONENTS
            and 1 <= n_groups <= MAX_CLASSES
            and 1 <= n_classes <= MAX_CLASSES
            and (refs == 2 or (n_groups == n_classes and step_base == 0))
            and zero == 0
            and row_len >= 1,
            "a bad header",
        )
        grandparent = _reference(ctx, 1, len(out)) if refs == 2 else _NONE
        model_at = _HEADER.size + scales_bytes
        end = model_at + model_bytes
        segments_at = end + -(scales_bytes + model_bytes) % 8
        n_segments = -(-count >> log_segment)
        symbols_at = segments_at + 8 * n_segments
        _require(len(payload) >= symbols_at, "a model that is too long")
        _require(not any(payload[end:segments_at]), "bits that must be zero")
        n_rows = -(-count // row_len) if sides & _ROWS else 0
        n_cols = min(row_len, count) if sides & _COLS else 0
        stream = np.frombuffer(payload, np.uint8, scales_bytes, _HEADER.size)
        _require(8 * scales_bytes >= n_rows + n_cols, "scales that are too short")
        rows, cols, _ = context.ctx_model_decode(stream, n_rows, n_cols, 0, 0, 1, 0)
        _require(_largest(rows) + _largest(cols) <= 255, "scales out of range")
        stream = np.frombuffer(payload, np.uint8, model_bytes, model_at)
        steps = delta.STEPS * n_groups if refs == 2 else 0
        maps = context.ctx_model_decode(stream, delta.SCALES * exponents, steps, n_classes, top, 2, 1)
        segments = np.frombuffer(payload, "<u4", 2 * n_segments, segments_at).reshape(n_segments, 2)
        symbol_bytes, raw_bytes = np.ascontiguousarray(segments.T)
        raw_at = symbols_at + int(symbol_bytes.sum(dtype=np.int64))
        _require(raw_at + int(raw_bytes.sum(dtype=np.int64)) == len(payload), "streams of a wrong length")
        groups, classes = unfold_moves(maps[0]), unfold_moves(maps[1])
        _require(int(groups.max()) < n_groups, "a group that does not exist")
        delta.delta_decode(
            np.frombuffer(payload, np.uint8),
            parent,
            grandparent,
            kind,
            top,
            log_segment,
            delta.Cells(row_len, rows, cols, base, first, exponents),
            step_base,
            groups,
            classes,
            maps[2],
            (symbols_at, raw_at),
            symbol_bytes,
            raw_bytes,
            np.frombuffer(out, np.uint8),
        )


def _largest(scales: U8) -> int:
    return int(scales.max()) if len(scales) else 0
