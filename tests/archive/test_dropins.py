"""safe_open, load_file and save_file beside safetensors' own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

import arzstream
from arzstream.codec.dtypes import DTYPES

BASE = torch.arange(600.0).reshape(20, 30)
TENSORS: dict[str, torch.Tensor] = {
    **{
        kind.name: torch.arange(16, dtype=torch.uint8).view(getattr(torch, kind.torch))
        for kind in DTYPES.values()
        if kind.name not in ("C128", "BOOL", "F8_E8M0") and hasattr(torch, kind.torch)
    },
    "b.weight": BASE.clone(),
    "a.ids": torch.arange(7),
    "half": BASE.half(),
    "bf16": BASE.bfloat16(),
    "fp8": BASE.to(torch.float8_e4m3fn),
    "flag": BASE > 5,
    "scalar": torch.tensor(1.5),
    "empty": torch.empty(0, 3),
    "größe": torch.ones(3, dtype=torch.int8),
    "parameter": torch.nn.Parameter(BASE[:2].clone()),
}


def test_what_was_saved_is_loaded_and_unpacks_to_the_bytes_that_safetensors_writes(tmp_path: Path) -> None:
    for metadata in (None, {"format": "pt", "ü": "重"}):
        arzstream.torch.save_file(TENSORS, tmp_path / "x.arz", metadata)
        safetensors.torch.save_file(TENSORS, tmp_path / "x.safetensors", metadata)
        loaded = arzstream.torch.load_file(tmp_path / "x.arz")
        wanted = safetensors.torch.load_file(tmp_path / "x.safetensors")
        assert set(loaded) == set(wanted)
        for name, tensor in wanted.items():
            assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape
            assert torch.equal(loaded[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
        out = tmp_path / f"out-{metadata is None}"
        arzstream.unpack(tmp_path / "x.arz", out)
        header = (tmp_path / "x.safetensors").read_bytes()
        found = (out / "model.safetensors").read_bytes()
        assert len(found) == len(header) and safetensors.torch.load(found).keys() == wanted.keys()
        if not metadata:
            assert found == header


def test_safe_open_answers_as_safetensors_does(tmp_path: Path) -> None:
    arzstream.torch.save_file(TENSORS, tmp_path / "x.arz", {"format": "pt"})
    safetensors.torch.save_file(TENSORS, tmp_path / "x.safetensors", {"format": "pt"})
    with (
        arzstream.safe_open(tmp_path / "x.arz", framework="pt", device="cpu") as ours,
        safetensors.safe_open(str(tmp_path / "x.safetensors"), framework="pt", device="cpu") as theirs,
    ):
        assert ours.keys() == list(theirs.keys()) and ours.metadata() == theirs.metadata()
        assert sorted(ours.offset_keys()) == sorted(theirs.offset_keys())
        assert set(ours.get_tensors()) == set(theirs.keys())
        for name in theirs.keys():  # noqa: SIM118
            assert str(ours.get_tensor(name)) == str(theirs.get_tensor(name))
            mine, other = ours.get_slice(name), theirs.get_slice(name)
            assert mine.get_shape() == other.get_shape() and mine.get_dtype() == other.get_dtype()
            if other.get_shape() and ours.get_tensor(name).element_size() > 1:
                for index in (slice(0, 1), slice(2, 1), slice(-1, None), slice(None, None, 2), ...):
                    assert torch.equal(mine[index], other[index]), (name, index)
        with pytest.raises(KeyError, match="nothing"):
            ours.get_tensor("nothing")
    arzstream.torch.save_file(TENSORS, tmp_path / "y.arz")
    with arzstream.safe_open(str(tmp_path / "y.arz")) as ours:
        assert ours.metadata() is None
    with pytest.raises(ValueError, match="framework"):
        arzstream.safe_open(tmp_path / "x.arz", "flax")
    with pytest.raises(arzstream.StorageError, match="missing"):
        arzstream.safe_open(tmp_path / "missing", "pt")


@pytest.mark.parametrize("framework", ["np", "numpy"])
def test_safe_open_gives_numpy_arrays(framework: str, tmp_path: Path) -> None:
    arzstream.torch.save_file({"x": BASE, "bf16": BASE.bfloat16()}, tmp_path / "x.arz")
    with arzstream.safe_open(tmp_path / "x.arz", framework) as opened:
        assert opened.get_tensor("x").tolist() == BASE.tolist()
        assert opened.get_tensor("bf16").dtype == "<u2"
        assert opened.get_slice("x")[3].tolist() == BASE[3].tolist()


def test_tensors_that_safetensors_does_not_take_are_written_out_whole(tmp_path: Path) -> None:
    tensors = {
        "transposed": BASE.t(),
        "stepped": BASE[::3, 1::2],
        "one stepped element": torch.arange(3.0)[::5],
        "expanded": torch.ones(1).expand(4, 5),
        "shared": BASE,
        "conjugated": torch.complex(BASE, BASE).conj(),
        "complex128": torch.complex(BASE.double(), BASE.double()),
        "grad": BASE.clone().requires_grad_(),
    }
    arzstream.torch.save_file(tensors, tmp_path / "x.arz")
    loaded = arzstream.torch.load_file(tmp_path / "x.arz")
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor) and loaded[name].is_contiguous() and not loaded[name].requires_grad


@pytest.mark.parametrize(
    ("tensors", "metadata", "error"),
    [
        ({"a": [1]}, None, ValueError),
        ({"a": BASE.to_sparse()}, None, ValueError),
        ({"a": torch.empty(2, device="meta")}, None, ValueError),
        ({1: BASE}, None, TypeError),
        ({"a": BASE}, {"k": 1}, TypeError),
        ({"a": BASE}, {1: "v"}, TypeError),
        ({"": BASE}, None, ValueError),
        ({"x" * 2000: BASE}, None, ValueError),
        ({"__metadata__": BASE}, None, ValueError),
        ({"\ud800": BASE}, None, ValueError),
        ({"a": torch.ones([1] * 40)}, None, ValueError),
    ],
)
def test_what_cannot_be_read_back_by_name_is_not_saved(tensors: Any, metadata: Any, error: Any, tmp_path: Path) -> None:
    (tmp_path / "x.arz").write_bytes(b"what was there before")
    with pytest.raises(error):
        arzstream.torch.save_file(tensors, tmp_path / "x.arz", metadata)
    assert os.listdir(tmp_path) == ["x.arz"] and (tmp_path / "x.arz").read_bytes() == b"what was there before"


def test_saving_replaces_and_respects_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        for value in (1.0, 2.0):
            arzstream.torch.save_file({"x": torch.tensor([value])}, tmp_path / "new" / "x.arz")
    finally:
        os.umask(before)
    assert (tmp_path / "new" / "x.arz").stat().st_mode & 0o777 == 0o640
    assert arzstream.torch.load_file(tmp_path / "new" / "x.arz")["x"].tolist() == [2.0]
    assert arzstream.torch.load_file(str(tmp_path / "new" / "x.arz"), device="cpu").keys() == {"x"}
    arzstream.torch.save_file({}, tmp_path / "none.arz")
    assert arzstream.torch.load_file(tmp_path / "none.arz") == {}
