"""Which checkpoints are followed at the moment: those that are there and not published as they are."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping

from arzstream.daemon import log
from arzstream.daemon.census import Census
from arzstream.daemon.journal import Entry
from arzstream.daemon.memory import Memory
from arzstream.daemon.scan import Item, fingerprint
from arzstream.daemon.settle import Clock
from arzstream.daemon.states import DONE, Problem, State, problem_of
from arzstream.daemon.track import Track
from arzstream.daemon.watch import Hint
from arzstream.errors import StorageError
from arzstream.formats.checkpoint import is_temporary
from arzstream.store import local

__all__ = ["Roster"]


class Roster:
    """Keeps ``tracks`` up to date with what lies in the source. Used by the main thread only."""

    def __init__(self, census: Census, dest: str, memory: Memory, clock: Clock) -> None:
        self.tracks: dict[bytes, Track] = {}
        self.census = census
        self.looked_at = 0.0
        """Monotonic seconds of the last look at everything."""
        self._memory, self._clock = memory, clock
        self._dest = os.fsencode(dest) + b"/"

    @property
    def _trusted(self) -> bool:
        """Do the times of files tell how old they are?"""
        return self._clock.trusted and not self.census.distant

    def look_at_all(self, now: tuple[float, float]) -> str:
        """Rescan; returns why the source cannot be looked at, or nothing."""
        self.looked_at = time.monotonic()
        try:
            groups, unreadable = self.census.everything()
        except StorageError as error:
            if self.census.distant:  # nothing is known; what is under way goes on
                return str(error)
            for track in self.tracks.values():
                track.gone = True
            return str(error)
        problems = {path: problem_of(error, in_source=True) for path, error in unreadable.items()}
        self._note_unreadable(groups, problems)
        fresh = [path for path in groups if path not in self.tracks]
        for path, track in self.tracks.items():
            if not track.frozen and track.unreadable is None:
                self._update(track, groups.get(path, {}), now)
        for path in fresh:
            self._meet(path, groups[path], now)
        self._note_unreadable(groups, problems)  # also of those just met
        return ""

    def look_at_live(self, now: tuple[float, float]) -> bool:
        """Look at what is followed only; True if that is not enough."""
        for path, track in self.tracks.items():
            # What only waits for its turn is looked at with everything else, and once more when it was coded.
            if track.frozen or track.queued or track.unreadable is not None or track.entry.state is State.BLOCKED:
                continue
            try:
                items = self.census.one(path)
            except StorageError:
                return True
            self._update(track, items, now)
            if track.gone:  # or renamed; only a look at everything tells
                return True
        return False

    def is_news(self, hint: Hint) -> bool:
        """Does a hint speak of something that no look at a followed checkpoint would show?"""
        for path in filter(None, (hint.path, hint.moved_to)):
            if path.startswith(self._dest) or local.is_temporary(os.path.basename(path)):
                continue
            track = self.track_of(os.path.relpath(path, self.census.root))
            if track is None or track.gone or (hint.kind != "closed" and track.lone_file):
                return True
        return False

    def note_closed(self, hints: Iterable[Hint]) -> None:
        """Tell the tracks what was closed, or moved into place."""
        for hint in hints:
            if hint.kind in ("closed", "moved"):
                path = os.path.relpath(hint.moved_to or hint.path, self.census.root)
                track = self.track_of(path)
                if track is not None:
                    track.note_closed(path)

    def track_of(self, path: bytes) -> Track | None:
        """The followed checkpoint that a path lies in."""
        while path:
            track = self.tracks.get(path)
            if track is not None:
                return track
            path = path.rpartition(b"/")[0]
        return self.tracks.get(b"")

    def drop(self, track: Track) -> None:
        """Stop following it."""
        track.close()
        if self.tracks.get(track.path) is track:
            del self.tracks[track.path]
        if track.entry.state is State.GONE and is_temporary(track.path):
            self._memory.forget(track.path)  # a temporary name is nobody's checkpoint

    # ------------------------------------------------------------------------------------ who is new

    def _meet(self, path: bytes, items: Mapping[bytes, Item], now: tuple[float, float]) -> None:
        """A checkpoint that is not followed yet: new, renamed, or known from the journal."""
        entry = self._memory.entries.get(path)
        if entry is not None and entry.state in DONE and entry.identity == fingerprint(items):
            return
        track = self._renamed_from(items)
        if track is None:
            entry = entry or self._new_entry(path)
            track = Track(self.census, entry, keep_open=_keep_open())
        else:
            old = track.path
            del self.tracks[old]
            if entry is None:
                track.rename(path)
                self._memory.rename(old, track.entry)
            else:  # renamed over what was archived before: the new content of an old name
                self._memory.forget(old)
                track.entry = entry
                track.rename(path)
            log.event("renamed", checkpoint=path, before=old)
        self.tracks[path] = track
        self._update(track, items, now)

    def _update(self, track: Track, items: Mapping[bytes, Item], now: tuple[float, float]) -> None:
        try:
            track.update(items, now, trusted=self._trusted)
        except Exception as error:  # noqa: BLE001 (one checkpoint stops no other)
            track.failure = error

    def _new_entry(self, path: bytes) -> Entry:
        entry = self._memory.entries[path] = Entry(path, since=time.time(), seen=time.time())
        self._memory.changed(entry)
        log.event("seen", checkpoint=path)
        return entry

    def _renamed_from(self, items: Mapping[bytes, Item]) -> Track | None:
        """A followed checkpoint that is no longer there, and whose files are files of this one."""
        inodes = {item.identity[:2] for item in items.values()}
        for track in self.tracks.values():
            if not track.gone or track.frozen:
                continue
            known = {watched.file.identity[:2] for watched in track.watched.values()}
            if known and known <= inodes:
                return track
        return None

    def _note_unreadable(self, groups: Mapping[bytes, object], problems: Mapping[bytes, Problem]) -> None:
        """Folders that cannot be looked into block the checkpoint around them, or stand for one themselves."""
        blocked: dict[bytes, Problem] = {}
        for path, problem in problems.items():
            track = self.track_of(path)
            if track is None:
                track = Track(self.census, self._memory.entries.get(path) or self._new_entry(path), keep_open=0)
                self.tracks[path] = track
            blocked[track.path] = problem
        for path, track in list(self.tracks.items()):
            before, track.unreadable = track.unreadable, blocked.get(path)
            if before is not None and track.unreadable is None:
                track.entry.retry = 0.0
                if path not in groups and not track.items and not track.entry.archive:
                    self.drop(track)  # only stood for what was in it, which can be seen now
                    self._memory.forget(path)


def _keep_open() -> int:
    """Files of one checkpoint that are kept open."""
    if sys.platform == "win32":
        return 200
    import resource

    return max(16, min(2000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 16))
