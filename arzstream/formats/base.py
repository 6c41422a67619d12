"""The terms all parsers share.

A file is literal bytes and *storages*; a storage is elements of one dtype; tensors are *views* of storages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from arzstream.codec.dtypes import DTYPES
from arzstream.codec.parts import Part, whole_name
from arzstream.limits import DEFAULT_LIMITS, Limits

__all__ = [
    "Layout",
    "Malformed",
    "Notes",
    "Parser",
    "Piece",
    "ReadAt",
    "Storage",
    "View",
    "contiguous_strides",
    "element_count",
    "opaque",
    "pieces",
    "problem_of",
    "shown",
    "view_problem",
]

ReadAt = Callable[[int, int], bytes]
"""``read(offset, length)`` gives ``length`` bytes of the file from ``offset`` on, fewer at its end."""

MAX_BYTES = (1 << 63) - 1
"""No length, offset or product of dimensions beyond this is believed (ARZ-1 section 10)."""

MAX_REPEATED = 1 << 32
"""Elements that a view may have beyond those of its storage, by strides of 0 or overlaps."""


@dataclass(frozen=True)
class View:
    """A tensor inside a storage.

    ``start`` is the element of the storage at which it begins; ``strides`` are in elements, one per dimension, none
    negative; ``None`` means row-major without gaps. ``part`` says of which larger tensor it is a block, and ``name``
    then says where the block lies (:func:`arzstream.codec.parts.part_name`).
    """

    name: str
    shape: tuple[int, ...]
    start: int = 0
    strides: tuple[int, ...] | None = None
    part: Part | None = None

    @property
    def whole(self) -> str:
        """The name of the tensor that this is, or is a part of."""
        return self.name if self.part is None else whole_name(self.name, self.part.offset, self.shape)


@dataclass(frozen=True)
class Storage:
    """``nbytes`` bytes of the file from ``offset`` on, which hold elements of ``dtype`` (ARZ-1 section 6.1)."""

    dtype: str
    offset: int
    nbytes: int
    views: tuple[View, ...] = ()

    @property
    def end(self) -> int:
        return self.offset + self.nbytes


@dataclass(frozen=True)
class Layout:
    """What is known about a file.

    ``storages`` ascend by offset and do not overlap; each holds a whole number of elements, and its views lie inside
    it. What lies between them is literal bytes. ``size`` is the total size the structure implies, ``None`` while that
    is unknown. ``complete`` means: by its structure the file is whole and valid. ``note`` says why a file is opaque,
    or what of it could not be named; it is empty for ordinary opaque files. ``metadata`` is the format's own
    (``__metadata__`` of safetensors).
    """

    format: str
    storages: tuple[Storage, ...] = ()
    size: int | None = None
    complete: bool = False
    note: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


class Parser(Protocol):
    """Reads the structure of one file, which may still be growing. Keeps what it learned between calls."""

    def update(self, read: ReadAt, frontier: int, final: bool) -> Layout:
        """What is known when bytes [0, ``frontier``) are believed written.

        Before ``final`` the answer is a belief: storages may lie beyond the frontier, and a later call may replace
        them. With ``final`` the file is exactly ``frontier`` bytes long and the answer is definite; a malformed file
        is then ``Layout("opaque", (), frontier, True, note)``. Raises only what ``read`` raises.
        """
        ...


class Malformed(Exception):
    """A file is not what it seemed to be; the message becomes the layout's note. Never leaves a parser."""


def opaque(size: int | None, note: str = "", *, final: bool = True) -> Layout:
    """The layout of bytes without a known structure."""
    return Layout("opaque", (), size if final else None, final, note)


class Notes:
    """Remarks about one file, joined into a :attr:`Layout.note` of bounded length."""

    SHOWN = 3

    def __init__(self) -> None:
        self._shown: list[str] = []
        self._more = 0

    def add(self, text: str) -> None:
        if text in self._shown:
            return
        if len(self._shown) < self.SHOWN:
            self._shown.append(text)
        else:
            self._more += 1

    def extend(self, other: Notes) -> None:
        for text in other._shown:
            self.add(text)
        self._more += other._more

    @property
    def mark(self) -> tuple[int, int]:
        return len(self._shown), self._more

    def back_to(self, mark: tuple[int, int]) -> None:
        """Without what was added after ``mark`` was taken."""
        del self._shown[mark[0] :]
        self._more = mark[1]

    def __str__(self) -> str:
        return "; ".join((*self._shown, f"and {self._more} more like these") if self._more else self._shown)


