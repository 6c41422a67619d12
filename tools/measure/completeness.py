"""Are checkpoints archived when they are complete, and only then? ``python -m tools.measure.completeness --all``.

Runs the libraries that write checkpoints, many processes at a time, below one folder that ``arzstream watch`` watches.
Every system call of theirs that touches a file takes some milliseconds longer (strace), and in the middle of saves they
are stopped at random moments, for up to as long as their rule promises to withstand, or killed and started again. Each
process hashes what it has written after each save. Counted are

premature
    archives of what no save of the writer ever left,
missed
    saves that have no archive, although nothing was written over them soon,
overtaken
    saves without an archive that were deleted or written over within :data:`SOON` seconds.

Exits 1 if there are any of the first two.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arzstream.container.directory import open_directory
from arzstream.container.records import Kind
from arzstream.store.ranges import LocalReader
from arzstream.testing.process import Daemon
from tools.writers.context import Writer, files_of, sizes_of
from tools.writers.host import everyone, phases

ROOT = Path(__file__).resolve().parents[2]
CALLS = (
    "openat,write,pwrite64,writev,close,rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,ftruncate,fallocate,fsync"
)
WATCH = ("--no-parents", "--profile", "fast")
"""What is measured is when, not how small; and there are many writers for one daemon."""
SOON = 15.0
"""Seconds after which a save is no longer believed to have been overtaken."""
STOPS = 2
"""Most stops in one save."""
SETTLE = 180.0
"""Seconds that the daemon has for what is left when all writers have ended."""
PASS = 2
"""Runs of each case of each writer below one daemon; then another one begins, in an empty folder."""
LIMIT = 240.0
"""Seconds that a phase may take."""
FIRST, TRIES = 60.0, 2
"""Seconds until the first save of a phase begins, or it is begun again, so many times."""


@dataclasses.dataclass
class Count:
    """What the runs of one writer and case came to."""

    runs: int = 0
    saves: int = 0
    archives: int = 0
    premature: int = 0
    missed: int = 0
    overtaken: int = 0
    failed: int = 0
    stopped: float = 0.0
    details: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: Count) -> None:
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    @property
    def bad(self) -> bool:
        return bool(self.premature or self.missed or self.failed)


class Host:
    """One process with the writers' libraries imported, which forks the processes that write. ``folders`` below
    ``.venv/writers`` are on its path."""

    def __init__(self, folders: tuple[str, ...], output: Path) -> None:
        paths = [str(ROOT / ".venv" / "writers" / name) for name in folders]
        missing = [path for path in paths if not os.path.isdir(path)]
        if missing:
            raise SystemExit(f"{missing[0]} is missing; run tools/writers/install --all")
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, str(ROOT)]), "OMP_NUM_THREADS": "1"}
        env.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", JAX_PLATFORMS="cpu", PYTHONWARNINGS="ignore")
        self._output = open(output, "ab")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tools.writers.host"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._output, env=env, cwd=ROOT, text=True,
        )  # fmt: skip
        self._lock = threading.Lock()
        self._answers: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            with self._lock:
                self._answers[answer["log"]].append(answer)

    def start(self, order: dict[str, Any]) -> list[int]:
        """Fork the processes of a phase; their ids."""
        with self._lock:
            self._answers.pop(order["log"], None)
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        while not (found := [a for a in self.answers(order["log"]) if "pids" in a]):
            if self._process.poll() is not None:
                raise RuntimeError("the writer's host ended")
            time.sleep(0.01)
        pids: list[int] = found[0]["pids"]
        return pids

    def answers(self, log: str) -> list[dict[str, Any]]:
        with self._lock:
            return list(self._answers[log])

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join(10)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._output.close()


class _NotBegun(Exception):
    """The processes of a phase began no save."""


class Run:
    """One case of one writer: its processes, and who disturbs them."""

    def __init__(self, writer: Writer, case: str, number: int, source: Path, dest: Path, options: Options) -> None:
        self.writer, self.case, self.options = writer, case, options
        name = f"{''.join(c if c.isalnum() else '-' for c in writer.name)}-{case}-{number:03}"
        self.root, self.dest, self.log = source / name, dest / name, source.parent / "logs" / f"{name}.jsonl"
        self.root.mkdir(parents=True)
        self._random = random.Random(f"{options.seed} {name}")
        self.count = Count(runs=1)

    def play(self, host: Host) -> None:
        """All phases, one after the other."""
        try:
            for salt, phase in enumerate(phases(self.case)):
                tries = iter(range(TRIES))
                while not self._phase(host, salt * 10, phase):
                    if next(tries, None) is None:
                        raise RuntimeError("its processes did not find each other")
        except Exception as error:  # noqa: BLE001  (told in the table)
            self._fail(f"{type(error).__name__}: {error}")

    def _phase(self, host: Host, salt: int, phase: str) -> bool:
        """One phase; False if nothing came of it: the port that they were to meet at may have been taken since."""
        go, before = self.log.with_suffix(f".go{salt}"), len(self.events())
        go.unlink(missing_ok=True)
        order = {
            "writer": self.writer.name, "phase": phase, "salt": salt, "port": _free_port(), "go": str(go),
            "root": str(self.root), "dest": str(self.dest), "log": str(self.log),
        }  # fmt: skip
        pids = host.start(order)
        tracers = [self._slow(pid) for pid in pids]
        go.touch()
        try:
            killed = self._disturb(host, pids, phase, before)
        except _NotBegun:
            return False
        finally:
            for tracer in tracers:
                if tracer is not None:
                    tracer.wait()
        codes = [answer["status"] for answer in host.answers(str(self.log)) if "ended" in answer]
        if any(codes) and not killed:
            self._fail(f"a writer's process ended with {codes}")
        if killed:
            self.log.with_suffix(".flag").write_text("0")
            time.sleep(self._random.uniform(0.3, 2.0 if self.writer.withstands < 5 else 7.0))
        return True

    def _slow(self, pid: int) -> subprocess.Popen[bytes] | None:
        if not self.options.delay:
            return None
        inject = f"inject={CALLS}:delay_exit={int(self.options.delay * 1e6)}"
        tracer = subprocess.Popen(
            ["strace", "-f", "-q", "-o", "/dev/null", "-e", f"trace={CALLS}", "-e", inject, "-p", str(pid)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text():
            if time.monotonic() > deadline or tracer.poll() is not None:
                raise RuntimeError("strace could not attach; it needs the right to trace")
            time.sleep(0.01)
        return tracer

    def _disturb(self, host: Host, pids: list[int], phase: str, before: int) -> bool:
        """Stop and continue the processes at random moments of saves until they end; True if they were killed. Raises
        _NotBegun if after a while there are no more events than the ``before`` of other phases."""
        first, begun = time.monotonic() + FIRST, False
        deadline, saves, expected, stops = time.monotonic() + LIMIT, 0, 1.0, 0
        began, next_stop, kill_at = 0.0, 0.0, 0.0
        while len([a for a in host.answers(str(self.log)) if "ended" in a]) < len(pids):
            now = time.monotonic()
            if now > deadline:
                self._kill(pids)
                raise RuntimeError(f"not done after {LIMIT:g} s")
            if not begun and now > first:
                begun = len(self.events()) > before
                if not begun:
                    self._kill(pids)
                    self._wait(host, pids)
                    raise _NotBegun
            saving = self._saving()
            if saving and not began:
                saves, began, stops = saves + 1, now, self._random.randint(1, STOPS)
                next_stop = now + self._random.uniform(0, expected)
                kill_at = now + self._random.uniform(0, expected) if phase == "crash" and saves == 2 else 0.0
            elif not saving and began:
                expected, began = 0.5 * expected + 0.5 * min(now - began, 3.0), 0.0
            if kill_at and now >= kill_at:
                self._kill(pids)
                self._wait(host, pids)
                self._note_killed()
                return True
            if saving and stops and now >= next_stop:
                stops -= 1
                self._stop(pids, phase)
                next_stop = time.monotonic() + self._random.uniform(0, expected)
            time.sleep(0.005)
        return phase == "crash"  # it was too fast to be killed; written again it is all the same

    def _stop(self, pids: list[int], phase: str) -> None:
        """Stop one rank or all, for a moment or for as long as the rule withstands."""
        if phase == "lag":
            chosen = pids[1:]
        else:
            chosen = pids if self._random.random() < 0.5 else [self._random.choice(pids)]
        longest = min(self.writer.withstands, self.options.longest)
        pause = self._random.uniform(0.02, 0.5) if self._random.random() < 0.4 else self._random.uniform(0.5, longest)
        _signal(chosen, signal.SIGSTOP)
        time.sleep(pause)
        _signal(chosen, signal.SIGCONT)
        self.count.stopped += pause

    def _kill(self, pids: list[int]) -> None:
        _signal(pids, signal.SIGKILL)

    def _note_killed(self) -> None:
        """A process that was killed after the last byte of a save, and before it could say so, has completed it: if
        the files are those of the save of its kind before, all as long as they were then; or, of its first one, those
        of another save of the run, with the same one written last; or it is one file, and a whole one. Or the library
        itself takes it for saved, and does not save it again."""
        events = self.events()
        place = self.root / events[-1]["path"] if events else self.root
        if not events or events[-1]["event"] != "begin" or not place.exists():
            return
        path = events[-1]["path"]
        done = [e for e in events if e["event"] == "done"]
        before = [e["sizes"] for e in done if _nameless(e["path"]) == _nameless(path)][-1:]
        files, sizes = files_of(place), sizes_of(place)
        if place.is_dir() and not before:
            before = [e["sizes"] for e in done if sizes and e["sizes"][-1][0] == sizes[-1][0]][-1:]
        if self.writer.commit:
            whole = (place / self.writer.commit).exists()
        else:
            whole = _as_long(before[0], sizes) if before else _is_whole(place)
        if whole:
            event = {"event": "done", "path": path, "time": time.time(), "files": files, "sizes": sizes, "killed": True}
            with open(self.log, "a") as file:
                file.write(json.dumps(event) + "\n")

    def _wait(self, host: Host, pids: list[int]) -> None:
        deadline = time.monotonic() + 30
        while len([a for a in host.answers(str(self.log)) if "ended" in a]) < len(pids):
            if time.monotonic() > deadline:
                raise RuntimeError("a killed process does not end")
            time.sleep(0.01)

    def _saving(self) -> bool:
        try:
            return self.log.with_suffix(".flag").read_text() == "1"
        except OSError:
            return False

    def _fail(self, text: str) -> None:
        self.count.failed += 1
        self.count.details.append(f"{self.root.name}: {text}")

    # ------------------------------------------------------------------------------------ counting

    def events(self) -> list[dict[str, Any]]:
        if not self.log.exists():
            return []
        return [json.loads(line) for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def states(self) -> list[tuple[str, float, frozenset[tuple[str, str]]]]:
        """(checkpoint, when, files) of each save that returned."""
        return [(e["path"], e["time"], frozenset(e["files"].items())) for e in self.events() if e["event"] == "done"]

    def archived(self) -> dict[str, tuple[str, frozenset[tuple[str, str]]]]:
        """Archives: their name → (checkpoint, files)."""
        found = {}
        for path in sorted(self.dest.rglob("*.arz")) if self.dest.exists() else ():
            found[str(path.relative_to(self.dest))] = (_checkpoint(path, self.dest), _files(path))
        return found

    def lacking(self) -> list[tuple[str, float]]:
        """The last state of each checkpoint that is there and has no archive."""
        have = {files for _, files in self.archived().values()}
        last = {path: (when, files) for path, when, files in self.states()}
        return [(p, when) for p, (when, files) in last.items() if files not in have and (self.root / p).exists()]

    def judge(self) -> None:
        """Compare archives with what the writer left."""
        states, archived = self.states(), self.archived()
        self.count.saves, self.count.archives = len(states), len(archived)
        left = {files for _, _, files in states}
        for name, (_, files) in archived.items():
            if files not in left:
                self.count.premature += 1
                self.count.details.append(f"{self.root.name}: {name} is premature: {_difference(files, left)}")
        have = {files for _, files in archived.values()}
        events = self.events()
        for path, when, files in states:
            if files in have:
                continue
            end = min(
                (e["time"] for e in events if e["path"] == path and e["event"] != "done" and e["time"] > when),
                default=float("inf"),
            )
            if end - when < SOON:
                self.count.overtaken += 1
            else:
                self.count.missed += 1
                self.count.details.append(f"{self.root.name}: {path} has no archive, {end - when:.1f} s before it went")


@dataclasses.dataclass(frozen=True)
class Options:
    """``delay``: seconds that each system call takes longer; ``longest``: bound of all stops, in seconds."""

    delay: float = 0.006
    longest: float = 1e9
    at_once: int = 24
    seed: int = 0


def measure(wanted: list[tuple[Writer, str, int]], base: Path, options: Options) -> dict[tuple[str, str], Count]:
    """Play ``wanted`` (writer, case, number of runs) under one daemon; counts by writer and case."""
    source, dest = base / "source", base / "dest"
    for place in (source, dest, base / "logs"):
        place.mkdir(parents=True, exist_ok=True)
    runs = [Run(w, case, n, source, dest, options) for w, case, number in wanted for n in range(number)]
    # All writers and cases from the first moment on, however many runs at once.
    runs.sort(key=lambda run: random.Random(run.root.name).random())
    with Daemon(source, dest, *WATCH, env={"ARZ_LOG": "info"}) as daemon:
        _play(runs, base / "logs" / "writers.txt", options.at_once)
        _settle(runs, daemon)
        (base / "logs" / "daemon.txt").write_text(daemon.output())
    counts: dict[tuple[str, str], Count] = {}
    for run in runs:
        run.judge()
        counts.setdefault((run.writer.name, run.case), Count()).add(run.count)
    return counts


def _play(runs: list[Run], output: Path, at_once: int) -> None:
    """All runs, ``at_once`` at a time."""
    hosts = {folders: Host(folders, output) for folders in {run.writer.paths for run in runs}}
    queue, lock = list(runs), threading.Lock()

    def work() -> None:
        while True:
            with lock:
                if not queue:
                    return
                run = queue.pop()
            run.play(hosts[run.writer.paths])

    workers = [threading.Thread(target=work) for _ in range(min(at_once, len(runs)))]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        for host in hosts.values():
            host.close()


def _settle(runs: list[Run], daemon: Daemon) -> None:
    """Wait until all that was left by the last saves has an archive, and a little for what should have none."""
    deadline = time.monotonic() + SETTLE
    waiting = list(runs)
    while waiting and time.monotonic() < deadline and daemon.running:
        waiting = [run for run in waiting if run.lacking()]
        time.sleep(0.5)
    time.sleep(6.0)


def _files(path: Path) -> frozenset[tuple[str, str]]:
    """(path, SHA-256) of each file in an archive, as its directory says."""
    with LocalReader(str(path)) as reader:
        records = [record for _, record in open_directory(reader).files if record.kind == Kind.REGULAR]
    return frozenset((os.fsdecode(record.path), record.sha256.hex()) for record in records)


def _checkpoint(path: Path, dest: Path) -> str:
    return str(path.relative_to(dest))[: -len(".arz")]


def _difference(files: frozenset[tuple[str, str]], left: set[frozenset[tuple[str, str]]]) -> str:
    nearest = max(left, key=lambda state: len(state & files), default=frozenset())
    return f"not as left: {sorted({name for name, _ in nearest ^ files})[:6]}"


def _as_long(before: list[tuple[str, int]], now: list[tuple[str, int]]) -> bool:
    """Are there the same files, none of them shorter but by what numbers of other lengths take?"""
    told = {_nameless(name): size for name, size in before}
    have = {_nameless(name): size for name, size in now}
    return have.keys() == told.keys() and all(have[name] >= 0.98 * size for name, size in told.items())


def _is_whole(path: Path) -> bool:
    """One file of torch.save, with the directory that comes last, and all of its bytes."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile):  # a folder, too
        return False


