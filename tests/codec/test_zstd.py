"""Codec zstd: planes, metadata, and payloads that lie."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest
import zstandard

from arzstream.codec import zstd
from arzstream.codec.base import ChunkContext
from arzstream.codec.dtypes import DTYPES
from arzstream.codec.registry import get
from arzstream.errors import CorruptError

CTX = ChunkContext(DTYPES["I32"], 1, 1)


def decode(payload: bytes, length: int) -> bytes:
    out = bytearray(length)
    get(3).decode(memoryview(payload), memoryview(out), CTX)
    return bytes(out)


@pytest.mark.parametrize("stride", zstd.STRIDES)
@pytest.mark.parametrize("count", [0, 1, 5, 4000])
def test_round_trip(stride: int, count: int) -> None:
    rng = np.random.default_rng(count)
    data = np.minimum(rng.geometric(0.3, stride * count), 255).astype(np.uint8).tobytes()
    assert decode(zstd.encode_planes(memoryview(data), stride, (1, 3)), len(data)) == data
    noise = rng.bytes(stride * count)
    payload = zstd.encode_planes(memoryview(noise), stride, (1,))
    assert len(payload) <= 4 + 4 * stride + len(noise)
    assert decode(payload, len(noise)) == noise


@pytest.mark.parametrize("data", [b"", b"x", b"some words, some words, some words, some words", bytes(100_000)])
def test_metadata(data: bytes) -> None:
    codec, payload = zstd.encode_metadata(data)
    assert len(payload) <= max(len(data), 1)
    assert zstd.decode_metadata(codec, payload, len(data)) == data
    with pytest.raises(CorruptError):
        zstd.decode_metadata(codec, payload, len(data) + 1)
    with pytest.raises(CorruptError):
        zstd.decode_metadata(4, payload, len(data))


def test_metadata_that_claims_to_be_huge_is_not_allocated() -> None:
    _, payload = zstd.encode_metadata(bytes(1000))
    with pytest.raises(CorruptError, match="impossible"):
        zstd.decode_metadata(3, payload, 1 << 40)


def frame(data: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)  # type: ignore[arg-type]


def payload(stride: int, *planes: tuple[int, bytes]) -> bytes:
    head = struct.pack("<B3x", stride) + b"".join(struct.pack("<I", word) for word, _ in planes)
    return head + b"".join(plane for _, plane in planes)


GOOD = frame(b"a" * 100)
STORED = 1 << 31


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\1\0\0",
        payload(3, (len(GOOD), GOOD)),
        payload(0),
        b"\1\1\0\0" + payload(1, (len(GOOD), GOOD))[4:],
        payload(1, (len(GOOD) + 1, GOOD)),
        payload(1, (len(GOOD) - 1, GOOD)),
        payload(1, (len(GOOD), GOOD)) + b"\0",
        payload(1, (len(GOOD) + 1, GOOD + b"\0")),
        payload(1, (2 * len(GOOD), GOOD * 2)),
        payload(1, (99 | STORED, b"a" * 99)),
        payload(1, (101 | STORED, b"a" * 101)),
        payload(1, (0, b"")),
        payload(2, (50 | STORED, b"a" * 50)),
        payload(8, (len(GOOD), GOOD)),
        payload(1, (len(f := frame(b"a" * 101)), f)),
        payload(1, (len(f := frame(b"a" * 100, write_content_size=False)), f)),
        payload(1, (len(f := GOOD[:-3]), f)),
    ],
)
def test_payloads_that_are_refused(bad: bytes) -> None:
    with pytest.raises(CorruptError):
        decode(bad, 100)


def test_damage_never_escapes_as_another_error() -> None:
    source = random.Random(1)
    data = np.minimum(np.random.default_rng(0).geometric(0.1, 4000), 255).astype(np.uint8).tobytes()
    good = zstd.encode_planes(memoryview(data), 4, (3,))
    for _ in range(2000):
        bad = bytearray(good)
        for _ in range(source.choice([1, 3])):
            bad[source.choice([source.randrange(60), source.randrange(len(bad))])] ^= 1 << source.randrange(8)
        try:
            decode(bytes(bad[: source.choice([len(bad), source.randrange(len(bad))])]), len(data))
        except CorruptError:
            pass
