"""What the main loop and the jobs hand each other: orders one way, outcomes the other."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping

from arzstream.archive.summary import PackSummary
from arzstream.daemon.config import Settings
from arzstream.daemon.parentage import InUse
from arzstream.daemon.source import SourceFile
from arzstream.errors import ArzError

__all__ = ["Changed", "Elsewhere", "Failed", "Finish", "Outcome", "Published", "Shared"]


@dataclasses.dataclass(frozen=True)
class Finish:
    """What a complete checkpoint consists of, by path inside it, as it was when it was found complete."""

    files: Mapping[bytes, SourceFile]
    links: Mapping[bytes, tuple[bytes, int, int]]
    """(target, mode, mtime in ns)"""
    folders: Mapping[bytes, tuple[int, int]]
    """(mode, mtime in ns)"""
    unchanged: Callable[[], bool]
    """Looks at the folder again: does it still hold these names and no others?"""
    not_before: float = 0.0
    """Monotonic seconds until which nothing may change; the work is done meanwhile, and in vain if something does."""


@dataclasses.dataclass(frozen=True)
class Published:
    name: str
    summary: PackSummary
    visible: float
    """Seconds since 1970 at which the archive could be seen."""
    last_write: float
    early: float
    """Fraction of the bytes that were coded when the last one was written."""
    parent: str = ""
    """Where the archive lies that it was coded against; empty if it stands alone."""
    note: str = ""
    """What was wrong with parents."""


@dataclasses.dataclass(frozen=True)
class Changed:
    """The source changed meanwhile; ``usable`` says whether the job can go on from here."""

    text: str
    usable: bool


@dataclasses.dataclass(frozen=True)
class Failed:
    error: ArzError
    in_source: bool


@dataclasses.dataclass(frozen=True)
class Elsewhere:
    """Another daemon has published an archive of just this under ``name``."""

    name: str


Outcome = Published | Changed | Elsewhere | Failed


class Shared:
    """What all jobs share: settings, how many may code at once, and whether work is paused."""

    def __init__(self, settings: Settings, wake: Callable[[], None]) -> None:
        self.settings = settings
        self.wake = wake
        self.landing = threading.BoundedSemaphore(2)
        self.in_use = InUse()
        self.going = threading.Event()
        self.going.set()

    @property
    def memory_bytes(self) -> int:
        """For each of the at most four jobs that hold chunks at a time."""
        return max(16 << 20, (self.settings.memory << 20) // 4)
