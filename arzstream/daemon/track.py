"""What the daemon knows of one checkpoint: its files, opened; how they come to rest; what it still waits for."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import stat
from collections.abc import Callable, Hashable, Mapping

from arzstream.archive.sources import kept_target
from arzstream.daemon import log
from arzstream.daemon.census import Census
from arzstream.daemon.company import Company, lacks_names
from arzstream.daemon.handover import Finish
from arzstream.daemon.journal import Entry
from arzstream.daemon.scan import Identity, Item, Kind, fingerprint
from arzstream.daemon.settle import Settle
from arzstream.daemon.source import SourceFile, followed
from arzstream.daemon.states import DONE, Problem, State
from arzstream.daemon.work import Job
from arzstream.errors import ArzError, SourceChangedError
from arzstream.formats import checkpoint
from arzstream.formats.base import Layout, Parser
from arzstream.formats.checkpoint import FileFacts, Past, Verdict
from arzstream.formats.detect import parser_for
from arzstream.formats.evidence import SMALL_BYTES

__all__ = ["Track"]

BESIDE_BYTES = 4096
"""And what lies beside a checkpoint, and names it."""
OPAQUE_BYTES = 64 << 20
"""Bytes after which files without known tensors are coded early."""
ASK_AFTER = 0.1
"""Seconds without a change before the system is asked whether a file has a writer."""
TARGET = b"\0target"
"""Marks what a followed link leads to, beside the link itself; no path has a NUL."""
QUIET_WORDS = "without a change"


class _Watched:
    """A file and what its structure says so far."""

    def __init__(self, file: SourceFile, inside: bytes, company: Company, link: Identity | None = None) -> None:
        self.file = file
        self.link = link
        """Of the link, if the file is what a link leads to."""
        self.parser: Parser = parser_for(inside, beside=company)
        self.layout: Layout | None = None
        self.frontier = self._size = 0
        self._seen: tuple[int, bool, Identity | None, Hashable] = (-1, False, None, None)

    def look(self, status: os.stat_result, *, whole: bool, news: Hashable) -> None:
        """Find the frontier; parse again if anything changed, or ``news`` did, which is what lies beside. ``status`` is
        the file's as it is now; ``whole``: nobody writes to it any more."""
        self._size = status.st_size
        self.frontier = self._size if whole or not self.file.keep else self.file.frontier()
        final = whole and self.frontier == status.st_size
        seen = (self.frontier, final, Identity.of(status), news)
        if seen == self._seen:
            return
        self.layout = self.parser.update(self._read, self.frontier, False)
        self._seen = seen

    @property
    def is_there(self) -> bool:
        """Can it still be read? Not if it was replaced, and on a network file system not if another machine deleted it,
        though it is open."""
        try:
            self.file.status()
        except ArzError:
            return False
        return True

    @property
    def is_deleted(self) -> bool:
        """Has it no name any more? Told of files that are kept open."""
        try:
            return not self.file.status().st_nlink
        except ArzError:
            return True

    def _read(self, offset: int, length: int) -> bytes:
        length = min(length, max(0, self._size - offset))
        return self.file.read_at(offset, length) if length else b""


