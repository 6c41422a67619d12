"""One checkpoint on its way into one archive.

While the files land, a thread of low priority codes what is behind their frontiers and reads back what it wrote. When
the checkpoint is complete, a second thread, of normal priority, compares everything with the sources once more, seals,
proves and publishes. Only one of the two runs at a time, and only they touch the builder.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from arzstream.archive.builder import CheckpointBuilder
from arzstream.archive.summary import PackSummary
from arzstream.daemon import log
from arzstream.daemon.draft import Draft
from arzstream.daemon.handover import Changed, Elsewhere, Failed, Finish, Outcome, Published, Shared
from arzstream.daemon.neighbour import lower_this_thread, raise_threads
from arzstream.daemon.publish import TakenError
from arzstream.daemon.scan import Identity
from arzstream.daemon.script import SETTLE, Turn
from arzstream.daemon.source import SourceFile
from arzstream.errors import ArzError, SourceChangedError
from arzstream.store import local
from arzstream.store.objects import StaleUploadError

__all__ = ["Job"]

SLICE_BYTES = 16 << 20
"""Coded between two looks at whether something more urgent is wanted."""
HASH_AHEAD_BYTES = 16 << 20
"""Of a file with more than this left to hash at the end, the hashing gets a thread of its own."""
ENCODERS = "arz-encode"
"""What the builder calls its threads."""
ATTEMPTS = 8
"""How often a checkpoint is coded against something else before it waits for a while."""
CLOCK_TICK = 0.01
"""File times come from a clock that ticks: they are up to so many seconds behind."""


class Job:
    """Made, steered and asked by the supervisor's thread; see the module's text for the other two."""

    def __init__(self, shared: Shared, path: bytes, draft: Draft) -> None:
        self.outcome: Outcome | None = None
        self.phase = "landing"
        self.bytes_coded = 0
        self.bytes_out = 0
        self.commits = 0
        self.path = path
        self._shared, self._draft = shared, draft
        self._condition = threading.Condition()
        self._files: dict[bytes, SourceFile] = {}
        self._known: dict[bytes, SourceFile] = {}
        self._frontiers: dict[bytes, int] = {}
        self._news = self._handing_over = self._stopped = False
        self._thread: threading.Thread | None = None
        self._finish: Finish | None = None
        self._samples: list[tuple[float, int]] = []
        self._lowered: frozenset[int] = frozenset()
        """Threads with the lowest priority; replaced and never changed, since another thread goes through it."""

    # ------------------------------------------------------------------------------------ for the supervisor

    def code(self, files: Mapping[bytes, SourceFile], frontiers: Mapping[bytes, int]) -> None:
        """Code ``files`` (by path inside the checkpoint) as far as ``frontiers`` go, in the background."""
        with self._condition:
            if self._finish is not None or self.outcome is not None:
                return
            self._files, self._frontiers, self._news = dict(files), dict(frontiers), True
            self._condition.notify_all()
        if self._thread is None:
            self._start(self._land, "arz-land")

    def hand_over(self) -> bool:
        """Ask the landing thread to end; True once it has."""
        with self._condition:
            if not self._handing_over:
                raise_threads(self._lowered)
            self._handing_over = True
            self._condition.notify_all()
        return self._thread is None or not self._thread.is_alive()

    def finish(self, order: Finish) -> None:
        """Complete the archive and publish it, in the background; only after :meth:`hand_over` said so."""
        self._finish, self.phase = order, "coding"
        self._start(self._complete, "arz-finish")

    def resume(self) -> None:
        """Go back to landing after a usable :class:`Changed`."""
        assert self._thread is None or not self._thread.is_alive() or self.outcome is not None
        if self._thread is not None:
            self._thread.join()
        self._finish = self.outcome = self._thread = None
        self._handing_over = False
        self.phase = "landing"

    @property
    def _interrupted(self) -> bool:
        return self._handing_over or self._stopped

    @property
    def finishing(self) -> bool:
        return self._finish is not None

    def sources(self) -> frozenset[SourceFile]:
        """What a thread of it might still read."""
        with self._condition:
            return frozenset([*self._files.values(), *self._known.values()])

    def stop(self) -> None:
        """Tell its threads to end soon, without publishing."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()

    def discard(self, *, park: bool = False) -> None:
        """Wait for the threads, remove what was written, close the sources. ``park`` leaves in the destination what
        another try can go on with."""
        self.stop()
        if self._thread is not None:
            self._thread.join()
        self._start_over(park=park)

    @property
    def parent(self) -> str:
        """Where the archive lies that it is coded against; empty if it is coded alone."""
        return self._draft.parentage.place

    # ------------------------------------------------------------------------------------ landing

    def _start(self, target: Callable[[], None], name: str) -> None:
        self._thread = threading.Thread(target=self._guarded, args=(target,), name=name, daemon=True)
        self._thread.start()

    def _guarded(self, target: Callable[[], None]) -> None:
        try:
            target()
        except SourceChangedError as error:
            self.outcome = Changed(str(error), usable=False)
        except ArzError as error:
            self.outcome = Failed(error, in_source=_in_source(error))
        except _Stopped:
            pass
        except Exception as error:  # noqa: BLE001 (a mistake of ours stops this checkpoint only)
            self.outcome = Failed(log.mistake(self.path, error), in_source=True)
        finally:
            self._shared.wake()

    def _land(self) -> None:
        if self._shared.settings.priority != "normal":
            lower_this_thread(idle=self._shared.settings.priority == "idle")
            if self._shared.settings.priority == "low":
                self._lowered |= {threading.get_native_id()}
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._news or self._interrupted)
                go_on, self._news = not self._interrupted, False
                files, frontiers = self._files, self._frontiers
            if not go_on:
                return
            self._sync_files(files)
            try:
                while self._advance(frontiers):
                    if self._interrupted:
                        return
                    self._draft.prove()
                    self._look_at_parent()
            except ArzError as error:
                if not self._can_begin_anew(error):
                    raise
                self._news = True

    def _advance(self, frontiers: Mapping[bytes, int]) -> bool:
        """Code a slice of each file; False when nothing is left to do before the next frontiers."""
        if all(frontiers.get(path, 0) <= file.coded for path, file in self._known.items()) or self._interrupted:
            return False
        self._check_going()
        with self._shared.landing:
            builder = self._draft.open(self.path)
        more = self._follow_script(frontiers)
        if self._draft.script.next is not None:  # it goes on when there is more, or when all is there
            return more
        for path, file in self._known.items():
            frontier = frontiers.get(path, 0)
            if frontier <= file.coded or self._interrupted:
                continue
            self._check_going()
            with self._shared.landing:
                self._code(builder, path, min(frontier, file.coded + SLICE_BYTES))
            self._note_encoders()
            more = True
        return more

    def _code(self, builder: CheckpointBuilder, path: bytes, target: int) -> None:
        """One file, up to ``target``."""
        file = self._known[path]
        self._draft.script.take(Turn(path, target))
        if file.job is None:
            file.job = builder.add_file(path, file)
        with file.announced(file.coded, target):
            coded = builder.update(file.job, target)
        file.coded = target
        if coded:
            self._count(builder)

    def _follow_script(self, frontiers: Mapping[bytes, int]) -> bool:
        """Code what an earlier life coded, in the same pieces, as far as it is there; True if there was any."""
        builder, script, more = self._draft.open(self.path), self._draft.script, False
        while (turn := script.next) is not None and not turn.settles and (self.finishing or not self._interrupted):
            file = self._known.get(turn.path)
            if file is None or turn.end <= file.coded:
                script.leave()
            elif turn.end > frontiers.get(turn.path, 0):
                break
            else:
                self._check_going()
                with self._shared.landing:
                    self._code(builder, turn.path, turn.end)
                self._note_encoders()
                more = True
        return more

    def _note_encoders(self) -> None:
        """The builder's threads started with our priority, and must be raised with us."""
        if self._lowered:
            encoders = {t.native_id for t in threading.enumerate() if t.name.startswith(ENCODERS) and t.native_id}
            self._lowered |= encoders - self._draft.others

    def _sync_files(self, files: Mapping[bytes, SourceFile]) -> None:
        """Tell the builder what was renamed and what is gone."""
        builder = self._draft.builder
        if builder is not None:
            places = {id(file): path for path, file in files.items()}
            for path, file in self._known.items():
                if file.job is None:
                    continue
                place = places.get(id(file))
                if place is None:
                    self._draft.script.leave()
                    builder.withdraw(file.job)
                    file.job, file.coded = None, 0
                elif place != path:
                    self._draft.script.renamed(path, place)
                    builder.rename(file.job, place)
        self._known = dict(files)

    def _look_at_parent(self, *, complete: bool = False) -> None:
        """Begin anew, with another parent or none, if this one saves too little."""
        place = self.parent
        if not self._draft.pays(complete=complete):
            log.event("parent-does-not-pay", checkpoint=self.path, parent=place)
            self._start_over()
            if complete:
                raise _Again

    def _can_begin_anew(self, error: BaseException) -> bool:
        """Is it the parent's fault? Then begin anew without it. Or that of what an earlier life sent? Then without
        that."""
        if isinstance(error, StaleUploadError):
            log.event("upload-not-resumed", checkpoint=self.path, reason=error)
            self._start_over()
            return True
        place = self.parent
        if not self._draft.parentage.fails(error):
            return False
        log.event("parent-unusable", level=30, checkpoint=self.path, parent=place, reason=error)
        self._start_over()
        return True

    def _start_over(self, *, park: bool = False) -> None:
        self._draft.close(park=park)
        for file in {*self._files.values(), *self._known.values()}:
            file.job, file.coded = None, 0

    def _count(self, builder: CheckpointBuilder) -> None:
        self.bytes_coded, self.bytes_out = builder.bytes_coded, builder.bytes_written
        self.commits += 1
        self._samples.append((time.time(), builder.bytes_coded))
        self._shared.wake()

    # ------------------------------------------------------------------------------------ finishing

    def _complete(self) -> None:
        order = self._finish
        assert order is not None
        if self._shared.settings.priority == "idle":
            lower_this_thread(idle=True)
        for _ in range(ATTEMPTS):
            try:
                self._attempt(order)
            except _Again:
                continue
            except ArzError as error:
                if not self._can_begin_anew(error):
                    raise
                continue
            return
        raise ArzError(f"{os.fsdecode(self.path)}: found no archive to code it against; it is tried again")

    def _attempt(self, order: Finish) -> None:
        builder = self._draft.open(self.path)
        builder.set_jobs(self._shared.settings.workers)
        self._sync_files(order.files)
        identities = {path: Identity.of(file.status()) for path, file in order.files.items()}
        self._settle(builder, order)
        self._draft.prove()
        self._look_at_parent(complete=True)
        while (left := order.not_before - time.monotonic()) > 0:
            self._check_going()
            time.sleep(min(left, 0.05))
        if not self._still(order, identities):
            self.outcome = Changed("changed while it was coded", usable=True)
            return
        self.phase = "verifying"
        self._shared.wake()
        for path, (target, mode, mtime) in order.links.items():
            builder.add_link(path, target, mode, mtime)
        for path, (mode, mtime) in order.folders.items():
            builder.add_directory(path, mode, mtime)
        self._draft.prove()
        self._check_going()
        summary = builder.seal()
        self._draft.complete()
        if self._draft.parentage.take_twin(bytes.fromhex(summary.content)):
            self._start_over()
            raise _Again
        self._publish(order, identities, summary)

    def _settle(self, builder: CheckpointBuilder, order: Finish) -> None:
        """Code what is left and compare every file with what was coded of it."""
        self._follow_script({path: file.size for path, file in order.files.items()})
        self._draft.script.take(SETTLE)
        with ThreadPoolExecutor(1, thread_name_prefix="arz-hash") as hashing:
            ahead = []
            for path, file in order.files.items():
                self._check_going()
                if file.job is None:
                    file.job = builder.add_file(path, file)
                size = file.size
                if size - file.coded > HASH_AHEAD_BYTES and not file.distant:
                    ahead.append((file, hashing.submit(self._hash_ahead, file, size)))
                builder.plan(file.job, size, final=True)
            waiting = {id(file): future for file, future in ahead}
            for file in order.files.values():
                self._check_going()
                future = waiting.get(id(file))
                if future is not None:
                    future.result()
                status = file.status()
                mode = stat.S_IMODE(status.st_mode)
                assert file.job is not None
                with file.announced(0, status.st_size):
                    builder.finish(file.job, size=status.st_size, mode=mode, mtime=status.st_mtime_ns)
                self._count(builder)

    def _hash_ahead(self, file: SourceFile, size: int) -> None:
        """SHA-256 beside the coding; whatever fails here fails again, and is reported, when the file is finished."""
        job, done = file.job, file.coded
        with contextlib.suppress(ArzError):
            while job is not None and done < size and not self._stopped:
                done = min(size, done + HASH_AHEAD_BYTES)
                job.prefix.advance(job.read, done)

    def _still(self, order: Finish, identities: Mapping[bytes, Identity]) -> bool:
        """Is every source what it was? One that was deleted after it was complete is, as long as we hold it open."""
        for path, file in order.files.items():
            status = file.status()
            now, before = Identity.of(status), identities[path]
            if now != before and not (status.st_nlink == 0 and now.same_content(before)):
                return False
        return order.unchanged()

    def _publish(self, order: Finish, identities: Mapping[bytes, Identity], summary: PackSummary) -> None:
        self._draft.check({path: (identity.size, identity.mtime_ns) for path, identity in identities.items()})
        if not self._still(order, identities):
            self.outcome = Changed("changed while it was verified", usable=False)
            return
        parent = self.parent if summary.parents else ""
        mode = local.permissions_at_most(file.status() for file in order.files.values())
        try:
            name = self._draft.publish(self.path, mode, bytes.fromhex(summary.content), self._check_going)
        except TakenError as taken:
            self.outcome = Elsewhere(taken.name)
            return
        visible = time.time()
        last = max((i.mtime_ns for i in identities.values()), default=0) / 1e9
        self.bytes_out = summary.bytes_out
        early, note = self._early(last, summary.bytes_in), self._draft.parentage.note
        self.outcome = Published(name, summary, visible, last, early, parent, note)

    def _early(self, last_write: float, total: int) -> float:
        before = [coded for when, coded in self._samples if when <= last_write + CLOCK_TICK]
        return min(1.0, before[-1] / total) if before and total else 0.0

    def _check_going(self) -> None:
        while not self._shared.going.wait(0.1):
            if self._stopped:
                break
        if self._stopped:
            raise _Stopped


class _Stopped(Exception):
    """The daemon wants to end."""


class _Again(Exception):
    """It is coded once more, against something else."""


def _in_source(error: BaseException) -> bool:
    """Did the source's storage fail, as opposed to the destination's?"""
    from arzstream.daemon.source import SourceError

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, SourceError):
            return True
        seen = seen.__cause__
    return False
