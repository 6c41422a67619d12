"""msgpack files as flax writes them (``flax.serialization.to_bytes``), complete or still being written.

Format: https://github.com/msgpack/msgpack/blob/master/spec.md. A tree of maps with text keys; an array is an extension
of type 1 that holds a msgpack list of shape, name of the dtype, and bytes. Tensors are called by the keys that lead to
them, joined by dots. Arrays of a gigabyte and more are in pieces, which are tensors of one dimension.

Sizes come before what they are of, so that a growing file tells where an array lies before it is there.
"""

from __future__ import annotations

from typing import NamedTuple

from arzstream.codec.dtypes import DTYPES
from arzstream.formats.base import (
    Layout,
    Malformed,
    Notes,
    ReadAt,
    Storage,
    View,
    element_count,
    opaque,
    problem_of,
    shown,
    view_problem,
)
from arzstream.formats.window import Head, TooShort, Window
from arzstream.limits import DEFAULT_LIMITS, Limits

__all__ = ["FORMAT", "FlaxParser", "looks_like_flax"]

FORMAT = "flax-msgpack"
MAX_DEPTH = 64
MAX_ITEMS = 1_000_000
BYTES_OF_ITEM = 64
"""Of a name that is kept, which cost as much as an item: it holds the keys of all maps around it."""
MAX_KEY = 1024
_ARRAY = 1
_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2": "F8_E5M2", "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint64": "U64",
    "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL", "complex64": "C64", "complex128": "C128",
}  # fmt: skip


