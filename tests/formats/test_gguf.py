"""GGUF: what the gguf package writes is found with its bytes; a growing file; what is not understood is said."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import arzstream
from arzstream.codec.block_layouts import LAYOUTS, OTHERS
from arzstream.codec.dtypes import DTYPES
from arzstream.formats.base import Layout
from arzstream.formats.gguf import BLOCKS, PLAIN, GgufParser

Whole = Callable[..., Layout]
NAME = "model.gguf"


def written(path: Path, fill: Callable[[gguf.GGUFWriter], None]) -> bytes:
    writer = gguf.GGUFWriter(path, "llama")
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def model(writer: gguf.GGUFWriter) -> None:
    rng = np.random.default_rng(0)
    writer.add_name("a model")
    writer.add_block_count(2)
    writer.add_bool("flag", True)
    writer.add_token_list([f"token {i}" for i in range(5000)])
    writer.add_array("scores", [0.5] * 100)
    writer.add_tensor("blk.0.norm", rng.standard_normal(96).astype(np.float32))
    writer.add_tensor("blk.0.half", rng.standard_normal((300, 70)).astype(np.float16))
    for kind in (gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_1):
        blocks = gguf.quants.quantize(rng.standard_normal((2, 5, 64)).astype(np.float32), kind)
        writer.add_tensor(f"blk.1.{kind.name}", blocks, raw_dtype=kind)


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    return written(tmp_path / NAME, model)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def made(
    tensors: list[tuple[str, list[int], int, int]],
    body: bytes = b"",
    values: list[bytes] | None = None,
    version: int = 3,
) -> bytes:
    values = values or []
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values)) + b"".join(values)
    for name, dims, kind, offset in tensors:
        head += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    return head + bytes(-len(head) % 32) + body


def test_every_tensor_that_gguf_writes_is_found_with_its_bytes(data: bytes, tmp_path: Path, whole: Whole) -> None:
    layout = whole(data, NAME)
    found = {view.name: (storage, view) for storage in layout.storages for view in storage.views}
    reader = gguf.GGUFReader(tmp_path / NAME)
    assert layout.format == "gguf" and layout.note == ""
    assert set(found) == {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        storage, view = found[tensor.name]
        assert data[storage.offset : storage.end] == tensor.data.tobytes()
        assert view.strides is None and view.start == 0
    assert {name: (s.dtype, v.shape) for name, (s, v) in found.items()} == {
        "blk.0.norm": ("F32", (96,)),
        "blk.0.half": ("F16", (300, 70)),
        "blk.1.Q8_0": ("U8", (10, 2 * 34)),
        "blk.1.Q4_1": ("U8", (10, 2 * 20)),
    }


def test_short_metadata_is_shown(data: bytes, whole: Whole) -> None:
    metadata = whole(data, NAME).metadata
    assert metadata == {
        "general.architecture": "llama",
        "general.name": "a model",
        "llama.block_count": "2",
        "flag": "True",
    }


def test_block_sizes_are_those_of_the_gguf_package() -> None:
    known = {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    del known[9]  # Q8_1 is no type of files, and the package does not agree with ggml on its size
    assert {kind: known[kind] for kind in BLOCKS} == BLOCKS
    assert {kind: known[kind] for kind in PLAIN} == {k: (1, DTYPES[d].itemsize) for k, d in PLAIN.items()}
    assert set(known) == set(BLOCKS) | set(PLAIN)


def test_places_are_known_once_the_header_is_there(
    data: bytes, whole: Whole, grow: Callable[..., list[Layout]]
) -> None:
    last = whole(data, NAME)
    early = grow(data, NAME, range(0, len(data) + 1, 97))
    assert not early[0].storages and early[-1].storages == last.storages
    assert all(layout.storages in ((), last.storages) for layout in early)
    end = last.storages[-1].end
    assert [layout.complete for layout in early] == [97 * i >= end for i in range(len(early))]


def test_a_long_header_is_read_in_few_steps(tmp_path: Path) -> None:
    data = written(tmp_path / NAME, lambda w: w.add_token_list([f"a token {i}" for i in range(30000)]))
    reads: list[int] = []

    def read(offset: int, length: int) -> bytes:
        reads.append(length)
        return data[offset : offset + length]

    parser = GgufParser()
    for frontier in range(0, len(data), 10_000):
        parser.update(read, frontier, False)
    assert sum(reads) < 8 * len(data)


def test_a_header_that_changes_is_read_again() -> None:
    one = made([("a", [8], 0, 0)], bytes(32))
    two = made([("b", [4], 0, 0)], bytes(32))
    parser = GgufParser()
    for data, name in ((one, "a"), (two, "b"), (one, "a")):
        layout = parser.update(lambda o, n, data=data: data[o : o + n], len(data), True)
        assert [v.name for s in layout.storages for v in s.views] == [name]


def test_version_2_and_any_name_are_recognised(whole: Whole) -> None:
    layout = whole(made([("a", [8], 0, 0)], bytes(32), version=2), "blob")
    assert layout.format == "gguf"


def test_padding_and_bytes_after_the_last_tensor_are_kept(whole: Whole) -> None:
    data = made([("a", [3], 0, 0), ("b", [1], 24, 32)], bytes(100))
    layout = whole(data, NAME)
    assert [(s.offset % 32, s.nbytes) for s in layout.storages] == [(0, 12), (0, 1)]


def test_the_alignment_of_the_file_is_used(whole: Whole) -> None:
    value = text("general.alignment") + struct.pack("<II", 4, 128)
    head = made([("a", [8], 0, 0)], values=[value])
    data = head + bytes(-len(head) % 128) + bytes(32)
    assert whole(data, NAME).storages[0].offset % 128 == 0


def test_a_type_that_is_not_known_is_kept_as_bytes_and_said(whole: Whole) -> None:
    layout = whole(made([("odd", [8], 999, 0), ("a", [8], 0, 32)], bytes(64)), NAME)
    assert [v.name for s in layout.storages for v in s.views] == ["a"]
    assert layout.note == "'odd' of type 999 is kept as bytes"


def test_names_that_cannot_be_are_left_out(whole: Whole) -> None:
    layout = whole(made([("", [8], 0, 0), ("x" * 1025, [8], 0, 32)], bytes(64)), NAME)
    assert len(layout.storages) == 2 and not any(s.views for s in layout.storages)
    assert "has no name" in layout.note


@pytest.mark.parametrize(
    "data, why",
    [
        (made([("a", [8], 0, 0)], bytes(31)), "it is cut off, 95 of 96 bytes"),
        (made([("a", [8], 0, 0), ("b", [8], 0, 16)], bytes(64)), "there is an overlap before tensor 'b'"),
        (made([("a", [8], 0, 0), ("a", [8], 0, 32)], bytes(64)), "a name appears twice in its header"),
        (made([("a", [33], 8, 0)], bytes(64)), "tensor 'a' has rows that are no whole number of blocks"),
        (made([("a", [1] * 9, 0, 0)], bytes(64)), "tensor 'a' has 9 dimensions"),
        (made([("a", [1 << 62, 4], 0, 0)], bytes(64)), "its shape is too large"),
        (made([("a", [8], 0, (1 << 63) - 1)], bytes(64)), "tensor 'a' lies beyond every file"),
        (made([], values=[text("k") + struct.pack("<II", 77, 0)]), "a value in its header has the unknown type 77"),
        (made([], values=[text("general.alignment") + struct.pack("<II", 4, 0)]), "its alignment is out of range"),
        (made([], version=1), "its version is 1"),
        (b"GGUF" + struct.pack(">IQQ", 1, 0, 0), "its version is 1"),
        (made([])[:20], "it ends in its header"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, why: str, whole: Whole) -> None:
    layout = whole(data, NAME)
    assert layout.format == "opaque" and layout.note == f"not a valid GGUF file: {why}"


def test_big_endian_files_are_read_and_their_numbers_are_bytes(whole: Whole, tmp_path: Path) -> None:
    path = tmp_path / NAME
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    model(writer)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    data = path.read_bytes()
    layout = whole(data, NAME)
    expected = {(int(t.data_offset), int(t.n_bytes)) for t in gguf.GGUFReader(path).tensors}
    assert {(s.offset, s.nbytes) for s in layout.storages} == expected
    assert {s.dtype for s in layout.storages} == {"U8"} and "big-endian" in layout.note
    assert layout.metadata["general.name"] == "a model"


def test_the_blocks_of_every_type_are_those_of_ggml_and_have_a_layout() -> None:
    sizes = {int(kind): size for kind, size in gguf.constants.GGML_QUANT_SIZES.items()}
    assert {kind: sizes[kind] for kind in BLOCKS} == BLOCKS
    # Q8_1 exists only while llama.cpp calculates.
    assert sizes.keys() - BLOCKS.keys() - PLAIN.keys() == {gguf.GGMLQuantizationType.Q8_1}
    for _, nbytes in BLOCKS.values():
        for layout in (LAYOUTS[nbytes], OTHERS.get(nbytes, LAYOUTS[nbytes])):
            assert sum(part.length for part in layout) == nbytes


def test_a_folder_with_such_a_file_comes_back(data: bytes, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(data)
    arzstream.pack(tmp_path / NAME, tmp_path / "a.arz")
    with arzstream.open(tmp_path / "a.arz") as archive:
        blocks: Any = archive.get_tensor("blk.1.Q8_0")
        assert tuple(blocks.shape) == (10, 68) and str(blocks.dtype) == "torch.uint8"
        reader = gguf.GGUFReader(tmp_path / NAME)
        expected = next(t for t in reader.tensors if t.name == "blk.1.Q8_0")
        assert blocks.numpy().tobytes() == expected.data.tobytes()
    arzstream.unpack(tmp_path / "a.arz", tmp_path / "out")
    assert (tmp_path / "out" / NAME).read_bytes() == data
