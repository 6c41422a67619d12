"""What is coded of a change, and what a model may know of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from arzstream.codec.dtypes import DTYPES
from arzstream.kernels import delta
from tools.study import changes
from tools.study.checkpoints import Matrix, Run, load
from tools.study.sample import WINDOW, draw


def random_matrix(name: str, seed: int = 0) -> Matrix:
    """Arbitrary bits, four checkpoints of them."""
    dtype = DTYPES[name]
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 256, (4, 20 * 70 * dtype.itemsize), dtype=np.uint8)
    words[0, : len(words[0]) // 2] = words[1, : len(words[0]) // 2]
    values = tuple(torch.from_numpy(w.copy()).view(getattr(torch, dtype.torch)).reshape(20, 70) for w in words)
    return Matrix("random", dtype, 20, 70, values)


@pytest.mark.parametrize("name", ["BF16", "F16", "F32", "F8_E4M3"])
def test_tokens_away_from_zero_are_the_symbols_of_codec_8(name: str) -> None:
    m = random_matrix(name)
    assert m.dtype.float_bits
    kind = delta.Elements(m.dtype.itemsize, *m.dtype.float_bits)
    rule = delta.Rule(70, np.empty(0, np.uint8), np.empty(0, np.uint8), 0, 0)
    data, parent = (m.words(k).reshape(-1).view(np.uint8) for k in (0, 1))
    symbols = delta.delta_cells(data, [parent], kind, changes.TOP, rule)[0].reshape(20, 70)
    bits = 8 * m.dtype.itemsize
    difference = m.ordered(0) - m.ordered(1)
    near = np.abs(difference) < 1 << bits - 1  # the codec counts modulo 2^bits
    outwards = np.where(m.ordered(1) < 0, -1, 1).astype(np.int8)
    tokens = changes.tokens(difference, outwards)
    assert near.mean() > 0.5
    np.testing.assert_array_equal(tokens[near], symbols[near].astype(np.int64) - 1)


def test_raw_bits_tell_the_sizes_of_a_token_apart() -> None:
    sizes = np.arange(1, 4096)
    tokens = changes.tokens(sizes, np.ones(len(sizes), np.int8))
    found, counts = np.unique(tokens, return_counts=True)
    np.testing.assert_array_equal(counts[:-1], 1 << changes.raw_bits(found)[:-1])


def test_ordered_integers_have_the_order_of_the_numbers() -> None:
    values = torch.tensor([[-3e38, -2.0, -1e-40, 0.0, 1e-40, 1.0, 3e38]]).bfloat16()
    ordered = Matrix("x", DTYPES["BF16"], 1, 7, (values,)).ordered(0)
    assert (np.diff(ordered[0]) > 0).all()
    around_zero = torch.tensor([[-0.0, 0.0]]).bfloat16()
    assert Matrix("x", DTYPES["BF16"], 1, 2, (around_zero,)).ordered(0).tolist() == [[-1, 0]]


def test_inputs_know_nothing_of_their_own_row_or_what_is_below(checkpoints: list[Path]) -> None:
    names = changes.INPUTS + changes.CAUSAL + changes.MORE
    m = load(checkpoints).matrices[0]
    now = changes.scales(m, 0)
    other = m.values[0].clone()
    other[40:] = other[40:].flip(0, 1)
    changed = dataclasses.replace(m, values=(other, *m.values[1:]))
    before, after = (changes.inputs(x, now, names) for x in (m, changed))
    np.testing.assert_array_equal(before[:41], after[:41])
    below = before[41:] != after[41:]
    assert [name for name, used in zip(names, below.any(axis=(0, 1)), strict=True) if used] == list(changes.CAUSAL)


def test_rows_that_are_scored_are_not_learned_from() -> None:
    rows, cols = 100, 256
    # the exponent of the parent tells the row
    parent = torch.exp2(torch.arange(rows) - 50.0)[:, None].expand(rows, cols).bfloat16().contiguous()
    m = Matrix("x", DTYPES["BF16"], rows, cols, (parent * 1.25, parent))
    sample = draw(Run(("new", "parent"), (m,), ()), 20_000, 0)
    held, learned = set(np.unique(sample.scored(sample.exponents))), set(np.unique(sample.learned(sample.exponents)))
    assert held and learned and not held & learned
    assert sample.tokens.shape == (len(sample.held), WINDOW)


def test_files_folders_and_archives_are_read_and_what_is_left_out_is_named(checkpoints: list[Path]) -> None:
    run = load(checkpoints)
    assert [m.name for m in run.matrices] == ["layer.0", "layer.1", "norm"]
    assert all(len(m.values) == 4 for m in run.matrices)
    assert run.left_out == ("count: torch.int64",)
    assert run.titles[0] == checkpoints[-1].name
    assert load(checkpoints, "layer.1").weights == 96 * 128
