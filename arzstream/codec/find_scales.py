"""Whether floats are small integers times a scale, and which.

Each value v that is code c times scale s, rounded, bounds s: |c| · s lies within half a unit in the last place of |v|.
The smallest magnitude of a group is taken to be code 1, then 2, and so on; the codes of the others follow, the small
ones first, because their bounds make the scale precise enough to tell the large ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["KINDS", "LARGEST", "Kind", "find_scales", "likely"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]

LARGEST = 127
"""The largest code."""
SMALLEST_CODES = 16
"""How large the smallest code of a group may be."""
_EXPONENT, _MANTISSA = np.uint64(0x7FF << 52), np.uint64((1 << 52) - 1)
"""Fields of a double."""
CACHED = 1 << 15
"""Elements that are looked at at a time."""
LIKELY_GROUPS, LIKELY_SIZE, LIKELY_SMALL = 16, 32, 6
"""What :func:`likely` looks at: groups, elements of each, and how many small ones it wants to tell."""


class Kind(NamedTuple):
    """A data type: bits of its precision, the hidden one included; half its smallest unit; and the largest code that
    follows from a scale that is known as well as one element is."""

    precision: int
    half_unit: float
    small: int


KINDS = {
    "F32": Kind(24, 2.0**-150, LARGEST),
    "BF16": Kind(8, 2.0**-134, 24),
    "F16": Kind(11, 2.0**-25, LARGEST),
}


def likely(values: F32, kind: Kind) -> bool:
    """Whether a few groups of ``values`` look like multiples of their smallest; says no to ordinary floats, quickly."""
    size = LIKELY_GROUPS * LIKELY_SIZE
    if len(values) < size:
        return len(values) >= LIKELY_SIZE  # so few that trying costs nothing
    start = (len(values) - size) // 2 // LIKELY_SIZE * LIKELY_SIZE
    a = np.abs(values[start : start + size]).reshape(LIKELY_GROUPS, LIKELY_SIZE)
    with np.errstate(all="ignore"):
        ratio = a / np.min(a, axis=1, where=a > 0, initial=np.inf, keepdims=True)
        off = np.abs(ratio - np.rint(ratio))
        small = (ratio > 1.5) & (ratio < kind.small)
        bad = small & (off > ratio * np.float32(2.5 * 2.0**-kind.precision))
    return bool(np.any(~bad.any(axis=1) & (small.sum(axis=1) >= LIKELY_SMALL)) or not np.count_nonzero(a))


def find_scales(groups: F32, kind: Kind) -> tuple[F32, Bools]:
    """(scale of each group, whether there is one); 0 for a group of zeros, and where there is none. Each scale is one
    that decoders take. Shape (groups, elements)."""
    scales, found = np.zeros(len(groups), np.float32), np.zeros(len(groups), np.bool_)
    step = max(1, CACHED // groups.shape[1])
    with np.errstate(all="ignore"):
        for first in range(0, len(groups), step):
            some = slice(first, first + step)
            scales[some], found[some] = _find(np.abs(groups[some].astype(np.float64)), kind)
    return scales, found


def _find(a: F64, kind: Kind) -> tuple[F32, Bools]:
    scales = np.zeros(len(a), np.float32)
    finite = np.isfinite(a).all(axis=1)
    smallest = np.where(a > 0, a, np.inf).min(axis=1)
    found = finite & np.isinf(smallest)
    left = np.flatnonzero(finite & ~found)
    for code in range(1, SMALLEST_CODES + 1):
        if not len(left):
            break
        low, high = _bounds(a[left], smallest[left] / code, kind)
        good = np.asarray(low <= high)
        scales[left[good]] = _simplest(low[good], high[good])
        found[left[good]] = True
        left = left[~good]
    # Products of normal numbers and integers are normal: no machine's treatment of others matters. One that takes them
    # for 0 must see the bits here.
    usable = (scales.view(np.uint32) == 0) | (scales >= np.finfo(np.float32).tiny) & np.isfinite(scales)
    scales[~usable] = 0
    return scales, found & usable


def _bounds(a: F64, scale: F64, kind: Kind) -> tuple[F64, F64]:
    """Within which the scales of groups with magnitudes ``a`` lie, near ``scale``; low above high where nowhere."""
    below, above = _halves(a, kind)
    middle = a + (above - below) / 2
    for most in (kind.small, *((64,) if kind.small < 64 else ()), LARGEST):
        codes = np.rint(middle / scale[:, None])
        use = (codes > 0) & (codes <= most)
        low = np.where(use, (a - below) / codes, 0).max(axis=1)
        high = np.where(use, (a + above) / codes, np.inf).min(axis=1)
        scale = (low + high) / 2
    # A magnitude that is no multiple, or too large a one.
    codes = np.rint(middle / scale[:, None])
    fits = (np.abs(a - codes * scale[:, None]) <= above) & (codes <= LARGEST)
    return np.where(fits.all(axis=1), low, np.inf), high


def _halves(a: F64, kind: Kind) -> tuple[F64, F64]:
    """How far below and above ``a`` a number may lie that is rounded to it; a tie goes to the even one."""
    bits = a.view(np.uint64)
    power = (bits & _EXPONENT).view(np.float64)
    half = np.maximum(power * 2.0**-kind.precision, kind.half_unit)
    # Of the subnormal, none is taken to be even: a tie is then no proof.
    odd = bits << np.uint64(10 + kind.precision) >> np.uint64(63) != 0
    half = np.where(odd | (half == kind.half_unit), half * (1 - 2.0**-30), half)
    return np.where(bits & _MANTISSA, half, half / 2), half


def _simplest(low: F64, high: F64) -> F32:
    """The number between with the most zeros at its end, as far as a few lengths tell: scales are often narrow."""
    middle: F32 = ((low + high) / 2).astype(np.float32)
    bits = middle.view(np.uint32)
    best: F32 = middle.copy()
    for zeros in (8, 13, 16):
        rounded = ((bits >> zeros) + (bits >> (zeros - 1) & 1) << zeros).view(np.float32)
        np.copyto(best, rounded, where=(low <= rounded) & (rounded <= high))
    return best
