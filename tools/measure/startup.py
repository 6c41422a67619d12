"""How long the command line takes to start: ``python -m tools.measure.startup``."""

from __future__ import annotations

import dataclasses
import os
import resource
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


@dataclasses.dataclass
class Times:
    """Seconds of several runs as a process: on the clock, and of processor time."""

    wall: list[float]
    processor: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.wall)

    def __str__(self) -> str:
        best, processor = min(self.wall), statistics.median(self.processor)
        return f"{self.median:.3f} s (median of {len(self.wall)}; best {best:.3f} s, processor time {processor:.3f} s)"


def timed(argv: list[str], runs: int = 9) -> Times:
    """Run a command ``runs`` times; it must succeed."""
    times = Times([], [])
    for _ in range(runs):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run(argv, check=True, capture_output=True)
        times.wall.append(time.monotonic() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.processor.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return times


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
        bare, took = timed([sys.executable, "-c", "pass"]), timed([*process.command(), "ls", str(archive)])
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; python -c pass: {bare}")
        check(took.median < AT_MOST, f"arzstream ls: {took}, under {AT_MOST} s")
        unwanted = sorted(imported(archive) & set(NEVER))
        check(
            not unwanted,
            f"arzstream ls imports none of {', '.join(NEVER)}" + (f", but: {unwanted}" if unwanted else ""),
        )
    return check.status()


if __name__ == "__main__":
    sys.exit(main())
