"""Which links an archive may hold so that all of them lead to something below the folder that they are restored to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from arzstream.container.records import Kind

__all__ = ["leads_outside", "links_outside"]


class Entry(Protocol):
    """What an archive says, or is to say, of a file, link or folder."""

    @property
    def path(self) -> bytes: ...
    @property
    def kind(self) -> int: ...
    @property
    def target(self) -> bytes: ...


E = TypeVar("E", bound=Entry)


def links_outside(entries: Iterable[E]) -> Iterator[E]:
    """The links among ``entries``, which are restored together, that lead outside or cannot be told not to."""
    listed = list(entries)
    folders = {entry.path for entry in listed if entry.kind == Kind.DIRECTORY}
    for entry in listed:
        if entry.kind == Kind.LINK and leads_outside(entry.path, entry.target, folders.__contains__):
            yield entry


def leads_outside(link: bytes, target: bytes, is_folder: Callable[[bytes], bool]) -> bool:
    """May a link at the path ``link`` with this ``target`` lead out of the folder that it is restored to?

    ``..`` leads to where the text says only from what is a folder and no link: where the link lies, or where
    ``is_folder`` says. If all links keep to that, none leads outside, however they lead through one another, and
    through those that were restored to the same folder before.
    """
    if target.startswith(b"/"):
        return True
    place, known = link.rpartition(b"/")[0], True
    for part in target.split(b"/"):
        if part == b"..":
            if not place or not (known or is_folder(place)):
                return True
            place, known = place.rpartition(b"/")[0], True
        elif part not in (b"", b"."):
            place, known = place + b"/" + part if place else part, False
    return False
