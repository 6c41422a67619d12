"""Codec 4: exponents entropy-coded, everything else as it is, at memory speed.

Every decision is made here: the palette, the mode, the frequencies, the framing. The kernels carry them out.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arzstream.codec import tables
from arzstream.codec.base import ChunkContext
from arzstream.errors import CorruptError
from arzstream.kernels import api

__all__ = ["SINGLE_GAIN", "FloatFast", "encode_floats"]

LOG_SEGMENT = 18
"""Elements of a segment, log2: enough segments in a chunk of 2^20 for several decoders, 0.03 % for their states."""
SINGLE_GAIN = 0.003
"""How much smaller than pairs, of the whole, single must be to be chosen: it decodes at half the speed."""
MAX_ESCAPES = 1 / 16
"""Share of elements outside the palette above which pairs are not tried."""

SAMPLE = 1 << 14
"""Elements from which the palette for pairs is guessed; the counts of all decide between the modes."""

_HEADER = struct.Struct("<BBBBHH")
_SINGLE, _PAIRS, _PRECISION, _PALETTE, _ESCAPE = 0, 1, 12, 15, 15
_BYTE_VALUES = np.arange(256, dtype=np.uint8)
_NO_VALUES, _NO_FREQS = np.empty(0, np.uint8), np.empty(0, np.uint16)

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]
Exponents = NDArray[Any]


def _pack(mode: int, palette: U16, table: bytes, segments: U32, parts: list[NDArray[np.generic]]) -> bytes:
    head = _HEADER.pack(mode, _PRECISION, LOG_SEGMENT, 0, len(palette), len(table)) + palette.tobytes() + table
    return b"".join([head, bytes(-len(head) % 8), segments.tobytes(), *(p.view(np.uint8).data for p in parts)])


def _by_frequency(counts: U32) -> U16:
    """The exponents that occur, the commonest first."""
    order = np.argsort(-counts.astype(np.int64), kind="stable")[: np.count_nonzero(counts)]
    return order.astype(np.uint16)


def _guess_palette(data: U8, float_bits: tuple[int, int], size: int) -> U16 | None:
    """Palette for pairs from evenly spaced elements, or None where too many would be escaped."""
    elements = data.view(f"<u{(1 + sum(float_bits)) // 8}")
    sample = np.ascontiguousarray(elements[:: max(1, len(elements) // SAMPLE)])
    exponents, _ = api.split_fields(sample.view(np.uint8), float_bits, LOG_SEGMENT)
    counts = api.histogram(exponents, size)
    order = _by_frequency(counts)
    escaped = len(sample) - int(counts[order[:_PALETTE]].sum())
    return order[:_PALETTE] if escaped <= MAX_ESCAPES * len(sample) or len(order) > 256 else None


def _count_exponents(pair_counts: U32, palette: U16, escaped: Exponents, odd: bool, size: int) -> U32:
    """Counts of all exponents, from those of the pairs and from the escapes: cheaper than another pass."""
    counts = api.histogram(escaped, size)
    grid = pair_counts.reshape(16, 16)
    halves = grid.sum(axis=0, dtype=np.uint32) + grid.sum(axis=1, dtype=np.uint32)
    halves[0] -= odd  # the upper half of the last symbol is no element
    counts[palette] += halves[: len(palette)]
    return counts


def encode_floats(data: memoryview, float_bits: tuple[int, int], single_gain: float = SINGLE_GAIN) -> bytes | None:
    """Payload for floats of ``float_bits`` = (exponent, mantissa bits); None if there are none.

    ``single_gain``: see :data:`SINGLE_GAIN`; 0 chooses the smaller mode.
    """
    if not len(data):
        return None
    elements = np.frombuffer(data, np.uint8)
    count = len(data) * 8 // (1 + sum(float_bits))
    size = max(256, 1 << float_bits[0])
    segments = np.zeros((-(-count >> LOG_SEGMENT), 2), np.uint32)
    exponents = None

    palette = _guess_palette(elements, float_bits, size)
    if palette is None:
        exponents, raw = api.split_fields(elements, float_bits, LOG_SEGMENT)
        counts = api.histogram(exponents, size)
    else:
        raw, symbols, escaped, escape_counts, pairs = api.split_pairs(elements, float_bits, LOG_SEGMENT, palette)
        counts = _count_exponents(pairs, palette, escaped, count % 2 == 1, size)
    order = _by_frequency(counts)
    if len(order) == 1:
        return _pack(_SINGLE, order, b"", segments, [raw])

    single_bits = None
    if len(order) <= 256:
        single_freqs = tables.normalise(counts[order])
        single_table = tables.serialise(single_freqs)
        single_bits = tables.cost(counts[order], single_freqs) // tables.COST_UNIT
        single_bits += 8 * (len(single_table) + 2 * len(order) + len(raw))
    elif palette is None:  # the sample showed fewer exponents than there are
        palette = order[:_PALETTE]
        raw, symbols, escaped, escape_counts, pairs = api.split_pairs(elements, float_bits, LOG_SEGMENT, palette)
    if palette is not None:
        freqs = tables.normalise(pairs)
        table = tables.serialise(freqs)
        bits = tables.cost(pairs, freqs) // tables.COST_UNIT
        bits += 8 * (len(table) + 2 * len(palette) + escaped.nbytes + len(raw))
        if single_bits is None or single_bits >= (1 - single_gain) * bits:
            segments[:, 1] = escape_counts
            streams, segments[:, 0] = api.rans_encode(symbols, 1 << (LOG_SEGMENT - 1), _BYTE_VALUES, freqs)
            return _pack(_PAIRS, palette, table, segments, [raw, streams, escaped])

    if exponents is None:
        exponents, _ = api.split_fields(elements, float_bits, LOG_SEGMENT)
    if exponents.itemsize == 1:
        values = order.astype(np.uint8)
    else:
        places = np.zeros(len(counts), np.uint8)
        places[order] = _BYTE_VALUES[: len(order)]
        exponents, values = api.map_symbols(exponents, places), _BYTE_VALUES[: len(order)]
    streams, segments[:, 0] = api.rans_encode(exponents, 1 << LOG_SEGMENT, values, single_freqs)
    return _pack(_SINGLE, order, single_table, segments, [raw, streams])


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise CorruptError(f"a float_fast chunk has {what}; the chunk is damaged")


class FloatFast:
    id = 4
    name = "float_fast"

    def encode(self, data: memoryview, ctx: ChunkContext) -> bytes | None:
        """None for types without an exponent field, and for an empty chunk."""
        return encode_floats(data, ctx.dtype.float_bits) if ctx.dtype.float_bits else None

    def decode(self, payload: memoryview, out: memoryview, ctx: ChunkContext) -> None:
        _require(ctx.dtype.float_bits is not None, "elements that are not floats")
        assert ctx.dtype.float_bits is not None
        exponent_bits, mantissa_bits = ctx.dtype.float_bits
        count, odd = divmod(len(out) * 8, 1 + exponent_bits + mantissa_bits)
        _require(not odd and len(payload) >= _HEADER.size, "a wrong length")
        mode, precision, log_segment, zero, entries, table_bytes = _HEADER.unpack_from(payload)
        _require(mode <= 1 and precision == _PRECISION and 10 <= log_segment <= 24 and not zero, "a bad header")
        pairs = mode == _PAIRS
        head = _HEADER.size + 2 * entries + table_bytes
        segments_at = -(-head // 8) * 8
        n_segments = -(-count >> log_segment)
        raw_at = segments_at + 8 * n_segments
        _require(1 <= entries <= (_PALETTE if pairs else 256) and len(payload) >= raw_at, "a bad palette or table")
        _require(not any(payload[head:segments_at]), "bits that must be zero")

        stored = np.frombuffer(payload, "<u2", entries, _HEADER.size)
        known = np.zeros(max(256, 1 << exponent_bits), bool)
        _require(int(stored.max()) < 1 << exponent_bits, "an exponent out of range")
        known[stored] = True
        _require(int(np.count_nonzero(known)) == entries, "an exponent twice in its palette")
        palette = np.zeros(16 if pairs else 256, np.uint16)
        palette[:entries] = stored

        values, freqs = _NO_VALUES, _NO_FREQS
        if table_bytes:
            freqs = tables.parse(bytes(payload[head - table_bytes : head]), 256 if pairs else entries)
            _require(int(freqs.max()) < api.SLOTS, "a frequency out of range")
            if pairs:
                values = _BYTE_VALUES
                if entries < _PALETTE:
                    grid = freqs.reshape(16, 16)
                    _require(not grid[entries:_ESCAPE].any() and not grid[:, entries:_ESCAPE].any(), "a bad symbol")
            else:
                values = palette[:entries].astype(np.uint8) if exponent_bits <= 8 else _BYTE_VALUES[:entries]
        else:
            _require(entries == 1, "no frequency table")

        segments = np.frombuffer(payload, "<u4", 2 * n_segments, segments_at).reshape(n_segments, 2)
        symbol_bytes, escape_counts = np.ascontiguousarray(segments.T)
        width = 2 if exponent_bits > 8 else 1
        symbols_at = raw_at + api.raw_size(count, mantissa_bits, log_segment)
        escapes_at = symbols_at + int(symbol_bytes.sum(dtype=np.int64))
        n_escapes = int(escape_counts.sum(dtype=np.int64))
        _require(escapes_at + width * n_escapes == len(payload), "streams of a wrong length")
        _require(bool(table_bytes) or symbols_at == len(payload), "streams that it cannot have")
        _require(pairs or not n_escapes, "escapes that it cannot have")
        if n_escapes:
            escapes = np.frombuffer(payload, f"<u{width}", n_escapes, escapes_at)
            _require(int(escapes.max()) < 1 << exponent_bits, "an escape out of range")
        api.float_fast_decode(
            np.frombuffer(payload, np.uint8),
            (exponent_bits, mantissa_bits),
            log_segment,
            pairs,
            palette,
            values,
            freqs,
            (raw_at, symbols_at, escapes_at),
            symbol_bytes,
            escape_counts,
            np.frombuffer(out, np.uint8),
        )
