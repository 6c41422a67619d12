"""NumPy: what numpy.save and savez write is found with its bytes; growing files; what is not understood is said."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from arzstream.formats.base import Layout
from arzstream.formats.npy import name_of

Whole = Callable[..., Layout]
Grow = Callable[..., list[Layout]]
RNG = np.random.default_rng(0)
TYPES = ["<f2", "<f4", "<f8", "?", "<c8", "<c16", *(f"<{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8))]


def saved(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)
    return file.getvalue()


def elements(data: bytes, layout: Layout) -> dict[str, np.ndarray]:
    """Every tensor of a layout, by its bytes in the file; bf16 as ml_dtypes'."""
    found = {}
    numpy_of = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8", "C128": "<c16", "BOOL": "?"}
    for storage in layout.storages:
        kind = storage.dtype
        dtype = np.dtype(ml_dtypes.bfloat16 if kind == "BF16" else numpy_of.get(kind, f"<{kind.lower()[0]}1"))
        if kind[0] in "IU":
            dtype = np.dtype(f"<{kind[0].lower()}{int(kind[1:]) // 8}")
        flat = np.frombuffer(data[storage.offset : storage.end], dtype)
        for view in storage.views:
            strides = view.strides or np.empty(view.shape, np.uint8).strides
            steps = tuple(step * dtype.itemsize for step in strides)
            found[view.name] = np.lib.stride_tricks.as_strided(flat[view.start :], view.shape, steps)
    return found


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("dtype", TYPES)
def test_arrays_of_every_type_and_version_are_found(whole: Whole, dtype: str, version: tuple[int, int]) -> None:
    array = RNG.integers(0, 2, (5, 3, 4)).astype(dtype)
    data = saved(array, version)
    layout = whole(data, "folder/layers.0.weight.npy")
    found = elements(data, layout)
    assert (layout.format, layout.note, list(found)) == ("npy", "", ["layers.0.weight"])
    assert found["layers.0.weight"].dtype == array.dtype
    assert np.array_equal(found["layers.0.weight"], array)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (1, 7), (7, 1), (4, 5), (2, 3, 4)])
def test_fortran_order_is_a_view_with_strides(whole: Whole, shape: tuple[int, ...]) -> None:
    array = np.array(RNG.standard_normal(shape), np.float32, order="F")
    data = saved(array)
    found = elements(data, whole(data, "w.npy"))["w"]
    assert found.shape == shape and np.array_equal(found, array)


def test_bfloat16_is_taken_for_what_it_is(whole: Whole) -> None:
    array = RNG.standard_normal((4, 5)).astype(ml_dtypes.bfloat16)
    data = saved(array)
    layout = whole(data, "w.npy")
    assert np.array_equal(elements(data, layout)["w"], array) and "BF16" in layout.note


@pytest.mark.parametrize(
    "array, why",
    [
        (np.ones(3, ">f4"), "big-endian"),
        (np.array(["text", "x"]), "is kept as bytes"),
        (np.array(["2020-01-01"], "M8[D]"), "is kept as bytes"),
        (np.ones(3, np.longdouble), "is kept as bytes"),
        (np.ones(3, ml_dtypes.float8_e4m3fn), "kept as bytes"),
    ],
)
def test_elements_that_are_not_understood_are_bytes_and_that_is_said(whole: Whole, array: np.ndarray, why: str) -> None:
    layout = whole(saved(array), "w.npy")
    assert [storage.dtype for storage in layout.storages] == ["U8"] and why in layout.note


@pytest.mark.parametrize(
    "array, why", [(np.zeros(3, [("a", "<f4"), ("b", "<i8", 2)]), "structured"), (np.array([{}, {}]), "unpickled")]
)
def test_structured_arrays_and_objects_are_opaque(whole: Whole, grow: Grow, array: np.ndarray, why: str) -> None:
    file = io.BytesIO()
    np.save(file, array)
    layout = whole(file.getvalue(), "w.npy")
    assert (layout.format, layout.storages) == ("opaque", ()) and why in layout.note
    # Its size is not known, so a daemon must not wait for an end.
    assert grow(file.getvalue(), "w.npy")[-1].format == "opaque"


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{}",
        b"[1]",
        b"{'descr': '<f4', 'fortran_order': False}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': [2]}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,)} + {}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'x': __import__('os')}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'x': " + b"(" * 100 + b")" * 100 + b"}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"4294967296," * 3 + b")}",
    ],
)
def test_headers_that_numpy_does_not_write_make_the_file_opaque(whole: Whole, header: bytes) -> None:
    layout = whole(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(8), "w.npy")
    assert layout.format == "opaque" and layout.note.startswith("not a valid NumPy file: ")


def test_headers_of_python_2_are_read(whole: Whole) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 1L), }"
    layout = whole(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(8), "w.npy")
    assert layout.storages[0].views[0].shape == (2, 1)


