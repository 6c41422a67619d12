"""The table of data types agrees with NumPy, torch and safetensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from arzstream.codec.dtypes import DTYPES


@pytest.mark.parametrize("name", DTYPES)
def test_sizes_agree_with_numpy_and_torch(name: str) -> None:
    d = DTYPES[name]
    assert d.name == name
    assert np.dtype(d.numpy).itemsize == d.itemsize
    assert torch.empty(0, dtype=getattr(torch, d.torch)).element_size() == d.itemsize
    if d.float_bits:
        assert (1 + sum(d.float_bits)) * d.components == 8 * d.itemsize


def test_names_are_those_of_safetensors() -> None:
    from safetensors.torch import _TYPES

    for name, kind in _TYPES.items():
        if name in DTYPES:
            assert getattr(torch, DTYPES[name].torch) == kind
