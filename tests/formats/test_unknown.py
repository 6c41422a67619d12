"""Files of no known structure: arrays of floats are found wherever they begin; noise is told from them and named."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import zstandard

from arzstream.formats.base import Layout, problem_of
from arzstream.formats.companions import Companions
from arzstream.formats.detect import parser_for
from arzstream.formats.unknown import BLOCK, LEAST, UnknownContent, called

RNG = np.random.default_rng(0)
WEIGHTS = (RNG.standard_normal(1 << 19) * RNG.uniform(0.01, 0.1, 1 << 19)).astype("<f4")
KINDS = {
    "F32": WEIGHTS.tobytes(),
    "F16": WEIGHTS.astype("<f2").tobytes(),
    "BF16": (WEIGHTS.view("<u4") >> 16).astype("<u2").tobytes(),
    "F64": (WEIGHTS.astype("<f8") * 1.1).tobytes(),
}


def look(data: bytes, name: str = "engine.plan") -> Layout:
    layout = parser_for(name, companions=Companions()).update(lambda o, n: data[o : o + n], len(data), True)
    assert problem_of(layout, len(data)) == "" and layout.format == "opaque"
    return layout


@pytest.mark.parametrize("shift", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_floats_of_every_type_are_found_where_they_begin(kind: str, shift: int) -> None:
    data = b"\x05head"[:shift] + KINDS[kind] + b"tail"
    (storage,) = look(data).storages
    itemsize = {"F64": 8, "F32": 4}.get(kind, 2)
    assert storage.dtype == kind and not storage.views
    assert (storage.offset - shift) % itemsize == 0
    assert storage.nbytes > len(KINDS[kind]) - 2 * itemsize


def test_arrays_of_several_types_are_told_apart() -> None:
    text = Path(__file__).read_bytes() * 200
    data = KINDS["F32"] + text[: 3 * BLOCK] + KINDS["BF16"] + bytes(2 * BLOCK) + KINDS["F64"]
    storages = look(data).storages
    assert [storage.dtype for storage in storages] == ["F32", "BF16", "F64"]
    assert storages[0].end == len(KINDS["F32"]) and storages[1].offset == len(KINDS["F32"]) + 3 * BLOCK


def test_floats_in_a_file_of_keras_are_found_and_nobody_waits_for_the_rest_of_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as file:
        file.writestr("metadata.json", "{}")
        file.writestr("model.weights.h5", KINDS["F32"])
    data = (tmp_path / "m.keras").read_bytes()
    assert [storage.dtype for storage in look(data, "m.keras").storages] == ["F32"]
    growing = parser_for("m.keras").update(lambda o, n: data[o : o + n], len(data), False)
    assert growing.format == "opaque"  # any other format that is not complete is waited for


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        bytes(4 * BLOCK),
        random.Random(0).randbytes(4 * BLOCK),
        b"some text " * BLOCK,
        RNG.integers(0, 50000, BLOCK).astype("<i4").tobytes(),
        RNG.integers(0, 1 << 40, BLOCK).astype("<i8").tobytes(),
        np.arange(BLOCK, dtype="<u2").tobytes(),
        np.clip(RNG.standard_normal(4 * BLOCK) * 30, -127, 127).astype(np.int8).tobytes(),
    ],
    ids=["empty", "short", "zeros", "noise", "text", "int32", "int64", "counts", "int8"],
)
def test_what_holds_no_floats_is_left_alone(data: bytes) -> None:
    assert look(data).storages == ()


def test_files_that_people_read_are_not_searched() -> None:
    parser = parser_for("metrics.csv", companions=Companions())
    data = KINDS["F32"]
    assert parser.update(lambda o, n: data[o : o + n], len(data), True).storages == ()


def test_without_the_rest_of_its_checkpoint_nothing_is_searched() -> None:
    """As in the daemon's supervisor, which only asks when a file is complete."""
    data = KINDS["F32"]
    assert parser_for("x.bin").update(lambda o, n: data[o : o + n], len(data), True).storages == ()


def test_hdf5_files_whose_names_are_not_understood_are_searched(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w", libver="latest") as file:
        for i in range(20):
            file.create_dataset(f"layer {i}", data=WEIGHTS[: 1 << 16].reshape(512, -1) * (i + 1))
    data = (tmp_path / "m.h5").read_bytes()
    layout = look(data, "m.h5")
    assert sum(s.nbytes for s in layout.storages) > 0.97 * len(data) and "in a heap" in layout.note
    assert {s.dtype for s in layout.storages} == {"F32"}


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "Zstandard": zstandard.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "": lambda data: zlib.compress(data, 1),
}


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_files_are_named_and_kept(name: str) -> None:
    data = COMPRESSED[name](KINDS["F16"])
    layout = look(data)
    assert layout.storages == () and "kept as it is" in layout.note
    assert (f"({name})" in layout.note) == bool(name)


def test_a_magic_alone_does_not_make_a_file_compressed() -> None:
    layout = look(gzip.compress(b"x")[:10] + b"text " * BLOCK)
    assert layout.note == ""


def test_encrypted_files_are_named() -> None:
    noise = random.Random(1).randbytes(LEAST)
    assert "(encrypted (OpenSSL))" in look(b"Salted__" + noise).note
    assert "look compressed or encrypted" in look(noise).note
    assert [called(start) for start in (b"RIFF\0\0\0\0WEBP", b"\0\0\0\x20ftypisom", b"GGUF")] == ["WebP", "MPEG-4", ""]


def test_why_a_file_is_opaque_is_not_replaced() -> None:
    noise = random.Random(1).randbytes(LEAST)
    assert look(noise, "model.gguf").note == "not a GGUF file"


def test_little_of_a_large_file_is_read_and_nothing_twice() -> None:
    size = 40 << 30
    block = KINDS["BF16"][:BLOCK]
    asked = 0

    def read(offset: int, length: int) -> bytes:
        nonlocal asked
        asked += length
        at = offset % BLOCK
        return (block + block)[at : at + length]

    content = UnknownContent()
    (storage,) = content.layout(read, size, "").storages
    assert (storage.dtype, storage.nbytes) == ("BF16", size)
    assert asked < 4 << 20
    asked = 0
    assert content.layout(read, size, "").storages == (storage,) and asked < 16 << 10
