"""The ``.distcp`` files of torch.distributed.checkpoint: one ``torch.save`` zip after the other, an item each.

The names, and which block of which tensor an item is, are in ``.metadata`` beside the files, which is written last. As
soon as it is there, each item is read as a zip file of its own. Before that, an item's name is that of the item which
stands at its place in the checkpoint before, if that is known and the tensor has the same shape; nothing is said about
other items until the names are there. In a file without ``.metadata`` items are numbered.

The pickles of all items may cost together what those of any other file of this length may, so that a file of many
hostile ones takes no longer. What a tensor alone costs is not charged: files of very many of them are understood.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from arzstream.codec.parts import part_name
from arzstream.formats.base import Layout, Malformed, Notes, ReadAt, Storage, View, opaque, problem_of, shown
from arzstream.formats.beside import NOTHING, Beside, folder_of, inside
from arzstream.formats.dcp_metadata import Item, read_metadata
from arzstream.formats.pickle_walk import work_allowed
from arzstream.formats.torch_pickle import WORK_OF_STEP
from arzstream.formats.torch_zip import Front, Work, whole_layout
from arzstream.formats.zip_records import LOCAL, directory_end
from arzstream.limits import DEFAULT_LIMITS, Limits

__all__ = ["FORMAT", "METADATA", "DistcpParser"]

FORMAT = "torch-distcp"
METADATA = b".metadata"
_ROOT = "tensor"
"""What a tensor is called that is all there is in a zip file."""
_LOOKED_AT = 512
"""Bytes at both ends of an item that tell whether it is the one that was read before."""
OWN_WORK = 256
"""What following the pickle of an item may cost whatever the others cost; that of a tensor costs about 110."""


class DistcpParser:
    """Incremental: an item that was read is not read again while it begins and ends as it did."""

    def __init__(self, path: bytes, beside: Beside = NOTHING, limits: Limits = DEFAULT_LIMITS) -> None:
        self._path, self._beside, self._limits = path, beside, limits
        self._opened = _Opened(limits)
        self._version: object = None
        self._known: tuple[Item, ...] | None = None
        self._why = ""
        self._walk = _Walk(limits)

    def update(self, read: ReadAt, frontier: int, final: bool) -> Layout:
        items = self._items()
        if items is not None:
            return self._named(read, frontier, final, items)
        if not final and (self._why or self._beside is NOTHING):
            return opaque(frontier, final=False)  # what is missing will not come
        return self._numbered(read, frontier) if final else self._guessed(read, frontier)

    def _numbered(self, read: ReadAt, size: int) -> Layout:
        """A whole file of which nobody says what is in it."""
        found = list(_Walk(self._limits).items(read, size))
        if not found:
            return opaque(size, f"not a file of torch.distributed.checkpoint{self._why}")
        notes, names = Notes(), set[str]()
        notes.add(self._why.lstrip(": ") or "its .metadata is not beside it, so its tensors have no names")
        storages: list[Storage] = []
        self._opened.begin(size, definite=True)
        for number, (start, end) in enumerate(found):
            storages += self._item(read, Item(start, end - start, f"item.{number}"), names, notes)
        return _checked(Layout(FORMAT, tuple(storages), size, True, str(notes)), size)

    def _guessed(self, read: ReadAt, frontier: int) -> Layout:
        """What is there of a growing file, under the names that the checkpoint before had at these places."""
        foretold, storages, names = self._foretold(), list[Storage](), set[str]()
        self._opened.begin(frontier, definite=False)
        for told, (start, end) in zip(foretold, self._walk.items(read, frontier) if foretold else (), strict=False):
            doubts = Notes()
            found = list(self._item(read, told._replace(offset=start, length=end - start), names, doubts))
            storages += found if not str(doubts) else []
        return _checked(Layout(FORMAT, tuple(storages)), frontier)

    def _items(self) -> tuple[Item, ...] | None:
        """What ``.metadata`` says of this file; None if it is not there, or says nothing."""
        place = inside(folder_of(self._path), METADATA)
        version = self._beside.version(place)
        if version != self._version:
            self._version, self._known, self._why = version, None, ""
            data = self._beside.read(place, 0, self._limits.metadata_bytes + 1) if version is not None else b""
            if len(data) > self._limits.metadata_bytes:
                self._why = ": its .metadata is too long"
            elif version is not None:
                try:
                    self._known = self._of(data)
                    self._why = "" if self._known else ": its .metadata does not know it"
                except Malformed as error:
                    self._why = f": its .metadata is of no use: {error}"
        return self._known

    def _foretold(self) -> tuple[Item, ...]:
        data = self._beside.foretold(inside(folder_of(self._path), METADATA))
        try:
            known = self._of(data) if data is not None and len(data) <= self._limits.metadata_bytes else None
        except Malformed:
            return ()
        return known or ()

    def _of(self, metadata: bytes) -> tuple[Item, ...] | None:
        name = self._path.rpartition(b"/")[2].decode("utf-8", "surrogateescape")
        return read_metadata(metadata).get(name)

    def _named(self, read: ReadAt, frontier: int, final: bool, items: Sequence[Item]) -> Layout:
        notes, names = Notes(), set[str]()
        storages: list[Storage] = []
        whole = items[-1].end <= frontier
        self._opened.begin(items[-1].end if whole else frontier, definite=final or whole)
        for item in items:
            if item.end > frontier:
                notes.add("it is shorter than its .metadata says")
                break
            storages += self._item(read, item, names, notes)
        size = frontier if final else items[-1].end
        return _checked(Layout(FORMAT, tuple(storages), size, final or whole, str(notes)), frontier)

    def _item(self, read: ReadAt, item: Item, names: set[str], notes: Notes) -> Iterator[Storage]:
        """The storages of one item, with its names."""
        if not item.plain:
            notes.add("items that were compressed or changed on the way are kept as bytes")
            return
        layout = self._opened.layout(read, item)
        if layout.note:
            notes.add(layout.note if layout.storages else f"{shown(item.name)}: {layout.note}")
        for storage in layout.storages:
            views = tuple(view for old in storage.views for view in _renamed(old, item, names, notes))
            yield Storage(storage.dtype, item.offset + storage.offset, storage.nbytes, views)


class _Zip(NamedTuple):
    """An item as a zip file of its own, and what its pickles cost of what they were allowed."""

    layout: Layout
    work: int
    allowed: int

    def holds(self, allowed: int) -> bool:
        """Whether it is the same if they are ``allowed`` to cost that."""
        return allowed == self.allowed or self.work + WORK_OF_STEP <= min(allowed, self.allowed)


class _Opened:
    """Items as zip files of their own, as far as they were read."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._known: dict[tuple[int, int, bytes], _Zip] = {}
        self._left = 0
        self._definite = False

    def begin(self, size: int, *, definite: bool) -> None:
        """Go through the items of a file of ``size`` bytes in order. What is said is ``definite`` if it is the same
        whatever was read before."""
        self._left, self._definite = work_allowed(size), definite

    def layout(self, read: ReadAt, item: Item) -> Layout:
        """The item as a zip file; an object that is none has no storages, and that is no mistake."""
        start = read(item.offset, min(_LOOKED_AT, item.length))
        tail = read(item.end - min(_LOOKED_AT, item.length), min(_LOOKED_AT, item.length))
        key = item.offset, item.length, hashlib.blake2b(start + tail, digest_size=16).digest()
        allowed, known = self._left + OWN_WORK, self._known.get(key)
        if known is None or (self._definite and not known.holds(allowed)):
            work, layout = Work(allowed), opaque(item.length)
            if start.startswith(LOCAL) or item.shape is not None:
                layout = whole_layout(_window(read, item.offset, item.length), item.length, self._limits, work)
            known = self._known[key] = _Zip(layout, allowed - work.left, allowed)
        self._left = max(0, self._left - _charged(known.work))
        return known.layout


