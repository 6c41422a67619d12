"""HDF5: datasets in one piece are found by their names; what is not understood is said; damage does no harm."""

from __future__ import annotations

import io
import random
import struct
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import pytest

from arzstream.formats.base import Layout, problem_of
from arzstream.formats.hdf5 import Hdf5Parser

Whole = Callable[..., Layout]
RNG = np.random.default_rng(0)
TYPES = ["<f2", "<f4", "<f8", *(f"<{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8))]


def written(fill: Callable[[Any], None], libver: Any = None) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=libver) as file:
        fill(file)
    return buffer.getvalue()


def check(data: bytes, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Shapes by name, after comparing every tensor with what h5py reads."""
    found = {}
    with h5py.File(io.BytesIO(data)) as file:
        for storage in layout.storages:
            for view in storage.views:
                array = file[view.name.replace(".", "/")][()]
                assert array.tobytes() == data[storage.offset : storage.end] and array.shape == view.shape
                found[view.name] = view.shape
    return found


@pytest.mark.parametrize("libver", [None, ("earliest", "v108"), ("v110", "v110"), "latest"])
def test_datasets_of_every_type_and_version_are_found(whole: Whole, libver: Any) -> None:
    def fill(file: Any) -> None:
        for dtype in TYPES:
            file[f"{dtype[1]}/{dtype[2]}/kernel:0"] = RNG.integers(0, 2, (30, 40)).astype(dtype)
        file["scalar"] = np.float32(3)

    data = written(fill, libver)
    layout = whole(data, "model.h5")
    expected = {f"{dtype[1]}.{dtype[2]}.kernel:0": (30, 40) for dtype in TYPES} | {"scalar": ()}
    assert (layout.format, layout.note) == ("hdf5", "") and check(data, layout) == expected
    kinds = {view.name: storage.dtype for storage in layout.storages for view in storage.views}
    assert kinds["f.2.kernel:0"] == "F16" and kinds["u.8.kernel:0"] == "U64" and kinds["i.1.kernel:0"] == "I8"


def test_groups_with_hundreds_of_datasets_are_walked(whole: Whole) -> None:
    data = written(lambda file: [file.create_dataset(f"a/{i}", data=np.full(99, i)) for i in range(700)])
    assert len(check(data, whole(data, "model.h5"))) == 700


def test_what_is_not_understood_is_said(whole: Whole) -> None:
    def fill(file: Any) -> None:
        file["weights"] = RNG.standard_normal(5000)
        file.create_dataset("chunked", data=np.ones((20, 20)), chunks=(10, 10), compression="gzip")
        file["big"] = np.ones(5, ">f4")
        file["flags"] = np.ones(5, bool)
        file["soft"] = h5py.SoftLink("/weights")
        file["hard"] = file["big"]

    layout = whole(written(fill), "model.h5")
    assert [view.name for storage in layout.storages for view in storage.views] == ["weights"]
    assert "'chunked' is kept as bytes: it is in chunks" in layout.note and "and " not in layout.note.split(";")[0]


def test_a_file_that_grows_is_not_waited_for(grow: Callable[..., list[Layout]]) -> None:
    data = written(lambda file: file.create_dataset("w", data=np.ones(999)))
    assert all(layout.format == "opaque" for layout in grow(data, "model.h5", [0, 100, len(data)]))


def test_damaged_files_never_raise_or_break_a_layout(whole: Whole) -> None:
    data = written(lambda file: [file.create_dataset(f"a/{i}", data=np.full(30, i)) for i in range(20)])
    rng = random.Random(0)
    for size in (0, 9, 20, 96, len(data) // 2, len(data) - 1):
        assert whole(data[:size], "model.h5").format == "opaque" and (whole(data[:size], "model.h5").note or size < 9)
    for _ in range(3000):
        damaged = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            at, width = rng.randrange(len(data) - 8), rng.choice([1, 2, 4, 8])
            damaged[at : at + width] = rng.choice([0, 1, 0xFF, 1 << 40, rng.getrandbits(64)]).to_bytes(9, "little")[
                :width
            ]
        seen = bytes(damaged)
        layout = Hdf5Parser().update(lambda o, n, d=seen: d[o : o + n], len(seen), True)
        assert problem_of(layout, len(seen)) == "" and layout.complete


def test_names_that_lie_beyond_the_end_are_not_read(whole: Whole) -> None:
    """The offset of a link's name, in the symbol table, is a number of 8 bytes."""
    data = written(lambda file: file.create_dataset("a/w", data=np.ones(99)))
    entries = data.index(b"SNOD") + 8
    for offset in (len(data), 1 << 56, (1 << 63) - 1, (1 << 64) - 1):
        damaged = data[:entries] + offset.to_bytes(8, "little") + data[entries + 8 :]
        layout = whole(damaged, "model.h5")
        assert layout.format == "opaque" and "cut off" in layout.note


def traced(data: bytes) -> tuple[Layout, int]:
    """The layout, and the bytes of memory it took."""
    tracemalloc.start()
    try:
        return Hdf5Parser().update(lambda o, n: data[o : o + n], len(data), True), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_header_that_goes_on_in_itself_is_left_at_once() -> None:
    data = bytearray(written(lambda file: file.create_dataset("w", data=np.ones(99))))
    first = int.from_bytes(data[64:72], "little") + 16
    data[first : first + 24] = struct.pack("<HHIQQ", 0x10, 16, 0, first, 24)
    begin = time.process_time()
    layout, memory = traced(bytes(data))
    assert layout.note == "not a valid HDF5 file: parts of it overlap"
    assert memory < 1 << 20 and time.process_time() - begin < 1


def test_a_tree_that_leads_to_the_same_names_a_million_times_takes_no_memory() -> None:
    data = bytearray(written(lambda file: file.create_dataset("w", data=np.ones(99))))
    names = data.index(b"HEAP")
    place = int.from_bytes(data[names + 24 : names + 32], "little")
    table = data.index(struct.pack("<QQ", data.index(b"TREE"), names), int.from_bytes(data[64:72], "little"))
    long = len(data) - place
    data += b"n" * 2000
    leaf = len(data)
    data += b"SNOD\1\0" + struct.pack("<H", 1000)
    data += b"".join(struct.pack("<QQQQQ", long, 1 << 40 | i, 0, 0, 0) for i in range(1000))
    root = len(data)
    data += b"TREE\0\1" + struct.pack("<HQQQ", 1000, 0, 0, 0) + struct.pack("<QQ", leaf, 0) * 1000
    data[table : table + 8] = struct.pack("<Q", root)
    layout, memory = traced(bytes(data))
    assert layout.note == "not a valid HDF5 file: parts of it overlap" and memory < 10 << 20
