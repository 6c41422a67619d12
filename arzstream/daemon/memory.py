"""The journal as the main loop uses it: entries live here, and are written when they change and when they can be."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from arzstream.daemon import log
from arzstream.daemon.journal import Archive, Entry, Journal
from arzstream.errors import StorageError

__all__ = ["Memory"]

SAVE_EVERY = 0.5
"""Seconds between two records of mere progress."""
RETRY_AFTER = 1.0


class Memory:
    """What is true is in ``entries``; the journal follows. A journal that cannot be written (a full disk) stops
    nothing: what is missing in it is kept and written later."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.entries: dict[bytes, Entry] = journal.entries()
        self.archives: dict[str, Archive] = journal.archives()
        self._due: dict[bytes, float] = {}
        self._forgotten: set[bytes] = set()
        """Paths that may still be written down, though there are no entries of them."""
        self._publications: list[tuple[Archive, Entry]] = []
        self._retry_at = 0.0

    def changed(self, entry: Entry) -> None:
        """Write ``entry`` at the next :meth:`flush`."""
        self._due[entry.path] = 0.0

    def progressed(self, entry: Entry) -> None:
        """Write ``entry`` some time soon."""
        self._due.setdefault(entry.path, time.monotonic() + SAVE_EVERY)

    def published(self, archive: Archive, entry: Entry) -> None:
        """Write a publication, at once if possible."""
        self.archives[archive.name] = archive
        self._publications.append((archive, entry))
        self._due.pop(entry.path, None)
        self.flush()

    def retire(self, archives: Iterable[Archive]) -> bool:
        """Write down that ``archives`` are to be removed; False if that cannot be, and they must stay."""
        self.flush(force=True)
        marked = [dataclasses.replace(archive, retired=time.time()) for archive in archives]
        if self.behind or not self._try(lambda: self._journal.put_archives(marked)):
            return False
        self.archives.update({archive.name: archive for archive in marked})
        return True

    def restore(self, archives: Iterable[Archive]) -> None:
        """These stay, as they are given."""
        staying = [dataclasses.replace(archive, retired=0.0) for archive in archives]
        self.archives.update({archive.name: archive for archive in staying})
        if staying:
            self._try(lambda: self._journal.put_archives(staying))

    def removed(self, names: Iterable[str], entries: Iterable[Entry]) -> None:
        """Archives are gone, and this is what became of their checkpoints. Should it not be written, it is found out
        again: what is marked as retired and is not there, was removed."""
        listed, left = list(names), list(entries)
        for name in listed:
            self.archives.pop(name, None)
        if not self._try(lambda: self._journal.remove_archives(listed, left)):
            for entry in left:
                self.changed(entry)

    def forget(self, path: bytes) -> None:
        """Nothing was ever published of it, and nothing will be."""
        self.entries.pop(path, None)
        self._due.pop(path, None)
        if not self._try(lambda: self._journal.forget(path)):
            self._forgotten.add(path)

    def rename(self, old: bytes, entry: Entry) -> None:
        """What was called ``old`` is ``entry`` now."""
        self.entries.pop(old, None)
        self._due.pop(old, None)
        self.entries[entry.path] = entry
        if not self._try(lambda: self._journal.rename(old, entry)):
            self._forgotten.add(old)
            self.changed(entry)

    def set_meta(self, **values: Any) -> None:
        """Facts about the daemon itself."""
        self._try(lambda: self._journal.set_meta(**values))

    @property
    def behind(self) -> bool:
        """Is anything not written yet?"""
        return bool(self._due or self._publications or self._forgotten)

    def flush(self, *, force: bool = False) -> None:
        """Write what is due; everything with ``force``."""
        now = time.monotonic()
        if now < self._retry_at and not force:
            return
        while self._publications:
            archive, entry = self._publications[0]
            if not self._try(functools.partial(self._journal.add_archive, archive, entry)):
                return
            self._publications.pop(0)
        for path in list(self._forgotten):
            if path not in self.entries and not self._try(functools.partial(self._journal.forget, path)):
                return
            self._forgotten.discard(path)
        for path, due in list(self._due.items()):
            if due > now and not force:
                continue
            known = self.entries.get(path)
            if known is not None and not self._try(functools.partial(self._journal.put, known)):
                return
            del self._due[path]

    def _try(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except StorageError as error:
            if time.monotonic() >= self._retry_at:
                log.event("journal-not-written", level=logging.WARNING, reason=error)
            self._retry_at = time.monotonic() + RETRY_AFTER
            return False
        return True
