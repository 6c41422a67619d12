"""Our coder against constriction's: the same symbols under the same model must take the same space."""

from __future__ import annotations

import constriction
import numpy as np
import pytest

from arzstream.codec import tables
from arzstream.codec.base import ChunkContext
from arzstream.codec.delta_ctx import look, scales_of
from arzstream.codec.delta_model import parse_model
from arzstream.codec.delta_shared import learn_shared
from arzstream.codec.dtypes import DTYPES
from arzstream.kernels import api, context

LANE_BITS = 32 * 32
"""32 states of 32 bits, which another coder has one of."""


@pytest.mark.parametrize("spread", [0.7, 2.0, 12.0, 60.0])
@pytest.mark.parametrize("count", [1000, 200_000])
def test_coded_size_is_that_of_the_reference_coder(spread: float, count: int) -> None:
    rng = np.random.default_rng(count)
    symbols = np.clip(rng.normal(128, spread, count), 0, 255).astype(np.uint8)
    counts = np.bincount(symbols, minlength=256)
    freqs = tables.normalise(counts)
    streams, _ = api.rans_encode(symbols, 1 << 24, np.arange(256, dtype=np.uint8), freqs)

    used = np.flatnonzero(freqs)
    places = np.zeros(256, np.int32)
    places[used] = np.arange(len(used))
    model = constriction.stream.model.Categorical(freqs[used] / 4096, perfect=False)
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(places[symbols], model)

    ours, theirs = 8 * len(streams), coder.num_bits()
    assert theirs - 64 - 0.0005 * theirs <= ours <= theirs + LANE_BITS + 0.0005 * theirs
    expected = tables.cost(counts, freqs) / tables.COST_UNIT
    assert expected - 1 <= ours <= expected + LANE_BITS + 0.0005 * expected


def test_coded_size_of_changes_is_that_of_the_reference_coder_under_the_same_classes() -> None:
    """A model of codec 8: each class's symbols under its table, with constriction's models."""
    rng = np.random.default_rng(5)
    parent = (0x3C00 + rng.integers(0, 0x300, 300_000)).astype("<u2")
    move = np.round(rng.laplace(0, 1 + 4.0 * (parent >> 4 & 7))).astype(np.int64)
    data = memoryview((parent + move).astype("<u2").tobytes())
    ctx = ChunkContext(DTYPES["BF16"], 500, 600, (memoryview(parent.tobytes()),))
    stored = learn_shared([(data, ctx)], 1)
    assert stored is not None
    model = parse_model(stored)
    looked = look(data, ctx, scales_of(data, ctx), 1, model.top, model.origin)
    assert looked is not None
    _, symbols, cells = looked
    classes = model.class_of[cells]
    streams, _ = context.rans_ctx_encode(symbols, classes, 1 << 24, model.freqs)

    coder = constriction.stream.stack.AnsCoder()
    for k, freqs in enumerate(model.freqs):
        used = np.flatnonzero(freqs)
        places = np.zeros(256, np.int32)
        places[used] = np.arange(len(used))
        table = constriction.stream.model.Categorical(freqs[used] / 4096, perfect=False)
        coder.encode_reverse(places[symbols[classes == k]], table)
    assert len(model.freqs) > 4
    ours, theirs = 8 * len(streams), coder.num_bits()
    assert theirs - 64 - 0.0005 * theirs <= ours <= theirs + LANE_BITS + 0.0005 * theirs
