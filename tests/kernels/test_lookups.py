"""Two ways to fetch table entries, of which the faster one is chosen at start: the same symbols either way."""

from __future__ import annotations

import numpy as np
import pytest

from arzstream.codec import tables
from arzstream.kernels import api, context

CHOICES = [isa for isa in api.cpu_features() if isa in api.WITH_GATHERS]


@pytest.mark.parametrize("isa", CHOICES or [pytest.param("", marks=pytest.mark.skip("impossible here: no gathers"))])
@pytest.mark.parametrize("how", ["gather", "loads"])
@pytest.mark.parametrize("count", [1, 31, 32, 33, 1000, 4096, 10007])
def test_both_ways_decode_the_same(isa: str, how: str, count: int) -> None:
    rng = np.random.default_rng(count)
    symbols = rng.geometric(0.3, count).clip(0, 200).astype(np.uint8)
    classes = rng.integers(0, 64, count).astype(np.uint8)
    counts = np.ones((64, 256), np.int64)
    np.add.at(counts, (classes, symbols), 1)
    freqs = np.stack([tables.normalise(of_class) for of_class in counts])
    api.set_backend("numpy")
    streams, lengths = context.rans_ctx_encode(symbols, classes, 1 << 10, freqs)
    values, one = np.arange(256, dtype=np.uint8), tables.normalise(counts.sum(axis=0))
    plain, plain_lengths = api.rans_encode(symbols, 1 << 10, values, one)

    api.set_backend(isa)
    api.set_lookups(how)
    out = np.empty_like(symbols)
    context.rans_ctx_decode(streams, lengths, 1 << 10, classes, freqs, out)
    assert np.array_equal(out, symbols)
    out[...] = 0
    api.rans_decode(plain, plain_lengths, 1 << 10, values, one, out)
    assert np.array_equal(out, symbols)


@pytest.mark.parametrize("isa", api.cpu_features())
def test_a_way_is_chosen_where_there_is_a_choice(isa: str) -> None:
    api.set_backend(isa)
    assert api.lookups() in (("gather", "loads") if isa in api.WITH_GATHERS else ("",))
    api.set_backend("numpy")
    assert api.lookups() == ""
