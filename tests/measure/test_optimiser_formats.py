"""Optimiser state costs the same in a .pt file as in a safetensors file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tools.demo.gpt import Config, Trainer
from tools.demo.saving import save
from tools.measure.optimiser_formats import MOST, compare, flat


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two checkpoints of a small GPT, five steps apart: bf16 weights, and master weights and moments in a .pt file."""
    folder = tmp_path_factory.mktemp("steps")
    trainer = Trainer(Config(layers=2, width=256, heads=4), batch=1)
    for step in (5, 10):
        trainer.train(5)
        save(trainer, folder / str(step), None)
    return [folder / "5", folder / "10"]


@pytest.mark.parametrize("chained", [False, True])
def test_a_pt_file_takes_half_a_percent_more_than_a_safetensors_file_at_most(chained: bool, steps: list[Path]) -> None:
    original, pt, safetensors = compare(steps[1], parent=steps[0] if chained else None)
    assert original > 10_000_000
    assert abs(pt / safetensors - 1) <= MOST


def test_names_are_paths() -> None:
    value = {"a": {0: torch.ones(1)}, "b": [1, (torch.zeros(2),)]}
    assert {name: tuple(tensor.shape) for name, tensor in flat(value)} == {"a.0": (1,), "b.1.0": (2,)}
