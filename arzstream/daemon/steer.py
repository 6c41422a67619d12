"""What to do next with one checkpoint: the state machine's decisions, taken one look at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from arzstream.daemon import log, publish
from arzstream.daemon.census import Census
from arzstream.daemon.destination import Destination, DestinationError
from arzstream.daemon.draft import Draft
from arzstream.daemon.handover import Changed, Elsewhere, Failed, Published, Shared
from arzstream.daemon.journal import Archive, Entry
from arzstream.daemon.lineages import Lineages
from arzstream.daemon.memory import Memory
from arzstream.daemon.runs import family, folder_of
from arzstream.daemon.scan import Item
from arzstream.daemon.states import DONE, Problem, Reason, State, backoff, problem_of
from arzstream.daemon.track import Track
from arzstream.daemon.work import Job
from arzstream.errors import ArzError, SourceChangedError, StorageError
from arzstream.formats.checkpoint import Past

__all__ = ["Steering"]

OPEN_JOBS = 8
"""Checkpoints that are coded early at a time; more wait until they are complete."""
FINISHING = 2
"""Checkpoints that are completed at a time."""
Numbers = tuple[float, ...]
NEVER: Numbers = (float("inf"),)
PATIENCE = 15.0
"""Seconds for which a checkpoint waits for one before it that seems complete, and is not begun."""
DISTANT_QUIET = {"strong": 0.1, "good": 5.0, "weak": 60.0}
"""Seconds without a change that make a checkpoint in a store complete: nothing shows that an object is on its way."""
SHORT_QUIET = 0.5
"""Seconds of quiet that are not waited for before the last work begins."""
BLOAT_BYTES = 64 << 20
FREED_BYTES = 1 << 20


class Steering:
    """Takes decisions for tracks; knows what they share. Used by the supervisor's thread only."""

    def __init__(self, source: str, dest: Destination, census: Census, shared: Shared, memory: Memory) -> None:
        self._source, self._dest = source, dest
        self._census, self._shared, self._memory = census, shared, memory
        self._lineages = Lineages(dest, shared, memory)
        self._recognisers = ThreadPoolExecutor(1, thread_name_prefix="arz-recognise")
        self._recognising: dict[bytes, tuple[str, Future[str]]] = {}
        self._recognised: dict[bytes, str] = {}
        self._pasts: dict[bytes, tuple[tuple[int, int], Past]] = {}
        self._free_when_blocked: dict[bytes, int] = {}
        self._coming: dict[tuple[bytes, bytes], tuple[Numbers, Numbers]] = {}
        """By folder and name: the first step whose archive is about to come, and the first that is on its way."""
        self.jobs = 0
        self.finishing = 0
        self.published = 0
        """Archives so far."""
        self.started = time.time()

    def count(self, tracks: Mapping[bytes, Track]) -> None:
        """Take stock of what is running; once per round, before the decisions."""
        self._coming = {}
        self._pasts = {path: past for path, past in self._pasts.items() if path in tracks}
        for track in tracks.values():
            if track.coming:
                name, numbers = family(track.path)
                key, moving = (folder_of(track.path), name), track.frozen or track.queued
                first, first_moving = self._coming.get(key, (NEVER, NEVER))
                self._coming[key] = (min(first, numbers), min(first_moving, numbers) if moving else first_moving)
        jobs = [track.job for track in tracks.values() if track.job is not None]
        self.jobs, self.finishing = len(jobs), sum(job.finishing for job in jobs)

    def close(self) -> None:
        self._recognisers.shutdown(wait=True, cancel_futures=True)

    # ------------------------------------------------------------------------------------ decisions

    def decide(self, track: Track, now: tuple[float, float]) -> None:
        """One look at ``track``, whose names are up to date; ``now`` is (monotonic, wall) seconds."""
        entry = track.entry
        if track.job is not None and track.job.outcome is not None:
            self._take_outcome(track)
            return  # nobody looked at its folder since it was frozen
        if track.frozen:
            self._follow(track)
            return
        if entry.state in DONE:
            if entry.identity == track.fingerprint:
                return
            self._move(track, State.SEEN)
        if entry.state is State.BLOCKED and not self._may_retry(track, now[1]):
            return
        if entry.state in (State.BLOCKED, State.GONE):
            self._move(track, State.SEEN)
        if track.queued and (self.finishing >= FINISHING or self._must_wait(track, now[0])):
            return  # it is looked at again before its turn
        try:
            if entry.state is State.SEEN and not self._may_begin(track):
                return
            self._look(track, now[0])
        except SourceChangedError:
            return  # the next look at the folder shows what it is now
        except ArzError as error:
            self.block(track, problem_of(error, in_source=not isinstance(error, DestinationError)))

    def _look(self, track: Track, monotonic: float) -> None:
        track.open_files()
        quiet_time = self._shared.settings.quiet_time
        quiet = DISTANT_QUIET if self._census.distant else None
        if quiet_time is not None:
            quiet = dict.fromkeys(("strong", "good", "weak"), quiet_time)
        self._foretell(track, monotonic)
        verdict = track.judge(monotonic, quiet, self._past(track))
        track.entry.strength, track.entry.bytes_in = verdict.strength, track.bytes_in
        track.queued = False
        if verdict.complete or (track.rests and verdict.quiet <= SHORT_QUIET and not track.restless):
            # A short quiet time passes while the work is done; nothing is sealed before it is over.
            self._begin_finish(track, monotonic)
            return
        self._move(track, State.SETTLING if track.rests else State.LANDING, verdict.waiting_for)
        self._code_early(track, monotonic)

    def _past(self, track: Track) -> Past:
        """What earlier archives of its run tell; looked up again when there are others."""
        if track.lone_file:
            return Past()
        state = (self.published, len(self._memory.archives))
        known = self._pasts.get(track.path)
        if known is None or known[0] != state:
            known = self._pasts[track.path] = (state, self._lineages.past(track.path))
        return known[1]

    def _code_early(self, track: Track, monotonic: float) -> None:
        files, frontiers = track.frontiers()
        if track.job is None:
            if self.jobs >= OPEN_JOBS or not track.worth_coding or self._must_wait(track, monotonic):
                return
            track.job = self._new_job(track)
            self.jobs += 1
        track.job.code(files, frontiers)
        self._progress(track)

    def _begin_finish(self, track: Track, monotonic: float) -> None:
        if track.job is None and self._must_wait(track, monotonic):
            track.queued = True
            self._move(track, State.SETTLING, "the checkpoint before it")
            return
        if self.finishing >= FINISHING:
            track.queued = True
            self._move(track, State.SETTLING, "its turn")
            return
        if track.job is None:
            track.job = self._new_job(track, whole=True)
            self.jobs += 1
        if not track.job.hand_over():
            self._move(track, State.SETTLING, "a moment")
            return
        self.finishing += 1
        path, items = track.path, track.items
        order = track.order(lambda: self._census.unchanged(path, items), track.due)
        self._move(track, State.CODING)
        track.job.finish(order)

    def _new_job(self, track: Track, *, whole: bool = False) -> Job:
        base = os.path.join(track.root, track.path)
        try:
            status = os.stat(base if os.path.isdir(base) else os.path.dirname(base))
            mode = status.st_mode & 0o777 | 0o700
        except OSError:
            mode = 0o700
        choice = self._lineages.choice(track.path, track.layouts())
        before = self._lineages.bytes_before(track.path)
        expected = max(track.bytes_in, before) if whole or before else 0
        draft = Draft(self._shared, self._dest, self._source, mode, choice, track.company, expected)
        return Job(self._shared, track.path, draft)

    def _foretell(self, track: Track, monotonic: float) -> None:
        """Of names that are written last, guess that they are those of the checkpoint before."""
        if track.job is None and track.company.told is None and not self._must_wait(track, monotonic):
            wanted = track.company.unnamed()
            if wanted:
                track.company.told = self._lineages.told(track.path, wanted)

    def _must_wait(self, track: Track, monotonic: float) -> bool:
        """Is the checkpoint before it in its run about to be archived? Then it is coded against that."""
        if self._shared.settings.no_parents:
            return False
        folder, (name, numbers) = folder_of(track.path), family(track.path)
        first, moving = self._coming.get((folder, name), (numbers, numbers))
        if first >= numbers:
            track.waits_since = None
            return False
        if track.waits_since is None:
            track.waits_since = monotonic
        return monotonic - track.waits_since < PATIENCE or moving < numbers

    def _follow(self, track: Track) -> None:
        """A job is finishing: show how far it is."""
        assert track.job is not None
        if track.job.phase == "verifying" and track.entry.state is State.CODING:
            self._move(track, State.VERIFYING)
        self._progress(track)

    def vanished(self, track: Track) -> bool:
        """The source is gone; True if nothing is left to do for it."""
        entry = track.entry
        if track.frozen:
            self._follow(track)
            return False
        if entry.state in DONE:
            return True
        if entry.state is not State.BLOCKED and track.rests and track.survives_deletion:
            # It was complete, only not yet old enough to be believed: that it was deleted settles the matter.
            with contextlib.suppress(DestinationError):  # it is tried again at the next look
                self._begin_finish(track, time.monotonic())
            return False
        track.close()
        self._recognising.pop(track.path, None)
        if entry.archive:  # an earlier content is published; what came after it was never complete
            archive = self._memory.archives.get(entry.archive)
            if archive is not None:
                entry.bytes_in, entry.bytes_out, entry.parent = archive.bytes_in, archive.bytes_out, archive.parent
            self._move(track, State.SEEN)
            deleted = track.verdict is not None and track.verdict.rule == "archived"
            self._move(track, State.PUBLISHED, "" if deleted else "the source vanished while it was written again")
        else:
            self._move(track, State.GONE, "the source vanished before it was complete")
        return True

    # ------------------------------------------------------------------------------------ what is there already

    def _may_begin(self, track: Track) -> bool:
        """Before anything is coded: is there an archive of just this already?"""
        path, fingerprint = track.path, track.fingerprint
        if self._recognised.get(path) == fingerprint:
            return True
        pending = self._recognising.get(path)
        if pending is None:
            names = publish.existing(self._dest, path, self._source)
            if not names:
                self._recognised[path] = fingerprint
                return True
            by_hash = bool(track.entry.identity) or self._census.distant  # which has no times to go by
            future = self._recognisers.submit(self._recognise, names, dict(track.items), path, by_hash)
            future.add_done_callback(lambda _: self._shared.wake())
            self._recognising[path] = (fingerprint, future)
            return False
        asked, future = pending
        if not future.done():
            return False
        del self._recognising[path]
        if asked != fingerprint:
            return False  # it changed meanwhile: ask again
        name = future.result()
        if not name:
            self._recognised[path] = fingerprint
            return True
        self._adopt(track, name, fingerprint)
        return False

    def _recognise(self, names: list[str], items: Mapping[bytes, Item], path: bytes, by_hash: bool) -> str:
        """The first of ``names`` that holds just ``items``, or nothing."""
        for name in names:
            try:
                if publish.holds(self._dest.place_of(name), items, path, census=self._census, by_hash=by_hash):
                    return name
            except ArzError:
                continue
        return ""

    def _adopt(self, track: Track, name: str, fingerprint: str) -> None:
        entry = track.entry
        entry.archive, entry.identity, entry.attempts = name, fingerprint, 0
        entry.bytes_in = track.bytes_in
        archive = self._lineages.found(name, track.path)
        archive = dataclasses.replace(archive, bytes_in=entry.bytes_in, identity=fingerprint)
        entry.bytes_out, entry.parent, entry.note = archive.bytes_out, archive.parent, ""
        self._move(track, State.PUBLISHED)
        self.published += 1
        self._memory.published(archive, entry)
        log.event("recognised", checkpoint=track.path, archive=name)
        track.close()

    # ------------------------------------------------------------------------------------ how jobs end

    def _take_outcome(self, track: Track) -> None:
        job = track.job
        assert job is not None
        outcome = job.outcome
        if isinstance(outcome, Published):
            self._take_published(track, outcome)
        elif isinstance(outcome, Changed):
            track.frozen = track.deleted = False  # what seemed to be deleted may be written again
            self._move(track, State.LANDING, "the writer: it changed again")
            log.event("changed", checkpoint=track.path, what=outcome.text)
            track.restless = True
            # What is coded again and again leaves dead frames; at some point a new archive is the smaller one.
            if outcome.usable and job.bytes_out <= 2 * track.bytes_in + BLOAT_BYTES:
                job.resume()
            else:
                track.job = None
                job.discard()
        elif isinstance(outcome, Elsewhere):
            track.frozen = False
            self._move(track, State.VERIFYING)
            self._adopt(track, outcome.name, track.fingerprint)
        elif isinstance(outcome, Failed):
            track.frozen = False
            track.job = None
            # A store that cannot be reached has what was sent when it can be again.
            job.discard(park=isinstance(outcome.error, StorageError) and outcome.error.errno == errno.EAGAIN)
            self.block(track, problem_of(outcome.error, in_source=outcome.in_source))

    def _take_published(self, track: Track, outcome: Published) -> None:
        entry, summary = track.entry, outcome.summary
        self._progress(track)
        track.frozen = False
        entry.archive, entry.identity, entry.attempts = outcome.name, track.fingerprint, 0
        entry.bytes_in, entry.bytes_out, entry.early = summary.bytes_in, summary.bytes_out, outcome.early
        # Of what lay there before the daemon came, nobody waited for the archive.
        recent = outcome.last_write > self.started
        entry.latency = max(0.0, outcome.visible - outcome.last_write) if recent else None
        entry.parent, entry.note = self._lineages.name_of(outcome.parent), outcome.note
        self._move(track, State.VERIFYING)
        self._move(track, State.PUBLISHED)
        # What is archived again because its archive is gone keeps its place in the order of the run.
        again = (a for a in self._memory.archives.values() if (a.path, a.content) == (track.path, summary.content))
        published = min((archive.published for archive in again), default=outcome.visible)
        archive = Archive(
            outcome.name, track.path, published, summary.bytes_in, summary.bytes_out, summary.content,
            entry.parent, entry.identity,
        )  # fmt: skip
        self.published += 1
        self._memory.published(archive, entry)
        log.event(
            "published", checkpoint=track.path, archive=outcome.name, bytes_in=summary.bytes_in,
            bytes_out=summary.bytes_out, ratio=summary.ratio, early=outcome.early, latency=entry.latency,
            parent=entry.parent or None, note=entry.note or None,
        )  # fmt: skip
        track.close()

    def fail(self, track: Track, error: Exception) -> None:
        """It could not be looked at, or decided upon: stop work on it for a while, as for any other trouble."""
        entry = track.entry
        if entry.state is State.BLOCKED and time.time() < entry.retry:
            return  # it is known to be in trouble
        if not isinstance(error, ArzError):
            error = log.mistake(track.path, error)
        if entry.state in (*DONE, State.GONE):
            self._move(track, State.SEEN)
        self.block(track, problem_of(error, in_source=not isinstance(error, DestinationError)))

    def block(self, track: Track, problem: Problem) -> None:
        """Stop work on it for a while."""
        track.frozen = track.queued = False
        job, track.job = track.job, None
        if job is not None:
            job.discard()
        entry = track.entry
        entry.attempts += 1
        self._move(track, State.BLOCKED, problem.advice, reason=problem)
        entry.retry = time.time() + backoff(entry.attempts)
        self._free_when_blocked[track.path] = self._dest.free() if problem.reason is Reason.DISK_FULL else -1
        self._memory.changed(entry)

    def _may_retry(self, track: Track, wall: float) -> bool:
        if wall >= track.entry.retry:
            return True
        free = self._free_when_blocked.get(track.path, -1)
        return free >= 0 and self._dest.free() > free + FREED_BYTES

    def let_go(self, entry: Entry) -> None:
        """Nothing is left to do for it, so nothing has to be kept that was sent of another try."""
        self._dest.drop(publish.archive_name(entry.path, self._source))

    # ------------------------------------------------------------------------------------ telling

    def _progress(self, track: Track) -> None:
        if track.job is not None:
            track.entry.bytes_coded, track.entry.bytes_out = track.job.bytes_coded, track.job.bytes_out
            track.entry.layers = track.job.commits
            track.entry.parent = self._lineages.name_of(track.job.parent)
            self._memory.progressed(track.entry)

    def _move(self, track: Track, state: State, waiting: str = "", reason: Problem | None = None) -> None:
        entry = track.entry
        before, waited = entry.state, entry.waiting
        if entry.move(state, waiting=waiting):
            if reason is not None:
                entry.reason = f"{reason.reason.value}: {reason.text}"
            log.event(
                "state", level=30 if state in (State.BLOCKED, State.GONE) else 20, checkpoint=entry.path,
                before=before.value, now=state.value, waiting=waiting or None, reason=entry.reason or None,
            )  # fmt: skip
            self._memory.changed(entry)
            if state in (*DONE, State.GONE):
                self.let_go(entry)
        elif waiting != waited:
            self._memory.changed(entry)
