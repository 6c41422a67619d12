"""NumPy, ONNX, flax and unknown files in archives: listed, compared across formats, sliced, restored byte for byte."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import msgpack
import numpy as np
import onnx
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from onnx import helper, numpy_helper

import arzstream
from arzstream.archive.builder import CheckpointBuilder
from arzstream.archive.difference import diff

RNG = np.random.default_rng(0)
ARRAYS = {
    "layers.0.weight": (RNG.standard_normal((300, 200)) * 0.02).astype(np.float32),
    "layers.0.bias": (RNG.standard_normal(200)).astype(np.float16),
    "embed.weight": (RNG.standard_normal((500, 120)) * 0.02).astype(ml_dtypes.bfloat16),
    "steps": np.arange(70, dtype=np.int64),
}


def npy(folder: Path) -> None:
    for name, array in ARRAYS.items():
        np.save(folder / f"{name}.npy", np.asfortranarray(array))


def npz(folder: Path) -> None:
    np.savez(folder / "model.npz", **ARRAYS)  # type: ignore[arg-type]


def graph() -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in ARRAYS.items()]
    return helper.make_model(helper.make_graph([], "g", [], [], initializer=tensors))


def onnx_inside(folder: Path) -> None:
    onnx.save(graph(), folder / "model.onnx")


def onnx_outside(folder: Path) -> None:
    onnx.save_model(graph(), folder / "model.onnx", save_as_external_data=True, location="a.data", size_threshold=0)


def flax(folder: Path) -> None:
    tree: dict[str, Any] = {}
    for name, array in ARRAYS.items():
        *path, last = name.split(".")
        place = tree
        for key in path:
            place = place.setdefault(key, {})
        place[last] = msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))
    (folder / "flax_model.msgpack").write_bytes(msgpack.packb(tree))


def hdf5(folder: Path) -> None:
    with h5py.File(folder / "model.h5", "w") as file:
        for name, array in ARRAYS.items():
            if array.dtype != ml_dtypes.bfloat16:
                file[name.replace(".", "/")] = array
    np.save(folder / "embed.weight.npy", ARRAYS["embed.weight"])


WRITERS = {"hdf5": hdf5, "npy": npy, "npz": npz, "onnx": onnx_inside, "onnx-data": onnx_outside, "flax-msgpack": flax}


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def packed(tmp_path: Path) -> Callable[..., Path]:
    def pack(name: str, write: Callable[[Path], None], profile: str = "balanced") -> Path:
        (tmp_path / name).mkdir()
        write(tmp_path / name)
        arzstream.pack(tmp_path / name, tmp_path / f"{name}.arz", profile=profile)
        return tmp_path / f"{name}.arz"

    return pack


@pytest.mark.parametrize("name", WRITERS)
def test_tensors_and_files_of_every_format_come_back(packed: Callable[..., Path], name: str, tmp_path: Path) -> None:
    path = packed(name, WRITERS[name])
    with arzstream.open(path) as archive:
        assert sorted(archive.keys()) == sorted(ARRAYS)
        for key, array in ARRAYS.items():
            tensor = archive.get_tensor(key)
            bits = tensor.view(torch.int16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
            assert bits.tobytes() == array.tobytes() and tuple(tensor.shape) == array.shape
            assert torch.equal(archive.get_slice(key)[3:7], tensor[3:7])
        assert name in {record.format for _, record in archive.catalog.regular_files()}
        for file, data in content(tmp_path / name).items():
            assert archive.read_file(file) == data
    arzstream.unpack(path, tmp_path / "restored")
    assert content(tmp_path / "restored") == content(tmp_path / name)


@pytest.mark.parametrize("name", WRITERS)
def test_formats_are_compared_with_each_other(packed: Callable[..., Path], name: str) -> None:
    changed = {key: array.copy() for key, array in ARRAYS.items()}
    changed["layers.0.weight"][:3] += 1

    def saved(folder: Path) -> None:
        halves = torch.from_numpy(changed["embed.weight"].view(np.int16)).view(torch.bfloat16)
        tensors = {key: torch.from_numpy(array) for key, array in changed.items() if key != "embed.weight"}
        safetensors.torch.save_file({**tensors, "embed.weight": halves}, folder / "model.safetensors")

    found = {t.name: t for t in diff(packed(name, WRITERS[name]), packed("st", saved)).tensors}
    assert {key: t.what for key, t in found.items()} == {
        key: "changed" if key == "layers.0.weight" else "unchanged" for key in ARRAYS
    }
    assert found["layers.0.weight"].changed == 0.01


def test_fortran_order_takes_no_more_than_its_transpose(packed: Callable[..., Path]) -> None:
    scale = np.exp(RNG.standard_normal((400, 1)))
    weights = (RNG.standard_normal((400, 600)) * scale).astype(np.float32)
    fortran = packed("f", lambda folder: np.save(folder / "w.npy", np.asfortranarray(weights)))
    c = packed("c", lambda folder: np.save(folder / "w.npy", np.ascontiguousarray(weights.T)))
    assert abs(fortran.stat().st_size - c.stat().st_size) < 256
    with arzstream.open(fortran) as archive:
        assert np.array_equal(archive.get_tensor("w").numpy(), weights)


def test_an_unknown_file_takes_little_more_than_its_tensors_do(packed: Callable[..., Path]) -> None:
    weights = {f"w{i}": (RNG.standard_normal((512, 512)) * 0.02).astype(np.float32) for i in range(3)}

    def dump(folder: Path) -> None:
        (folder / "engine.plan").write_bytes(b"head" + b"".join(array.tobytes() for array in weights.values()))

    path = packed("dump", dump)
    known = packed("known", lambda folder: safetensors.numpy.save_file(weights, folder / "model.safetensors"))
    assert path.stat().st_size < 1.01 * known.stat().st_size
    with arzstream.open(path) as archive:
        assert (
            archive.keys() == [] and archive.read_file("engine.plan") == (path.parent / "dump/engine.plan").read_bytes()
        )


@pytest.mark.parametrize("profile", ["fast", "balanced", "max"])
def test_compressed_files_are_stored_and_listed_with_the_reason(packed: Callable[..., Path], profile: str) -> None:
    def compressed(folder: Path) -> None:
        np.savez_compressed(folder / "model.npz", **ARRAYS)  # type: ignore[arg-type]
        (folder / "noise.enc").write_bytes(b"Salted__" + RNG.bytes(1 << 20))

    path = packed(f"z-{profile}", compressed, profile)
    size = sum(map(len, content(path.parent / f"z-{profile}").values()))
    assert size < path.stat().st_size < size + 8192
    with arzstream.open(path) as archive:
        notes = {name: record.note for name, record in archive.catalog.regular_files()}
    assert "compressed already" in notes["model.npz"] and "encrypted" in notes["noise.enc"]


def test_a_file_that_lands_is_coded_before_it_is_whole(new_sink: Any, new_source: Any) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **{f"w{i}": ARRAYS["layers.0.weight"] for i in range(4)}, x=np.ones(3))
    data = buffer.getvalue()
    with CheckpointBuilder(sink := new_sink()) as builder:
        job = builder.add_file(b"model.npz.tmp", new_source(data))
        assert builder.update(job, len(data) // 2) >= 240_000
        builder.rename(job, b"model.npz")
        builder.finish(job, size=len(data), mode=0o644, mtime=0)
        assert builder.bytes_coded < 1.1 * len(data)
        builder.seal()
    with sink.archive() as archive:
        assert archive.read_file("model.npz") == data and "w3" in archive.keys()  # noqa: SIM118


def test_external_data_that_lands_before_its_model_is_understood(
    new_sink: Any, new_source: Any, tmp_path: Path
) -> None:
    onnx_outside(tmp_path)
    files = content(tmp_path)
    with CheckpointBuilder(sink := new_sink()) as builder:
        jobs = {}
        for name in ("a.data", "model.onnx"):
            jobs[name] = builder.add_file(name.encode(), new_source(files[name]))
            builder.update(jobs[name], len(files[name]) // 2)
        for name, job in jobs.items():
            builder.plan(job, len(files[name]), final=True)
        for name, job in jobs.items():
            builder.finish(job, size=len(files[name]), mode=0o644, mtime=0)
        builder.seal()
    with sink.archive() as archive:
        assert sorted(archive.keys()) == sorted(ARRAYS)
        assert archive.catalog.files["a.data"].format == "onnx-data"
