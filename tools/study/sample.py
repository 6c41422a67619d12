"""The weights that models learn from, and those that they are scored on: short runs of neighbours in a row."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from tools.study import changes
from tools.study.checkpoints import Matrix, Run

__all__ = ["WINDOW", "Sample", "draw"]

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
WINDOW = 64
"""Neighbours of a row that are drawn together."""
HELD = 0.25
"""Share of the rows that are scored; the others are learned from."""
BAND = 1 << 19
"""Elements of a matrix that windows are drawn from, about."""
STEPS = 8
"""Past steps of each weight that are kept, at most."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """Windows of weights: arrays of shape (windows, WINDOW) or, of inputs, with one more dimension."""

    names: tuple[str, ...]
    """What ``inputs`` holds, in order."""
    inputs: F32
    history: F32
    """Shape (windows, WINDOW, steps, 3), the oldest step first: size, direction and scale of each past change."""
    tokens: I64
    """Tokens of the changes along the direction that was predicted."""
    plain: I64
    """Tokens along the parent: away from zero or towards it."""
    exponents: I64
    """Exponent fields of the parent."""
    held: NDArray[np.bool_]
    """Which windows are scored."""
    scale_bits: float
    """Bits per weight of the whole checkpoint that its scales of rows and columns take."""
    share: float
    """Share of the weights that are in matrices windows could be drawn from."""

    @property
    def alphabet(self) -> int:
        return int(max(self.tokens.max(), self.plain.max())) + 1

    def columns(self, names: tuple[str, ...]) -> list[int]:
        return [self.names.index(name) for name in names]

    def learned(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """The weights to learn from, with windows and places in them as one dimension."""
        return array[~self.held].reshape(-1, *array.shape[2:])

    def scored(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        return array[self.held].reshape(-1, *array.shape[2:])


def _history(m: Matrix, way: F32) -> F32:
    """Size and direction of each past change, oldest first, and its scale: shape (rows, cols, steps, 3)."""
    ulp, found = changes.last_place(m, 1), []
    for k in range(min(STEPS, len(m.values) - 2), 0, -1):
        step, scale = m.ordered(k) - m.ordered(k + 1), changes.scales(m, k)
        relative = scale.rows[:, None] + scale.cols - ulp
        found.append(np.stack([changes.log_size(step), np.sign(step) * way, relative], axis=-1))
    shape = (m.rows, m.cols, 0, 3)
    return np.stack(found, axis=2).astype(np.float32) if found else np.zeros(shape, np.float32)


def _windows(m: Matrix, now: changes.Scales, count: int, names: tuple[str, ...], rng: np.random.Generator) -> list:
    """``count`` windows of one matrix, as the arrays of :class:`Sample` from ``inputs`` to ``held``."""
    band = min(m.rows, max(8, BAND // m.cols))
    first = int(rng.integers(0, m.rows - band + 1))
    part = m.band(first, first + band)
    scales = dataclasses.replace(now, rows=now.rows[first : first + band])
    held = rng.random(band) < HELD
    rows = rng.integers(0, band, count)
    places = rows[:, None], rng.integers(0, m.cols - WINDOW + 1, count)[:, None] + np.arange(WINDOW)
    difference, way = part.ordered(0) - part.ordered(1), changes.direction_of(part)
    outwards = np.where(part.ordered(1) < 0, -1, 1).astype(np.int8)
    whole = (
        changes.inputs(part, scales, names),
        _history(part, way.astype(np.float32)),
        changes.tokens(difference, way),
        changes.tokens(difference, outwards),
        part.exponents(1),
    )
    return [*(array[places] for array in whole), held[rows]]


DRAWN = tuple(dict.fromkeys(changes.INPUTS + changes.CAUSAL + changes.FREE))
"""Inputs that a sample holds."""


def draw(run: Run, weights: int, seed: int, names: tuple[str, ...] = DRAWN) -> Sample:
    """About ``weights`` to learn from and a third as many to score, from the matrices in proportion to their size."""
    rng = np.random.default_rng(seed)
    usable = {m.name for m in run.matrices if m.rows > 1 and m.cols >= WINDOW}
    inside = sum(m.rows * m.cols for m in run.matrices if m.name in usable)
    if not inside:
        raise SystemExit(f"no matrix has two rows and {WINDOW} columns: there is nothing to draw a sample from")
    parts, scale_bits = [], 0
    for m in run.matrices:
        now = changes.scales(m, 0)
        scale_bits += now.bits
        if m.name in usable:
            count = max(1, round(weights / (1 - HELD) * m.rows * m.cols / inside / WINDOW))
            parts.append(_windows(m, now, count, names, rng))
    arrays = [np.concatenate(kind) for kind in zip(*parts, strict=True)]
    return Sample(names, *arrays, scale_bits / run.weights, inside / run.weights)
