"""What torch saves, the hard cases: every tensor is in the archive, equal and of its dtype, compared by ``diff``, shown
by ``ls``; and the file comes back byte for byte."""

from __future__ import annotations

import argparse
import dataclasses
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import arzstream
from arzstream.archive.difference import diff
from arzstream.cli.listing import listing
from arzstream.codec.dtypes import DTYPES

Tensors = dict[str, torch.Tensor]
BASE = torch.arange(240.0).reshape(12, 20)
EYE = torch.eye(6)


class Sub(torch.Tensor):
    """A subclass with an attribute."""

    extra: torch.Tensor


class Wrapper(torch.Tensor):
    """A subclass without elements of its own, that wraps two tensors."""

    a: torch.Tensor
    b: torch.Tensor

    @staticmethod
    def __new__(cls, a: torch.Tensor, b: torch.Tensor) -> Wrapper:
        return torch.Tensor._make_wrapper_subclass(cls, a.shape, dtype=a.dtype)  # type: ignore[attr-defined, no-any-return]

    def __init__(self, a: torch.Tensor, b: torch.Tensor) -> None:
        self.a, self.b = a, b

    @classmethod
    def __torch_dispatch__(cls, *args: Any) -> Any:  # type: ignore[override]
        raise NotImplementedError


@dataclasses.dataclass
class Record:
    weight: torch.Tensor
    step: int


class FromCpu:
    """Pickled as a tensor of a device that has no storages, such as XLA's."""

    def __init__(self, held: torch.Tensor | np.ndarray, function: Callable[..., Any]) -> None:
        self.call = function, (held, torch.float32, "cpu", False)

    def __reduce__(self) -> Any:
        return self.call


def views() -> tuple[Any, Tensors]:
    cases = {
        "whole": BASE, "rows": BASE[3:7], "column": BASE[:, 2], "transposed": BASE.t(), "offset": BASE.flatten()[5:95],
        "strided": BASE[::2, 1::3], "expanded": torch.ones(1, 3).expand(4, 3), "scalar": torch.tensor(7.5),
        "element": BASE[3, 4], "empty": torch.empty(0, 4), "empty_view": BASE[:0],
        "as_strided": BASE.as_strided((3, 4), (1, 2), 7),
        "4d": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }  # fmt: skip
    return cases, cases


def dtypes() -> tuple[Any, Tensors]:
    names = [kind.torch for kind in DTYPES.values()]
    found = {name: torch.arange(30).remainder(5).float().to(getattr(torch, name)).reshape(5, 6) for name in names}
    return found, found


def sparse() -> tuple[Any, Tensors]:
    coo, csr, csc = EYE.to_sparse(), EYE.to_sparse_csr(), EYE.to_sparse_csc()
    bsr, bsc = EYE.to_sparse_bsr((2, 3)), EYE.to_sparse_bsc((3, 2))
    value = {"coo": coo, "csr": csr, "csc": csc, "bsr": bsr, "bsc": bsc}
    expected = {"coo.indices": coo.indices(), "coo.values": coo.values()}
    for name in ("csr", "bsr"):
        t = value[name]
        expected |= {f"{name}.crow_indices": t.crow_indices(), f"{name}.col_indices": t.col_indices()}
    for name in ("csc", "bsc"):
        t = value[name]
        expected |= {f"{name}.ccol_indices": t.ccol_indices(), f"{name}.row_indices": t.row_indices()}
    return value, expected | {f"{name}.values": value[name].values() for name in ("csr", "csc", "bsr", "bsc")}


def quantised() -> tuple[Any, Tensors]:
    scales, zeros = torch.linspace(0.1, 0.6, 6), torch.arange(6)
    whole = torch.quantize_per_tensor(EYE, 0.1, 3, torch.quint8)
    rows = torch.quantize_per_channel(EYE, scales, zeros, 0, torch.qint8)
    wide = torch.quantize_per_tensor(EYE, 0.1, 0, torch.qint32)
    packed = torch.quantize_per_channel(EYE, scales, zeros.float(), 0, torch.quint4x2)
    return {"whole": whole, "rows": rows, "wide": wide, "packed": packed}, {
        "whole": whole.int_repr(),
        "rows": rows.int_repr(),
        "rows.scales": scales.double(),
        "rows.zero_points": zeros,
        "wide": wide.int_repr(),
        "packed.packed": packed.int_repr(),  # two elements to a byte
        "packed.scales": scales,
        "packed.zero_points": zeros.float(),
    }


