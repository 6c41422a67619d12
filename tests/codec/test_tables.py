"""Frequency tables: sums, prices and bytes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arzstream.codec import tables
from arzstream.errors import CorruptError

COUNTS = st.lists(st.integers(0, 1 << 28), min_size=2, max_size=256).filter(any)


@given(COUNTS)
def test_every_symbol_that_occurs_gets_a_frequency(counts: list[int]) -> None:
    freqs = tables.normalise(np.array(counts))
    assert freqs.sum() == 4096
    assert freqs.max() < 4096
    assert all(f > 0 for f, c in zip(freqs, counts, strict=True) if c)


@given(st.integers(1, 8), st.integers(0, 2**32), st.integers(0, 20))
def test_many_tables_are_normalised_as_each_alone(n: int, seed: int, magnitude: int) -> None:
    rng = np.random.default_rng(seed)
    counts = (2 ** (magnitude * rng.random((n, 256))) - 1).astype(np.uint32) * (
        rng.random((n, 256)) < rng.random((n, 1)) ** 4
    )
    counts = counts.astype(np.uint32)
    together = tables.normalise_all(counts)
    for row, freqs in zip(counts, together, strict=True):
        assert np.array_equal(freqs, tables.normalise(row) if row.any() else np.zeros(256))


@given(COUNTS)
def test_written_and_read(counts: list[int]) -> None:
    freqs = tables.normalise(np.array(counts))
    assert np.array_equal(tables.parse(tables.serialise(freqs), len(counts)), freqs)


def best_cost(counts: np.ndarray) -> float:
    """The cheapest frequencies there are: one slot after another to the symbol that gains most."""
    c = counts[counts > 0].astype(float)
    f = np.ones(len(c))
    for _ in range(4096 - len(c)):
        f[np.argmax(c * np.log2((f + 1) / f))] += 1
    return float((c * np.log2(4096 / f)).sum())


@pytest.mark.parametrize("seed", range(12))
def test_frequencies_are_nearly_the_best(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = np.zeros(256, np.int64)
    counts[: 20 * (seed + 1)] = 1 + (1e5 * np.exp(-rng.exponential(3, 20 * (seed + 1)))).astype(np.int64)
    freqs = tables.normalise(counts)
    assert tables.cost(counts, freqs) / tables.COST_UNIT <= 1.0003 * best_cost(counts)


def test_prices_are_logarithms() -> None:
    freqs = np.arange(1, 4096, dtype=np.uint16)
    for f in freqs[::13]:
        price = tables.cost(np.array([1]), np.array([f]))
        assert abs(price - tables.COST_UNIT * math.log2(4096 / f)) <= 0.51


def test_bytes_of_a_table_are_those_of_the_registry() -> None:
    freqs = np.zeros(300, np.uint16)
    freqs[[0, 2, 270]] = [127, 128, 3841]
    assert tables.serialise(freqs).hex() == "7f" + "0000" + "8080" + "00ff" + "000a" + "8f01"


@pytest.mark.parametrize(
    "data", ["8f", "00", "90", "ff01", "7f", "8fff02", "00ff00ff8fff01", "8800880000", "880088000100000001"]
)
def test_tables_that_are_refused(data: str) -> None:
    with pytest.raises(CorruptError):
        tables.parse(bytes.fromhex(data), 256)


def test_a_table_may_not_exceed_its_alphabet() -> None:
    data = tables.serialise(np.full(16, 256, np.uint16))
    assert len(tables.parse(data, 20)) == 20
    with pytest.raises(CorruptError):
        tables.parse(data, 15)
