"""The runs that are measured are trained as they say, once."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tools.demo.gpt import Config, Schedule, Trainer, corpus
from tools.demo.subwords import subwords
from tools.measure import training_runs
from tools.measure.training_runs import RECIPES, Recipe, add_options, chosen, ensure

SMALL = Recipe(1, 64, 256, 2, 5e-4, 10, 60, steps=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run, trained."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    ensure(SMALL, folder)
    return folder


def test_a_schedule_rises_to_its_peak_and_falls_to_a_tenth_of_it() -> None:
    factors = [Schedule(1.0, 20, 300).factor(step) for step in range(400)]
    assert factors[0] == 1 / 20 and factors[19] == factors[20] == 1.0
    assert all(a > b for a, b in itertools.pairwise(factors[20:301]))
    assert math.isclose(factors[160], 0.55) and math.isclose(factors[300], 0.1) and math.isclose(factors[399], 0.1)


def test_without_a_length_a_schedule_stays_at_its_peak() -> None:
    factors = [Schedule().factor(step) for step in range(400)]
    assert factors[:10] == [(step + 1) / 10 for step in range(10)] and set(factors[9:]) == {1.0}


def test_the_optimiser_gets_the_rates_of_the_schedule_and_then_the_one_that_is_held() -> None:
    trainer = Trainer(Config(1, 64, 1), batch=1, schedule=Schedule(1e-3, 2, 8), betas=(0.9, 0.99))
    rates = []
    for _ in range(4):
        rates.append(trainer.rate)
        trainer.train(1)
    assert rates == [pytest.approx(1e-3 * Schedule(1e-3, 2, 8).factor(step)) for step in range(4)]
    assert trainer.optimizer.param_groups[0]["betas"] == (0.9, 0.99)
    trainer.hold(1e-5)
    assert trainer.rate == 1e-5
    trainer.train(2)
    assert trainer.rate == 1e-5


def test_subwords_are_fewer_than_bytes_and_within_the_vocabulary() -> None:
    tokens, text = subwords(300), corpus()
    assert tokens.dtype == torch.int64 and 256 <= int(tokens.max()) < 300
    assert len(tokens) < len(text)


def test_a_run_keeps_its_checkpoints_and_what_it_was(folder: Path) -> None:
    run = ensure(SMALL, folder)
    assert {path.name for path in folder.glob("step-*")} == {f"step-{step:04}.safetensors" for step in (10, 20, 30)}
    assert run.notes["parameters"] == sum(t.numel() for t in load_file(run.at(30)).values())
    assert [rates[0] for rates in run.notes["rates"]] == [10, 20, 30]
    assert run.notes["rates"][-1][1] == pytest.approx(5e-4 * Schedule(5e-4, 10, 60).factor(30))


def test_about_a_hundredth_of_the_weights_changes_at_the_low_rate(folder: Path) -> None:
    run = ensure(SMALL, folder)
    words = [
        torch.cat([t.flatten() for t in load_file(run.slow(number)).values()]).view(torch.int16) for number in (3, 4)
    ]
    assert 0.005 < float((words[0] != words[1]).float().mean()) < 0.02


def test_a_run_that_is_there_is_not_trained_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_runs, "Trainer", None)
    ensure(SMALL, folder)


def test_a_folder_with_another_run_is_refused(folder: Path) -> None:
    with pytest.raises(SystemExit, match="trained otherwise"):
        ensure(dataclasses.replace(SMALL, rate=1e-3), folder)


def test_a_folder_with_anything_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine\n")
    with pytest.raises(SystemExit, match="holds no run"):
        ensure(SMALL, tmp_path)


def test_options_choose_runs_and_change_them() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    assert chosen(parser.parse_args([])) == RECIPES
    found = chosen(parser.parse_args(["--run", "bytes-constant", "--beta2", "0.99", "--schedule-steps", "300"]))
    assert found == {"bytes-constant": dataclasses.replace(RECIPES["bytes-constant"], beta2=0.99, schedule_steps=300)}
