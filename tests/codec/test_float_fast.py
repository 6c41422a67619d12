"""Codec float_fast: exact for every pattern, the same bytes on every path, and safe with hostile payloads."""

from __future__ import annotations

import importlib.util
import math
import random
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
from arzstream.codec.float_fast import FEW, LOG_SEGMENT, SAMPLE_RUN, encode_floats
from arzstream.errors import CorruptError
from arzstream.kernels import api

PATHS = [*api.cpu_features(), "numpy"]
WIDE = [d for d in DTYPES.values() if d.float_bits and d.float_bits[0] > 8]
FLOATS = [d for d in DTYPES.values() if d.float_bits and d not in WIDE]
CODEC = float_fast.FloatFast()
BF16 = DTYPES["BF16"]
ANY = 1
"""Elements for each escape that is allowed: all may be escapes."""


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


def having(exponents: np.ndarray, dtype: DType) -> bytes:
    """Elements, or halves of them, with these exponents and any signs and mantissas."""
    exponent_bits, mantissa_bits = dtype.float_bits or (0, 0)
    rest = np.random.default_rng(len(exponents)).integers(0, 1 << 32, len(exponents), dtype=np.uint64)
    rest &= ~np.uint64(((1 << exponent_bits) - 1) << mantissa_bits)
    values = rest | exponents.astype(np.uint64) << np.uint64(mantissa_bits)
    return values.astype(f"<u{dtype.itemsize // dtype.components}").tobytes()


