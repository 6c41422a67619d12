"""A run of checkpoints as the study sees it: each tensor's words through the run, as matrices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

import arzstream
from arzstream.codec.dtypes import DTYPES, DType

__all__ = ["Matrix", "Run", "load"]

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
_BY_TORCH = {getattr(torch, d.torch): d for d in DTYPES.values() if d.float_bits and d.itemsize <= 4}
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}


@dataclasses.dataclass(frozen=True)
class Matrix:
    """One tensor: ``values[k]`` is what it was k checkpoints before the newest, all with the same shape."""

    name: str
    dtype: DType
    rows: int
    cols: int
    values: tuple[torch.Tensor, ...]

    def band(self, first: int, last: int) -> Matrix:
        """Its rows from ``first`` to before ``last``."""
        values = tuple(v.reshape(self.rows, self.cols)[first:last] for v in self.values)
        return dataclasses.replace(self, rows=last - first, values=values)

    def words(self, k: int) -> NDArray[np.unsignedinteger]:
        """The elements' bits, shape (rows, cols)."""
        flat = self.values[k].contiguous().flatten().view(torch.uint8).numpy()
        return flat.view(_UNSIGNED[self.dtype.itemsize]).reshape(self.rows, self.cols)

    def floats(self, k: int) -> F32:
        """The elements' values, shape (rows, cols); NaN and infinities are 0."""
        value: F32 = torch.nan_to_num(self.values[k].float(), 0.0, 0.0, 0.0).numpy().reshape(self.rows, self.cols)
        return value

    def ordered(self, k: int) -> I64:
        """Integers whose order is that of the numbers, shape (rows, cols): registry.md section 8, read as signed."""
        words = self.words(k).astype(np.int64)
        sign = 1 << (8 * self.dtype.itemsize - 1)
        return np.where(words >= sign, sign - 1 - words, words)

    def exponents(self, k: int) -> I64:
        """Exponent fields, at least 1, shape (rows, cols)."""
        assert self.dtype.float_bits
        exponent, mantissa = self.dtype.float_bits
        return np.maximum(self.words(k).astype(np.int64) >> mantissa & (1 << exponent) - 1, 1)

    def mantissas(self, k: int) -> F32:
        """Fractions in [0, 1), shape (rows, cols)."""
        assert self.dtype.float_bits
        bits = self.dtype.float_bits[1]
        fractions: F32 = ((self.words(k) & ((1 << bits) - 1)) / (1 << bits)).astype(np.float32)
        return fractions


@dataclasses.dataclass(frozen=True)
class Run:
    """The tensors that all checkpoints have in one shape and float type, and why others are left out."""

    titles: tuple[str, ...]
    """Names of the checkpoints, the newest first."""
    matrices: tuple[Matrix, ...]
    left_out: tuple[str, ...]

    @property
    def weights(self) -> int:
        return sum(m.rows * m.cols for m in self.matrices)

    @property
    def word_bits(self) -> float:
        """Bits of an element, on average."""
        return sum(8 * m.dtype.itemsize * m.rows * m.cols for m in self.matrices) / max(1, self.weights)


@contextmanager
def _reader(path: Path) -> Iterator[tuple[list[str], Callable[[str], torch.Tensor]]]:
    """(names, tensor of a name) of a safetensors file, an archive, or a folder of either."""
    if path.is_dir():
        files = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.arz"))
        found: dict[str, torch.Tensor] = {}
        for file in files:
            with _reader(file) as (names, get):
                found.update({name: get(name) for name in names})
        yield list(found), found.__getitem__
    elif path.suffix == ".arz":
        with arzstream.open(str(path)) as archive:
            yield archive.keys(), archive.get_tensor
    else:
        with safe_open(path, framework="pt") as file:
            yield list(file.keys()), file.get_tensor


def _tensors(path: Path, only: str) -> dict[str, torch.Tensor]:
    with _reader(path) as (names, get):
        tensors = {name: get(name) for name in names if fnmatch(name, only)}
    if not tensors:
        raise SystemExit(f"{path}: no tensors that match {only!r}")
    return tensors


def load(paths: list[Path], only: str = "*") -> Run:
    """Read ``paths``, the oldest first. Tensors of more than two dimensions are matrices of their first one's rows."""
    checkpoints = [_tensors(path, only) for path in reversed(paths)]
    matrices, left_out = [], []
    for name, new in checkpoints[0].items():
        values = tuple(c[name] for c in checkpoints if name in c)
        dtype = _BY_TORCH.get(new.dtype)
        if dtype is None or not new.numel():
            left_out.append(f"{name}: {new.dtype}")
        elif len(values) < len(checkpoints) or any(v.shape != new.shape or v.dtype != new.dtype for v in values):
            left_out.append(f"{name}: not in every checkpoint in this shape and type")
        else:
            rows = new.shape[0] if new.dim() > 1 else 1
            matrices.append(Matrix(name, dtype, rows, new.numel() // rows, values))
    return Run(tuple(p.name for p in reversed(paths)), tuple(matrices), tuple(left_out))
