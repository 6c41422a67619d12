"""That the models learn what is there, and that their cost is counted as it would be."""

from __future__ import annotations

import numpy as np
import torch

from tools.study.scores import Tables, kl_clusters
from tools.study.sequences import _OverRow
from tools.study.trees import Bins, Tree, grow


def test_tables_cost_the_entropy_and_their_bytes() -> None:
    tokens = np.repeat([0, 1, 2], [50_000, 25_000, 25_000])
    tables = Tables.learned(np.zeros(len(tokens), np.int64), tokens, 1, 3)
    assert abs(tables.bits(np.zeros(len(tokens), np.int64), tokens) - 1.5) < 1e-3
    assert 0 < tables.bytes < 20


def test_a_token_never_seen_has_a_finite_cost() -> None:
    tables = Tables.learned(np.array([0, 0, 1]), np.array([0, 1, 1]), 3, 5)
    assert np.isfinite(tables.bits(np.array([0, 1, 2]), np.array([4, 3, 2])))


def test_clusters_find_the_distributions_that_there_are() -> None:
    rng = np.random.default_rng(0)
    kinds = rng.dirichlet(np.ones(12), 5)
    p = kinds[rng.integers(0, 5, 400)]
    found = kl_clusters(p, np.ones(len(p)), 5, 0)
    assert sorted(map(tuple, found.round(9))) == sorted(map(tuple, kinds.round(9)))


def planted(n: int = 20_000) -> Bins:
    """Tokens that depend on whether input 1 is below 20, and then on input 0."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 64, (n, 3)).astype(np.uint8)
    kind = np.where(x[:, 1] < 20, 0, 1 + (x[:, 0] >= 33))
    tokens = rng.integers(0, 4, n) + 4 * kind
    return Bins(x, tokens, x, tokens)


def test_a_tree_finds_what_the_tokens_depend_on_and_then_stops() -> None:
    bins = planted()
    tree = grow(bins, 12, 64)
    assert [(tree.feature[node], tree.threshold[node]) for node in tree.order] == [(1, 20), (0, 33)]
    leaves = tree.leaves(bins.inputs, 2)
    assert len(np.unique(leaves)) == 3 and len(np.unique(tree.leaves(bins.inputs, 1))) == 2
    tables = Tables(tree.distributions(np.full(12, 1 / 12)), 0)
    np.testing.assert_allclose(tables.probabilities.sum(axis=1), 1)
    raw = 1 / 3  # token 11 stands for two sizes, tokens below for fewer raw bits
    assert tables.bits(leaves, bins.tokens) < 2.05 + raw


def test_a_tree_without_splits_is_one_leaf() -> None:
    tree = Tree([0], [0], [0], [], [np.array([3, 1])])
    np.testing.assert_array_equal(tree.leaves(np.zeros((5, 2), np.uint8), 0), np.zeros(5))


def test_the_transformer_sees_only_tokens_on_the_left() -> None:
    torch.manual_seed(0)
    net = _OverRow(3, 16, 2, 4, 10).eval()
    inputs, tokens = torch.randn(2, 64, 3), torch.randint(10, (2, 64))
    other = tokens.clone()
    other[:, 30:] = (other[:, 30:] + 1) % 10
    with torch.no_grad():
        before, after = net(inputs, tokens), net(inputs, other)
    torch.testing.assert_close(before[:, :31], after[:, :31], rtol=0, atol=1e-5)
    assert (before[:, 31:] - after[:, 31:]).abs().max() > 1e-3
