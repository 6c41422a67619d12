"""Codec 4: exponents entropy-coded, everything else as it is, at memory speed.

A palette of up to 15 exponents, frequencies of 7 bits and states of 16 make every step of the entropy coder a few
instructions on vector registers, without a table in memory. The 0.02 bits a weight that this costs beside 12-bit
frequencies buys four times the speed. Every decision is made here: the palette, the frequencies, the framing. The
kernels carry them out.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from arzstream.codec.base import ChunkContext
from arzstream.errors import CorruptError
from arzstream.kernels import api

__all__ = ["MAX_EXPONENT_BITS", "FloatFast", "encode_floats"]

MAX_EXPONENT_BITS = 8
LOG_SEGMENT = 20
"""Elements of a segment, log2: those of a chunk, mostly. Each segment costs the states of its lanes, 256 bytes."""
LANES, FEW_LANES = 128, 32
FEW = 1 << 17
"""Elements of a chunk below which it has few lanes, so that their states do not outweigh it."""
MAX_ESCAPES = 32
"""One escape in so many elements is the most: beyond, another codec saves more than a hundredth."""
SAMPLE_RUN, SAMPLE, SAMPLE_SHARE = 256, 1 << 15, 8
"""Exponents are counted in runs of 256 elements, evenly spaced, about 2^15 in all but no more than an eighth: enough to
come within 0.001 bits. Each run costs the time of an access to memory."""
LEAST_SAMPLE = 1 << 13
WORTH_A_SLOT = 400
"""An exponent has a symbol if it is one in so many. A slot takes 1/128 of the others' share, log2(e) / 128 bits an
element; an escape takes about 4 bits more than a symbol of one slot."""

_HEADER = struct.Struct("<BBBB")
_SLOTS, _FIRSTS, _SECONDS = 128, 15, 15

U8 = NDArray[np.uint8]


def _frequencies(counts: list[int]) -> list[int]:
    """Frequencies in proportion to ``counts``, each at least 1, summing to 128. At most 16 counts."""
    total = max(1, sum(counts))
    freqs = [max(1, c * _SLOTS // total) for c in counts]
    # One more slot for a symbol saves about c / (f + 1/2), one less costs about c / (f - 1/2).
    while (left := _SLOTS - sum(freqs)) > 0:  # once, but where there are no counts at all
        gains = [(c << 16) // (2 * f + 1) for c, f in zip(counts, freqs, strict=True)]
        for k in sorted(range(len(freqs)), key=gains.__getitem__, reverse=True)[:left]:
            freqs[k] += 1
    for _ in range(-left):
        k = min((k for k in range(len(freqs)) if freqs[k] > 1), key=lambda k: (counts[k] << 16) // (2 * freqs[k] - 1))
        freqs[k] -= 1
    return freqs


def _palettes(elements: U8, float_bits: tuple[int, int], count: int) -> api.Palettes:
    """Palettes and frequencies from the exponents of a sample, the commonest first."""
    runs = max(1, min(count, SAMPLE, max(LEAST_SAMPLE, count // SAMPLE_SHARE)) // SAMPLE_RUN)
    step = max(SAMPLE_RUN, count // runs)
    found = api.sample_exponents(elements, float_bits, SAMPLE_RUN, step)
    present = np.flatnonzero(found)
    ordered = sorted(zip(found[present].tolist(), (-present).tolist(), strict=True), reverse=True)
    counts = [count for count, _ in ordered]
    total = sum(counts)
    n = max(1, sum([c * WORTH_A_SLOT >= total for c in counts[:_FIRSTS]]))
    freqs = _frequencies([*counts[:n], total - sum(counts[:n])])
    palette = np.frombuffer(bytes([-e for _, e in ordered[: _FIRSTS + _SECONDS]]), np.uint8)
    return palette[:n], palette[n : n + _SECONDS], np.frombuffer(bytes(freqs), np.uint8)


def encode_floats(data: memoryview, float_bits: tuple[int, int], max_escapes: int = MAX_ESCAPES) -> memoryview | None:
    """Payload for floats of ``float_bits`` = (exponent, mantissa bits). None if there are none, if the exponent has
    more than 8 bits, or if more than one exponent in ``max_escapes`` is not in the palette."""
    if not len(data) or float_bits[0] > MAX_EXPONENT_BITS:
        return None
    elements = np.frombuffer(data, np.uint8)
    count = len(elements) // api.itemsize_of(float_bits)
    lanes = LANES if count >= FEW else FEW_LANES
    palettes = _palettes(elements, float_bits, count)
    firsts, seconds, freqs = palettes
    head = _HEADER.pack(lanes.bit_length() - 1, LOG_SEGMENT, len(firsts), len(seconds))
    head += firsts.tobytes() + seconds.tobytes() + freqs.tobytes()
    head += bytes(-len(head) % 8)
    reserve = len(head) + 12 * -(-count >> LOG_SEGMENT)
    most = -(-count // max_escapes)
    coded = api.float_fast_encode(elements, float_bits, LOG_SEGMENT, lanes, palettes, most, reserve)
    if coded is None:
        return None
    table, payload = coded
    payload[:reserve] = np.frombuffer(head + table.astype("<u4").tobytes(), np.uint8)
    return payload.data


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise CorruptError(f"a float_fast chunk has {what}; the chunk is damaged")


class FloatFast:
    id = 4
    name = "float_fast"

    def encode(self, data: memoryview, ctx: ChunkContext) -> bytes | memoryview | None:
        """None for types without an exponent field of up to 8 bits, for an empty chunk, and if there are too many
        different exponents."""
        return encode_floats(data, ctx.dtype.float_bits) if ctx.dtype.float_bits else None

    def decode(self, payload: memoryview, out: memoryview, ctx: ChunkContext) -> None:
        float_bits = ctx.dtype.float_bits
        _require(float_bits is not None and float_bits[0] <= MAX_EXPONENT_BITS, "elements that it cannot have")
        assert float_bits is not None
        count, odd = divmod(len(out), api.itemsize_of(float_bits))
        _require(not odd and len(payload) >= _HEADER.size, "a wrong length")
        log_lanes, log_segment, n_firsts, n_seconds = _HEADER.unpack_from(payload)
        _require(
            log_lanes in (5, 7) and 10 <= log_segment <= 24 and 1 <= n_firsts <= _FIRSTS and n_seconds <= _SECONDS,
            "a bad header",
        )
        n_segments = -(-count >> log_segment)
        freqs_at = _HEADER.size + n_firsts + n_seconds
        head = freqs_at + n_firsts + 1
        table_at = head + -head % 8
        raw_at = table_at + 12 * n_segments
        _require(len(payload) >= raw_at, "a wrong length")
        palette, freqs = bytes(payload[_HEADER.size : freqs_at]), bytes(payload[freqs_at:head])
        _require(not any(payload[head:table_at]), "bits that must be zero")
        _require(max(palette) >> float_bits[0] == 0, "an exponent out of range")
        _require(len(set(palette)) == len(palette), "an exponent twice in its palettes")
        _require(sum(freqs) == _SLOTS, "frequencies with a wrong sum")

        # Plain numbers: there is one segment mostly, for which NumPy would take longer than the kernel needs.
        rows = struct.unpack_from(f"<{3 * n_segments}I", payload, table_at)
        escape_bytes = sum((n + 1) >> 1 for n in rows[1::3]) + sum(rows[2::3])
        symbols_at = raw_at + api.raw_size(count, float_bits[1], log_segment)
        escapes_at = symbols_at + sum(rows[::3])
        _require(escapes_at + escape_bytes == len(payload), "streams of a wrong length")
        stored = np.frombuffer(payload, np.uint8)
        seconds_at = _HEADER.size + n_firsts
        palettes = stored[_HEADER.size : seconds_at], stored[seconds_at:freqs_at], stored[freqs_at:head]
        table = stored[table_at:raw_at].view("<u4")
        places = raw_at, symbols_at, escapes_at
        out_bytes = np.frombuffer(out, np.uint8)
        api.float_fast_decode(stored, float_bits, log_segment, 1 << log_lanes, palettes, places, table, out_bytes)
