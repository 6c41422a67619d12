"""What is coded of a weight, and what is known of it before: tokens of its change, and inputs of a model.

Inputs are logarithms in octaves. Sizes are in units of the last place of the parent's element, since that is the unit
in which the change is counted; scales are mean changes of rows and columns, which the archive would have to say.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from arzstream.codec.scales import rice_parameters
from tools.study.checkpoints import Matrix

__all__ = [
    "CAUSAL",
    "FREE",
    "INPUTS",
    "MORE",
    "TOP",
    "Scales",
    "direction_of",
    "inputs",
    "last_place",
    "log_size",
    "raw_bits",
    "scales",
    "tokens",
]

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
TOP = 2
"""Bits below the leading one in a token."""
QUARTERS = 4
"""Steps in an octave of the scales that are sent."""
DAMP = 5
"""Scales are at most so many octaves below their mean."""
FADE = 1 / 16
"""What a row adds to the running means of its columns."""
FAR = 24.0
"""Octaves at which inputs are cut."""

INPUTS = (
    *("scale", "row", "column", "step 1", "step 2", "agree", "row before", "column before"),
    *("mantissa", "sign", "magnitude"),
)
"""What the reference model is given: see :func:`inputs`."""
CAUSAL = ("above", "size above", "column's drift", "column's size")
"""What a decoder that goes row by row knows in addition: changes in the rows above."""
FREE = ("scale before", "exponent", "step 1", "step 2", "agree", "mantissa", "sign", "magnitude")
"""What the references tell without a word in the archive: scales are those of the change before."""
MORE = (
    *("step 3", "agree 3", "velocity", "activity", "neighbours before", "neighbours' size before"),
    *("row's drift before", "column's drift before", "tensor", "scale before"),
)
"""What might help as well, and is known."""


# ---- tokens


def tokens(difference: I64, direction: NDArray[np.int8]) -> I64:
    """Exp-Golomb tokens: 0 for no change; else 2k − 1, or 2k against ``direction``, with k the octave and leading bits
    (registry.md section 8, less one)."""
    size = np.abs(difference)
    r = np.maximum(np.frexp(size.astype(np.float64))[1] - TOP - 1, 0)
    k = (size >> r) + (r << TOP)
    against = (difference < 0) != (direction < 0)
    return np.where(size > 0, 2 * k - 1 + against, 0)


def raw_bits(token: I64) -> I64:
    """Bits that follow a token, uniform."""
    return np.maximum((token + 1 >> 1 >> TOP) - 1, 0)


# ---- scales


@dataclasses.dataclass(frozen=True)
class Scales:
    """log2 of the mean change of rows, and of columns relative to the mean, as a reader of an archive would know
    them; ``bits`` is what it takes to tell it."""

    rows: F32
    cols: F32
    bits: int


def _log_scale(mean: F32) -> F32:
    typical = float(mean.mean())
    floor = max(typical * 2.0**-DAMP, 1e-38)
    quantised: F32 = (np.round(np.log2(np.maximum(mean, floor)) * QUARTERS) / QUARTERS).astype(np.float32)
    return quantised


def scales(m: Matrix, k: int) -> Scales:
    """Scales of the change from checkpoint k + 1 to k."""
    change = np.abs(m.floats(k) - m.floats(k + 1))
    rows = _log_scale(change.mean(axis=1))
    cols = _log_scale((change / np.exp2(rows)[:, None]).mean(axis=0)) if m.rows > 1 else np.zeros(m.cols, np.float32)
    sides = [side for side, used in ((rows, m.cols > 1), (cols, m.rows > 1)) if used]
    steps = [np.minimum((side - side.min()) * QUARTERS, 255).astype(np.uint8) for side in sides]
    return Scales(rows, cols, sum(rice_parameters(s)[2] + 16 for s in steps))


# ---- inputs


def log_size(difference: I64) -> F32:
    """log2 of a number of units, where none counts as a half."""
    return np.log2(np.maximum(np.abs(difference), 0.5)).astype(np.float32)


def _signed_log(x: F32) -> F32:
    """sign(x) · log2(1 + |x|)."""
    logs: F32 = (np.sign(x) * np.log2(1 + np.abs(x))).astype(np.float32)
    return logs


def last_place(m: Matrix, k: int) -> F32:
    """log2 of one unit in the last place of each element."""
    assert m.dtype.float_bits
    exponent, mantissa = m.dtype.float_bits
    return (m.exponents(k) - ((1 << exponent - 1) - 1) - mantissa).astype(np.float32)


def direction_of(m: Matrix) -> NDArray[np.int8]:
    """Where each element is believed to go: where it went last, else the time before, else away from zero."""
    found = np.where(m.ordered(1) < 0, -1, 1).astype(np.int8)
    for k in range(min(2, len(m.values) - 2), 0, -1):
        step = np.sign(m.ordered(k) - m.ordered(k + 1)).astype(np.int8)
        found = np.where(step != 0, step, found)
    return found


def _running_means(x: F32) -> F32:
    """Of each column, the fading mean of the rows above each row."""
    means = np.zeros_like(x)
    for i in range(1, len(x)):
        means[i] = means[i - 1] + FADE * (x[i - 1] - means[i - 1])
    return means


def _shifted(x: F32) -> F32:
    """Each element of the row above."""
    return np.concatenate([np.zeros_like(x[:1]), x[:-1]])


def _in_units(x: F32, scale: F32) -> F32:
    """``x`` divided by two to the ``scale``, which is nothing where nothing changed."""
    units: F32 = x / np.maximum(np.exp2(scale), np.finfo(np.float32).tiny)
    return units


def inputs(m: Matrix, now: Scales, names: tuple[str, ...]) -> F32:
    """What is known of each element, shape (rows, cols, len(names)). Past steps that the run lacks are no change."""
    step = [
        m.ordered(k) - m.ordered(k + 1) if k + 1 < len(m.values) else np.zeros_like(m.ordered(0)) for k in (1, 2, 3)
    ]
    before = scales(m, 1) if len(m.values) > 2 else now
    ulp, way = last_place(m, 1), direction_of(m).astype(np.float32)
    scale = now.rows[:, None] + now.cols
    moved = 0 * ulp  # along the direction, in units of its scale
    if len(m.values) > 2:
        moved = _in_units(m.floats(1) - m.floats(2), before.rows[:, None] + before.cols) * way
    change = _in_units(m.floats(0) - m.floats(1), scale)  # of rows above only
    size = np.log2(np.maximum(np.abs(m.floats(1)), 1e-30))
    past = [m.ordered(k) - m.ordered(k + 1) for k in range(1, len(m.values) - 1)] or [step[0]]
    known = {
        "scale": lambda: scale - ulp,
        "row": lambda: now.rows[:, None] - ulp,
        "column": lambda: now.cols + now.rows.mean() - ulp,
        "scale before": lambda: (before.rows[:, None] + before.cols - ulp) * (len(m.values) > 2),
        "exponent": lambda: ulp - np.median(ulp),
        "step 1": lambda: log_size(step[0]),
        "step 2": lambda: log_size(step[1]),
        "agree": lambda: np.sign(step[0] * step[1]),
        "row before": lambda: (before.rows - now.rows)[:, None] + 0 * ulp,
        "column before": lambda: before.cols - now.cols + 0 * ulp,
        "mantissa": lambda: np.log2(1 + m.mantissas(1)),
        "sign": lambda: np.where(m.ordered(1) < 0, -way, way) * (step[0] != 0),
        "magnitude": lambda: size - np.median(size),
        "above": lambda: _signed_log(_shifted(change) * way),
        "size above": lambda: np.log2(_shifted(np.abs(change)) + 2.0**-6),
        "column's drift": lambda: 4 * _signed_log(_running_means(change) * way),
        "column's size": lambda: np.log2(_running_means(np.abs(change)) + 2.0**-6),
        "step 3": lambda: log_size(step[2]),
        "agree 3": lambda: np.sign(step[2]) * way,
        "velocity": lambda: _signed_log(sum(0.7**k * d for k, d in enumerate(past)) * way),
        "activity": lambda: np.log2(sum(np.abs(d) for d in past) / len(past) + 2.0**-4),
        "neighbours before": lambda: _signed_log((np.roll(moved * way, 1, 1) + np.roll(moved * way, -1, 1)) * way),
        "neighbours' size before": lambda: np.log2(sum(np.abs(np.roll(moved, k, 1)) for k in (1, -1)) + 2.0**-4),
        "row's drift before": lambda: 4 * _signed_log((moved * way).mean(axis=1, keepdims=True) * way),
        "column's drift before": lambda: 4 * _signed_log((moved * way).mean(axis=0, keepdims=True) * way),
        "tensor": lambda: now.rows.mean() - np.median(ulp) + 0 * ulp,
    }
    return np.stack([np.clip(known[name](), -FAR, FAR).astype(np.float32) for name in names], axis=-1)