def subclasses() -> tuple[Any, Tensors]:
    sub = torch.ones(2).as_subclass(Sub)
    sub.extra = torch.full((3,), 2.0)
    parameter = torch.nn.Parameter(torch.rand(3, 3))
    noted = torch.nn.Parameter(torch.rand(4))
    noted.note = torch.ones(2, dtype=torch.int32)  # type: ignore[attr-defined]
    wrapper = Wrapper(torch.rand(3), torch.rand(2))
    buffer = torch.nn.Buffer(torch.rand(5))
    return {"sub": sub, "p": parameter, "noted": noted, "wrapper": wrapper, "buffer": buffer}, {
        "sub": torch.ones(2),
        "sub.extra": torch.full((3,), 2.0),
        "p": parameter.detach(),
        "noted": noted.detach(),
        "noted.note": torch.ones(2, dtype=torch.int32),
        "wrapper.a": wrapper.a,
        "wrapper.b": wrapper.b,
        "buffer": buffer.detach(),
    }


def lazily_negated() -> tuple[Any, Tensors]:
    z = torch.complex(torch.rand(3, 4), torch.rand(3, 4))
    other, negative = z.clone(), torch._neg_view(torch.rand(5))
    return {"conj": z.conj(), "neg": negative, "imag": other.conj().imag}, {
        "conj.conj": z,
        "neg.neg": -negative.resolve_neg(),
        "imag.neg": other.imag,
    }


def nested() -> tuple[Any, Tensors]:
    t = torch.nested.nested_tensor([torch.rand(2, 3), torch.rand(4, 3)])
    return {"n": t}, {
        "n.values": t.values(),
        "n.sizes": t._nested_tensor_size(),
        "n.strides": t._nested_tensor_strides(),
        "n.offsets": t._nested_tensor_storage_offsets(),
    }


def containers() -> tuple[Any, Tensors]:
    t = [torch.full((n + 1,), float(n)) for n in range(9)]
    value = {
        "a": {"b": [t[0], (t[1], {"c": t[2]})]},
        "o": OrderedDict(x=t[3]),
        "args": argparse.Namespace(lr=1e-3, mean=t[4]),
        "record": Record(t[5], 7),
        ("k", 1): t[6],
        7: t[7],
        "model": torch.nn.ParameterDict({"w": torch.nn.Parameter(t[8])}),
    }
    return value, {
        "a.b.0": t[0], "a.b.1.0": t[1], "a.b.1.1.c": t[2], "o.x": t[3], "args.mean": t[4], "record.weight": t[5],
        "(k, 1)": t[6], "7": t[7], "model.w": t[8],
    }  # fmt: skip


def elsewhere() -> tuple[Any, Tensors]:
    """Tensors that were on devices without storages."""
    held = torch.rand(6, 2)
    return {"xla": FromCpu(held, torch._utils._rebuild_device_tensor_from_cpu_tensor)}, {"xla": held}


CASES = {
    case.__name__: case
    for case in (
        views, dtypes, sparse, quantised, subclasses, lazily_negated, nested, containers, elsewhere,
    )
}  # fmt: skip


def made(name: str) -> tuple[Any, Tensors]:
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CASES[name]()


def assert_kept(source: Path, expected: Tensors, kind: str, tmp_path: Path) -> Path:
    """Packs ``source``; ls, get_tensor, slices, diff and unpack know all of it. The archive."""
    archive = tmp_path / f"{source.name}.arz"
    arzstream.pack(source, archive)
    with arzstream.open(archive) as opened:
        assert set(opened.keys()) == set(expected)
        for name, tensor in expected.items():
            got = opened.get_tensor(name)
            assert got.dtype == tensor.dtype and got.shape == tensor.shape
            assert torch.equal(_bits(got), _bits(tensor))
            part = opened.get_slice(name)
            assert torch.equal(
                _bits(part[:1] if tensor.dim() else part[...]), _bits(tensor[:1] if tensor.dim() else tensor)
            )
        shown = listing(opened)
    assert {t["name"]: tuple(t["shape"]) for t in shown["tensors"]} == {n: tuple(t.shape) for n, t in expected.items()}
    assert shown["files"][0]["format"] == kind
    assert arzstream.verify(archive, deep=True, against=source).tensors >= 1
    arzstream.unpack(archive, tmp_path / "back")
    assert (tmp_path / "back" / source.name).read_bytes() == source.read_bytes()
    return archive


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    whole = tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    return whole.flatten().view(torch.uint8)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", CASES)
def test_hard_cases_are_understood_and_come_back(name: str, old: bool, tmp_path: Path) -> None:
    value, expected = made(name)
    source = tmp_path / "hard.pt"
    torch.save(value, source, _use_new_zipfile_serialization=not old)
    archive = assert_kept(source, expected, "torch-legacy" if old else "torch-zip", tmp_path)
    assert {t.what for t in diff(archive, archive).tensors} == {"unchanged"}


