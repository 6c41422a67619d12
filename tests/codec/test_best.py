"""The choice of codec: never larger than raw, the same on every backend, the right one for what checkpoints hold."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arzstream.codec.base import ChunkContext
from arzstream.codec.best import PROFILES, encode_best
from arzstream.codec.dtypes import DTYPES, dtype
from arzstream.codec.registry import get, name_of, register
from arzstream.errors import CorruptError, UnsupportedError
from arzstream.kernels import api

BACKENDS = ["auto", "numpy"]
N = 1 << 18
WEIGHTS = (np.random.default_rng(0).standard_normal(N) * 0.02).astype("<f4")
BF16 = (WEIGHTS.view("<u4") >> 16).astype("<u2")
SPARSE = np.where(np.random.default_rng(1).random(N) < 0.9, np.float32(0), WEIGHTS)


FLOATS = {"fast": "float_fast", "balanced": "float_ctx", "max": "float_ctx"}
NARROW = {"fast": "zstd", "balanced": "float_ctx", "max": "float_ctx"}
"""Codec by profile."""


def check(data: bytes, name: str, profile: str) -> tuple[str, float]:
    """(codec, payload per byte) after a round trip on every backend."""
    ctx = ChunkContext(DTYPES[name], 1, len(data) // DTYPES[name].itemsize)
    results = set()
    for backend in BACKENDS:
        api.set_backend(backend)
        codec, payload = encode_best(memoryview(data), ctx, profile)
        results.add((codec, bytes(payload)))
    assert len(results) == 1
    codec, payload = results.pop()
    assert len(payload) <= len(data)
    for backend in BACKENDS:
        api.set_backend(backend)
        out = bytearray(len(data))
        get(codec).decode(memoryview(payload), memoryview(out), ctx)
        assert out == data
    return name_of(codec), len(payload) / max(1, len(data))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    "name, values, codec, ratio",
    [
        ("BF16", BF16, FLOATS, 0.67),
        ("F32", WEIGHTS, FLOATS, 0.84),
        ("F64", WEIGHTS.astype("<f8"), NARROW, 0.55),  # 29 of its bits are zero
        ("F32", BF16.astype("<u4") << 16, NARROW, 0.40),  # BF16 in the clothes of F32
        ("F32", SPARSE, "zstd", 0.22),
        ("C64", WEIGHTS, FLOATS, 0.84),
        ("I64", np.random.default_rng(0).integers(0, 30000, N), "zstd", 0.25),
        ("U8", np.frombuffer(json.dumps(list(range(40000))).encode(), np.uint8), "zstd", 0.45),
        ("U8", np.frombuffer(np.random.default_rng(0).bytes(N), np.uint8), "raw", 1.0),
        ("BF16", np.zeros(N, "<u2"), "const", 1e-4),
        ("I32", np.full(N, 7, "<i4"), "const", 1e-4),
    ],
)
def test_what_checkpoints_hold(
    name: str, values: np.ndarray, codec: str | dict[str, str], ratio: float, profile: str
) -> None:
    chosen, reached = check(values.tobytes(), name, profile)
    assert (chosen, reached <= ratio) == (codec if isinstance(codec, str) else codec[profile], True), reached


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 100, 5003])
def test_every_type(name: str, count: int, profile: str) -> None:
    size = count * DTYPES[name].itemsize
    check(np.random.default_rng(count).bytes(size), name, profile)
    check(bytes(size), name, profile)
    check(b"\1" * (size - 1) + b"\2" if size else b"", name, profile)
    check((b"abcdefgh" * (size // 8 + 1))[:size], name, profile)


@given(st.binary(max_size=2000), st.sampled_from(sorted(DTYPES)), st.integers(1, 50), st.sampled_from(sorted(PROFILES)))
def test_any_bytes(data: bytes, name: str, repeat: int, profile: str) -> None:
    data = data * repeat
    check(data[: len(data) // DTYPES[name].itemsize * DTYPES[name].itemsize], name, profile)


def test_an_unknown_profile_is_named() -> None:
    with pytest.raises(ValueError, match="quick"):
        encode_best(memoryview(b"1"), ChunkContext(DTYPES["U8"], 1, 1), "quick")


def test_constants() -> None:
    ctx = ChunkContext(DTYPES["F32"], 1, 4)
    codec = get(1)
    assert codec.encode(memoryview(b"abcd" * 4), ctx) == b"abcd"
    assert codec.encode(memoryview(b"abcd" * 4 + b"abce"), ctx) is None
    assert codec.encode(memoryview(b"abcd" * 500 + b"abce" + b"abcd" * 500), ctx) is None
    assert codec.encode(memoryview(b""), ctx) is None
    for payload, length in [(b"abc", 12), (b"abcde", 20), (b"", 0), (b"abcd", 10)]:
        with pytest.raises(CorruptError):
            codec.decode(memoryview(payload), memoryview(bytearray(length)), ctx)


def test_raw_must_have_the_right_length() -> None:
    with pytest.raises(CorruptError):
        get(0).decode(memoryview(b"abc"), memoryview(bytearray(4)), ChunkContext(DTYPES["U8"], 1, 4))


def test_the_registry() -> None:
    assert [name_of(i) for i in (0, 1, 3, 4)] == ["raw", "const", "zstd", "float_fast"]
    assert name_of(17) == "codec-17"
    with pytest.raises(UnsupportedError, match="codec 17 is not known to this version"):
        get(17)
    with pytest.raises(ValueError):
        register(get(0))
    with pytest.raises(UnsupportedError, match="F7"):
        dtype("F7")
