"""How long the command line takes to start: ``python -m tools.measure.startup``."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from arzstream.testing import folders, process
from tools.measure.checks import Checks

AT_MOST = 0.3
NEVER = ("torch", "transformers", "safetensors", "constriction", "fsspec")
"""Modules that listing a local archive has no use for."""


def seconds(archive: Path, runs: int = 9) -> float:
    """Median wall time of ``arzstream ls`` as a process."""
    times = []
    for _ in range(runs):
        began = time.monotonic()
        done = process.arzstream("ls", archive)
        times.append(time.monotonic() - began)
        assert done.returncode == 0, done.stderr
    return statistics.median(times)


def imported(archive: Path) -> set[str]:
    """Top-level modules that ``arzstream ls`` imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "arzstream", "ls", str(archive)],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {name.split(".")[0] for name in lines}


def main() -> int:
    check = Checks()
    with tempfile.TemporaryDirectory(prefix="arz-startup-") as base:
        archive = Path(base) / "x.arz"
        done = process.arzstream("pack", folders.step(Path(base) / "step"), "-o", archive, "--quiet")
        assert done.returncode == 0, done.stderr
        bare = time.monotonic()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        bare = time.monotonic() - bare
        took = seconds(archive)
        check(
            took < AT_MOST, f"arzstream ls: {took:.3f} s, median of 9 (under {AT_MOST} s; python -c pass: {bare:.3f} s)"
        )
        unwanted = sorted(imported(archive) & set(NEVER))
        check(
            not unwanted,
            f"arzstream ls imports none of {', '.join(NEVER)}" + (f", but: {unwanted}" if unwanted else ""),
        )
    return check.status()


if __name__ == "__main__":
    sys.exit(main())
