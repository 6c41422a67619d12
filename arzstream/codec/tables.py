"""Frequency tables of the entropy coder: normalised, priced, written and read. All in integers, so that every machine
makes the same tables and the same choices."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from arzstream.errors import CorruptError
from arzstream.kernels.api import SLOTS

__all__ = [
    "COST_UNIT",
    "ENTROPY_BITS",
    "cost",
    "entropy",
    "normalise",
    "normalise_all",
    "parse",
    "prices",
    "serialise",
    "weighted_log",
]

U16 = NDArray[np.uint16]
I64 = NDArray[np.int64]
COST_UNIT = 1 << 16
"""Costs are in bits divided by this."""
ENTROPY_BITS = 17
"""Counts below 2^ENTROPY_BITS have an exact entropy."""


def normalise(counts: NDArray[np.integer], slots: int = SLOTS) -> U16:
    """Frequencies in proportion to ``counts`` (2 to 256 symbols, not all zero), summing to ``slots``, each below it.

    A symbol that occurs gets at least 1. Where only one does, symbol 0 gets the 1 that the largest frequency leaves (or
    symbol 1, if 0 is the one).
    """
    present = np.flatnonzero(counts)
    freqs = np.zeros(len(counts), np.uint16)
    if len(present) == 1:
        freqs[0 if present[0] else 1], freqs[present[0]] = 1, slots - 1
        return freqs
    c: I64 = counts[present].astype(np.int64)
    f = np.ones(len(c), np.int64)
    free, budget, total = np.arange(len(c)), slots, int(c.sum())
    # Symbols whose share is below one slot take one; what is left is shared again until no share is below one.
    while True:
        rare = c[free] * budget < total
        if not rare.any():
            break
        budget -= int(np.count_nonzero(rare))
        free = free[~rare]
        total = int(c[free].sum())
    c = c[free]
    share = c * budget // total
    # One more slot saves about c / (f + 1/2); the ones that flooring left over go where that is most.
    left = budget - int(share.sum())
    gain = (c << 16) // (2 * share + 1)
    share[np.argsort(-gain, kind="stable")[:left]] += 1
    f[free] = share
    freqs[present] = f
    return freqs


def normalise_all(counts: NDArray[np.integer], slots: int = SLOTS) -> U16:
    """:func:`normalise` of each row of ``counts``, shape (tables, symbols); rows without any stay without."""
    used = np.flatnonzero(counts.any(axis=0))
    freqs = np.zeros(counts.shape, np.uint16)
    if not len(used):
        return freqs
    window = slice(int(used[0]), int(used[-1]) + 1)
    c: I64 = counts[:, window].astype(np.int64)
    present = c > 0
    symbols = present.sum(axis=1)
    free, budget, total = present.copy(), np.full(len(c), slots, np.int64), c.sum(axis=1)
    while True:
        rare = free & (c * budget[:, None] < total[:, None])
        if not rare.any():
            break
        budget -= rare.sum(axis=1)
        free &= ~rare
        total = (c * free).sum(axis=1)
    share = np.where(free, c * budget[:, None] // np.maximum(total, 1)[:, None], 0)
    gain = np.where(free, (c << 16) // (2 * share + 1), -1)
    for row, left in enumerate((budget - share.sum(axis=1)).tolist()):
        share[row, np.argsort(-gain[row], kind="stable")[:left]] += 1
    freqs[:, window] = np.where(free, share, present)
    for row in np.flatnonzero(symbols < 2).tolist():
        freqs[row] = normalise(counts[row], slots) if symbols[row] else 0
    return freqs


def _log2(x: I64) -> I64:
    """Round-to-nearest of COST_UNIT · log2(x) for x from 1 to 2^31, by squaring (no floating point)."""
    f = x.astype(np.uint64)
    whole = np.zeros(len(f), np.int64)
    for k in range(1, 32):
        whole += f >= 1 << k
    y = f << (31 - whole).astype(np.uint64)  # x / 2^whole in [1, 2) with 31 bits below the point
    log = np.zeros(len(f), np.int64)
    for _ in range(17):
        y = y * y >> np.uint64(31)
        carry = y >> np.uint64(32)
        y >>= carry
        log = log << 1 | carry.astype(np.int64)
    return whole * COST_UNIT + (log + 1 >> 1)


@functools.cache
def _price() -> I64:
    """Entry f: COST_UNIT · log2(4096 / f); entry 0 is 0."""
    f = np.arange(SLOTS + 1, dtype=np.int64)
    f[0] = SLOTS
    return 12 * COST_UNIT - _log2(f)


@functools.cache
def weighted_log() -> I64:
    """Entry c: c · COST_UNIT · log2(c), for c below 2^ENTROPY_BITS."""
    c = np.arange(1 << ENTROPY_BITS, dtype=np.int64)
    return c * _log2(np.maximum(c, 1))


def entropy(counts: NDArray[np.integer]) -> int:
    """What an ideal coder takes for ``counts`` of each symbol, in bits · COST_UNIT; shape (tables, symbols).

    Roughly, where a table's counts sum to 2^ENTROPY_BITS or more.
    """
    shift = max(0, int(counts.sum(axis=1).max()).bit_length() - ENTROPY_BITS)
    counts = counts >> shift
    return int(weighted_log()[counts.sum(axis=1)].sum() - weighted_log()[counts].sum()) << shift


def cost(counts: NDArray[np.integer], freqs: U16) -> int:
    """What coding ``counts`` of each symbol with ``freqs`` takes, in bits · COST_UNIT. What occurs has a frequency."""
    return int(counts.astype(np.int64) @ _price()[freqs])


def prices(freqs: U16) -> I64:
    """Bits · COST_UNIT of one symbol of each of ``freqs``."""
    return _price()[freqs]


def serialise(freqs: U16) -> bytes:
    """The bytes of spec/registry.md's frequency table."""
    out = bytearray()
    zeros = 0
    for f in freqs.tolist():
        if f == 0:
            zeros += 1
            continue
        while zeros:
            run = min(zeros, 256)
            out += bytes((0, run - 1))
            zeros -= run
        if f < 0x80:
            out.append(f)
        else:
            out += bytes((0x80 | f >> 8, f & 0xFF))
    return bytes(out)


def parse(data: bytes, size: int) -> U16:
    """Undo :func:`serialise` for an alphabet of ``size`` symbols. Raises CorruptError unless it sums to 4096."""
    freqs: list[int] = []
    values = iter(data)
    try:
        for value in values:
            if value == 0:
                freqs.extend([0] * (next(values) + 1))
            elif value < 0x80:
                freqs.append(value)
            elif value < 0x90:
                freqs.append((value & 0x0F) << 8 | next(values))
            else:
                raise CorruptError("a frequency table has a byte that means nothing; the chunk is damaged")
    except StopIteration:
        raise CorruptError("a frequency table ends inside an entry; the chunk is damaged") from None
    if len(freqs) > size or sum(freqs) != SLOTS:
        raise CorruptError("a frequency table has a wrong size or sum; the chunk is damaged")
    table = np.zeros(size, np.uint16)
    table[: len(freqs)] = freqs
    return table
