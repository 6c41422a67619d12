"""A training run, archived while it saves, and read back: ``python -m tools.demo``.

A GPT of some 20 M parameters learns Python from Python source. The daemon watches ./checkpoints and fills ./archive:
the first archive of the run stands alone, the others are each coded against the one before.
The saves of the run are held to the speed of shared storage. A writer that mostly waits for its storage would not feel
the daemon, so what saves lose is measured apart, with saves at full speed, in turns watched and not. At the end the
last archive is opened lazily, its weights go into a fresh model, and that model must give the trained one's logits bit
for bit.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import arzstream
from arzstream.testing import process
from tools.demo.gpt import GPT, Config, Trainer
from tools.demo.saving import Saved, save, weights

VISIBLE_AT_MOST = 0.30
SLOWER_AT_MOST = 0.15
VERDICTS = {True: "ok    ", False: "FAILED", None: "unsure"}


@dataclasses.dataclass
class Checkpoint:
    """One checkpoint's figures."""

    saved: Saved
    visible: float
    archive: Path

    @property
    def wait(self) -> float:
        """Seconds from the last byte written to the archive visible."""
        return self.visible - self.saved.last_byte


@dataclasses.dataclass
class Demo:
    """What to do. ``rate`` is the speed of the storage that is saved to, in bytes per second; ``timed`` says that
    times are among what must hold."""

    base: Path
    config: Config
    checkpoints: int
    steps: int
    rate: float
    pairs: int = 9
    timed: bool = True
    alone: bool = False
    """Code each checkpoint alone, for comparison."""

    def run(self) -> int:
        """Everything; the exit status."""
        started, name = time.monotonic(), time.strftime("run-%Y%m%d-%H%M%S")
        source, dest = self.base / "checkpoints", self.base / "archive"
        source.mkdir(exist_ok=True)
        trainer = Trainer(self.config, batch=4)
        parameters = sum(p.numel() for p in trainer.model.parameters())
        say(f"training a GPT of {parameters / 1e6:.1f} M parameters on {len(trainer.text) / 1e6:.1f} MB of Python;")
        say(f"it saves to {source / name}, at {self.rate / 1e6:.0f} MB/s as shared storage would; arzstream watches\n")
        with tempfile.TemporaryDirectory(prefix=".unwatched-", dir=self.base) as aside:
            options = ("--no-parents",) if self.alone else ()
            with process.Daemon(source, dest, *options) as daemon:
                done = [self._one(trainer, daemon, name) for _ in range(self.checkpoints)]
            say("\npacking and verifying the last finished folder, for comparison")
            last, before = done[-1].saved.folder, None if self.alone else done[-2].archive
            packed = [pack_and_verify(last, Path(aside), before) for _ in range(3)]
            alone = pack_alone(last, Path(aside))
            checks = self._read_back(trainer, done[-1])
            say(f"saving {self.pairs} times with the daemon watching and {self.pairs} times without, at full speed")
            pairs = full_speed(trainer, Path(aside), self.pairs, options)
        checks += [] if self.alone else [chain(done, alone)]
        times = summary(done, statistics.median(packed), pairs, self.rate)
        checks += times if self.timed else []
        say(f"\nthe whole took {time.monotonic() - started:.0f} s; look at {source / name} and {dest / name}")
        for text, good in checks:
            say(f"  {VERDICTS[good]}  {text}")
        return 1 if any(good is False for _, good in checks) else 0

    def _one(self, trainer: Trainer, daemon: process.Daemon, run: str) -> Checkpoint:
        """Train, save, and wait for the archive."""
        loss = trainer.train(self.steps)
        name = f"{run}/step-{trainer.step:06}"
        saved = save(trainer, daemon.source / name, self.rate)
        visible = daemon.published(f"{name}.arz", timeout=120)
        one = Checkpoint(saved, visible, daemon.dest / f"{name}.arz")
        ratio = one.archive.stat().st_size / saved.bytes
        with arzstream.open(str(one.archive)) as archive:
            parent = next((hint for hint, _ in archive.parents()), "")
        against = f" against {parent.removesuffix('.arz')}" if parent else " alone"
        say(
            f"step {trainer.step:4}  loss {loss:.3f}  saved {saved.bytes / 1e6:.1f} MB in {saved.seconds:.2f} s, "
            f"archived{against} to {ratio:.1%}, visible {one.wait:.2f} s after the last byte"
        )
        return one

    def _read_back(self, trainer: Trainer, last: Checkpoint) -> list[tuple[str, bool | None]]:
        """Lazily from the archive into a fresh model; and the whole folder, byte for byte."""
        model, trained = GPT(self.config).bfloat16(), GPT(self.config).bfloat16()
        trained.load_state_dict(weights(trainer))
        names = list(model.state_dict())
        began = time.monotonic()
        with arzstream.open(str(last.archive)) as archive:
            state = archive.state_dict()
            model.load_state_dict({name: archive.get_tensor(name) for name in names})
            seconds = time.monotonic() - began
            say(f"\nread {len(names)} of {len(state)} tensors from {last.archive.name} in {seconds:.2f} s")
        tokens = trainer.windows()[:, :-1]
        with torch.no_grad():
            same = torch.equal(model(tokens).view(torch.int16), trained(tokens).view(torch.int16))
        with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=self.base) as back:
            arzstream.unpack(str(last.archive), back)
            identical = process.tree(back) == process.tree(last.saved.folder)
        return [
            ("logits of the model read from the archive: the trained model's, bit for bit", same),
            ("unpacked folder: every file byte for byte", identical),
        ]


