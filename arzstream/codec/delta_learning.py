"""Learning a model of codec 8 from changes that it is to code: a tree grown by what its splits save, its leaves
gathered into classes.

The tree is grown level by level from counts of symbols in cells, each leaf being split where that saves most bits.
There may be two hundred leaves then, and 64 tables: leaves with like distributions share one. They are merged by what
that costs, tables included, and then moved to the class whose table codes them best, for a few rounds (k-means by
Kullback-Leibler divergence, as for word classes: Dhillon, Mallela and Kumar, 2003). What is counted is all there is to
learn from, so it takes no training by gradient, no seed, and next to no time.

All in integers, so that every machine learns the same model from the same changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from arzstream.codec import tables
from arzstream.codec.delta_model import INPUTS, MAX_CLASSES, Leaf, Model, Node, Split, shape_of
from arzstream.codec.merging import ideal, merge
from arzstream.kernels.api import SLOTS

__all__ = ["MAX_LEAVES", "Changes", "even_if_cheap", "learn"]

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
I64 = NDArray[np.int64]

SYMBOLS = 256
MAX_LEAVES, LEAVES_AT_ONCE = 192, 128
SPLIT_BITS = 24
"""What a split takes in the tree; it must save that, and a bit for each symbol in the leaf, which chance alone would
seem to save."""
ROUNDS = 6
EVEN_SHIFT = 9
"""Tables are all even if that takes at most 1 / 2^EVEN_SHIFT of their symbols' bits."""
UNSEEN_BITS = 48
"""What a symbol takes that has no frequency: it becomes an exception."""


@dataclasses.dataclass
class Changes:
    """How often each symbol occurs in each cell, of cells that occur: ``cells`` (n,), ``counts`` (n, SYMBOLS)."""

    references: int
    cells: I64
    counts: I64

    @classmethod
    def of(cls, references: int, parts: Sequence[tuple[U16, U8]]) -> Changes:
        """From (cells, symbols) of elements with so many references."""
        cells, symbols = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
        used = np.flatnonzero(np.bincount(cells))
        place = np.zeros(int(used[-1]) + 1, np.int64)
        place[used] = np.arange(len(used)) * SYMBOLS
        counts = np.bincount(place[cells] + symbols, minlength=SYMBOLS * len(used))
        return cls(references, used, counts.reshape(-1, SYMBOLS))


# ---- growing


class _Growing:
    """A tree as lists: of each node its split, if it has one, and the numbers of its children."""

    def __init__(self, changes: Changes) -> None:
        shape = shape_of(changes.references)
        self.inputs = [x.astype(np.int64) for x in reversed(np.unravel_index(changes.cells, shape))]
        self.counts = changes.counts
        self.node = np.zeros(len(changes.cells), np.int64)
        self.splits: list[tuple[int, int] | None] = [None]
        self.children: list[tuple[int, int]] = [(0, 0)]
        self.leaves = 1

    def grow(self, most: int) -> None:
        fresh = np.array([0])
        while len(fresh) and self.leaves < most:
            found = [self._best(fresh[k : k + LEAVES_AT_ONCE]) for k in range(0, len(fresh), LEAVES_AT_ONCE)]
            gain, feature, threshold = (np.concatenate(parts) for parts in zip(*found, strict=True))
            order = np.argsort(-gain, kind="stable")[: most - self.leaves]
            chosen = order[gain[order] > 0]
            fresh = self._split(fresh[chosen], feature[chosen], threshold[chosen])

    def _best(self, nodes: I64) -> tuple[I64, I64, I64]:
        """The split of each of ``nodes`` that saves most: (bits · COST_UNIT more than it must, input, threshold)."""
        slot = np.full(len(self.splits), -1)
        slot[nodes] = np.arange(len(nodes))
        inside = np.flatnonzero(slot[self.node] >= 0)
        counts, of = self.counts[inside], slot[self.node[inside]]
        whole = _sums(counts, of, len(nodes))
        before = ideal(whole)
        best, feature, threshold = (np.zeros(len(nodes), np.int64) for _ in range(3))
        for f, values in enumerate(self.inputs):
            bins = 1 << INPUTS[f]
            at = _sums(counts, of * bins + values[inside], len(nodes) * bins).reshape(len(nodes), bins, -1)
            below = at.cumsum(axis=1)[:, :-1]
            gain = before[:, None] - ideal(below) - ideal(whole[:, None] - below)
            where = gain.argmax(axis=1)
            most = gain[np.arange(len(nodes)), where]
            better = most > best
            best[better], feature[better], threshold[better] = most[better], f, where[better]
        due = (SPLIT_BITS + np.count_nonzero(whole, axis=1)) * tables.COST_UNIT
        return best - due, feature, threshold

    def _split(self, nodes: I64, feature: I64, threshold: I64) -> I64:
        """Split ``nodes``; the numbers of their children."""
        first = len(self.splits)
        goes, limit, child = (np.full(first, -1) for _ in range(3))
        goes[nodes], limit[nodes], child[nodes] = feature, threshold, first + 2 * np.arange(len(nodes))
        for k, node in enumerate(nodes.tolist()):
            self.splits[node] = (int(feature[k]), int(threshold[k]))
            self.children[node] = (first + 2 * k, first + 2 * k + 1)
            self.splits += [None, None]
            self.children += [(0, 0), (0, 0)]
        before = self.node.copy()
        for f, values in enumerate(self.inputs):
            inside = np.flatnonzero(goes[before] == f)
            old = before[inside]
            self.node[inside] = child[old] + (values[inside] > limit[old])
        self.leaves += len(nodes)
        return np.arange(first, first + 2 * len(nodes))

    def tree(self, labels: I64) -> Node:
        """The tree, its leaves labelled; children before parents, since these have lower numbers."""
        built: list[Node] = [Leaf(0)] * len(self.splits)
        for node in range(len(self.splits) - 1, -1, -1):
            split = self.splits[node]
            if split is None:
                built[node] = Leaf(int(labels[node]))
                continue
            below, above = (built[child] for child in self.children[node])
            same = isinstance(below, Leaf) and below == above
            built[node] = below if same else Split(*split, below, above)
        return built[0]


