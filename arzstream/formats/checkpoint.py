"""When a checkpoint is complete: one small rule per way of writing.

A rule (see ``rules``) looks at the files of one checkpoint (see ``grouping``), and says what it still waits for, and
how far it can be trusted:

``strong``
    A marker that the writer makes when everything else is done.
``good``
    The structure of the files proves that they are whole, and names tell that none is missing.
``weak``
    Nothing but quiet tells.

All rules that apply must be satisfied. The first one names the verdict, the weakest one its strength. Beside them,
every file of a known format must be whole, no file may have a temporary name, and nothing may have changed for a
while: :data:`QUIET` seconds by strength, and as long as for a weak rule where a file was not seen to be closed.

Where everything that is there is whole, other saves may still tell that more will come. A marker that is older than
the files it speaks for was left by an earlier save; what the checkpoints before it in its run had in common is not
there yet; of a checkpoint that is written again some files are the old ones. That is waited for as long as a file
that stays broken, or an index that does not come: :data:`GIVE_UP` seconds without a change. Then the files are what
they are, and broken ones are archived as opaque bytes. A missing shard is waited for without end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from arzstream.formats.evidence import FileFacts, Finding, Folder, Past, Strength, holds_state, is_expected, text
from arzstream.formats.grouping import group, is_model_file, is_temporary, settled_name
from arzstream.formats.rules import FALLBACK, RULES

__all__ = [
    "DOUBTS",
    "GIVE_UP",
    "QUIET",
    "FileFacts",
    "Past",
    "Verdict",
    "assess",
    "common",
    "group",
    "is_model_file",
    "is_temporary",
]

QUIET: dict[str, float] = {"strong": 0.1, "good": 0.2, "weak": 5.0}
"""Seconds without a change before a checkpoint counts as complete."""

GIVE_UP = 60.0
"""Seconds without a change after which a broken file, a temporary name or a missing index is taken as it is."""

DOUBTS = 12
"""Times the quiet of a weak rule (that is, 60 s) after which what other saves suggest is no longer expected."""

_WEAKNESS = {"strong": 0, "good": 1, "weak": 2}


@dataclass(frozen=True)
class Verdict:
    """``waiting_for`` is one line for a person, empty if ``complete``; ``quiet`` the seconds of quiet asked for.
    ``doubt``: it will be complete after a while, if nothing changes."""

    complete: bool
    strength: Strength
    rule: str
    waiting_for: str
    quiet: float
    doubt: bool = False


def common(saves: list[list[bytes]]) -> frozenset[bytes]:
    """For :attr:`Past.names`: what saves that consist of these paths have in common, as far as it will come again."""
    sets = [{settled_name(path) for path in paths if is_expected(path)} for paths in saves]
    return frozenset(set.intersection(*sets)) if sets else frozenset()


def assess(
    entries: Mapping[bytes, FileFacts],
    read_small: Callable[[bytes], bytes | None],
    name: bytes = b"",
    quiet: Mapping[str, float] = QUIET,
    give_up: float = GIVE_UP,
    **more: Any,
) -> Verdict:
    """Whether the checkpoint made of ``entries`` is complete, and if not, what it waits for.

    Keys of ``entries`` are paths relative to the checkpoint's folder (for a lone file its name); ``name`` is the
    folder's own name. ``read_small`` gives a small file's content, or None if it cannot or is too large. ``more`` is
    what else a :class:`~arzstream.formats.evidence.Folder` can know.
    """
    folder = Folder(_without_abandoned(entries, quiet["weak"]), read_small, name, **more)
    found = [(rule.name, finding) for rule in RULES for finding in [rule.judge(folder)] if finding is not None]
    if all(finding.doubt for _, finding in found):
        found += [(rule.name, finding) for rule in FALLBACK for finding in [rule.judge(folder)] if finding][:1]
    rule = found[0][0]
    strength = max((finding.strength for _, finding in found), key=_WEAKNESS.__getitem__)
    needed = quiet[strength]
    if not all(facts.closed for facts in folder.files.values()):
        needed = max(needed, quiet["weak"])
    since = min((facts.quiet_seconds for facts in folder.files.values()), default=0.0)
    waits = [_files_missing(folder.files), *_files_open(folder), *(finding for _, finding in found)]
    # What is certain comes first: of a file that is half written nobody needs to hear that another may follow.
    for finding in sorted(waits, key=lambda finding: finding.doubt):
        limit = DOUBTS * quiet["weak"] if finding.doubt else give_up
        if finding.waiting_for and not (finding.gives_up and since >= limit):
            return Verdict(False, strength, rule, finding.waiting_for, needed, finding.doubt)
    if since < needed:
        return Verdict(False, strength, rule, f"{needed:g} s without a change", needed)
    return Verdict(True, strength, rule, "", needed)


def _without_abandoned(entries: Mapping[bytes, FileFacts], quiet: float) -> Mapping[bytes, FileFacts]:
    """Without files that a writer began under a temporary name before it crashed: nobody has them open, and others
    were written after them."""
    newest = max((facts.changed for path, facts in entries.items() if not is_temporary(path)), default=0)

    def abandoned(path: bytes, facts: FileFacts) -> bool:
        return is_temporary(path) and facts.closed and facts.quiet_seconds >= quiet and facts.changed < newest

    return {path: facts for path, facts in entries.items() if not abandoned(path, facts)}


def _files_missing(files: Mapping[bytes, FileFacts]) -> Finding:
    return Finding("weak", "" if any(not is_temporary(path) for path in files) else "a file with its final name")


def _files_open(folder: Folder) -> list[Finding]:
    """The files that are not whole, or not yet under their own name. Of those that nobody was seen to close, one with
    state that is empty was opened, and what is written to it is still in its writer's memory; so it is with JSON that
    does not end as JSON does.

    A ``.distcp`` file is a row of files of torch.save and others; where it ends, only the ``.metadata`` tells.
    """
    found = []
    for path in sorted(folder.files):
        layout = folder.files[path].layout
        if is_temporary(path):
            found.append(Finding("weak", f"{text(path)} to be renamed", gives_up=True))
        elif not folder.files[path].size and not folder.files[path].closed and holds_state(path):
            found.append(Finding("weak", f"the first bytes of {text(path)}", gives_up=True, doubt=True))
        elif path.endswith(b".json") and not folder.files[path].closed and not folder.may_end(path, (b"}", b"]")):
            found.append(Finding("weak", f"the rest of {text(path)}", gives_up=True, doubt=True))
        elif layout is None:
            found.append(Finding("weak", f"{text(path)} to be readable", gives_up=True))
        elif layout.format != "opaque" and not layout.complete and not path.endswith(b".distcp"):
            found.append(Finding("weak", f"the rest of {text(path)}", gives_up=True))
    return found
