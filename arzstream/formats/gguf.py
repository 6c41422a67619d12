"""GGUF files, the format of llama.cpp, complete or still being written.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3. Quantised tensors
are bytes, shape (rows, bytes of a row): a row is a whole number of blocks, whose layout is the type's own. Tensors of
other types have their shape, outermost dimension first. Numbers of big-endian files are kept as bytes.
"""

from __future__ import annotations

import hashlib
import math
import struct
from typing import NamedTuple

from arzstream.formats.base import (
    MAX_BYTES,
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
from arzstream.limits import DEFAULT_LIMITS, Limits

__all__ = ["FORMAT", "MAGIC", "GgufParser"]

FORMAT = "gguf"
MAGIC = b"GGUF"
FIRST_READ = 1 << 16
"""Bytes that are read first; as long as the header does not end in them, four times as many are."""
MAX_NESTING = 8
"""Arrays in arrays."""
MAX_DIMENSIONS = 8
MAX_SHOWN, MAX_VALUE = 256, 256
"""Metadata kept for the reader: entries, and characters of one."""

PLAIN = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
"""Types whose elements are of a dtype that everybody has."""
BLOCKS = {
    2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),  # Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),  # Q2_K to Q8_K
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50),  # IQ2_XXS, IQ2_XS, IQ3_XXS, IQ1_S
    20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 29: (256, 56),  # IQ4_NL, IQ3_S, IQ2_S, IQ4_XS, IQ1_M
    34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18),  # TQ1_0, TQ2_0, MXFP4, NVFP4, Q1_0
}  # fmt: skip
"""Elements and bytes of a block, by type."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SIZES = {kind: struct.calcsize("<" + form) for kind, form in _SCALARS.items()}
_STRING, _ARRAY, _U32 = 8, 9, 4
_ITEMSIZE = {"F32": 4, "F16": 2, "I8": 1, "I16": 2, "I32": 4, "I64": 8, "F64": 8, "BF16": 2}


class GgufParser:
    """Incremental: while the header's bytes stay the same, ``update`` costs one read of them and one hash."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._digest = b""
        self._length = 0
        """Bytes of the header that ``_layout`` is of, or that were not enough."""
        self._layout: Layout | None = None

    def update(self, read: ReadAt, frontier: int, final: bool) -> Layout:
        try:
            layout = self._known(read, frontier, final)
            end = layout.storages[-1].end if layout and layout.storages else self._length
            if layout is not None and frontier < end and final:
                raise Malformed(f"it is cut off, {frontier} of {end} bytes")
        except Malformed as error:
            return opaque(frontier, f"not a valid GGUF file: {error}") if final else Layout(FORMAT)
        if layout is None:
            return Layout(FORMAT)
        # Writers pad the last tensor, too; how far the file goes is not written anywhere.
        return Layout(FORMAT, layout.storages, max(frontier, end), frontier >= end, layout.note, layout.metadata)

    def _known(self, read: ReadAt, frontier: int, final: bool) -> Layout | None:
        """The layout the header implies, its size left out, or None while the header is not there."""
        if self._layout is not None:
            header = read(0, self._length) if self._length <= frontier else b""
            if len(header) == self._length and _digest(header) == self._digest:
                return self._layout
            self._layout, self._length = None, 0
        # A header that was not whole is not parsed again before there is a good deal more of it.
        if not final and 4 * frontier < 5 * self._length:
            return None
        most = min(frontier, self._limits.metadata_bytes)
        length = min(FIRST_READ, most)
        while True:
            header = read(0, length)
            if len(header) < length:
                most = length = len(header)
            try:
                self._layout, self._length = _parse(header, self._limits)
            except _TooShort:
                if length < most:
                    length = min(4 * length, most)
                    continue
                if most < frontier:
                    raise Malformed(f"its header is longer than {most} bytes") from None
                if final:
                    raise Malformed("it ends in its header") from None
                self._length = length
                return None
            self._digest = _digest(header[: self._length])
            return self._layout


def _digest(header: bytes) -> bytes:
    return hashlib.blake2b(header, digest_size=32).digest()


class _TooShort(Exception):
    """The header goes on after the bytes that were given."""


class _Cursor:
    """A place in the header. Every step forward is checked against its end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.order = "<"

    def skip(self, length: int) -> int:
        """The place before ``length`` more bytes."""
        start = self.at
        if length > len(self.data) - start:
            raise _TooShort
        self.at = start + length
        return start

    def number(self, form: str, size: int) -> int:
        value: int = struct.unpack_from(self.order + form, self.data, self.skip(size))[0]
        return value

    def u32(self) -> int:
        return self.number("I", 4)

    def u64(self) -> int:
        return self.number("Q", 8)

    def string(self) -> bytes:
        length = self.u64()
        start = self.skip(length)
        return self.data[start : start + length]

    def strings(self, count: int) -> None:
        """Pass over ``count`` strings."""
        data, at, end = self.data, self.at, len(self.data)
        unpack = struct.Struct(self.order + "Q").unpack_from
        for _ in range(count):
            if end - at < 8:
                raise _TooShort
            at += 8 + unpack(data, at)[0]
            if at > end:
                raise _TooShort
        self.at = at


class _Tensor(NamedTuple):
    name: bytes
    dims: tuple[int, ...]
    """Innermost first, as they stand in the file."""
    kind: int
    offset: int
    """From the first tensor's place on."""


