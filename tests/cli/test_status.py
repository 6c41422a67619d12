"""``arzstream status`` of a journal, without a daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from arzstream.cli.status import MISSING
from arzstream.daemon.journal import Archive, Entry, Journal
from arzstream.daemon.states import State

from .conftest import Arz


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    """Three checkpoints were archived; the third is being archived anew."""
    with Journal.open(str(tmp_path)) as journal:
        for number in range(1, 4):
            name, path = f"step-{number}.arz", b"step-%d" % number
            state = State.CODING if number == 3 else State.PUBLISHED
            entry = Entry(path, state=state, bytes_in=1000 * number, bytes_out=100 * number, archive=name)
            journal.add_archive(Archive(name, path, 1.0, 1000 * number, 100 * number, "00"), entry)
            (tmp_path / name).touch()
    return tmp_path


def test_an_archive_that_is_missing_is_said_to_be_and_counts_for_nothing_saved(arz: Arz, dest: Path) -> None:
    totals = arz("status", dest, "--json").json["totals"]
    assert (totals["missing"], totals["bytes_in"], totals["bytes_out"]) == (0, 3000, 300)
    assert "missing" not in arz("status", dest).out
    (dest / "step-2.arz").unlink()
    (dest / "step-3.arz").unlink()
    found = arz("status", dest, "--json").json
    assert [entry["missing"] for entry in found["checkpoints"]] == [False, True, False]
    assert [archive["missing"] for archive in found["archives"]] == [False, True, True]
    totals = found["totals"]
    assert (totals["missing"], totals["bytes_in"], totals["bytes_out"]) == (1, 1000, 100)
    assert totals["states"] == {"coding": 1, "published": 2}
    out = arz("status", dest).out
    assert out.count(MISSING) == 1 and "3 checkpoints: 1 coding, 2 published, 1 of which is missing; " in out
    (dest / "step-1.arz").unlink()
    assert arz("status", dest).out.endswith("3 checkpoints: 1 coding, 2 published, 2 of which are missing\n")
