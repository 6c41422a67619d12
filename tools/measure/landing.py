"""How much of a checkpoint is archived before its last byte is written: ``python -m tools.measure.landing``.

A writer lands a model tensor by tensor (in place as safetensors 0.7 does, and preallocated as a release candidate of
0.8 did) while the daemon watches; at the last byte the growing archive is opened and its committed layers are counted.
Then a writer that goes back and changes what was coded already: the archive must hold what the file ended up with.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path

import arzstream
from arzstream.errors import ArzError
from arzstream.formats.order import layer_of
from arzstream.testing import process, tensors, writers
from tools.measure.checks import Checks

AT_LEAST = 0.80


def committed(dest: Path) -> set[str]:
    """Tensors that the growing archive in ``dest`` (whatever it is called) already holds, durably."""
    names: set[str] = set()
    for path in (p for p in dest.rglob("*") if (p.is_file() and p.name.endswith(".arz")) or ".arz-tmp-" in p.name):
        try:
            with arzstream.open(str(path)) as archive:
                names |= set(archive.keys())
        except ArzError:
            continue  # nothing committed yet
    return names


class Watching(writers.EventLog):
    """Looks at the destination when the last byte has been written, and before the file is closed."""

    def __init__(self, dest: Path) -> None:
        super().__init__()
        self._dest, self.held = dest, set[str]()

    def __call__(self, event: str, path: writers.StrPath = "") -> None:
        super().__call__(event, path)
        if event == "last byte":
            self.held = committed(self._dest)


def landed(style: str, base: Path, seconds: float, check: Checks) -> None:
    """One writer, one figure."""
    source, dest = base / "source", base / "dest"
    source.mkdir()
    weights = tensors.model(layers=24, width=256, vocabulary=2048)
    with process.Daemon(source, dest) as daemon:
        daemon.until((dest / ".arzstream").exists, "journal")
        log = Watching(dest)
        pace = writers.Pace(rate=tensors.tensor_bytes(weights) / seconds, piece=1 << 16)
        (source / "step-1").mkdir()
        writers.single(source / "step-1" / "model.safetensors", weights, style=style, pace=pace, log=log)
        visible = daemon.published("step-1.arz") - log.last()
    layers = {layer_of(t.name) for t in weights}
    missing = {layer_of(t.name) for t in weights if t.name not in log.held}
    share = 1 - len(missing) / len(layers)
    exact = _exact(source / "step-1", dest / "step-1.arz", base / "back")
    check(
        share > AT_LEAST and exact,
        f"{style}: {share:.0%} of {len(layers)} layers archived when the last byte was written (over {AT_LEAST:.0%}); "
        f"visible {visible:.2f} s later{'' if exact else '; NOT EXACT'}",
    )


def rewritten(style: str, base: Path, seconds: float, check: Checks) -> None:
    """A region that has been coded is written again, before the file is complete."""
    source, dest = base / "source", base / "dest"
    source.mkdir()
    weights = tensors.model(layers=12, width=128, vocabulary=1024)
    path, log = source / "step-1" / "model.safetensors", writers.EventLog()
    path.parent.mkdir()
    pace = writers.Pace(rate=tensors.tensor_bytes(weights) / seconds, piece=1 << 14)
    with process.Daemon(source, dest) as daemon:
        daemon.until((dest / ".arzstream").exists, "journal")
        thread = threading.Thread(
            target=writers.single, args=(path, weights), kwargs={"style": style, "pace": pace, "log": log}
        )
        thread.start()
        coded = daemon.until(lambda: len(committed(dest)) > 20, "twenty tensors archived", poll=0.05)
        before_end = thread.is_alive()
        header = len(tensors.safetensors_header(weights)[0])
        writers.rewrite(path, header + 5000, bytes(range(256)) * 16, writers.EventLog())
        thread.join()
        daemon.published("step-1.arz")
        time.sleep(0.1)
    exact = _exact(source / "step-1", dest / "step-1.arz", base / "back")
    check(
        exact and before_end and coded < log.last(),
        f"{style}: 4096 bytes changed once they were archived, before the last byte: noticed, the archive is exact",
    )


def _exact(source: Path, archive: Path, back: Path) -> bool:
    arzstream.unpack(str(archive), str(back))
    return process.tree(back) == process.tree(source)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="how long the writer takes")
    args = parser.parse_args()
    check = Checks()
    for measure, styles in ((landed, ("grow", "fill", "renamed")), (rewritten, ("grow", "fill"))):
        for style in styles:
            with tempfile.TemporaryDirectory(prefix="arz-landing-") as base:
                measure(style, Path(base), args.seconds, check)
    return check.status()


if __name__ == "__main__":
    sys.exit(main())
