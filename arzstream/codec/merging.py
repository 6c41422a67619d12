"""Distributions that share a table: what they take, and which neighbours are best merged.

All in integers, so that every machine decides alike.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from arzstream.codec import tables

__all__ = ["costs", "ideal", "merge"]

I64 = NDArray[np.int64]

TABLE_BITS, ENTRY_BITS = 32, 8
"""What a table takes in the model stream, about, and each symbol in it."""
_ENTRIES = 1 << tables.ENTROPY_BITS


def _weighted(counts: I64) -> I64:
    """COST_UNIT · c · log2(c) of each count, closely."""
    log = tables.weighted_log()
    large = counts >= _ENTRIES
    result: I64 = log[np.where(large, 0, counts)]
    if large.any():
        found = counts[large]
        shift = np.frexp(found.astype(np.float64))[1].astype(np.int64) - tables.ENTROPY_BITS
        small = found >> shift
        result[large] = found * (log[small] // small + shift * tables.COST_UNIT)
    return result


def ideal(counts: I64) -> I64:
    """What coding each distribution ``counts[..., symbols]`` takes, in bits · COST_UNIT."""
    cost: I64 = _weighted(counts.sum(axis=-1)) - _weighted(counts).sum(axis=-1)
    return cost


def costs(groups: I64) -> I64:
    """What coding each of ``groups``, shape (n, symbols), with a table of its own takes, the table included; in bits ·
    COST_UNIT."""
    own: I64 = (TABLE_BITS + ENTRY_BITS * np.count_nonzero(groups, axis=1)) * tables.COST_UNIT
    return ideal(groups) + own


def merge(groups: I64, most: int) -> tuple[I64, I64, NDArray[np.intp]]:
    """(groups, their :func:`costs`, the first of each) after neighbours were merged while that saves bits, or there are
    more than ``most``."""
    groups, starts = groups.copy(), np.arange(len(groups))
    own = costs(groups)
    none = np.array([np.iinfo(np.int64).min])
    while len(groups) > 1:
        merged = groups[:-1] + groups[1:]
        joint = costs(merged)
        gain = own[:-1] + own[1:] - joint
        around = np.concatenate([none, gain, none])
        # Pairs that gain more than both their neighbours; of equals the first.
        take = (gain >= around[2:]) & (gain > around[:-2])
        if len(groups) <= most:
            take &= gain > 0
        at = np.flatnonzero(take)
        if len(groups) - len(at) < most < len(groups):  # the dearest of these pairs stay
            at = np.sort(at[np.argsort(-gain[at], kind="stable")[: len(groups) - most]])
        if not len(at):
            break
        groups[at], own[at] = merged[at], joint[at]
        keep = np.ones(len(groups), np.bool_)
        keep[at + 1] = False
        groups, own, starts = groups[keep], own[keep], starts[keep]
    return groups, own, starts