class Track:
    """Made and used by the supervisor's thread only."""

    def __init__(self, census: Census, entry: Entry, *, keep_open: int) -> None:
        self.entry = entry
        self.root = census.root
        self._census = census
        self.items: dict[bytes, Item] = {}
        self.settle = Settle()
        self.watched: dict[bytes, _Watched] = {}
        """Regular files, and links that are followed, by path relative to the source."""
        self.company = Company()
        self.job: Job | None = None
        self.verdict: Verdict | None = None
        self.due = 0.0
        """Monotonic seconds at which it will have been quiet for long enough."""
        self.restless = False
        """It changed when it seemed complete: it has to be quiet before anything is tried again."""
        self.frozen = False
        """A finish was ordered: the files are what they were then, whatever happens to the folder."""
        self.queued = False
        """It is complete, and waits for others to be archived before it."""
        self.waits_since: float | None = None
        """Monotonic seconds since when it has been waiting for the checkpoint before it."""
        self.gone = False
        """There is nothing of its name any more."""
        self.unreadable: Problem | None = None
        """Why it, or a folder in it, cannot be looked into."""
        self.failure: Exception | None = None
        """What went wrong when its folder was looked at; it is blocked for that."""
        self._retired: list[SourceFile] = []
        self.deleted = False
        """It looked complete, and now it is being deleted."""
        self._keep_open = keep_open
        self._memo: dict[tuple[str, bytes], tuple[object, object]] = {}
        """What rules found out about files, so that they need not read them again."""

    # ------------------------------------------------------------------------------------ what is there

    @property
    def path(self) -> bytes:
        return self.entry.path

    def inside(self, path: bytes) -> bytes:
        """A path relative to the checkpoint; a checkpoint that is one file goes by its own name."""
        if path == self.path:
            return os.path.basename(path)
        return path[len(self.path) + 1 :] if self.path else path

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.items)

    @property
    def lone_file(self) -> bool:
        return len(self.items) == 1 and self.path in self.items

    @property
    def bytes_in(self) -> int:
        return sum(item.status.st_size for item in self.items.values() if item.kind is Kind.FILE)

    def update(self, items: Mapping[bytes, Item], now: tuple[float, float], *, trusted: bool) -> bool:
        """Take note of what the folder holds now; True if that changed."""
        self._close_retired()
        self.gone = not items
        if not items:  # or renamed as a whole: what was known, and the open files, are left to go on with
            return False
        if self.deleted or self._is_being_deleted(items):
            self.deleted = True
            return False
        self._forget_changed_links(items)
        files = {path: item.identity for path, item in items.items() if item.kind is Kind.FILE}
        self._follow_renames(files)
        for path, item in items.items():
            if item.kind is Kind.LINK:
                files[path] = item.identity
                if path in self.watched:
                    files[path + TARGET] = Identity.of(self.watched[path].file.status())
        changed = self.settle.look(files, now, trusted=trusted) or items.keys() != self.items.keys()
        self.items = dict(items)
        return changed

    def _forget_changed_links(self, items: Mapping[bytes, Item]) -> None:
        """A link that was made anew may lead elsewhere, and what it leads to may be another file: judge it again."""
        for path, watched in list(self.watched.items()):
            if not watched.file.target:
                continue
            if path not in items or items[path].identity != watched.link or not watched.is_there:
                del self.watched[path]
                self._retired.append(watched.file)

    def _follow_renames(self, files: Mapping[bytes, Identity]) -> None:
        """Files that have another name now are the same files; ones with the same name may not be."""
        inodes = {identity[:2]: path for path, identity in files.items()}
        for path, watched in list(self.watched.items()):
            if watched.file.target:
                continue
            known = watched.file.identity[:2]
            if path in files and files[path][:2] == known:
                continue
            del self.watched[path]
            place = inodes.get(known)
            if place is None or place in self.watched:
                self._retired.append(watched.file)
                continue
            watched.file.path = place
            fresh = _Watched(watched.file, self.inside(place), self.company, files[place])
            self.watched[place] = fresh
            self.settle.renamed(path, place)
            self.settle.closed(place, files[place])  # nobody renames what is not done

    def _is_being_deleted(self, items: Mapping[bytes, Item]) -> bool:
        """Are files of a checkpoint that looked complete being deleted, and nothing else?"""
        if not self.rests or not self.items.keys() > items.keys():
            return False
        if any(not _is_left_alone(item, self.items[path]) for path, item in items.items()):
            return False  # written again under its old names
        missing = [self.watched[path] for path in self.items.keys() - items.keys() if path in self.watched]
        return bool(missing) and all(watched.file.keep and watched.is_deleted for watched in missing)

    def _close_retired(self) -> None:
        """Close files that are no longer there, once the job has let go of them."""
        if not self._retired:
            return
        used = self.job.sources() if self.job is not None else frozenset()
        for file in self._retired:
            if file not in used:
                file.close()
        self._retired = [file for file in self._retired if file in used]

    def rename(self, path: bytes) -> None:
        """The whole checkpoint has another name; its files are found again by their inodes. Its archive grows in the
        folder that it will lie in, coded against what lies there: in another folder it is begun anew."""
        moved = os.path.dirname(path) != os.path.dirname(self.path)
        self.entry.path = path
        if moved:
            self.company.told = None
        if self.job is not None and moved:
            job, self.job = self.job, None
            job.discard()
        elif self.job is not None:
            self.job.path = path

    def note_closed(self, path: bytes) -> None:
        """A hint: the writer closed ``path``, or moved it (and, if it is a folder, all in it) into place."""
        item = self.items.get(path)
        if item is not None and item.kind is not Kind.FOLDER:
            known = [path]
        elif item is not None or path == self.path:  # there are few hints of folders, and many of files
            known = [name for name in self.items if name.startswith(path + b"/")]
        else:
            return
        for name in known:
            if self.items[name].kind is Kind.FILE:
                with contextlib.suppress(OSError):
                    self.settle.closed(name, Identity.of(os.lstat(os.path.join(self.root, name))))

    def hopeless(self, monotonic: float, patience: float) -> bool:
        """Does it wait for what may never come, and has nothing happened for ``patience`` seconds?"""
        if self.verdict is None or self.rests or self.verdict.doubt:
            return False
        return all(self.settle.quiet(path, monotonic) >= patience for path in self.watched)

    # ------------------------------------------------------------------------------------ how far it is

    def open_files(self) -> None:
        """Open what is new. Raises ArzError, so that the checkpoint is blocked with a reason."""
        kept = sum(watched.file.keep for watched in self.watched.values())
        for path, item in self.items.items():
            if path in self.watched or item.kind not in (Kind.FILE, Kind.LINK):
                continue
            target = followed(self.root, self.path, path) if item.kind is Kind.LINK else b""
            if item.kind is Kind.LINK and not target:
                continue
            file = self._census.open_file(path, keep=kept < self._keep_open, target=target)
            if not target and file.identity[:2] != item.identity[:2]:
                file.close()
                raise SourceChangedError(f"{file.name}: was replaced while the folder was read")
            self.watched[path] = _Watched(file, self.inside(path), self.company, item.identity)
            kept += file.keep

    def judge(self, monotonic: float, quiet: Mapping[str, float] | None, past: Past) -> Verdict:
        """Look at every file's frontier and structure, and say whether the checkpoint is complete, given its past."""
        facts: dict[bytes, FileFacts] = {}
        self.company.files = {self.inside(path): watched.file for path, watched in self.watched.items()}
        news = self.company.news()
        for path, watched in self.watched.items():
            calm = self.settle.quiet(path, monotonic)
            if watched.file.target:
                calm = min(calm, self.settle.quiet(path + TARGET, monotonic))
            closed = self._closed(path, watched, calm)
            # Of many small files that are not kept open, their folder was just asked: to open each takes longer.
            own = watched.file.keep or watched.file.target
            status = watched.file.status() if own else self.items[path].status
            watched.look(status, whole=closed or calm >= checkpoint.GIVE_UP, news=news)
            facts[self.inside(path)] = FileFacts(status.st_size, watched.layout, closed, calm, status.st_mtime_ns)
        name = b"" if self.lone_file else os.path.basename(self.path or os.path.abspath(self.root))
        verdict = checkpoint.assess(
            facts, self._read_small, name, quiet or checkpoint.QUIET,
            past=past, beside=self._read_beside, read=self._read, memo=self._memo,
        )  # fmt: skip
        if checkpoint.is_temporary(self.path):
            verdict = dataclasses.replace(verdict, complete=False, waiting_for="its writer to rename it")
        still = verdict.quiet - min((fact.quiet_seconds for fact in facts.values()), default=0.0)
        self.due = monotonic + max(0.0, still)
        self.verdict = verdict
        return verdict

    def _closed(self, path: bytes, watched: _Watched, calm: float) -> bool:
        """Was it closed since it last changed? What was not seen is asked for, once it has been quiet for a moment."""
        key = path + TARGET if watched.file.target else path
        if self.settle.is_closed(key):
            return True
        if calm < ASK_AFTER or watched.file.has_writer() is not False:
            return False
        now = Identity.of(watched.file.status())
        self.settle.closed(key, now)
        return self.settle.is_closed(key)

    def _watched(self, inside: bytes) -> _Watched | None:
        path = os.path.join(self.path, inside) if self.path and not self.lone_file else (self.path or inside)
        return self.watched.get(path)

    def _read_small(self, inside: bytes) -> bytes | None:
        watched = self._watched(inside)
        size = 0 if watched is None else watched.file.size
        return self._read(inside, 0, size) if size <= SMALL_BYTES else None

    def _read(self, inside: bytes, offset: int, length: int) -> bytes | None:
        watched = self._watched(inside)
        with contextlib.suppress(ArzError):
            return None if watched is None else watched.file.read_at(offset, length)
        return None

    def _read_beside(self, name: bytes) -> tuple[bytes, int] | None:
        """A small file in the folder around it, if that is watched, and when it was written (ns)."""
        if not self.path:
            return None
        with contextlib.suppress(ArzError):
            return self._census.read_beside(os.path.join(os.path.dirname(self.path), name), BESIDE_BYTES)
        return None

    def frontiers(self) -> tuple[dict[bytes, SourceFile], dict[bytes, int]]:
        """All files that are read, by path inside the checkpoint, and how far each is written."""
        files = {self.inside(path): watched.file for path, watched in self.watched.items()}
        return files, {self.inside(path): watched.frontier for path, watched in self.watched.items()}

    def layouts(self) -> dict[bytes, Layout]:
        """What is known of the structure of each file, by path inside the checkpoint."""
        return {self.inside(p): watched.layout for p, watched in self.watched.items() if watched.layout is not None}

    @property
    def worth_coding(self) -> bool:
        """Is enough there to say which run it belongs to, or more than that will ever need?"""
        written = [watched for watched in self.watched.values() if watched.frontier]
        if any(watched.layout is not None and watched.layout.storages for watched in written):
            return True
        opaque = [watched for watched in written if not lacks_names(watched.layout)]
        return sum(watched.frontier for watched in opaque) >= OPAQUE_BYTES

    @property
    def coming(self) -> bool:
        """Is its archive under way, or about to be?"""
        if self.frozen or self.queued:
            return True
        unknown = self.entry.state is State.SEEN and not self.gone
        return self.entry.state not in (State.BLOCKED, *DONE) and (unknown or self.rests)

    # ------------------------------------------------------------------------------------ the end

    def order(self, unchanged: Callable[[], bool], not_before: float) -> Finish:
        """What is to be archived, as it is now."""
        base = os.path.join(self.root, self.path) if self.path and not self.lone_file else self.root
        links: dict[bytes, tuple[bytes, int, int]] = {}
        folders: dict[bytes, tuple[int, int]] = {}
        for path, item in sorted(self.items.items()):
            mode, mtime = stat.S_IMODE(item.status.st_mode), item.status.st_mtime_ns
            if item.kind is Kind.FOLDER:
                folders[self.inside(path)] = (mode, mtime)
            elif item.kind is Kind.LINK and path not in self.watched:
                target = self._kept_target(base, path, item)
                if target is None:  # to nothing, or to a folder, outside: nobody could restore that safely
                    log.event("link-left-out", level=logging.WARNING, checkpoint=self.path, link=path, to=item.target)
                else:
                    links[self.inside(path)] = (target, mode, mtime)
        # Sorted, so that an archive that is coded once more is the same.
        files = {self.inside(p): w.file for p, w in sorted(self.watched.items()) if not checkpoint.is_temporary(p)}
        self.frozen = True
        return Finish(files, links, folders, unchanged, not_before)

    def _kept_target(self, base: bytes, path: bytes, item: Item) -> bytes | None:
        try:
            return kept_target(os.path.realpath(base), os.path.join(os.path.realpath(self.root), path))
        except OSError:  # deleted meanwhile: as it was, if that leads nowhere else
            return None if item.target.startswith(b"/") or b".." in item.target.split(b"/") else item.target

    @property
    def rests(self) -> bool:
        """Did it look complete but for having to be quiet for a while?"""
        return self.verdict is not None and (self.verdict.complete or self.verdict.waiting_for.endswith(QUIET_WORDS))

    @property
    def survives_deletion(self) -> bool:
        """Are all its files open, so that it can be finished although its folder is gone?"""
        return bool(self.watched) and all(file.file.keep and file.is_there for file in self.watched.values())

    def close(self, *, park: bool = False) -> None:
        """Stop the job and close the files. ``park`` leaves what another life can go on with."""
        job, self.job = self.job, None
        if job is not None:
            job.discard(park=park)
        for file in [*self._retired, *(watched.file for watched in self.watched.values())]:
            file.close()
        self._retired, self.watched = [], {}


def _is_left_alone(now: Item, before: Item) -> bool:
    """Is a name what it was, though names beside it are being deleted?"""
    if now.kind is not before.kind or now.target != before.target:
        return False
    return now.kind is not Kind.FILE or now.identity.same_content(before.identity)