def _charged(work: int) -> int:
    return max(0, work - OWN_WORK)


def _renamed(view: View, item: Item, names: set[str], notes: Notes) -> Iterator[View]:
    """``view`` of an item, called as the item is."""
    part = item.part
    if item.shape is not None and (view.name != _ROOT or view.shape != item.shape):
        notes.add(f"{shown(item.name)} does not have the shape that its .metadata says")
        part = None
    name = item.name if view.name == _ROOT else f"{item.name}.{view.name}"
    name = name if part is None else part_name(name, part.offset, view.shape)
    if name in names:
        notes.add(f"{shown(name)} is there twice")
    elif name:
        names.add(name)
        yield View(name, view.shape, view.start, view.strides, part)


def _checked(layout: Layout, size: int) -> Layout:
    problem = problem_of(layout, None if layout.size is None else size)
    return (
        opaque(size, f"not a file of torch.distributed.checkpoint: {problem}", final=layout.complete)
        if problem
        else layout
    )


def _window(read: ReadAt, offset: int, length: int) -> ReadAt:
    """``length`` bytes from ``offset`` on, as a file of their own."""
    return lambda at, count: read(offset + at, max(0, min(count, length - at)))


class _Found(NamedTuple):
    """An item from ``start`` to ``end``: what it begins with, and what following its pickle cost."""

    start: int
    end: int
    head: bytes
    work: int


class _Walk:
    """Finds where items begin and end in a file of which nothing else is known, one zip file after the other."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._found: list[_Found] = []
        self._charged = 0
        self._open: Front | None = None

    def items(self, read: ReadAt, frontier: int) -> Iterator[tuple[int, int]]:
        """(start, end) of each whole item before ``frontier``."""
        while self._found and (
            self._found[-1].end > frontier or _start(read, self._found[-1].start) != self._found[-1].head
        ):
            self._charged -= _charged(self._found.pop().work)  # it was written again
            self._open = None
        while len(self._found) < self._limits.units:
            found = self._next(read, self._found[-1].end if self._found else 0, frontier)
            if found is None:
                break
            self._found.append(found)
            self._charged += _charged(found.work)
            self._open = None
        return iter([(found.start, found.end) for found in self._found])

    def _next(self, read: ReadAt, start: int, frontier: int) -> _Found | None:
        """The item that begins at ``start``, if it is whole."""
        head = _start(read, start)
        if start + _LOOKED_AT > frontier or not head.startswith(LOCAL):
            return None
        window = _window(read, start, frontier - start)
        if self._open is None or self._open.is_stale(window, frontier - start):
            self._open = Front(self._limits, max(0, work_allowed(frontier) - self._charged) + OWN_WORK)
        self._open.advance(window, frontier - start)
        length = directory_end(window, self._open.at, frontier - start)
        return None if length is None else _Found(start, start + length, head, self._open.described.work)


def _start(read: ReadAt, at: int) -> bytes:
    return read(at, _LOOKED_AT)
