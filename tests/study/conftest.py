"""A run of small checkpoints that change as under an optimiser: scales of rows and columns, and some persistence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import arzstream

ROWS, COLS = 96, 128


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A safetensors file, a folder with one, an archive and a file, the oldest first; bf16, and some not to be used."""
    folder = tmp_path_factory.mktemp("run")
    rng = torch.Generator().manual_seed(1)
    weights = 0.02 * torch.randn(2, ROWS, COLS, generator=rng)
    scale = 1e-4 * torch.exp(torch.randn(2, ROWS, 1, generator=rng) + torch.randn(2, 1, COLS, generator=rng))
    drift = torch.randn(2, ROWS, COLS, generator=rng)
    paths = []
    for step in range(4):
        weights = weights + scale * (drift + torch.randn(2, ROWS, COLS, generator=rng))
        tensors = {f"layer.{i}": w.bfloat16().clone() for i, w in enumerate(weights)}
        tensors |= {"norm": torch.ones(50).bfloat16() + step, "count": torch.tensor([step])}
        path = folder / f"step-{step}.safetensors"
        if step == 1:
            path = folder / "step-1"
            path.mkdir()
            path = path / "model.safetensors"
        save_file(tensors, path)
        if step == 2:
            arzstream.pack([path], folder / "step-2.arz")
            path = folder / "step-2.arz"
        paths.append(path.parent if step == 1 else path)
    return paths