def test_the_name_is_that_of_the_file_without_what_a_writer_appends() -> None:
    assert [name_of(path) for path in ("a/b.weight.npy", "b.npy.tmp", "C\\d.NPY", "e")] == ["b.weight", "b", "d", "e"]


def test_what_follows_an_array_is_kept(whole: Whole) -> None:
    layout = whole(saved(np.ones(3)) + saved(np.zeros(2)), "w.npy")
    assert len(layout.storages) == 1 and "144 bytes follow" in layout.note


def test_a_growing_array_is_known_once_its_header_is_there(grow: Grow) -> None:
    data = saved(RNG.standard_normal((50, 3)))
    layouts = grow(data, "w.npy")
    assert layouts[127].storages == () and layouts[128].storages == layouts[-1].storages != ()
    assert layouts[128].size == len(data)
    assert [layout.complete for layout in layouts] == [False] * len(data) + [True]


# ---- npz


ARRAYS = {
    "layers.0.weight": RNG.standard_normal((20, 30)).astype(np.float32),
    "layers.0.bias": np.asfortranarray(RNG.standard_normal((3, 5)).astype(np.float16)),
    "folder/embed": RNG.standard_normal((7, 9)).astype(ml_dtypes.bfloat16),
    "empty": np.empty((0, 4), np.float64),
    "mask": np.ones(5, bool),
}


def zipped(path: Path, **options: bool) -> bytes:
    """``stream``: as to a pipe, with descriptors behind the members."""

    class Stream(io.RawIOBase):
        def __init__(self) -> None:
            self.data = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            self.data += data
            return len(data)

    if options.get("stream"):
        stream = Stream()
        np.savez(stream, **ARRAYS)  # type: ignore[arg-type]
        return bytes(stream.data)
    (np.savez_compressed if options.get("compressed") else np.savez)(path, **ARRAYS)
    return path.read_bytes()


@pytest.mark.parametrize("stream", [False, True])
def test_members_of_npz_files_are_found_by_their_names(whole: Whole, tmp_path: Path, stream: bool) -> None:
    data = zipped(tmp_path / "a.npz", stream=stream)
    layout = whole(data, "model.npz")
    found = elements(data, layout)
    assert layout.format == "npz" and found.keys() == ARRAYS.keys()
    assert all(np.array_equal(found[name], array) for name, array in ARRAYS.items())
    assert whole(data, "a blob without a telling name").storages == layout.storages


def test_compressed_members_are_kept_and_that_is_said(whole: Whole, tmp_path: Path) -> None:
    layout = whole(zipped(tmp_path / "a.npz", compressed=True), "model.npz")
    assert (layout.format, layout.storages) == ("npz", ()) and "compressed already" in layout.note


@pytest.mark.parametrize("stream", [False, True])
def test_members_of_a_growing_npz_are_known_before_they_are_whole(grow: Grow, tmp_path: Path, stream: bool) -> None:
    data = zipped(tmp_path / "a.npz", stream=stream)
    layouts = grow(data, "model.npz")
    final = layouts[-1]
    assert final.complete and not any(layout.complete for layout in layouts[:-1])
    for frontier, layout in enumerate(layouts):
        assert set(layout.storages) <= set(final.storages)
        for storage in final.storages:
            assert storage in layout.storages or frontier < storage.end + 24 + 4096


def test_a_member_whose_sizes_are_not_written_yet_is_known_by_its_own_header(grow: Grow, tmp_path: Path) -> None:
    """numpy.savez puts the sizes into a member's local header when the member is done."""
    data = bytearray(zipped(tmp_path / "a.npz"))
    first = data.index(b"PK\x03\x04")
    name = int.from_bytes(data[first + 26 : first + 28], "little")
    data[first + 14 : first + 18] = bytes(4)
    data[first + 30 + name + 4 : first + 30 + name + 20] = bytes(16)
    (layout,) = grow(bytes(data), "model.npz", [1000])
    assert layout.storages[0].views[0].name == "layers.0.weight" and layout.storages[0].nbytes == 2400


def test_a_member_that_lies_about_its_size_is_bytes(whole: Whole) -> None:
    file = io.BytesIO()

    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", saved(np.ones(3)) + b"more")
        archive.writestr("b.npy", b"text")
        archive.writestr("c.txt", b"text")
        archive.writestr("d.npy", saved(np.zeros(2)))
    layout = whole(file.getvalue(), "model.npz")
    assert [view.name for storage in layout.storages for view in storage.views] == ["d"]
    assert "'a' is kept as bytes" in layout.note and "'b' is kept as bytes" in layout.note


def test_a_type_that_is_no_line_is_shown_as_one(whole: Whole) -> None:
    header = b"{'descr': '<g[a\r]', 'fortran_order': False, 'shape': (1,), }\n"
    layout = whole(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + bytes(8), "a.npy")
    assert layout.note.isascii() and layout.note.isprintable() and "NumPy type" in layout.note
