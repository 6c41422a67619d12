"""How Orbax saves: into a folder with a temporary name, which is renamed; where that is not atomic, with a marker."""

from __future__ import annotations

from arzstream.formats.evidence import Finding, Folder, join, place_of, text

__all__ = ["orbax"]

COMMIT, METADATA = b"commit_success.txt", b"_CHECKPOINT_METADATA"


def orbax(folder: Folder) -> Finding | None:
    """Orbax: ``commit_success.txt`` comes last, after ``_CHECKPOINT_METADATA`` was given the time of the commit.

    Both are in place before the folder is renamed; on stores that cannot rename they alone tell. There each item, a
    folder in the folder, has a commit of its own as well, which speaks for that item alone.
    """
    if COMMIT in folder.files:
        return folder.speaks(COMMIT, [path for path in folder.files if path != COMMIT], "strong")
    if METADATA not in folder.files:
        return _items(folder)
    if folder.is_large(METADATA) and folder.is_whole(METADATA):
        return Finding("weak")  # whether it tells of the commit is not known
    facts = folder.json(METADATA)
    if not isinstance(facts, dict):
        return Finding("strong", f"{text(METADATA)} to be valid", gives_up=True)
    if not facts.get("commit_timestamp_nsecs"):
        return Finding("strong", "the commit of " + text(METADATA), gives_up=True)
    return Finding("strong")


def _items(folder: Folder) -> Finding | None:
    """Without a commit of the folder, each item needs its own, and only quiet tells that neither another item nor the
    folder's commit follows."""
    done = {place_of(path) for path in folder.matching(r"commit_success\.txt")}
    if not done:
        return None
    depth = min(place.count(b"/") for place in done) + 1
    items: dict[bytes, list[bytes]] = {}
    for path in sorted(folder.files):
        parts = path.split(b"/")
        if len(parts) > depth:
            items.setdefault(b"/".join(parts[:depth]), []).append(path)
    for item, files in items.items():
        commit = join(item, COMMIT)
        if commit not in folder.files:
            return Finding("weak", text(commit), gives_up=True, doubt=True)
        finding = folder.speaks(commit, [path for path in files if path != commit], "weak")
        if finding.waiting_for:
            return finding
    return Finding("weak")