@dataclasses.dataclass
class Pair:
    """Two saves at full speed: seconds with the daemon watching and without, and until the watched one was visible."""

    watched: float
    alone: float
    wait: float


def full_speed(trainer: Trainer, aside: Path, count: int, options: Sequence[str] = ()) -> list[Pair]:
    """``count`` pairs of saves, in random order within a pair; the daemon has nothing to do when a save begins.

    The other save goes to the same folder while the daemon is stopped (SIGSTOP), so that nothing else differs.
    """
    pairs, order = [], random.Random(0)
    (aside / "watched").mkdir()
    with process.Daemon(aside / "watched", aside / "archive", *options) as daemon:
        daemon.until((aside / "archive" / process.JOURNAL).exists, "journal")
        for i in range(count):
            seconds = {True: 0.0, False: 0.0}
            wait = 0.0
            for watching in order.sample([True, False], 2):
                trainer.train(1)  # or there would be nothing to code
                name = f"save-{i}-{'watched' if watching else 'alone'}"
                if not watching:
                    daemon.pause()
                saved = save(trainer, aside / "watched" / name, None)
                daemon.resume()
                visible = daemon.published(f"{name}.arz", timeout=120)
                seconds[watching] = saved.seconds
                wait = visible - saved.last_byte if watching else wait
                shutil.rmtree(aside / "watched" / name)
            pairs.append(Pair(seconds[True], seconds[False], wait))
    return pairs


def pack_and_verify(folder: Path, aside: Path, parent: Path | None) -> float:
    """Seconds that ``arzstream pack --parent`` and ``verify --deep`` take on a folder that is finished."""
    began, archive = time.monotonic(), aside / "finished.arz"
    against, beside = (("--parent", parent), ("--parents", parent.parent)) if parent is not None else ((), ())
    run("pack", folder, "-o", archive, "--force", "--quiet", *against)
    run("verify", "--deep", archive, "--quiet", *beside)
    return time.monotonic() - began


def pack_alone(folder: Path, aside: Path) -> int:
    """Bytes of an archive of ``folder`` that stands alone."""
    run("pack", folder, "-o", aside / "alone.arz", "--quiet")
    return (aside / "alone.arz").stat().st_size


def run(*arguments: process.StrPath) -> None:
    done = process.arzstream(*arguments)
    if done.returncode:
        raise SystemExit(f"arzstream {arguments[0]} failed: {done.stderr.strip()}")


def chain(done: list[Checkpoint], alone: int) -> tuple[str, bool | None]:
    """Print what coding against the checkpoint before saved; ``alone`` is what the last archive would take alone."""
    last = done[-1]
    archives = [c.archive.stat().st_size for c in done]
    saved = sum(alone - size for size in archives[1:])
    say("\nthe chain")
    say(f"  {'archive':12}{'of the original':>16}")
    for one, size in zip(done, archives, strict=True):
        say(f"  {one.saved.folder.name:12}{size / one.saved.bytes:>16.1%}")
    say(f"  the last one, {last.saved.folder.name}, takes {archives[-1]:,} bytes; alone it would take {alone:,}")
    say(f"  together {len(done) - 1} archives are about {saved / 1e6:.1f} MB smaller for being coded against others")
    return (
        f"coded against the one before, the last takes {archives[-1] / alone:.0%} of what it would alone",
        saved > 0,
    )


