"""The loop: change something that is known to be interesting, look at what comes of it, keep what is new."""

from __future__ import annotations

import dataclasses
import faulthandler
import gc
import os
import random
import resource
import signal
import time
import traceback
import tracemalloc
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from tools.fuzz import examine, structures
from tools.fuzz.mutations import mutate, mutate_text
from tools.fuzz.seeds import SOURCES, Files, Seed
from tools.fuzz.targets import PARSERS, Target

__all__ = ["Failure", "Outcome", "replay", "run"]

SECONDS, BYTES_OF_SECONDS = 1.0, 256 << 10
"""Of processor time that an input may take, and as much again for so many of its bytes."""
STUCK = 120
"""Seconds after which a process that does not even notice that dies with a traceback."""
MOST_MEMORY = 192 << 20
"""Bytes by which the process may grow for one input, and that Python may allocate for one: what following a pickle, the
costliest of all, may take is about 80 MB, and its names half as much."""
ADDRESS_SPACE = 3 << 30
"""Bytes beyond those of the start; an allocation on a number's word fails."""
MOST_PLACES = 1500
"""Where a file is changed to see whether anything comes of it; fewer where few inputs are wanted."""
KEPT = 300
"""Inputs that are kept to be changed further."""
LONGER = 1.25
"""How much longer than the longest seed an input may be that is kept."""
WEIGHED, TRACED, ARCHIVED = 16, 1000, 2500
"""Every so many inputs the size of the process is looked at, allocations are traced, a folder is archived and restored.
"""


