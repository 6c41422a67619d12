"""Packing what is already complete: files and folders into one archive, proved before it becomes visible."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from arzstream.archive.ancestry import SearchPath
from arzstream.archive.builder import CheckpointBuilder
from arzstream.archive.filejob import FileJob
from arzstream.archive.lineage import MAX_CHAIN, Lineage, open_lineage
from arzstream.archive.output import check_free, check_not_read, new_archive, new_object
from arzstream.archive.sources import EntriesBeside, SourceEntry, collect, open_source
from arzstream.archive.summary import PackSummary
from arzstream.archive.verify import verify_reader
from arzstream.container.metadata import pack as pack_metadata
from arzstream.container.records import Kind
from arzstream.errors import ArzError, SourceChangedError, StorageError
from arzstream.formats.detect import tells_of_others
from arzstream.kernels.digests import blake3
from arzstream.store import local
from arzstream.store.address import is_remote, redacted
from arzstream.store.objects import ObjectChangedError, StaleUploadError
from arzstream.store.ranges import LocalReader, RemoteReader

__all__ = ["PROFILES", "Progress", "pack"]

PROFILES = ("fast", "balanced", "max")
Progress = Callable[[int, int, str], None]
"""``progress(done bytes, total bytes, what is being done)``, called from the calling thread."""
REFERENCES = {"fast": 2, "balanced": 2, "max": 3}
"""Archives that one is coded against, at most: each has to be decoded for it, and the third tells little."""
PACKED = "is one of the files to pack, which stay as they are; choose another name"
OPEN_FILES = 200
"""Source files are opened when it is their turn; so many may be open at once."""


def pack(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    dest: str | os.PathLike[str],
    *,
    parent: str | os.PathLike[str] | None = None,
    profile: str = "balanced",
    jobs: int | None = None,
    progress: Progress | None = None,
    reproducible: bool = False,
    tensor_parallel: int = 1,
    force: bool = False,
    memory_bytes: int = 512 << 20,
    parents: SearchPath = None,
    max_chain: int = MAX_CHAIN,
    storage_options: dict[str, Any] | None = None,
) -> PackSummary:
    """Pack ``sources`` (files, checkpoint folders, URLs of either) into the archive ``dest``: a path, a URL, or
    ``"-"`` for standard output. Nothing that comes from or goes to a URL is kept on a local disk meanwhile.

    ``dest`` appears only when everything in it was read back, decoded, and found identical. ``tensor_parallel`` N
    cuts every matrix so that each of N ranks reads its own rows or columns only; where its rows are a number that has
    no fitting divisor, a chunk more that it shares with a neighbour.

    ``parent`` is an archive, a path or a URL, that tensors of the same names are coded against: the checkpoint before
    this one, or the model that this one was made from. Whoever reads the archive needs the parent, too, and what that
    was coded against, which is looked for beside it and in ``parents``. A parent with ``max_chain`` archives behind it
    is not used; the archive then stands alone. Where one behind the parent holds what is packed, that becomes the
    parent; for standard output it is an error (StorageError), because something was sent by then.

    Raises MissingParentError, StorageError (also if ``dest`` exists and not ``force``, or is no archive, or is one of
    the sources), SourceChangedError if a source changes meanwhile, ValueError for a bad argument.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile {profile!r} is none of {', '.join(PROFILES)}")
    if tensor_parallel < 1:
        raise ValueError("tensor_parallel must be at least 1")
    listed = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    if not all(map(os.fspath, listed)) or not os.fspath(dest):
        raise ValueError("a source, or the destination, has no name")
    if max_chain < 0:
        raise ValueError("max_chain must be at least 0")
    entries = collect(listed, storage_options)
    check_not_read(os.fspath(dest), (e.where for e in entries if e.kind != Kind.DIRECTORY), PACKED)
    with open_lineage(
        parent, os.fspath(dest), parents, max_chain, references=REFERENCES[profile], storage_options=storage_options
    ) as lineage:
        identity = _file_id(entries, profile, tensor_parallel, lineage) if reproducible else None
        work = _Work(
            entries, profile, jobs or os.cpu_count() or 1, progress, identity, tensor_parallel, memory_bytes, lineage,
            storage_options,
        )  # fmt: skip
        try:
            if os.fspath(dest) == "-":
                return _to_pipe(work)
            return (_to_object if is_remote(dest) else _to_file)(work, os.fspath(dest), force)
        except _TwinFound as found:
            parent = found.place
        except StaleUploadError:
            pass  # what an earlier process sent is removed now
    return pack(
        sources, dest, parent=parent, profile=profile, jobs=jobs, progress=progress, reproducible=reproducible,
        tensor_parallel=tensor_parallel, force=force, memory_bytes=memory_bytes, parents=parents, max_chain=max_chain,
        storage_options=storage_options,
    )  # fmt: skip


