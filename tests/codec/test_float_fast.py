"""Codec float_fast: exact for every pattern, the same bytes on every path, and safe with hostile payloads."""

from __future__ import annotations

import importlib.util
import random
import struct
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arzstream.codec import float_fast
from arzstream.codec.base import ChunkContext
from arzstream.codec.dtypes import DTYPES, DType
from arzstream.codec.float_fast import LOG_SEGMENT, encode_floats
from arzstream.errors import CorruptError
from arzstream.kernels import api

PATHS = [*api.cpu_features(), "numpy"]
FLOATS = [d for d in DTYPES.values() if d.float_bits]
CODEC = float_fast.FloatFast()
PAIRS, SINGLE = 1.0, -1.0  # gains that force a mode


def gaussian(dtype: DType, count: int, scale: float = 0.02) -> bytes:
    """Bytes of ``count`` elements whose exponents are those of Gaussian weights."""
    values = np.random.default_rng(count).standard_normal(count * dtype.components) * scale
    if dtype.name == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    if dtype.itemsize == 1:
        exponent_bits, mantissa_bits = dtype.float_bits or (0, 0)
        exponents = np.clip(np.log2(np.abs(values) + 1e-9).astype(int) + 8, 0, (1 << exponent_bits) - 1)
        rest = np.random.default_rng(1).integers(0, 256, count) & (0x80 | (1 << mantissa_bits) - 1)
        return (exponents << mantissa_bits | rest).astype(np.uint8).tobytes()
    return values.astype(f"<f{dtype.itemsize // dtype.components}").tobytes()


