"""When a checkpoint is complete: one small rule per way of writing.

A rule looks at the files of one checkpoint (see ``grouping``) and says what it still waits for, and how far it can be
trusted:

``strong``
    A marker that the writer makes when everything else is done.
``good``
    The structure of the files proves that they are whole, and names tell that none is missing.
``weak``
    Nothing but quiet tells.

All rules that apply must be satisfied; the first one in :data:`RULES` that applies names the verdict. Beside them,
every file of a known format must be whole, no file may have a temporary name, and nothing may have changed for a
while: :data:`QUIET` seconds by strength, and as long as for a weak rule where a file was not seen to be closed.

A marker that is older than the files it speaks for was left by an earlier save, or came first in a copy: it counts as
weak. A file that stays broken, or an index that never comes, is waited for :data:`GIVE_UP` seconds; then the files
are what they are, and broken ones are archived as opaque bytes. A missing shard is waited for without end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from arzstream.formats.base import Layout
from arzstream.formats.grouping import SHARD, group, is_model_file, is_temporary

__all__ = [
    "GIVE_UP",
    "QUIET",
    "RULES",
    "FileFacts",
    "Rule",
    "Verdict",
    "assess",
    "group",
    "is_model_file",
    "is_temporary",
]

Strength = Literal["strong", "good", "weak"]

QUIET: dict[str, float] = {"strong": 0.1, "good": 0.2, "weak": 5.0}
"""Seconds without a change before a checkpoint counts as complete."""

GIVE_UP = 60.0
"""Seconds without a change after which a broken file, a temporary name or a missing index is taken as it is."""

_SLACK = 1.0
"""Seconds by which a marker may seem older than the files it speaks for."""


@dataclass(frozen=True)
class FileFacts:
    """What is known of a file.

    ``closed``: it was seen closed or renamed since its last change; ``quiet_seconds``: how long ago that change was.
    """

    size: int
    layout: Layout | None
    closed: bool
    quiet_seconds: float


@dataclass(frozen=True)
class Verdict:
    """``waiting_for`` is one line for a person, empty if ``complete``; ``quiet`` the seconds of quiet asked for."""

    complete: bool
    strength: Strength
    rule: str
    waiting_for: str
    quiet: float


@dataclass(frozen=True)
class Finding:
    """What a rule that applies says. ``gives_up``: ``waiting_for`` is not waited for without end."""

    strength: Strength
    waiting_for: str = ""
    gives_up: bool = False


@dataclass(frozen=True)
class Folder:
    """The files of one checkpoint, by their paths relative to its folder; ``name`` is the folder's own name."""

    files: Mapping[bytes, FileFacts]
    read_small: Callable[[bytes], bytes | None]
    name: bytes = b""
    _parsed: dict[bytes, Any] = field(default_factory=dict)

    def json(self, path: bytes) -> Any:
        """The parsed file, or None if it is missing or does not parse."""
        if path not in self._parsed:
            raw = self.read_small(path) if path in self.files else None
            try:
                self._parsed[path] = None if raw is None else json.loads(raw)
            except (ValueError, RecursionError):
                self._parsed[path] = None
        return self._parsed[path]

    def matching(self, pattern: str) -> list[bytes]:
        """Paths whose last part matches ``pattern`` wholly."""
        wanted = re.compile(pattern.encode())
        return [path for path in self.files if wanted.fullmatch(path.rpartition(b"/")[2])]

    def is_stale(self, marker: bytes, files: list[bytes]) -> bool:
        """Whether one of ``files`` changed after ``marker``, which speaks for them."""
        quiet = self.files[marker].quiet_seconds - _SLACK
        return any(self.files[path].quiet_seconds < quiet for path in files)


@dataclass(frozen=True)
class Rule:
    """``judge`` gives None where the rule does not apply."""

    name: str
    judge: Callable[[Folder], Finding | None]


def _orbax(folder: Folder) -> Finding | None:
    """Orbax: ``commit_success.txt`` comes last."""
    markers = folder.matching(r"commit_success\.txt")
    if not markers:
        return None
    return Finding("weak" if folder.is_stale(markers[0], list(folder.files)) else "strong")


def _trainer(folder: Folder) -> Finding | None:
    """transformers' Trainer: ``trainer_state.json`` comes last from the first rank; other ranks may lag."""
    state = b"trainer_state.json"
    named = re.fullmatch(rb"checkpoint-\d+", folder.name) is not None
    if state not in folder.files and not (named and b"training_args.bin" in folder.files):
        return None
    if not isinstance(folder.json(state), dict):
        return Finding("good", "trainer_state.json")
    models = [path for path in folder.files if is_model_file(path)]
    alone = not folder.matching(r"rng_state_\d+\.pth")
    return Finding("good" if alone and not folder.is_stale(state, models) else "weak")


def _distributed(folder: Folder) -> Finding | None:
    """torch.distributed.checkpoint: ``.metadata`` comes last, by renaming; until then an old one may lie there."""
    parts: dict[bytes, list[bytes]] = {}
    for path in folder.matching(r".*\.distcp"):
        parts.setdefault(path.rpartition(b"/")[0], []).append(path)
    for marker in folder.matching(r"\.metadata"):
        parts.setdefault(marker.rpartition(b"/")[0], [])
    if not parts:
        return None
    strength: Strength = "strong"
    for place, files in parts.items():
        marker = place + b"/.metadata" if place else b".metadata"
        if marker not in folder.files:
            return Finding("strong", _text(marker))
        if folder.is_stale(marker, files):
            strength = "weak"
    return Finding(strength)


