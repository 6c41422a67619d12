"""The kernels in NumPy: the reference that the native ones are compared with byte for byte, and what runs without them.

Functions, arguments and results are those of the native module; ``api.py`` has checked sizes and dtypes. Layouts:
spec/registry.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "histogram",
    "merge_planes",
    "rans_decode",
    "rans_encode",
    "split_planes",
]

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]

LANES, PRECISION = 32, 12
SLOTS, LOW, STATE_BYTES = 1 << PRECISION, 1 << 16, 4 * LANES
OK, BAD_STREAM, BAD_ESCAPES, BAD_PADDING, BAD_BOUNDS = range(5)  # as in kernels.h


# ---- byte planes and counts


def split_planes(data: U8, stride: int, planes: U8) -> None:
    """``planes``: bytes 0, stride, 2·stride, … of ``data``, then bytes 1, stride + 1, … and so on."""
    planes.reshape(stride, -1)[...] = data.reshape(-1, stride).T


def merge_planes(planes: U8, stride: int, out: U8) -> None:
    """Undo :func:`split_planes`."""
    out.reshape(-1, stride)[...] = planes.reshape(stride, -1).T


def histogram(symbols: U8 | U16, counts: U32) -> None:
    """How often each symbol below ``len(counts)`` occurs."""
    counts[...] = np.bincount(symbols, minlength=len(counts))[: len(counts)]


# ---- raw streams


def segments_of(count: int, log_segment: int) -> list[tuple[int, int]]:
    """(first, end) of each segment."""
    full = 1 << log_segment
    return [(i, min(i + full, count)) for i in range(0, count, full)]


def pack_rest(rest: NDArray[Any], bits: int, log_segment: int, raw: U8) -> None:
    """Raw streams of all segments from the low ``bits`` bits of each element: whole bytes, then bit planes."""
    word = rest.dtype.type
    whole, planes = divmod(bits, 8)
    at = 0
    for first, end in segments_of(len(rest), log_segment):
        part = rest[first:end]
        if whole:
            size = len(part) * whole
            raw[at : at + size].reshape(-1, whole)[...] = part.view(np.uint8).reshape(-1, rest.itemsize)[:, :whole]
            at += size
        for j in range(planes):
            plane = np.packbits((part >> word(8 * whole + j)).astype(np.uint8) & 1, bitorder="little")
            raw[at : at + len(plane)] = plane
            at += len(plane)


def unpack_rest(raw: U8, bits: int, log_segment: int, rest: NDArray[Any]) -> bool:
    """Undo :func:`pack_rest` into ``rest``. False if bits that must be zero are not."""
    word = rest.dtype.type
    whole, planes = divmod(bits, 8)
    at, clean = 0, True
    for first, end in segments_of(len(rest), log_segment):
        count = end - first
        part = np.zeros(count, rest.dtype)
        if whole:
            part.view(np.uint8).reshape(-1, rest.itemsize)[:, :whole] = raw[at : at + count * whole].reshape(-1, whole)
            at += count * whole
        for j in range(planes):
            plane = raw[at : at + -(-count // 8)]
            at += len(plane)
            clean &= not (count % 8 and plane[-1] >> (count % 8))
            part |= np.unpackbits(plane, count=count, bitorder="little").astype(rest.dtype) << word(8 * whole + j)
        rest[first:end] = part
    return clean


# ---- entropy coder: all lanes of all segments at once


def rans_encode(symbols: U8, per_segment: int, values: U8, freqs: U16, out: U8, stream_bytes: U32) -> int:
    """Streams of all segments, ending at the end of ``out``; returns where they begin.

    Raises ValueError if the frequencies do not sum to 4096 or a symbol has none.
    """
    freq, start = np.zeros(256, np.uint32), np.zeros(256, np.uint32)
    freq[values], start[values] = freqs, np.cumsum(freqs, dtype=np.uint32) - freqs
    if freqs.sum() != SLOTS or (len(symbols) and not freq[symbols].all()):
        raise ValueError("frequencies do not sum to 4096, or a symbol has none")
    count, at = len(symbols), len(out)
    whole = count // per_segment
    tail = symbols[whole * per_segment :]
    groups = [(whole, symbols[: whole * per_segment].reshape(whole, per_segment))] if whole else []
    if len(tail):
        groups.append((0, tail.reshape(1, -1)))
    for full, group in reversed(groups):
        streams = _encode_group(group, freq, start)
        for s in range(len(streams) - 1, -1, -1):
            stream_bytes[s if full else whole] = len(streams[s])
            at -= len(streams[s])
            out[at : at + len(streams[s])] = np.frombuffer(streams[s], np.uint8)
    return at


def _encode_group(group: U8, freq: U32, start: U32) -> list[bytes]:
    """Streams of segments of one length: ``group`` is (segments, symbols)."""
    segments, count = group.shape
    steps = -(-count // LANES)
    padded = np.zeros((segments, steps * LANES), np.uint8)
    padded[:, :count] = group
    lanes = np.ascontiguousarray(padded.reshape(segments, steps, LANES).swapaxes(0, 1))
    states = np.full((segments, LANES), LOW, np.uint32)
    words = np.empty((steps, segments, LANES), "<u2")
    given = np.zeros((steps, segments, LANES), bool)
    for i in range(steps - 1, -1, -1):
        active = min(LANES, count - i * LANES)
        x = states[:, :active]
        f, b = freq[lanes[i, :, :active]], start[lanes[i, :, :active]]
        emit = x >= f << np.uint32(20)
        words[i, :, :active] = x  # the low 16 bits
        given[i, :, :active] = emit
        x = np.where(emit, x >> np.uint32(16), x)
        quotient = x // f
        states[:, :active] = (quotient << np.uint32(PRECISION)) + (x - quotient * f) + b
    return [states[s].astype("<u4").tobytes() + words[:, s][given[:, s]].tobytes() for s in range(segments)]


def rans_decode(streams: U8, stream_bytes: U32, per_segment: int, values: U8, freqs: U16, symbols: U8) -> int:
    """Undo :func:`rans_encode` into ``symbols``. Returns a status."""
    lengths = stream_bytes.astype(np.int64)
    if freqs.sum() != SLOTS:
        return BAD_BOUNDS
    if lengths.sum() > len(streams):
        return BAD_BOUNDS
    if lengths.sum() != len(streams) or (lengths < STATE_BYTES).any() or (lengths % 2).any():
        return BAD_STREAM
    starts = np.cumsum(lengths) - lengths
    whole = len(symbols) // per_segment
    if whole:
        target = symbols[: whole * per_segment].reshape(whole, per_segment)
        if not _decode_group(streams, starts[:whole], lengths[:whole], values, freqs, target):
            return BAD_STREAM
    if len(symbols) % per_segment:
        target = symbols[whole * per_segment :].reshape(1, -1)
        if not _decode_group(streams, starts[whole:], lengths[whole:], values, freqs, target):
            return BAD_STREAM
    return OK


def _decode_group(
    streams: U8, starts: NDArray[np.int64], lengths: NDArray[np.int64], values: U8, freqs: U16, target: U8
) -> bool:
    """Decode segments of one length into ``target`` (segments, symbols). False if a stream is not sound."""
    segments, count = target.shape
    states = np.stack([streams[a : a + STATE_BYTES] for a in starts.tolist()]).view("<u4").astype(np.uint32)
    if (states < LOW).any():
        return False
    # All words in one array; one more at the end is what a stream reads that has run out, until that is noticed.
    pool = [streams[a + STATE_BYTES : a + n] for a, n in zip(starts.tolist(), lengths.tolist(), strict=True)]
    words = np.concatenate([*pool, np.zeros(2, np.uint8)]).view("<u2").astype(np.uint32)
    n_words = (lengths - STATE_BYTES) // 2
    base = (np.cumsum(n_words) - n_words)[:, None]
    end = base + n_words[:, None]
    next_word = base - 1  # of each segment, the word before the next
    slot_symbol = np.repeat(values, freqs)
    slot_freq = np.repeat(freqs, freqs).astype(np.uint32)
    slot_bias = (np.arange(SLOTS) - np.repeat(np.cumsum(freqs, dtype=np.int64) - freqs, freqs)).astype(np.uint32)
    steps = -(-count // LANES)
    decoded = np.empty((steps, segments, LANES), np.uint8)
    for i in range(steps):
        active = min(LANES, count - i * LANES)
        x = states[:, :active]
        slot = x & np.uint32(SLOTS - 1)
        decoded[i, :, :active] = slot_symbol[slot]
        x = slot_freq[slot] * (x >> np.uint32(PRECISION)) + slot_bias[slot]
        take = x < LOW
        order = np.cumsum(take, axis=1) + next_word
        next_word = order[:, -1:]
        if (next_word >= end).any():
            return False
        states[:, :active] = np.where(take, (x << np.uint32(16)) | words[np.where(take, order, 0)], x)
    target[...] = decoded.swapaxes(0, 1).reshape(segments, -1)[:, :count]
    return bool((states == LOW).all() and (next_word + 1 == end).all())
