"""The command line starts fast, because it imports little."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

AT_MOST = 0.3
HEAVY = {"torch", "rich", "transformers", "safetensors", "fsspec", "watchdog", "constriction", "sqlite3", "asyncio"}


def imports(*arguments: str | Path) -> set[str]:
    """Every module that a run imports."""
    argv = [sys.executable, "-X", "importtime", "-m", "arzstream", *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


def test_listing_imports_nothing_heavy(archive: Path) -> None:
    found = imports("ls", archive)
    assert "arzstream.archive.reader" in found
    assert {name.split(".")[0] for name in found} & HEAVY == set()
    unused = (
        "arzstream.formats.safetensors",
        "arzstream.archive.builder",
        "arzstream.archive.restore",
        "arzstream.daemon",
    )
    assert not {name for name in found if name.startswith(unused)}


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_load_no_verb_and_no_numpy(option: str) -> None:
    found = imports(option)
    assert "numpy" not in found
    assert not {f"arzstream.cli.{verb}" for verb in ("pack", "ls", "watch", "doctor")} & found


def test_doctor_does_not_import_what_it_looks_for(archive: Path) -> None:
    assert {name.split(".")[0] for name in imports("doctor")} & HEAVY == set()


@pytest.mark.alone
def test_listing_takes_under_a_third_of_a_second(archive: Path) -> None:
    """In processor time: that is what we can answer for on a machine that others use, too."""
    argv = [sys.executable, "-m", "arzstream", "ls", str(archive)]
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(times) < AT_MOST
