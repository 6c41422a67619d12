"""Every byte of an archive matters: damage is noticed, and what is intact is recovered. See tools/flip_campaign.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_damage_is_noticed_and_the_intact_recovered(repository: Path) -> None:
    command = [sys.executable, "tools/flip_campaign.py", "--one-bit", "--size", "6000", "--stride", "31", "--jobs", "1"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
