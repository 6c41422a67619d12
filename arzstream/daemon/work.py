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
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from arzstream.archive.builder import CheckpointBuilder
from arzstream.archive.summary import PackSummary
from arzstream.container.scan import Replay
from arzstream.daemon import log, publish
from arzstream.daemon.handover import Changed, Failed, Finish, Outcome, Published, Shared
from arzstream.daemon.neighbour import lower_this_thread, raise_threads
from arzstream.daemon.scan import Identity
from arzstream.daemon.source import SourceFile
from arzstream.errors import ArzError, SourceChangedError, StorageError
from arzstream.store import local
from arzstream.store.ranges import LocalReader

__all__ = ["Job"]

SLICE_BYTES = 16 << 20
"""Coded between two looks at whether something more urgent is wanted."""
HASH_AHEAD_BYTES = 16 << 20
"""Of a file with more than this left to hash at the end, the hashing gets a thread of its own."""
ENCODERS = "arz-encode"
"""What the builder calls its threads."""
CLOCK_TICK = 0.01
"""File times come from a clock that ticks: they are up to so many seconds behind."""


class Job:
    """Made, steered and asked by the supervisor's thread; see the module's text for the other two."""

    def __init__(self, shared: Shared, dest: str, path: bytes, source: str, folder_mode: int) -> None:
        self.outcome: Outcome | None = None
        self.phase = "landing"
        self.bytes_coded = 0
        self.bytes_out = 0
        self.commits = 0
        self.dest, self.path, self.source = dest, path, source
        self._shared, self._folder_mode = shared, folder_mode
        self._condition = threading.Condition()
        self._files: dict[bytes, SourceFile] = {}
        self._known: dict[bytes, SourceFile] = {}
        self._frontiers: dict[bytes, int] = {}
        self._news = self._handing_over = self._stopped = False
        self._thread: threading.Thread | None = None
        self._finish: Finish | None = None
        self._samples: list[tuple[float, int]] = []
        self._lowered: set[int] = set()
        self._others: set[int] = set()
        self._temporary = ""
        self._sink: local.LocalSink | None = None
        self._reader: LocalReader | None = None
        self._builder: CheckpointBuilder | None = None
        self._replay: Replay | None = None

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

    def uses(self, file: SourceFile) -> bool:
        """Might a thread of it still read ``file``?"""
        with self._condition:
            return file in self._files.values() or file in self._known.values()

    def stop(self) -> None:
        """Tell its threads to end soon, without publishing."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()

    def discard(self) -> None:
        """Wait for the threads, remove what was written, close the sources."""
        self.stop()
        if self._thread is not None:
            self._thread.join()
        self._close_archive()
        for file in {*self._files.values(), *self._known.values()}:
            file.job, file.coded = None, 0

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
        except Exception as error:  # noqa: BLE001 (a mistake of ours must stop this checkpoint only, and be seen)
            log.event("internal-error", level=40, checkpoint=self.path, traceback=traceback.format_exc())
            what = f"{type(error).__name__}: {error}"
            failure = ArzError(f"{os.fsdecode(self.path)}: cannot be archived: {what}; please report this")
            self.outcome = Failed(failure, in_source=True)
        finally:
            self._shared.wake()

    def _land(self) -> None:
        if self._shared.settings.priority != "normal":
            lower_this_thread(idle=self._shared.settings.priority == "idle")
            if self._shared.settings.priority == "low":
                self._lowered.add(threading.get_native_id())
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._news or self._interrupted)
                go_on, self._news = not self._interrupted, False
                files, frontiers = self._files, self._frontiers
            if not go_on:
                return
            self._sync_files(files)
            while self._advance(frontiers):
                if self._interrupted:
                    return
                self._prove()

    def _advance(self, frontiers: Mapping[bytes, int]) -> bool:
        """Code a slice of each file; False when nothing is left to do before the next frontiers."""
        more = False
        for path, file in self._known.items():
            frontier = frontiers.get(path, 0)
            if frontier <= file.coded or self._interrupted:
                continue
            target = min(frontier, file.coded + SLICE_BYTES)
            self._check_going()
            with self._shared.landing:
                builder = self._open_archive()
                if file.job is None:
                    file.job = builder.add_file(path, file)
                coded = builder.update(file.job, target)
            self._note_encoders()
            file.coded = target
            more = True
            if coded:
                self._count(builder)
        return more

    def _note_encoders(self) -> None:
        """The builder's threads started with our priority, and must be raised with us."""
        if self._lowered:
            encoders = {t.native_id for t in threading.enumerate() if t.name.startswith(ENCODERS) and t.native_id}
            self._lowered |= encoders - self._others

    def _sync_files(self, files: Mapping[bytes, SourceFile]) -> None:
        """Tell the builder what was renamed and what is gone."""
        if self._builder is not None:
            places = {id(file): path for path, file in files.items()}
            for path, file in self._known.items():
                if file.job is None:
                    continue
                place = places.get(id(file))
                if place is None:
                    self._builder.withdraw(file.job)
                    file.job, file.coded = None, 0
                elif place != path:
                    self._builder.rename(file.job, place)
        self._known = dict(files)

    def _prove(self) -> None:
        if self._builder is not None and self._reader is not None:
            self._builder.verify_written(self._reader)
            if self._replay is None:
                self._replay = Replay(self._reader)
            for _ in self._replay.run(self._reader.size):
                pass  # each frame is checked as it comes by
            if self._sink is not None:
                self._sink.start_writeback()

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
        builder = self._open_archive()
        builder.set_jobs(self._shared.settings.workers)
        self._sync_files(order.files)
        identities = {path: Identity.of(file.status()) for path, file in order.files.items()}
        self._settle(builder, order)
        self._prove()
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
        self._prove()
        self._check_going()
        assert self._reader is not None
        summary = builder.seal()
        builder.verify_written(self._reader)
        self._publish(order, identities, summary)

    def _settle(self, builder: CheckpointBuilder, order: Finish) -> None:
        """Code what is left and compare every file with what was coded of it."""
        with ThreadPoolExecutor(1, thread_name_prefix="arz-hash") as hashing:
            ahead = []
            for path, file in order.files.items():
                self._check_going()
                if file.job is None:
                    file.job = builder.add_file(path, file)
                size = file.size
                if size - file.coded > HASH_AHEAD_BYTES:
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
        assert self._sink is not None and self._reader is not None
        # Durable first: what is checked below must be what a power cut leaves.
        self._sink.sync()
        files = {path: (identity.size, identity.mtime_ns) for path, identity in identities.items()}
        publish.check(self._reader, files, self._replay)
        if not self._still(order, identities):
            self.outcome = Changed("changed while it was verified", usable=False)
            return
        statuses = [file.status() for file in order.files.values()]
        self._sink.set_mode(local.permissions_at_most(statuses))
        self._sink.close()
        name = publish.make_visible(self._temporary, self.dest, self.path, self.source)
        visible = time.time()
        self._sink = None
        last = max((i.mtime_ns for i in identities.values()), default=0) / 1e9
        self.bytes_out = summary.bytes_out
        self.outcome = Published(name, summary, visible, last, self._early(last, summary.bytes_in))

    def _early(self, last_write: float, total: int) -> float:
        before = [coded for when, coded in self._samples if when <= last_write + CLOCK_TICK]
        return min(1.0, before[-1] / total) if before and total else 0.0

    def _check_going(self) -> None:
        while not self._shared.going.wait(0.1):
            if self._stopped:
                break
        if self._stopped:
            raise _Stopped

    # ------------------------------------------------------------------------------------ the archive being written

    def _open_archive(self) -> CheckpointBuilder:
        if self._builder is None:
            final = os.path.join(self.dest, publish.archive_name(self.path, self.source))
            local.make_folders(os.path.dirname(final), self._folder_mode)
            self._temporary = local.temporary_beside(final)
            self._sink = local.LocalSink(self._temporary)
            self._reader = LocalReader(self._temporary)
            settings = self._shared.settings
            self._others = {t.native_id or 0 for t in threading.enumerate()}
            # One thread while somebody writes: the second core is theirs.
            self._builder = CheckpointBuilder(
                self._sink, profile=settings.profile, jobs=1, memory_bytes=self._shared.memory_bytes
            )
        return self._builder

    def _close_archive(self) -> None:
        if self._builder is not None:
            self._builder.close()
        if self._reader is not None:
            self._reader.close()
        if self._sink is not None:
            with contextlib.suppress(StorageError):  # the next start sweeps what cannot be removed now
                self._sink.abort()
        self._builder = self._reader = self._sink = self._replay = None


class _Stopped(Exception):
    """The daemon wants to end."""


def _in_source(error: BaseException) -> bool:
    """Did the source's storage fail, as opposed to the destination's?"""
    from arzstream.daemon.source import SourceError

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, SourceError):
            return True
        seen = seen.__cause__
    return False
