"""Where master weights and moments are expected: the factors of the parent and of Adam's steps, fitted to a sample.

Residuals cost their logarithm, so that is what is minimised: least squares, again and again, with weights that are one
over the squared residual of the last time (iteratively reweighted least squares with a Cauchy-like loss). Rows of an
embedding that saw no gradient then decide the factors, which are exact for them, and not those that moved most.

Every number that leaves this module is the same on every machine: single operations of IEEE 754, and sums of integers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["EPSILON", "decay", "log_cost", "numbers", "step", "step_factors"]

U8 = NDArray[np.uint8]
F64 = NDArray[np.float64]

EPSILON = 1e-8
"""What Adam adds to the root of the second moment, if it was not told otherwise."""
ROUNDS = 6
"""How often weights are made anew."""
NEAREST = 10
"""One in so many is near."""
LARGEST = 2.0**60
"""Factors are no larger, and if not 0 no smaller than one by this."""
LEAST = 64
"""Fewer numbers than this tell nothing."""
QUANTILE = 16
"""Squares decay about so much: the ratio that one of so many is below."""


def numbers(data: U8) -> F64:
    """Binary32 numbers as binary64, 0 for those that are subnormal or not finite."""
    bits = data.view("<u4")
    exponent = bits >> 23 & 255
    return np.where((exponent > 0) & (exponent < 255), bits, 0).astype("<u4").view("<f4").astype(np.float64)


def step(moment: F64, square: F64) -> F64:
    """Adam's step, for a learning rate of 1."""
    result: F64 = moment / (np.sqrt(np.maximum(square, 0.0)) + EPSILON)
    return result


def _smallest(values: F64, of: int) -> float:
    """The largest of the smallest part, one in ``of``."""
    place = len(values) // of
    return float(np.partition(values, place)[place])


def _total(values: F64) -> float:
    """The sum, to more than 40 bits below the largest term; the same in whatever order it is taken."""
    largest = float(np.abs(values).max(initial=0.0))
    if not 0.0 < largest < math.inf:
        return 0.0
    shift = 61 - len(values).bit_length() - math.frexp(largest)[1]
    return math.ldexp(int(np.rint(np.ldexp(values, shift)).astype(np.int64).sum()), -shift)


def _solve(matrix: list[list[float]], right: list[float]) -> list[float] | None:
    """Gaussian elimination with pivots; None if there is no solution worth the name."""
    n = len(right)
    rows = [[*line, value] for line, value in zip(matrix, right, strict=True)]
    for k in range(n):
        pivot = max(range(k, n), key=lambda i: abs(rows[i][k]))
        rows[k], rows[pivot] = rows[pivot], rows[k]
        if abs(rows[k][k]) < 1e-9:
            return None
        for i in range(k + 1, n):
            factor = rows[i][k] / rows[k][k]
            rows[i] = [a - factor * b for a, b in zip(rows[i], rows[k], strict=True)]
    found = [0.0] * n
    for k in reversed(range(n)):
        rest = rows[k][n]
        for i in range(k + 1, n):
            rest -= rows[k][i] * found[i]
        found[k] = rest / rows[k][k]
    return found


def _squares(features: Sequence[F64], target: F64, weights: F64) -> list[float] | None:
    """Weighted least squares, on features scaled to the same size."""
    weighted = [f * weights for f in features]
    scales = [math.sqrt(_total(w * f)) for f, w in zip(features, weighted, strict=True)]
    if not all(scales):
        return None
    products: dict[tuple[int, int], float] = {}
    for i, j in itertools.combinations_with_replacement(range(len(features)), 2):
        products[i, j] = products[j, i] = _total(weighted[i] * features[j]) / scales[i] / scales[j]
    n = range(len(features))
    right = [_total(weighted[i] * target) / scales[i] for i in n]
    found = _solve([[products[i, j] for j in n] for i in n], right)
    return None if found is None else [x / scale for x, scale in zip(found, scales, strict=True)]


def _fit(features: Sequence[F64], target: F64, unit: F64) -> list[list[float]]:
    """Factors of ``features`` whose sum is near ``target``: by least squares, and by least logarithms, where what is
    within ``unit`` of it, or nearer than most, counts as equally near. Fewer, or none, where there is no solution."""
    tried: list[list[float]] = []
    weights: F64 = np.ones(len(target))
    for _ in range(ROUNDS):
        found = _squares(features, target, weights)
        if found is None:
            break
        tried[1:] = [found]
        left = target.copy()
        for factor, feature in zip(found, features, strict=True):
            left -= factor * feature
        near = np.maximum(unit, _smallest(np.abs(left), NEAREST))
        weights = 1.0 / (left * left + near * near)
    return tried


def _unit(values: F64) -> F64:
    """One unit in the last place of a binary32."""
    result: F64 = np.ldexp(1.0, np.frexp(values)[1] - 24)
    return result


def _sensible(factors: Sequence[float]) -> bool:
    return all(1 / LARGEST <= abs(factor) <= LARGEST for factor in factors)


def step_factors(new: F64, parent: F64, step_of: F64) -> list[tuple[float, float]]:
    """Factors of the parent and of the step that are worth a trial."""
    tried = _fit([parent, step_of], new - parent, np.maximum(_unit(new), 2.0**-149))
    return [(1.0 + found[0], found[1]) for found in tried if _sensible((1.0 + found[0], found[1]))]


def decay(new: F64, parent: F64) -> list[float]:
    """Factors of the parent that are worth a trial, where old values fade and new ones are added."""
    both = (parent != 0.0) & (new != 0.0)
    if np.count_nonzero(both) < LEAST:
        return []
    new, parent = new[both], parent[both]
    found = [factors[0] for factors in _fit([parent], new, _unit(new))[1:]]
    found.append(_smallest(new / parent, QUANTILE))
    return [factor for factor in found if factor > 0.0 and _sensible((factor,))]


def log_cost(new: U8, expected: U8, most: int = 32) -> int:
    """About how many bits differences to what is expected take, each ``most`` at most; in 1/256 of one."""
    a, b = (x.view("<i4").astype(np.int64) for x in (new, expected))
    a, b = (np.where(x < 0, x ^ 0x7FFFFFFF, x) for x in (a, b))
    mantissa, exponent = np.frexp(np.abs(a - b).astype(np.float64) + 1.0)
    bits = exponent * 256 + (mantissa * 512.0).astype(np.int64) - 512
    return int(np.minimum(bits, 256 * most).sum())
