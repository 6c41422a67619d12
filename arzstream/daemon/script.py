"""In which order the parts of an archive were coded while its files landed, so that it can be done so once more.

An archive that is coded in the same order against the same parent, with the same file id, has the same bytes, as far as
its sources have; then what a store has of an interrupted upload need not be sent again (:mod:`arzstream.store.notes`).
A script is followed as long as that is possible. It is never needed: what is coded in another order is right, too.
"""

from __future__ import annotations

import contextlib
import secrets
from typing import NamedTuple

from arzstream.store.notes import UploadNotes

__all__ = ["SETTLE", "Script", "Turn"]


class Turn(NamedTuple):
    """File ``path`` (inside the checkpoint) is coded up to byte ``end``; -1: all files are, they are complete."""

    path: bytes
    end: int

    @property
    def settles(self) -> bool:
        return self.end < 0


SETTLE = Turn(b"", -1)


class Script:
    """Used by one thread of a job at a time. Without ``notes`` nothing is remembered, and nothing done again."""

    def __init__(self, notes: UploadNotes | None = None) -> None:
        self._notes = notes
        self._turns = _turns(notes) if notes is not None else []
        self._taken = 0
        """How many turns of those noted were taken in this life."""

    def file_id(self) -> bytes | None:
        """The archive's; None if any will do."""
        if self._notes is None:
            return None
        with contextlib.suppress(TypeError, ValueError):
            known = bytes.fromhex(self._notes.facts.get("file_id", ""))
            if len(known) == 16:
                return known
        fresh = secrets.token_bytes(16)
        self._notes.set(file_id=fresh.hex())
        return fresh

    @property
    def parent(self) -> str | None:
        """Where the archive lies that it was coded against, nothing if it was coded alone; None if that was not
        settled."""
        known = self._notes.facts.get("parent") if self._notes is not None else None
        return known if isinstance(known, str) else None

    def coded_against(self, place: str) -> None:
        if self._notes is not None and place != self.parent:
            self._notes.set(parent=place)

    def called(self, name: str) -> None:
        """The archive is going to have this name."""
        if self._notes is not None and name != self._notes.facts.get("archive"):
            self._notes.set(archive=name)

    @property
    def next(self) -> Turn | None:
        """What was done next, before it was interrupted; None if that is not known, or not to be followed any more."""
        return self._turns[self._taken] if self._taken < len(self._turns) else None

    def take(self, turn: Turn) -> None:
        """This is done now, whether it was the next or not."""
        if self._notes is None:
            return
        if self.next != turn:
            self.leave()
            self._turns.append(turn)
            self._notes.add([_text(turn.path), turn.end])
        self._taken += 1

    def leave(self) -> None:
        """The rest of it cannot be followed."""
        if self._notes is not None and self.next is not None:
            del self._turns[self._taken :]
            self._notes.cut(0)
            for turn in self._turns:
                self._notes.add([_text(turn.path), turn.end])

    def renamed(self, old: bytes, new: bytes) -> None:
        """A file has another name, as if it had always had it."""
        if self._notes is not None:
            self.leave()
            self._turns = [Turn(new, turn.end) if turn.path == old else turn for turn in self._turns]
            self._notes.add([_text(old), _text(new)])


def _turns(notes: UploadNotes) -> list[Turn]:
    turns: list[Turn] = []
    for step in notes.steps:
        match step:
            case [str(path), int(end)]:
                turns.append(Turn(_path(path), end))
            case [str(old), str(new)]:
                turns = [Turn(_path(new), turn.end) if turn.path == _path(old) else turn for turn in turns]
            case _:
                break
    return turns


def _text(path: bytes) -> str:
    return path.decode("latin-1")


def _path(text: str) -> bytes:
    return text.encode("latin-1", "replace")
