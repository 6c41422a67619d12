"""The commands that print the project's figures run, and what they claim holds; in small where that is possible."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def run(repository: Path, *arguments: str, timeout: float = 600) -> str:
    """Run a command of the repository that must succeed; what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=repository, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_bad_input_gives_one_line_and_the_right_status(repository: Path) -> None:
    assert "FAILED" not in run(repository, "-m", "tools.measure.bad_input")


def test_real_model_comes_back_and_is_as_small_as_promised(repository: Path) -> None:
    assert "5 of 5 hold" in run(
        repository, "-m", "tools.measure.roundtrip", "MiniLM bf16", "MiniLM fp32", "save_pretrained bf16"
    )


def test_reading_touches_only_what_is_asked_for(repository: Path) -> None:
    assert "4 of 4 hold" in run(repository, "-m", "tools.measure.laziness", "--layers", "2", "--width", "1024")


@pytest.mark.alone
def test_the_command_line_starts_at_once_and_without_torch(repository: Path) -> None:
    assert "2 of 2 hold" in run(repository, "-m", "tools.measure.startup")


@pytest.mark.alone
def test_most_layers_are_archived_before_the_last_byte_is_written(repository: Path) -> None:
    assert "5 of 5 hold" in run(repository, "-m", "tools.measure.landing", "--seconds", "5")


@pytest.mark.alone
def test_demonstration_in_small(repository: Path, tmp_path: Path) -> None:
    printed = run(repository, "-m", "tools.demo", "--quick", "--base", str(tmp_path))
    assert "logits" in printed and "FAILED" not in printed
    assert len(list(tmp_path.glob("archive/*/step-*.arz"))) == 4


def test_a_watched_run_makes_chains_that_survive_a_kill_and_pruning(repository: Path) -> None:
    size = ("--checkpoints", "4", "--steps", "1", "--layers", "2", "--width", "128")
    assert "8 of 8 hold" in run(repository, "-m", "tools.measure.chains", *size, "--max-chain", "2", "--rate", "20e6")
