"""Cells that the decoder can compute, folded into few tables: codec 9's classes.

A cell is what is known of an element before it is. Cells with like distributions share a table; how many tables there
are is decided by what they cost. All in integers, so that every machine decides alike.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from arzstream.codec import tables
from arzstream.codec.merging import costs, merge
from arzstream.codec.scales import rice_parameters

__all__ = ["MAX_CLASSES", "Folding", "fold", "map_moves", "sampled_bits", "unfold_moves"]

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
I64 = NDArray[np.int64]

MAX_CLASSES = 64
PIECES, FEW_PIECES = 160, 24
"""Pieces that cells are cut into before these are merged, about; and where only the bits of a sample are wanted."""
MAP_BITS = 2
"""What the class of a cell takes in a map, about."""
MEAN_UNIT = 1 << 16
MIDDLE = 128
"""How no difference between neighbours in a map is written."""


@dataclasses.dataclass(frozen=True)
class Folding:
    """A class for each cell; how often each symbol occurs in each class, shape (classes, 256); and what symbols, tables
    and map take, in bits."""

    classes: U8
    counts: I64
    bits: int


def map_moves(classes: U8) -> U8:
    """A map as differences between neighbours, as the model stream has it."""
    return (np.diff(classes.astype(np.int16), prepend=np.int16(0)) + MIDDLE).astype(np.uint8)


def unfold_moves(moves: U8) -> U8:
    """Undo :func:`map_moves`; modulo 256."""
    return np.cumsum(moves - np.uint8(MIDDLE), dtype=np.uint8)


def fold(counts: U32, most: int = MAX_CLASSES) -> Folding:
    """Classes for cells with ``counts`` of each symbol, shape (cells, 256), not all zero; up to ``most`` of them.

    Cells are put in the order of their mean token, and neighbours in it merged as long as that saves bits.
    """
    occurs = counts.max(axis=1) > 0
    used = np.flatnonzero(occurs)
    found = counts[used]
    window = np.flatnonzero(found.max(axis=0))
    first, end = int(window[0]), int(window[-1]) + 1
    found = found[:, first:end]
    weight = found.sum(axis=1, dtype=np.int64)
    mean = (found @ (np.arange(first, end, dtype=np.uint32) >> 1)).astype(np.int64) * MEAN_UNIT // weight
    order = np.argsort(mean, kind="stable")
    # Pieces of about the same weight are what is merged: there may be a thousand cells.
    before = np.cumsum(weight[order]) - weight[order]
    piece = before * PIECES // int(weight.sum())
    edges = np.flatnonzero(np.diff(piece, prepend=-1))
    groups, own, starts = merge(np.add.reduceat(found[order], edges, axis=0, dtype=np.int64), most)
    of_used = np.empty(len(used), np.uint8)
    of_used[order] = np.searchsorted(edges[starts], np.arange(len(used)), side="right") - 1
    # Cells that do not occur are like the one before them, which takes the fewest bits.
    before = np.maximum.accumulate(np.where(occurs, np.arange(len(counts)), used[0]))
    classes = np.zeros(len(counts), np.uint8)
    classes[used] = of_used
    classes = classes[before]
    total = np.zeros((len(groups), 256), np.int64)
    total[:, first:end] = groups
    return Folding(classes, total, int(own.sum()) // tables.COST_UNIT + rice_parameters(map_moves(classes))[2])


def sampled_bits(symbols: U8, cells: NDArray[np.uint16], times: int) -> int:
    """What symbols, tables and map of so many times a sample take under classes like those of :func:`fold`, about."""
    at = cells.astype(np.intp)
    weight, total = np.bincount(at), np.bincount(at, symbols >> 1)
    used = np.flatnonzero(weight)
    weight = weight[used]
    mean = total[used].astype(np.int64) * MEAN_UNIT // weight
    order = np.argsort(mean, kind="stable")
    before = np.cumsum(weight[order]) - weight[order]
    piece_of = np.zeros(int(used[-1]) + 1, np.intp)
    piece_of[used[order]] = before * FEW_PIECES // len(symbols) << 8
    groups = np.bincount(piece_of[at] + symbols, minlength=256 * FEW_PIECES).reshape(FEW_PIECES, 256)
    groups = groups[groups.any(axis=1)][:, groups.any(axis=0)]
    return int(costs(groups * times).sum()) // tables.COST_UNIT + MAP_BITS * len(used)
