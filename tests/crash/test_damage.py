"""Every byte of an archive matters: damage is noticed, and what is intact is recovered. See tools/flip_campaign.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import arzstream
from arzstream.archive.recover import recover
from arzstream.testing import folders


def test_damage_is_noticed_and_the_intact_recovered(repository: Path) -> None:
    command = [sys.executable, "tools/flip_campaign.py", "--one-bit", "--size", "6000", "--stride", "31", "--jobs", "1"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("at", [9, -127], ids=["prologue", "trailer"])
def test_a_damaged_version_at_one_end_does_not_prevent_recovery(at: int, tmp_path: Path) -> None:
    arzstream.pack(str(folders.step(tmp_path / "step", layers=1, width=32)), str(tmp_path / "x.arz"))
    damaged = bytearray((tmp_path / "x.arz").read_bytes())
    damaged[at] ^= 1 << 5
    (tmp_path / "bad.arz").write_bytes(damaged)
    assert not recover(str(tmp_path / "bad.arz"), str(tmp_path / "out.arz")).lost_tensors
