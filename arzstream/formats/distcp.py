"""The ``.distcp`` files of torch.distributed.checkpoint: one ``torch.save`` zip after the other, an item each.

The names, and which block of which tensor an item is, are in ``.metadata`` beside the files, which is written last. As
soon as it is there, each item is read as a zip file of its own. Before that, an item's name is that of the item which
stands at its place in the checkpoint before, if that is known and the tensor has the same shape; nothing is said about
other items until the names are there. In a file without ``.metadata`` items are numbered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from arzstream.codec.parts import part_name
from arzstream.formats.base import Layout, Malformed, Notes, ReadAt, Storage, View, opaque, problem_of, shown
from arzstream.formats.beside import NOTHING, Beside, folder_of, inside
from arzstream.formats.dcp_metadata import Item, read_metadata
from arzstream.formats.torch_zip import TorchZipParser
from arzstream.formats.zip_records import LOCAL, directory_end
from arzstream.limits import DEFAULT_LIMITS, Limits

__all__ = ["FORMAT", "METADATA", "DistcpParser"]

FORMAT = "torch-distcp"
METADATA = b".metadata"
_ROOT = "tensor"
"""What a tensor is called that is all there is in a zip file."""
_LOOKED_AT = 512
"""Bytes at both ends of an item that tell whether it is the one that was read before."""


class DistcpParser:
    """Incremental: an item that was read is not read again while it begins and ends as it did."""

    def __init__(self, path: bytes, beside: Beside = NOTHING, limits: Limits = DEFAULT_LIMITS) -> None:
        self._path, self._beside, self._limits = path, beside, limits
        self._read: dict[tuple[int, int, bytes], Layout] = {}
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
        found = list(self._walk.items(read, size))
        if not found:
            return opaque(size, f"not a file of torch.distributed.checkpoint{self._why}")
        notes, names = Notes(), set[str]()
        notes.add(self._why.lstrip(": ") or "its .metadata is not beside it, so its tensors have no names")
        storages: list[Storage] = []
        for number, (start, end) in enumerate(found):
            storages += self._item(read, Item(start, end - start, f"item.{number}"), names, notes)
        return _checked(Layout(FORMAT, tuple(storages), size, True, str(notes)), size)

    def _guessed(self, read: ReadAt, frontier: int) -> Layout:
        """What is there of a growing file, under the names that the checkpoint before had at these places."""
        foretold, storages, names = self._foretold(), list[Storage](), set[str]()
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
        layout = self._zip(read, item)
        if layout.note:
            notes.add(layout.note if layout.storages else f"{shown(item.name)}: {layout.note}")
        for storage in layout.storages:
            views = tuple(view for old in storage.views for view in _renamed(old, item, names, notes))
            yield Storage(storage.dtype, item.offset + storage.offset, storage.nbytes, views)

    def _zip(self, read: ReadAt, item: Item) -> Layout:
        """The item as a zip file of its own; an object that is none has no storages, and that is no mistake."""
        start = read(item.offset, min(_LOOKED_AT, item.length))
        tail = read(item.end - min(_LOOKED_AT, item.length), min(_LOOKED_AT, item.length))
        key = item.offset, item.length, hashlib.blake2b(start + tail, digest_size=16).digest()
        known = self._read.get(key)
        if known is None:
            known = opaque(item.length)
            if start.startswith(LOCAL) or item.shape is not None:
                known = TorchZipParser(self._limits).update(_window(read, item.offset, item.length), item.length, True)
            self._read[key] = known
        return known


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


class _Walk:
    """Finds where items begin and end in a file of which nothing else is known, one zip file after the other."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._found: list[tuple[int, int, bytes]] = []
        self._open: TorchZipParser | None = None

    def items(self, read: ReadAt, frontier: int) -> Iterator[tuple[int, int]]:
        """(start, end) of each whole item before ``frontier``."""
        while self._found and (self._found[-1][1] > frontier or _start(read, self._found[-1][0]) != self._found[-1][2]):
            self._found.pop()  # it was written again
            self._open = None
        while len(self._found) < self._limits.units:
            start = self._found[-1][1] if self._found else 0
            end = self._end(read, start, frontier)
            if end is None:
                break
            self._found.append((start, end, _start(read, start)))
            self._open = None
        return iter([(start, end) for start, end, _ in self._found])

    def _end(self, read: ReadAt, start: int, frontier: int) -> int | None:
        if start + _LOOKED_AT > frontier or not _start(read, start).startswith(LOCAL):
            return None
        if self._open is None:
            self._open = TorchZipParser(self._limits)
        window = _window(read, start, frontier - start)
        self._open.update(window, frontier - start, False)
        length = directory_end(window, self._open.walked, frontier - start)
        return None if length is None else start + length


def _start(read: ReadAt, at: int) -> bytes:
    return read(at, _LOOKED_AT)
