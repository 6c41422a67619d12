"""Codec quant_blocks: exact for any bytes, the same on every path, what pays is used, safe with hostile payloads."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arzstream.codec import nibbles, quant_blocks
from arzstream.codec.base import ChunkContext
from arzstream.codec.block_layouts import LAYOUTS, OTHERS, find_period
from arzstream.codec.dtypes import DTYPES
from arzstream.codec.quant_blocks import QuantBlocks, decode_records, encode_blocks, encode_records
from arzstream.errors import CorruptError
from arzstream.kernels import api

PATHS = [*api.cpu_features(), "numpy"]
CODEC = QuantBlocks()
RNG = np.random.default_rng(0)


def matrix(rows: int, cols: int, spread: float = 0.4) -> np.ndarray:
    """Gaussian weights whose rows and columns have scales."""
    rng = np.random.default_rng(rows * cols)
    scales = np.exp(rng.normal(0, spread, (rows, 1)) + rng.normal(0, spread, cols))
    return (rng.standard_normal((rows, cols)) * scales * 0.02).astype(np.float32)


def halves(x: np.ndarray) -> np.ndarray:
    return x.astype("<f2").view(np.uint8)


def q8_0(values: np.ndarray) -> np.ndarray:
    blocks = values.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / 127
    return np.concatenate([halves(scale), np.rint(blocks / scale).astype(np.int8).view(np.uint8)], axis=1)


def q4_1(values: np.ndarray) -> np.ndarray:
    blocks = values.reshape(-1, 32)
    low = blocks.min(axis=1, keepdims=True)
    scale = (blocks.max(axis=1, keepdims=True) - low) / 15
    codes = np.clip(np.rint((blocks - low) / scale), 0, 15).astype(np.uint8)
    return np.concatenate([halves(scale), halves(low), codes[:, :16] | codes[:, 16:] << 4], axis=1)


def q4_0(values: np.ndarray) -> np.ndarray:
    blocks = values.reshape(-1, 32)
    scale = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], 1) / -8
    codes = np.clip(np.floor(blocks / scale + 8.5), 0, 15).astype(np.uint8)
    return np.concatenate([halves(scale), codes[:, :16] | codes[:, 16:] << 4], axis=1)


def decode(payload: bytes, length: int) -> bytes:
    out = bytearray(length)
    decode_records(memoryview(payload), memoryview(out))
    return bytes(out)


def same_on_all(data: np.ndarray, row_bytes: int, period: int | None, contexts: bool = True) -> bytes | None:
    """Encode and decode on every path; the payload is the same on all."""
    payloads = set()
    for path in PATHS:
        api.set_backend(path)
        payloads.add(encode_records(data, row_bytes, period, contexts))
    assert len(payloads) == 1
    payload = payloads.pop()
    for path in PATHS if payload is not None else ():
        api.set_backend(path)
        assert decode(payload, len(data)) == data.tobytes(), path
    return payload


def parts(payload: bytes) -> list[quant_blocks._Described]:
    record, _, count, _ = quant_blocks._HEADER.unpack_from(payload)
    return list(quant_blocks._read_parts(memoryview(payload), record, count))


@pytest.mark.parametrize("contexts", [False, True])
@pytest.mark.parametrize("period", LAYOUTS)
def test_every_layout(period: int, contexts: bool) -> None:
    data = RNG.integers(0, 256, (600, period)).astype(np.uint8)
    data[:, :4] >>= 4  # something to gain
    data[:, -2:] >>= 4
    payload = same_on_all(data.reshape(-1), 30 * period, period, contexts)
    assert sum(part.length for part in LAYOUTS[period]) == period
    assert payload is not None or period > 55


@given(st.binary(min_size=1, max_size=800), st.sampled_from([None, *LAYOUTS]), st.integers(1, 20), st.booleans())
def test_any_bytes(data: bytes, period: int | None, repeat: int, contexts: bool) -> None:
    array = np.frombuffer(data * repeat, np.uint8)
    record = period or 1
    array = array[: len(array) // record * record]
    if len(array):
        same_on_all(array, min(len(array), 7 * record), period, contexts)


@pytest.mark.parametrize("rows, cols", [(1, 32), (3, 64), (70, 320), (257, 96)])
@pytest.mark.parametrize("quantise, period", [(q8_0, 34), (q4_1, 20), (q4_0, 18)])
def test_blocks_of_weights(quantise, period: int, rows: int, cols: int) -> None:  # type: ignore[no-untyped-def]
    data = np.ascontiguousarray(quantise(matrix(rows, cols))).reshape(-1)
    payload = same_on_all(data, len(data) // rows, period)
    assert (payload is None) == (len(data) < 10000)


def test_classes_are_used_where_they_pay() -> None:
    for quantise, period, gain in ((q8_0, 34, 0.985), (q4_1, 20, 0.99), (q4_0, 18, 0.995)):
        data = np.ascontiguousarray(quantise(matrix(512, 768))).reshape(-1)
        plain = same_on_all(data, len(data) // 512, period, contexts=False)
        under = same_on_all(data, len(data) // 512, period)
        assert plain is not None and under is not None
        assert len(under) < gain * len(plain), (period, len(under) / len(plain))
        assert parts(under)[-1].rule.classes > 1 and parts(plain)[-1].rule.classes == 1


def test_scales_of_columns_are_used_for_int8_where_they_pay() -> None:
    values = matrix(512, 512, 0.5)
    codes = np.rint(values / np.abs(values).max(axis=1, keepdims=True) * 127).astype(np.int8).view(np.uint8).reshape(-1)
    payload = same_on_all(codes, 512, None)
    assert payload is not None and parts(payload)[0].rule.columns
    flat = matrix(512, 512, 0.0)
    codes = np.rint(flat / np.abs(flat).max() * 127).astype(np.int8).view(np.uint8).reshape(-1)
    payload = same_on_all(codes, 512, None)
    assert payload is not None and not parts(payload)[0].rule.columns


def test_what_does_not_shrink_is_stored_as_it_is() -> None:
    data = RNG.integers(0, 256, (4000, 34)).astype(np.uint8)
    data[:, 1] = 7
    payload = same_on_all(data.reshape(-1), 340, 34)
    assert payload is not None
    assert [part.kind for part in parts(payload)] == [quant_blocks._RAW, quant_blocks._BYTES, quant_blocks._RAW]
    assert same_on_all(RNG.integers(0, 256, 34000).astype(np.uint8), 340, 34) is None
    assert same_on_all(RNG.integers(0, 256, 100000).astype(np.uint8), 100, None) is None


@pytest.mark.parametrize("quantise, period", [(q8_0, 34), (q4_1, 20), (q4_0, 18)])
def test_the_period_is_found(quantise, period: int) -> None:  # type: ignore[no-untyped-def]
    # 5760 is divided by all of 18, 20, 24 and 36 blocks' lengths
    values = matrix(64, 32 * 18 * 20 // 2)
    data = np.ascontiguousarray(quantise(values)).reshape(-1)
    assert find_period(data, len(data) // 64) == period
    assert find_period(data, 7) is None


@pytest.mark.parametrize("kind, length", [("TQ1_0", 54), ("TQ2_0", 66), ("MXFP4", 17), ("Q5_0", 22), ("Q5_1", 24)])
def test_blocks_that_the_gguf_package_makes_are_split(kind: str, length: int) -> None:
    values = matrix(128, 256 * 17)
    data = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind]).reshape(-1)
    assert find_period(data, len(data) // 128) == length
    payload = same_on_all(data, len(data) // 128, length, contexts=False)
    assert payload is not None and len(parts(payload)) > 1
    planes = encode_records(data, len(data) // 128, None, contexts=False)
    assert planes is None or len(payload) < 0.995 * len(planes)


def test_of_two_types_with_blocks_of_a_length_the_right_one_is_chosen() -> None:
    rows, blocks = 64, 40
    iq2_xxs = RNG.integers(0, 256, (rows * blocks, 66)).astype(np.uint8)
    iq2_xxs[:, 1] = 5 + RNG.integers(0, 3, rows * blocks)  # d
    iq2_xxs[:, 9::8] = 16 * RNG.integers(6, 9, (rows * blocks, 8)) + (iq2_xxs[:, 9::8] & 15)  # scales above signs
    tq2_0 = RNG.choice(np.array([0x15, 0x2A, 0x55, 0x59], np.uint8), (rows * blocks, 66))
    tq2_0[:, 64] = RNG.integers(0, 256, rows * blocks)
    tq2_0[:, 65] = 5
    for data, layout in ((iq2_xxs, LAYOUTS[66]), (tq2_0, OTHERS[66])):
        payload = same_on_all(data.reshape(-1), 66 * blocks, 66)
        assert payload is not None
        assert [part.length for part in parts(payload)] == [part.length for part in layout]


def test_bytes_without_a_period_have_none() -> None:
    for noise in (RNG.integers(0, 256, 1 << 17), RNG.normal(128, 30, 1 << 17).astype(int) % 256, np.zeros(1 << 17)):
        assert find_period(noise.astype(np.uint8), 18 * 20 * 17) in (None, 17, 18)
    assert find_period(RNG.integers(0, 256, 1 << 17).astype(np.uint8), 18 * 20 * 17) is None


@pytest.mark.parametrize("name", DTYPES)
def test_which_types_it_is_for(name: str) -> None:
    dtype = DTYPES[name]
    data = np.clip(RNG.normal(0, 20, 8192), -127, 127).astype(np.int8).tobytes()
    payload = encode_blocks(memoryview(data), ChunkContext(dtype, 8, 1024 // dtype.itemsize))
    assert (payload is None) == (dtype.float_bits is not None or dtype.itemsize > 4)
    assert CODEC.encode(memoryview(b""), ChunkContext(dtype, 0, 1)) is None


def test_products_of_nibbles_are_frequencies() -> None:
    codes = np.zeros((4, 16), np.uint16)
    codes[0] = 256
    codes[1, :2] = 1, 4095
    codes[2] = [4081, *[1] * 15]
    freqs = nibbles.expand(codes)
    assert freqs[:3].sum(axis=1).tolist() == [4096] * 3 and freqs[:3].min() == 1 and freqs.max() < 4096
    assert (freqs[0] == 16).all() and not freqs[3].any()


@pytest.mark.parametrize("path", PATHS)
def test_every_byte_damaged_is_refused_or_decodes(path: str) -> None:
    """A checksum finds wrong values; here nothing worse than wrong values may come of it."""
    data = np.ascontiguousarray(q4_1(matrix(40, 320))).reshape(-1)
    api.set_backend(path)
    payload = encode_records(data, len(data) // 40, 20)
    assert payload is not None
    refused = 0
    places = range(0, len(payload) if path != "numpy" else 700, 1 if path != "numpy" else 3)
    for at in places:
        for bit in (1, 0x80):
            bad = bytearray(payload)
            bad[at] ^= bit
            try:
                decode(bytes(bad), len(data))
            except CorruptError:
                refused += 1
    assert refused > 100


@pytest.mark.parametrize("path", PATHS)
def test_every_truncation_is_refused(path: str) -> None:
    api.set_backend(path)
    data = np.clip(RNG.normal(0, 20, 1500), -127, 127).astype(np.int8).view(np.uint8)
    payload = encode_records(data, 100, None)
    assert payload is not None
    for end in range(len(payload)):
        with pytest.raises(CorruptError):
            decode(payload[:end], len(data))
    with pytest.raises(CorruptError):
        decode(payload + b"\0", len(data))
    with pytest.raises(CorruptError):
        decode(payload, len(data) - 1)


@given(st.binary(max_size=400), st.integers(0, 600))
def test_any_payload_is_refused_or_decodes(payload: bytes, length: int) -> None:
    for path in PATHS:
        api.set_backend(path)
        try:
            decode(payload, length)
        except CorruptError:
            pass
