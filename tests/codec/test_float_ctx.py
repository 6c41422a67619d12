"""Codec float_ctx: exact for every pattern, the same on every path, sensible choices, safe with hostile payloads."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arzstream.codec import float_ctx
from arzstream.codec.base import ChunkContext
from arzstream.codec.dtypes import DTYPES, DType
from arzstream.codec.float_ctx import EFFORTS, encode_ctx
from arzstream.codec.float_fast import encode_floats
from arzstream.errors import CorruptError
from arzstream.kernels import api, context

PATHS = [*api.cpu_features(), "numpy"]
FLOATS = [d for d in DTYPES.values() if d.float_bits]
CODEC = float_ctx.FloatCtx()
RNG = np.random.default_rng(0)
SMALL = dataclasses.replace(EFFORTS["max"], log_segment=10)
"""Several segments in a few thousand elements."""


def as_dtype(values: np.ndarray, name: str) -> np.ndarray:
    """Floats as the bytes of data type ``name``; for fp8 only roughly."""
    dtype = DTYPES[name]
    if name == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2")
    if dtype.itemsize == 1:
        exponent_bits, mantissa_bits = dtype.float_bits or (0, 0)
        exponents = np.clip(np.log2(np.abs(values) + 1e-9).astype(int) + 8, 0, (1 << exponent_bits) - 1)
        rest = RNG.integers(0, 256, values.shape) & (0x80 | (1 << mantissa_bits) - 1)
        return (exponents << mantissa_bits | rest).astype(np.uint8)
    return values.astype(f"<f{dtype.itemsize // dtype.components}")


def matrix(rows: int, cols: int, spread: float = 0.5) -> np.ndarray:
    """Gaussian weights whose rows and columns have scales."""
    rng = np.random.default_rng(rows * cols)
    scales = np.exp(rng.normal(0, spread, (rows, 1)) + rng.normal(0, spread, cols))
    return rng.standard_normal((rows, cols)) * scales * 0.02


def decode(payload: bytes, length: int, ctx: ChunkContext) -> bytes:
    out = bytearray(length)
    CODEC.decode(memoryview(payload), memoryview(out), ctx)
    return bytes(out)


def check(data: bytes, ctx: ChunkContext, effort: float_ctx.Effort = SMALL) -> bytes:
    """Encode and decode on every path; returns the payload, which is the same on all."""
    payloads = set()
    for path in PATHS:
        api.set_backend(path)
        payloads.add(encode_ctx(memoryview(data), ctx, effort))
    assert len(payloads) == 1
    payload = payloads.pop()
    assert payload is not None
    for path in PATHS:
        api.set_backend(path)
        assert decode(payload, len(data), ctx) == data, path
    return payload


def header(payload: bytes) -> dict[str, int]:
    names = ("sign", "dropped", "top", "log_segment", "log_classes", "flags", "base", "row_len", "model")
    return dict(zip(names, float_ctx._HEADER.unpack_from(payload), strict=True))


@pytest.mark.parametrize("effort", [SMALL, *EFFORTS.values()])
@pytest.mark.parametrize("name", ["BF16", "F16"])
def test_all_65536_patterns(name: str, effort: float_ctx.Effort) -> None:
    """NaN payloads, infinities, subnormals and both zeros among them, in order and shuffled."""
    values = np.arange(65536, dtype="<u2")
    check(values.tobytes(), ChunkContext(DTYPES[name], 256, 256), effort)
    check(RNG.permutation(values).tobytes(), ChunkContext(DTYPES[name], 64, 1024), effort)


@pytest.mark.parametrize("dtype", [d for d in FLOATS if d.itemsize == 1], ids=lambda d: d.name)
def test_all_256_patterns(dtype: DType) -> None:
    check(bytes(range(256)) * 3 + bytes(range(101)), ChunkContext(dtype, 1, 869))


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (33, 31), (5, 1000), (70, 40), (2000, 3), (1, 5000), (2, 150000)])
def test_every_type_and_shape(dtype: DType, shape: tuple[int, int]) -> None:
    data = as_dtype(matrix(shape[0], shape[1] * dtype.components), dtype.name)
    check(data.tobytes(), ChunkContext(dtype, *shape))


@given(st.binary(min_size=1, max_size=3000), st.sampled_from(FLOATS), st.integers(1, 64), st.integers(1, 300))
def test_any_bytes(data: bytes, dtype: DType, repeat: int, cols: int) -> None:
    data = data * repeat
    count = len(data) // dtype.itemsize
    if count:
        rows = -(-count // cols)
        check(data[: count * dtype.itemsize], ChunkContext(dtype, rows, cols))


def test_scales_of_rows_and_columns_are_used_where_they_pay() -> None:
    ctx = ChunkContext(DTYPES["BF16"], 512, 512)
    with_scales = check(as_dtype(matrix(512, 512, 0.7), "BF16").tobytes(), ctx, EFFORTS["balanced"])
    without = check(as_dtype(matrix(512, 512, 0.0), "BF16").tobytes(), ctx, EFFORTS["balanced"])
    assert header(with_scales)["flags"] == 3
    assert header(without)["flags"] == 0
    alone = encode_floats(memoryview(as_dtype(matrix(512, 512, 0.7), "BF16").tobytes()), (8, 7), 1)
    assert alone is not None
    assert len(with_scales) < 0.985 * len(alone)


def test_the_fast_effort_codes_mantissa_bits_and_measures_no_scales() -> None:
    data = as_dtype(matrix(256, 512, 0.3), "F16").tobytes()
    payload = check(data, ChunkContext(DTYPES["F16"], 256, 512), EFFORTS["fast"])
    assert (header(payload)["flags"], header(payload)["log_classes"], header(payload)["top"]) == (0, 0, 2)
    exponents_alone = encode_floats(memoryview(data), (5, 10), 1)
    assert exponents_alone is not None
    assert len(payload) < 0.999 * len(exponents_alone)


def test_choices_do_not_depend_on_what_was_coded_before() -> None:
    """Lengths of scales are remembered from chunk to chunk; nothing else may be."""
    ctx = ChunkContext(DTYPES["BF16"], 128, 128)
    chunks = [memoryview(as_dtype(matrix(128, 128, spread), "BF16").tobytes()) for spread in (0.0, 0.2, 0.7)]
    first = [encode_ctx(chunk, ctx, EFFORTS["balanced"]) for chunk in chunks]
    assert [encode_ctx(chunk, ctx, EFFORTS["balanced"]) for chunk in reversed(chunks)] == first[::-1]


@pytest.mark.parametrize("name, dropped", [("BF16", 16), ("F16", 13)])
def test_narrow_floats_in_wide_ones_cost_what_they_cost_alone(name: str, dropped: int) -> None:
    narrow = as_dtype(matrix(256, 256), name)
    wide = narrow.astype("<u4") << 16 if name == "BF16" else narrow.astype("<f4")
    payload = check(wide.tobytes(), ChunkContext(DTYPES["F32"], 256, 256), EFFORTS["balanced"])
    alone = check(narrow.tobytes(), ChunkContext(DTYPES[name], 256, 256), EFFORTS["balanced"])
    assert header(payload)["dropped"] >= dropped
    assert len(payload) <= 1.001 * len(alone) + 64


def test_a_sign_that_never_changes_costs_nothing() -> None:
    values = as_dtype(np.abs(matrix(128, 256)), "F32")
    payload = check(values.tobytes(), ChunkContext(DTYPES["F32"], 128, 256))
    assert header(payload)["sign"] == context.SIGN_NONE


def test_a_rare_sign_is_coded() -> None:
    values = np.abs(matrix(128, 256))
    values[::7, ::5] *= -1
    payload = check(as_dtype(values, "BF16").tobytes(), ChunkContext(DTYPES["BF16"], 128, 256))
    assert header(payload)["sign"] == context.SIGN_CODED


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_zeros_nans_and_infinities_among_weights(share: float) -> None:
    values = matrix(128, 256).astype("<f4")
    odd = RNG.choice(np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-42, 3e38], "<f4"), values.shape)
    values = np.where(RNG.random(values.shape) < share, odd, values)
    check(values.tobytes(), ChunkContext(DTYPES["F32"], 128, 256))
    check(values.tobytes(), ChunkContext(DTYPES["F32"], 128, 256), EFFORTS["balanced"])


@pytest.mark.parametrize("name", ["BF16", "F16", "F32", "F8_E4M3"])
@pytest.mark.parametrize("spread", [0.0, 0.4])
def test_never_larger_than_float_fast(name: str, spread: float) -> None:
    data = as_dtype(matrix(256, 300, spread), name).tobytes()
    fast = encode_floats(memoryview(data), DTYPES[name].float_bits or (0, 0), 1)
    ctx = encode_ctx(memoryview(data), ChunkContext(DTYPES[name], 256, 300), EFFORTS["balanced"])
    assert fast is not None
    assert ctx is not None
    assert len(ctx) <= 1.001 * len(fast)


@pytest.mark.parametrize("path", PATHS)
def test_every_byte_damaged_is_refused_or_decodes(path: str) -> None:
    """A checksum finds wrong values; here nothing worse than wrong values may come of it."""
    api.set_backend(path)
    data = as_dtype(matrix(20, 60), "BF16").tobytes()
    ctx = ChunkContext(DTYPES["BF16"], 20, 60)
    payload = encode_ctx(memoryview(data), ctx, SMALL)
    assert payload is not None
    refused = 0
    for at in range(0, len(payload), 1 if path != "numpy" else 7):
        for bit in (1, 0x80):
            bad = bytearray(payload)
            bad[at] ^= bit
            try:
                decode(bytes(bad), len(data), ctx)
            except CorruptError:
                refused += 1
    assert refused > 100 if path != "numpy" else refused > 10


@pytest.mark.parametrize("path", PATHS)
def test_every_truncation_is_refused(path: str) -> None:
    api.set_backend(path)
    data = as_dtype(matrix(10, 40), "F16").tobytes()
    ctx = ChunkContext(DTYPES["F16"], 10, 40)
    payload = encode_ctx(memoryview(data), ctx, SMALL)
    assert payload is not None
    for end in range(len(payload)):
        with pytest.raises(CorruptError):
            decode(payload[:end], len(data), ctx)
    with pytest.raises(CorruptError):
        decode(payload + b"\0", len(data), ctx)
    with pytest.raises(CorruptError):
        decode(payload, len(data) - 2, ctx)


@given(st.binary(max_size=400), st.sampled_from(FLOATS), st.integers(1, 600))
def test_any_payload_is_refused_or_decodes(payload: bytes, dtype: DType, count: int) -> None:
    for path in PATHS:
        api.set_backend(path)
        try:
            decode(payload, count * dtype.itemsize, ChunkContext(dtype, 1, count))
        except CorruptError:
            pass


def test_integers_are_not_for_it() -> None:
    assert CODEC.encode(memoryview(b"abcd"), ChunkContext(DTYPES["I32"], 1, 1)) is None
    with pytest.raises(CorruptError):
        decode(bytes(100), 4, ChunkContext(DTYPES["I32"], 1, 1))


def test_subnormal_fp16_in_fp32_costs_what_it_costs_alone() -> None:
    """Widened, they are normal numbers of shorter mantissas: the low 13 bits are zero like those of all others."""
    narrow = RNG.integers(-1023, 1024, 1 << 16).astype(np.int16)
    halves = (np.abs(narrow) | np.where(narrow < 0, -32768, 0)).astype("<u2").view("<f2")
    payload = check(halves.astype("<f4").tobytes(), ChunkContext(DTYPES["F32"], 256, 256), EFFORTS["balanced"])
    assert header(payload)["dropped"] >= 13
    assert len(payload) <= 0.38 * 4 * len(halves)  # 11 of 32 bits are there, and 7 of them stay raw


def test_a_few_bytes_of_text_among_floats_do_not_spoil_the_rest() -> None:
    weights = (np.random.default_rng(0).standard_normal(1 << 17) * 0.02).astype("<f4")
    sizes = []
    for first in (weights[:1].tobytes(), b"head"):
        data = first + weights[1:].tobytes()
        payload = encode_ctx(memoryview(data), ChunkContext(DTYPES["F32"], len(weights), 1), EFFORTS["balanced"])
        assert payload is not None
        sizes.append(len(payload))
    assert sizes[1] < 1.001 * sizes[0]