def shown(text: str) -> str:
    """``text`` from a file as a note can carry it: quoted, printable, on one line, not long."""
    plain = ascii(text[:80])
    return plain if len(plain) <= 80 else plain[:76] + "...'"


class Piece(NamedTuple):
    """A run of a file's bytes: literal if ``storage`` is ``None``."""

    offset: int
    nbytes: int
    storage: Storage | None


def pieces(layout: Layout, size: int) -> Iterator[Piece]:
    """Cut [0, ``size``) into literal runs and whole storages, in file order.

    The non-empty pieces partition the range exactly. A storage that does not lie wholly inside it ends the walk: from
    there on everything is literal. Storages of no bytes come too, so that their views are not lost.
    """
    position = 0
    for storage in layout.storages:
        if storage.end > size or storage.offset < position:
            break
        if storage.offset > position:
            yield Piece(position, storage.offset - position, None)
        yield Piece(storage.offset, storage.nbytes, storage)
        position = storage.end
    if position < size:
        yield Piece(position, size - position, None)


def element_count(shape: tuple[int, ...]) -> int:
    """Number of elements of a tensor of this shape; raises :class:`Malformed` beyond 2^63 - 1."""
    count = 1
    for dimension in shape:
        count *= dimension
        if count > MAX_BYTES:
            raise Malformed("its shape is too large")
    return count


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides, in elements."""
    strides: list[int] = []
    step = 1
    for dimension in reversed(shape):
        strides.append(step)
        step *= dimension
    return tuple(reversed(strides))


def view_problem(view: View, elements: int, limits: Limits = DEFAULT_LIMITS) -> str:
    """Why ``view`` cannot be a view of a storage of ``elements`` elements; empty if it can."""
    if not view.name:
        return "it has no name"
    try:
        if len(view.name.encode("utf-8")) > limits.name_bytes:
            return f"its name is longer than {limits.name_bytes} bytes"
    except UnicodeEncodeError:
        return "its name is not valid Unicode"
    if len(view.shape) > limits.dimensions:
        return f"it has more than {limits.dimensions} dimensions"
    if view.strides is not None and len(view.strides) != len(view.shape):
        return "its strides do not match its shape"
    if view.start < 0 or min(view.shape, default=0) < 0 or min(view.strides or (), default=0) < 0:
        return "a dimension, stride or offset is negative"
    if view.part is not None and not _is_inside(view.part, view.shape):
        return "it does not lie inside the tensor that it is a part of"
    try:
        count = element_count(view.shape)
    except Malformed as error:
        return str(error)
    if count == 0:
        return "" if view.start <= elements else "it lies outside its storage"
    if view.strides is None:
        last = view.start + count - 1
    else:
        last = view.start + sum((d - 1) * s for d, s in zip(view.shape, view.strides, strict=True))
    if last >= elements:
        return "it lies outside its storage"
    # A stride of 0 repeats elements, so a few bytes could claim any number of them.
    return "" if count <= max(elements, MAX_REPEATED) else "it repeats its storage too often"


def _is_inside(part: Part, shape: tuple[int, ...]) -> bool:
    if not len(shape) == len(part.shape) == len(part.offset) or min(part.offset, default=0) < 0:
        return False
    try:
        element_count(part.shape)
    except Malformed:
        return False
    return all(o + n <= whole for o, n, whole in zip(part.offset, shape, part.shape, strict=True))


def problem_of(layout: Layout, size: int | None = None) -> str:
    """What breaks the promises of :class:`Layout`; empty if nothing does. Parsers and tests end with this check."""
    position = 0
    names: set[str] = set()
    for number, storage in enumerate(layout.storages):
        kind = DTYPES.get(storage.dtype)
        if kind is None:
            return f"storage {number} has the unknown dtype {storage.dtype}"
        if storage.nbytes < 0 or storage.offset < position or storage.end > MAX_BYTES:
            return f"storage {number} overlaps or is out of order"
        if storage.nbytes % kind.itemsize:
            return f"storage {number} does not hold a whole number of elements"
        position = storage.end
        for view in storage.views:
            problem = view_problem(view, storage.nbytes // kind.itemsize)
            if problem:
                return f"{view.name!r}: {problem}"
            if view.name in names:
                return f"{view.name!r} appears twice"
            names.add(view.name)
    bound = layout.size if size is None else size
    if bound is not None and layout.complete and position > bound:
        return "a storage lies beyond the end of the file"
    return ""
