"""Prologue, frame header and trailer: what one flipped bit does, and what each field may hold."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arzstream.container.layout import FrameHeader, Prologue, Trailer, align
from arzstream.errors import ArzError, CorruptError, UnsupportedError
from arzstream.kernels.digests import crc32c

PROLOGUE = Prologue(bytes(range(16)))
HEADER = FrameHeader(4, 3, 17, bytes(range(8)), 5, 6, 700, 900, 1 << 63, 12345)
TRAILER = Trailer(PROLOGUE, 1024, 512, 960, 1664, bytes(range(32)))

PARTS: list[tuple[bytes, Callable[[bytes], Any]]] = [
    (PROLOGUE.encode(), Prologue.decode),
    (HEADER.encode(), FrameHeader.decode),
    (TRAILER.encode(), lambda data: Trailer.decode(data, 1664)),
]


def test_each_part_comes_back() -> None:
    assert [decode(data) for data, decode in PARTS] == [PROLOGUE, HEADER, TRAILER]
    assert [len(data) for data, _ in PARTS] == [64, 128, 128]


@pytest.mark.parametrize(("data", "decode"), PARTS, ids=["prologue", "header", "trailer"])
def test_every_flipped_bit_is_noticed(data: bytes, decode: Callable[[bytes], Any]) -> None:
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises((CorruptError, UnsupportedError)):
            decode(bytes(flipped))


@pytest.mark.parametrize(("data", "decode"), PARTS[:2], ids=["prologue", "header"])
def test_every_shorter_part_is_refused(data: bytes, decode: Callable[[bytes], Any]) -> None:
    for length in range(len(data)):
        with pytest.raises(CorruptError):
            decode(data[:length])


def prologue_with(at: int, value: bytes) -> bytes:
    body = bytearray(PROLOGUE.encode()[:60])
    body[at : at + len(value)] = value
    return bytes(body) + struct.pack("<I", crc32c(bytes(body)))


def header_with(at: int, value: bytes) -> bytes:
    body = bytearray(HEADER.encode()[:124])
    body[at : at + len(value)] = value
    return bytes(body) + struct.pack("<I", crc32c(bytes(body)))


def trailer_with(at: int, value: bytes) -> bytes:
    body = bytearray(TRAILER.encode()[:116])
    body[at : at + len(value)] = value
    return bytes(body) + struct.pack("<I", crc32c(bytes(body))) + TRAILER.encode()[120:]


@pytest.mark.parametrize(
    ("at", "value", "error"),
    [
        (8, b"\x02\x00", UnsupportedError),
        (8, b"\x00\x00", UnsupportedError),
        (10, b"\x01\x00", UnsupportedError),
        (12, b"\xff\xff", None),
        (14, b"\x06", CorruptError),
        (14, b"\x07", None),
        (14, b"\x28", None),
        (14, b"\x29", CorruptError),
        (15, b"\x00", None),
        (15, b"\x1c", None),
        (15, b"\x1d", CorruptError),
        (16, b"\x01", UnsupportedError),
        (23, b"\x80", UnsupportedError),
        (24, b"\xff" * 8, None),
        (48, b"\x01", CorruptError),
        (59, b"\x01", CorruptError),
    ],
)
def test_fields_of_the_prologue(at: int, value: bytes, error: type[ArzError] | None) -> None:
    data = prologue_with(at, value)
    if error is None:
        assert Prologue.decode(data).encode() == data
    else:
        with pytest.raises(error):
            Prologue.decode(data)


def test_the_major_version_is_judged_before_the_checksum() -> None:
    data = bytearray(PROLOGUE.encode())
    data[8] = 2
    with pytest.raises(UnsupportedError, match="version 2"):
        Prologue.decode(bytes(data))


@pytest.mark.parametrize("at", [12, 15, 72, 100, 123])
def test_reserved_bytes_of_a_header_are_zero(at: int) -> None:
    with pytest.raises(CorruptError, match="reserved"):
        FrameHeader.decode(header_with(at, b"\x01"))


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, b"\x02\x00"),
        (8, b"\x01"),
        (40, struct.pack("<Q", 960)),
        (40, struct.pack("<Q", 2**64 - 1)),
        (40, struct.pack("<Q", 1025)),
        (48, struct.pack("<Q", 448)),
        (48, struct.pack("<Q", 0)),
        (48, struct.pack("<Q", 2**64 - 512)),
        (56, struct.pack("<Q", 0)),
        (56, struct.pack("<Q", 1088)),
        (56, struct.pack("<Q", 961)),
        (64, struct.pack("<Q", 1665)),
        (104, b"\x01"),
        (115, b"\x01"),
    ],
)
def test_fields_of_the_trailer(at: int, value: bytes) -> None:
    assert Trailer.decode(trailer_with(0, b""), 1664) == TRAILER
    with pytest.raises((CorruptError, UnsupportedError)):
        Trailer.decode(trailer_with(at, value), 1664)


def test_a_trailer_knows_the_length_of_its_file() -> None:
    for size in (1663, 1665, 1664 + 64, 0):
        with pytest.raises(CorruptError):
            Trailer.decode(TRAILER.encode(), size)


@given(st.integers(0, 1 << 62))
def test_alignment(length: int) -> None:
    aligned = align(length)
    assert aligned % 64 == 0 and length <= aligned < length + 64
