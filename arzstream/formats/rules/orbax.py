"""How Orbax saves: into a folder with a temporary name, which is renamed; where that is not atomic, with a marker."""

from __future__ import annotations

from arzstream.formats.evidence import Finding, Folder, text

__all__ = ["orbax"]

COMMIT, METADATA = b"commit_success.txt", b"_CHECKPOINT_METADATA"


def orbax(folder: Folder) -> Finding | None:
    """Orbax: ``commit_success.txt`` comes last, after ``_CHECKPOINT_METADATA`` was given the time of the commit.

    Both are in place before the folder is renamed; on stores that cannot rename they alone tell.
    """
    if COMMIT in folder.files:
        return folder.speaks(COMMIT, [path for path in folder.files if path != COMMIT], "strong")
    if METADATA not in folder.files:
        nested = folder.matching(r"commit_success\.txt")
        return folder.speaks(nested[0], list(folder.files), "strong") if nested else None
    if folder.is_large(METADATA) and folder.is_whole(METADATA):
        return Finding("weak")  # whether it tells of the commit is not known
    facts = folder.json(METADATA)
    if not isinstance(facts, dict):
        return Finding("strong", f"{text(METADATA)} to be valid", gives_up=True)
    if not facts.get("commit_timestamp_nsecs"):
        return Finding("strong", "the commit of " + text(METADATA), gives_up=True)
    return Finding("strong")
