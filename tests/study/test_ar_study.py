"""The command: every model on a small run, the same bits twice, and what it says of wrong arguments."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from tools.ar_study import main
from tools.study import training_run
from tools.study.checkpoints import load
from tools.study.report import MODELS, Options, Study, ablation, table

SMALL = Options(samples=3000, steps=6, hidden=(8,), classes=(4, 8), student_classes=8, leaves=(4, 16))


def lines(checkpoints: list[Path], models: list[str]) -> list[list[str]]:
    """Cells of the report without those that are measured."""
    found = list(table(Study(load(checkpoints), SMALL), models, lambda _: None))
    return [line.strip("| ").split(" | ")[:6] for line in found[2:]]


def test_every_model_has_its_lines_and_the_same_bits_each_time(checkpoints: list[Path]) -> None:
    first = lines(checkpoints, list(MODELS))
    assert lines(checkpoints, list(MODELS)) == first
    titles = " / ".join(cells[0] for cells in first)
    for word in (
        "alone",
        "XOR",
        "order 0",
        "exponent",
        "scale",
        "change before",
        "linear",
        "teacher",
        "rows above",
        "no scales are sent",
    ):
        assert word in titles
    for word in ("classes", "student 16-16", "student 32-32", "tree", "oblivious", "GRU", "Transformer", "codec"):
        assert word in titles
    for cells in first:
        bits, scales, model, total = map(float, cells[1:5])
        assert 0 < bits < 16 and scales >= 0 and abs(bits + scales + model - total) < 0.002


def test_scales_help_where_changes_have_them(checkpoints: list[Path]) -> None:
    study = Study(load(checkpoints), dataclasses.replace(SMALL, samples=20_000))
    found = dict(line.split(" | ")[:2] for line in list(table(study, ["tables"], lambda _: None))[2:])
    scale = float(found["| given the scale in units of the last place"])
    assert scale < float(found["| given the parent's exponent"]) - 0.1


def test_without_a_grandparent_the_gru_is_left_out(checkpoints: list[Path]) -> None:
    assert lines(checkpoints[-2:], ["gru"]) == []
    assert len(lines(checkpoints[-2:], ["mlp", "codec"])) == 2


def test_the_ablation_tries_every_input(checkpoints: list[Path]) -> None:
    found = list(ablation(Study(load(checkpoints), SMALL)))
    assert any(line.startswith("| without mantissa |") for line in found)
    assert any(line.startswith("| and velocity |") for line in found)


def test_the_command_prints_a_table(checkpoints: list[Path], repository: Path) -> None:
    words = [*map(str, checkpoints), "--models", "xor,tables", "--samples", "3000"]
    done = subprocess.run(
        [sys.executable, "-m", "tools.ar_study", *words], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("step-2.arz → step-3.safetensors, 4 checkpoints: 24,626 weights of 16 bits")
    assert "left out: 1 tensors, such as count: torch.int64" in done.stdout
    assert "| XOR, byte planes, zstd -3 |" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [(["a"], "a checkpoint and its parent"), (["a", "b", "--models", "x"], "no model is called x")],
)
def test_wrong_arguments_are_named(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert problem in capsys.readouterr().err


def test_a_run_to_study_can_be_trained(tmp_path: Path) -> None:
    small = ["--layers", "1", "--width", "64", "--batch", "1", "--steps", "20", "--keep", "10"]
    training_run.main([str(tmp_path), *small])
    run = load([tmp_path / f"{name}.safetensors" for name in ("step-0010", "step-0020", "slow-3", "slow-4")])
    slow, _, fast = (sum(int((m.words(k) != m.words(k + 1)).sum()) for m in run.matrices) for k in range(3))
    assert fast > run.weights / 2 and 0 < slow < run.weights / 20
