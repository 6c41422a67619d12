"""Codec dequantised: scales are found again and every bit comes back; ordinary floats are left alone, quickly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arzstream.codec import dequantised
from arzstream.codec.base import ChunkContext
from arzstream.codec.best import encode_best
from arzstream.codec.dequantised import Dequantised, encode_dequantised
from arzstream.codec.dtypes import DTYPES
from arzstream.codec.find_scales import KINDS, find_scales
from arzstream.errors import CorruptError
from arzstream.kernels import api
from arzstream.testing.tensors import to_bits

PATHS = [*api.cpu_features(), "numpy"]
TYPES = list(KINDS)
CODEC = Dequantised()
RNG = np.random.default_rng(0)


def matrix(rows: int = 64, cols: int = 512) -> np.ndarray:
    return (RNG.standard_normal((rows, cols)) * np.exp(RNG.normal(0, 0.4, (rows, 1))) * 0.02).astype(np.float32)


def fake_quantised(values: np.ndarray, group: int, largest: int, narrow: bool = False) -> np.ndarray:
    """Integers times the scale of each group; negative values that round to 0 are -0, as rint makes them."""
    groups = values.reshape(-1, group)
    scale = np.abs(groups).max(axis=1, keepdims=True) / np.float32(largest)
    if narrow:
        scale = scale.astype(np.float16).astype(np.float32)
    return (np.clip(np.rint(groups / scale), -largest, largest) * scale).reshape(values.shape)


def decode(payload: bytes, length: int, ctx: ChunkContext) -> bytes:
    out = bytearray(length)
    CODEC.decode(memoryview(payload), memoryview(out), ctx)
    return bytes(out)


def same_on_all(bits: np.ndarray, dtype: str, cols: int) -> bytes | None:
    """Encode and decode on every path; the payload is the same on all."""
    ctx, data = ChunkContext(DTYPES[dtype], bits.size // cols, cols), bits.tobytes()
    payloads = set()
    for path in PATHS:
        api.set_backend(path)
        payloads.add(encode_dequantised(memoryview(data), ctx))
    assert len(payloads) == 1
    payload = payloads.pop()
    for path in PATHS if payload is not None else ():
        api.set_backend(path)
        assert decode(payload, len(data), ctx) == data, path
    return payload


def header(payload: bytes) -> dict[str, int]:
    names = ("flags", "group", "scales", "codes", "exceptions")
    return dict(zip(names, dequantised._HEADER.unpack_from(payload), strict=True))


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("group, largest", [(512, 127), (128, 127), (64, 7), (32, 7), (64 * 512, 127)])
def test_scales_are_found_again(dtype: str, group: int, largest: int, narrow: bool) -> None:
    bits = to_bits(fake_quantised(matrix(), group, largest, narrow), dtype)
    payload = same_on_all(bits, dtype, 512)
    assert payload is not None
    found = header(payload)
    # A tensor's scale is found as that of its rows.
    assert found["group"] == min(group, 512)
    assert found["exceptions"] <= bits.size // 500
    assert len(payload) < (0.27 if dtype == "F32" else 0.53) * bits.nbytes


@pytest.mark.parametrize("dtype", TYPES)
def test_zero_points(dtype: str) -> None:
    groups = matrix().reshape(-1, 64)
    low = groups.min(axis=1, keepdims=True)
    scale = (groups.max(axis=1, keepdims=True) - low) / np.float32(15)
    zero = np.rint(-low / scale)
    values = (np.clip(np.rint(groups / scale) + zero, 0, 15) - zero + np.float32(0)) * scale
    payload = same_on_all(to_bits(values, dtype), dtype, 512)
    assert payload is not None and header(payload)["group"] == 64


@pytest.mark.parametrize("dtype", TYPES)
def test_negative_zeros_cost_nothing(dtype: str) -> None:
    values = fake_quantised(matrix(), 512, 7)
    assert np.signbit(values[values == 0]).any()
    payload = same_on_all(to_bits(values, dtype), dtype, 512)
    assert payload is not None and header(payload)["flags"] == 1 and header(payload)["exceptions"] == 0


@pytest.mark.parametrize("dtype", TYPES)
def test_a_few_other_values_are_listed(dtype: str) -> None:
    bits = to_bits(fake_quantised(matrix(), 512, 127), dtype)
    odd = np.array([np.nan, np.inf, -np.inf, 1e-42, 3.0], np.float32)
    places = [0, 700, 9999, 20000, bits.size - 1]
    flat = bits.reshape(-1)
    flat[places] = to_bits(odd, dtype)
    payload = same_on_all(flat, dtype, 512)
    assert payload is None or header(payload)["exceptions"] >= 5  # rows with NaN have no scale: all of it is listed


@pytest.mark.parametrize("dtype", TYPES)
def test_rows_of_zeros_have_scales_of_zero(dtype: str) -> None:
    values = fake_quantised(np.abs(matrix()), 512, 127)
    values[10:20] = 0
    payload = same_on_all(to_bits(values, dtype), dtype, 512)
    assert payload is not None and header(payload)["exceptions"] == 0


@pytest.mark.parametrize("profile", ["fast", "balanced", "max"])
@pytest.mark.parametrize("size", [32, 512])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_groups_of_subnormal_numbers_have_no_scale_that_decoders_refuse(dtype: str, size: int, profile: str) -> None:
    """As a channel has that nothing trains: a subnormal scale, or zeros and one stray subnormal."""
    for fill in ("multiples", "stray"):
        values = fake_quantised(matrix(), size, 127)
        groups = to_bits(values, dtype).view(f"<u{DTYPES[dtype].itemsize}").reshape(-1, size)
        groups[9] = np.arange(size) % 100 if fill == "multiples" else 0
        groups[9, 3] = 1
        payload = same_on_all(groups, dtype, 512)
        assert payload is not None and 0 < header(payload)["exceptions"] < 2 * size + groups.size // 500
        codec, payload = encode_best(memoryview(groups.tobytes()), ChunkContext(DTYPES[dtype], 64, 512), profile)
        assert codec == CODEC.id and decode(payload, groups.nbytes, ChunkContext(DTYPES[dtype], 64, 512))


@pytest.mark.parametrize("dtype", TYPES)
def test_a_row_that_is_a_chunk_of_its_own(dtype: str) -> None:
    values = fake_quantised(matrix(1, 1 << 15), 1 << 15, 127)
    payload = same_on_all(to_bits(values, dtype), dtype, 1 << 15)
    assert payload is not None and header(payload)["group"] == 1 << 15
    payload = same_on_all(to_bits(values, dtype), dtype, 1)
    assert payload is not None and header(payload)["group"] == 1 << 15


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0])
def test_ordinary_floats_are_left_alone(dtype: str, spread: float) -> None:
    values = matrix(128, 1024) * np.exp(RNG.normal(0, spread, 1024)).astype(np.float32)
    assert same_on_all(to_bits(values, dtype), dtype, 1024) is None
    assert same_on_all(to_bits(np.zeros_like(values), dtype), dtype, 1024) is None


@pytest.mark.parametrize("name", DTYPES)
def test_which_types_it_is_for(name: str) -> None:
    dtype = DTYPES[name]
    assert name in TYPES or encode_dequantised(memoryview(bytes(4096)), ChunkContext(dtype, 1, 256)) is None
    assert encode_dequantised(memoryview(b""), ChunkContext(dtype, 0, 1)) is None


@given(st.binary(min_size=4, max_size=3000), st.sampled_from(TYPES), st.integers(1, 64), st.integers(1, 300))
def test_any_bytes(data: bytes, dtype: str, repeat: int, cols: int) -> None:
    bits = np.frombuffer((data * repeat)[: len(data) * repeat // 4 * 4], f"<u{DTYPES[dtype].itemsize}")
    same_on_all(bits, dtype, cols if bits.size % cols == 0 else bits.size)


@given(st.integers(0, 2**32), st.sampled_from(TYPES), st.integers(1, 127))
def test_a_scale_that_is_found_gives_the_values_again(seed: int, dtype: str, largest: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(-largest, largest + 1, (8, 64))
    codes[:, 0] = 1
    scales = np.ldexp(1 + rng.random((8, 1)), rng.integers(-9, 3, (8, 1))).astype(np.float32)
    bits = to_bits(codes.astype(np.float32) * scales, dtype)
    values = dequantised._as_floats(memoryview(bits.tobytes()), dtype).reshape(8, 64)
    found, known = find_scales(values, KINDS[dtype])
    assert known.all()
    assert np.allclose(found, scales[:, 0], rtol=2.0 ** (1 - KINDS[dtype].precision))


@pytest.mark.parametrize("profile", ["fast", "balanced", "max"])
@pytest.mark.parametrize("dtype", TYPES)
def test_every_profile_uses_it(dtype: str, profile: str) -> None:
    bits = to_bits(fake_quantised(matrix(), 512, 127), dtype)
    codec, payload = encode_best(memoryview(bits.tobytes()), ChunkContext(DTYPES[dtype], 64, 512), profile)
    assert codec == CODEC.id and len(payload) < 0.5 * bits.nbytes


@pytest.mark.parametrize("path", PATHS)
def test_every_byte_damaged_is_refused_or_decodes(path: str) -> None:
    api.set_backend(path)
    bits = to_bits(fake_quantised(matrix(32, 256), 256, 7), "BF16")
    bits[3, 7] = 0x7FC1
    ctx = ChunkContext(DTYPES["BF16"], 32, 256)
    payload = encode_dequantised(memoryview(bits.tobytes()), ctx)
    assert payload is not None and header(payload)["exceptions"] > 0
    refused = 0
    for at in range(0, len(payload), 1 if path != "numpy" else 19):
        bad = bytearray(payload)
        bad[at] ^= 0x80
        try:
            decode(bytes(bad), bits.nbytes, ctx)
        except CorruptError:
            refused += 1
    assert refused > (100 if path != "numpy" else 5)
    for end in range(0, len(payload), 1 if path != "numpy" else 19):
        with pytest.raises(CorruptError):
            decode(payload[:end], bits.nbytes, ctx)


@given(st.binary(max_size=400), st.sampled_from(TYPES), st.integers(0, 300))
def test_any_payload_is_refused_or_decodes(payload: bytes, dtype: str, count: int) -> None:
    for path in PATHS:
        api.set_backend(path)
        try:
            decode(payload, count * DTYPES[dtype].itemsize, ChunkContext(DTYPES[dtype], 1, count))
        except CorruptError:
            pass