def decode(payload: bytes, length: int, dtype: DType) -> bytes:
    out = bytearray(length)
    CODEC.decode(memoryview(payload), memoryview(out), ChunkContext(dtype, 1, length // dtype.itemsize))
    return bytes(out)


def check(data: bytes, dtype: DType, gain: float | None = None) -> bytes:
    """Encode and decode on every path; returns the payload, which is the same on all."""
    assert dtype.float_bits
    payloads = set()
    for path in PATHS:
        api.set_backend(path)
        if gain is None:
            payloads.add(CODEC.encode(memoryview(data), ChunkContext(dtype, 1, len(data) // dtype.itemsize)))
        else:
            payloads.add(encode_floats(memoryview(data), dtype.float_bits, gain))
    assert len(payloads) == 1
    payload = payloads.pop()
    assert payload is not None
    for path in PATHS:
        api.set_backend(path)
        assert decode(payload, len(data), dtype) == data, path
    return payload


@pytest.mark.parametrize("gain", [PAIRS, SINGLE])
@pytest.mark.parametrize("name", ["BF16", "F16"])
def test_all_65536_patterns(name: str, gain: float) -> None:
    """NaN payloads, infinities, subnormals and both zeros among them, in order and shuffled."""
    values = np.arange(65536, dtype="<u2")
    check(values.tobytes(), DTYPES[name], gain)
    check(np.random.default_rng(0).permutation(values).tobytes(), DTYPES[name], gain)


@pytest.mark.parametrize("gain", [PAIRS, SINGLE])
@pytest.mark.parametrize("dtype", [d for d in FLOATS if d.itemsize == 1], ids=lambda d: d.name)
def test_all_256_patterns(dtype: DType, gain: float) -> None:
    check(bytes(range(256)) * 3 + bytes(range(101)), dtype, gain)


@pytest.mark.parametrize("name, width", [("F32", 4), ("F64", 8), ("C64", 4), ("C128", 8)])
def test_special_values(name: str, width: int) -> None:
    exponent_bits, mantissa_bits = DTYPES[name].float_bits or (0, 0)
    top = ((1 << exponent_bits) - 1) << mantissa_bits
    odd = [0, 1, (1 << mantissa_bits) - 1, 1 << mantissa_bits, top, top | 1, top | 1 << (mantissa_bits - 1), top - 1]
    values = odd + [v | 1 << (8 * width - 1) for v in odd]
    for gain in (PAIRS, SINGLE):
        check(np.array(values * 20, f"<u{width}").tobytes(), DTYPES[name], gain)


@pytest.mark.parametrize("gain", [PAIRS, SINGLE])
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)
@pytest.mark.parametrize("count", [1, 2, 3, 31, 32, 33, 63, 64, 65, 1009, 4095, 4096, 4097, 10007])
def test_sizes(dtype: DType, count: int, gain: float) -> None:
    payload = check(gaussian(dtype, count), dtype, gain)
    exponents = api.split_fields(np.frombuffer(gaussian(dtype, count), np.uint8), dtype.float_bits or (0, 0), 10)[0]
    assert payload[0] == (1 if gain == PAIRS and len(np.unique(exponents)) > 1 else 0)


@pytest.mark.parametrize("name, around", [("BF16", 0), ("BF16", -1), ("F16", 1), ("F8_E5M2", 33)])
def test_sizes_around_a_segment(name: str, around: int) -> None:
    check(gaussian(DTYPES[name], (1 << LOG_SEGMENT) + around), DTYPES[name])


@pytest.mark.parametrize("gain", [PAIRS, SINGLE])
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)
@pytest.mark.parametrize("count", [1023, 1024, 1025, 2047, 2048, 2049, 3071, 4096, 5121])
def test_many_short_segments(dtype: DType, count: int, gain: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 2^10, which decoders take two at a time where there are two whole ones."""
    monkeypatch.setattr(float_fast, "LOG_SEGMENT", 10)
    assert check(gaussian(dtype, count), dtype, gain)[2] == 10


@given(
    dtype=st.sampled_from(FLOATS),
    data=st.binary(min_size=1, max_size=600),
    repeat=st.integers(1, 40),
    gain=st.sampled_from([PAIRS, SINGLE, None]),
)
def test_any_bytes(dtype: DType, data: bytes, repeat: int, gain: float | None) -> None:
    data = data * repeat
    data = data[: len(data) // dtype.itemsize * dtype.itemsize]
    if data:
        check(data, dtype, gain)


@given(
    dtype=st.sampled_from(FLOATS),
    count=st.integers(1, 3000),
    scale=st.floats(1e-4, 100),
    spread=st.floats(0, 12),
    gain=st.sampled_from([PAIRS, SINGLE, None]),
)
def test_any_distribution(dtype: DType, count: int, scale: float, spread: float, gain: float | None) -> None:
    rng = np.random.default_rng(count)
    exponent_bits, mantissa_bits = dtype.float_bits or (0, 0)
    width = (1 + exponent_bits + mantissa_bits) // 8
    count *= dtype.components
    exponents = np.clip(rng.normal(1 << exponent_bits - 1, spread, count), 0, (1 << exponent_bits) - 1).astype(
        np.uint64
    )
    rest = rng.integers(0, 1 << 63, count, dtype=np.uint64) % np.uint64(1 << mantissa_bits)
    sign = rng.integers(0, 2, count, dtype=np.uint64) << np.uint64(8 * width - 1)
    check((sign | exponents << np.uint64(mantissa_bits) | rest).astype(f"<u{width}").tobytes(), dtype, gain)


def test_one_exponent_costs_nothing() -> None:
    values = np.random.default_rng(0).uniform(1, 2, 5000).astype("<f4")
    payload = check(values.tobytes(), DTYPES["F32"])
    assert len(payload) == 3 * 5000 + 16 + 8


def test_one_pair_of_exponents_is_coded() -> None:
    """Alternating exponents make one symbol in pairs mode, whose frequency may not be 4096."""
    values = np.array([1.5, 0.75] * 3000, "<f4")
    assert len(check(values.tobytes(), DTYPES["F32"], PAIRS)) < 3 * 6000 + 200


def test_wide_exponents_take_single_mode() -> None:
    """Second moments of Adam spread over dozens of binades; pairs with many escapes would be larger."""
    for spread in (3, 6, 12):
        values = np.exp(np.random.default_rng(0).standard_normal(1 << 16) * spread - 20).astype("<f4")
        payload = check(values.tobytes(), DTYPES["F32"])
        assert payload[0] == 0
        assert len(payload) <= len(check(values.tobytes(), DTYPES["F32"], PAIRS))


def test_more_than_256_exponents_take_pairs() -> None:
    values = np.exp(np.random.default_rng(0).uniform(-600, 600, 4000)).astype("<f8")
    assert check(values.tobytes(), DTYPES["F64"])[0] == 1
    assert check(values.tobytes(), DTYPES["F64"], SINGLE)[0] == 1


def test_gaussian_weights_shrink_as_much_as_they_can() -> None:
    """Exponents of Gaussian weights carry 2.55 bits; pairs come within 0.05 of that."""
    count = 1 << 20
    payload = encode_floats(memoryview(gaussian(DTYPES["BF16"], count)), (8, 7))
    assert payload is not None and payload[0] == 1
    assert 8 * len(payload) / count < 8 + 2.60
    payload = encode_floats(memoryview(gaussian(DTYPES["BF16"], count)), (8, 7), 0.0)
    assert payload is not None and payload[0] == 0
    assert 8 * len(payload) / count < 8 + 2.56


def test_empty_and_not_floats_do_not_apply() -> None:
    assert CODEC.encode(memoryview(b""), ChunkContext(DTYPES["BF16"], 0, 1)) is None
    assert CODEC.encode(memoryview(b"1234"), ChunkContext(DTYPES["I32"], 1, 1)) is None
    with pytest.raises(CorruptError):
        decode(bytes(100), 4, DTYPES["I32"])


# ---- what must be refused


def parts(payload: bytes) -> tuple[list[int], bytes]:
    return list(struct.unpack_from("<BBBBHH", payload)), payload[8:]


def test_headers_that_are_refused() -> None:
    data = gaussian(DTYPES["BF16"], 3000)
    good = encode_floats(memoryview(data), (8, 7), PAIRS)
    assert good is not None
    head, body = parts(good)
    for field, value in [
        (0, 2),
        (1, 11),
        (1, 13),
        (2, 9),
        (2, 25),
        (3, 1),
        (4, 0),
        (4, 16),
        (4, 257),
        (5, 0),
        (5, 65535),
    ]:
        bad = [*head]
        bad[field] = value
        with pytest.raises(CorruptError):
            decode(struct.pack("<BBBBHH", *bad) + body, len(data), DTYPES["BF16"])
    for length in range(len(good)):
        with pytest.raises(CorruptError):
            decode(good[:length], len(data), DTYPES["BF16"])
    for wrong in (0, 2, len(data) - 2, len(data) + 2, 1 << 26):
        with pytest.raises(CorruptError):
            decode(good, wrong, DTYPES["BF16"])
    with pytest.raises(CorruptError):
        decode(good + b"\0", len(data), DTYPES["BF16"])
    twice = bytearray(good)
    twice[8:10] = twice[10:12]
    with pytest.raises(CorruptError, match="twice"):
        decode(bytes(twice), len(data), DTYPES["BF16"])


def test_odd_last_pair_must_have_a_zero_half() -> None:
    """Two payloads for one chunk are one too many."""
    data = gaussian(DTYPES["BF16"], 1001)
    longer = encode_floats(memoryview(data + b"\x00\x3c"), (8, 7), PAIRS)  # 2^-7, not the commonest
    assert longer is not None
    head = 8 + 2 * longer[4] + (longer[6] | longer[7] << 8)
    raw_at = -(-head // 8) * 8 + 8
    bad = longer[: raw_at + 1001] + longer[raw_at + 1002 :]  # one raw byte less: an odd segment with a full last pair
    for path in PATHS:
        api.set_backend(path)
        with pytest.raises(CorruptError):
            decode(bad, len(data), DTYPES["BF16"])


@pytest.mark.parametrize("path", PATHS)
def test_escapes_must_be_as_many_as_stated_and_in_range(path: str) -> None:
    api.set_backend(path)
    values = (np.arange(4000) % 15 + 1 << 10).astype("<u2")  # exponents 1 to 15, and a few others
    values[::500] = 20 << 10
    good = encode_floats(memoryview(values.tobytes()), (5, 10), PAIRS)
    assert good is not None and good[0] == 1 and good[-8:] == bytes([20] * 8)
    count_at = -(-(8 + 2 * good[4] + (good[6] | good[7] << 8)) // 8) * 8 + 4
    assert good[count_at] == 8

    def with_escapes(count: int, escapes: bytes) -> bytes:
        return good[:count_at] + bytes([count]) + good[count_at + 1 : -8] + escapes

    assert decode(with_escapes(8, bytes([20] * 7 + [31])), 8000, DTYPES["F16"]) != values.tobytes()
    for count, escapes in [(7, [20] * 7), (9, [20] * 9), (0, []), (8, [20] * 7 + [32])]:
        with pytest.raises(CorruptError):
            decode(with_escapes(count, bytes(escapes)), 8000, DTYPES["F16"])


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The decoder that was written from the text of the specification alone."""
    path = Path(__file__).resolve().parents[2] / "spec" / "reference_decoder.py"
    spec = importlib.util.spec_from_file_location("reference_decoder", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)
def test_damage_is_refused_or_decoded_alike_by_all(
    dtype: DType, reference: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bits flipped, bytes lost: no path crashes, and all agree with one another and with the reference."""
    source = random.Random(dtype.name)
    refused = 0
    for trial in range(60):
        count = source.choice([1, 5, 40, 333, 1500, 2500])
        monkeypatch.setattr(float_fast, "LOG_SEGMENT", source.choice([10, 18]))
        data = gaussian(dtype, count, source.choice([0.02, 1e-3, 1e3]))
        good = encode_floats(memoryview(data), dtype.float_bits or (0, 0), source.choice([PAIRS, SINGLE]))
        assert good is not None
        bad = bytearray(good)
        for _ in range(source.choice([1, 1, 2, 6])):
            at = source.choice([source.randrange(len(bad)), source.randrange(min(len(bad), 250))])
            bad[at] ^= 1 << source.randrange(8)
        if trial % 5 == 0:
            del bad[source.randrange(len(bad)) :]
        results: list[bytes | None] = []
        for path in PATHS:
            api.set_backend(path)
            try:
                results.append(decode(bytes(bad), len(data), dtype))
            except CorruptError:
                results.append(None)
        try:
            results.append(bytes(reference.decode_float_fast(bytes(bad), len(data), dtype.name)))
        except reference.ArchiveError:
            results.append(None)
        assert all(r == results[0] for r in results)
        refused += results[0] is None
    assert refused
