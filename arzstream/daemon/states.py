"""What can be said of a checkpoint, what may follow what, and what unblocks it.

::

    seen ──► landing ──► settling ──► coding ──► verifying ──► published
               ▲            │            │            │            │
               └────────────┴────────────┴────────────┴────────────┘   the source changed
    any ──► blocked (a reason, a time to try again) ──► seen
    any ──► gone (the source vanished before it could be archived) ──► seen, if it comes back
    published ──► retired (its archive was removed, as the rules of retention say) ──► seen, if the source changes

Published is left only when the source changes (the new content gets an archive of its own), or by retention.
"""

from __future__ import annotations

import dataclasses
import enum
import errno

from arzstream.errors import ArzError, CorruptError, SourceChangedError, StorageError

__all__ = ["DONE", "NEXT", "Problem", "Reason", "State", "backoff", "problem_of"]


class State(str, enum.Enum):
    SEEN = "seen"
    """Noticed; not looked into yet."""
    LANDING = "landing"
    """Being written; what is there already is coded."""
    SETTLING = "settling"
    """Looks complete; waiting to see that nothing more comes."""
    CODING = "coding"
    """Complete: the rest is coded and everything is compared with the source once more."""
    VERIFYING = "verifying"
    """The archive is read back from the destination and proved."""
    PUBLISHED = "published"
    RETIRED = "retired"
    """Was published; the archive was removed on purpose, and is not made again."""
    BLOCKED = "blocked"
    GONE = "gone"


DONE = frozenset({State.PUBLISHED, State.RETIRED})
"""Nothing is left to do for a checkpoint, as long as it does not change."""

_OPEN = {State.SEEN, State.LANDING, State.SETTLING, State.CODING, State.VERIFYING}

NEXT: dict[State, frozenset[State]] = {
    # Published may follow seen at once: the archive of an earlier life of the daemon is recognised.
    State.SEEN: frozenset({State.LANDING, State.SETTLING, State.CODING, State.PUBLISHED, State.BLOCKED, State.GONE}),
    State.LANDING: frozenset({State.SEEN, State.SETTLING, State.CODING, State.BLOCKED, State.GONE}),
    State.SETTLING: frozenset({State.SEEN, State.LANDING, State.CODING, State.BLOCKED, State.GONE}),
    State.CODING: frozenset({State.SEEN, State.LANDING, State.VERIFYING, State.BLOCKED, State.GONE}),
    State.VERIFYING: frozenset({State.SEEN, State.LANDING, State.PUBLISHED, State.BLOCKED, State.GONE}),
    State.PUBLISHED: frozenset({State.SEEN, State.RETIRED}),
    State.RETIRED: frozenset({State.SEEN}),
    State.BLOCKED: frozenset({State.SEEN, State.GONE}),
    State.GONE: frozenset({State.SEEN}),
}
"""Which state may follow which. Staying in a state is always allowed."""


class Reason(str, enum.Enum):
    """Why a checkpoint is blocked."""

    PERMISSION = "permission"
    DISK_FULL = "disk full"
    UNREADABLE = "unreadable"
    VANISHED = "vanished"
    READ_ONLY = "read-only"
    TOO_MANY_FILES = "too many open files"
    MISMATCH = "mismatch"
    DESTINATION = "destination"


UNBLOCKS: dict[Reason, str] = {
    Reason.PERMISSION: "give this user permission",
    Reason.DISK_FULL: "free space in the destination",
    Reason.UNREADABLE: "make the source readable again (disk or network)",
    Reason.VANISHED: "bring the folder back",
    Reason.READ_ONLY: "make the destination writable",
    Reason.TOO_MANY_FILES: "raise the limit of open files (ulimit -n)",
    Reason.MISMATCH: "nothing to do; it is coded again. If it stays, check memory and disk",
    Reason.DESTINATION: "make the destination work again",
}
"""What a person can do, for the status."""

_BY_ERRNO = {
    errno.ENOSPC: Reason.DISK_FULL,
    errno.EDQUOT: Reason.DISK_FULL,
    errno.EFBIG: Reason.DISK_FULL,
    errno.EACCES: Reason.PERMISSION,
    errno.EPERM: Reason.PERMISSION,
    errno.EROFS: Reason.READ_ONLY,
    errno.EMFILE: Reason.TOO_MANY_FILES,
    errno.ENFILE: Reason.TOO_MANY_FILES,
    errno.ENOENT: Reason.VANISHED,
    errno.ENOTDIR: Reason.VANISHED,
    errno.ESTALE: Reason.VANISHED,
}


@dataclasses.dataclass(frozen=True)
class Problem:
    """Why work on a checkpoint stopped: the reason, and one line for a person."""

    reason: Reason
    text: str

    @property
    def advice(self) -> str:
        return UNBLOCKS[self.reason]


def problem_of(error: ArzError, *, in_source: bool) -> Problem:
    """Sort an error; ``in_source`` says whether it happened on the source's side or the destination's."""
    code = error.errno if isinstance(error, StorageError) else None
    reason = _BY_ERRNO.get(code or 0)
    if reason is None:
        if isinstance(error, (CorruptError, SourceChangedError)):
            reason = Reason.MISMATCH
        else:
            reason = Reason.UNREADABLE if in_source else Reason.DESTINATION
    elif reason is Reason.VANISHED and not in_source:
        reason = Reason.DESTINATION
    return Problem(reason, " ".join(str(error).split()))


def backoff(attempts: int, *, first: float = 1.0, most: float = 300.0) -> float:
    """Seconds to wait before the next attempt, after ``attempts`` failed ones: 1, 2, 4 … 300."""
    return float(min(most, first * 2.0 ** min(max(0, attempts - 1), 30)))
