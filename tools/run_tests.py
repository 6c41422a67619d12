"""Run the whole suite as a few pytest runs and close with one line of totals.

Why more than one run: tests that measure time or memory must not share the cores with others, and the archives must
come out the same when the NumPy reference does the work of the native kernels.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Run(NamedTuple):
    """One pytest process: its title, the backend it asks for and its arguments."""

    title: str
    kernels: str
    arguments: list[str]


# What the choice of backend could change: kernels, codecs, the vectors of the specification, whole folders.
BACKEND = ["tests/kernels", "tests/codec", "tests/spec", "tests/archive/test_round_trip.py"]
RUNS = [
    Run("the suite", "native", ["-n", "2", "--dist", "worksteal", "-m", "not alone"]),
    Run("what measures time or memory, one at a time", "native", ["-m", "alone"]),
    Run(
        "the NumPy reference in place of the native kernels",
        "numpy",
        ["-n", "2", "-m", "not alone", *BACKEND],
    ),
]


class Count(NamedTuple):
    """What one pytest run, or all of them, came to."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def plus(self, other: Count) -> Count:
        return Count(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped)


def count(report: Path) -> Count:
    """Read the totals of a JUnit report."""
    keys = ("tests", "failures", "errors", "skipped")
    total = Count()
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        tests, failures, errors, skipped = (int(suite.get(key, 0)) for key in keys)
        total = total.plus(Count(tests - failures - errors - skipped, failures + errors, skipped))
    return total


def run(one: Run, report: Path) -> Count:
    """Run pytest once. A run that breaks down, or that finds no test at all, counts as one failure more."""
    command = [sys.executable, "-m", "pytest", f"--junitxml={report}", *one.arguments]
    print(f"\n==> {one.title}: ARZ_KERNELS={one.kernels} pytest {' '.join(one.arguments)}", flush=True)
    status = subprocess.run(command, cwd=ROOT, env={**os.environ, "ARZ_KERNELS": one.kernels}, check=False).returncode
    total = count(report) if report.exists() else Count()
    return total.plus(Count(failed=1)) if status and not total.failed else total


def main() -> int:
    began = time.monotonic()
    total = Count()
    with tempfile.TemporaryDirectory() as folder:
        for number, one in enumerate(RUNS):
            total = total.plus(run(one, Path(folder, f"{number}.xml")))
    print(f"\n==> all runs together, in {time.monotonic() - began:.0f} s")
    print(f"{total.passed} passed, {total.failed} failed" + (f", {total.skipped} skipped" if total.skipped else ""))
    return 1 if total.failed or not total.passed else 0


if __name__ == "__main__":
    sys.exit(main())
