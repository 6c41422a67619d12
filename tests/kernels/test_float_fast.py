"""The kernels of codec float_fast: the same bytes on every path, and no byte read or written that is not theirs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arzstream.errors import CorruptError
from arzstream.kernels import api

PATHS = [*api.cpu_features(), "numpy"]
FORMATS = [(8, 7), (5, 10), (8, 23), (4, 3), (5, 2)]
SIZES = [1, 2, 7, 8, 9, 31, 32, 33, 64, 65, 127, 128, 129, 1023, 1024, 1025, 2048, 4099]
BLOCKS = [4095, 4096, 4097, 8200]
SEGMENT = 10


def elements(exponents: np.ndarray, bits: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Elements with these exponents and any signs and mantissas."""
    rest = np.random.default_rng(seed).integers(0, 1 << 32, len(exponents), dtype=np.uint64)
    rest &= ~np.uint64(((1 << bits[0]) - 1) << bits[1])
    return (rest | exponents.astype(np.uint64) << np.uint64(bits[1])).astype(f"<u{api.itemsize_of(bits)}")


def palettes(firsts: list[int] | np.ndarray, seconds: list[int] | np.ndarray, freqs: list[int]) -> api.Palettes:
    return np.array(firsts, np.uint8), np.array(seconds, np.uint8), np.array(freqs, np.uint8)


