"""What chains of checkpoints save, and that nothing gets lost: ``python -m tools.measure.chains``.

Trains the demo's GPT; the daemon archives its checkpoints (bf16 weights, fp32 master weights and AdamW's moments) while
they are written. In the middle of a save the daemon is killed, and started again. Prints bytes for each checkpoint,
beside those of an archive that stands alone; then prunes, and unpacks and compares every step, before and after.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import arzstream
from arzstream.testing import process
from tools.demo.gpt import Config, Trainer
from tools.demo.saving import save
from tools.measure.checks import Checks

OPTIONS = ("--rescan", "1")


@dataclasses.dataclass
class Step:
    """A checkpoint, its archive, and one that stands alone; sizes in bytes."""

    source: Path
    archive: Path
    size: int
    archived: int
    alone: int
    parent: str


@dataclasses.dataclass
class Run:
    """``checkpoints`` checkpoints, ``steps`` training steps apart; the one in the middle is written with a kill."""

    base: Path
    trainer: Trainer
    checkpoints: int
    steps: int
    max_chain: int
    rate: float

    def watched(self) -> list[Step]:
        """Train, save, kill, and wait for all archives."""
        source, dest, done = self.base / "source", self.base / "archive", list[Step]()
        source.mkdir()
        with process.Daemon(source, dest, *OPTIONS, "--max-chain", str(self.max_chain)) as daemon:
            daemon.until((dest / process.JOURNAL).exists, "journal")
            for number in range(self.checkpoints):
                self.trainer.train(self.steps)
                name = f"step-{self.trainer.step:06}"
                thread = threading.Thread(target=save, args=(self.trainer, source / name, self.rate))
                thread.start()
                if number == self.checkpoints // 2:
                    daemon.until(lambda: any(".arz-tmp-" in p.name for p in dest.iterdir()), "early coding")
                    time.sleep(0.2)
                    daemon.kill()
                    daemon.start()
                thread.join()
                daemon.published(f"{name}.arz", timeout=300)
                done.append(self._step(source / name, dest / f"{name}.arz"))
                _print(done[-1], killed=number == self.checkpoints // 2)
        return done

    def _step(self, source: Path, archive: Path) -> Step:
        alone = self.base / "alone.arz"
        summary = arzstream.pack(str(source), str(alone), force=True)
        with arzstream.open(str(archive)) as opened:
            parent = next((hint for hint, _ in opened.parents()), "")
        return Step(source, archive, summary.bytes_in, archive.stat().st_size, summary.bytes_out, parent)


def _print(step: Step, *, killed: bool) -> None:
    against = step.parent.removesuffix(".arz") or "alone"
    print(
        f"{step.source.name:12}{step.size:>12,}{step.archived:>12,} {step.archived / step.size:6.1%}"
        f"{step.alone:>12,} {step.alone / step.size:6.1%}  {against}{'  (killed meanwhile)' if killed else ''}",
        flush=True,
    )


def exact(steps: Sequence[Step], base: Path) -> bool:
    """Does every archive that is there unpack to its source, byte for byte?"""
    for step in steps:
        if step.archive.exists():
            with tempfile.TemporaryDirectory(dir=base) as back:
                arzstream.unpack(str(step.archive), back)
                if process.tree(back) != process.tree(step.source):
                    return False
    return True


def prune(done: Sequence[Step], keep: int, base: Path, check: Checks) -> None:
    """Keep the last ``keep``; they need nothing that is gone."""
    dest = done[0].archive.parent
    before = sum(path.stat().st_size for path in dest.glob("*.arz"))
    result = process.arzstream("prune", dest, "--keep-last", str(keep), "--yes", "--json", timeout=600)
    if result.returncode:
        raise SystemExit(f"arzstream prune failed: {result.stderr.strip()}")
    found, left = json.loads(result.stdout), [step for step in done if step.archive.exists()]
    after = sum(path.stat().st_size for path in dest.glob("*.arz"))
    print(f"\npruned to the last {keep}: {len(found['removed'])} archives removed, {found['freed']:,} bytes;")
    print(f"{len(found['rebased'])} coded anew, {found['grown']:+,} bytes; {before:,} bytes are now {after:,}\n")
    wanted = {step.source.name for step in done[-keep:]}
    check(wanted <= {step.source.name for step in left}, f"the last {keep} are there")
    check(before - after == found["freed"] - found["grown"], "the bytes freed are those that prune says")
    check(exact(left, base), f"pruned: {len(left)} steps unpacked, every file byte for byte")
    check(process.leftovers(dest, [step.archive.name for step in left]) == [], "nothing else lies there")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoints", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10, help="training steps between checkpoints")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--max-chain", type=int, default=5)
    parser.add_argument("--keep", type=int, default=2, help="how many pruning keeps")
    parser.add_argument("--rate", type=float, default=125e6, help="speed of the storage saved to, bytes per second")
    args = parser.parse_args()
    trainer, check = Trainer(Config(layers=args.layers, width=args.width, heads=args.width // 64), batch=4), Checks()
    parameters = sum(p.numel() for p in trainer.model.parameters())
    print(f"a GPT of {parameters / 1e6:.1f} M parameters, {args.steps} steps of training between checkpoints\n")
    print(f"{'checkpoint':12}{'bytes':>12}{'archived':>12}{'alone':>19}{'against':>16}")
    with tempfile.TemporaryDirectory(prefix="arz-chains-") as folder:
        base = Path(folder)
        done = Run(base, trainer, args.checkpoints, args.steps, args.max_chain, args.rate).watched()
        total, archived, alone = (sum(getattr(s, key) for s in done) for key in ("size", "archived", "alone"))
        print(f"{'together':12}{total:>12,}{archived:>12,} {archived / total:6.1%}{alone:>12,} {alone / total:6.1%}")
        print(f"coded against each other they take {archived / alone:.1%} of what they would alone\n")
        full = [index for index, step in enumerate(done) if not step.parent]
        check(full == list(range(0, len(done), args.max_chain + 1)), "full archives on schedule, the kill regardless")
        check(archived < alone, "chains are smaller than archives that stand alone")
        check(exact(done, base), f"{len(done)} steps unpacked, every file byte for byte")
        check(process.leftovers(base / "archive", [s.archive.name for s in done]) == [], "no file was left behind")
        prune(done, args.keep, base, check)
    return check.status()


if __name__ == "__main__":
    sys.exit(main())
