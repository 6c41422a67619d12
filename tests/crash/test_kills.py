"""The daemon is killed while a checkpoint lands. See tools/kill_campaign.py, whose full run kills it 200 times."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def run(repository: Path, *arguments: str) -> str:
    command = [sys.executable, "tools/kill_campaign.py", *arguments]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_random_kills_lose_nothing(repository: Path) -> None:
    assert "9 correct archives: 0 lost" in run(repository, "--count", "6", "--seed", "1")  # three of them once more


@pytest.mark.skipif(
    not shutil.which("strace") and not os.environ.get("CI"), reason="impossible here: there is no strace"
)
def test_kills_at_system_calls_lose_nothing(repository: Path) -> None:
    assert "0 lost" in run(repository, "--syscalls", "--stride", "7", "--limit", "15")


@pytest.mark.skipif(
    not shutil.which("strace") and not os.environ.get("CI"), reason="impossible here: there is no strace"
)
def test_kills_while_archives_are_pruned_lose_nothing(repository: Path) -> None:
    assert "0 lost" in run(repository, "--syscalls", "--prune", "--stride", "9", "--limit", "10")
