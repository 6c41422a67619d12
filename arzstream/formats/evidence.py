"""What the rules of completeness judge by: the files of one checkpoint, what lies beside it, and what came before."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from arzstream.formats.base import Layout
from arzstream.formats.grouping import INDEX, is_model_file, is_temporary

__all__ = [
    "SMALL_BYTES",
    "FileFacts",
    "Finding",
    "Folder",
    "Past",
    "Rule",
    "Strength",
    "holds_state",
    "is_expected",
    "join",
    "place_of",
    "text",
]

SMALL_BYTES = 64 << 20
"""Markers and indexes are read whole up to this length: a Trainer's state grows with each step that is logged, to 8 MiB
in some thousand, and the index of a model of 100,000 tensors is as long. What is longer is never taken for missing."""
TAIL_BYTES = 64
"""Of a file's end, which tells at once that a JSON object is not whole yet."""
MAX_SHOWN = 512
"""Bytes of a path that are shown."""

Strength = Literal["strong", "good", "weak"]

_STATE = re.compile(rb".*\.pkl|trainer_state\.json|.*\.metadata|metadata\.json|commit_success\.txt")
_AFTERWARDS = re.compile(rb"(?:.*/)?(?:run_config\.yaml|tokenizer/[^/]+)", re.DOTALL)


@dataclass(frozen=True)
class FileFacts:
    """What is known of a file.

    ``closed``: it was seen closed or renamed since its last change; ``quiet_seconds``: how long ago that change was;
    ``changed``: its modification time in nanoseconds, which orders files that one machine wrote to the tick.
    """

    size: int
    layout: Layout | None
    closed: bool
    quiet_seconds: float
    changed: int = 0