class TooSlow(BaseException):
    """Not to be caught by what is tried."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """An input that broke a promise; ``dice`` is the seed with which it was examined."""

    number: int
    dice: int
    path: bytes
    files: Files
    what: str


@dataclasses.dataclass
class Outcome:
    """What a run came to."""

    parser: str
    inputs: int = 0
    kinds: int = 0
    archived: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    memory: int = 0
    failures: list[Failure] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class _Kept:
    path: bytes
    files: Files
    hot: dict[bytes, list[int]]


def run(
    parser: str, inputs: int, seed: int = 0, seconds: float = 1e9, *,
    failures: int = 20, said: Callable[[Outcome], None] = lambda _: None,
) -> Outcome:  # fmt: skip
    """Try ``inputs`` inputs, or as many as ``seconds`` allow; stop after so many ``failures``. ``said`` is called now
    and then. The same arguments give the same inputs, unless time cuts them short."""
    return _Campaign(PARSERS[parser], seed).run(inputs, seconds, failures, said)


class _Campaign:
    def __init__(self, target: Target, seed: int) -> None:
        self._target, self._dice = target, random.Random(f"{target.name} {seed}")
        self._kept: list[_Kept] = []
        self._known: set[Any] = set()
        self._outcome = Outcome(target.name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._source = list(SOURCES[target.name]())
        self._longest = LONGER * max(len(data) for _, files in self._source for data in files.values())
        self._donors = [data for _, files in self._source for data in files.values()]
        self._places = 0
        self._stacks: set[str] = set()
        self._size = 0

    def run(self, inputs: int, seconds: float, failures: int, said: Callable[[Outcome], None]) -> Outcome:
        begin = time.monotonic()
        self._places = min(MOST_PLACES, inputs // 4)
        with _limits():
            for path, files in self._source:
                self._try(path, files)
                hot = {name: self._hot(path, files, name) for name in files} if path else {}
                self._kept.append(_Kept(path, files, hot))
            first = len(self._kept)
            gc.collect()
            gc.freeze()
            while self._outcome.inputs < inputs and len(self._outcome.failures) < failures:
                if self._outcome.inputs % 1024 == 0:
                    faulthandler.dump_traceback_later(STUCK, exit=True)
                    self._outcome.seconds = time.monotonic() - begin
                    said(self._outcome)
                    if self._outcome.seconds > seconds:
                        break
                chosen = self._kept[self._dice.randrange(first if self._dice.random() < 0.3 else len(self._kept))]
                self._next(chosen, first)
            faulthandler.cancel_dump_traceback_later()
        gc.unfreeze()
        self._outcome.seconds = time.monotonic() - begin
        self._outcome.kinds = len(self._known)
        return self._outcome

    def _next(self, chosen: _Kept, first: int) -> None:
        path, files = self._changed(chosen)
        kind = self._try(path, files)
        if kind is None or kind in self._known:
            return
        self._known.add(kind)
        if max(map(len, files.values()), default=0) <= self._longest:
            kept = _Kept(path, files, chosen.hot)
            if len(self._kept) < KEPT:
                self._kept.append(kept)
            else:
                self._kept[self._dice.randrange(first, KEPT)] = kept

    def _changed(self, kept: _Kept) -> Seed:
        dice, files = self._dice, dict(kept.files)
        names = list(files)
        name = kept.path if kept.path and (len(names) == 1 or dice.random() < 0.55) else dice.choice(names or [b"x"])
        data, edits = files.get(name, b""), self._target.edits
        if not kept.path and dice.random() < 0.4:
            files.pop(name, None)
            if dice.random() < 0.7:
                made = mutate_text(name, dice, names).replace(b"\0", b"")[:250]
                files[made or b"x"] = data
            return kept.path, files
        if len(names) > 1 and name != kept.path and dice.random() < 0.1:
            del files[name]
            return kept.path, files
        files[name] = data = self._mutated(data, edits, kept.hot.get(name, ()))
        return kept.path, files

    def _mutated(self, data: bytes, edits: Sequence[structures.Edit], hot: Sequence[int]) -> bytes:
        dice, tokens = self._dice, self._target.tokens
        if edits and dice.random() < 0.4:
            try:
                return dice.choice(edits)(data, dice, tokens)
            except ValueError:
                pass
        return mutate(data, dice, tokens, hot, self._donors)

    def _try(self, path: bytes, files: Files) -> Any:
        """Examine an input. What it came to, None if it broke a promise."""
        number, dice = self._outcome.inputs, self._dice.getrandbits(32)
        self._outcome.inputs += 1
        traced = number % TRACED == TRACED - 1
        if number % WEIGHED == 0:
            self._size, grown = _peak(), _peak() - self._size
            if grown > MOST_MEMORY and number:
                self._failed(Failure(number, dice, path, files, f"the last {WEIGHED} inputs took {grown >> 20} MiB"))
        try:
            kind, spent, memory = _examined(self._target, path, files, random.Random(dice), traced)
            if self._target.name != "pickle" and number % ARCHIVED == ARCHIVED - 1 and _can_be_stored(files):
                examine.archive(files, path)
                self._outcome.archived += 1
        except (Exception, TooSlow) as error:  # noqa: BLE001  whatever it is, it is what is looked for
            self._failed(Failure(number, dice, path, files, _told(error)))
            return None
        self._outcome.slowest = max(self._outcome.slowest, spent)
        self._outcome.memory = max(self._outcome.memory, memory)
        return kind

    def _failed(self, failure: Failure) -> None:
        """The first of each kind."""
        place = failure.what.rpartition("\n")[0] or failure.what[:40]
        if place not in self._stacks:
            self._stacks.add(place)
            self._outcome.failures.append(failure)

    def _hot(self, path: bytes, files: Files, name: bytes) -> list[int]:
        """Where in a file a change changes what is said of the one at ``path``."""
        data = files[name]
        found, dice = [], random.Random(1)
        if self._target.name in ("unknown", "pickle"):
            return [*range(min(len(data), MOST_PLACES))]
        places = range(len(data)) if len(data) <= self._places else dice.sample(range(len(data)), self._places)
        first = _quietly(self._target, path, files)
        for at in places:
            changed = bytearray(data)
            changed[at] ^= 0x55
            if _quietly(self._target, path, {**files, name: bytes(changed)}) != first:
                found.append(at)
        return found


def _can_be_stored(files: Files) -> bool:
    """Are the paths some that a folder can have?"""
    for path in files:
        parts = path.split(b"/")
        if not all(parts) or any(part in (b".", b"..") or len(part) > 250 or b"\0" in part for part in parts):
            return False
        if any(b"/".join(parts[:n]) in files for n in range(1, len(parts))):
            return False
    return bool(files)


class _Whole(random.Random):
    """Reads a file once, when it is whole."""

    def random(self) -> float:
        return 0.99


def _quietly(target: Target, path: bytes, files: Files) -> Any:
    """What an input comes to that is only looked at; a promise that it breaks the campaign will come to itself."""
    try:
        return _examined(target, path, files, _Whole(0), False)[0]
    except (Exception, TooSlow) as error:  # noqa: BLE001
        return str(error)


def _peak() -> int:
    """Bytes of memory that the process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _examined(target: Target, path: bytes, files: Files, dice: random.Random, traced: bool) -> tuple[Any, float, int]:
    """What an input came to, the seconds and the memory it took. Raises what it broke."""
    begin = time.process_time()
    if traced:
        tracemalloc.start()
    else:
        size = sum(map(len, files.values()))
        signal.setitimer(signal.ITIMER_PROF, SECONDS * (1 + size / BYTES_OF_SECONDS))
    memory = 0
    try:
        kind = target.examine(path, files, dice)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        if traced:
            memory = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    spent = 0.0 if traced else time.process_time() - begin
    if memory > MOST_MEMORY:
        raise examine.Broken(f"it took {memory >> 20} MiB")
    return kind, spent, memory


def replay(target: str, path: bytes, files: Files, dice: int) -> None:
    """Examine one input again, in the same way. Raises what it breaks."""
    with _limits():
        _examined(PARSERS[target], path, files, random.Random(dice), False)


def _told(error: BaseException) -> str:
    """One line a frame of ours, then the error."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/fuzz/campaign" not in f.filename]
    lines = [f"{os.path.basename(f.filename)}:{f.lineno} {f.name}" for f in frames[-6:]]
    return "\n".join([*lines, f"{type(error).__name__}: {str(error)[:500]}"])


class _limits:
    """The process within limits of its own."""

    def __enter__(self) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        self._space = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ADDRESS_SPACE, self._space[1]))
        self._handler = signal.signal(signal.SIGPROF, self._late)

    @staticmethod
    def _late(number: int, frame: FrameType | None) -> None:
        raise TooSlow("it took too much processor time")

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, self._handler)
        resource.setrlimit(resource.RLIMIT_AS, self._space)
