"""The daemon's main loop: hints and rescans in, decisions out, and everything remembered in the journal."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from arzstream.daemon import log, publish
from arzstream.daemon.census import Census
from arzstream.daemon.config import Settings, SettingsError
from arzstream.daemon.journal import FOLDER, Archive, Entry, Journal
from arzstream.daemon.scan import Item, fingerprint
from arzstream.daemon.settle import Clock, enable_leases
from arzstream.daemon.states import Problem, Reason, State
from arzstream.daemon.steer import Steering
from arzstream.daemon.track import Track
from arzstream.daemon.watch import Hint, Hints
from arzstream.daemon.work import Shared
from arzstream.errors import StorageError
from arzstream.formats.checkpoint import QUIET, is_temporary
from arzstream.store import local
from arzstream.store.lock import FileLock

__all__ = ["Supervisor"]

TICK_LANDING, TICK_SETTLING = 0.05, 0.02
"""Seconds between looks at what lands, and at what only has to be quiet a little longer."""
SAVE_EVERY, BEAT_EVERY = 0.5, 5.0
BLIND_RESCAN = 1.0
"""Seconds between rescans where the system reports no changes."""


class Supervisor:
    """Watches one source for one destination; see :meth:`run`."""

    def __init__(self, settings: Settings, *, once: bool = False, reload: Callable[[], Settings] | None = None) -> None:
        """``once``: end when nothing is left to do. ``reload`` gives fresh settings on SIGHUP."""
        self.settings = settings
        self.source, self.dest = os.path.abspath(settings.source), os.path.abspath(settings.dest)
        if os.path.realpath(self.source) == os.path.realpath(self.dest):
            raise SettingsError(f"{settings.source}: source and destination are the same folder; choose another one")
        self._once, self._reload = once, reload
        self._hints = Hints(self.source)
        self._shared = Shared(settings, self._hints.poke)
        self._census = Census(self.source, self.dest)
        self._clock = Clock()
        self._tracks: dict[bytes, Track] = {}
        self._entries: dict[bytes, Entry] = {}
        self._dirty: dict[bytes, float] = {}
        self._unsaved: list[tuple[Archive, Entry]] = []
        self._source_missing = ""
        self._next_scan = self._next_beat = 0.0
        self._scan_seconds = 0.0
        self._signal = 0
        self._stopping = self._reloading = False
        self._journal: Journal
        self._steering: Steering

    # ------------------------------------------------------------------------------------ life

    def run(self) -> int:
        """Work until told to stop (or, with ``once``, until nothing is left); returns the exit code."""
        if not os.path.isdir(self.source):
            raise StorageError(f"{self.source}: there is no such folder; create it, or name the one to watch")
        local.make_folders(os.path.join(self.dest, FOLDER))
        lock = FileLock(os.path.join(self.dest, FOLDER, "lock"))
        restore = self._catch_signals()
        try:
            if not self._take(lock):
                return self._exit_code()
            _raise_file_limit()
            with Journal.open(self.dest) as self._journal:
                self._begin()
                try:
                    self._loop()
                finally:
                    self._end()
            return self._exit_code()
        finally:
            lock.release()
            restore()

    def totals(self) -> dict[str, Any]:
        """What lies behind this run, in numbers, and why anything is blocked."""
        entries = list(self._entries.values())
        done = [entry for entry in entries if entry.state is State.PUBLISHED]
        blocked = [entry for entry in entries if entry.state is State.BLOCKED]
        gone = sum(entry.state is State.GONE for entry in entries)
        problems = [entry.reason for entry in blocked] + ([self._source_missing] if self._source_missing else [])
        return {
            "published": len(done),
            "waiting": len(entries) - len(done) - len(blocked) - gone,
            "blocked": len(blocked),
            "gone": gone,
            "bytes_in": sum(entry.bytes_in for entry in done),
            "bytes_out": sum(entry.bytes_out for entry in done),
            "problems": problems,
        }

    def stop(self) -> None:
        """Ask the loop to end; safe from any thread and from signal handlers."""
        self._stopping = True
        self._hints.poke()

    def _take(self, lock: FileLock) -> bool:
        """Become the one daemon of this destination, or wait for it to go."""
        told = False
        while not lock.acquire():
            if self._once:
                raise StorageError(f"{self.dest}: another daemon is at work here; it will do it, or stop it first")
            if not told:
                log.event("standby", dest=self.dest, waiting="another daemon works on this destination")
                told = True
            self._hints.wait(0.5)
            if self._stopping:
                return False
        return True

    def _begin(self) -> None:
        for name in publish.sweep(self.dest):
            log.event("swept", removed=os.path.relpath(name, self.dest))
        self._steering = Steering(
            source=self.source, dest=self.dest, census=self._census, shared=self._shared,
            save=self._save, published=self._remember, wake=self._hints.poke,
        )  # fmt: skip
        self._entries = self._journal.entries()
        for entry in self._entries.values():
            self._take_over(entry)
        self._hints.start()
        enable_leases()
        self._meta(
            pid=os.getpid(), started=time.time(), source=self.source, dest=self.dest, running=True, paused=False,
            beat=time.time(), problem="",
        )  # fmt: skip
        log.event("started", source=self.source, dest=self.dest, pid=os.getpid(), events=self._hints.live)

    def _take_over(self, entry: Entry) -> None:
        """An entry of an earlier life: what was under way begins anew, what was published must still be there."""
        if entry.state is State.PUBLISHED:
            if os.path.lexists(os.path.join(self.dest, entry.archive)):
                return
            log.event("archive-missing", level=30, checkpoint=entry.path, archive=entry.archive)
            entry.archive = entry.identity = ""
        if entry.state is not State.GONE:
            entry.move(State.SEEN)
            self._save(entry)

    def _end(self) -> None:
        self._hints.stop()
        deadline = time.monotonic() + (self._shared.settings.grace if self._stopping else 0)
        self._shared.going.set()
        while time.monotonic() < deadline and any(self._about_done(track) for track in self._tracks.values()):
            self._hints.wait(0.05)
            for track in list(self._tracks.values()):
                if track.frozen:
                    self._steering.decide(track, self._clock.now())
        for track in self._tracks.values():
            if track.job is not None:
                track.job.stop()
        for track in self._tracks.values():
            if track.job is not None and track.entry.state not in (State.PUBLISHED, State.BLOCKED, State.GONE):
                track.entry.move(State.SEEN, waiting="the daemon, which was stopped")
                self._save(track.entry)
            track.close()
        self._steering.close()
        self._flush(force=True)
        self._meta(running=False, beat=time.time())
        log.event("stopped", signal=self._signal or None)

    @staticmethod
    def _about_done(track: Track) -> bool:
        return track.frozen and track.job is not None and track.job.working

    def _exit_code(self) -> int:
        if self._signal == signal.SIGINT:
            return 130
        if not self._once:
            return 0
        blocked = [entry for entry in self._entries.values() if entry.state is State.BLOCKED]
        if self._source_missing or any(not e.reason.startswith(Reason.MISMATCH.value) for e in blocked):
            return 4
        return 1 if blocked else 0

    # ------------------------------------------------------------------------------------ the loop

    def _loop(self) -> None:
        while not self._stopping:
            hints = self._hints.wait(self._patience())
            if self._reloading:
                self._take_settings()
            monotonic, _ = now = self._clock.now()
            if self._wants_scan(hints, monotonic):
                self._look_at_all(now)
            else:
                self._look_at_live(now)
            self._note_closed(hints)
            self._steering.count(self._tracks)
            for track in sorted(self._tracks.values(), key=_urgency):
                if track.path in self._tracks:
                    self._decide(track, now)
            self._flush()
            if monotonic >= self._next_beat:
                self._next_beat = monotonic + BEAT_EVERY
                self._meta(beat=time.time(), paused=not self._shared.going.is_set(), problem=self._source_missing)
            if self._once and self._nothing_left():
                return

    def _decide(self, track: Track, now: tuple[float, float]) -> None:
        before = track.path
        if (track.items and not track.deleted) or track.frozen:
            self._steering.decide(track, now)
        elif self._steering.vanished(track):
            self._forget(track)
        if track.entry.state is State.PUBLISHED and not track.frozen:
            track.close()
            self._tracks.pop(before, None)

    def _forget(self, track: Track) -> None:
        self._tracks.pop(track.path, None)
        if track.entry.state is State.GONE and is_temporary(track.path):
            self._entries.pop(track.path, None)  # a temporary name is nobody's checkpoint
            self._dirty.pop(track.path, None)
            self._try(lambda: self._journal.forget(track.path))

    def _patience(self) -> float:
        """How long to wait for a hint."""
        states = [track.entry.state for track in self._tracks.values()]
        if State.SETTLING in states or State.SEEN in states:
            tick = TICK_SETTLING
        elif states and any(state is not State.BLOCKED for state in states):
            tick = TICK_LANDING
        else:
            tick = 0.5 if states or self._dirty or self._unsaved else BEAT_EVERY
        until_scan = max(0.0, self._next_scan - time.monotonic())
        # Looking must not eat more than a fraction of the time.
        return max(0.005, min(max(tick, 4 * self._scan_seconds), until_scan))

    def _wants_scan(self, hints: Iterable[Hint], monotonic: float) -> bool:
        if self._hints.dead:
            self._hints.stop()
        if not self._hints.live and monotonic >= self._next_scan and os.path.isdir(self.source):
            self._hints.start()
        if any(self._news(hint) for hint in hints):
            # At once, but not for every hint of a storm.
            self._next_scan = min(self._next_scan, monotonic + 4 * self._scan_seconds)
        return monotonic >= self._next_scan

    def _news(self, hint: Hint) -> bool:
        """Does a hint speak of something that no look at a live checkpoint would show?"""
        for path in filter(None, (hint.path, hint.moved_to)):
            relative = os.path.relpath(path, self._census.root)
            if local.is_temporary(os.path.basename(relative)):
                continue
            track = self._track_of(relative)
            if track is None or not track.items or (hint.kind != "closed" and track.lone_file):
                return True
        return False

    def _track_of(self, path: bytes) -> Track | None:
        """The live checkpoint that a path lies in."""
        while path:
            track = self._tracks.get(path)
            if track is not None:
                return track
            path = path.rpartition(b"/")[0]
        return self._tracks.get(b"")

    # ------------------------------------------------------------------------------------ looking

    def _look_at_all(self, now: tuple[float, float]) -> None:
        started = time.monotonic()
        try:
            groups, unreadable = self._census.everything()
        except StorageError as error:
            self._lost_source(error)
            groups, unreadable = {}, {}
        else:
            self._found_source()
        self._scan_seconds = time.monotonic() - started
        wait = self.settings.rescan if self._hints.live else min(BLIND_RESCAN, self.settings.rescan)
        self._next_scan = time.monotonic() + max(wait, 4 * self._scan_seconds)
        fresh = [path for path in groups if path not in self._tracks]
        for path, track in self._tracks.items():
            if not track.frozen and not _beneath(path, unreadable):
                track.update(groups.get(path, {}), now, trusted=self._clock.trusted)
        for path in fresh:
            self._meet(path, groups[path], now)
        for path, failure in unreadable.items():
            self._cannot_read(path, failure)

    def _look_at_live(self, now: tuple[float, float]) -> None:
        for path, track in self._tracks.items():
            if track.frozen or track.entry.state is State.BLOCKED:
                continue
            try:
                track.update(self._census.one(path), now, trusted=self._clock.trusted)
            except StorageError:
                self._next_scan = 0.0  # the full look finds out what it is

    def _meet(self, path: bytes, items: Mapping[bytes, Item], now: tuple[float, float]) -> None:
        """A checkpoint that is not followed yet: new, renamed, or known from the journal."""
        entry = self._entries.get(path)
        if entry is not None and entry.state is State.PUBLISHED and entry.identity == fingerprint(items):
            return
        track = self._renamed_from(items) if entry is None else None
        if track is not None:
            self._rename(track, path)
        else:
            if entry is None:
                entry = Entry(path, since=time.time(), seen=time.time())
                log.event("seen", checkpoint=path)
            track = Track(self.source, entry, keep_open=_keep_open())
        self._entries[path] = track.entry
        self._tracks[path] = track
        track.update(items, now, trusted=self._clock.trusted)
        self._save(track.entry)

    def _rename(self, track: Track, path: bytes) -> None:
        old = track.path
        for known in (self._tracks, self._entries, self._dirty):
            known.pop(old, None)
        track.rename(path)
        self._try(lambda: self._journal.rename(old, track.entry))
        log.event("renamed", checkpoint=path, before=old)

    def _renamed_from(self, items: Mapping[bytes, Item]) -> Track | None:
        """A followed checkpoint that is no longer there, and whose files are the files of this one."""
        inodes = {item.identity[:2] for item in items.values()}
        for track in self._tracks.values():
            known = {watched.file.identity[:2] for watched in track.watched.values()}
            if not track.items and not track.frozen and known and known <= inodes:
                return track
        return None

    def _note_closed(self, hints: Iterable[Hint]) -> None:
        for hint in hints:
            if hint.kind not in ("closed", "moved"):
                continue
            path = os.path.relpath(hint.moved_to or hint.path, self._census.root)
            track = self._track_of(path)
            if track is not None:
                track.note_closed(path)

    def _cannot_read(self, path: bytes, error: StorageError) -> None:
        track = self._track_of(path)
        if track is None:
            entry = self._entries.setdefault(path, Entry(path, since=time.time(), seen=time.time()))
            track = self._tracks[path] = Track(self.source, entry, keep_open=0)
        if track.entry.state not in (State.BLOCKED, State.PUBLISHED) and not track.frozen:
            self._steering.block(track, Problem(Reason.PERMISSION, str(error)))

    def _lost_source(self, error: StorageError) -> None:
        if not self._source_missing:
            log.event("source-lost", level=30, source=self.source, reason=error)
        self._source_missing = str(error)
        self._next_beat = 0.0

    def _found_source(self) -> None:
        if self._source_missing:
            log.event("source-back", source=self.source)
            self._source_missing = ""
            self._next_beat = 0.0

    def _nothing_left(self) -> bool:
        monotonic = time.monotonic()
        for track in self._tracks.values():
            if track.entry.state is State.BLOCKED and not track.frozen:
                continue
            quiet = self.settings.quiet_time if self.settings.quiet_time is not None else QUIET["weak"]
            if track.frozen or not track.hopeless(monotonic, quiet):
                return False
        return True

    # ------------------------------------------------------------------------------------ remembering

    def _save(self, entry: Entry) -> None:
        self._dirty.setdefault(entry.path, 0.0)

    def _remember(self, archive: Archive, entry: Entry) -> None:
        self._unsaved.append((archive, entry))
        self._dirty.pop(entry.path, None)
        self._flush(force=True)

    def _flush(self, *, force: bool = False) -> None:
        """Write what changed; what cannot be written now (a full disk) is kept and tried again."""
        now = time.monotonic()
        while self._unsaved and self._try(lambda: self._journal.add_archive(*self._unsaved[0])):
            self._unsaved.pop(0)
        for track in self._tracks.values():
            if track.frozen or track.job is not None:
                self._dirty.setdefault(track.path, now + SAVE_EVERY)
        for path, due in list(self._dirty.items()):
            entry = self._entries.get(path)
            if (due <= now or force) and (entry is None or self._put(entry)):
                del self._dirty[path]

    def _put(self, entry: Entry) -> bool:
        return self._try(lambda: self._journal.put(entry))

    def _meta(self, **values: Any) -> None:
        self._try(lambda: self._journal.set_meta(**values))

    def _try(self, action: Callable[[], None]) -> bool:
        """The journal is a memory: that it cannot be written must not stop the work."""
        try:
            action()
        except StorageError as error:
            log.event("journal-not-written", level=30, reason=error)
            return False
        return True

    # ------------------------------------------------------------------------------------ being told

    def _catch_signals(self) -> Callable[[], None]:
        if threading.current_thread() is not threading.main_thread():
            return lambda: None
        wanted: dict[str, Callable[[int, Any], None]] = {
            "SIGTERM": self._told_to_stop,
            "SIGINT": self._told_to_stop,
            "SIGHUP": self._told_to_reload,
            "SIGUSR1": lambda *_: self._pause(True),
            "SIGUSR2": lambda *_: self._pause(False),
        }
        before = {getattr(signal, name): None for name in wanted if hasattr(signal, name)}
        for number in before:
            before[number] = signal.signal(number, wanted[signal.Signals(number).name])  # type: ignore[assignment]

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        return restore

    def _told_to_stop(self, number: int, _frame: Any) -> None:
        if self._stopping:
            os._exit(130 if number == signal.SIGINT else 128 + number)  # told twice: at once; the next start tidies up
        self._signal = number
        self.stop()

    def _told_to_reload(self, _number: int, _frame: Any) -> None:
        self._reloading = True
        self._hints.poke()

    def _pause(self, paused: bool) -> None:
        if paused:
            self._shared.going.clear()
        else:
            self._shared.going.set()
        self._next_beat = 0.0
        self._hints.poke()

    def _take_settings(self) -> None:
        self._reloading = False
        if self._reload is None:
            return
        try:
            fresh = self._reload()
        except (SettingsError, StorageError) as error:
            log.event("not-reloaded", level=30, reason=error)
            return
        self.settings = self._shared.settings = fresh
        log.event("reloaded", profile=fresh.profile, jobs=fresh.jobs, memory=fresh.memory, priority=fresh.priority)


def _urgency(track: Track) -> tuple[bool, int]:
    """First what lands now, then what has waited longest."""
    newest = max((item.status.st_mtime_ns for item in track.items.values()), default=0)
    return track.job is None, newest


def _beneath(path: bytes, folders: Iterable[bytes]) -> bool:
    return any(path == folder or path.startswith(folder + b"/") for folder in folders)


def _raise_file_limit() -> None:
    """Sources are kept open while they land, so take as many descriptors as we may."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _keep_open() -> int:
    """Files of one checkpoint that are kept open."""
    if sys.platform == "win32":
        return 200
    import resource

    return max(16, min(2000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 16))