def even(n: int) -> list[int]:
    """``n`` frequencies that are nearly alike."""
    return [128 // n + (k < 128 % n) for k in range(n)]


def coded(
    values: np.ndarray, bits: tuple[int, int], lanes: int, of: api.Palettes, log_segment: int = SEGMENT
) -> tuple[np.ndarray, np.ndarray]:
    """(table, streams), the same on every path, after a round trip on every path."""
    data, seen = values.view(np.uint8), {}
    for path in PATHS:
        api.set_backend(path)
        found = api.float_fast_encode(data, bits, log_segment, lanes, of, len(values))
        assert found is not None
        seen[found[0].tobytes(), found[1].tobytes()] = found
    assert len(seen) == 1
    ((table, streams),) = seen.values()
    for path in PATHS:
        api.set_backend(path)
        out = np.empty_like(data)
        api.float_fast_decode(streams, bits, log_segment, lanes, of, places(len(values), bits, table), table, out)
        assert np.array_equal(out, data), path
    return table, streams


def places(count: int, bits: tuple[int, int], table: np.ndarray, log_segment: int = SEGMENT) -> tuple[int, int, int]:
    raw = api.raw_size(count, bits[1], log_segment)
    return 0, raw, raw + int(table[:, 0].sum())


@pytest.mark.parametrize("lanes", [32, 128])
@pytest.mark.parametrize("bits", FORMATS)
@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("entries, seconds, step", [(1, 0, 1), (2, 3, 1), (15, 15, 1), (14, 1, 17)])
def test_any_size_and_palette(
    bits: tuple[int, int], count: int, lanes: int, entries: int, seconds: int, step: int
) -> None:
    """Palettes that lie close together and far apart; elements in the first, in the second, in neither."""
    rng = np.random.default_rng(count)
    top = (1 << bits[0]) - 1
    order = rng.permutation(min(32, top // step + 1))[: entries + seconds] * step
    firsts = order[:entries]
    exponents = np.minimum(rng.geometric(0.2, count) * step, top)
    table, _ = coded(elements(exponents, bits), bits, lanes, palettes(firsts, order[entries:], even(len(firsts) + 1)))
    assert table[:, 1].sum() == np.count_nonzero(~np.isin(exponents, firsts))
    assert table[:, 2].sum() == np.count_nonzero(~np.isin(exponents, order))


@pytest.mark.parametrize("lanes", [32, 128])
@pytest.mark.parametrize("bits", FORMATS)
@pytest.mark.parametrize("count", BLOCKS)
def test_sizes_around_a_block_of_one_segment(bits: tuple[int, int], count: int, lanes: int) -> None:
    """Kernels take 4096 elements at a time."""
    exponents = np.minimum(np.random.default_rng(count).geometric(0.3, count), (1 << bits[0]) - 1)
    coded(elements(exponents, bits), bits, lanes, palettes(range(1, 7), [7, 8], [50, 30, 20, 15, 8, 4, 1]), 20)


@pytest.mark.parametrize("bits", [(8, 7), (5, 10), (4, 3), (5, 2)])
def test_every_pattern_is_cut_where_the_format_says(bits: tuple[int, int]) -> None:
    """All 65,536 patterns of 16 bits and all 256 of 8; the raw stream has sign and mantissa."""
    exponent_bits, mantissa_bits = bits
    width = 1 + sum(bits)
    values = np.arange(1 << width, dtype=f"<u{width // 8}")
    firsts = np.arange(min(15, 1 << exponent_bits))
    _, streams = coded(values, bits, 32, palettes(firsts, [], even(len(firsts) + 1)), 24)
    wide = values.astype(np.uint32)
    rest = wide >> (width - 1) << mantissa_bits | wide & ((1 << mantissa_bits) - 1)
    whole = (mantissa_bits + 1) // 8
    expected = rest.astype(np.uint8).tobytes() if whole else b""
    for j in range(8 * whole, mantissa_bits + 1):
        expected += np.packbits((rest >> j & 1).astype(np.uint8), bitorder="little").tobytes()
    assert streams[: len(expected)].tobytes() == expected
    assert len(expected) == api.raw_size(len(values), mantissa_bits, 24)


@given(
    bits=st.sampled_from(FORMATS),
    lanes=st.sampled_from([32, 128]),
    weights=st.lists(st.integers(1, 60), min_size=2, max_size=16),
    seconds=st.integers(0, 15),
    count=st.integers(1, 5000),
    seed=st.integers(0, 1 << 32),
)
def test_any_frequencies(
    bits: tuple[int, int], lanes: int, weights: list[int], seconds: int, count: int, seed: int
) -> None:
    """Frequencies need not fit the data."""
    rng = np.random.default_rng(seed)
    firsts, seconds = min(len(weights) - 1, 1 << bits[0]), min(seconds, max(0, (1 << bits[0]) - len(weights) + 1))
    weights = weights[: firsts + 1]
    freqs = [max(1, w * 128 // sum(weights)) for w in weights]
    freqs[freqs.index(max(freqs))] += 128 - sum(freqs)
    order = rng.permutation(1 << bits[0])
    likely = np.concatenate([rng.dirichlet(np.full(firsts, 0.3)) * 0.9, np.full((1 << bits[0]) - firsts, 1e-9)])
    exponents = order[rng.choice(1 << bits[0], count, p=likely / likely.sum())]
    of = palettes(order[:firsts], order[firsts : firsts + seconds], freqs)
    coded(elements(exponents, bits, seed), bits, lanes, of)


def test_the_reciprocal_divides() -> None:
    """x · min(2^16 / f, 2^16 - 1) / 2^16, put right where the remainder is not below f: for each f and every state that
    is divided by it, which are those below 512 f."""
    for f in range(1, 129):
        x = np.arange(512 * f, dtype=np.int64)
        q = x * min(0xFFFF, 0x10000 // f) >> 16
        rest = x - q * f
        assert (rest >= 0).all() and (rest < 2 * f).all() and (rest < 1 << 15).all()
        assert np.array_equal(q + (rest >= f), x // f)


@pytest.mark.parametrize("lanes", [32, 128])
def test_division_by_every_frequency(lanes: int) -> None:
    """The native encoders multiply; NumPy divides."""
    exponents = (np.random.default_rng(0).random(2000) < 0.3).astype(np.uint8) + 100
    for f in range(1, 127):
        coded(elements(exponents, (8, 7)), (8, 7), lanes, palettes([100, 101], [], [f, 127 - f, 1]), 20)


@pytest.mark.parametrize("path", PATHS)
def test_no_more_escapes_than_are_allowed(path: str) -> None:
    """In one segment and over several of them."""
    api.set_backend(path)
    exponents = np.full(5000, 100)
    exponents[[0, 17, 1500, 1501, 4998, 4999]] = [3, 4, 3, 5, 255, 0]
    data, of = elements(exponents, (8, 7)).view(np.uint8), palettes([100], [3], [127, 1])
    for log_segment in (10, 20):
        assert api.float_fast_encode(data, (8, 7), log_segment, 32, of, 5) is None
        found = api.float_fast_encode(data, (8, 7), log_segment, 32, of, 6)
        assert found is not None and found[0][:, 1:].sum(axis=0).tolist() == [6, 4]
        assert api.float_fast_encode(data, (8, 7), log_segment, 32, of, 1 << 40) is not None


@pytest.mark.parametrize("bits", FORMATS)
@pytest.mark.parametrize("run, step", [(1, 1), (64, 64), (64, 100), (300, 1000), (7, 5000)])
def test_samples_are_what_lies_in_them(bits: tuple[int, int], run: int, step: int) -> None:
    exponents = np.random.default_rng(1).integers(0, 1 << bits[0], 4321)
    data = elements(exponents, bits).view(np.uint8)
    expected = np.bincount(exponents[np.arange(4321) % step < run], minlength=256)
    for path in PATHS:
        api.set_backend(path)
        assert np.array_equal(api.sample_exponents(data, bits, run, step), expected), path


# ---- what must be refused


@pytest.mark.parametrize("lanes", [32, 128])
@pytest.mark.parametrize("path", PATHS)
def test_symbol_streams_that_end_wrongly(path: str, lanes: int) -> None:
    """Bytes missing, bytes left, states out of range."""
    bits = (4, 3)
    exponents = np.random.default_rng(0).integers(0, 3, 1000)
    values = elements(exponents, bits)
    of = palettes([0, 1, 2], [], [40, 40, 40, 8])
    table, streams = coded(values, bits, lanes, of)
    _, at, _ = places(1000, bits, table)
    raw, good = streams[:at], streams[at:]
    api.set_backend(path)

    def decode(stream: np.ndarray) -> None:
        payload, rows = np.concatenate([raw, stream]), np.array([[len(stream), 0, 0]], np.uint32)
        api.float_fast_decode(payload, bits, SEGMENT, lanes, of, (0, at, len(payload)), rows, np.empty(1000, np.uint8))

    decode(good)
    states = good[: 2 * lanes]
    short = [good[:-1], good[:-2], states, states[:-1], states[:1], good[:0], good[: 2 * lanes + 9]]
    low = good.copy()
    low[2 * lanes - 1] = 0
    for stream in [*short, np.append(good, np.zeros(1, np.uint8)), np.append(good, good), low]:
        with pytest.raises(CorruptError, match="does not end"):
            decode(np.ascontiguousarray(stream))


@pytest.mark.parametrize("lanes", [32, 128])
@pytest.mark.parametrize("path", PATHS)
def test_few_bytes_are_not_stretched_to_many_elements(path: str, lanes: int) -> None:
    """No path may read on and on."""
    api.set_backend(path)
    bits, count, of = (4, 3), 1 << 20, palettes([1], [], [64, 64])
    raw = api.raw_size(count, 3, 24)
    payload = np.append(np.zeros(raw, np.uint8), np.full(lanes, 0x1FF, "<u2").view(np.uint8))
    table = np.array([[2 * lanes, 0, 0]], np.uint32)
    with pytest.raises(CorruptError):
        api.float_fast_decode(payload, bits, 24, lanes, of, (0, raw, len(payload)), table, np.empty(count, np.uint8))


@pytest.mark.parametrize("path", PATHS)
def test_frequencies_that_do_not_sum_to_128_are_refused(path: str) -> None:
    """Below, above, and 128 more than a byte can say."""
    api.set_backend(path)
    values = elements(np.full(40, 9), (4, 3))
    table, streams = coded(values, (4, 3), 32, palettes([9, 8], [], [100, 20, 8]))
    api.set_backend(path)
    for freqs in ([100, 20, 7], [100, 20, 9], [255, 1, 128], [0, 0, 0], [128, 128, 128], [0, 0, 255]):
        of = palettes([9, 8], [], freqs)
        with pytest.raises(CorruptError):
            api.float_fast_decode(streams, (4, 3), 10, 32, of, places(40, (4, 3), table), table, np.empty(40, np.uint8))


@pytest.mark.parametrize("path", api.cpu_features())
def test_a_symbol_without_frequency_cannot_be_coded(path: str) -> None:
    """It would be divided by."""
    api.set_backend(path)
    data = elements(np.full(40, 9), (4, 3)).view(np.uint8)
    for freqs in ([128, 0], [0, 128], [127, 2], [64, 63]):
        assert api.float_fast_encode(data, (4, 3), 10, 32, palettes([9], [], freqs), 40) is None


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bits", [(5, 10), (4, 3), (5, 2)])
def test_unused_bits_of_planes_must_be_zero(bits: tuple[int, int], path: str) -> None:
    of = palettes([9], [], [64, 64])
    table, streams = coded(elements(np.full(43, 9), bits), bits, 32, of)
    where, planes = places(43, bits, table), (bits[1] + 1) % 8
    api.set_backend(path)
    for j in range(planes):
        for bit in range(3, 8):
            bad = streams.copy()
            bad[where[1] - 6 * j - 1] |= 1 << bit
            with pytest.raises(CorruptError, match="zero"):
                api.float_fast_decode(
                    bad, bits, SEGMENT, 32, of, where, table, np.empty(43 * api.itemsize_of(bits), np.uint8)
                )


@pytest.mark.parametrize("path", api.cpu_features())
def test_nothing_beyond_a_buffer_is_touched(path: str) -> None:
    """Buffers end, and begin, at pages without rights; a reach beyond is a signal. The process is another one's."""
    script, root = Path(__file__).with_name("guarded.py"), Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script), path],
        env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", api.cpu_features())
def test_arguments_that_do_not_fit_are_refused(path: str) -> None:
    """What Python passes is checked once more before memory is touched."""
    api.set_backend(path)
    native = api.kernels()
    data = np.zeros(200, np.uint8)
    firsts, seconds, freqs = palettes([0], [], [64, 64])
    table, out, scratch = np.zeros(3, np.uint32), np.zeros(4096, np.uint8), np.zeros(4096, np.uint8)
    usual = [data, 2, 8, 7, 10, 32, firsts, seconds, freqs, 100, out, scratch, table]
    assert native.float_fast_encode(*usual) < 4096
    too_many = np.arange(16, dtype=np.uint8)
    for k, wrong in [
        (0, data[:199]), (2, 7), (1, 3), (4, 5), (4, 32), (5, 64), (6, too_many), (6, firsts[:0]), (7, too_many),
        (8, freqs[:1]), (9, 101), (10, out[:400]), (11, scratch[:300]), (12, table[:2]),
    ]:  # fmt: skip
        with pytest.raises(ValueError):
            native.float_fast_encode(*usual[:k], wrong, *usual[k + 1 :])
    usual = [data, 2, 8, 7, 10, 32, firsts, seconds, freqs, 0, 100, 164, table, out[:200]]
    assert native.float_fast_decode(*usual)
    for k, wrong in [
        (2, 7), (1, 3), (4, 5), (4, 32), (5, 64), (6, too_many), (7, too_many), (8, freqs[:1]), (12, table[:2]),
        (13, out[:199]),
    ]:  # fmt: skip
        with pytest.raises(ValueError):
            native.float_fast_decode(*usual[:k], wrong, *usual[k + 1 :])
    for k in (9, 10, 11):
        assert native.float_fast_decode(*usual[:k], 201, *usual[k + 1 :])
        assert native.float_fast_decode(*usual[:k], (1 << 64) - 1, *usual[k + 1 :])
