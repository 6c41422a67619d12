"""What holds whoever writes: what the checkpoints before had, what is written again, and files that end themselves."""

from __future__ import annotations

from arzstream.formats.evidence import Finding, Folder, holds_state, text
from arzstream.formats.grouping import settled_name

__all__ = ["any_folder", "as_before", "deleted", "single_file", "written_again"]


def deleted(folder: Folder) -> Finding | None:
    """What is left of a checkpoint that is archived already, and some of whose files are gone, is no new state."""
    written = folder.past.written
    if not written or not folder.files or len(folder.files) >= len(written):
        return None
    if all(written.get(path) == (facts.size, facts.changed) for path, facts in folder.files.items()):
        return Finding("good", "nothing: all that is left of it is archived")
    return None


def written_again(folder: Folder) -> Finding | None:
    """Of a checkpoint that was archived and is written again, every file with state is: until then it is a mixture."""
    written = folder.past.written
    state = [path for path in folder.files if path in written and holds_state(path)]
    old = [path for path in state if written[path] == (folder.files[path].size, folder.files[path].changed)]
    if not old or len(old) == len(state):
        return None
    return Finding("weak", f"{text(min(old))} to be written again", gives_up=True, doubt=True)


def as_before(folder: Folder) -> Finding | None:
    """What the checkpoints before it in its run had will come."""
    have = {settled_name(path) for path in folder.files}
    missing = folder.past.names - have
    if not missing:
        return None
    return Finding("weak", f"{text(min(missing))}, as before", gives_up=True, doubt=True)


def single_file(folder: Folder) -> Finding | None:
    """One file that itself says where it ends: safetensors by its header, torch.save by the directory at its end.

    Alone in a folder it may be the first of several, unless earlier archives of the run tell that there is no other.
    """
    if len(folder.files) != 1:
        return None
    (facts,) = folder.files.values()
    known = facts.layout is not None and facts.layout.format != "opaque"
    alone = not folder.name or folder.past.names or folder.past.written
    return Finding("good" if known and alone else "weak")


def any_folder(folder: Folder) -> Finding | None:
    """No marker: a training script's own, save_pretrained without shards (a tokenizer may follow)."""
    return Finding("weak")
