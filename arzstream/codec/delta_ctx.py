"""Codec 8: a tensor given its predecessor: differences of ordered integers, under classes that the references give.

Elements become integers whose order is that of the numbers, and the difference to the parent's a token (direction,
octave, leading bits) with raw bits. How large a change will be is known beforehand: optimisers move all elements of a
row and a column about as far (``delta_scales``), which in units of the element's last place is far for small ones and
hardly anything for large ones; and the changes before tell size and direction. What table follows from that, a model
says (``delta_model``): one that many chunks share, or one of the chunk's own.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from arzstream.codec.base import ChunkContext
from arzstream.codec.delta_learning import Changes, learn
from arzstream.codec.delta_model import Model, nearest, parse_model
from arzstream.codec.delta_scales import ChangeScales, measure_changes
from arzstream.codec.float_ctx import row_length
from arzstream.codec.scales import rice_parameters
from arzstream.errors import CorruptError
from arzstream.kernels import api, context, delta
from arzstream.kernels.api import LANES

__all__ = ["TOP_BITS", "DeltaCtx", "elements_of", "encode_delta", "look", "origin_of", "same", "scales_of", "top_bits"]

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]

_HEADER = struct.Struct("<BBBBhbBIIII")
_ROWS, _COLS = 1, 2
_NONE = np.empty(0, np.uint8)
TOP_BITS, OWN_TOP_BITS = 3, 2
"""Bits below the leading one in a token; of a model that many chunks share, and of a chunk's own, which pays for its
tables."""
PAIR, SPARSE = 1 << 19, 1 << 20
"""Most elements of a pair of segments, which decode at the same time; and of one where hardly anything changed, in
which a segment's 128 bytes would be much."""
ALONE = 1 << 17
"""Elements below which there is one segment."""
MIDDLE, MIDDLE_STEP = 28, 4
"""Which of the 64 expected sizes the mean element has; and which of the 7 sizes of the change before one as large as
what is expected now has."""
EXCEPTIONS = 64
"""A model is not for a chunk in which more than one element in so many has no frequency."""
OWN_LEAVES = 256
BEGINNING = 2048


# ---- encoding


def elements_of(ctx: ChunkContext) -> delta.Elements | None:
    """What the chunk's elements are; None if they have eight bytes."""
    size = ctx.dtype.itemsize // ctx.dtype.components
    return delta.Elements(size, *(ctx.dtype.float_bits or ())) if size <= 4 else None


def _references(ctx: ChunkContext, most: int = delta.MAX_REFERENCES) -> list[U8]:
    return [np.frombuffer(reference, np.uint8) for reference in ctx.references[:most]]


def top_bits(kind: delta.Elements, top: int) -> int:
    """``top``, or as many as elements so large allow."""
    while delta.symbol_limit(kind.itemsize, top) > 256:
        top -= 1
    return top