def _parse(header: bytes, limits: Limits) -> tuple[Layout, int]:
    """(the layout, its size left out; bytes of the header). Raises :class:`Malformed`, or :class:`_TooShort`."""
    cursor = _Cursor(header)
    magic = cursor.skip(8)
    version = struct.unpack_from("<I", header, magic + 4)[0]
    if header[:4] != MAGIC:
        raise Malformed("it does not start with GGUF")
    if version & 0xFFFF == 0:
        version, cursor.order = struct.unpack_from(">I", header, magic + 4)[0], ">"
    if version not in (2, 3):
        raise Malformed(f"its version is {version}")
    n_tensors, n_values = cursor.u64(), cursor.u64()
    if n_tensors > limits.units:
        raise Malformed(f"it has more than {limits.units} tensors")
    alignment, metadata = _metadata(cursor, n_values)
    tensors = [_tensor(cursor) for _ in range(n_tensors)]
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise Malformed("a name appears twice in its header")
    base = -(-cursor.at // alignment) * alignment
    notes = Notes()
    storages: list[Storage] = []
    position = base
    for tensor in sorted(tensors, key=lambda t: (t.offset, math.prod(t.dims))):
        storage = _storage(tensor, base, notes, limits)
        if storage is None:
            continue
        if cursor.order == ">":
            notes.add("its numbers are big-endian; they are kept as bytes")
            storage = Storage("U8", storage.offset, storage.nbytes)
        if storage.offset < position:
            raise Malformed(f"there is an overlap before tensor {shown(_text(tensor.name))}")
        position = storage.end
        storages.append(storage)
    layout = Layout(FORMAT, tuple(storages), None, False, str(notes), metadata)
    problem = problem_of(layout)
    if problem:
        raise Malformed(problem)
    return layout, cursor.at


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _metadata(cursor: _Cursor, count: int) -> tuple[int, dict[str, str]]:
    """(alignment of tensors, what is short enough to show)."""
    alignment = 32
    kept: dict[str, str] = {}
    for _ in range(count):
        key, kind = cursor.string(), cursor.u32()
        start = cursor.at
        text = _value(cursor, kind)
        if key == b"general.alignment":
            alignment = struct.unpack_from(cursor.order + "I", cursor.data, start)[0] if kind == _U32 else 0
            if not 1 <= alignment <= 1 << 20:
                raise Malformed("its alignment is out of range")
        if text is not None and len(kept) < MAX_SHOWN and len(key) <= MAX_VALUE:
            kept[_text(key)] = text
    return alignment, kept


def _value(cursor: _Cursor, kind: int, depth: int = 0) -> str | None:
    """Pass over a value; its text, if it is a short one."""
    if kind in _SCALARS:
        value = struct.unpack_from(cursor.order + _SCALARS[kind], cursor.data, cursor.skip(_SIZES[kind]))[0]
        return str(value)
    if kind == _STRING:
        text = cursor.string()
        return _text(text) if len(text) <= MAX_VALUE else None
    if kind != _ARRAY:
        raise Malformed(f"a value in its header has the unknown type {kind}")
    inner, count = cursor.u32(), cursor.u64()
    if inner in _SIZES:
        cursor.skip(_SIZES[inner] * count)
    elif inner == _STRING:
        cursor.strings(count)
    else:
        if depth == MAX_NESTING:
            raise Malformed("its header is nested too deeply")
        for _ in range(count):
            _value(cursor, inner, depth + 1)
    return None


def _tensor(cursor: _Cursor) -> _Tensor:
    name, n_dims = cursor.string(), cursor.u32()
    if n_dims > MAX_DIMENSIONS:
        raise Malformed(f"tensor {shown(_text(name))} has {n_dims} dimensions")
    dims = tuple(cursor.u64() for _ in range(n_dims))
    return _Tensor(name, dims, cursor.u32(), cursor.u64())


def _storage(tensor: _Tensor, base: int, notes: Notes, limits: Limits) -> Storage | None:
    """None for a tensor whose size is not known; its bytes are then literal."""
    quoted = shown(_text(tensor.name))
    elements = element_count(tensor.dims)
    if tensor.kind in PLAIN:
        dtype, shape = PLAIN[tensor.kind], tensor.dims[::-1]
        nbytes = elements * _ITEMSIZE[dtype]
    elif tensor.kind in BLOCKS:
        block, size = BLOCKS[tensor.kind]
        row = tensor.dims[0] if tensor.dims else 1
        if row % block:
            raise Malformed(f"tensor {quoted} has rows that are no whole number of blocks")
        row_bytes = row // block * size
        dtype, shape = "U8", (elements // row if row else 0, row_bytes)
        nbytes = shape[0] * shape[1]
    else:
        notes.add(f"{quoted} of type {tensor.kind} is kept as bytes")
        return None
    if base + tensor.offset + nbytes > MAX_BYTES:
        raise Malformed(f"tensor {quoted} lies beyond every file")
    try:
        view = View(tensor.name.decode("utf-8"), shape)
        problem = view_problem(view, nbytes // _ITEMSIZE.get(dtype, 1), limits)
    except UnicodeDecodeError:
        problem = "its name is not UTF-8"
    if problem:
        notes.add(f"{quoted} is not named: {problem}")
        return Storage(dtype, base + tensor.offset, nbytes)
    return Storage(dtype, base + tensor.offset, nbytes, (view,))
