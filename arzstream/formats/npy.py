"""NumPy's ``.npy`` files, complete or still being written.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, versions 1 to 3. The header is a Python
literal; it is read by a parser of its own that knows strings, numbers, tuples, lists and dictionaries and nothing else.

Arrays in Fortran order are views with strides. Elements of two bytes without a type are what ``ml_dtypes.bfloat16``
becomes in such a file, and are taken for that. Structured arrays, Python objects and big-endian numbers are bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from arzstream.formats.base import (
    MAX_BYTES,
    Layout,
    Malformed,
    Notes,
    ReadAt,
    Storage,
    View,
    contiguous_strides,
    element_count,
    opaque,
    problem_of,
    shown,
    view_problem,
)
from arzstream.limits import DEFAULT_LIMITS, Limits

__all__ = ["FORMAT", "MAGIC", "ArrayHeader", "NpyParser", "array_storage", "name_of", "read_array_header"]

FORMAT = "npy"
MAGIC = b"\x93NUMPY"
MAX_HEADER = 1 << 16
"""NumPy itself refuses more than 10000 bytes unless told otherwise."""
MAX_DEPTH = 8

_SUFFIX = re.compile(r"\.npy\b.*$", re.IGNORECASE)
_TOKEN = re.compile(r"""\s*(?:'([^'\\]*)'|"([^"\\]*)"|(\d{1,20})L?|(True|False|None)|([{}()\[\],:]))""")
_TYPE = re.compile(r"([<>|=])([a-zA-Z])(\d{0,9})(?:\[.*\])?")
_DTYPES = {
    "f2": "F16", "f4": "F32", "f8": "F64", "b1": "BOOL", "c8": "C64", "c16": "C128", "V2": "BF16", "f1": "U8",
    "V1": "U8", "i1": "I8", "i2": "I16", "i4": "I32", "i8": "I64", "u1": "U8", "u2": "U16", "u4": "U32", "u8": "U64",
}  # fmt: skip
_SAID = {
    "V2": "is of a type that NumPy lacks; read as BF16, which ml_dtypes writes so",
    "V1": "is of a type of one byte that NumPy lacks; it is kept as bytes",
    "f1": "is of an 8-bit float type that its file does not name; it is kept as bytes",
}


@dataclass(frozen=True)
class ArrayHeader:
    """What the header of an array says. ``nbytes`` is ``None`` where it tells no size; ``dtype`` (ARZ-1 section 6.1)
    is empty, and ``note`` says why, where elements are not understood."""

    length: int
    """Bytes of the header itself, the elements come behind it."""
    nbytes: int | None
    dtype: str
    shape: tuple[int, ...]
    fortran: bool
    note: str

    @property
    def strides(self) -> tuple[int, ...] | None:
        """In elements; ``None`` where the order is row-major."""
        if not self.fortran or 0 in self.shape or sum(d > 1 for d in self.shape) < 2:
            return None
        return tuple(reversed(contiguous_strides(self.shape[::-1])))


class NpyParser:
    """Reads the header, which is short, anew at each call."""

    def __init__(self, name: str, limits: Limits = DEFAULT_LIMITS) -> None:
        """``name`` is what the array is called; the file does not say."""
        self._name = name
        self._limits = limits

    def update(self, read: ReadAt, frontier: int, final: bool) -> Layout:
        try:
            return self._layout(read, frontier, final)
        except Malformed as error:
            return opaque(frontier, f"not a valid NumPy file: {error}") if final else Layout(FORMAT)

    def _layout(self, read: ReadAt, frontier: int, final: bool) -> Layout:
        header = read_array_header(read, 0, frontier)
        if header is None:
            if final:
                raise Malformed("it ends in its header")
            return Layout(FORMAT)
        if header.nbytes is None:
            return opaque(frontier, header.note, final=final)
        size = header.length + header.nbytes
        if frontier < size and final:
            raise Malformed(f"it is cut off, {frontier} of {size} bytes")
        notes = Notes()
        storage = array_storage(header, 0, self._name, notes, self._limits)
        if final and frontier > size:
            notes.add(f"{frontier - size} bytes follow its array")
        layout = Layout(FORMAT, (storage,), max(size, frontier), frontier >= size, str(notes))
        problem = problem_of(layout)
        if problem:
            raise Malformed(problem)
        return layout


def name_of(path: str) -> str:
    """What the array in the file at ``path`` is called: the file's name without ``.npy`` and what follows."""
    return _SUFFIX.sub("", re.split(r"[/\\]", path)[-1])