def _sharded(folder: Folder) -> Finding | None:
    """save_pretrained in shards: every shard that the others' names imply, and the index, which comes last."""
    sets: dict[tuple[bytes, bytes, bytes], set[bytes]] = {}
    for path in folder.files:
        match = SHARD.match(path)
        if match and not is_temporary(path):
            sets.setdefault((match["stem"], match["total"], match["suffix"]), set()).add(path)
    indexes = [path for path in folder.files if path.endswith(b".index.json")]
    if not sets and not indexes:
        return None
    for (stem, total, suffix), have in sets.items():
        for number in range(1, int(total) + 1):
            shard = b"%s-%05d-of-%s%s" % (stem, number, total, suffix)
            if shard not in have:
                return Finding("good", _text(shard))
    strength: Strength = "good"
    for index in indexes:
        finding = _index(folder, index)
        if finding.waiting_for:
            return finding
        strength = "weak" if finding.strength == "weak" else strength
    covered = {shard for index in indexes for shard in _weight_files(folder, index)}
    for (stem, _, suffix), have in sets.items():
        if not covered.issuperset(have):
            return Finding("good", f"{_text(stem + suffix)}.index.json", gives_up=True)
    return Finding(strength)


def _index(folder: Folder, index: bytes) -> Finding:
    """An index is satisfied if it parses and every file in its weight map is there and has the tensors it says."""
    weights = _weight_map(folder, index)
    if weights is None:
        return Finding("good", f"{_text(index)} to be valid", gives_up=True)
    files = _weight_files(folder, index)
    if not any(path in folder.files for path in files) and any(map(is_model_file, folder.files)):
        return Finding("weak")  # all it lists is gone: left by an earlier save in shards
    tensors: dict[bytes, set[str]] = {}
    for path in files:
        facts = folder.files.get(path)
        if facts is None:
            return Finding("good", _text(path))
        layout = facts.layout
        tensors[path] = {view.name for storage in layout.storages for view in storage.views} if layout else set()
    place = index.rpartition(b"/")[0]
    for name, file in weights.items():
        path = _join(place, file)
        layout = folder.files[path].layout
        if layout is not None and layout.complete and layout.storages and name not in tensors[path]:
            return Finding("good", f"{_text(path)} to hold {name[:80]!r}, as {_text(index)} says", gives_up=True)
    return Finding("weak" if folder.is_stale(index, files) else "good")


def _weight_map(folder: Folder, index: bytes) -> dict[str, str] | None:
    parsed = folder.json(index)
    weights = parsed.get("weight_map") if isinstance(parsed, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(file, str) for file in weights.values()):
        return None
    return weights


def _weight_files(folder: Folder, index: bytes) -> list[bytes]:
    place = index.rpartition(b"/")[0]
    return [_join(place, file) for file in dict.fromkeys((_weight_map(folder, index) or {}).values())]


def _single_file(folder: Folder) -> Finding | None:
    """One file that itself says where it ends: safetensors by its header, torch.save by the directory at its end."""
    if len(folder.files) != 1:
        return None
    (facts,) = folder.files.values()
    known = facts.layout is not None and facts.layout.format != "opaque"
    return Finding("good" if known else "weak")


def _any_folder(folder: Folder) -> Finding | None:
    """No marker: accelerate, a training script's own, save_pretrained without shards (a tokenizer may follow)."""
    return Finding("weak")


RULES: tuple[Rule, ...] = (
    Rule("orbax", _orbax),
    Rule("trainer", _trainer),
    Rule("distributed checkpoint", _distributed),
    Rule("sharded", _sharded),
    Rule("single file", _single_file),
    Rule("folder", _any_folder),
)
"""In order of precedence. The last one always applies."""


def assess(
    entries: Mapping[bytes, FileFacts],
    read_small: Callable[[bytes], bytes | None],
    name: bytes = b"",
    quiet: Mapping[str, float] = QUIET,
    give_up: float = GIVE_UP,
) -> Verdict:
    """Whether the checkpoint made of ``entries`` is complete, and if not, what it waits for.

    Keys of ``entries`` are paths relative to the checkpoint's folder (for a lone file its name); ``name`` is the
    folder's own name. ``read_small`` gives a small file's content, or None if it cannot or is too large.
    """
    folder = Folder(entries, read_small, name)
    findings = [(rule.name, finding) for rule in RULES for finding in [rule.judge(folder)] if finding is not None]
    rule, first = findings[0]
    strength = first.strength
    needed = quiet[strength]
    if not all(facts.closed for facts in entries.values()):
        needed = max(needed, quiet["weak"])
    since = min((facts.quiet_seconds for facts in entries.values()), default=0.0)
    waits = [_files_missing(entries), *_files_open(folder), *(finding for _, finding in findings)]
    for finding in waits:
        if finding.waiting_for and not (finding.gives_up and since >= give_up):
            return Verdict(False, strength, rule, finding.waiting_for, needed)
    if since < needed:
        return Verdict(False, strength, rule, f"{needed:g} s without a change", needed)
    return Verdict(True, strength, rule, "", needed)


def _files_missing(entries: Mapping[bytes, FileFacts]) -> Finding:
    return Finding("weak", "" if any(not is_temporary(path) for path in entries) else "a file with its final name")


def _files_open(folder: Folder) -> list[Finding]:
    """The files that are not whole, or not yet under their own name."""
    found = []
    for path in sorted(folder.files):
        layout = folder.files[path].layout
        if is_temporary(path):
            found.append(Finding("weak", f"{_text(path)} to be renamed", gives_up=True))
        elif layout is None:
            found.append(Finding("weak", f"{_text(path)} to be readable", gives_up=True))
        elif layout.format != "opaque" and not layout.complete:
            found.append(Finding("weak", f"the rest of {_text(path)}", gives_up=True))
    return found


def _join(place: bytes, file: str) -> bytes:
    name = file.encode("utf-8", "surrogatepass")
    return place + b"/" + name if place else name


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