def slowdown(pairs: list[Pair]) -> tuple[float, float, float]:
    """How much slower a watched save is, 0.1 for a tenth: by the medians, and the bounds that hold it in 95 of 100
    cases (bootstrap over the pairs). A machine that does other work gives wide bounds."""

    def of(chosen: list[Pair]) -> float:
        return statistics.median(p.watched for p in chosen) / statistics.median(p.alone for p in chosen) - 1

    rng = random.Random(0)
    drawn = sorted(of(rng.choices(pairs, k=len(pairs))) for _ in range(2000))
    return of(pairs), drawn[50], drawn[1949]


def summary(done: list[Checkpoint], packed: float, pairs: list[Pair], rate: float) -> list[tuple[str, bool | None]]:
    """Print the table; what must hold, and whether it does (None: too noisy to say)."""
    before, after = sum(c.saved.bytes for c in done), sum(c.archive.stat().st_size for c in done)
    wait, waits = statistics.median(c.wait for c in done), ", ".join(f"{c.wait:.2f}" for c in done)
    watched, alone = statistics.median(p.watched for p in pairs), statistics.median(p.alone for p in pairs)
    at_once = statistics.median(p.wait for p in pairs)
    share, (slower, low, high) = wait / packed, slowdown(pairs)
    verdict = True if high <= SLOWER_AT_MOST else False if low > SLOWER_AT_MOST else None
    rows = [
        ("checkpoints", f"{len(done)}, saved at {rate / 1e6:.0f} MB/s"),
        ("bytes in", f"{before:,}"),
        ("bytes out", f"{after:,}"),
        ("ratio", f"{after / before:.1%} of the original ({1 - after / before:.1%} saved)"),
        ("last byte written to archive visible", f"{wait:.2f} s (median of {waits})"),
        ("packing and verifying a finished folder", f"{packed:.2f} s (median of 3)"),
        ("a save at full speed, daemon watching", f"{watched:.2f} s (median of {len(pairs)})"),
        ("a save at full speed, daemon stopped", f"{alone:.2f} s (median of {len(pairs)})"),
        ("... archive visible after its last byte", f"{at_once:.2f} s ({at_once / packed:.0%} of pack and verify)"),
    ]
    say("\nsummary")
    for title, value in rows:
        say(f"  {title:42}{value}")
    say("  full-speed saves, watched: " + " ".join(f"{s:.2f}" for s in sorted(p.watched for p in pairs)))
    say("  full-speed saves, stopped: " + " ".join(f"{s:.2f}" for s in sorted(p.alone for p in pairs)))
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores:
        say(f"  other programs keep this machine busy (load {load:.1f} on {cores} cores): times say little")
    return [
        (
            f"visible after {share:.0%} of the time to pack and verify (at most {VISIBLE_AT_MOST:.0%})",
            share <= VISIBLE_AT_MOST,
        ),
        (
            f"full-speed saves {slower:+.0%} slower, {low:+.0%} to {high:+.0%} (at most {SLOWER_AT_MOST:.0%})",
            verdict,
        ),
    ]


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/start", description=__doc__.split("\n")[0])
    parser.add_argument("--base", type=Path, default=Path.cwd(), help="where ./checkpoints and ./archive are (here)")
    parser.add_argument("--checkpoints", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="training steps between checkpoints")
    parser.add_argument("--layers", type=int, default=7)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rate", type=float, default=125e6, help="speed of the storage saved to, bytes per second")
    parser.add_argument("--alone", action="store_true", help="code each checkpoint alone, for comparison")
    parser.add_argument("--quick", action="store_true", help="a tiny model; times are printed, and prove nothing")
    args = parser.parse_args()
    if args.checkpoints < 2:
        parser.error("--checkpoints: a chain has at least 2")
    if args.quick:
        args.checkpoints, args.steps, args.layers, args.width, args.rate = 4, 2, 2, 128, 10e6
    config = Config(layers=args.layers, width=args.width, heads=args.width // 64)
    return Demo(
        args.base.resolve(),
        config,
        args.checkpoints,
        args.steps,
        args.rate,
        pairs=2 if args.quick else 9,
        timed=not args.quick,
        alone=args.alone,
    ).run()


if __name__ == "__main__":
    sys.exit(main())
