"""Which archives of the destination a checkpoint may be coded against."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping

from arzstream.archive.ancestry import SHOWN_DIGITS
from arzstream.archive.reader import open as open_archive
from arzstream.container.directory import open_directory
from arzstream.container.records import Kind
from arzstream.daemon.destination import Destination
from arzstream.daemon.handover import Shared
from arzstream.daemon.journal import Archive
from arzstream.daemon.memory import Memory
from arzstream.daemon.parentage import NONE, Choice
from arzstream.daemon.publish import SUFFIX
from arzstream.daemon.runs import candidates, family
from arzstream.errors import ArzError
from arzstream.formats.base import Layout
from arzstream.formats.checkpoint import Past, common
from arzstream.store.address import is_remote
from arzstream.store.ranges import is_url, open_reader

__all__ = ["Lineages", "recorded"]

TOLD_BYTES = 64 << 20
NUMBERED = re.compile(r"^(.*?)(?:\.\d+)?" + re.escape(SUFFIX) + "$", re.DOTALL)
"""An archive's name without suffix and number."""
ALIKE = 2
"""Checkpoints before one whose common files it is expected to have."""
REMEMBERED = 256
"""Archives whose list of files is kept in memory."""


class Lineages:
    """Used by the supervisor's thread only."""

    def __init__(self, dest: Destination, shared: Shared, memory: Memory) -> None:
        self._dest, self._shared, self._memory = dest, shared, memory
        self._holdings: dict[str, Mapping[bytes, tuple[int, int]]] = {}
        self._timeless = is_remote(shared.settings.source)
        """Archives tell lengths and times, but no versions: of objects they do not tell which are the old ones."""

    def choice(self, path: bytes, layouts: Mapping[bytes, Layout]) -> Choice:
        """What the checkpoint ``path`` may be coded against, as far as names and the journal tell."""
        settings = self._shared.settings
        if settings.no_parents:
            return NONE
        places, note = [], ""
        for archive in self._candidates(path):
            if archive.retired:
                continue
            if self._dest.exists(archive.name):
                places.append(self._dest.place_of(archive.name))
            elif archive.path != path and not places and not note:  # the likeliest of all is gone
                shown = f" (content {archive.content[:SHOWN_DIGITS]}…)" if archive.content else ""
                note = f"{archive.name}{shown} is missing"
        base = settings.parent if is_url(settings.parent) else os.path.abspath(settings.parent or ".")
        return Choice(tuple(places), base if settings.parent else "", settings.max_chain, layouts, note)

    def told(self, path: bytes, wanted: Iterable[bytes]) -> dict[bytes, bytes]:
        """Of the files ``wanted``, small ones, what they hold in the likeliest archive of the run of ``path``."""
        for place in self.choice(path, {}).candidates[:1]:
            with contextlib.suppress(ArzError), open_archive(place) as archive:
                held = {name: archive.catalog.files.get(os.fsdecode(name)) for name in wanted}
                small = [name for name, record in held.items() if record and record.size <= TOLD_BYTES]
                return {name: archive.read_file(os.fsdecode(name)) for name in small}
        return {}

    def past(self, path: bytes) -> Past:
        """What the archives of its run tell of what will belong to the checkpoint ``path``.

        Opens the newest archives of its own and of the two steps before it, once each. Nothing is ``written`` where
        the source is a store's.
        """
        name, numbers = family(path)
        own: list[str] = []
        before: dict[bytes, str] = {}
        for archive in self._candidates(path):
            if archive.retired or family(archive.path)[0] != name:
                continue
            if archive.path == path:
                own.append(archive.name)
            elif family(archive.path)[1] < numbers:
                before.setdefault(archive.path, archive.name)
        written = self._held(own[0]) if own else {}
        saves = [written] if written else [held for n in list(before.values())[:ALIKE] if (held := self._held(n))]
        return Past(common([list(held) for held in saves]), {} if self._timeless else written)

    def _held(self, name: str) -> Mapping[bytes, tuple[int, int]]:
        """(size, mtime in ns) of each regular file in an archive; nothing if it cannot be read."""
        if name not in self._holdings:
            files: dict[bytes, tuple[int, int]] = {}
            try:
                with open_reader(self._dest.place_of(name)) as reader:
                    for _, record in open_directory(reader).files:
                        if record.kind == Kind.REGULAR:
                            files[record.path] = (record.size, record.mtime)
            except ArzError:
                return {}
            while len(self._holdings) >= REMEMBERED:
                del self._holdings[next(iter(self._holdings))]
            self._holdings[name] = files
        return self._holdings[name]

    def _candidates(self, path: bytes) -> list[Archive]:
        return candidates(path, [*self._memory.archives.values(), *self._strangers(path)])

    def _strangers(self, path: bytes) -> list[Archive]:
        """Archives that lie where those of its run lie, and that the journal does not know: it may be new."""
        folder = os.fsdecode(os.path.dirname(path))
        found = []
        for name, written in self._dest.archives_in(folder).items():
            match = NUMBERED.match(os.path.basename(name))
            if match is not None and name not in self._memory.archives:
                found.append(Archive(name, os.fsencode(os.path.join(folder, match[1])), written, 0, 0, ""))
        return found

    def bytes_before(self, path: bytes) -> int:
        """How many bytes the checkpoint before ``path`` in its run has; 0 if the journal knows of none."""
        known = candidates(path, self._memory.archives.values())
        return next((archive.bytes_in for archive in known if family(archive.path)[0] == family(path)[0]), 0)

    def found(self, name: str, path: bytes) -> Archive:
        """The record of an archive that lies there already."""
        return recorded(self._dest, name, path)

    def name_of(self, place: str) -> str:
        """How an archive is called in the journal: relative to the destination, if it lies there."""
        return self._dest.name_of(place) if place else ""


def recorded(dest: Destination, name: str, path: bytes) -> Archive:
    """What the journal remembers of the archive ``name`` of checkpoint ``path``, from the archive itself."""
    size, written = dest.facts(name)
    content = parent = ""
    try:
        with open_reader(dest.place_of(name)) as reader:
            directory = open_directory(reader)
        content = (directory.content or b"").hex()
        if directory.parents and directory.parents[0].hint:
            parent = os.path.normpath(os.path.join(os.path.dirname(name), directory.parents[0].hint))
    except ArzError:
        pass  # it was read a moment ago; what is wrong with it shows when it is used
    bytes_in = sum(record.size for _, record in directory.files) if content else 0
    return Archive(name, path, written, bytes_in, size, content, parent)
