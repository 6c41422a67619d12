"""What a model's predictions cost: code lengths on held-out weights, tables, and a line of the report."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from arzstream.codec.tables import normalise_all
from arzstream.kernels import context
from tools.study.changes import TOP, raw_bits

__all__ = ["Result", "Tables", "count", "kl_clusters", "smoothed"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
PRIOR = 24.0
"""Weight, in occurrences, of the distribution that a sampled table falls back on."""


@dataclasses.dataclass(frozen=True)
class Result:
    """One line of the report. Bits are per weight: of tokens and raw bits; of scales; of tables and parameters."""

    title: str
    bits: float
    scales: float = 0.0
    model: float = 0.0
    training: float = 0.0
    """Seconds."""
    decoding: float | None = None
    """Nanoseconds for each weight, by the processor's time of one thread."""
    how: str = ""
    """What ``decoding`` was measured on."""

    @property
    def total(self) -> float:
        return self.bits + self.scales + self.model


def smoothed(counts: NDArray[np.number], prior: F64, strength: float = PRIOR) -> F64:
    """Distributions (tables, tokens) from counts, each with ``strength`` occurrences of ``prior`` added."""
    probabilities: F64 = (counts + strength * prior) / (counts.sum(axis=1, keepdims=True) + strength)
    return probabilities


def count(classes: I64, tokens: I64, n: int, alphabet: int) -> I64:
    """Occurrences, shape (n, alphabet)."""
    return np.bincount(classes * alphabet + tokens, minlength=n * alphabet).reshape(n, alphabet)


@dataclasses.dataclass(frozen=True)
class Tables:
    """A distribution of tokens for each class."""

    probabilities: F64
    bytes: int
    """What codec 8 would take to write them."""

    @classmethod
    def learned(cls, classes: I64, tokens: I64, n: int, alphabet: int, prior: F64 | None = None) -> Tables:
        """Counted, and smoothed towards ``prior``, one for all or for each; by default that of all tokens."""
        counts = count(classes, tokens, n, alphabet)
        everything = counts.sum(axis=0) + 0.5 / alphabet
        prior = everything / everything.sum() if prior is None else prior
        return cls(smoothed(counts, prior), table_bytes(counts))

    def bits(self, classes: I64, tokens: I64) -> float:
        """Bits per weight, raw ones included."""
        return float(np.mean(raw_bits(tokens) - np.log2(self.probabilities[classes, tokens])))


def table_bytes(counts: I64) -> int:
    """Bytes of the tables in codec 8's model stream."""
    symbols = np.zeros((len(counts), 256), np.int64)
    symbols[:, 1 : counts.shape[1] + 1] = counts
    used = symbols[symbols.any(axis=1)]
    if np.count_nonzero(used.any(axis=0)) < 2:
        return 4 * len(used)
    nothing = (np.empty(0, np.uint8), 0, 0)
    return sum(
        len(context.ctx_model_encode(nothing, nothing, normalise_all(used[k : k + 64]), TOP, 2, 1))
        for k in range(0, len(used), 64)
    )


def kl_clusters(p: F64, weights: F64, k: int, seed: int, rounds: int = 25) -> F64:
    """``k`` prototypes (k, tokens) of the distributions ``p`` (n, tokens): k-means under the Kullback–Leibler
    divergence, whose mean of a cluster is the mean distribution (Banerjee et al., JMLR 6, 2005)."""
    rng = np.random.default_rng(seed)
    k = min(k, len(p))
    logs = np.log2(p + 1e-12)
    entropy = -(p * logs).sum(axis=1)
    chosen = [int(np.argmax(weights))]
    far = -(p @ logs[chosen[0]]) - entropy
    for _ in range(k - 1):  # k-means++
        odds = np.maximum(far, 0) * weights
        chosen.append(int(rng.choice(len(p), p=odds / odds.sum())) if odds.sum() > 0 else int(rng.integers(len(p))))
        far = np.minimum(far, -(p @ logs[chosen[-1]]) - entropy)
    prototypes = p[chosen]
    for _ in range(rounds):
        lengths = -(p @ np.log2(prototypes + 1e-12).T)
        nearest = lengths.argmin(axis=1)
        sums = np.zeros_like(prototypes)
        np.add.at(sums, nearest, p * weights[:, None])
        mass = np.bincount(nearest, weights, k)
        empty = np.flatnonzero(mass == 0)
        if len(empty):
            worst = np.argsort(-(lengths.min(axis=1) - entropy) * weights)[: len(empty)]
            sums[empty], mass[empty] = p[worst], 1
        prototypes = sums / mass[:, None]
    return prototypes