def test_diff_compares_the_tensors_of_different_formats(tmp_path: Path) -> None:
    value, expected = made("views")
    archives = []
    for old in (False, True):
        changed = {**value, "scalar": torch.tensor(8.0 if old else 7.5)}
        torch.save(changed, tmp_path / f"{old}.pt", _use_new_zipfile_serialization=not old)
        archives.append(tmp_path / f"{old}.arz")
        arzstream.pack(tmp_path / f"{old}.pt", archives[-1])
    found = {t.name: (t.what, t.largest) for t in diff(*archives).tensors}
    assert found.pop("scalar") == ("changed", 0.5)
    assert set(found) == set(expected) - {"scalar"} and {what for what, _ in found.values()} == {"unchanged"}


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_numpy_arrays_inside_a_pickle_are_tensors(protocol: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    value = {
        "c": rng.normal(size=(20, 30)).astype("f4"),
        "fortran": np.asfortranarray(rng.normal(size=(20, 30))),
        "ints": np.arange(3000, dtype="i2"),
        "again": {"bytes": np.arange(2000, dtype="u1")},
        "short": np.arange(3),
        "objects": np.array([np.ones(600), None], dtype=object),
        "device": FromCpu(np.ones((40, 10), "f4"), torch._utils._rebuild_device_tensor_from_numpy),
        "tensor": torch.ones(3),
    }
    torch.save(value, tmp_path / "arrays.pt", pickle_protocol=protocol)
    expected = {name: torch.from_numpy(np.ascontiguousarray(value[name])) for name in ("c", "fortran", "ints")}
    expected |= {
        "again.bytes": torch.from_numpy(value["again"]["bytes"]),
        "objects.0": torch.ones(600, dtype=torch.float64),
        "device": torch.ones(40, 10),
        "tensor": torch.ones(3),
    }
    assert_kept(tmp_path / "arrays.pt", expected, "torch-zip", tmp_path)


def note_of(archive: Path) -> str:
    with arzstream.open(archive) as opened:
        return str(listing(opened)["files"][0]["note"])


def test_what_has_no_elements_in_the_file_is_said_by_ls(tmp_path: Path) -> None:
    value = {
        "array": np.arange(2000),
        "w": torch.ones(3),
        "big": np.arange(900, dtype=">i4"),
        "meta": torch.ones(2, device="meta"),
    }
    torch.save(value, tmp_path / "some.pt")  # protocol 2 writes bytes as text
    archive = assert_kept(tmp_path / "some.pt", {"w": torch.ones(3)}, "torch-zip", tmp_path)
    note = note_of(archive)
    assert "'array' is a NumPy array that is kept as part of the pickle: its bytes are written as text" in note
    assert "'big' is a NumPy array that is kept as part of the pickle: its elements are big-endian" in note
    assert "'meta' is a meta tensor, which has no elements" in note


def test_torchscript_keeps_attribute_paths(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.BatchNorm1d(40))
    with pytest.warns(DeprecationWarning):
        torch.jit.script(model).save(str(tmp_path / "script.pt"))
    assert_kept(tmp_path / "script.pt", dict(model.state_dict()), "torch-zip", tmp_path)


class Net(torch.nn.Module):
    """Tied, transposed, bf16, a buffer that is not saved, a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(30, 40)
        self.tied = self.a
        self.scale = torch.nn.Parameter(torch.ones(40, dtype=torch.bfloat16))
        self.register_buffer("view", torch.arange(120.0).reshape(3, 40).t())
        self.register_buffer("passing", torch.ones(40), persistent=False)
        self.plain = torch.full((2, 2), 3.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x) + self.scale + self.view.sum() + self.passing + self.plain.sum()


def test_exported_programs_show_their_weights_constants_and_sample_inputs(tmp_path: Path) -> None:
    model, x = Net(), torch.rand(5, 30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(model, (x,)), tmp_path / "net.pt2")
    expected = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    expected |= {"passing": model.passing, "plain": model.plain, "sample_inputs.0.0": x}
    assert_kept(tmp_path / "net.pt2", expected, "torch-export", tmp_path)
