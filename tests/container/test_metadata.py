"""Canonical metadata has one encoding, and everything else is refused."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from arzstream.codec import zstd
from arzstream.container import metadata
from arzstream.errors import CorruptError, LimitError
from arzstream.limits import Limits

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.sampled_from([127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, -32, -33, -128, -129, -32768, -32769])
    | st.text(max_size=40)
    | st.binary(max_size=40)
    | st.sampled_from(["x" * 31, "x" * 32, "x" * 255, "x" * 256, b"y" * 255, b"y" * 256, "z" * 65536])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=17) | st.dictionaries(st.text(max_size=9), inner, max_size=17),
    max_leaves=40,
).filter(lambda value: depth(value) <= 8)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@given(VALUES)
def test_what_is_packed_comes_back(value: Any) -> None:
    data = metadata.pack(value)
    again = metadata.unpack(data)
    assert again == value and metadata.pack(again) == data


@given(st.dictionaries(st.text(max_size=5), st.integers(0, 9), min_size=2), st.randoms())
def test_the_order_of_insertion_does_not_matter(value: dict[str, int], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)
    assert metadata.pack(dict(items)) == metadata.pack(value)


@given(VALUES, st.data())
def test_whatever_is_accepted_is_the_only_encoding_of_its_value(value: Any, data: st.DataObject) -> None:
    mutated = bytearray(metadata.pack(value))
    for _ in range(data.draw(st.integers(1, 3))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    try:
        accepted = metadata.unpack(bytes(mutated))
    except CorruptError:
        return
    assert metadata.pack(accepted) == mutated


@given(st.binary(max_size=60))
@example(b"")
@example(b"\xc1")
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xdf\xff\xff\xff\xff\xa0\xc0")
@example(b"\xc6\xff\xff\xff\xff")
def test_any_bytes_are_read_or_refused_as_corrupt(data: bytes) -> None:
    try:
        assert metadata.pack(metadata.unpack(data)) == data
    except CorruptError:
        pass


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xcc\x05", id="5 in two bytes"),
        pytest.param(b"\xcd\x00\xff", id="255 in three"),
        pytest.param(b"\xce\x00\x00\xff\xff", id="65535 in five"),
        pytest.param(b"\xcf" + struct.pack(">Q", 2**32 - 1), id="2^32 - 1 in nine"),
        pytest.param(b"\xd0\x05", id="5 as a signed number"),
        pytest.param(b"\xd3" + struct.pack(">q", 2**40), id="2^40 as a signed number"),
        pytest.param(b"\xd0\xff", id="-1 in two bytes"),
        pytest.param(b"\xd9\x01a", id="short string, long form"),
        pytest.param(b"\xc5\x00\x01a", id="short binary, long form"),
        pytest.param(b"\xdc\x00\x01\xc0", id="short array, long form"),
        pytest.param(b"\xde\x00\x01\xa1a\xc0", id="short map, long form"),
        pytest.param(b"\x82\xa1b\xc0\xa1a\xc0", id="keys out of order"),
        pytest.param(b"\x82\xa1a\xc0\xa1a\xc0", id="key twice"),
        pytest.param(b"\x81\x01\xc0", id="integer key"),
        pytest.param(b"\x81\xc4\x01a\xc0", id="binary key"),
        pytest.param(b"\xca\x00\x00\x00\x00", id="float"),
        pytest.param(b"\xcb" + bytes(8), id="double"),
        pytest.param(b"\xd4\x05\x00", id="extension"),
        pytest.param(b"\xd6\xff\x00\x00\x00\x00", id="timestamp"),
        pytest.param(b"\xa2\xff\xfe", id="string that is not UTF-8"),
        pytest.param(b"\xa3\xed\xa0\x80", id="string with a surrogate"),
        pytest.param(b"\xc0\xc0", id="something after the value"),
        pytest.param(b"\x92\xc0", id="array cut off"),
        pytest.param(b"\x91" * 9 + b"\xc0", id="nine deep"),
        pytest.param(b"\x91" * 100_000, id="very deep"),
    ],
)
def test_everything_else_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptError):
        metadata.unpack(data)


def test_keys_are_ordered_by_their_utf8_bytes_not_by_code_units() -> None:
    assert metadata.unpack(metadata.pack({"\uffff": 1, "\U00010000": 2})) == {"\uffff": 1, "\U00010000": 2}
    assert metadata.pack({"\uffff": 1, "\U00010000": 2})[1:5] == b"\xa3\xef\xbf\xbf"


def test_eight_deep_is_read() -> None:
    assert metadata.unpack(b"\x91" * 8 + b"\xc0") == [[[[[[[[None]]]]]]]]


@pytest.mark.parametrize(
    "value", [1.5, object(), {1: 2}, {"a": {b"b": 1}}, [[[[[[[[[1]]]]]]]]], 2**64, -(2**63) - 1, "\ud800"]
)
def test_what_has_no_canonical_form_is_not_written(value: Any) -> None:
    with pytest.raises((CorruptError, OverflowError, UnicodeEncodeError)):
        metadata.pack(value)


def test_more_bytes_than_the_limit_are_not_looked_at() -> None:
    with pytest.raises(LimitError):
        metadata.unpack(metadata.pack("x" * 100), Limits(metadata_bytes=100))


@pytest.mark.parametrize("filler", [b"\xc0", b"\x90", b"\x80", b"\xa0"])
def test_a_few_kilobytes_do_not_become_gigabytes_of_objects(filler: bytes) -> None:
    """64 MiB of empty arrays are five kilobytes of zstd; as Python objects they would be 4 GiB."""
    inner = 60_000
    plain = b"\xdc" + struct.pack(">H", 1000) + (b"\xdc" + struct.pack(">H", inner) + filler * inner) * 1000
    assert len(zstd.encode_metadata(plain)[1]) < 10_000
    tracemalloc.start()
    try:
        with pytest.raises(LimitError):
            metadata.unpack(plain, Limits(metadata_items=100_000))
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_the_limit_of_items_leaves_room_for_the_largest_index() -> None:
    """An index of 64 MiB has about 280 bytes and 70 items a tensor."""
    assert Limits().metadata_items >= Limits().metadata_bytes // 280 * 66
