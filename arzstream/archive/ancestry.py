"""Finding the archives that others were coded against, by content, when one of their tensors is needed.

A parent is looked for under the name it had: beside the archive that names it, then where the user said. If it is not
called that any more, every archive in those folders is asked what it holds. Whatever its name, it counts only when
its content digest, computed anew from its own index, is the one that the child names.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from arzstream.archive.again import directory_of
from arzstream.archive.decoding import Decoder
from arzstream.archive.references import ParentTensors, Tensors, TileCache
from arzstream.archive.volumes import Joined, join_volumes, volume_place
from arzstream.container.directory import Directory
from arzstream.container.records import Parent, Piece
from arzstream.container.state import content_digest
from arzstream.errors import ArzError, CorruptError, LimitError, MissingParentError
from arzstream.limits import DEFAULT_LIMITS, Limits
from arzstream.store.address import shown
from arzstream.store.folders import archives_in, beside, folder_of, is_archive_name
from arzstream.store.ranges import RangeReader, is_url, open_reader

__all__ = ["Ancestor", "Ancestry", "SearchPath"]

SearchPath = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None
"""Folders, URLs of folders, or archives, in which parents are looked for."""
SHOWN_DIGITS = 12


class Ancestor:
    """An open parent. Its decoder never uses threads of its own: whoever decodes a child decodes the parent."""

    def __init__(self, place: str, reader: RangeReader, joined: Joined, ancestry: Ancestry, limits: Limits) -> None:
        self.place, self.reader, self.directory, self._joined = place, reader, joined.directory, joined
        self.content = joined.directory.content or b""
        self.tensors = Tensors(self.directory)
        self.decoder = Decoder(
            reader, self.directory, limits=limits, jobs=1, home=joined.home,
            parents=ancestry.tensors_of(self.directory, place), tiles=ancestry.tiles,
        )  # fmt: skip

    @property
    def name(self) -> str:
        return self.reader.name

    @property
    def places(self) -> list[str]:
        """Its path or URL, and those of its volumes."""
        return [self.place, *(volume_place(self.place, volume.name) for volume in self.directory.volumes)]

    def close(self) -> None:
        self.decoder.close()
        self._joined.close()
        self.reader.close()


class Ancestry:
    """The parents of an archive, their parents, and so on: each opened once, when first needed. Thread-safe."""

    def __init__(
        self,
        parents: SearchPath = None,
        storage_options: dict[str, Any] | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        listed = [parents] if isinstance(parents, (str, os.PathLike)) else list(parents or ())
        self._path = [os.fspath(place) for place in listed]
        self._options, self._limits = storage_options, limits
        self._open: dict[bytes, Ancestor] = {}
        self._contents: dict[str, bytes] = {}
        """What the archive at a place holds, where it was looked at."""
        self._lock = threading.RLock()
        self.tiles = TileCache(limits.parent_depth)

    def tensors_of(self, directory: Directory, place: str) -> ParentTensors | None:
        """Where units of an archive find their parents' tensors; ``place`` is its path or URL."""
        if not directory.parents:
            return None
        return ParentTensors(lambda number: self.find(directory.parents[number], place), self.tiles)

    def find(self, parent: Parent, child: str) -> Ancestor:
        """Open ``parent`` of the archive at ``child``, if it is not. Raises MissingParentError."""
        with self._lock:
            found = self._open.get(parent.digest)
            if found is None:
                found = self._search(parent, child)
                self._open[parent.digest] = found
            return found

    def open(self, place: str) -> Ancestor:
        """Open the archive at ``place`` itself. Raises CorruptError if it is not sealed, and what opening raises."""
        with self._lock:
            found = self._opened(place)
            itself = next((p for p in found.directory.parents if p.digest == found.content), None)
            if itself is not None:  # it holds what its parent holds, so that one will do
                found.close()
                return self.find(itself, place)
            known = self._open.setdefault(found.content, found)
            if known is not found:
                found.close()
            return known

    def depth(self, directory: Directory, place: str) -> int:
        """How many archives are needed one after the other to read this one: 0 if it has no parents."""
        return self._depth(directory, place, self._limits.parent_depth)

    def _depth(self, directory: Directory, place: str, left: int) -> int:
        if not directory.parents:
            return 0
        if not left:
            raise LimitError(f"a chain of more than {self._limits.parent_depth} parents")
        found = [self.find(parent, place) for parent in directory.parents]
        return 1 + max(self._depth(a.directory, a.place, left - 1) for a in found)

    def opened(self) -> list[Ancestor]:
        """Those that are open by now."""
        with self._lock:
            return list(self._open.values())

    def close(self) -> None:
        with self._lock:
            opened, self._open = list(self._open.values()), {}
        for ancestor in opened:
            ancestor.close()
        self.tiles.clear()

    # -- searching

    def _search(self, parent: Parent, child: str) -> Ancestor:
        another: list[str] = []
        circular = ""
        for place in self._places(parent, child):
            found = self._try(place, parent.digest)
            if found is not None and not self._needs_itself(found):
                return found
            if found is not None:
                found.close()
                circular = place
            elif self._contents.get(place, parent.digest) != parent.digest:
                another.append(place)
        raise MissingParentError(self._missing(parent, child, another, circular))

    def _needs_itself(self, found: Ancestor) -> bool:
        """Does an archive need one of its own content, as far as those that are open tell? It holds what another one
        behind its parents holds then, and cannot stand in for that. The last archive of a circle to be opened shows it,
        because all others are open by then."""
        ahead, seen = [found.directory], set[bytes]()
        while ahead:
            wanted = {parent.digest for parent in ahead.pop().parents} - seen
            if found.content in wanted:
                return True
            seen |= wanted
            ahead += [self._open[digest].directory for digest in wanted if digest in self._open]
        return False

    def _places(self, parent: Parent, child: str) -> Iterator[str]:
        """Where it may be, likeliest first. A hint is a name: what it leads to counts by its content only."""
        home, name = folder_of(child), posixpath.basename(parent.hint)
        archives = [place for place in self._path if is_archive_name(place)]
        folders = [home, *(place for place in self._path if not is_archive_name(place))]
        if is_archive_name(name) and name.isprintable():
            yield beside(home, name)
            if not is_url(home) and name != parent.hint and not parent.hint.startswith("/"):
                yield os.path.normpath(beside(home, parent.hint))
            yield from (beside(folder, name) for folder in folders[1:])
        yield from archives
        for folder in folders:
            yield from archives_in(folder, self._options)

    def _try(self, place: str, digest: bytes) -> Ancestor | None:
        if self._contents.get(place, digest) != digest:
            return None
        try:
            found = self._opened(place)
        except ArzError:  # it is not there, or no archive that is whole
            return None
        self._contents[place] = found.content
        if found.content == digest:
            return found
        found.close()
        return None

    def _opened(self, place: str) -> Ancestor:
        with contextlib.ExitStack() as stack:
            reader = open_reader(place, self._options)
            stack.callback(reader.close)
            directory = directory_of(reader, self._limits)
            if not directory.sealed:
                raise CorruptError(f"{reader.name}: is not sealed, so it cannot be a parent; wait for its end")
            joined = join_volumes(place, reader, directory, self._limits, self._options)
            stack.callback(joined.close)
            if _content(directory) != directory.content:
                raise CorruptError(f"{reader.name}: its index does not hold what it says (content digest)")
            ancestor = Ancestor(place, reader, joined, self, self._limits)
            stack.pop_all()
            return ancestor

    def _missing(self, parent: Parent, child: str, another: list[str], circular: str) -> str:
        digest = parent.digest.hex()[:SHOWN_DIGITS]
        what = f"{posixpath.basename(parent.hint)!r} (content {digest}…)" if parent.hint else f"content {digest}…"
        places = [folder_of(child), *self._path]
        held = [place for place in another if posixpath.basename(place) == posixpath.basename(parent.hint)]
        other = f"; {shown(held[0])} is another one" if held else ""
        other += f"; {shown(circular)} holds the same, but cannot be read without it" if circular else ""
        return (
            f"it was coded against {what}, which is not in {_listed(places)}{other}; "
            "put it beside this archive, or say where it is (--parents)"
        )


def _listed(places: Iterable[str]) -> str:
    return " or ".join(dict.fromkeys(shown(place) or "." for place in places))


def _content(directory: Directory) -> bytes:
    """The content digest that the lists of the index add up to."""
    named = {piece.unit for _, record in directory.files for piece in record.recipe if isinstance(piece, Piece)}
    units = ((entry.unit, entry.digests) for entry in directory.units if entry.number in named)
    return content_digest((record for _, record in directory.files), units, directory.volumes)
