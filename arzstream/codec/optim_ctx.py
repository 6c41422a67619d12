"""Codec 9: optimiser state given the rest of its checkpoint and the checkpoint before.

A master weight lies where it rounds to the weight in half precision, near its parent and nearer to where a step of Adam
takes it. A second moment is the old one, faded, and something on top. A first moment is as large as the root of the
second. ``optim_choice`` finds out what holds; here it becomes bytes: a difference to what is expected, as a token
(direction, octave, leading bits) under a class, and raw bits.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from arzstream.codec import tables
from arzstream.codec.base import ChunkContext
from arzstream.codec.cell_classes import MAX_CLASSES, fold, map_moves, unfold_moves
from arzstream.codec.float_ctx import row_length
from arzstream.codec.optim_choice import NOTHING, Choice, Plan, expectation, plan, with_rice
from arzstream.codec.optim_fit import LARGEST
from arzstream.errors import CorruptError
from arzstream.kernels import context, optim

__all__ = ["OptimCtx", "encode_optim", "encode_planned", "plan_optim"]

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
I64 = NDArray[np.int64]

_HEADER = struct.Struct("<BBBBBB4BhIII3d")
_ROWS, _COLS = 1, 2
NEAR, SCALED, FROM_HALVES = range(3)
"""How elements are expected: near the parent, as large as roots of squares, near the halves."""
LOG_SEGMENT = 18


def plan_optim(data: memoryview, ctx: ChunkContext) -> Plan | None:
    """How a chunk of fp32 whose role and references are known would be coded; None if they are of no use."""
    if ctx.dtype.name != "F32" or len(data) < 4:
        return None
    elements = np.frombuffer(data, np.uint8)
    return plan(elements, ctx, *row_length(len(elements) // 4, ctx))


def encode_planned(data: memoryview, wanted: Plan) -> bytes:
    """Payload of a chunk, as it was planned."""
    elements = np.frombuffer(data, np.uint8)
    return _encode(elements, wanted.carried_out(elements))


def encode_optim(data: memoryview, ctx: ChunkContext) -> bytes | None:
    """Payload for a chunk of fp32 whose role and references are known; None if they are of no use."""
    wanted = plan_optim(data, ctx)
    return None if wanted is None else encode_planned(data, wanted)


def _encode(elements: U8, choice: Choice) -> bytes:
    to = choice.to
    symbols, cells, counts = optim.optim_count(elements, to)
    folding = fold(counts, MAX_CLASSES)
    freqs = tables.normalise_all(folding.counts)
    none = np.empty(0, np.uint8)
    model = context.ctx_model_encode(
        with_rice(map_moves(folding.classes)), with_rice(none), freqs, optim.TOP, 2, 1
    )  # fmt: skip
    scales = context.ctx_model_encode(
        with_rice(to.rows), with_rice(to.cols), np.empty((0, 256), np.uint16), 0, 1, 0
    )  # fmt: skip
    streams, symbol_bytes = context.rans_ctx_encode(symbols, folding.classes[cells], 1 << LOG_SEGMENT, freqs)
    raw_bits = int(folding.counts.sum(axis=0) @ optim.raw_lengths(to.scaled, to.raw))
    raw, raw_bytes = optim.optim_raw(elements, symbols, to, LOG_SEGMENT, raw_bits)
    mode = SCALED if to.scaled else NEAR if choice.numbers[0] != NOTHING else FROM_HALVES
    sides = _ROWS * bool(len(to.rows)) | _COLS * bool(len(to.cols))
    head = _HEADER.pack(
        *(mode, to.raw, LOG_SEGMENT, sides, to.kind, len(freqs), *choice.numbers, to.base),
        *(to.row_len, len(scales), len(model), *choice.factors),
    )
    segments = np.stack([symbol_bytes, raw_bytes], axis=1).astype("<u4")
    padding = bytes(-(len(scales) + len(model)) % 8)
    return b"".join([head, scales, model, padding, segments.tobytes(), streams.data, raw.data])


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise CorruptError(f"an optim_ctx chunk has {what}; the chunk is damaged")


def _reference(ctx: ChunkContext, number: int, nbytes: int) -> U8:
    """Bytes of a reference; none where there is to be none."""
    if number == NOTHING:
        return np.empty(0, np.uint8)
    _require(number < len(ctx.references) and len(ctx.references[number]) == nbytes, "no such reference")
    return np.frombuffer(ctx.references[number], np.uint8)


class OptimCtx:
    id = 9
    name = "optim_ctx"

    def encode(self, data: memoryview, ctx: ChunkContext) -> bytes | None:
        """None where roles are not known, and for types other than fp32."""
        return encode_optim(data, ctx)

    def decode(self, payload: memoryview, out: memoryview, ctx: ChunkContext) -> None:
        count, odd = divmod(len(out), 4)
        _require(ctx.dtype.name == "F32", "elements of a type that it does not apply to")
        _require(not odd and count > 0 and len(payload) >= _HEADER.size, "a wrong length")
        fields = _HEADER.unpack_from(payload)
        mode, raw, log_segment, sides, kind, n_classes = fields[:6]
        numbers, (base, row_len, scales_bytes, model_bytes), factors = fields[6:10], fields[10:14], fields[14:]
        _require(
            mode <= FROM_HALVES
            and raw <= optim.MAX_RAW
            and 10 <= log_segment <= 24
            and sides <= _ROWS | _COLS
            and kind <= optim.F16
            and 1 <= n_classes <= MAX_CLASSES
            and -4096 <= base <= 4095
            and row_len >= 1,
            "a bad header",
        )
        self._check_mode(mode, raw, kind, numbers, factors)
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
        _require(int(rows.max(initial=0)) + int(cols.max(initial=0)) <= 255, "scales out of range")
        stream = np.frombuffer(payload, np.uint8, model_bytes, model_at)
        maps = context.ctx_model_decode(stream, optim.CELLS, 0, n_classes, optim.TOP, 2, 1)
        classes = unfold_moves(maps[0])
        _require(int(classes.max()) < n_classes, "a class that does not exist")
        segments = np.frombuffer(payload, "<u4", 2 * n_segments, segments_at).reshape(n_segments, 2)
        symbol_bytes, raw_bytes = np.ascontiguousarray(segments.T)
        raw_at = symbols_at + int(symbol_bytes.sum(dtype=np.int64))
        _require(raw_at + int(raw_bytes.sum(dtype=np.int64)) == len(payload), "streams of a wrong length")
        sizes = [4 * count, 2 * count, 4 * count, 4 * count]
        held = [_reference(ctx, number, size) for number, size in zip(numbers, sizes, strict=True)]
        to = expectation(held, mode == SCALED, factors, kind)
        to = to.scaled_by(row_len, rows, cols, base, raw)
        optim.optim_decode(
            np.frombuffer(payload, np.uint8), to, log_segment, classes, maps[2], (symbols_at, raw_at), symbol_bytes,
            raw_bytes, np.frombuffer(out, np.uint8),
        )  # fmt: skip

    @staticmethod
    def _check_mode(mode: int, raw: int, kind: int, numbers: tuple[int, ...], factors: tuple[float, ...]) -> None:
        parent, halves, moment, square = (number != NOTHING for number in numbers)
        _require(halves == (kind != optim.NO_HALVES), "halves of a type that it does not have")
        if mode == SCALED:
            _require(raw >= 16 and square and not (halves or moment), "a bad mode")
            _require(not any(factors), "factors of nothing")
            return
        _require(moment == square and (parent if mode == NEAR else halves and not (parent or moment)), "a bad mode")
        for factor, use in zip(factors, (parent, moment, moment), strict=True):
            _require(1 / LARGEST <= abs(factor) <= LARGEST if use else factor == 0.0, "a bad factor")
        _require(not moment or factors[2] > 0, "a bad factor")