def decode(payload: bytes | memoryview, length: int, dtype: DType) -> bytes:
    out = bytearray(length)
    CODEC.decode(memoryview(payload), memoryview(out), ChunkContext(dtype, 1, length // dtype.itemsize))
    return bytes(out)


def check(data: bytes, dtype: DType, max_escapes: int = ANY) -> bytes:
    """Encode and decode on every path; returns the payload, which is the same on all."""
    assert dtype.float_bits
    payloads = set()
    for path in PATHS:
        api.set_backend(path)
        payload = encode_floats(memoryview(data), dtype.float_bits, max_escapes)
        assert payload is not None
        payloads.add(bytes(payload))
    assert len(payloads) == 1
    found = payloads.pop()
    for path in PATHS:
        api.set_backend(path)
        assert decode(found, len(data), dtype) == data, path
    return found


@pytest.fixture(params=[32, 128])
def lanes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The number of lanes that chunks of any size are written with."""
    monkeypatch.setattr(float_fast, "FEW", 0 if request.param == 128 else 1 << 62)
    return int(request.param)


@pytest.mark.parametrize("name", ["BF16", "F16"])
def test_all_65536_patterns(name: str, lanes: int) -> None:
    """NaN payloads, infinities, subnormals and both zeros among them, in order and shuffled."""
    values = np.arange(65536, dtype="<u2")
    assert check(values.tobytes(), DTYPES[name])[0] == lanes.bit_length() - 1
    check(np.random.default_rng(0).permutation(values).tobytes(), DTYPES[name])


@pytest.mark.parametrize("dtype", [d for d in FLOATS if d.itemsize == 1], ids=lambda d: d.name)
def test_all_256_patterns(dtype: DType, lanes: int) -> None:
    check(bytes(range(256)) * 3 + bytes(range(101)), dtype)


@pytest.mark.parametrize("name", ["F32", "C64"])
def test_special_values(name: str, lanes: int) -> None:
    exponent_bits, mantissa_bits = DTYPES[name].float_bits or (0, 0)
    top = ((1 << exponent_bits) - 1) << mantissa_bits
    odd = [0, 1, (1 << mantissa_bits) - 1, 1 << mantissa_bits, top, top | 1, top | 1 << (mantissa_bits - 1), top - 1]
    values = odd + [v | 1 << 31 for v in odd]
    check(np.array(values * 20, "<u4").tobytes(), DTYPES[name])


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)
@pytest.mark.parametrize("count", [1, 2, 3, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1009, 4095, 4096, 4097, 10007])
def test_sizes(dtype: DType, count: int, lanes: int) -> None:
    check(gaussian(dtype, count), dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)
@pytest.mark.parametrize("count", [1023, 1024, 1025, 2047, 2048, 2049, 5121])
def test_many_short_segments(dtype: DType, count: int, lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float_fast, "LOG_SEGMENT", 10)
    assert check(gaussian(dtype, count), dtype)[1] == 10


@pytest.mark.parametrize("name, around", [("BF16", 0), ("F16", 1), ("F8_E5M2", 33)])
def test_sizes_around_a_segment(name: str, around: int) -> None:
    check(gaussian(DTYPES[name], (1 << LOG_SEGMENT) + around), DTYPES[name], 8)


@pytest.mark.parametrize("around, log_lanes", [(-1, 5), (0, 7), (1, 7)])
def test_large_chunks_have_more_lanes(around: int, log_lanes: int) -> None:
    assert check(gaussian(DTYPES["F8_E4M3"], FEW + around), DTYPES["F8_E4M3"], 8)[0] == log_lanes


@given(dtype=st.sampled_from(FLOATS), data=st.binary(min_size=1, max_size=600), repeat=st.integers(1, 40))
def test_any_bytes(dtype: DType, data: bytes, repeat: int) -> None:
    data = data * repeat
    data = data[: len(data) // dtype.itemsize * dtype.itemsize]
    if data:
        check(data, dtype)


@given(
    dtype=st.sampled_from(FLOATS),
    count=st.integers(1, 3000),
    spread=st.floats(0, 12),
    log_segment=st.integers(10, 12),
    few=st.sampled_from([0, 1 << 62]),
)
def test_any_distribution(dtype: DType, count: int, spread: float, log_segment: int, few: int) -> None:
    exponent_bits = (dtype.float_bits or (0, 0))[0]
    exponents = np.random.default_rng(count).normal(1 << exponent_bits - 1, spread, count * dtype.components)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(float_fast, "LOG_SEGMENT", log_segment)
        patch.setattr(float_fast, "FEW", few)
        check(having(np.clip(exponents, 0, (1 << exponent_bits) - 1).astype(int), dtype), dtype)


# ---- what is decided


def test_one_exponent_costs_little() -> None:
    """A slot of 128 stays with the escape: 0.012 bits an element."""
    values = np.random.default_rng(0).uniform(1, 2, 80_000).astype("<f4")
    assert len(check(values.tobytes(), DTYPES["F32"])) < 3 * 80_000 + 80_000 * 0.012 / 8 + 150


def test_gaussian_weights_shrink_as_much_as_they_can() -> None:
    """Exponents of Gaussian weights carry 2.545 bits; 7-bit frequencies come within 0.02 of that."""
    count = 1 << 20
    payload = encode_floats(memoryview(gaussian(DTYPES["BF16"], count)), (8, 7))
    assert payload is not None
    assert 8 * len(payload) / count < 8 + 2.565


@pytest.mark.parametrize("spread, some", [(1, True), (3, False), (12, False)])
def test_exponents_that_are_spread_too_widely_are_left_to_others(spread: float, some: bool) -> None:
    """Second moments of Adam spread over dozens of binades."""
    values = np.exp(np.random.default_rng(0).standard_normal(1 << 16) * spread - 20).astype("<f4").tobytes()
    assert (encode_floats(memoryview(values), (8, 23)) is not None) == some
    check(values, DTYPES["F32"])


@pytest.mark.parametrize("path", PATHS)
def test_as_many_escapes_as_are_allowed(path: str) -> None:
    """16 of 128 elements are one in eight, and 17 are more. Those beyond the commonest 15 exponents are escapes."""
    api.set_backend(path)
    for escapes, common in [(16, [8] * 7 + [7] * 8), (17, [8] * 6 + [7] * 9)]:
        exponents = np.concatenate([np.repeat(np.arange(100, 115), common), np.arange(escapes)])
        payload = encode_floats(memoryview(having(exponents, BF16)), (8, 7), 8)
        assert len(exponents) == 128 and (payload is not None) == (escapes == 16)


def test_exponents_that_a_sample_misses_are_escapes() -> None:
    """Of 2^18 elements, 64 in every 512 are looked at; all others may have exponents that were never seen."""
    count = 1 << 18
    step = count // (float_fast.SAMPLE // SAMPLE_RUN)
    exponents = np.full(count, 100)
    unseen = np.arange(count)[np.arange(count) % step >= SAMPLE_RUN][::50]
    exponents[unseen] = np.arange(len(unseen)) % 256
    payload = check(having(exponents, DTYPES["BF16"]), DTYPES["BF16"], 8)
    assert (payload[2], payload[3]) == (1, 0)


@given(st.lists(st.integers(0, 1 << 20), min_size=1, max_size=16))
def test_frequencies_sum_to_128_and_none_is_0(counts: list[int]) -> None:
    freqs = float_fast._frequencies(counts)
    assert len(freqs) == len(counts) and min(freqs) >= 1 and sum(freqs) == 128


@given(st.lists(st.integers(1, 1 << 20), min_size=2, max_size=16))
def test_frequencies_are_about_the_best(counts: list[int]) -> None:
    """No slot, moved from one symbol to another, saves more than a hundredth of a bit per symbol."""
    freqs = float_fast._frequencies(counts)
    total = sum(counts)
    saves = max(c * math.log2((f + 1) / f) for c, f in zip(counts, freqs, strict=True))
    costs = min((c * math.log2(f / (f - 1)) for c, f in zip(counts, freqs, strict=True) if f > 1), default=math.inf)
    assert saves - costs < 0.01 * total


def test_empty_and_not_floats_do_not_apply() -> None:
    assert CODEC.encode(memoryview(b""), ChunkContext(DTYPES["BF16"], 0, 1)) is None
    assert CODEC.encode(memoryview(b"1234"), ChunkContext(DTYPES["I32"], 1, 1)) is None
    with pytest.raises(CorruptError):
        decode(bytes(100), 4, DTYPES["I32"])


@pytest.mark.parametrize("dtype", WIDE, ids=lambda d: d.name)
def test_exponents_of_more_than_8_bits_do_not_apply(dtype: DType) -> None:
    data = gaussian(dtype, 100)
    assert CODEC.encode(memoryview(data), ChunkContext(dtype, 1, 100)) is None
    payload = check(gaussian(DTYPES["F32"], 100), DTYPES["F32"])
    with pytest.raises(CorruptError, match="cannot have"):
        decode(payload, len(data), dtype)


# ---- what must be refused


def head_of(payload: bytes) -> tuple[int, int, int]:
    """Offsets of the frequencies, of the padding and of the numbers of the segments."""
    freqs_at = 4 + payload[2] + payload[3]
    head = freqs_at + payload[2] + 1
    return freqs_at, head, head + -head % 8


@pytest.mark.parametrize("path", PATHS)
def test_headers_that_are_refused(path: str) -> None:
    data = gaussian(BF16, 700)
    good = check(data, BF16)
    api.set_backend(path)
    for at, values in [(0, {0, 4, 6, 8, 255}), (1, {0, 9, 25, 64, 255}), (2, {0, 16, 255}), (3, {16, 255})]:
        for value in values:
            with pytest.raises(CorruptError, match="bad header"):
                decode(good[:at] + bytes([value]) + good[at + 1 :], len(data), BF16)
    for length in [*range(60), *range(60, len(good), 13), len(good) - 1]:
        with pytest.raises(CorruptError):
            decode(good[:length], len(data), BF16)
    for wrong in (0, 1, 2, len(data) - 2, len(data) - 1, len(data) + 2, 1 << 26):
        with pytest.raises(CorruptError):
            decode(good, wrong, BF16)
    with pytest.raises(CorruptError):
        decode(good + b"\0", len(data), BF16)


def test_palettes_frequencies_and_padding_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float_fast, "WORTH_A_SLOT", 20)  # more exponents in second place
    data = gaussian(BF16, 700)
    good = bytearray(check(data, BF16))
    freqs_at, head, table_at = head_of(good)
    assert table_at > head and good[3] >= 2

    def changed(at: int, value: int) -> bytes:
        return bytes([*good[:at], value, *good[at + 1 :]])

    for at, what in [
        (4, good[5]),
        (4, good[freqs_at - 1]),
        (freqs_at - 1, good[4]),
        (freqs_at - 1, good[freqs_at - 2]),
    ]:
        with pytest.raises(CorruptError, match="twice"):
            decode(changed(at, what), len(data), BF16)
    for at in range(freqs_at, head):
        with pytest.raises(CorruptError, match="wrong sum"):
            decode(changed(at, good[at] ^ 1), len(data), BF16)
    for at in range(head, table_at):
        with pytest.raises(CorruptError, match="must be zero"):
            decode(changed(at, 0x80), len(data), BF16)
    half = gaussian(DTYPES["F16"], 700)
    narrow = bytearray(check(half, DTYPES["F16"]))
    for at in (4, head_of(narrow)[0] - 1):
        with pytest.raises(CorruptError, match="out of range"):
            decode(bytes([*narrow[:at], 32, *narrow[at + 1 :]]), len(half), DTYPES["F16"])


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


def agreed(payload: bytes, length: int, dtype: DType, reference: ModuleType) -> bytes | None:
    """What all paths and the reference decode, or None if all refuse."""
    results: list[bytes | None] = []
    for path in PATHS:
        api.set_backend(path)
        try:
            results.append(decode(payload, length, dtype))
        except CorruptError:
            results.append(None)
    try:
        results.append(bytes(reference.decode_float_fast(payload, length, dtype.name)))
    except reference.ArchiveError:
        results.append(None)
    assert all(r == results[0] for r in results)
    return results[0]


def damaged(good: bytes, source: random.Random) -> bytes:
    """Bits flipped, a slot or an escape moved, bytes lost; mostly in the header and in the coded streams."""
    bad = bytearray(good)
    freqs_at, head, table_at = head_of(good)
    kind = source.randrange(5)
    if kind == 0:  # a slot from one symbol to another
        a, b = source.randrange(freqs_at, head), source.randrange(freqs_at, head)
        if bad[a]:
            bad[a] -= 1
            bad[b] += 1
    elif kind == 1:  # one more or less of something that is counted
        at = source.choice(range(table_at, min(table_at + 36, len(bad)), 4))
        bad[at] = (bad[at] + source.choice([1, -1, 2])) % 256
    elif kind == 2:
        del bad[source.randrange(len(bad)) :]
    for _ in range(source.choice([1, 1, 2, 6]) if kind > 2 else 0):
        at = source.choice([source.randrange(len(bad)), source.randrange(min(len(bad), 60)), -1 - source.randrange(9)])
        bad[at] ^= 1 << source.randrange(8)
    return bytes(bad)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)
def test_damage_is_refused_or_decoded_alike_by_all(
    dtype: DType, reference: ModuleType, lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No path crashes, and all agree with one another and with the reference."""
    source = random.Random(f"{dtype.name} {lanes}")
    outcomes = []
    for _ in range(80):
        count = source.choice([1, 5, 40, 150, 333, 1500, 2500])
        monkeypatch.setattr(float_fast, "LOG_SEGMENT", source.choice([10, 20]))
        monkeypatch.setattr(float_fast, "WORTH_A_SLOT", source.choice([400, 5]))
        data = gaussian(dtype, count, source.choice([0.02, 1e-3, 1e3]))
        api.set_backend("auto")
        good = encode_floats(memoryview(data), dtype.float_bits or (0, 0), ANY)
        assert good is not None
        outcomes.append(agreed(damaged(bytes(good), source), len(data), dtype, reference))
    assert 0 < outcomes.count(None) < len(outcomes)


@given(
    dtype=st.sampled_from(FLOATS),
    head=st.tuples(st.sampled_from([5, 7]), st.integers(10, 24), st.integers(1, 15), st.integers(0, 15)),
    count=st.integers(0, 1200),
    rest=st.binary(max_size=3000),
)
def test_any_payload_is_refused_or_decodes(
    dtype: DType, head: tuple[int, int, int, int], count: int, rest: bytes, reference: ModuleType
) -> None:
    agreed(bytes(head) + rest, count * dtype.itemsize, dtype, reference)
    agreed(rest, count * dtype.itemsize, dtype, reference)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)
def test_a_chunk_of_no_elements_is_its_header(dtype: DType, reference: ModuleType) -> None:
    """No writer makes one; every reader takes it."""
    assert agreed(bytes([5, 10, 1, 0, 3, 128, 0, 0]), 0, dtype, reference) == b""
    assert agreed(bytes([5, 10, 1, 0, 3, 128, 0]), 0, dtype, reference) is None
    assert agreed(bytes([5, 10, 1, 0, 3, 128, 1, 0]), 0, dtype, reference) is None
    assert agreed(bytes([5, 10, 1, 0, 3, 128, 0, 0, 0]), 0, dtype, reference) is None
