"""What codec 8 would take, without coding it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from arzstream.codec.base import ChunkContext
from arzstream.codec.delta_ctx import OWN_TOP_BITS, encode_delta, look, origin_of, scales_of
from arzstream.codec.delta_estimate import estimate_delta, fewest_bits
from arzstream.codec.delta_learning import Changes, learn
from arzstream.codec.dtypes import DTYPES
from arzstream.kernels import api

SHAPE = (600, 256)


def steps(count: int, seed: int) -> list[np.ndarray]:
    """A matrix and what it was before, the latest first; rows and columns change at speeds of their own."""
    rng = np.random.default_rng(seed)
    speeds = np.exp(rng.normal(0, 1, (SHAPE[0], 1)) + rng.normal(0, 0.5, SHAPE[1])) * 1e-4
    made = [rng.normal(0, 0.02, SHAPE)]
    for _ in range(count):
        made.append(made[-1] + speeds * rng.standard_normal(SHAPE))
    return [x.astype("<f4") for x in made[::-1]]


def context_of(references: list[np.ndarray]) -> ChunkContext:
    return ChunkContext(DTYPES["F32"], *SHAPE, tuple(memoryview(r.tobytes()) for r in references))


def near(bits: int | None, payload: bytes | None, within: float) -> bool:
    assert bits is not None and payload is not None
    return abs(bits / 8 / len(payload) - 1) < within


@pytest.mark.parametrize("references", [1, 2])
def test_an_estimate_is_near_what_coding_takes(references: int) -> None:
    """With a model that is learned, with one that is given, and with one that lacks symbols of a few, or of many."""
    data, *known = steps(references, 1)
    plain, ctx = memoryview(data.tobytes()), context_of(known)
    assert near(estimate_delta(plain, ctx), encode_delta(plain, ctx), 0.01)
    scales = scales_of(plain, ctx)
    origin = origin_of(ctx, scales)
    looked = look(plain, ctx, scales, references, OWN_TOP_BITS, origin)
    assert looked is not None
    _, symbols, cells = looked
    model = learn(Changes.of(references, [(cells, symbols)]), OWN_TOP_BITS, origin)
    given = dataclasses.replace(ctx, models=(model.stored,))
    payload = encode_delta(plain, given)
    assert payload is not None and payload[1] == 1
    assert near(estimate_delta(plain, given), payload, 0.01)
    for share, number in ((0.00003, 1), (0.01, 0)):
        odd = data.copy()
        odd[np.random.default_rng(0).random(SHAPE) < share] *= -1000
        plain = memoryview(odd.tobytes())
        payload = encode_delta(plain, given)
        assert payload is not None and payload[1] == number
        assert near(estimate_delta(plain, given), payload, 0.02)


def test_the_fewest_bits_are_fewer_by_a_few_an_element() -> None:
    """What changed everywhere takes them at least, and what did not change takes none."""
    data, *known = steps(1, 2)
    plain, parent = memoryview(data.tobytes()), memoryview(known[0].tobytes())
    payload = encode_delta(plain, context_of(known))
    assert payload is not None
    assert 2 * data.size < 8 * len(payload) - fewest_bits(plain, parent) < 4 * data.size
    assert fewest_bits(plain, plain) == 0


def test_an_estimate_is_the_same_on_every_path() -> None:
    data, *known = steps(2, 3)
    found = []
    for path in [*api.cpu_features(), "numpy"]:
        api.set_backend(path)
        found.append(estimate_delta(memoryview(data.tobytes()), context_of(known)))
    assert len(set(found)) == 1


def test_where_the_codec_does_not_apply_there_is_no_estimate() -> None:
    data, parent = steps(1, 4)
    assert estimate_delta(memoryview(data.tobytes()), context_of([])) is None
    wide = ChunkContext(DTYPES["F64"], 300, 256, (memoryview(parent.tobytes()),))
    assert estimate_delta(memoryview(data.tobytes()), wide) is None