@dataclass(frozen=True)
class Past:
    """What earlier archives tell.

    ``names``: paths that the checkpoints before this one in its run had in common (see ``checkpoint.common``);
    ``written``: (size, modification time in ns) of each file that the newest archive of this very checkpoint holds.
    """

    names: frozenset[bytes] = frozenset()
    written: Mapping[bytes, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """What a rule that applies says.

    ``waiting_for`` is empty where it is satisfied. ``gives_up``: that is not waited for without end. ``doubt``: all
    that is there is whole, and only other saves suggest that more will come; so it gives up, too.
    """

    strength: Strength
    waiting_for: str = ""
    gives_up: bool = False
    doubt: bool = False


@dataclass(frozen=True)
class Folder:
    """The files of one checkpoint, by their paths relative to its folder; ``name`` is the folder's own name.

    ``read_small`` gives a file of up to :data:`SMALL_BYTES`; ``read`` bytes of any (path, offset, length); ``beside``
    content and modification time (ns) of a small file in the folder around it. They give None if they cannot. ``memo``
    lives as long as the checkpoint is followed.
    """

    files: Mapping[bytes, FileFacts]
    read_small: Callable[[bytes], bytes | None]
    name: bytes = b""
    past: Past = Past()
    beside: Callable[[bytes], tuple[bytes, int] | None] = lambda _: None
    read: Callable[[bytes, int, int], bytes | None] = lambda *_: None
    memo: dict[tuple[str, bytes], tuple[object, Any]] = field(default_factory=dict)

    def json(self, path: bytes) -> Any:
        """The parsed object, or None if the file is missing, too large (see :meth:`is_large`), or no whole one."""
        return self.once("json", path, lambda: self._parsed(path))

    def is_whole(self, path: bytes) -> bool:
        """Is the file one JSON object, whole? Of one that is too large to be parsed its last byte tells."""
        return bool(self.once("whole", path, lambda: self._is_whole(path)))

    def is_large(self, path: bytes) -> bool:
        """Is the file too large to be read as a whole?"""
        return self.files[path].size > SMALL_BYTES

    def _is_whole(self, path: bytes) -> bool:
        return self.may_end(path) if self.is_large(path) else self._parsed(path) is not None

    def _parsed(self, path: bytes) -> dict[str, Any] | None:
        raw = self.read_small(path) if self.may_end(path) else None
        try:
            parsed = None if raw is None else json.loads(raw)
        except (ValueError, RecursionError):
            return None
        return parsed if isinstance(parsed, dict) else None

    def may_end(self, path: bytes, closing: tuple[bytes, ...] = (b"}",)) -> bool:
        """Might JSON that ends with one of ``closing`` end here? While a file grows it is parsed no more often than
        that."""
        size = self.files[path].size
        if not size:
            return False
        tail = self.read(path, max(0, size - TAIL_BYTES), min(size, TAIL_BYTES))
        if tail is None:
            return not self.is_large(path)
        return tail.isspace() or tail.rstrip().endswith(closing)

    def once(self, what: str, path: bytes, work: Callable[[], Any]) -> Any:
        """``work()``, done again only if the file ``path`` has changed; None if there is no such file."""
        facts = self.files.get(path)
        if facts is None:
            return None
        state = (facts.size, facts.changed, facts.quiet_seconds > 1)
        known = self.memo.get((what, path))
        if known is None or known[0] != state:
            known = self.memo[what, path] = (state, work())
        return known[1]

    def matching(self, pattern: str) -> list[bytes]:
        """Paths whose last part matches ``pattern`` wholly."""
        wanted = re.compile(pattern.encode())
        return [path for path in self.files if wanted.fullmatch(path.rpartition(b"/")[2])]

    def by_place(self, pattern: str) -> dict[bytes, list[bytes]]:
        """:meth:`matching`, by the folder inside the checkpoint."""
        places: dict[bytes, list[bytes]] = {}
        for path in self.matching(pattern):
            places.setdefault(place_of(path), []).append(path)
        return places

    def newest(self, paths: list[bytes]) -> int:
        """The latest modification time among ``paths`` (ns), 0 if there are none."""
        return max((self.files[path].changed for path in paths), default=0)

    def is_stale(self, marker: bytes, files: list[bytes]) -> bool:
        """Was one of ``files`` written after ``marker``, which speaks for them?"""
        return self.newest(files) > self.files[marker].changed

    def speaks(self, marker: bytes, files: list[bytes], strength: Strength) -> Finding:
        """``strength``, if ``marker`` is newer than ``files``; else it was left by an earlier save, or a copy began
        with it: the new one is waited for, though not without end."""
        if self.is_stale(marker, files):
            return Finding("weak", f"{text(marker)} to be written again", gives_up=True, doubt=True)
        return Finding(strength)


@dataclass(frozen=True)
class Rule:
    """``judge`` gives None where the rule does not apply."""

    name: str
    judge: Callable[[Folder], Finding | None]


def holds_state(path: bytes) -> bool:
    """Is it one of the files that every save of a run writes: tensors, random states, markers?"""
    name = path.rpartition(b"/")[2]
    return not is_temporary(path) and bool(is_model_file(name) or _STATE.fullmatch(name) or INDEX.search(name))


def is_expected(path: bytes) -> bool:
    """Is it one of the files that come again if the saves before had them: those with state, and what trainers write
    after it, which may be a copy of an old file?"""
    return holds_state(path) or (not is_temporary(path) and _AFTERWARDS.fullmatch(path) is not None)


def place_of(path: bytes) -> bytes:
    """The folder that a file lies in, relative to the checkpoint."""
    return path.rpartition(b"/")[0]


def join(place: bytes, name: bytes | str) -> bytes:
    raw = name.encode("utf-8", "surrogatepass") if isinstance(name, str) else name
    return place + b"/" + raw if place else raw


def text(path: bytes) -> str:
    """A path, which may come from a file's content, as a line for a person can carry it."""
    plain = path[:MAX_SHOWN].decode("utf-8", "backslashreplace") + ("..." if len(path) > MAX_SHOWN else "")
    return plain if plain.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in plain)