class FlaxParser:
    """While the file grows, goes on where it had to stop; walks it all when it is complete."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._head = Head()
        self._walk = _Walk(limits)

    def update(self, read: ReadAt, frontier: int, final: bool) -> Layout:
        if self._head.is_new(read, frontier) or final:
            self._walk = _Walk(self._limits)
        try:
            complete = self._walk.go_on(Window(read, frontier))
            layout = self._walk.layout(frontier if complete else None)
            if final and not complete:
                raise Malformed("it is cut off")
        except Malformed as error:
            return opaque(frontier, f"not a msgpack file of flax: {error}") if final else Layout(FORMAT)
        if final and not layout.storages:
            return opaque(frontier, "a msgpack file without arrays as flax writes them")
        return layout


def looks_like_flax(start: bytes) -> bool:
    """Whether a file that starts with these (at least 16) bytes may be one: a map, the first of whose keys is a word,
    and stands for a map or an array."""
    if len(start) < 16 or not (0x81 <= start[0] <= 0x8F or start[0] == 0xDE):
        return False
    at = 3 if start[0] == 0xDE else 1
    length = start[at] & 31
    key, after = start[at + 1 : at + 1 + length], start[at + 1 + length : at + 2 + length]
    word = 0xA1 <= start[at] <= 0xBF and key.isascii() and key.decode().isprintable()
    return word and bool(after) and (0x80 <= after[0] <= 0x8F or after[0] in (0xDE, 0xC7, 0xC8, 0xC9))


class _Head(NamedTuple):
    """The beginning of an object: ``kind`` is ``map``, ``list``, ``text``, ``bytes``, ``ext`` or ``other``; ``size``
    its items, or the bytes from ``start`` on."""

    kind: str
    start: int
    size: int
    code: int = 0

    @property
    def end(self) -> int:
        return self.start + self.size


_LONG = {
    0xC4: ("bytes", 1), 0xC5: ("bytes", 2), 0xC6: ("bytes", 4), 0xD9: ("text", 1), 0xDA: ("text", 2), 0xDB: ("text", 4),
    0xDC: ("list", 2), 0xDD: ("list", 4), 0xDE: ("map", 2), 0xDF: ("map", 4),
    0xC7: ("ext", 1), 0xC8: ("ext", 2), 0xC9: ("ext", 4),
}  # fmt: skip
_FIXED = {
    0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
}  # fmt: skip


def _head(window: Window, at: int) -> _Head:
    first = window.byte(at)
    if first < 0x80 or first >= 0xE0:
        return _Head("other", at + 1, 0, first)
    if first < 0x90:
        return _Head("map", at + 1, first & 15)
    if first < 0xA0:
        return _Head("list", at + 1, first & 15)
    if first < 0xC0:
        return _Head("text", at + 1, first & 31)
    if first in _FIXED:
        return _Head("other", at + 1, _FIXED[first], first)
    if 0xD4 <= first <= 0xD8:
        return _Head("ext", at + 2, 1 << (first - 0xD4), window.byte(at + 1))
    if first not in _LONG:
        raise Malformed("it has a byte that begins nothing")
    kind, width = _LONG[first]
    count = window.big_endian(at + 1, width)
    if kind == "ext":
        return _Head(kind, at + 2 + width, count, window.byte(at + 1 + width))
    return _Head(kind, at + 1 + width, count)


class _Walk:
    """A walk over a file: storages ``found`` in it."""

    def __init__(self, limits: Limits) -> None:
        self.found: list[Storage] = []
        self.notes = Notes()
        self._window = Window(lambda offset, length: b"", 0)
        self._limits = limits
        self._names: set[str] = set()
        self._left = MAX_ITEMS
        self._at = 0
        """Where the next item begins."""
        self._open: list[tuple[int, bool, str]] = []
        """Of each map and list around it: how many items are left, whether they have keys, and the keys that lead to
        it."""

    def go_on(self, window: Window) -> bool:
        """Walk as far as the window goes; whether it holds the whole file, which is one map. Raises
        :class:`Malformed`."""
        self._window = window
        try:
            if not self._at:
                head = _head(window, 0)
                if head.kind != "map":
                    raise Malformed("it does not begin with a map")
                self._at, self._open = head.start, [(head.size, True, "")]
            while self._open:
                if self._open[-1][0]:
                    self._item(*self._open[-1])
                else:
                    self._open.pop()
        except TooShort:
            return False
        if self._at < window.frontier:
            raise Malformed(f"{window.frontier - self._at} bytes follow its end")
        return self._at == window.frontier

    def layout(self, size: int | None) -> Layout:
        """What was found by now; ``size`` is that of the file if it is complete. Raises :class:`Malformed`."""
        layout = Layout(FORMAT, tuple(self.found), size, size is not None, str(self.notes))
        problem = problem_of(layout)
        if problem:
            raise Malformed(problem)
        return layout

    def _item(self, left: int, keyed: bool, path: str) -> None:
        """The next item of the innermost map or list. Where the file ends in it, nothing has changed."""
        at, name = self._at, path
        if keyed:
            key, at = self._key(at)
            name = f"{path}.{key}" if path else key
        head = _head(self._window, at)
        nested = head.kind in ("map", "list")
        if nested and (len(self._open) == MAX_DEPTH or len(name) > 2 * self._limits.name_bytes):
            raise Malformed("it is nested too deeply")
        end = head.start if nested else self._window.end(head.start, head.size)
        array = head.kind == "ext" and head.code == _ARRAY
        if array:
            self._array(head, name)
        self._left -= 1 + (len(name) // BYTES_OF_ITEM if array or nested else 0)
        if self._left < 0:
            raise Malformed(f"it has more than {MAX_ITEMS} items")
        self._at, self._open[-1] = end, (left - 1, keyed, path)
        if nested:
            self._open.append((head.size, head.kind == "map", name))

    def _key(self, at: int) -> tuple[str, int]:
        head = _head(self._window, at)
        if head.kind in ("map", "list", "ext") or head.size > MAX_KEY:
            raise Malformed("it has a key that is no text")
        if head.kind == "other":
            small = not head.size and head.code < 0x80
            return str(head.code) if small else f"#{at}", head.end
        return self._window.bytes(head.start, head.size).decode("utf-8", "backslashreplace"), head.end

    def _array(self, place: _Head, name: str) -> None:
        """An array: [shape, name of its dtype, bytes]. One that is not so is passed over."""
        try:
            shape, kind, data = self._parts(place)
        except (Malformed, TooShort) as error:
            if isinstance(error, TooShort) and place.end > self._window.frontier:
                raise
            self.notes.add(f"{shown(name)} is kept as bytes: its array is not as flax writes it")
            return
        dtype = _DTYPES.get(kind)
        if dtype is None:
            self.notes.add(f"{shown(name)} of dtype {shown(kind)} is kept as bytes")
            self.found.append(Storage("U8", data.start, data.size))
            return
        if element_count(shape) * DTYPES[dtype].itemsize != data.size:
            self.notes.add(f"{shown(name)} is kept as bytes: it does not have the size of its shape")
            return
        view = View(name, shape)
        problem = view_problem(view, data.size // DTYPES[dtype].itemsize, self._limits)
        if name in self._names:
            problem = problem or "another tensor has its name"
        if problem:
            self.notes.add(f"{shown(name)} is not named: {problem}")
        self._names.add(name)
        self.found.append(Storage(dtype, data.start, data.size, () if problem else (view,)))

    def _parts(self, place: _Head) -> tuple[tuple[int, ...], str, _Head]:
        head = _head(self._window, place.start)
        dims = _head(self._window, head.start)
        if (head.kind, head.size, dims.kind) != ("list", 3, "list") or dims.size > self._limits.dimensions:
            raise Malformed("its array is not as flax writes it")
        at, shape = dims.start, []
        for _ in range(dims.size):
            number = _head(self._window, at)
            if number.kind != "other" or number.code in (0xC0, 0xC2, 0xC3, 0xCA, 0xCB) or number.code >= 0xD0:
                raise Malformed("its shape is no list of numbers")
            shape.append(self._window.big_endian(number.start, number.size) if number.size else number.code)
            at = number.end
        text = _head(self._window, at)
        if text.kind not in ("text", "bytes") or text.size > MAX_KEY:
            raise Malformed("its dtype is no text")
        kind = self._window.bytes(text.start, text.size).decode("utf-8", "backslashreplace")
        data = _head(self._window, text.end)
        if data.kind not in ("text", "bytes") or data.end != place.end:
            raise Malformed("its array is not as flax writes it")
        return tuple(shape), kind, data