class _TwinFound(Exception):
    """What was packed is in an archive further behind already."""

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.place = place


def _to_pipe(work: _Work) -> PackSummary:
    sink = local.PipeSink()
    try:
        return work.run(sink, None)
    except _TwinFound as found:  # what was sent cannot be taken back
        raise StorageError(
            f"{sink.path}: this is what {redacted(found.place)} holds, which the parent needs; pack it with "
            f"--parent {redacted(found.place)}, and throw away what was sent, which has no end"
        ) from None


def _to_file(work: _Work, dest: str, force: bool) -> PackSummary:
    check_free(dest, replace=force)
    with new_archive(dest, replace=force) as (sink, reader):
        summary = work.run(sink, reader)
        files = [entry.where for entry in work.entries if entry.kind == Kind.REGULAR and isinstance(entry.where, bytes)]
        sink.set_mode(local.permissions_at_most([_status(file) for file in files]))
    return dataclasses.replace(summary, archive=dest)


def _status(file: bytes) -> os.stat_result:
    try:
        return os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        raise SourceChangedError(f"{os.fsdecode(file)}: was removed while it was packed; nothing was written") from None
    except OSError as error:
        raise StorageError.from_os_error(error, "look at it", file) from error


def _to_object(work: _Work, dest: str, force: bool) -> PackSummary:
    check_free(dest, replace=force, storage_options=work.storage_options)
    expected = sum(entry.size for entry in work.entries)
    new = new_object(
        dest, replace=force, storage_options=work.storage_options, file_id=work.file_id, expected=expected
    )  # fmt: skip
    with new as (written, file_id):
        work.file_id = file_id
        summary = work.run(written, None, written.complete)
    return dataclasses.replace(summary, archive=written.name)


@dataclasses.dataclass
class _Work:
    entries: list[SourceEntry]
    profile: str
    jobs: int
    progress: Progress | None
    file_id: bytes | None
    tensor_parallel: int
    memory_bytes: int
    lineage: Lineage | None
    storage_options: dict[str, Any] | None

    def check_twin(self, content: bytes) -> None:
        """Raises _TwinFound if an archive further behind than the parent has the content digest ``content``."""
        twin = self.lineage.twin(content) if self.lineage is not None else None
        if twin is not None:
            raise _TwinFound(twin)

    def run(
        self,
        sink: local.Sink,
        reader: LocalReader | None,
        complete: Callable[[], RemoteReader] | None = None,
    ) -> PackSummary:
        """Code all entries into ``sink``; where it can be read back, as it grows (``reader``) or when it is
        ``complete``, prove what was written."""
        total = sum(entry.size for entry in self.entries)
        done = _Counter(self.progress, total)
        # Those first that tell what is in others.
        files = sorted(
            (entry for entry in self.entries if entry.kind == Kind.REGULAR), key=lambda e: not tells_of_others(e.path)
        )
        with (
            CheckpointBuilder(
                sink, profile=self.profile, jobs=self.jobs, memory_bytes=self.memory_bytes, file_id=self.file_id,
                tensor_parallel=self.tensor_parallel, progress=done.add, lineage=self.lineage,
                prove=reader is not None or complete is not None,
                beside=EntriesBeside(self.entries, self.storage_options),
            ) as builder,
            ThreadPoolExecutor(1, thread_name_prefix="arz-hash") as hashing,
        ):  # fmt: skip
            for entry in self.entries:
                if entry.kind == Kind.LINK:
                    builder.add_link(entry.path, entry.target, entry.mode, entry.mtime)
                elif entry.kind == Kind.DIRECTORY:
                    builder.add_directory(entry.path, entry.mode, entry.mtime)
            for start in range(0, len(files), OPEN_FILES):
                self._files(builder, hashing, files[start : start + OPEN_FILES], reader)
                if reader is not None:
                    done.say("verifying")
                    builder.verify_written(reader)
            summary = builder.seal(self.check_twin)
            if reader is not None:
                builder.verify_written(reader)
            if complete is not None:
                done.say("verifying")
                _prove(builder, complete())
        return summary

    def _files(
        self,
        builder: CheckpointBuilder,
        hashing: ThreadPoolExecutor,
        files: list[SourceEntry],
        reader: LocalReader | None,
    ) -> None:
        with contextlib.ExitStack() as stack:
            stop = threading.Event()
            jobs: list[tuple[SourceEntry, LocalReader | RemoteReader, object, FileJob]] = []
            for entry in files:
                source: LocalReader | RemoteReader = open_source(entry, self.storage_options)
                stack.callback(source.close)
                jobs.append((entry, source, _identity(source), builder.add_file(entry.path, source)))
            # A source that is far away is hashed when it is settled: it is read twice, not three times.
            ahead = [
                hashing.submit(_hash_ahead, job, source.size if isinstance(source, LocalReader) else 0, stop)
                for _, source, _, job in jobs
            ]
            stack.callback(_end_hashing, stop, ahead)  # before the sources are closed
            # Stable: the order is that of the paths, but for files whose tensors are coded against those of others.
            for _, source, _, job in sorted(jobs, key=lambda item: builder.turn(item[3], item[1].size)):
                with _announced(source):
                    builder.plan(job, source.size, final=True)
            for (entry, source, identity, job), hashed in zip(jobs, ahead, strict=True):
                if reader is not None:
                    builder.verify_ahead(reader)  # while this thread settles the sources
                hashed.result()
                _read_anew(source)
                with _announced(source):
                    builder.finish(job, size=source.size, mode=entry.mode, mtime=entry.mtime)
                if _identity(source) != identity or source.size != entry.size:
                    raise _changed(source)


