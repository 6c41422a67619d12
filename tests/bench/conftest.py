"""A small checkpoint with every kind of part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arzstream.testing.tensors import Tensor, gaussian, safetensors_bytes


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A safetensors file: matrices of each float type, one of several chunks, small tensors, integers."""
    rng = np.random.default_rng(3)
    types = ("BF16", "F16", "F32", "F8_E4M3")
    found = [Tensor(f"matrix.{t}", t, (300, 256), gaussian((300, 256), t, rng)) for t in types]
    found += [Tensor(f"norm.{k}", "BF16", (64,), gaussian((64,), "BF16", rng)) for k in range(3)]
    found.append(Tensor("large", "BF16", (1500, 1024), gaussian((1500, 1024), "BF16", rng)))
    found.append(Tensor("ids", "I64", (77,), np.arange(77, dtype="<i8").tobytes()))
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    path.write_bytes(safetensors_bytes(found))
    return path
