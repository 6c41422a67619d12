"""The kernels of codec ``float_fast`` in NumPy: rANS with 16-bit states, 7-bit frequencies and words of one byte.

All lanes of a segment at once. Names, arguments and results are those of the native module; see ``numpy_reference.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from arzstream.kernels.numpy_reference import (
    BAD_BOUNDS,
    BAD_ESCAPES,
    BAD_PADDING,
    BAD_STREAM,
    OK,
    pack_rest,
    segments_of,
    unpack_rest,
)

__all__ = ["float_fast_decode", "float_fast_encode", "sample_exponents"]

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
I64 = NDArray[np.int64]

BITS = 7
SLOTS, LOW = 1 << BITS, 1 << 8
LONG_ESCAPE = 15
TOO_MANY = (1 << 64) - 1
"""What encoding returns if there are more escapes than there may be."""


# ---- floats cut into exponents and the rest


def _exponents(data: U8, itemsize: int, exponent_bits: int, mantissa_bits: int) -> U8:
    values = data.view(f"<u{itemsize}")
    word = values.dtype.type
    exponents: U8 = ((values >> word(mantissa_bits)) & word((1 << exponent_bits) - 1)).astype(np.uint8)
    return exponents


def _rest(data: U8, itemsize: int, mantissa_bits: int) -> NDArray[Any]:
    """Sign above mantissa."""
    values = data.view(f"<u{itemsize}")
    word = values.dtype.type
    sign = (values >> word(8 * itemsize - 1)) << word(mantissa_bits)
    rest: NDArray[Any] = sign | (values & word((1 << mantissa_bits) - 1))
    return rest


def sample_exponents(
    data: U8, itemsize: int, exponent_bits: int, mantissa_bits: int, run: int, step: int, counts: U32
) -> None:
    """Counts of the exponents of ``run`` elements out of every ``step``."""
    exponents = _exponents(data, itemsize, exponent_bits, mantissa_bits)
    picked = exponents[np.arange(len(exponents)) % step < run]
    counts[...] = np.bincount(picked, minlength=256)


# ---- entropy coder


def _encode(symbols: U8, lanes: int, freqs: I64) -> bytes:
    """The stream of one segment: all states, then the bytes."""
    count, steps = len(symbols), -(-len(symbols) // lanes)
    start = np.cumsum(freqs) - freqs
    padded = np.zeros((steps, lanes), np.uint8)
    padded.reshape(-1)[:count] = symbols
    states = np.full(lanes, LOW, np.int64)
    low, given = np.empty((steps, lanes), np.uint8), np.zeros((steps, lanes), bool)
    for i in range(steps - 1, -1, -1):
        active = min(lanes, count - i * lanes)
        f, b, x = freqs[padded[i, :active]], start[padded[i, :active]], states[:active]
        emit = x >> 9 >= f
        low[i, :active], given[i, :active] = x & 0xFF, emit
        x = np.where(emit, x >> 8, x)
        quotient, rest = np.divmod(x, f)
        states[:active] = (quotient << BITS) + rest + b
    return states.astype("<u2").tobytes() + low[given].tobytes()


def _decode(stream: U8, lanes: int, freqs: I64, symbols: U8) -> bool:
    """Undo :func:`_encode` into ``symbols``. False if the stream is not sound."""
    if len(stream) < 2 * lanes:
        return False
    states = stream[: 2 * lanes].view("<u2").astype(np.int64)
    if (states < LOW).any():
        return False
    end = len(stream) - 2 * lanes
    words = np.append(stream[2 * lanes :], np.zeros(lanes, np.uint8)).astype(np.int64)
    slot_symbol = np.repeat(np.arange(len(freqs), dtype=np.uint8), freqs)
    slot_freq = np.repeat(freqs, freqs)
    slot_bias = np.arange(SLOTS) - np.repeat(np.cumsum(freqs) - freqs, freqs)
    at, count = 0, len(symbols)
    for i in range(0, count, lanes):
        active = min(lanes, count - i)
        x = states[:active]
        slot = x & (SLOTS - 1)
        symbols[i : i + active] = slot_symbol[slot]
        x = slot_freq[slot] * (x >> BITS) + slot_bias[slot]
        take = x < LOW
        taken = int(np.count_nonzero(take))
        if at + taken > end:
            return False
        x[take] = (x[take] << 8) | words[at : at + taken]
        states[:active] = x
        at += taken
    return bool((states == LOW).all() and at == end)


# ---- the codec


def float_fast_encode(
    data: U8,
    itemsize: int,
    exponent_bits: int,
    mantissa_bits: int,
    log_segment: int,
    lanes: int,
    firsts: U8,
    seconds: U8,
    freqs: U8,
    max_escapes: int,
    out: U8,
    scratch: U8,
    table: U32,
) -> int:
    """Raw, symbol and escape streams of all segments into ``out``; returns their length, or TOO_MANY."""
    exponents = _exponents(data, itemsize, exponent_bits, mantissa_bits)
    place = np.full(256, len(firsts), np.uint8)
    place[firsts[::-1]] = np.arange(len(firsts), dtype=np.uint8)[::-1]
    second_place = np.full(256, LONG_ESCAPE, np.uint8)
    second_place[seconds[::-1]] = np.arange(len(seconds), dtype=np.uint8)[::-1]
    symbols = place[exponents]
    escaped = symbols == len(firsts)
    if np.count_nonzero(escaped) > max_escapes:
        return TOO_MANY
    streams, escapes = [], []
    for s, (first, end) in enumerate(segments_of(len(exponents), log_segment)):
        streams.append(_encode(symbols[first:end], lanes, freqs.astype(np.int64)))
        found = exponents[first:end][escaped[first:end]]
        nibbles = second_place[found]
        long_ones = found[nibbles == LONG_ESCAPE]
        padded = np.append(nibbles, np.zeros(len(nibbles) % 2, np.uint8))
        escapes.append((padded[::2] | padded[1::2] << 4).tobytes() + long_ones.tobytes())
        table[3 * s : 3 * s + 3] = len(streams[-1]), len(found), len(long_ones)
    rest = _rest(data, itemsize, mantissa_bits)
    coded = np.frombuffer(b"".join(streams + escapes), np.uint8)
    whole, planes = divmod(mantissa_bits + 1, 8)
    raw = sum(n * whole + planes * -(-n // 8) for n in (e - f for f, e in segments_of(len(rest), log_segment)))
    pack_rest(rest, mantissa_bits + 1, log_segment, out[:raw])
    out[raw : raw + len(coded)] = coded
    return raw + len(coded)


def float_fast_decode(
    payload: U8,
    itemsize: int,
    exponent_bits: int,
    mantissa_bits: int,
    log_segment: int,
    lanes: int,
    firsts: U8,
    seconds: U8,
    freqs: U8,
    raw_at: int,
    symbols_at: int,
    escapes_at: int,
    table: U32,
    out: U8,
) -> int:
    """Decode all segments of a chunk into ``out``. Returns a status."""
    if freqs.sum(dtype=np.int64) != SLOTS:
        return BAD_BOUNDS
    values = out.view(f"<u{itemsize}")
    word = values.dtype.type
    rest = np.empty(len(values), values.dtype)
    clean = unpack_rest(payload[raw_at:symbols_at], mantissa_bits + 1, log_segment, rest)
    exponents = np.empty(len(values), np.uint8)
    rows = table.reshape(-1, 3).tolist()
    for (first, end), row in zip(segments_of(len(values), log_segment), rows, strict=True):
        symbol_bytes, n_escapes, n_long = row
        symbols = np.empty(end - first, np.uint8)
        stream = payload[symbols_at : symbols_at + symbol_bytes]
        if not _decode(stream, lanes, freqs.astype(np.int64), symbols):
            return BAD_STREAM
        escaped = symbols == len(firsts)
        place = escapes_at + -(-n_escapes // 2)
        found = _escapes(payload[escapes_at:place], n_escapes, payload[place : place + n_long], seconds)
        if found is None or len(found) != np.count_nonzero(escaped) or (found >= 1 << exponent_bits).any():
            return BAD_ESCAPES
        of_segment = np.append(firsts, np.uint8(0))[symbols]
        of_segment[escaped] = found
        exponents[first:end] = of_segment
        symbols_at += symbol_bytes
        escapes_at = place + n_long
    if not clean:
        return BAD_PADDING
    sign = (rest >> word(mantissa_bits)) << word(8 * itemsize - 1)
    mantissa = rest & word((1 << mantissa_bits) - 1)
    values[...] = sign | (exponents.astype(values.dtype) << word(mantissa_bits)) | mantissa
    return OK


def _escapes(packed: U8, count: int, long_ones: U8, seconds: U8) -> U8 | None:
    """Escaped exponents of a segment; None if nibbles mean nothing or there are more or fewer bytes than they want."""
    nibbles = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)
    if nibbles[count:].any():
        return None
    nibbles = nibbles[:count]
    is_long = nibbles == LONG_ESCAPE
    if (nibbles[~is_long] >= len(seconds)).any() or np.count_nonzero(is_long) != len(long_ones):
        return None
    found = np.zeros(count, np.uint8)
    found[~is_long] = seconds[nibbles[~is_long]]
    found[is_long] = long_ones
    return found
