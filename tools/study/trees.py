"""Decision trees over quantised inputs whose leaves are tables: grown to shorten the code, and then merged.

A comparison of integers is exact on every machine. A tree of any shape follows Breiman et al., *Classification and
Regression Trees* (1984), with the split that saves the most bits next; in an oblivious one (Kohavi 1994) all nodes of a
level ask the same question, so that the answers are the bits of an index.
"""

from __future__ import annotations

import dataclasses
import heapq
import time

import numpy as np
from numpy.typing import NDArray

from tools.study.checkpoints import Run
from tools.study.neural import measure
from tools.study.sample import Sample
from tools.study.scores import PRIOR, Result, Tables, count, kl_clusters

__all__ = ["Bins", "Tree", "grown", "oblivious"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
BINS = 64
"""Values of a quantised input."""
LEAST = 100
"""Sampled weights in a leaf, at least."""
LOOKS = 100_000
"""Sampled weights by which the questions of an oblivious tree are chosen, at most."""


@dataclasses.dataclass(frozen=True)
class Bins:
    """Inputs cut into up to BINS bytes at the sample's quantiles; tokens; of both, what is scored."""

    inputs: U8
    tokens: I64
    held_inputs: U8
    held_tokens: I64

    @classmethod
    def of(cls, sample: Sample, names: tuple[str, ...]) -> Bins:
        columns = sample.columns(names)
        learned, held = (side(sample.inputs)[:, columns] for side in (sample.learned, sample.scored))
        binned: list[list[I64]] = [[], []]
        for x, y in zip(learned.T, held.T, strict=True):
            edges = np.unique(np.quantile(x, np.arange(1, BINS) / BINS))
            for side, values in zip(binned, (x, y), strict=True):
                side.append(np.searchsorted(edges, values, side="right"))
        inputs, held_inputs = (np.stack(side, axis=1).astype(np.uint8) for side in binned)
        return cls(inputs, sample.learned(sample.tokens), held_inputs, sample.scored(sample.tokens))


class _Entropy:
    """n log2 n of counts, by a table."""

    def __init__(self, most: int) -> None:
        n = np.arange(most + 1, dtype=np.float64)
        self.table = (n * np.log2(np.maximum(n, 1))).astype(np.float32)

    def bits(self, counts: I64) -> F64:
        """Of the last dimension's tokens."""
        entropy: F64 = self.table[counts.sum(axis=-1)] - self.table[counts].sum(axis=-1, dtype=np.float64)
        return entropy


@dataclasses.dataclass
class Tree:
    """Nodes in the order of their making: node i's ``left`` child (then the right one) holds what is below
    ``threshold`` in input ``feature``. The first n splits are the tree of n + 1 leaves."""

    feature: list[int]
    threshold: list[int]
    left: list[int]
    """0 where the node was never split."""
    order: list[int]
    """Nodes in the order in which they were split."""
    counts: list[I64]

    def leaves(self, inputs: U8, splits: int) -> I64:
        """The node where each weight ends after ``splits`` of the splits."""
        children = np.zeros(len(self.left), np.int64)
        for node in self.order[:splits]:
            children[node] = self.left[node]
        feature, threshold = np.array(self.feature), np.array(self.threshold)
        node, at = np.zeros(len(inputs), np.int64), np.arange(len(inputs))
        while len(at):
            here = node[at]
            inner = children[here] > 0
            at, here = at[inner], here[inner]
            node[at] = children[here] + (inputs[at, feature[here]] >= threshold[here])
        return node

    def distributions(self, prior: F64) -> F64:
        """Of every node, smoothed towards its parent's: shape (nodes, tokens)."""
        p = np.empty((len(self.counts), len(prior)))
        p[0] = (self.counts[0] + PRIOR * prior) / (self.counts[0].sum() + PRIOR)
        for node in self.order:
            for child in (self.left[node], self.left[node] + 1):
                counts = self.counts[child]
                p[child] = (counts + PRIOR * p[node]) / (counts.sum() + PRIOR)
        return p


def _best_split(inputs: U8, tokens: I64, alphabet: int, entropy: _Entropy) -> tuple[float, int, int]:
    """(bits saved, input, threshold) of the best split of some weights."""
    present, tokens = np.unique(tokens, return_inverse=True)
    n = len(present)
    whole = entropy.bits(np.bincount(tokens, minlength=n))
    best = (0.0, 0, 0)
    for j in range(inputs.shape[1]):
        below = count(inputs[:, j].astype(np.int64), tokens, BINS, n).cumsum(axis=0)
        sizes = below.sum(axis=1)
        some = np.flatnonzero((sizes[:-1] >= LEAST) & (sizes[-1] - sizes[:-1] >= LEAST) & (np.diff(sizes) > 0))
        if len(some):
            saved = whole - entropy.bits(below[some]) - entropy.bits(below[-1] - below[some])
            i = int(saved.argmax())
            best = max(best, (float(saved[i]), j, int(some[i]) + 1))
    return best


def grow(bins: Bins, alphabet: int, leaves: int) -> Tree:
    """Split what saves the most bits, until there are ``leaves`` of them or no split saves more than chance does."""
    # A split of noise saves about 0.7 bits for each token there is (half of chi squared), the best of many some more.
    by_chance = 2 * np.log2(bins.inputs.shape[1] * BINS)
    entropy = _Entropy(len(bins.tokens))
    tree = Tree([0], [0], [0], [], [np.bincount(bins.tokens, minlength=alphabet)])
    members = {0: np.arange(len(bins.tokens))}
    heap: list[tuple[float, int, int, int]] = []

    def look(node: int) -> None:
        at = members[node]
        saved, feature, threshold = _best_split(bins.inputs[at], bins.tokens[at], alphabet, entropy)
        if saved > by_chance + np.count_nonzero(tree.counts[node]):
            heapq.heappush(heap, (-saved, node, feature, threshold))

    look(0)
    while heap and len(tree.order) < leaves - 1:
        _, node, feature, threshold = heapq.heappop(heap)
        at = members.pop(node)
        right = bins.inputs[at, feature] >= threshold
        tree.feature[node], tree.threshold[node], tree.left[node] = feature, threshold, len(tree.left)
        tree.order.append(node)
        for side in (at[~right], at[right]):
            child = len(tree.left)
            for part in (tree.feature, tree.threshold, tree.left):
                part.append(0)
            tree.counts.append(np.bincount(bins.tokens[side], minlength=alphabet))
            members[child] = side
            look(child)
    return tree


def _prior(tokens: I64, alphabet: int) -> F64:
    counts = np.bincount(tokens, minlength=alphabet) + 0.5 / alphabet
    prior: F64 = counts / counts.sum()
    return prior


def merged(p: F64, sizes: I64, k: int, seed: int) -> I64:
    """The class of ``k`` for each distribution, by Kullback–Leibler k-means."""
    centres = kl_clusters(p, np.maximum(sizes, 1e-3).astype(np.float64), k, seed)
    classes: I64 = (-(p @ np.log2(centres + 1e-12).T)).argmin(axis=1)
    return classes


def grown(
    run: Run, sample: Sample, names: tuple[str, ...], leaves: tuple[int, ...], classes: tuple[int, ...], seed: int
) -> list[Result]:
    """Trees with a table per leaf, and the largest with its leaves merged into a few classes."""
    bins, results = Bins.of(sample, names), []
    began = time.process_time()
    tree = grow(bins, sample.alphabet, max(leaves))
    p = tree.distributions(_prior(bins.tokens, sample.alphabet))
    seconds = time.process_time() - began

    def add(title: str, splits: int, of_node: I64 | None, tables: Tables) -> None:
        found = tree.leaves(bins.held_inputs, splits)
        bits = tables.bits(found if of_node is None else of_node[found], bins.held_tokens)
        cost = measure(lambda: tree.leaves(bins.held_inputs, splits), len(found))
        model = 8 * (tables.bytes + 2 * splits + (0 if of_node is None else splits + 1)) / run.weights
        results.append(Result(title, bits, sample.scale_bits, model, seconds, cost, "NumPy, class only"))

    ends = tree.leaves(bins.inputs, len(tree.order))
    for n in sorted({min(n, len(tree.order) + 1) for n in leaves}):
        at = tree.leaves(bins.inputs, n - 1)
        used = np.unique(at)
        size = Tables.learned(np.searchsorted(used, at), bins.tokens, len(used), sample.alphabet).bytes
        add(f"decision tree, {n} leaves", n - 1, None, Tables(p, size))
    sizes = np.bincount(ends, minlength=len(p))
    for k in classes:
        of_node = np.zeros(len(p), np.int64)
        final = np.flatnonzero(sizes)
        of_node[final] = merged(p[final], sizes[final], k, seed)
        tables = Tables.learned(of_node[ends], bins.tokens, k, sample.alphabet)
        add(f"the {len(tree.order) + 1} leaves in {k} classes", len(tree.order), of_node, tables)
    return results


# ---- oblivious trees


def _questions(bins: Bins, depth: int) -> list[tuple[int, int]]:
    """(input, threshold) of each level: what saves the most bits in all cells together."""
    step = max(1, len(bins.tokens) // LOOKS)
    inputs, tokens = bins.inputs[::step] >> 1, bins.tokens[::step]
    table, half = _Entropy(len(tokens)).table, BINS // 2
    cells, found = np.zeros(len(tokens), np.int64), []

    def spent(pairs: I64, values: U8) -> F64:
        """Sum of n log2 n over pairs on both sides, for each threshold."""
        n = int(pairs.max()) + 1
        below = np.bincount(pairs * half + values, minlength=n * half).reshape(n, half).cumsum(axis=1)
        sums: F64 = (table[below] + table[below[:, -1:] - below]).sum(axis=0, dtype=np.float64)
        return sums

    for _ in range(depth):
        cells = np.unique(cells, return_inverse=True)[1]
        pairs = np.unique(cells * (int(tokens.max()) + 1) + tokens, return_inverse=True)[1]
        bits = np.stack([spent(cells, x) - spent(pairs, x) for x in inputs.T])
        feature, threshold = np.unravel_index(int(bits[:, :-1].argmin()), (len(bits), half - 1))
        found.append((int(feature), 2 * int(threshold) + 2))
        cells = 2 * cells + (inputs[:, feature] > threshold)
    return found


def oblivious(
    run: Run, sample: Sample, names: tuple[str, ...], depths: tuple[int, ...], k: int, seed: int
) -> list[Result]:
    """Oblivious trees whose cells are merged into ``k`` classes."""
    bins, results = Bins.of(sample, names), []
    began = time.process_time()
    questions = _questions(bins, max(depths))
    choosing = time.process_time() - began

    def cells(inputs: U8, depth: int) -> I64:
        index = np.zeros(len(inputs), np.int64)
        for feature, threshold in questions[:depth]:
            index = 2 * index + (inputs[:, feature] >= threshold)
        return index

    prior = _prior(bins.tokens, sample.alphabet)
    p = prior[None]
    for depth in range(1, max(depths) + 1):
        began = time.process_time()
        at = cells(bins.inputs, depth)
        counts = count(at, bins.tokens, 1 << depth, sample.alphabet)
        p = p.repeat(2, axis=0)
        p = (counts + PRIOR * p) / (counts.sum(axis=1, keepdims=True) + PRIOR)
        if depth not in depths:
            continue
        sizes = counts.sum(axis=1)
        classes = np.zeros(len(p), np.int64)
        used = np.flatnonzero(sizes)
        classes[used] = merged(p[used], sizes[used], k, seed)
        tables = Tables.learned(classes[at], bins.tokens, k, sample.alphabet)
        seconds = choosing + time.process_time() - began
        bits = tables.bits(classes[cells(bins.held_inputs, depth)], bins.held_tokens)
        cost = measure(lambda d=depth, c=classes: c[cells(bins.held_inputs, d)], len(bins.held_tokens))
        model = 8 * (tables.bytes + 2 * depth + (1 << depth)) / run.weights
        title = f"oblivious tree, depth {depth}, {k} classes"
        results.append(Result(title, bits, sample.scale_bits, model, seconds, cost, "NumPy, class only"))
    return results
