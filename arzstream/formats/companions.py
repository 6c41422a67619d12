"""Files whose structure another file of the same checkpoint tells."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from arzstream.formats.base import Layout, Malformed, Notes, Storage, View, opaque, problem_of, shown

__all__ = ["Companions", "place_of"]


class Companions:
    """What the files of one checkpoint say about each other, as far as they have been read.

    The words of a file that was read again replace those that it had said before.
    """

    def __init__(self) -> None:
        self._said: dict[str, dict[str, tuple[str, list[Storage]]]] = {}
        """By the file that speaks, by the file it speaks of: a format, and storages in any order."""

    def tell(self, speaker: str, format_name: str, storages: dict[str, list[Storage]]) -> None:
        """``speaker`` (a path in the checkpoint) says where tensors lie in other files, by their paths."""
        self._said[speaker] = {path: (format_name, found) for path, found in storages.items()}

    def layout(self, path: str, size: int) -> Layout | None:
        """The layout of the complete file at ``path``, or None if nobody speaks of it."""
        told = [words[path] for _, words in sorted(self._said.items()) if path in words]
        if not told:
            return None
        notes = Notes()
        storages = _together([storage for _, found in told for storage in found], size, notes)
        layout = Layout(told[0][0], tuple(storages), size, True, str(notes))
        problem = problem_of(layout, size)
        return opaque(size, f"what is said of it does not fit: {problem}") if problem else layout


def place_of(speaker: str, location: str) -> str:
    """The path in the checkpoint of what the file at ``speaker`` calls ``location``. Raises :class:`Malformed` for one
    that leads out of it."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(speaker), location))
    if not location or location.startswith("/") or path.startswith(("../", "/")) or path in (".", ".."):
        raise Malformed(f"the location {shown(location)} leads out of its folder")
    return path


def _together(storages: Sequence[Storage], size: int, notes: Notes) -> list[Storage]:
    """By place, with the views of those that are the same bytes joined; what overlaps otherwise is left out."""
    found: list[Storage] = []
    names: set[str] = set()
    for storage in sorted(storages, key=lambda s: (s.offset, s.nbytes, s.dtype)):
        if storage.end > size:
            notes.add(f"{_named(storage)} lies beyond its end")
            continue
        views = tuple(view for view in storage.views if _first(view, names))
        if found and (storage.offset, storage.nbytes, storage.dtype) == (
            found[-1].offset,
            found[-1].nbytes,
            found[-1].dtype,
        ):
            found[-1] = Storage(storage.dtype, storage.offset, storage.nbytes, found[-1].views + views)
        elif found and storage.offset < found[-1].end:
            notes.add(f"{_named(storage)} overlaps another tensor and is not named")
        else:
            found.append(Storage(storage.dtype, storage.offset, storage.nbytes, views))
    return found


def _first(view: View, names: set[str]) -> bool:
    new = view.name not in names
    names.add(view.name)
    return new


def _named(storage: Storage) -> str:
    return shown(storage.views[0].name) if storage.views else "a tensor"