def _nameless(name: str) -> str:
    return re.sub(r"[0-9a-f]{16,}|\d+", "#", name)


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def table(counts: dict[tuple[str, str], Count]) -> str:
    """One line for each writer and case, and one for all."""
    columns = ("runs", "saves", "archives", "premature", "missed", "overtaken", "failed", "stopped")
    total = Count()
    lines = [f"{'writer':26}{'case':13}" + "".join(f"{column:>10}" for column in columns)]
    for (writer, case), count in sorted(counts.items()):
        total.add(count)
        lines.append(f"{writer:26}{case:13}" + _numbers(count, columns))
    lines.append(f"{'all':39}" + _numbers(total, columns))
    return "\n".join([*lines, *(f"  {detail}" for detail in total.details)])


def _numbers(count: Count, columns: tuple[str, ...]) -> str:
    values = [getattr(count, column) for column in columns]
    return "".join(f"{value:10.0f}" for value in values[:-1]) + f"{values[-1]:8.0f} s"


def chosen(writers: Sequence[str], case: str, runs: int, *, large: bool = True) -> list[tuple[Writer, str, int]]:
    """``runs`` of each writer of these names (all if there are none), spread over its cases; without those that are
    ``large`` to install if so wished."""
    found = []
    for place, one in enumerate(everyone()):
        if (writers and one.name not in writers) or (one.large and not large):
            continue
        cases = [name for name in one.cases if not case or name == case]
        for index, name in enumerate(cases):
            # What is left over begins with another case for each writer, so that few runs meet all of them.
            more = (index - place) % len(cases) < runs % len(cases)
            found.append((one, name, runs // len(cases) + more))
    return [entry for entry in found if entry[2]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--all", action="store_true", help="every writer")
    parser.add_argument(
        "--writer", action="append", default=[],
        help="may be given several times: " + "; ".join(writer.name for writer in everyone()),
    )  # fmt: skip
    parser.add_argument("--case", default="", help="ordinary, overwritten, rotation, crash, lag or lies; default: all")
    parser.add_argument("--runs", type=int, default=100, help="runs of each writer, spread over its cases")
    parser.add_argument("--at-once", type=int, default=24, help="runs at the same time")
    parser.add_argument("--delay", type=float, default=0.006, help="seconds by which each system call is slowed down")
    parser.add_argument("--longest", type=float, default=1e9, help="bound of all stops, in seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", help="leave everything in this folder")
    args = parser.parse_args()
    if not (args.all or args.writer):
        parser.error("name a writer, or --all")
    for name in set(args.writer) - {writer.name for writer in everyone()}:
        parser.error(f"no writer is called {name!r}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the daemon is not left behind
    counts: dict[tuple[str, str], Count] = {}
    wanted = chosen(args.writer, args.case, args.runs)
    for number in range(max(-(-runs // PASS) for *_, runs in wanted)):
        part = [(one, case, min(PASS, runs - PASS * number)) for one, case, runs in wanted if runs > PASS * number]
        options = Options(args.delay, args.longest, args.at_once, args.seed + number)
        base = Path(args.keep, str(number)) if args.keep else Path(tempfile.mkdtemp(prefix="arz-complete-"))
        for key, count in measure(part, base, options).items():
            counts.setdefault(key, Count()).add(count)
        print(table(counts), flush=True)
        if not args.keep:
            shutil.rmtree(base)
    return int(any(count.bad for count in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
