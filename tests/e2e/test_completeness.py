"""The libraries that write checkpoints, run for real beside the daemon: nothing premature, nothing missed."""

from __future__ import annotations

import json
from pathlib import Path

from tools.measure import completeness
from tools.writers.context import Context, Writer
from tools.writers.host import everyone


def test_each_writers_saves_are_archived_when_they_are_complete_and_only_then(tmp_path: Path) -> None:
    """A short version of ``python -m tools.measure.completeness --all``: two runs of each, stopped for a second."""
    options = completeness.Options(delay=0.003, longest=1.0, at_once=16)
    wanted = completeness.chosen((), "", runs=2, large=False)
    counts = completeness.measure(wanted, tmp_path, options)
    table = completeness.table(counts)
    print(table)
    assert not any(count.bad for count in counts.values()), table
    assert {writer for writer, _ in counts} == {writer.name for writer in everyone() if not writer.large}
    assert sum(count.saves for count in counts.values()) > 3 * sum(count.runs for count in counts.values()) / 2


def test_what_is_premature_or_missed_is_counted(tmp_path: Path) -> None:
    """Against a writer that says it is done in the middle, and one whose last save nobody saw."""
    import arzstream

    for place in ("source", "logs"):
        (tmp_path / place).mkdir()
    run = completeness.Run(Writer(), "ordinary", 0, tmp_path / "source", tmp_path / "dest", completeness.Options())
    context = Context(run.root, run.dest, run.log)
    run.dest.mkdir(parents=True)
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"3")):
        (run.root / name).mkdir()
        (run.root / name / "model.pt").write_bytes(content)
        if name == "b":  # archived before the writer was done with it
            arzstream.pack(str(run.root / name), str(run.dest / f"{name}.arz"))
            (run.root / name / "optimizer.pt").write_bytes(b"4")
        context.done(name)
    arzstream.pack(str(run.root / "a"), str(run.dest / "a.arz"))
    arzstream.pack(str(run.root / "b"), str(run.dest / "b.2.arz"))
    run.judge()
    assert (run.count.saves, run.count.archives, run.count.premature, run.count.missed) == (3, 3, 1, 1)
    assert "b.arz is premature" in run.count.details[0] and "c has no archive" in run.count.details[1]
    assert [json.loads(line)["event"] for line in run.log.read_text().splitlines()] == ["done"] * 3
