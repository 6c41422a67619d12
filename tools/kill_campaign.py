"""Kill the daemon, again and again, while a three-shard checkpoint lands: nothing may be lost, wrong or left behind.

    python tools/kill_campaign.py                     200 checkpoints, a kill or more in each
    python tools/kill_campaign.py --syscalls          a kill at every system call that changes a file (needs strace)
    python tools/kill_campaign.py --syscalls --prune  the same while archives are pruned

Random kills: a writer lands a checkpoint of three shards, tensor by tensor, each some training after the one before,
so that it is coded against that; the daemon is killed with signal 9 at a random moment between the writer's start and a
little after the usual end, and started again, and sometimes killed once more while it starts. Then the archive must
become visible, decode to exactly the bytes of the source with every digest right, and no other file may lie in the
destination. Every twenty checkpoints they are pruned, with kills, too: whatever is left must decode, and what was to
stay must be there. Exit status 1 if any of that fails once.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from arzstream.testing import process, tensors, writers

CHANGING = (
    "write,pwrite64,writev,pwritev,ftruncate,fallocate,fsync,fdatasync,sync_file_range,copy_file_range,sendfile,"
    "rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir,"
    "chmod,fchmod,fchmodat,utimensat,flock"
)
"""System calls that change a file system; openat, which creates files but mostly only reads, is counted apart."""

USUALLY_VISIBLE = 0.5
"""About how long after the last byte an archive becomes visible, seconds: kills come until then."""
MAX_CHAIN = 4
"""Archives behind one, at most."""
KEEP = 3
"""Archives that pruning leaves."""
GENERATION = 20
"""Checkpoints of one run."""
SETTLED = 10.0
"""Seconds after publication in which whatever a kill left behind must be gone."""


@dataclasses.dataclass
class Tally:
    """What has happened so far."""

    kills: int = 0
    archives: int = 0
    wrong: list[str] = dataclasses.field(default_factory=list)
    waits: list[float] = dataclasses.field(default_factory=list)
    started: float = dataclasses.field(default_factory=time.monotonic)

    def fail(self, what: str) -> None:
        self.wrong.append(what)
        print(f"FAILED: {what}", flush=True)

    def report(self, what: str) -> int:
        """Print the figure; the exit status."""
        outcome = f"{len(self.wrong)} failures" if self.wrong else "0 lost, 0 corrupt, 0 stuck, no orphan files"
        seconds = time.monotonic() - self.started
        print(f"{self.kills} {what}, {self.archives} correct archives: {outcome} ({seconds:.0f} s)")
        if self.waits:
            middle, most = statistics.median(self.waits), max(self.waits)
            print(f"from restart to archive visible: median {middle:.2f} s, most {most:.2f} s")
        return 1 if self.wrong or not self.kills else 0


def check(source: Path, archive: Path, scratch: Path) -> str:
    """What is wrong with ``archive`` as a copy of the folder ``source``; empty if nothing is."""
    import arzstream
    from arzstream.archive.verify import verify

    try:
        verify(str(archive), deep=True)
        shutil.rmtree(scratch, ignore_errors=True)
        arzstream.unpack(str(archive), str(scratch))
    except arzstream.ArzError as error:
        return f"{archive.name}: {error}"
    if process.tree(scratch) != process.tree(source):
        return f"{archive.name}: the unpacked folder differs from the source"
    return ""


def check_all(source: Path, dest: Path, names: Sequence[str], tally: Tally, settled: float = SETTLED) -> None:
    """Every checkpoint in ``names`` is archived exactly, and nothing else lies in ``dest``."""
    with tempfile.TemporaryDirectory(prefix="arz-kill-") as scratch:
        for name in names:
            problem = check(source / name, dest / f"{name}.arz", Path(scratch) / "out")
            if problem:
                tally.fail(problem)
            else:
                tally.archives += 1
    archives, deadline = [f"{name}.arz" for name in names], time.monotonic() + settled
    while (left := process.leftovers(dest, archives)) and time.monotonic() < deadline:
        time.sleep(0.05)
    if left:
        tally.fail(f"left behind in {dest}: {', '.join(left)}")


def land(folder: Path, seed: int, seconds: float) -> threading.Thread:
    """Start to write a checkpoint of three shards that takes ``seconds``; the style of the writer goes with the
    seed, and so does how far the weights are trained."""
    weights = tensors.trained(tensors.model(layers=6, width=64, vocabulary=256), seed % GENERATION)
    pace = writers.Pace(rate=tensors.tensor_bytes(weights) / seconds, piece=1 << 14)
    style = ("grow", "fill", "renamed")[seed % 3]
    thread = threading.Thread(
        target=writers.shards, args=(folder, weights), kwargs={"style": style, "pace": pace, "log": writers.EventLog()}
    )
    thread.start()
    return thread


def random_kills(base: Path, count: int, seed: int, tally: Tally) -> None:
    """``count`` checkpoints, each with a kill or more, the daemon living on from one checkpoint to the next; pruned,
    and new folders, every :data:`GENERATION` checkpoints."""
    rng, number = random.Random(seed), 0
    while number < count:
        source, dest = base / f"source-{number}", base / f"dest-{number}"
        source.mkdir()
        with process.Daemon(source, dest, "--max-chain", str(MAX_CHAIN)) as daemon:
            names = []
            for _ in range(min(GENERATION, count - number)):
                name = f"step-{number:05}"
                names.append(name)
                if not _one(daemon, name, number, rng, tally):
                    break
                number += 1
        check_all(source, dest, names, tally)
        if not tally.wrong:
            _prune(source, dest, names, rng, tally)
        if tally.wrong:
            return
        shutil.rmtree(source)
        shutil.rmtree(dest)


def _one(daemon: process.Daemon, name: str, number: int, rng: random.Random, tally: Tally) -> bool:
    """One checkpoint with one or more kills; false if its archive never came."""
    seconds = rng.uniform(0.1, 0.6)
    thread = land(daemon.source / name, number, seconds)
    time.sleep(rng.uniform(0, seconds + USUALLY_VISIBLE))
    daemon.kill()
    daemon.start()
    tally.kills += 1
    while rng.random() < 0.2:
        time.sleep(rng.uniform(0, 1.0))
        daemon.kill()
        daemon.start()
        tally.kills += 1
    began = time.time()
    thread.join()
    try:
        tally.waits.append(daemon.published(f"{name}.arz", 60) - began)
    except TimeoutError as error:
        tally.fail(f"{name}: {error}")
        return False
    if tally.kills % 20 == 0:
        print(f"  {tally.kills} kills, {number + 1} checkpoints", flush=True)
    return True


def _prune(source: Path, dest: Path, names: Sequence[str], rng: random.Random, tally: Tally) -> None:
    """Prune with a few kills, then to the end; what is left is right at every moment."""
    argv = [*process.command(), "prune", str(dest), "--keep-last", str(KEEP), "--yes", "--quiet"]
    for _ in range(3):
        running = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            running.wait(rng.uniform(0.2, 0.8))
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
            tally.kills += 1
        left = [name for name in names if (dest / f"{name}.arz").exists()]
        _check_left(source, dest, left, names, tally)
    _pruned(source, dest, names, KEEP, tally)


def _pruned(source: Path, dest: Path, names: Sequence[str], keep: int, tally: Tally) -> None:
    """Prune undisturbed: what was to stay is there, and right, and the rest is gone."""
    done = process.arzstream("prune", dest, "--keep-last", str(keep), "--yes")
    if done.returncode:
        tally.fail(f"prune ended with {done.returncode}: {done.stderr[-500:]}")
    left = [name for name in names if (dest / f"{name}.arz").exists()]
    if left != list(names[-keep:]):
        tally.fail(f"pruning left {', '.join(left)}")
    check_all(source, dest, left, tally, settled=0)


def _check_left(source: Path, dest: Path, left: Sequence[str], names: Sequence[str], tally: Tally) -> None:
    """After a kill: the last ones are there, and whatever is there decodes."""
    if not set(names[-KEEP:]) <= set(left):
        tally.fail(f"pruning removed one of {', '.join(names[-KEEP:])}")
    with tempfile.TemporaryDirectory(prefix="arz-kill-") as scratch:
        for name in left:
            problem = check(source / name, dest / f"{name}.arz", Path(scratch) / "out")
            if problem:
                tally.fail(f"while pruning: {problem}")


def every_syscall(base: Path, tally: Tally, limit: int, stride: int, prune: bool) -> None:
    """Kill ``watch --once``, or ``prune``, at its Nth changing system call, N = 1, 1 + stride, …, until it gets
    through; each kind of call is counted by itself, and strace counts by thread.

    The destination holds an archive to code against; for pruning, two that were coded one after the other.
    """
    source, ready = base / "source", base / "ready"
    names = ["step-1", "step-2"]
    for number, name in enumerate(names):
        weights = tensors.trained(tensors.model(layers=3, width=32, vocabulary=64), number)
        if number == 0 or prune:
            writers.shards(source / name, weights, pace=writers.Pace(), log=writers.EventLog())
    _run(("watch", source, ready, "--once"))
    if not prune:  # this one is archived against the first while it is killed
        writers.shards(source / names[-1], weights, pace=writers.Pace(), log=writers.EventLog())
    job = Killed(source, ready, names, prune)
    for calls in _kinds(base, job):
        for n in range(1, limit, stride):
            dest = base / f"dest-{calls}-{n}"
            if not job.at(dest, calls, n, tally):
                break
            shutil.rmtree(dest, ignore_errors=True)
        print(f"  {calls}: up to the {n}th, {tally.kills} kills so far", flush=True)


@dataclasses.dataclass
class Killed:
    """What is killed: archiving ``source`` into a copy of ``ready``, or pruning that copy."""

    source: Path
    ready: Path
    names: Sequence[str]
    prune: bool

    def command(self, dest: Path) -> tuple[process.StrPath, ...]:
        if not dest.exists():
            shutil.copytree(self.ready, dest)
        return ("prune", dest, "--keep-last", "1", "--yes") if self.prune else ("watch", self.source, dest, "--once")

    def at(self, dest: Path, calls: str, n: int, tally: Tally) -> bool:
        """Kill at the nth of ``calls``, start again, check; false if it was not killed, as it makes fewer such
        calls."""
        prefix = [*["strace", "-f", "-q", "-o", "/dev/null", "-e"], f"trace={calls}"]
        status, output = _run(self.command(dest), [*prefix, "-e", f"inject={calls}:signal=KILL:when={n}"])
        if status not in (-signal.SIGKILL, 128 + signal.SIGKILL):
            if status:
                tally.fail(f"under strace it ended with {status}: {output[-500:]}")
            return False
        tally.kills += 1
        if self.prune:
            _pruned(self.source, dest, self.names, 1, tally)
            return not tally.wrong
        status, output = _run(self.command(dest))
        if status:
            tally.fail(f"after a kill at {calls} {n}: watch --once ended with {status}: {output[-500:]}")
        else:
            check_all(self.source, dest, self.names, tally, settled=0)
        return not tally.wrong


def _kinds(base: Path, job: Killed) -> Iterator[str]:
    """The changing system calls that one job makes."""
    trace = base / "trace"
    _run(job.command(base / "dest-trace"), ["strace", "-f", "-q", "-o", str(trace), "-e", f"trace={CHANGING},openat"])
    lines = trace.read_text(errors="replace").splitlines()
    seen = {line.split("(")[0].split()[-1] for line in lines if "(" in line}
    yield from sorted(seen & set(CHANGING.split(",")))
    if any("O_CREAT" in line for line in lines):
        yield "openat"


def _run(arguments: Sequence[process.StrPath], prefix: Sequence[str] = ()) -> tuple[int, str]:
    """A verb to its end; exit status (negative: killed by that signal) and output."""
    done = process.arzstream(*arguments, prefix=prefix, env={"PYTHONDONTWRITEBYTECODE": "1"})
    return done.returncode, done.stdout + done.stderr


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="checkpoints, each with at least one kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--syscalls", action="store_true", help="kill at every changing system call instead")
    parser.add_argument("--prune", action="store_true", help="with --syscalls: kill prune, not the daemon")
    parser.add_argument("--limit", type=int, default=10_000, help="with --syscalls: at most this many of each kind")
    parser.add_argument("--stride", type=int, default=1, help="with --syscalls: every STRIDEth call")
    args = parser.parse_args(argv)
    if args.syscalls and not shutil.which("strace"):
        parser.error("--syscalls needs strace; install it")
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="arz-kill-") as base:
        if args.syscalls:
            every_syscall(Path(base), tally, args.limit, args.stride, args.prune)
        else:
            random_kills(Path(base), args.count, args.seed, tally)
    return tally.report("kills at system calls" if args.syscalls else "random kills")


if __name__ == "__main__":
    sys.exit(main())
