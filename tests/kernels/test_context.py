"""The kernels of context-switched coding: native paths and the NumPy reference do the same, and refuse the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arzstream.codec import tables
from arzstream.errors import CorruptError
from arzstream.kernels import api, context

PATHS = [*api.cpu_features(), "numpy"]
FLOATS = [(8, 7), (5, 10), (8, 23), (11, 52), (4, 3), (5, 2)]


def on_all(call: Any) -> Any:
    """The result of ``call`` on every path, which must be one."""
    results = []
    for path in PATHS:
        api.set_backend(path)
        results.append(call())
    first = results[0]
    for other in results[1:]:
        for a, b in zip(first, other, strict=True) if isinstance(first, tuple) else [(first, other)]:
            assert np.array_equal(a, b)
    return first


@st.composite
def cuts(draw: st.DrawFn) -> context.Cut:
    exponent_bits, mantissa_bits = draw(st.sampled_from(FLOATS))
    dropped = draw(st.integers(0, mantissa_bits))
    top = draw(st.integers(0, min(mantissa_bits - dropped, 15 - exponent_bits, 4)))
    return context.Cut(exponent_bits, mantissa_bits, dropped, top, draw(st.integers(0, 2)))


@given(cuts(), st.integers(1, 3000), st.integers(0, 2**32), st.integers(6, 12))
def test_split_high(cut: context.Cut, count: int, seed: int, log_segment: int) -> None:
    data = np.random.default_rng(seed).integers(0, 256, count * cut.itemsize, np.uint8)
    on_all(lambda: context.split_high(data, cut, log_segment))


@given(cuts(), st.integers(1, 3000), st.integers(1, 2000), st.integers(0, 2**32), st.booleans())
def test_sums(cut: context.Cut, count: int, row_len: int, seed: int, alike: bool) -> None:
    rng = np.random.default_rng(seed)
    least = (1 << cut.mag_bits) - 1 if alike else 0  # the largest there are: sums must not overflow
    high = rng.integers(least, 2 << cut.mag_bits, count).astype(np.uint16)
    highest = int(rng.integers(0, 1 << cut.exponent_bits))
    adjust = rng.integers(-1200, 1200, -(-count // row_len)).astype(np.int16)
    rows = on_all(lambda: context.row_sums(high, cut, row_len, highest))
    on_all(lambda: context.col_sums(high, cut, row_len, highest, adjust))
    unmoved = on_all(lambda: context.col_sums(high, cut, row_len, highest, np.zeros_like(adjust)))
    assert rows.sum() == unmoved.sum()


def test_sums_are_those_of_the_numbers() -> None:
    values = np.random.default_rng(1).standard_normal(4096).astype("<f4")
    cut = context.Cut(8, 23, 0, 3, context.SIGN_RAW)
    high, _ = context.split_high(values.view(np.uint8), cut, 12)
    highest = int(high.max() & 0x7FF) >> 3
    found = on_all(lambda: context.row_sums(high, cut, 64, highest)) * 2.0 ** (highest - 127 - 25)
    assert np.allclose(found, np.abs(values).reshape(64, 64).sum(axis=1), rtol=0.02)


@given(cuts(), st.integers(1, 9000), st.integers(1, 400), st.integers(0, 2**32), st.integers(0, 3), st.integers(0, 3))
def test_cost_of_scales(cut: context.Cut, count: int, row_len: int, seed: int, log_classes: int, sides: int) -> None:
    rng = np.random.default_rng(seed)
    bits = cut.mag_bits + (cut.sign_mode == context.SIGN_CODED)
    high = np.minimum(rng.geometric(0.1, count) * (rng.random(count) < 0.9), (1 << bits) - 1).astype(np.uint16)
    rows = rng.integers(0, 120, -(-count // row_len) if sides & 1 else 0).astype(np.uint8)
    cols = rng.integers(0, 120, row_len if sides & 2 else 0).astype(np.uint8)
    for weights in (tables.weighted_log(), tables.weighted_log()[:1000]):
        cost, used = on_all(lambda w=weights: context.ctx_cost(high, cut, row_len, rows, cols, log_classes, w))  # type: ignore[misc]
        assert 0 <= used <= count // 2 and cost >= 0
    if not sides and not log_classes and count < 1000:
        assert cost == tables.entropy(np.bincount(high)[None, :])


@given(cuts(), st.integers(1, 3000), st.integers(1, 400), st.integers(0, 2**32), st.integers(0, 3), st.integers(0, 3))
def test_symbols_and_costs(cut: context.Cut, count: int, row_len: int, seed: int, log_classes: int, sides: int) -> None:
    rng = np.random.default_rng(seed)
    bits = cut.mag_bits + (cut.sign_mode == context.SIGN_CODED)
    high = (rng.integers(0, 1 << bits, count) * (rng.random(count) < 0.9)).astype(np.uint16)
    rows = rng.integers(0, 120, -(-count // row_len) if sides & 1 else 0).astype(np.uint8)
    cols = rng.integers(0, 120, row_len if sides & 2 else 0).astype(np.uint8)
    base = int(rng.integers(-200, 1 << cut.mag_bits))
    symbols, _, escapes, _, counts = on_all(
        lambda: context.ctx_symbols(high, cut, row_len, rows, cols, base, log_classes, 7)
    )
    assert counts.sum() == count
    assert len(escapes) == np.count_nonzero(symbols == context.ESCAPE)
    lut = rng.integers(0, 5000, (1 << log_classes, 37, context.MOVES)).astype(np.uint32)
    for of_rows in (True, False):
        on_all(
            lambda of_rows=of_rows: context.move_costs(  # type: ignore[misc]
                high, cut, row_len, rows, cols, base, log_classes, lut, of_rows
            )
        )


@st.composite
def coded(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(symbols, classes, tables made from their counts)."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count, n = draw(st.integers(1, 4000)), draw(st.integers(1, 64))
    classes = rng.integers(0, n, count).astype(np.uint8)
    symbols = np.minimum(rng.geometric(draw(st.floats(0.01, 0.9)), count) + classes // 2, 255).astype(np.uint8)
    freqs = np.zeros((n, 256), np.uint16)
    for k in range(n):
        counts = np.bincount(symbols[classes == k], minlength=256)
        if counts.any():
            freqs[k] = tables.normalise(counts)
    return symbols, classes, freqs


@given(coded(), st.integers(50, 5000))
def test_coding_with_a_table_for_each_class(case: tuple[np.ndarray, np.ndarray, np.ndarray], per_segment: int) -> None:
    symbols, classes, freqs = case
    streams, stream_bytes = on_all(lambda: context.rans_ctx_encode(symbols, classes, per_segment, freqs))
    for path in PATHS:
        api.set_backend(path)
        out = np.empty_like(symbols)
        context.rans_ctx_decode(streams, stream_bytes, per_segment, classes, freqs, out)
        assert np.array_equal(out, symbols)


@given(coded(), st.integers(0, 2**32))
def test_damaged_streams_are_refused_or_decode(case: tuple[np.ndarray, np.ndarray, np.ndarray], seed: int) -> None:
    symbols, classes, freqs = case
    streams, stream_bytes = context.rans_ctx_encode(symbols, classes, 1000, freqs)
    rng = np.random.default_rng(seed)
    bad = streams.copy()
    bad[rng.integers(0, len(bad))] ^= np.uint8(1 << rng.integers(0, 8))
    outcomes = []
    for path in PATHS:
        api.set_backend(path)
        out = np.empty_like(symbols)
        try:
            context.rans_ctx_decode(bad, stream_bytes, 1000, classes, freqs, out)
            outcomes.append(out.tobytes())
        except CorruptError as error:
            outcomes.append(str(error).encode())
    assert len(set(outcomes)) == 1


def test_a_class_without_a_table_is_refused() -> None:
    symbols, classes = np.zeros(100, np.uint8), np.zeros(100, np.uint8)
    freqs = np.zeros((2, 256), np.uint16)
    freqs[0, :2] = 4095, 1
    for path in PATHS:
        api.set_backend(path)
        streams, stream_bytes = context.rans_ctx_encode(symbols, classes, 100, freqs)
        classes[50] = 1
        with pytest.raises(ValueError):
            context.rans_ctx_encode(symbols, classes, 100, freqs)
        with pytest.raises(CorruptError):
            context.rans_ctx_decode(streams, stream_bytes, 100, classes, freqs, symbols.copy())
        classes[50] = 2
        with pytest.raises(ValueError):
            context.rans_ctx_encode(symbols, classes, 100, freqs)
        with pytest.raises(CorruptError):
            context.rans_ctx_decode(streams, stream_bytes, 100, classes, freqs, symbols.copy())
        classes[50] = 0


@st.composite
def models(draw: st.DrawFn) -> tuple[Any, ...]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([1, 3, 40, 255]))
    sides = []
    for _ in range(2):
        x = np.clip(rng.normal(100, spread, draw(st.integers(0, 300))).round(), 0, 255).astype(np.uint8)
        sides.append((x, int(rng.integers(0, 256)), int(rng.integers(0, 8))))
    n = draw(st.sampled_from([1, 2, 4, 8]))
    freqs = np.zeros((n, 256), np.uint16)
    for k in range(n):
        counts = np.bincount(
            np.minimum(rng.poisson(draw(st.sampled_from([0.01, 1, 30, 150])), 2000), 255), minlength=256
        )
        if draw(st.booleans()):
            freqs[k] = tables.normalise(counts)
    return (*sides, freqs, draw(st.integers(0, 4)), draw(st.integers(1, 2)), draw(st.integers(-1000, 3000)))


@given(models())
def test_model_streams(model: tuple[Any, ...]) -> None:
    rows, cols, freqs, *rest = model
    stream = on_all(lambda: np.frombuffer(context.ctx_model_encode(rows, cols, freqs, *rest), np.uint8))
    back = on_all(lambda: context.ctx_model_decode(stream, len(rows[0]), len(cols[0]), len(freqs), *rest))
    for got, want in zip(back, (rows[0], cols[0], freqs), strict=True):
        assert np.array_equal(got, want)


@given(models(), st.integers(0, 2**32))
def test_damaged_model_streams(model: tuple[Any, ...], seed: int) -> None:
    rows, cols, freqs, *rest = model
    stream = np.frombuffer(context.ctx_model_encode(rows, cols, freqs, *rest), np.uint8).copy()
    rng = np.random.default_rng(seed)
    if seed % 3 == 0:
        stream = stream[: rng.integers(0, len(stream))]
    elif seed % 3 == 1:
        stream[rng.integers(0, len(stream))] ^= np.uint8(1 << rng.integers(0, 8))
    else:
        stream = rng.integers(0, 256, len(stream), np.uint8)
    outcomes = []
    for path in PATHS:
        api.set_backend(path)
        try:
            got = context.ctx_model_decode(stream, len(rows[0]), len(cols[0]), len(freqs), *rest)
            outcomes.append(b"".join(part.tobytes() for part in got))
        except CorruptError as error:
            outcomes.append(str(error).encode())
    assert len(set(outcomes)) == 1
