"""The daemon's main loop: hints and rescans in, decisions out, and everything remembered in the journal."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from arzstream.daemon import log
from arzstream.daemon.bucket import Bucket, destination_at
from arzstream.daemon.census import Census
from arzstream.daemon.config import Settings, SettingsError
from arzstream.daemon.distant import DistantCensus
from arzstream.daemon.handover import Shared
from arzstream.daemon.journal import FOLDER, Entry, Journal
from arzstream.daemon.keeper import Keeper
from arzstream.daemon.memory import Memory
from arzstream.daemon.orders import Orders
from arzstream.daemon.prune import settle_retired
from arzstream.daemon.roster import Roster
from arzstream.daemon.settle import Clock, enable_leases
from arzstream.daemon.states import DONE, Reason, State
from arzstream.daemon.steer import Steering
from arzstream.daemon.track import Track
from arzstream.daemon.watch import Hint, Hints
from arzstream.errors import ArzError, StorageError
from arzstream.formats.checkpoint import QUIET
from arzstream.store import local
from arzstream.store.address import is_remote, redacted
from arzstream.store.lock import FileLock

__all__ = ["Supervisor"]

TICK_LANDING, TICK_SETTLING = 0.05, 0.02
"""Seconds between looks at what lands, and at what only has to be quiet a little longer."""
TICK_BLOCKED, BEAT_EVERY = 0.5, 5.0
BLIND_RESCAN = 1.0
"""Seconds between rescans where the system reports no changes."""
OWNER_BYTES = 6
STORM = 10
"""Rescans because of hints take at most one part in so many of the time."""


class Supervisor:
    """Watches one source for one destination; see :meth:`run`."""

    def __init__(self, settings: Settings, *, once: bool = False, reload: Callable[[], Settings] | None = None) -> None:
        """``once``: end when nothing is left to do. ``reload`` gives fresh settings on SIGHUP."""
        self.settings = settings
        self._dest = destination_at(settings.dest)
        self.dest = self._dest.shown
        self._distant = is_remote(settings.source)
        self.source = redacted(settings.source).rstrip("/") if self._distant else os.path.abspath(settings.source)
        if self.source == self.dest or os.path.realpath(self.source) == os.path.realpath(self.dest):
            raise SettingsError(f"{settings.source}: source and destination are the same folder; choose another one")
        self._once, self._reload = once, reload
        self._hints = Hints(self.source)
        self._orders = Orders(self._hints.poke)
        self._shared = Shared(settings, self._hints.poke)
        self._clock = Clock()
        self._next_scan = self._next_beat = 0.0
        self._scan_seconds = 0.0
        self._entries: dict[bytes, Entry] = {}
        self._problem = ""
        self._looked = False
        """At everything, in this life."""
        self._memory: Memory
        self._roster: Roster
        self._steering: Steering
        self._keeper: Keeper

    # ------------------------------------------------------------------------------------ life

    def run(self) -> int:
        """Work until told to stop (or, with ``once``, until nothing is left); returns the exit code."""
        if not self._distant and not os.path.isdir(self.source):
            raise StorageError(f"{self.source}: there is no such folder; create it, or name the one to watch")
        local.make_folders(os.path.join(self._dest.home, FOLDER))
        lock = FileLock(os.path.join(self._dest.home, FOLDER, "lock"))
        try:
            with self._orders:
                if self._take(lock):
                    with Journal.open(self._dest.home) as journal:
                        self._work(journal)
        finally:
            lock.release()
        return self._exit_code()

    def stop(self) -> None:
        """Ask the loop to end; safe from any thread."""
        self._orders.end = True
        self._hints.poke()

    def totals(self) -> dict[str, Any]:
        """What lies behind this run, in numbers, and why anything is blocked."""
        entries = list(self._entries.values())
        done = [entry for entry in entries if entry.state is State.PUBLISHED]
        blocked = [entry for entry in entries if entry.state is State.BLOCKED]
        gone = sum(entry.state is State.GONE for entry in entries)
        retired = sum(entry.state is State.RETIRED for entry in entries)
        return {
            "published": len(done),
            "waiting": len(entries) - len(done) - len(blocked) - gone - retired,
            "blocked": len(blocked),
            "gone": gone,
            "retired": retired,
            "bytes_in": sum(entry.bytes_in for entry in done),
            "bytes_out": sum(entry.bytes_out for entry in done),
            "problems": [entry.reason for entry in blocked] + ([self._problem] if self._problem else []),
        }

    def _take(self, lock: FileLock) -> bool:
        """Become the one daemon of this destination, or wait for the other one to go."""
        told = False
        while not lock.acquire():
            if self._once:
                raise StorageError(f"{self.dest}: another daemon is at work here; it will do it, or stop it first")
            if not told:
                log.event("standby", dest=self.dest, waiting="another daemon works on this destination")
                told = True
            self._hints.wait(0.25)
            if self._orders.end:
                return False
        return True

    def _work(self, journal: Journal) -> None:
        self._begin(journal)
        try:
            self._loop()
        finally:
            self._end()

    def _begin(self, journal: Journal) -> None:
        _raise_file_limit()
        if isinstance(self._dest, Bucket):
            self._dest.own(_owner(journal))
        for name in self._dest.sweep():
            log.event("swept", removed=name)
        self._memory = Memory(journal)
        self._entries = self._memory.entries
        census = DistantCensus(self.settings.source, self.dest) if self._distant else Census(self.source, self.dest)
        self._roster = Roster(census, self.dest, self._memory, self._clock)
        self._steering = Steering(self.source, self._dest, self._roster.census, self._shared, self._memory)
        self._keeper = Keeper(self.dest, self._shared, self._memory)
        if not self._dest.remote:
            settle_retired(self.dest, self._memory)
        for entry in self._entries.values():
            self._take_over(entry)
        if not self._distant:
            self._hints.start()
        enable_leases()
        self._memory.set_meta(pid=os.getpid(), started=time.time(), source=self.source, dest=self.dest, running=True)
        self._beat()
        log.event("started", source=self.source, dest=self.dest, pid=os.getpid(), events=self._hints.live)

    def _take_over(self, entry: Entry) -> None:
        """An entry of an earlier life: what was under way begins anew, what was published must still be there."""
        if entry.state is State.RETIRED:
            return
        if entry.state is State.PUBLISHED:
            if self._dest.exists(entry.archive):
                return
            log.event("archive-missing", level=logging.WARNING, checkpoint=entry.path, archive=entry.archive)
            entry.archive = entry.identity = ""
        if entry.state is not State.GONE:
            entry.move(State.SEEN)
            self._memory.changed(entry)

    def _end(self) -> None:
        self._hints.stop()
        self._shared.going.set()
        self._let_finish()
        tracks = list(self._roster.tracks.values())
        for track in tracks:
            if track.job is not None:
                track.job.stop()
        for track in tracks:
            if track.entry.state in (State.LANDING, State.SETTLING, State.CODING, State.VERIFYING):
                waits = track.entry.state in (State.LANDING, State.SETTLING)
                track.entry.move(State.SEEN, waiting=track.entry.waiting if waits else "a daemon to go on")
                self._memory.changed(track.entry)
            track.close(park=True)
        self._steering.close()
        self._keeper.close()
        self._dest.close()
        self._memory.set_meta(running=False)
        self._beat()
        self._memory.flush(force=True)
        log.event("stopped", signal=self._orders.signal or None)

    def _let_finish(self) -> None:
        """What is about to be published gets a little time when the daemon is told to end."""
        deadline = time.monotonic() + self.settings.grace
        frozen = [track for track in self._roster.tracks.values() if track.frozen]
        while frozen and time.monotonic() < deadline:
            self._hints.wait(0.05)
            for track in frozen:
                self._decide(track, self._clock.now())
            frozen = [track for track in frozen if track.frozen]

    def _exit_code(self) -> int:
        if self._orders.signal == signal.SIGINT:
            return 130
        if not self._once:
            return 0
        blocked = [entry for entry in self._entries.values() if entry.state is State.BLOCKED]
        if self._problem or any(not entry.reason.startswith(Reason.MISMATCH.value) for entry in blocked):
            return 4
        return 1 if blocked else 0

    # ------------------------------------------------------------------------------------ the loop

    def _loop(self) -> None:
        while not self._orders.end:
            hints = self._hints.wait(self._patience())
            self._obey()
            monotonic, _ = now = self._clock.now()
            if self._wants_scan(hints, monotonic) or self._roster.look_at_live(now):
                self._look_at_all(now)
            self._roster.note_closed(hints)
            self._steering.count(self._roster.tracks)
            for track in sorted(self._roster.tracks.values(), key=_urgency):
                self._decide(track, now)
            self._memory.flush()
            self._keeper.look(self._steering.published)
            if monotonic >= self._next_beat:
                self._beat()
            if self._once and self._nothing_left(monotonic) and not self._keeper.busy(self._steering.published):
                return

    def _decide(self, track: Track, now: tuple[float, float]) -> None:
        """One checkpoint's trouble, be it a mistake of ours, stops that one only."""
        try:
            failure, track.failure = track.failure, None
            if failure is not None:
                raise failure
            self._take_decision(track, now)
        except Exception as error:  # noqa: BLE001
            self._steering.fail(track, error)

    def _take_decision(self, track: Track, now: tuple[float, float]) -> None:
        if track.unreadable is not None and not track.frozen:
            if track.entry.state not in (State.BLOCKED, *DONE):
                self._steering.block(track, track.unreadable)
        elif (track.gone or track.deleted) and not track.frozen:
            if self._steering.vanished(track):
                self._roster.drop(track)
        else:
            self._steering.decide(track, now)
        if track.entry.state in DONE and not track.frozen:
            self._roster.drop(track)

    def _look_at_all(self, now: tuple[float, float]) -> None:
        started = time.monotonic()
        problem = self._roster.look_at_all(now)
        self._scan_seconds = time.monotonic() - started
        wait = self.settings.rescan if self._hints.live or self._distant else min(BLIND_RESCAN, self.settings.rescan)
        self._next_scan = time.monotonic() + max(wait, STORM * self._scan_seconds)
        if not problem and not self._looked:
            self._looked = True
            for path, entry in self._entries.items():
                if path not in self._roster.tracks:
                    self._steering.let_go(entry)
        if problem != self._problem:
            level = logging.WARNING if problem else logging.INFO
            log.event(
                "source-lost" if problem else "source-back", level=level, source=self.source, reason=problem or None
            )
            self._problem, self._next_beat = problem, 0.0

    def _patience(self) -> float:
        """How long to wait for a hint."""
        states = {track.entry.state for track in self._roster.tracks.values()}
        if states & {State.SETTLING, State.SEEN}:
            tick = TICK_SETTLING
        elif states - {State.BLOCKED}:
            tick = TICK_LANDING
        else:
            tick = TICK_BLOCKED if states or self._memory.behind else BEAT_EVERY
        return max(0.005, min(tick, self._next_scan - time.monotonic()))

    def _wants_scan(self, hints: Iterable[Hint], monotonic: float) -> bool:
        if self._hints.dead:
            self._hints.stop()
        if not self._distant and not self._hints.live and monotonic >= self._next_scan and os.path.isdir(self.source):
            self._hints.start()
        if any(self._roster.is_news(hint) for hint in hints):
            # At once, but not for every hint of a storm.
            self._next_scan = min(self._next_scan, self._roster.looked_at + STORM * self._scan_seconds)
        return monotonic >= self._next_scan

    def _nothing_left(self, monotonic: float) -> bool:
        quiet = QUIET["weak"] if self.settings.quiet_time is None else self.settings.quiet_time
        for track in self._roster.tracks.values():
            blocked = track.entry.state is State.BLOCKED and not track.frozen
            if not blocked and (track.frozen or not track.hopeless(monotonic, quiet)):
                return False
        return True

    # ------------------------------------------------------------------------------------ being told, and telling

    def _obey(self) -> None:
        if self._orders.paused == self._shared.going.is_set():
            log.event("paused" if self._orders.paused else "resumed")
            if self._orders.paused:
                self._shared.going.clear()
            else:
                self._shared.going.set()
            self._next_beat = 0.0
        if self._orders.reload:
            self._orders.reload = False
            self._take_settings()

    def _take_settings(self) -> None:
        if self._reload is None:
            return
        try:
            fresh = self._reload()
        except (SettingsError, ArzError) as error:
            log.event("not-reloaded", level=logging.WARNING, reason=error)
            return
        self.settings = self._shared.settings = fresh
        log.event("reloaded", profile=fresh.profile, jobs=fresh.jobs, memory=fresh.memory, priority=fresh.priority)

    def _beat(self) -> None:
        self._next_beat = time.monotonic() + BEAT_EVERY
        self._memory.set_meta(beat=time.time(), paused=not self._shared.going.is_set(), problem=self._problem)


def _urgency(track: Track) -> tuple[bool, int]:
    """First what lands now, then what has waited longest."""
    newest = max((item.status.st_mtime_ns for item in track.items.values()), default=0)
    return track.job is None, newest


def _owner(journal: Journal) -> str:
    """Which temporary objects are this daemon's: written down before the first is made, and never another one's."""
    known = journal.meta().get("owner")
    if not known:
        known = secrets.token_hex(OWNER_BYTES)
        journal.set_meta(owner=known)
    return str(known)


def _raise_file_limit() -> None:
    """Sources are kept open while they land, so take as many descriptors as we may."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
