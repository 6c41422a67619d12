"""flax's msgpack: arrays are found by the keys that lead to them; growing files; what else msgpack holds is kept."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import pytest

from arzstream.formats.base import Layout
from arzstream.formats.flax_msgpack import _DTYPES, FlaxParser

Whole = Callable[..., Layout]
Grow = Callable[..., list[Layout]]
NAME = "flax_model.msgpack"


def packed(tree: Any) -> bytes:
    """What ``flax.serialization.msgpack_serialize`` writes: arrays are extension 1, complex numbers 2, scalars 3."""

    def extension(value: Any) -> msgpack.ExtType:
        if isinstance(value, np.ndarray):
            return msgpack.ExtType(1, parts(value))
        if isinstance(value, np.generic):
            return msgpack.ExtType(3, parts(np.asarray(value)))
        return msgpack.ExtType(2, msgpack.packb((value.real, value.imag)))

    def parts(value: np.ndarray) -> bytes:
        return bytes(msgpack.packb((value.shape, value.dtype.name, value.tobytes()), use_bin_type=True))

    return bytes(msgpack.packb(tree, default=extension, strict_types=True))


def dtype_of(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name) if hasattr(ml_dtypes, name) else name)


def test_arrays_of_every_type_are_found_by_their_keys(whole: Whole) -> None:
    arrays = {name: np.random.default_rng(0).integers(0, 2, (30, 4, 5)).astype(dtype_of(name)) for name in _DTYPES}
    data = packed({"params": {"Dense_0": arrays}, "step": np.int32(7), "rate": 1 + 2j, "epoch": 99999, "loss": 0.25})
    layout = whole(data, NAME)
    found = {v.name: (s.dtype, v.shape, data[s.offset : s.end]) for s in layout.storages for v in s.views}
    assert layout.format == "flax-msgpack" and layout.note == ""
    assert found == {f"params.Dense_0.{k}": (_DTYPES[k], (30, 4, 5), a.tobytes()) for k, a in arrays.items()}


@pytest.mark.parametrize("shape", [(), (0,), (3,), (1,) * 20, (200, 300)])
def test_every_length_of_header_is_read(whole: Whole, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, np.float32)
    layout = whole(packed({f"key {i}": array for i in range(20)}), NAME)
    assert [v.name for s in layout.storages for v in s.views] == [f"key {i}" for i in range(20)]


def test_large_arrays_in_pieces_are_tensors_of_one_dimension(whole: Whole) -> None:
    """As flax writes arrays of a gigabyte and more."""
    piece = np.ones(1000, np.float32)
    tree = {"w": {"__msgpack_chunked_array__": True, "shape": {"0": 2000}, "chunks": {"0": piece, "1": piece}}}
    layout = whole(packed(tree), NAME)
    assert [v.name for s in layout.storages for v in s.views] == ["w.chunks.0", "w.chunks.1"]


def test_what_is_not_understood_is_said(whole: Whole) -> None:
    short = msgpack.ExtType(1, msgpack.packb(([3], "float32", bytes(11))))
    strange = msgpack.ExtType(1, msgpack.packb(([3], "float6", bytes(12))))
    torn = msgpack.ExtType(1, b"\x93\x91")
    layout = whole(packed({"a": np.ones(3), "b": short, "c": strange, "d": torn}), NAME)
    assert [v.name for s in layout.storages for v in s.views] == ["a"]
    assert all(f"'{key}'" in layout.note for key in "bcd")
    for data in (packed({"a": [1, 2]}), packed([1]), packed({"a": np.ones(3)}) + b"\0", b"\xc1", b"{}"):
        assert whole(data, NAME).format == "opaque" and whole(data, NAME).note
        assert whole(data, "other").note == ""


def test_a_growing_file_is_coded_as_it_lands(grow: Grow, whole: Whole) -> None:
    data = packed({"params": {f"layer {i}": {"kernel": np.ones((20, i + 1))} for i in range(5)}, "step": 5})
    final = whole(data, NAME)
    for frontier, layout in enumerate(grow(data, NAME)):
        assert set(layout.storages) <= set(final.storages)
        assert layout.complete == (frontier == len(data))
        assert all(s in layout.storages for s in final.storages if s.offset <= frontier)


def test_a_file_without_a_telling_name_is_known_by_its_arrays(whole: Whole) -> None:
    assert whole(packed({"params": {"w": np.ones(30)}}), "checkpoint_100").format == "flax-msgpack"
    assert whole(packed({"params": {"w": 1, "x": "some text"}}), "checkpoint_100").format == "opaque"


def test_long_keys_around_many_arrays_take_no_memory_for_each() -> None:
    array = msgpack.packb(msgpack.ExtType(1, msgpack.packb(((1,), "uint8", b"x"))))
    count = 200_000
    items = b"".join(msgpack.packb(number) + array for number in range(count))
    data = b"\x81" + msgpack.packb("k" * 1000) + b"\xdf" + count.to_bytes(4, "big") + items
    tracemalloc.start()
    try:
        layout = FlaxParser().update(lambda o, n: data[o : o + n], len(data), True)
        memory = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert layout.format == "opaque" and "items" in layout.note and memory < 150 << 20