def _sums(counts: I64, keys: I64, n: int) -> I64:
    """Sums of the rows of ``counts`` with each key below ``n``."""
    order = np.argsort(keys, kind="stable")
    sums = np.zeros((n, counts.shape[1]), np.int64)
    if len(order):
        found = keys[order]
        starts = np.flatnonzero(np.diff(found, prepend=-1))
        sums[found[starts]] = np.add.reduceat(counts[order], starts, axis=0)
    return sums


# ---- classes


def _gather(leaves: I64, most: int) -> I64:
    """The class of each leaf, classes numbered from 0 on without gaps."""
    weight = np.maximum(leaves.sum(axis=1), 1)
    mean = (leaves @ (np.arange(leaves.shape[1]) >> 1) << 16) // weight
    order = np.argsort(mean, kind="stable")
    starts = merge(leaves[order], most)[2]
    labels = np.empty(len(leaves), np.int64)
    labels[order] = np.searchsorted(starts, np.arange(len(leaves)), side="right") - 1
    for _ in range(ROUNDS):
        freqs = frequencies(_sums(leaves, labels, int(labels.max()) + 1))
        price = np.where(freqs > 0, tables.prices(freqs), UNSEEN_BITS * tables.COST_UNIT)
        moved = (leaves @ price.T).argmin(axis=1)
        if (moved == labels).all():
            break
        labels = np.unique(moved, return_inverse=True)[1].astype(np.int64)
    return labels


def even_if_cheap(counts: I64) -> U16:
    """:func:`frequencies`, all even where that takes hardly more bits: they decode faster (``kernels.delta``)."""
    finest, even = frequencies(counts), 2 * frequencies(counts, SLOTS // 2)
    spent, most = (sum(tables.cost(*pair) for pair in zip(counts, freqs, strict=True)) for freqs in (even, finest))
    return even if spent <= most + (most >> EVEN_SHIFT) else finest


def frequencies(counts: I64, slots: int = SLOTS) -> U16:
    """Tables for ``counts``, shape (classes, symbols); none for symbol 0, which does not exist."""
    freqs = tables.normalise_all(counts, slots)
    for row in np.flatnonzero(freqs[:, 0]).tolist():
        freqs[row, 2 if freqs[row, 1] else 1] = freqs[row, 0]
        freqs[row, 0] = 0
    return freqs


def learn(changes: Changes, top: int, origin: int, classes: int = MAX_CLASSES, leaves: int = MAX_LEAVES) -> Model:
    """The model that codes ``changes`` in the fewest bits, closely, its own included."""
    window = np.flatnonzero(changes.counts.any(axis=0))
    first, end = int(window[0]), int(window[-1]) + 1
    growing = _Growing(dataclasses.replace(changes, counts=np.ascontiguousarray(changes.counts[:, first:end])))
    growing.grow(leaves)
    of_nodes, node = np.unique(growing.node, return_inverse=True)
    of_leaves = np.zeros((len(of_nodes), SYMBOLS), np.int64)
    of_leaves[:, first:end] = _sums(growing.counts, node, len(of_nodes))
    labels = _gather(of_leaves, classes)
    by_node = np.zeros(len(growing.splits), np.int64)
    by_node[of_nodes] = labels
    freqs = even_if_cheap(_sums(of_leaves, labels, int(labels.max()) + 1))
    return Model.of(changes.references, top, origin, growing.tree(by_node), freqs)
