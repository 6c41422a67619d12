"""The kernels of context-switched coding in NumPy, the reference for the native ones. Layouts: spec/registry.md.

Functions, arguments and results are those of the native module; ``context.py`` has checked sizes and dtypes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from arzstream.kernels.numpy_reference import (
    BAD_ESCAPES,
    BAD_PADDING,
    BAD_STREAM,
    LANES,
    LOW,
    OK,
    PRECISION,
    SLOTS,
    STATE_BYTES,
    pack_rest,
    unpack_rest,
)

__all__ = [
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
ESCAPE, ZERO, FIRST = range(3)
"""Symbols: an escape, a zero, the first of the window."""
BAD_MODEL = 5  # as in kernels.h
MOVES = 8
"""Costs that ``move_costs`` sums at once."""
COST_PLACES = 4096
"""What ``ctx_cost`` tells apart in a class, beside zeros."""
UNARY = 12
"""Ones after which a number of the model stream is written plainly."""


# ---- elements to high parts and raw streams


def _cut(itemsize: int, mantissa_bits: int, dropped: int, top: int, sign_mode: int) -> tuple[int, int]:
    """(raw bits of the mantissa, raw bits of an element)."""
    low_bits = mantissa_bits - dropped - top
    return low_bits, low_bits + (sign_mode == SIGN_RAW)


def split_high(
    data: U8,
    itemsize: int,
    exponent_bits: int,
    mantissa_bits: int,
    dropped: int,
    top: int,
    sign_mode: int,
    log_segment: int,
    high: U16,
    raw: U8,
) -> None:
    """High parts of all elements, and the raw streams of all segments one after the other."""
    values = data.view(f"<u{itemsize}")
    word = values.dtype.type
    low_bits, raw_bits = _cut(itemsize, mantissa_bits, dropped, top, sign_mode)
    kept = values >> word(dropped)
    upper = kept >> word(low_bits)
    mag_bits = exponent_bits + top
    high[...] = upper & word((1 << (mag_bits + (sign_mode == SIGN_CODED))) - 1)
    rest = kept & word((1 << low_bits) - 1)
    if sign_mode == SIGN_RAW:
        rest |= (upper >> word(mag_bits)) << word(low_bits)
    pack_rest(rest, raw_bits, log_segment, raw)


def _sums(high: U16, row_len: int, weights: U64) -> U64:
    """``weights`` as rows of ``row_len``, the last one filled up with zeros."""
    rows = -(-len(high) // row_len)
    grid = np.zeros(rows * row_len, np.uint64)
    grid[: len(high)] = weights
    return grid.reshape(rows, row_len)


def _middles(highest: int, top: int, mag_bits: int) -> U32:
    """Of each magnitude field what it counts in sums: its middle, see ``context.row_sums``."""
    fields = np.arange(1 << mag_bits, dtype=np.int64)
    exponent, fraction = fields >> top, fields & ((1 << top) - 1)
    whole = (2 * ((exponent > 0) * (1 << top) + fraction) + 1) << (24 - top)
    lut = whole >> np.clip(highest - np.maximum(exponent, 1), 0, 31)
    lut = np.where(exponent > highest, 2 << 24, np.maximum(lut, 1))
    lut[0] = 0
    return lut.astype(np.uint32)


def row_sums(high: U16, row_len: int, highest: int, top: int, mag_bits: int, sums: U64) -> None:
    """Of each row, the sum of magnitudes."""
    lut = _middles(highest, top, mag_bits)
    weights = lut[high & np.uint16(len(lut) - 1)].astype(np.uint64)
    sums[...] = _sums(high, row_len, weights).sum(axis=1, dtype=np.uint64)


def col_sums(high: U16, row_len: int, highest: int, top: int, mag_bits: int, adjust: I16, sums: U64) -> None:
    """Of each column, the sum of magnitudes less ``adjust`` of their row, clipped to those that there are."""
    lut = _middles(highest, top, mag_bits)
    mag = (high & np.uint16(len(lut) - 1)).astype(np.int32)
    moved = mag - np.repeat(adjust.astype(np.int32), row_len)[: len(mag)]
    weights = lut[np.where(mag == 0, 0, np.clip(moved, 0, len(lut) - 1))].astype(np.uint64)
    sums[...] = _sums(high, row_len, weights).sum(axis=0, dtype=np.uint64)


# ---- symbols


def _scales(start: int, end: int, row_len: int, rows: U8, cols: U8) -> U8:
    """S of elements [start, end): the scale of the row plus that of the column."""
    at = np.arange(start, end)
    scales = np.zeros(end - start, np.uint8)
    if len(rows):
        scales += rows[at // row_len]
    if len(cols):
        scales += cols[at % row_len]
    return scales


def ctx_symbols(
    high: U16,
    row_len: int,
    rows: U8,
    cols: U8,
    base: int,
    top: int,
    log_classes: int,
    sign_mode: int,
    mag_bits: int,
    log_segment: int,
    symbols: U8,
    classes: U8,
    escapes: U16,
    escape_counts: U32,
    counts: U32,
) -> int:
    """Symbols, classes, counts per class, and what is escaped. Returns the number of escapes."""
    scales = _scales(0, len(high), row_len, rows, cols)
    classes[...] = scales & np.uint8((1 << log_classes) - 1)
    mag = (high & np.uint16((1 << mag_bits) - 1)).astype(np.int32)
    # Modulo 2^16, as decoders take magnitudes modulo a power of two below it.
    place = (mag - base - ((scales >> np.uint8(log_classes)).astype(np.int32) << top)) & 0xFFFF
    if sign_mode == SIGN_CODED:
        inside = (place >= 0) & (place < (256 - FIRST) // 2)
        place = place * 2 + (high >> mag_bits)
    else:
        inside = (place >= 0) & (place < 256 - FIRST)
    symbols[...] = np.where(high == 0, ZERO, np.where(inside, place + FIRST, ESCAPE)).astype(np.uint8)
    escaped = symbols == ESCAPE
    starts = range(0, len(high), 1 << log_segment)
    escape_counts[...] = [np.count_nonzero(escaped[i : i + (1 << log_segment)]) for i in starts]
    found = high[escaped]
    escapes[: len(found)] = found
    joint = (classes.astype(np.uint16) << np.uint16(8)) | symbols
    counts[...] = np.bincount(joint, minlength=len(counts))
    return len(found)


def ctx_cost(
    high: U16,
    row_len: int,
    rows: U8,
    cols: U8,
    top: int,
    log_classes: int,
    sign_mode: int,
    mag_bits: int,
    weights: NDArray[np.int64],
) -> tuple[int, int]:
    """(entropy of magnitudes less shifts, modulo COST_PLACES, under classes; counts of at least two)."""
    scales = _scales(0, len(high), row_len, rows, cols)
    classes = (scales & np.uint8((1 << log_classes) - 1)).astype(np.int64)
    place = (high & np.uint16((1 << mag_bits) - 1)).astype(np.int64)
    place -= (scales >> np.uint8(log_classes)).astype(np.int64) << top
    if sign_mode == SIGN_CODED:
        place = place * 2 + (high >> np.uint16(mag_bits) & np.uint16(1))
    place = np.where(high == 0, COST_PLACES, place % COST_PLACES)
    counts = np.bincount(classes * (COST_PLACES + 1) + place, minlength=(COST_PLACES + 1) << log_classes)
    shift = 0
    while len(high) >> shift >= len(weights):
        shift += 1
    used = int(np.count_nonzero(counts >= 2))
    counts = counts.reshape(1 << log_classes, -1) >> shift
    return int(weights[counts.sum(axis=1)].sum() - weights[counts].sum()) << shift, used


def move_costs(
    high: U16,
    row_len: int,
    rows: U8,
    cols: U8,
    first: int,
    top: int,
    log_classes: int,
    mag_bits: int,
    lut: U32,
    of_rows: bool,
    costs: U64,
) -> None:
    """Sums over each row or column of ``lut[class, magnitude - first - shift]``, clipped; zeros are left out."""
    tables = lut.reshape(1 << log_classes, -1, MOVES)
    total = costs.reshape(-1, MOVES)
    total[...] = 0
    for start in range(0, len(high), row_len):
        part = high[start : start + row_len]
        scales = _scales(start, start + len(part), row_len, rows, cols)
        mag = (part & np.uint16((1 << mag_bits) - 1)).astype(np.int32)
        place = mag - first - ((scales >> np.uint8(log_classes)).astype(np.int32) << top)
        found = tables[scales & np.uint8((1 << log_classes) - 1), np.clip(place, 0, tables.shape[1] - 1)]
        found[mag == 0] = 0
        if of_rows:
            total[start // row_len] = found.sum(axis=0, dtype=np.uint64)
        else:
            total[: len(part)] += found


# ---- entropy coder: a table for each class


def rans_ctx_encode(symbols: U8, classes: U8, per_segment: int, freqs: U16, out: U8, stream_bytes: U32) -> int:
    """Streams of all segments, ending at the end of ``out``; returns where they begin.

    Raises ValueError if the frequencies of a class do not sum to 4096 or a symbol has none.
    """
    tables = freqs.reshape(-1, 256).astype(np.uint32)
    sums = tables.sum(axis=1)
    if ((sums != SLOTS) & (sums != 0)).any() or (tables >= SLOTS).any():
        raise ValueError("frequencies of a class do not sum to 4096")
    joint = (classes.astype(np.uint16) << np.uint16(8)) | symbols
    freq = tables.reshape(-1)
    start = (np.cumsum(tables, axis=1, dtype=np.uint32) - tables).reshape(-1)
    if len(joint) and (int(classes.max()) >= len(tables) or not freq[joint].all()):
        raise ValueError("a symbol has no frequency")
    at = len(out)
    for segment in range(len(stream_bytes) - 1, -1, -1):
        stream = _encode_stream(joint[segment * per_segment : (segment + 1) * per_segment], freq, start)
        stream_bytes[segment] = len(stream)
        at -= len(stream)
        out[at : at + len(stream)] = np.frombuffer(stream, np.uint8)
    return at


def _encode_stream(joint: U16, freq: U32, start: U32) -> bytes:
    steps = -(-len(joint) // LANES)
    states = np.full(LANES, LOW, np.uint32)
    words: list[NDArray[np.uint16]] = []
    for i in range(steps - 1, -1, -1):
        now = joint[i * LANES : (i + 1) * LANES]
        x, f = states[: len(now)], freq[now]
        emit = x >= f << np.uint32(20)
        words.append(x[emit].astype("<u2"))
        x = np.where(emit, x >> np.uint32(16), x)
        quotient = x // f
        states[: len(now)] = (quotient << np.uint32(PRECISION)) + (x - quotient * f) + start[now]
    return states.astype("<u4").tobytes() + b"".join(part.tobytes() for part in reversed(words))


class _Tables:
    """What a slot of each class means; an unused class has slots of frequency 0, which end in a bad final state."""

    def __init__(self, freqs: U16) -> None:
        tables = freqs.reshape(-1, 256)
        self.sound = bool(np.isin(tables.sum(axis=1, dtype=np.int64), (0, SLOTS)).all() and (tables < SLOTS).all())
        if not self.sound:
            return
        self.symbol = np.zeros((len(tables), SLOTS), np.uint8)
        self.freq = np.zeros((len(tables), SLOTS), np.uint32)
        self.bias = np.zeros((len(tables), SLOTS), np.uint32)
        for k, table in enumerate(tables):
            if table.any():
                starts = np.cumsum(table, dtype=np.int64) - table
                self.symbol[k] = np.repeat(np.arange(256, dtype=np.uint8), table)
                self.freq[k] = np.repeat(table, table)
                self.bias[k] = np.arange(SLOTS) - np.repeat(starts, table)
        self.used: NDArray[np.bool_] = np.asarray(tables.any(axis=1))


def rans_ctx_decode(streams: U8, stream_bytes: U32, per_segment: int, classes: U8, freqs: U16, symbols: U8) -> int:
    """Undo :func:`rans_ctx_encode` into ``symbols``. Returns a status."""
    tables = _Tables(freqs)
    if not tables.sound or (len(classes) and int(classes.max()) >= len(tables.used)):
        return BAD_MODEL
    lengths = stream_bytes.astype(np.int64)
    if lengths.sum() != len(streams) or (lengths < STATE_BYTES).any() or (lengths % 2).any():
        return BAD_STREAM
    if not tables.used[classes].all():
        return BAD_STREAM
    at = 0
    for segment, length in enumerate(lengths.tolist()):
        place = slice(segment * per_segment, (segment + 1) * per_segment)
        if not _decode_stream(streams[at : at + length], classes[place], tables, symbols[place]):
            return BAD_STREAM
        at += length
    return OK


def _decode_stream(stream: U8, classes: U8, tables: _Tables, symbols: U8) -> bool:
    states = stream[:STATE_BYTES].view("<u4").astype(np.uint32)
    words = stream[STATE_BYTES:].view("<u2").astype(np.uint32)
    if (states < LOW).any():
        return False
    at = 0
    for i in range(0, len(symbols), LANES):
        k = classes[i : i + LANES]
        x = states[: len(k)]
        slot = x & np.uint32(SLOTS - 1)
        symbols[i : i + LANES] = tables.symbol[k, slot]
        x = tables.freq[k, slot] * (x >> np.uint32(PRECISION)) + tables.bias[k, slot]
        take = x < LOW
        n = int(np.count_nonzero(take))
        if at + n > len(words):
            return False
        x[take] = (x[take] << np.uint32(16)) | words[at : at + n]
        states[: len(k)] = x
        at += n
    return bool((states == LOW).all() and at == len(words))


def float_ctx_decode(
    payload: U8,
    itemsize: int,
    exponent_bits: int,
    mantissa_bits: int,
    dropped: int,
    top: int,
    sign_mode: int,
    log_segment: int,
    row_len: int,
    rows: U8,
    cols: U8,
    log_classes: int,
    base: int,
    freqs: U16,
    raw_at: int,
    symbols_at: int,
    escapes_at: int,
    symbol_bytes: U32,
    escape_counts: U32,
    out: U8,
) -> int:
    """Decode all segments of a chunk into ``out``. Returns a status."""
    values = out.view(f"<u{itemsize}")
    count, word = len(values), values.dtype.type
    scales = _scales(0, count, row_len, rows, cols)
    classes = scales & np.uint8((1 << log_classes) - 1)
    symbols = np.empty(count, np.uint8)
    status = rans_ctx_decode(payload[symbols_at:escapes_at], symbol_bytes, 1 << log_segment, classes, freqs, symbols)
    if status != OK:
        return status
    escaped = symbols == ESCAPE
    for s in range(len(escape_counts)):
        if np.count_nonzero(escaped[s << log_segment : (s + 1) << log_segment]) != escape_counts[s]:
            return BAD_ESCAPES
    mag_bits = exponent_bits + top
    place = symbols.astype(np.int32) - FIRST
    sign = place & 1 if sign_mode == SIGN_CODED else np.zeros_like(place)
    if sign_mode == SIGN_CODED:
        place >>= 1
    mag = (base + place + ((scales >> np.uint8(log_classes)).astype(np.int32) << top)) & ((1 << mag_bits) - 1)
    high = np.where(symbols == ZERO, 0, mag | sign << mag_bits).astype(np.uint16)
    n_escapes = int(escape_counts.sum())
    high[escaped] = payload[escapes_at : escapes_at + 2 * n_escapes].view("<u2")
    low_bits, raw_bits = _cut(itemsize, mantissa_bits, dropped, top, sign_mode)
    rest = np.empty(count, values.dtype)
    if not unpack_rest(payload[raw_at:symbols_at], raw_bits, log_segment, rest):
        return BAD_PADDING
    upper = high.astype(values.dtype)
    if sign_mode == SIGN_RAW:
        upper |= (rest >> word(low_bits)) << word(mag_bits)
        rest &= word((1 << low_bits) - 1)
    values[...] = ((upper << word(low_bits)) | rest) << word(dropped)
    return OK


# ---- side information and tables as a stream of bits


class _Bits:
    """Bits, the lowest of each byte first."""

    def __init__(self, data: U8 | None = None) -> None:
        self.digits = "" if data is None else (np.unpackbits(data, bitorder="little") + np.uint8(48)).tobytes().decode()
        self.at = 0
        self.parts: list[str] = []  # what was written

    def put(self, value: int, bits: int) -> None:
        if bits:
            self.parts.append(format(value, f"0{bits}b")[::-1])

    def put_rice(self, u: int, k: int, plain: int) -> None:
        q = u >> k
        if q < UNARY:
            self.parts.append("1" * q + "0")
            self.put(u & ((1 << k) - 1), k)
        else:
            self.parts.append("1" * UNARY)
            self.put(u, plain)

    def take(self, bits: int) -> int:
        taken = self.digits[self.at : self.at + bits]
        if len(taken) < bits:
            raise EOFError
        self.at += bits
        return int(taken[::-1] or "0", 2)

    def clean_end(self) -> bool:
        """Is what is left less than a byte, and zero?"""
        left = self.digits[self.at :]
        return len(left) < 8 and "1" not in left

    def take_rice(self, k: int, plain: int) -> int:
        q = 0
        while q < UNARY and self.take(1):
            q += 1
        return q << k | self.take(k) if q < UNARY else self.take(plain)

    def written(self) -> bytes:
        digits = np.frombuffer("".join(self.parts).encode(), np.uint8) - np.uint8(48)
        return np.packbits(digits, bitorder="little").tobytes()


def _zigzag(d: int) -> int:
    return 2 * d - 1 if d > 0 else -2 * d


def _unzigzag(u: int) -> int:
    return (u + 1) >> 1 if u & 1 else -(u >> 1)


def _predict(table: list[int], y: int, lo: int, top: int, step: int, base: int) -> int:
    """A guess of frequency ``y``: its neighbour's below, doubled where an octave begins: bins are twice as wide."""
    if y - step < lo:
        return 0
    double = top > 0 and ((y - FIRST) // step + base) % (1 << top) == 0
    return min(2 * table[y - step], SLOTS - 1) if double else table[y - step]


def ctx_model_encode(
    rows: U8,
    row_centre: int,
    row_k: int,
    cols: U8,
    col_centre: int,
    col_k: int,
    freqs: U16,
    top: int,
    step: int,
    base: int,
) -> bytes:
    """The model stream of codec 5: scales of rows and columns where there are any, then a table for each class."""
    bits = _Bits()
    for scales, centre, k in ((rows, row_centre, row_k), (cols, col_centre, col_k)):
        if len(scales):
            bits.put(centre, 8)
            bits.put(k, 3)
            for x in scales.tolist():
                bits.put_rice(_zigzag(x - centre), k, 9)
    for table in freqs.reshape(-1, 256).tolist():
        used = [y for y in range(256) if table[y]]
        if not used:
            bits.put(0, 8)
            continue
        lo = max(FIRST, min((y for y in used if y >= FIRST), default=FIRST))
        hi = max(FIRST, used[-1])
        bits.put(lo, 8)
        bits.put(hi, 8)
        bits.put_rice(table[ESCAPE], 0, 13)
        bits.put_rice(table[ZERO], 0, 13)
        for y in range(lo, hi + 1):
            guess = _predict(table, y, lo, top, step, base)
            bits.put_rice(_zigzag(table[y] - guess), guess.bit_length() >> 1, 13)
    return bits.written()


def ctx_model_decode(data: U8, top: int, step: int, base: int, rows: U8, cols: U8, freqs: U16) -> int:
    """Undo :func:`ctx_model_encode` into ``rows``, ``cols`` (empty where there are none) and ``freqs``. A status."""
    bits = _Bits(data)
    try:
        for scales in (rows, cols):
            if len(scales) and not _take_scales(bits, scales):
                return BAD_MODEL
        for table in freqs.reshape(-1, 256):
            if not _take_table(bits, table, top, step, base):
                return BAD_MODEL
    except EOFError:
        return BAD_MODEL
    return OK if bits.clean_end() else BAD_MODEL


def _take_scales(bits: _Bits, scales: U8) -> bool:
    centre, k = bits.take(8), bits.take(3)
    for i in range(len(scales)):
        x = centre + _unzigzag(bits.take_rice(k, 9))
        if not 0 <= x <= 255:
            return False
        scales[i] = x
    return True


def _take_table(bits: _Bits, table: U16, top: int, step: int, base: int) -> bool:
    f = [0] * 256
    lo = bits.take(8)
    if lo:
        hi = bits.take(8)
        if not FIRST <= lo <= hi:
            return False
        f[ESCAPE], f[ZERO] = bits.take_rice(0, 13), bits.take_rice(0, 13)
        for y in range(lo, hi + 1):
            guess = _predict(f, y, lo, top, step, base)
            f[y] = guess + _unzigzag(bits.take_rice(guess.bit_length() >> 1, 13))
            if not 0 <= f[y] < SLOTS:
                return False
        if sum(f) != SLOTS or max(f) >= SLOTS:
            return False
    table[...] = f
    return True