def _prove(builder: CheckpointBuilder, reader: RemoteReader) -> None:
    """All that was sent, as the store gives it back: decoded, and then every header and stored byte."""
    announced = reader.announce()
    try:
        announced.add([(0, reader.size)])
        builder.verify_written(reader)
    finally:
        announced.release()
    verify_reader(reader)


@contextlib.contextmanager
def _announced(source: LocalReader | RemoteReader) -> Iterator[None]:
    """All of a source that is far away will be read, about in the order of its bytes."""
    announced = source.announce() if isinstance(source, RemoteReader) else None
    if announced is not None:
        announced.add([(0, source.size)])
    try:
        yield
    finally:
        if announced is not None:
            announced.release()


def _read_anew(source: LocalReader | RemoteReader) -> None:
    """What is compared with the codes is not what was read to make them: that may have been damaged on its way."""
    if isinstance(source, RemoteReader):
        try:
            source.forget(0, source.size)
        except ObjectChangedError as error:
            raise _changed(source) from error


def _changed(source: LocalReader | RemoteReader) -> SourceChangedError:
    return SourceChangedError(f"{source.name}: changed while it was packed; pack it again when its writer is done")


def _end_hashing(stop: threading.Event, ahead: Sequence[Future[None]]) -> None:
    stop.set()
    for future in ahead:
        future.cancel()
    wait([future for future in ahead if not future.cancelled()])


def _hash_ahead(job: FileJob, size: int, stop: threading.Event) -> None:
    """SHA-256 in a thread of its own, while others encode. A source that fails here fails again, and is reported, in
    ``finish``."""
    frontier = 0
    with contextlib.suppress(ArzError):
        while frontier < size and not stop.is_set():
            frontier = min(size, frontier + (16 << 20))
            job.prefix.advance(job.read, frontier)


def _identity(source: LocalReader | RemoteReader) -> object:
    """What changes when a file is written to or replaced."""
    if isinstance(source, RemoteReader):
        return source.version
    status = source.status()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class _Counter:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done, self._what = progress, total, 0, "packing"

    def add(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total, self._what)

    def say(self, what: str) -> None:
        self._what = what
        self.add(0)


def _file_id(entries: list[SourceEntry], profile: str, tensor_parallel: int, lineage: Lineage | None) -> bytes:
    """A file id that depends on names, sizes, options and the parent only."""
    listed = [[entry.path, entry.kind, entry.size] for entry in entries]
    body: dict[str, Any] = {"entries": listed, "profile": profile, "tensor_parallel": tensor_parallel}
    if lineage is not None:
        body["parent"] = lineage.parent.content
    return blake3(pack_metadata(body))[:16]
