"""Codec 6: quantised tensors, as records whose scales and codes are coded apart.

A record is a block of a GGUF file, or a byte of an int8 or packed int4 tensor. Its parts are byte strings that share
tables; a rule (``record_classes``) may choose among several. What does not shrink is stored as it is.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from arzstream.codec import nibbles, tables
from arzstream.codec.base import ChunkContext
from arzstream.codec.block_layouts import LAYOUTS, OTHERS, PLAIN, Part, find_period
from arzstream.codec.scales import log2_eighths, rice_parameters
from arzstream.errors import CorruptError
from arzstream.kernels import api, context, numpy_records
from arzstream.kernels.records import Rule, put_part, record_classes, take_part

__all__ = ["QuantBlocks", "decode_records", "encode_blocks", "encode_parts", "encode_records"]

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]
I32 = NDArray[np.int32]

_HEADER = struct.Struct("<HBBI")
_PART = struct.Struct("<HBBBBBBHHHhhI")
_RAW, _BYTES, _NIBBLES = range(3)
_NUMERATOR, _DENOMINATOR, _SCALE, _COLUMNS = 1, 2, 4, 8
MAX_RECORD, MAX_PARTS, MAX_CLASSES = 1024, 64, 64
LOG_SEGMENT = 19
"""Symbols of a segment, log2."""
SAMPLE = 1 << 16
"""Bytes of a part that rules are compared on, about: whole rows, evenly spaced."""
MIN_ROW = 16
"""Bytes of a row whose columns may have scales."""
COLUMN_ROWS = 512
"""Rows that the scales of columns are measured on, at least, where there are more."""
COLUMN_MIDDLE = 32
"""The scale of a usual column, in quarters of an octave: how far below it they may go."""
PART_GAIN = 0.99
"""A part that does not shrink below this share is stored as it is."""
GAIN = 0.995
"""The same for the whole."""
_NO_SCALES = np.empty(0, np.uint8)
_BYTE_VALUES = np.arange(256, dtype=np.uint8)
_FIRST = context.FIRST


# ---- one part, chosen


@dataclasses.dataclass(frozen=True)
class _Coded:
    """A part ready to be written; ``kind`` _RAW has neither rule nor model."""

    length: int
    kind: int
    rule: Rule
    model: bytes
    stream_bytes: U32
    stream: U8

    @property
    def size(self) -> int:
        return _PART.size + len(self.model) + 4 * len(self.stream_bytes) + len(self.stream)

    def descriptor(self) -> bytes:
        r = self.rule
        flags = _NUMERATOR * (r.numerator is not None) | _DENOMINATOR * (r.denominator is not None)
        flags |= _SCALE * (r.scale is not None) | _COLUMNS * r.columns
        return _PART.pack(
            self.length,
            self.kind,
            r.z_classes,
            r.e_classes,
            flags,
            r.z_shift,
            r.e_shift,
            r.numerator or 0,
            r.denominator or 0,
            r.scale or 0,
            r.z_base,
            r.e_base,
            len(self.model),
        )


@dataclasses.dataclass(frozen=True)
class _Records:
    """Records of ``length`` bytes, ``row`` of them a row."""

    data: U8
    length: int
    row: int

    @property
    def count(self) -> int:
        return len(self.data) // self.length

    def sample(self, rows: int) -> _Records:
        """About so many whole rows, evenly spaced."""
        whole = self.count // self.row
        if whole < 2 * rows:
            return self
        grid = self.data[: whole * self.row * self.length].reshape(whole, -1)
        return _Records(grid[np.arange(rows) * whole // rows].reshape(-1), self.length, self.row)

    def field(self, offset: int) -> I32:
        return numpy_records.field(self.data.reshape(-1, self.length), offset)

    def below_mean(self, rule: Rule) -> I32:
        """e of each record, without columns."""
        assert rule.scale is not None
        return numpy_records.below_mean(self.field(rule.scale) >> rule.e_shift, self.row)

    def classes(self, length: int, rule: Rule, cols: U8) -> U8 | None:
        """None where there is but one."""
        if rule.classes == 1:
            return None
        return record_classes(self.data, self.length, min(self.row, self.count), length, rule, cols)


def _column_scales(records: _Records, at: int, length: int, rule: Rule) -> U8:
    """Scale of each column of int8 codes, in quarters of an octave: log2 of their mean magnitude, and how far the
    scales of its records are above those of their rows."""
    if not rule.columns:
        return _NO_SCALES
    width = min(records.row, records.count)
    some = _Records(records.data, records.length, width).sample(COLUMN_ROWS)
    whole = some.count // width
    codes = take_part(some.data, some.length, at, length).view(np.int8)[: whole * width * length]
    sums = np.abs(codes.astype(np.int16)).reshape(whole, width * length).sum(axis=0, dtype=np.int64)
    logs = log2_eighths(sums.astype(np.uint64)) >> 1
    if rule.scale is not None:
        below = some.below_mean(rule)[: whole * width].reshape(whole, width)
        logs -= np.repeat(below.sum(axis=0, dtype=np.int64) // whole, length)
    scales: U8 = np.clip(logs - _median(logs) + COLUMN_MIDDLE, 0, 255).astype(np.uint8)
    return scales


def _median(x: NDArray[np.signedinteger]) -> int:
    """Of some of ``x``, evenly spaced."""
    some = np.sort(x[:: 1 + len(x) // 1024])
    return int(some[len(some) // 2])


def _with_bases(rule: Rule, records: _Records) -> Rule:
    """``rule`` with bases that put what is common in the middle of the classes."""
    z_base = e_base = 0
    if rule.numerator is not None:
        z = records.field(rule.numerator) >> rule.z_shift
        if rule.denominator is not None:
            z -= records.field(rule.denominator) >> rule.z_shift
        z_base = _median(z) - rule.z_classes // 2
    if rule.scale is not None:
        e_base -= _median(records.below_mean(rule))
    if rule.e_classes > 1:
        e_base += (rule.e_classes - 1) // 2 - COLUMN_MIDDLE * rule.columns
    return dataclasses.replace(rule, z_base=z_base, e_base=e_base)


def _counts(symbols: U8, classes: U8 | None, rule: Rule) -> U32:
    """Shape (classes, 256)."""
    if classes is None:
        return api.histogram(symbols)[None]
    joint = symbols | classes.astype(np.uint16) << np.uint16(8)
    return api.histogram(joint, 256 * rule.classes).reshape(-1, 256)


def _estimate(counts: U32, nibble: bool, share: int, cols: U8) -> int:
    """Bits of a part of which ``counts`` has the 1 / share."""
    seen = nibbles.halves(counts) if nibble else counts
    used = int(np.count_nonzero(seen))
    bits = tables.entropy(seen) // tables.COST_UNIT * share
    # A table fitted to a sample flatters it by 0.72 bits an entry; an entry takes 4 to 9 bits.
    bits += used * (share * 3 // 4 + (9 if nibble else 4))
    return bits + (rice_parameters(cols)[2] if len(cols) else 0)


def _choose_rule(part: Part, records: _Records, at: int) -> tuple[Rule, U8]:
    """The rule with the fewest bits on a sample, with its bases, and the scales of its columns."""
    best = (Rule(), _NO_SCALES)
    if not part.rules:
        return best
    some = records.sample(max(4, SAMPLE // (records.row * part.length)))
    share = records.count // some.count
    symbols = take_part(some.data, some.length, at, part.length)
    least = _estimate(_counts(symbols, None, Rule()), part.nibbles, share, _NO_SCALES)
    columns: dict[int | None, U8] = {}
    for shape in part.rules:
        rule = _with_bases(shape, some)
        cols = _NO_SCALES
        if rule.columns:
            if rule.scale not in columns:
                columns[rule.scale] = _column_scales(records, at, part.length, rule)
            cols = columns[rule.scale]
        counts = _counts(symbols, some.classes(part.length, rule, cols), rule)
        bits = _estimate(counts, part.nibbles, share, cols)
        if bits < least:
            best, least = (rule, cols), bits
    return best


def _code(part: Part, records: _Records, at: int, contexts: bool) -> _Coded:
    symbols = take_part(records.data, records.length, at, part.length)
    rule, cols = _choose_rule(part, records, at) if contexts else (Rule(), _NO_SCALES)
    classes = records.classes(part.length, rule, cols)
    counts = _counts(symbols, classes, rule)
    freqs, stored, bits = _tables(counts, part.nibbles)
    raw = _Coded(part.length, _RAW, Rule(), b"", np.empty(0, np.uint32), symbols)
    if bits >= 8 * PART_GAIN * len(symbols):
        return raw
    columns = (cols, *rice_parameters(cols)[:2]) if len(cols) else (cols, 0, 0)
    model = context.ctx_model_encode((_NO_SCALES, 0, 0), columns, stored, 0, 1, 0)
    if classes is None:
        stream, stream_bytes = api.rans_encode(symbols, 1 << LOG_SEGMENT, _BYTE_VALUES, freqs[0])
    else:
        stream, stream_bytes = context.rans_ctx_encode(symbols, classes, 1 << LOG_SEGMENT, freqs)
    coded = _Coded(part.length, _NIBBLES if part.nibbles else _BYTES, rule, model, stream_bytes, stream)
    return coded if coded.size < PART_GAIN * raw.size else raw


def _tables(counts: U32, nibble: bool) -> tuple[U16, U16, int]:
    """(frequencies of bytes for the coder, frequencies as they are stored, bits of the symbols)."""
    if nibble:
        stored = np.zeros(counts.shape, np.uint16)
        stored[:, _FIRST : _FIRST + 16] = tables.normalise_all(nibbles.halves(counts))
        freqs = nibbles.expand(stored[:, _FIRST : _FIRST + 16])
    else:
        freqs = stored = tables.normalise_all(counts)
    return freqs, stored, tables.cost(counts.reshape(-1), freqs.reshape(-1)) // tables.COST_UNIT


# ---- encoding


def encode_parts(parts: tuple[Part, ...], data: U8, row: int, contexts: bool) -> bytes:
    """Payload for records of these ``parts``, ``row`` of them a row; ``contexts`` as in :func:`encode_records`."""
    length = sum(part.length for part in parts)
    records = _Records(data, length, row)
    coded, at = [], 0
    for part in parts:
        coded.append(_code(part, records, at, contexts))
        at += part.length
    head = _HEADER.pack(length, LOG_SEGMENT, len(coded), row) + b"".join(c.descriptor() for c in coded)
    head += b"".join(c.model for c in coded)
    lengths = [c.stream_bytes.astype("<u4").tobytes() for c in coded]
    return b"".join([head, bytes(-len(head) % 8), *lengths, *(c.stream.data for c in coded)])


def encode_records(data: U8, row_bytes: int, period: int | None, contexts: bool = True) -> bytes | None:
    """Payload for rows of ``row_bytes`` bytes made of records of ``period`` bytes, a key of
    :data:`arzstream.codec.block_layouts.LAYOUTS`, or of single bytes (None); None if there is little to gain.

    ``contexts``: whether several tables for a part are tried; they decode at half the speed.
    """
    if not len(data):
        return None
    if period is not None:
        payload = encode_parts(_block_layout(data, row_bytes, period), data, row_bytes // period, contexts)
    else:
        layout = _plain_layout(data)
        if layout is None:
            return None
        payload = encode_parts(layout, data, row_bytes, contexts and row_bytes >= MIN_ROW)
    return payload if len(payload) < GAIN * len(data) else None


def _block_layout(data: U8, row_bytes: int, period: int) -> tuple[Part, ...]:
    """The layout of blocks of this length; of several, the one that leaves least of the first rows."""
    candidates = [LAYOUTS[period], *([OTHERS[period]] if period in OTHERS else [])]
    if len(candidates) == 1:
        return candidates[0]
    some = data[: max(1, SAMPLE // row_bytes) * row_bytes]
    return min(candidates, key=lambda layout: len(encode_parts(layout, some, row_bytes // period, False)))


def _plain_layout(data: U8) -> tuple[Part, ...] | None:
    """Whole bytes or two codes each, whichever is smaller without classes; None where neither gains."""
    counts = api.histogram(data[:: max(1, len(data) // SAMPLE)].copy() if len(data) > 2 * SAMPLE else data)[None]
    share = max(1, len(data) // int(counts.sum()))
    bits = [_estimate(counts, layout[0].nibbles, share, _NO_SCALES) for layout in PLAIN]
    best = int(np.argmin(bits))
    return PLAIN[best] if bits[best] < 8 * PART_GAIN * len(data) else None


# ---- decoding


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise CorruptError(f"a quant_blocks chunk has {what}; the chunk is damaged")


@dataclasses.dataclass(frozen=True)
class _Described:
    """A part as a payload describes it; ``at`` is its offset in the record."""

    at: int
    length: int
    kind: int
    rule: Rule
    model_bytes: int


def _read_parts(payload: memoryview, record: int, count: int) -> Iterator[_Described]:
    at = 0
    for i in range(count):
        length, kind, z, e, flags, zs, es, numerator, denominator, scale, z_base, e_base, model = _PART.unpack_from(
            payload, _HEADER.size + i * _PART.size
        )
        rule = Rule(
            z,
            e,
            numerator if flags & _NUMERATOR else None,
            denominator if flags & _DENOMINATOR else None,
            scale if flags & _SCALE else None,
            bool(flags & _COLUMNS),
            zs,
            es,
            z_base,
            e_base,
        )
        _require(1 <= length <= record - at and kind <= _NIBBLES and flags < 16, "a bad part")
        _require(z >= 1 and e >= 1 and rule.classes <= MAX_CLASSES and zs <= 15 and es <= 15, "a bad rule")
        _require(z == 1 or rule.numerator is not None, "classes without a field")
        _require(rule.denominator is None or rule.numerator is not None, "a ratio of nothing")
        _require(e == 1 or rule.scale is not None or rule.columns, "classes without a scale")
        _require(all(field + 2 <= at for field in rule.fields), "a field that is not known yet")
        _require(kind != _RAW or (rule == Rule(z_base=z_base, e_base=e_base) and not model), "a rule for what is raw")
        yield _Described(at, length, kind, rule, model)
        at += length
    _require(at == record, "parts that are no record")


def decode_records(payload: memoryview, out: memoryview) -> None:
    """Undo :func:`encode_records`. Raises CorruptError."""
    _require(len(payload) >= _HEADER.size and len(out) > 0, "a wrong length")
    record, log_segment, n_parts, row = _HEADER.unpack_from(payload)
    _require(1 <= record <= MAX_RECORD and 1 <= n_parts <= MAX_PARTS and row >= 1, "a bad header")
    _require(10 <= log_segment <= 24 and len(out) % record == 0, "a bad header")
    place = _HEADER.size + n_parts * _PART.size
    _require(len(payload) >= place, "a wrong length")
    parts = list(_read_parts(payload, record, n_parts))
    target, n = np.frombuffer(out, np.uint8), len(out) // record
    source = np.frombuffer(payload, np.uint8)

    models = []
    for part in parts:
        models.append(source[place : place + part.model_bytes])
        place += part.model_bytes
    segments_at = place + -place % 8
    _require(len(payload) >= segments_at and not any(payload[place:segments_at]), "models of a wrong length")
    n_segments = [0 if p.kind == _RAW else -(-n * p.length >> log_segment) for p in parts]
    place = segments_at + 4 * sum(n_segments)
    _require(len(payload) >= place, "a wrong length")
    lengths = np.frombuffer(payload, "<u4", sum(n_segments), segments_at).astype(np.uint32)
    for part, model, segments in zip(parts, models, n_segments, strict=True):
        stream_bytes, lengths = lengths[:segments], lengths[segments:]
        size = n * part.length if part.kind == _RAW else int(stream_bytes.sum(dtype=np.int64))
        _require(size <= len(payload) - place, "streams of a wrong length")
        stream = source[place : place + size]
        place += size
        if part.kind != _RAW:
            stream = _decode_part(part, model, stream, stream_bytes, target, record, min(row, n), log_segment)
        put_part(stream, record, part.at, part.length, target)
    _require(place == len(payload), "bytes after its last stream")


def _decode_part(
    part: _Described, model: U8, stream: U8, stream_bytes: U32, target: U8, record: int, row: int, log_segment: int
) -> U8:
    rule = part.rule
    n_cols = row * part.length if rule.columns else 0
    _, cols, freqs = context.ctx_model_decode(model, 0, n_cols, rule.classes, 0, 1, 0)
    if part.kind == _NIBBLES:
        freqs = _expanded(freqs)
    symbols = np.empty(len(target) // record * part.length, np.uint8)
    if rule.classes == 1:
        _require(bool(freqs.any()), "no table")
        api.rans_decode(stream, stream_bytes, 1 << log_segment, _BYTE_VALUES, freqs[0], symbols)
    else:
        classes = record_classes(target, record, row, part.length, rule, cols)
        context.rans_ctx_decode(stream, stream_bytes, 1 << log_segment, classes, freqs, symbols)
    return symbols


def _expanded(freqs: U16) -> U16:
    codes = freqs[:, _FIRST : _FIRST + 16]
    _require(int(np.count_nonzero(freqs)) == int(np.count_nonzero(codes)), "a code of more than four bits")
    return nibbles.expand(codes)


class QuantBlocks:
    id = 6
    name = "quant_blocks"

    def encode(self, data: memoryview, ctx: ChunkContext) -> bytes | None:
        """None for floats, for types of more than four bytes, and where little is gained."""
        return encode_blocks(data, ctx)

    def decode(self, payload: memoryview, out: memoryview, ctx: ChunkContext) -> None:
        decode_records(payload, out)


def encode_blocks(data: memoryview, ctx: ChunkContext, contexts: bool = True) -> bytes | None:
    """Payload for a chunk of integers; see :class:`QuantBlocks`."""
    if ctx.dtype.float_bits or ctx.dtype.itemsize > 4:
        return None
    row_bytes = ctx.cols * ctx.dtype.itemsize
    elements = np.frombuffer(data, np.uint8)
    period = find_period(elements, row_bytes) if ctx.dtype.name == "U8" else None
    return encode_records(elements, row_bytes, period, contexts)