def scales_of(data: memoryview, ctx: ChunkContext) -> ChangeScales:
    """The scales of the changes of a chunk to its first reference."""
    kind = elements_of(ctx)
    assert kind is not None
    elements, parent = np.frombuffer(data, np.uint8), np.frombuffer(ctx.references[0], np.uint8)
    return measure_changes(elements, parent, kind, *row_length(len(data) // kind.itemsize, ctx))


def origin_of(ctx: ChunkContext, scales: ChangeScales) -> int:
    """The origin that puts the mean element of a chunk with these scales into the middle of the expected sizes."""
    kind = elements_of(ctx)
    assert kind is not None
    parent = np.frombuffer(ctx.references[0], np.uint8)
    values = parent.view(f"<u{kind.itemsize}")[:: max(1, len(parent) >> 13)].astype(np.int64)
    exponents = np.maximum(values >> kind.mantissa_bits & (1 << kind.exponent_bits) - 1, 1)
    mean = scales.offset - 4 * int(exponents.sum()) // len(exponents)
    for side in (scales.rows, scales.cols):
        mean += int(side.sum(dtype=np.int64)) // max(1, len(side))
    return min(max(MIDDLE - mean, -128), 127)


def look(
    data: memoryview, ctx: ChunkContext, scales: ChangeScales, references: int, top: int, origin: int
) -> tuple[delta.Rule, U8, U16] | None:
    """(what cells are made with, symbols, cells) of a chunk; None if it is out of the rule's range."""
    kind = elements_of(ctx)
    assert kind is not None
    elements, known = np.frombuffer(data, np.uint8), _references(ctx, references)
    row_len, _ = row_length(len(data) // kind.itemsize, ctx)
    rule = delta.Rule(
        row_len,
        scales.rows,
        scales.cols,
        scales.offset + origin,
        MIDDLE_STEP - 1 + (origin >> 2) if references > 1 else 0,
    )
    if not -4096 <= rule.base <= 4095:
        return None
    return rule, *delta.delta_cells(elements, known, kind, top, rule)


def same(one: memoryview, other: memoryview) -> bool:
    """Whether both hold the same bytes. What differs mostly does so at once."""
    if len(one) != len(other) or one[:BEGINNING] != other[:BEGINNING]:
        return False
    return np.array_equal(np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8))


def encode_delta(data: memoryview, ctx: ChunkContext) -> bytes | None:
    """Payload for a chunk with references, with the model of ``ctx.models`` that suits it, or one of its own; None if
    there are none, or elements of eight bytes."""
    kind = elements_of(ctx)
    if kind is None or not len(data) or not ctx.references:
        return None
    elements, parent = np.frombuffer(data, np.uint8), np.frombuffer(ctx.references[0], np.uint8)
    if same(data, ctx.references[0]):
        return b"\0"
    shared = nearest(ctx.models, kind, len(ctx.references))
    coded = _Coded.with_model(data, ctx, kind, *shared) if shared is not None else None
    if coded is None:
        coded = _Coded.alone(data, ctx, kind)
    return coded.payload(elements, parent, kind) if coded is not None else None


class _Coded:
    """A chunk's rule, model, symbols and classes; ``number`` is the model's among the unit's, 0 of its own."""

    def __init__(self, rule: delta.Rule, number: int, model: Model, symbols: U8, classes: U8, exceptions: U32) -> None:
        self.rule, self.number, self.model = rule, number, model
        self.symbols, self.classes, self.exceptions = symbols, classes, exceptions

    @classmethod
    def with_model(
        cls, data: memoryview, ctx: ChunkContext, kind: delta.Elements, number: int, model: Model
    ) -> _Coded | None:
        """None if the model has no frequency for too many."""
        looked = look(data, ctx, scales_of(data, ctx), model.references, model.top, model.origin)
        if looked is None:
            return None
        rule, symbols, cells = looked
        most = len(symbols) // EXCEPTIONS + 1
        found = delta.delta_classes(cells, symbols, model.class_of, model.freqs, most)
        return cls(rule, number, model, symbols, *found) if found is not None else None

    @classmethod
    def alone(cls, data: memoryview, ctx: ChunkContext, kind: delta.Elements) -> _Coded | None:
        """With a model that is learned from the chunk."""
        references, top = min(2, len(ctx.references)), top_bits(kind, OWN_TOP_BITS)
        scales = scales_of(data, ctx)
        origin = origin_of(ctx, scales)
        looked = look(data, ctx, scales, references, top, origin)
        if looked is None:
            return None
        rule, symbols, cells = looked
        model = learn(Changes.of(references, [(cells, symbols)]), top, origin, leaves=OWN_LEAVES)
        found = delta.delta_classes(cells, symbols, model.class_of, model.freqs, 0)
        assert found is not None
        return cls(rule, 0, model, symbols, *found)

    def payload(self, elements: U8, parent: U8, kind: delta.Elements) -> bytes:
        counts = api.histogram(self.symbols)
        sparse = 4 * int(counts[delta.UNCHANGED]) > 3 * len(self.symbols)
        segments, top, freqs = _segments(len(self.symbols), sparse), self.model.top, self.model.freqs
        per_segment = _per_segment(len(self.symbols), segments)
        streams, symbol_bytes = context.rans_ctx_encode(self.symbols, self.classes, per_segment, freqs)
        octaves = np.maximum((np.arange(256) >> 1 >> top) - 1, 0)
        raw_bits = int(counts.astype(np.int64) @ octaves)
        raw, raw_bytes = delta.delta_raw(elements, parent, self.symbols, kind, top, per_segment, raw_bits)
        rule, none = self.rule, np.empty((0, 256), np.uint16)
        scales = context.ctx_model_encode(_with_rice(rule.rows), _with_rice(rule.cols), none, 0, 1, 0)
        sides = _ROWS * bool(len(rule.rows)) | _COLS * bool(len(rule.cols))
        model = b"" if self.number else self.model.stored
        head = _HEADER.pack(
            *(self.model.references, self.number, segments, sides, rule.base, rule.step_base, 0),
            *(rule.row_len, len(self.exceptions), len(scales), len(model)),
        )
        table = np.stack([symbol_bytes, raw_bytes], axis=1).astype("<u4")
        padding = bytes(-(len(scales) + len(model)) % 8)
        patches = elements.view(f"<u{kind.itemsize}")[self.exceptions]
        return b"".join(
            [
                *(head, scales, model, padding, table.tobytes(), streams.data, raw.data),
                *(self.exceptions.astype("<u4").tobytes(), patches.tobytes()),
            ]
        )


def _segments(count: int, sparse: bool) -> int:
    if sparse:
        return -(-count // SPARSE)
    return 2 * -(-count // PAIR) if count >= ALONE else 1


def _per_segment(count: int, segments: int) -> int:
    """Elements of each segment but the last, which has what is left."""
    return LANES * -(-count // (LANES * segments))


def _with_rice(scales: U8) -> tuple[U8, int, int]:
    return (scales, *rice_parameters(scales)[:2]) if len(scales) else (scales, 0, 0)


# ---- decoding


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise CorruptError(f"a delta_ctx chunk has {what}; the chunk is damaged")


class DeltaCtx:
    id = 8
    name = "delta_ctx"

    def encode(self, data: memoryview, ctx: ChunkContext) -> bytes | None:
        """None without references, for an empty chunk, and for elements of eight bytes."""
        return encode_delta(data, ctx)

    def decode(self, payload: memoryview, out: memoryview, ctx: ChunkContext) -> None:
        kind = elements_of(ctx)
        _require(kind is not None, "elements of a type that it does not apply to")
        assert kind is not None
        count, odd = divmod(len(out), kind.itemsize)
        _require(not odd and count > 0, "a wrong length")
        _require(len(ctx.references) > 0 and len(ctx.references[0]) == len(out), "no such reference")
        if bytes(payload[:2]) == b"\0":
            out[:] = ctx.references[0]
            return
        _require(len(payload) >= _HEADER.size, "a wrong length")
        used, number, n_segments, sides, base, step_base, zero, row_len, *sizes = _HEADER.unpack_from(payload)
        n_exceptions, scales_bytes, model_bytes = sizes
        _require(
            1 <= used <= delta.MAX_REFERENCES
            and number <= len(ctx.models)
            and sides <= _ROWS | _COLS
            and -4096 <= base <= 4095
            and zero == 0
            and row_len >= 1
            and (used > 1 or step_base == 0)
            and (number == 0 or model_bytes == 0),
            "a bad header",
        )
        known = _decoded_references(ctx, used, len(out))
        model_at = _HEADER.size + scales_bytes
        end = model_at + model_bytes
        segments_at = end + -(scales_bytes + model_bytes) % 8
        _require(n_segments > 0, "no segments")
        per_segment = _per_segment(count, n_segments)
        _require((n_segments - 1) * per_segment < count, "segments of nothing")
        symbols_at = segments_at + 8 * n_segments
        exceptions_at = len(payload) - n_exceptions * (4 + kind.itemsize)
        _require(symbols_at <= exceptions_at, "a model that is too long")
        _require(not any(payload[end:segments_at]), "bits that must be zero")
        model = parse_model(bytes(payload[model_at:end]) if number == 0 else ctx.models[number - 1])
        _require(model.references == used and model.suits(kind, used), "a model that is not for it")
        stream = np.frombuffer(payload, np.uint8, scales_bytes, _HEADER.size)
        rows, cols = _read_scales(stream, count, row_len, sides)
        segments = np.frombuffer(payload, "<u4", 2 * n_segments, segments_at).reshape(n_segments, 2)
        symbol_bytes, raw_bytes = np.ascontiguousarray(segments.T)
        raw_at = symbols_at + int(symbol_bytes.sum(dtype=np.int64))
        _require(raw_at + int(raw_bytes.sum(dtype=np.int64)) == exceptions_at, "streams of a wrong length")
        whole, result = np.frombuffer(payload, np.uint8), np.frombuffer(out, np.uint8)
        rule = delta.Rule(row_len, rows, cols, base, step_base)
        places = (symbols_at, raw_at)
        delta.delta_decode(
            whole[:exceptions_at], known, kind, model.top, per_segment, rule, model.class_of, model.slots, places,
            symbol_bytes, raw_bytes, result,
        )  # fmt: skip
        if n_exceptions:
            at = np.frombuffer(payload, "<u4", n_exceptions, exceptions_at)
            _require(bool((at[1:] > at[:-1]).all()) and int(at[-1]) < count, "exceptions out of order")
            values = np.frombuffer(payload, f"<u{kind.itemsize}", n_exceptions, exceptions_at + 4 * n_exceptions)
            result.view(f"<u{kind.itemsize}")[at] = values


def _decoded_references(ctx: ChunkContext, used: int, length: int) -> Sequence[U8]:
    _require(used <= len(ctx.references), "no such reference")
    known = _references(ctx, used)
    _require(all(len(reference) == length for reference in known), "no such reference")
    return known


def _read_scales(stream: U8, count: int, row_len: int, sides: int) -> tuple[U8, U8]:
    n_rows = -(-count // row_len) if sides & _ROWS else 0
    n_cols = min(row_len, count) if sides & _COLS else 0
    _require(8 * len(stream) >= n_rows + n_cols, "scales that are too short")
    rows, cols, _ = context.ctx_model_decode(stream, n_rows, n_cols, 0, 0, 1, 0)
    _require(_largest(rows) + _largest(cols) <= 255, "scales out of range")
    return rows, cols


def _largest(scales: U8) -> int:
    return int(scales.max()) if len(scales) else 0
