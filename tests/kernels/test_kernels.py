"""Every path of the kernels writes the same bytes as the NumPy reference, and undoes what it did."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arzstream.codec import tables
from arzstream.errors import CorruptError
from arzstream.kernels import api

PATHS = [*api.cpu_features(), "numpy"]
SIZES = [0, 1, 2, 7, 8, 9, 31, 32, 33, 64, 65, 257, 1021, 1023, 1024, 1025, 2048, 2049, 4099, 12289]
BYTES = np.arange(256, dtype=np.uint8)


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8)


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("count", [0, 1, 31, 33, 1000])
def test_planes(stride: int, count: int) -> None:
    data = noise(stride * count)
    for path in PATHS:
        api.set_backend(path)
        planes = api.split_planes(memoryview(data), stride)
        assert np.array_equal(planes, np.concatenate([data[j::stride] for j in range(stride)])), path
        out = bytearray(len(data))
        api.merge_planes(planes, stride, memoryview(out))
        assert out == data.tobytes(), path


def coded(
    symbols: np.ndarray, per_segment: int, values: np.ndarray, freqs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Streams and their lengths, the same on every path, and decoded on every path."""
    seen = {}
    for path in PATHS:
        api.set_backend(path)
        streams, lengths = api.rans_encode(symbols, per_segment, values, freqs)
        seen[(streams.tobytes(), lengths.tobytes())] = (streams, lengths)
    assert len(seen) == 1
    ((streams, lengths),) = seen.values()
    for path in PATHS:
        api.set_backend(path)
        out = np.empty_like(symbols)
        api.rans_decode(streams, lengths, per_segment, values, freqs, out)
        assert np.array_equal(out, symbols), path
    return streams, lengths


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("skew", [0.01, 0.3, 0.9])
def test_coder_of_any_size(count: int, skew: float) -> None:
    symbols = np.minimum(np.random.default_rng(count).geometric(skew, count), 255).astype(np.uint8)
    symbols[:2] = [1, 3][: len(symbols[:2])]
    counts = np.bincount(symbols, minlength=256)
    counts[:4] += 1
    coded(symbols, 1024, BYTES, tables.normalise(counts))


@given(
    weights=st.lists(st.integers(0, 1 << 20), min_size=2, max_size=256).filter(lambda w: sum(map(bool, w)) > 1),
    count=st.integers(0, 5000),
    segment=st.integers(64, 3000),
    seed=st.integers(0, 1 << 32),
)
def test_coder_of_any_distribution(weights: list[int], count: int, segment: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w = np.array(weights)
    values = rng.permutation(256)[: len(w)].astype(np.uint8)
    symbols = values[rng.choice(len(w), count, p=w / w.sum())]
    coded(symbols, segment, values, tables.normalise(w))


@pytest.mark.parametrize("path", api.cpu_features())
def test_division_by_every_frequency(path: str) -> None:
    """The native encoders multiply instead of dividing; a wrong quotient would not decode."""
    api.set_backend(path)
    symbols = (np.random.default_rng(0).random(20_000) < 0.02).astype(np.uint8)
    out = np.empty_like(symbols)
    for f in range(1, 4096):
        freqs = np.array([f, 4096 - f], np.uint16)
        streams, lengths = api.rans_encode(symbols, 1 << 20, BYTES[:2], freqs)
        api.rans_decode(streams, lengths, 1 << 20, BYTES[:2], freqs, out)
        assert np.array_equal(out, symbols), f


@pytest.mark.parametrize("path", PATHS)
def test_a_symbol_without_frequency_cannot_be_coded(path: str) -> None:
    api.set_backend(path)
    freqs = np.array([2048, 2048, 0], np.uint16)
    with pytest.raises(ValueError):
        api.rans_encode(np.array([0, 1, 2], np.uint8), 64, BYTES[:3], freqs)
    with pytest.raises(ValueError):
        api.rans_encode(np.array([0, 1], np.uint8), 64, BYTES[:2], np.array([2048, 2047], np.uint16))


@pytest.mark.parametrize("path", PATHS)
def test_streams_that_end_wrongly(path: str) -> None:
    """Words missing, words left, states out of range or not the final ones."""
    api.set_backend(path)
    symbols = np.random.default_rng(0).integers(0, 4, 1000).astype(np.uint8)
    freqs = np.full(4, 1024, np.uint16)
    streams, _ = api.rans_encode(symbols, 1 << 20, BYTES[:4], freqs)

    def decode(stream: np.ndarray) -> None:
        lengths = np.array([len(stream)], np.uint32)
        api.rans_decode(stream, lengths, 1 << 20, BYTES[:4], freqs, np.empty_like(symbols))

    decode(streams)
    bad = [streams[:-2], streams[:-1], streams[:100], streams[:0], np.append(streams, np.zeros(2, np.uint8))]
    low = streams.copy()
    low[2:4] = 0
    for stream in [*bad, low]:
        with pytest.raises(CorruptError):
            decode(np.ascontiguousarray(stream))
    # Far more symbols than words: no path may read on and on.
    many, lengths = np.empty(1 << 22, np.uint8), np.array([128], np.uint32)
    with pytest.raises(CorruptError):
        api.rans_decode(streams[:128], lengths, 1 << 24, BYTES[:4], freqs, many)


@pytest.mark.parametrize("path", PATHS)
def test_a_state_out_of_range_is_refused_even_where_it_would_end_well(path: str) -> None:
    """Symbol 1 from state 2049 leaves 1, which with the word 0 becomes the final state: a second way to write it."""
    api.set_backend(path)
    freqs, lengths = np.full(2, 2048, np.uint16), np.array([130], np.uint32)
    states = np.full(32, 65536, "<u4")
    states[0] = 2049
    stream = np.append(states.view(np.uint8), np.zeros(2, np.uint8))
    with pytest.raises(CorruptError):
        api.rans_decode(stream, lengths, 64, BYTES[:2], freqs, np.empty(1, np.uint8))


@pytest.mark.parametrize("path", PATHS)
def test_damaged_words_never_do_more_than_fail(path: str) -> None:
    """With a skewed table a flipped bit nearly always shows in the final states; where it does not, symbols differ."""
    api.set_backend(path)
    symbols = np.minimum(np.random.default_rng(0).geometric(0.4, 3000), 15).astype(np.uint8)
    freqs = tables.normalise(np.bincount(symbols, minlength=16))
    streams, lengths = api.rans_encode(symbols, 1 << 20, BYTES[:16], freqs)
    noticed = 0
    for k in range(300):
        flipped = streams.copy()
        flipped[k * 7 % len(flipped)] ^= 1 << k % 8
        out = np.empty_like(symbols)
        try:
            api.rans_decode(flipped, lengths, 1 << 20, BYTES[:16], freqs, out)
            assert not np.array_equal(out, symbols)
        except CorruptError:
            noticed += 1
    assert noticed > 290