def array_storage(header: ArrayHeader, at: int, name: str, notes: Notes, limits: Limits = DEFAULT_LIMITS) -> Storage:
    """The storage of an array whose header, which tells its size, stands at ``at`` of a file."""
    start, nbytes = at + header.length, header.nbytes
    assert nbytes is not None
    if header.note:
        notes.add(f"{shown(name)} {header.note}")
    if not header.dtype:
        return Storage("U8", start, nbytes)
    view = View(name, header.shape, 0, header.strides)
    problem = view_problem(view, element_count(header.shape), limits)
    if problem:
        notes.add(f"{shown(name)} is not named: {problem}")
    return Storage(header.dtype, start, nbytes, () if problem else (view,))


def read_array_header(read: ReadAt, at: int, frontier: int) -> ArrayHeader | None:
    """The header of the array at ``at``; None if it is not wholly before ``frontier``. Raises :class:`Malformed`."""
    start = read(at, 12) if at + 12 <= frontier else b""
    if len(start) < 12:
        return None
    if start[:6] != MAGIC:
        raise Malformed("it does not start with NUMPY")
    if start[6] not in (1, 2, 3):
        raise Malformed(f"its version is {start[6]}.{start[7]}")
    place = 10 if start[6] == 1 else 12
    length = int.from_bytes(start[8:place], "little")
    if length > MAX_HEADER:
        raise Malformed(f"its header would be {length} bytes long")
    raw = read(at + place, length) if at + place + length <= frontier else b""
    if len(raw) < length:
        return None
    try:
        fields = _literal(raw.decode("utf-8" if start[6] == 3 else "latin-1"))
    except UnicodeDecodeError:
        raise Malformed("its header is not UTF-8") from None
    if not isinstance(fields, dict) or fields.keys() != {"descr", "fortran_order", "shape"}:
        raise Malformed("its header is not what NumPy writes")
    shape = fields["shape"]
    if not isinstance(shape, tuple) or not all(type(n) is int for n in shape):
        raise Malformed("its shape is no tuple of numbers")
    return _described(place + length, fields["descr"], shape, fields["fortran_order"] is True)


def _described(length: int, descr: Any, shape: tuple[int, ...], fortran: bool) -> ArrayHeader:
    elements = element_count(shape)
    match = _TYPE.fullmatch(descr) if isinstance(descr, str) else None
    if match is None:
        return ArrayHeader(length, None, "", shape, fortran, "is a structured array; it is kept as bytes")
    order, kind, width = match[1], match[2], int(match[3] or 0)
    if kind == "O":
        return ArrayHeader(length, None, "", shape, fortran, "holds Python objects, which are never unpickled")
    nbytes = elements * width * (4 if kind == "U" else 1)
    if nbytes > MAX_BYTES:
        raise Malformed("its array is too large")
    code = f"{kind}{width}"
    dtype, note = _DTYPES.get(code, ""), _SAID.get(code, "")
    if not dtype:
        note = f"of NumPy type {ascii(descr[:16])[1:-1]} is kept as bytes"
    elif order == ">" and width > 1:
        dtype, note = "", "is big-endian; it is kept as bytes"
    return ArrayHeader(length, nbytes, dtype, shape, fortran, note)


def _literal(text: str) -> Any:
    """The value of a Python literal of few kinds, and nothing but blanks behind it. Raises :class:`Malformed`."""
    value, at = _value(text, 0, 0)
    if text[at:].strip(" \n\0"):
        raise Malformed("its header goes on after its end")
    return value


def _value(text: str, at: int, depth: int) -> tuple[Any, int]:
    match = _next(text, at)
    at = match.end()
    for group, convert in ((1, str), (2, str), (3, int), (4, {"True": True, "False": False, "None": None}.get)):
        if match[group] is not None:
            return convert(match[group]), at
    closing = {"(": ")", "[": "]", "{": "}"}.get(match[5])
    if closing is None or depth == MAX_DEPTH:
        raise Malformed("its header is no literal")
    items: list[Any] = []
    while (after := _next(text, at))[5] != closing:
        item, at = _value(text, at, depth + 1)
        if closing == "}":
            colon = _next(text, at)
            value, at = _value(text, colon.end(), depth + 1)
            if colon[5] != ":" or not isinstance(item, str):
                raise Malformed("its header is no literal")
            item = (item, value)
        items.append(item)
        after = _next(text, at)
        if after[5] == ",":
            at = after.end()
        elif after[5] != closing:
            raise Malformed("its header is no literal")
    at = after.end()
    if closing == "}":
        return dict(items), at
    return (tuple(items) if closing == ")" else items), at


def _next(text: str, at: int) -> re.Match[str]:
    match = _TOKEN.match(text, at)
    if match is None:
        raise Malformed("its header is no literal")
    return match
