"""Rounds in which every contender codes the sample once, memcpy among them, so that a busy machine slows all alike.

With one core, a time is the CPU time of the process (user and system, all of its threads), bound to one core where the
system allows it: what other programs take does not count. With all cores it is the time on the clock. Speeds are bytes
of the sample per second, in GB of 10^9 bytes; reported are medians over the rounds, and a speed relative to memcpy is
the median of the quotients within each round.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from arzstream.bench.contender import Chunked, Contender
from arzstream.bench.roster import MEMCPY, Entrant, version
from arzstream.bench.sample import Sample, cut

__all__ = ["DIRECTIONS", "Result", "measure"]

DIRECTIONS = ("encode_one", "decode_one", "encode_all", "decode_all")
PROBE_BYTES = 1 << 20
"""A contender first runs on so much, to warm up and to tell how long it will take."""
PATIENCE = 90.0
"""Seconds that a contender may take for its first round; it gets a smaller sample if it would take longer."""
SHARE = 12.0
"""Seconds after which a contender does not take part in another round."""

Progress = Callable[[int, int, str], None]


@dataclasses.dataclass
class Result:
    """What a contender came to. ``state``: ``ok``, ``wrong`` (other bytes came back) or ``failed``; ``why`` says more.

    ``nbytes`` and ``stored`` are those of the sample it was measured on; ``note`` says so if that is not the whole.
    ``speeds``: direction → GB/s, one value a round; ``relative``: direction → speed ÷ that of memcpy in the same round.
    """

    name: str
    package: str
    settings: str
    version: str | None
    state: str = "ok"
    why: str = ""
    note: str = ""
    nbytes: int = 0
    stored: int = 0
    rounds: int = 0
    speeds: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    relative: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    codecs: dict[str, int] = dataclasses.field(default_factory=dict)
    """Decoded bytes by codec, for arzstream's own."""
    payload: int = 0
    """Of ``stored``, what the codecs made: without frame headers, names, shapes, digests and index. For arzstream's."""

    @property
    def ratio(self) -> float | None:
        return self.stored / self.nbytes if self.stored and self.nbytes and self.state == "ok" else None

    def speed(self, direction: str) -> float | None:
        """Median GB/s; None if it was not measured."""
        return statistics.median(self.speeds[direction]) if self.speeds.get(direction) else None

    def to_memcpy(self, direction: str) -> float | None:
        return statistics.median(self.relative[direction]) if self.relative.get(direction) else None

    def as_dict(self) -> dict[str, Any]:
        found = dataclasses.asdict(self)
        found["ratio"] = self.ratio
        found["median"] = {d: self.speed(d) for d in DIRECTIONS}
        found["median_relative"] = {d: self.to_memcpy(d) for d in DIRECTIONS}
        return found


@dataclasses.dataclass
class _Entry:
    """A contender on its way."""

    contender: Contender
    result: Result
    sample: Sample
    spent: float = 0.0


def measure(
    entrants: Sequence[Entrant],
    sample: Sample,
    *,
    rounds: int,
    threads: int,
    patience: float | None = None,
    progress: Progress | None = None,
) -> list[Result]:
    """Results of memcpy (the first) and of all ``entrants``, in their order.

    One that would take longer than ``patience`` seconds (default: :data:`PATIENCE`) for a round gets a smaller sample.
    A contender that raises, or gives back other bytes, does not end the others' measurement; its result says so.
    """
    say = progress or (lambda done, total, what: None)
    entries: list[_Entry] = []
    total, done = (rounds + 1) * (len(entrants) + 1), 0
    for entrant in [MEMCPY, *entrants]:
        entries.append(_enter(entrant, sample, threads, patience or PATIENCE))
        done += 1
        say(done, total, entries[-1].result.name)
    directions = DIRECTIONS if threads > 1 else DIRECTIONS[:2]
    for number in range(rounds):
        copied: dict[str, float] = {}
        for entry in entries:
            if entry.result.state == "ok" and (number == 0 or entry.spent < SHARE):
                began = time.monotonic()
                speeds = _once(entry, threads, directions)
                entry.spent += time.monotonic() - began
                copied = copied or speeds
                for direction, speed in speeds.items():
                    copy = copied[direction.replace("encode", "decode")]
                    entry.result.relative.setdefault(direction, []).append(speed / copy)
            done += 1
            say(done, total, entry.result.name)
    return [entry.result for entry in entries]


def _enter(entrant: Entrant, sample: Sample, threads: int, patience: float) -> _Entry:
    """Make a contender, warm it up on a little of the sample, and give it as much of it as its speed allows."""
    result = Result(entrant.name, entrant.package, "", version(entrant.package))
    entry = _Entry(Contender(), result, sample)
    try:
        entry.contender = entrant.make()
    except Exception as error:  # noqa: BLE001  (whatever another program raises is its result)
        _failed(result, error)
        return entry
    contender = entry.contender
    result.settings = contender.settings
    probe = sample
    if sample.nbytes > 2 * PROBE_BYTES:
        probe = cut(sample, PROBE_BYTES, sample.folder / "probe")
    seconds = 0.0
    for _ in range(2):  # the first time it warms up
        began = time.monotonic()
        _once(_Entry(contender, result, probe), threads, DIRECTIONS[:2])
        seconds = (time.monotonic() - began) * (2 if threads > 1 else 1)
    result.speeds.clear()
    result.rounds = 0
    affordable = int(entrant.share * patience / max(seconds, 1e-9) * probe.nbytes)
    if affordable < sample.nbytes and result.state == "ok":
        entry.sample = cut(sample, affordable, sample.folder / entrant.name.replace(" ", "-"))
        result.note = entry.sample.note
    return entry


def _once(entry: _Entry, threads: int, directions: Sequence[str]) -> dict[str, float]:
    """One round of one contender: direction → GB/s. What goes wrong is written into its result."""
    contender, result, sample = entry.contender, entry.result, entry.sample
    speeds: dict[str, float] = {}
    try:
        contender.load(sample, threads)
        for one_core in (True, False):
            encode, decode = DIRECTIONS[:2] if one_core else DIRECTIONS[2:]
            if encode in directions:
                contender.ready()
                with _one_core() if one_core else contextlib.nullcontext():
                    used = 1 if one_core else threads
                    speeds[encode] = sample.nbytes / _seconds(lambda n=used: contender.encode(n), one_core) / 1e9  # type: ignore[misc]
                    speeds[decode] = sample.nbytes / _seconds(lambda n=used: contender.decode(n), one_core) / 1e9  # type: ignore[misc]
                result.why = contender.wrong()
                if result.why:
                    result.state = "wrong"
                    return speeds
        result.nbytes, result.stored = sample.nbytes, contender.stored
        result.rounds += 1
        if isinstance(contender, Chunked):
            result.codecs, result.payload = contender.codecs(), contender.payload_bytes()
        for direction, speed in speeds.items():
            result.speeds.setdefault(direction, []).append(speed)
    except Exception as error:  # noqa: BLE001  (see above)
        _failed(result, error)
    finally:
        contender.close()
    return speeds


def _failed(result: Result, error: Exception) -> None:
    result.state = "failed"
    result.why = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _seconds(call: Callable[[], None], one_core: bool) -> float:
    """How long ``call`` takes; no garbage is collected meanwhile."""
    clock = time.process_time if one_core else time.perf_counter
    gc.disable()
    try:
        began = clock()
        call()
        return max(clock() - began, 1e-9)
    finally:
        gc.enable()


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """Bind this thread, and those that it starts meanwhile, to one core; nothing where the system cannot."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
