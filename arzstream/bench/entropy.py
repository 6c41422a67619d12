"""What to expect of a lossless coder: the order-0 entropy of the exponents, and the limit for Gaussian weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from arzstream.bench.sample import Part

__all__ = ["Bounds", "bounds", "gaussian_bits"]

EULER = 0.5772156649015329
BLOCK_ELEMENTS = 1 << 20


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Shares of the sample's bytes.

    ``order0``: for each float tensor the entropy of its exponents plus sign and mantissa as they are, less the low
    mantissa bits that are zero in all of its elements; eight bits a byte for the rest. ``gaussian``: the same with
    :func:`gaussian_bits` for floats. ``floats``: bytes of float tensors.
    """

    order0: float
    gaussian: float
    floats: int


def gaussian_bits(mantissa_bits: int) -> float:
    """Bits an element of Gaussian weights whose σ is known, in a float format with so many mantissa bits.

    Entropy of the density, less the mean of log2 of the distance between neighbouring floats, σ spread evenly (in
    logarithm) over a binade: 3.46 + mantissa bits; 10.46 of 16 for bf16. Subnormals and overflow are left out.
    """
    density = 0.5 * math.log2(2 * math.pi * math.e)
    mean_exponent = -(EULER + math.log(2)) / (2 * math.log(2)) - 0.5
    return density - mean_exponent + mantissa_bits


def bounds(parts: Sequence[Part]) -> Bounds:
    """Bounds for all parts together, by their lengths."""
    total = sum(part.data.nbytes for part in parts)
    order0 = gaussian = 0.0
    floats = 0
    for part in parts:
        dtype = part.context.dtype
        if dtype.float_bits is None:
            order0 += 8 * part.data.nbytes
            gaussian += 8 * part.data.nbytes
            continue
        exponent_bits, mantissa_bits = dtype.float_bits
        entropy, zeros = _exponents(part, exponent_bits, mantissa_bits)
        count = part.data.nbytes * 8 // (1 + exponent_bits + mantissa_bits)
        floats += part.data.nbytes
        order0 += count * (1 + mantissa_bits - zeros + entropy)
        gaussian += count * gaussian_bits(mantissa_bits - zeros)
    return Bounds(order0 / (8 * total), gaussian / (8 * total), floats)


def _exponents(part: Part, exponent_bits: int, mantissa_bits: int) -> tuple[float, int]:
    """(entropy of the exponents in bits, mantissa bits that are zero in all elements)."""
    elements = part.data.view(f"<u{(1 + exponent_bits + mantissa_bits) // 8}")
    counts = np.zeros(1 << exponent_bits, np.int64)
    used = 0
    for start in range(0, len(elements), BLOCK_ELEMENTS):
        block = elements[start : start + BLOCK_ELEMENTS]
        exponents = (block >> block.dtype.type(mantissa_bits)).astype(np.int64) & ((1 << exponent_bits) - 1)
        counts += np.bincount(exponents, minlength=len(counts))
        used |= int(np.bitwise_or.reduce(block))
    used &= (1 << mantissa_bits) - 1
    zeros = mantissa_bits if not used else (used & -used).bit_length() - 1
    shares = counts[counts > 0] / len(elements)
    return float(-(shares * np.log2(shares)).sum()), zeros
