"""The digests are those of their specifications, whatever kind of buffer they are given."""

from __future__ import annotations

import hashlib

import pytest

from arzstream.kernels import digests

KINDS = [bytes, bytearray, memoryview, lambda b: memoryview(bytearray(b))]


@pytest.mark.parametrize("kind", KINDS)
def test_known_answers(kind) -> None:
    assert digests.crc32c(kind(b"123456789")) == 0xE3069283
    assert digests.xxh3_64(kind(b"")) == 0x2D06800538D394C2
    assert digests.blake3(kind(b"")).hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


@pytest.mark.parametrize("kind", KINDS)
def test_hashers_take_pieces(kind) -> None:
    whole = bytes(range(256)) * 300
    blake, sha = digests.blake3_hasher(), digests.sha256_hasher()
    for i in range(0, len(whole), 1000):
        blake.update(kind(whole[i : i + 1000]))
        sha.update(kind(whole[i : i + 1000]))
    assert blake.digest() == digests.blake3(whole)
    assert sha.digest() == hashlib.sha256(whole).digest()
