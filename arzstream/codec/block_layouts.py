"""Records that quantised tensors are made of, and how to tell which a tensor has.

The block types are those of ggml (https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h). The decoder knows
none of them: a payload describes its records itself.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from arzstream.kernels.records import Rule

__all__ = ["LAYOUTS", "OTHERS", "PLAIN", "SCALES", "Part", "find_period"]

U8 = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Part:
    """``length`` bytes of a record that share tables. ``nibbles``: each is two codes of four bits; ``rules``: what may
    tell their distributions apart, without the bases."""

    length: int
    nibbles: bool = False
    rules: tuple[Rule, ...] = ()


def _half(*rules: Rule) -> tuple[Part, Part]:
    """A half-precision number: the low byte, mostly noise, and the high byte."""
    return Part(1), Part(1, rules=rules)


def _after(offset: int) -> Rule:
    """The high byte of one half-precision number under that of another, at ``offset``."""
    return Rule(z_classes=16, numerator=offset, z_shift=8)


_D = _half()
_D_AND_M = (*_half(), *_half(_after(0)))
_UNDER_D = (Rule(e_classes=4, scale=0, e_shift=8), Rule(e_classes=8, scale=0, e_shift=8))
_UNDER_M = (
    Rule(z_classes=8, numerator=2, denominator=0, z_shift=7),
    Rule(z_classes=16, numerator=2, denominator=0, z_shift=6),
    Rule(z_classes=8, numerator=2, denominator=0, z_shift=7, e_classes=3, scale=0, e_shift=8),
    Rule(z_classes=16, numerator=2, denominator=0, z_shift=7, e_classes=4, scale=0, e_shift=8),
)
_WITH_COLUMNS = (Rule(e_classes=8, columns=True), Rule(e_classes=16, columns=True))
_UNDER_D_AND_COLUMNS = (
    *_UNDER_D,
    Rule(e_classes=8, scale=0, e_shift=8, columns=True),
    Rule(e_classes=16, scale=0, e_shift=8, columns=True),
)

_SHORTS = (Part(1), Part(1)) * 8
"""Eight numbers of 16 bits, low and high bytes apart."""

LAYOUTS: dict[int, tuple[Part, ...]] = {
    17: (Part(1), Part(16, True)),  # MXFP4
    18: (*_D, Part(16, True, _UNDER_D)),  # Q4_0, IQ4_NL
    20: (*_D_AND_M, Part(16, True, _UNDER_M)),  # Q4_1
    22: (*_D, Part(4), Part(16, True, _UNDER_D)),  # Q5_0
    24: (*_D_AND_M, Part(4), Part(16, True, _UNDER_M)),  # Q5_1
    34: (*_D, Part(32, False, _UNDER_D_AND_COLUMNS)),  # Q8_0
    36: (Part(4), Part(32, True)),  # NVFP4
    50: (*_D, Part(32), *_SHORTS),  # IQ1_S: indices, then their high bits with a scale and a sign
    54: (Part(48), Part(4), *_half()),  # TQ1_0: five ternary codes a byte, then four
    56: (Part(32), Part(16), *(Part(1) for _ in range(8))),  # IQ1_M: the scale of all lies in the last eight bytes
    66: (*_D, *8 * (Part(4), Part(3), Part(1))),  # IQ2_XXS: indices, signs, signs under a scale
    74: (*_D, Part(64), Part(8, True)),  # IQ2_XS: indices with signs, scales
    82: (*_D, Part(32), Part(32), Part(8), Part(8, True)),  # IQ2_S: indices, signs, high bits, scales
    84: (Part(16), Part(64), *_half(), *_half(_after(80))),  # Q2_K
    98: (*_D, Part(64), *8 * (Part(3), Part(1))),  # IQ3_XXS: indices, signs, signs under a scale
    110: (Part(32), Part(64), Part(12), *_D),  # Q3_K
    136: (*_D, Part(2), Part(4), Part(128, True)),  # IQ4_XS
    144: (*_D_AND_M, Part(4), Part(4), Part(4), Part(128, True)),  # Q4_K
    176: (*_D_AND_M, Part(4), Part(4), Part(4), Part(32), Part(128, True)),  # Q5_K
    210: (Part(128, True), Part(64), Part(16), *_D),  # Q6_K
    292: (Part(1), Part(1), Part(1), Part(1), Part(256), *(Part(1) for _ in range(32))),  # Q8_K
}
"""By their lengths."""
OTHERS: dict[int, tuple[Part, ...]] = {
    18: (*_D, Part(16)),  # Q1_0: eight codes a byte
    66: (Part(64), *_half()),  # TQ2_0: four ternary codes a byte
    110: (*_D, Part(64), Part(8), Part(32), Part(4, True)),  # IQ3_S: indices, high bits, signs, scales
}
"""Of types whose blocks are as long as those of another one."""
PLAIN = ((Part(1, rules=_WITH_COLUMNS),), (Part(1, True),))
"""Records of one byte: int8, or two codes of four bits."""

SCALES = (Part(1),) * 4
"""Numbers of single precision, byte by byte."""

SAMPLE = 1 << 16
"""Bytes in which a period is looked for, at most."""
SURE = 6
"""Standard deviations by which the bytes a period apart must be equal more often than others."""


def find_period(data: U8, row_bytes: int) -> int | None:
    """The length of the records in ``data``, one of :data:`LAYOUTS` that divides its rows; None where there are none.

    The high bytes of scales take few values, so that bytes one record apart are equal more often than others are.
    """
    periods = [p for p in LAYOUTS if row_bytes % p == 0 and len(data) >= 4 * p]
    if not periods:
        return None
    some = data[:SAMPLE]
    n = len(some) - max(periods)
    counts = np.bincount(some, minlength=256).astype(np.int64)
    chance = int((counts * counts).sum()) * n // len(some) ** 2
    least = chance + SURE * math.isqrt(chance + 1)
    equal = {p: int(np.count_nonzero(some[:n] == some[p : p + n])) for p in periods}
    best = max(equal.values())
    if best <= least:
        return None
    # Twice a period is one as well: the shortest of those that are about as good.
    return min(p for p in periods if equal[p] - chance >= (best - chance) * 3 // 4)
