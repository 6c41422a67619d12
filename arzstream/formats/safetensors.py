"""safetensors files, complete or still being written.

Format: https://github.com/huggingface/safetensors#format. The checks are those of the reference reader, and stricter
where two readers could disagree: a name that appears twice makes the file opaque.

A file is believed as soon as its header is there, whatever its size: writers before 0.8 let the file grow in place,
0.8 sets the final size first and fills in the bytes. Its tensors' places are then known, beyond the frontier too.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NoReturn

from arzstream.codec.dtypes import DTYPES
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

__all__ = ["FORMAT", "SafetensorsParser", "looks_like_safetensors", "parse_header"]

FORMAT = "safetensors"
MAX_HEADER = 100_000_000  # the reference reader's limit
_SUB_BYTE = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # bits an element


class SafetensorsParser:
    """Incremental: while the header's bytes stay the same, ``update`` costs one read of them and one hash."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._digest = b""
        self._layout: Layout | None = None  # as if complete; None: the header with that digest is malformed
        self._why = ""

    def update(self, read: ReadAt, frontier: int, final: bool) -> Layout:
        try:
            layout = self._known(read, frontier, final)
        except Malformed as error:
            if final:
                return opaque(frontier, f"not a valid safetensors file: {error}")
            return Layout(FORMAT)
        if layout is None:
            return Layout(FORMAT)
        if layout.size == frontier:
            return layout
        if final:
            return opaque(frontier, f"not a valid safetensors file: {_size_differs(frontier, layout.size or 0)}")
        return Layout(FORMAT, layout.storages, layout.size, False, layout.note, layout.metadata)

    def _known(self, read: ReadAt, frontier: int, final: bool) -> Layout | None:
        """The layout the header implies, or None while the header is not there."""
        start = read(0, 8) if frontier >= 8 else b""
        if len(start) < 8:
            if final:
                raise Malformed("it ends before its header")
            return None
        length = int.from_bytes(start, "little")
        if length > min(MAX_HEADER, self._limits.metadata_bytes):
            raise Malformed(f"its header would be {length} bytes long")
        header = read(8, length) if length and 8 + length <= frontier else b""
        if not length or len(header) < length:
            if final:
                raise Malformed("its header is cut off" if length else "its header is empty")
            return None
        digest = hashlib.blake2b(header, digest_size=32).digest()
        if digest != self._digest:
            self._digest, self._layout = digest, None
            try:
                self._layout = parse_header(header, self._limits)
            except Malformed as error:
                self._why = str(error)
        if self._layout is None:
            raise Malformed(self._why)
        return self._layout


def looks_like_safetensors(start: bytes) -> bool:
    """Whether a file that starts with these (at least 9) bytes may be one: a plausible length, then ``{``."""
    return len(start) >= 9 and start[8:9] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= MAX_HEADER


def parse_header(header: bytes, limits: Limits = DEFAULT_LIMITS) -> Layout:
    """The layout of a complete file with this header (the JSON without the 8 bytes of length before it).

    Raises :class:`Malformed`.
    """
    entries = _json_object(header)
    metadata = _metadata(entries.pop("__metadata__", None))
    if len(entries) > limits.units:
        raise Malformed(f"it has more than {limits.units} tensors")
    spans = sorted(((*_span(name, info), name) for name, info in entries.items()), key=lambda s: s[:2])
    base = 8 + len(header)
    notes = Notes()
    storages: list[Storage] = []
    position = 0
    for begin, end, name in spans:
        if begin != position:
            raise Malformed(f"there is {'a hole' if begin > position else 'an overlap'} before tensor {shown(name)}")
        position = end
        storages.append(_storage(name, entries[name], base + begin, end - begin, notes, limits))
    layout = Layout(FORMAT, tuple(storages), base + position, True, str(notes), metadata)
    problem = problem_of(layout)
    if problem:
        raise Malformed(problem)
    return layout


def _json_object(header: bytes) -> dict[str, Any]:
    if header[:1] != b"{":
        raise Malformed("its header does not start with '{'")
    try:
        value = json.loads(header.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise Malformed("its header is not UTF-8") from None
    except RecursionError:
        raise Malformed("its header is nested too deeply") from None
    except ValueError:  # json.JSONDecodeError, and integers of thousands of digits
        raise Malformed("its header is not JSON") from None
    assert isinstance(value, dict)  # it starts with "{"
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise Malformed("a name appears twice in its header")
    return made


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and Infinity are not JSON


def _metadata(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise Malformed("its __metadata__ is not a map of strings")
    try:
        "".join((*value, *value.values())).encode("utf-8")
    except UnicodeEncodeError:
        raise Malformed("its __metadata__ is not valid Unicode") from None
    return value


def _span(name: str, info: Any) -> tuple[int, int]:
    try:
        begin, end = info["data_offsets"]
        dtype, shape = info["dtype"], info["shape"]
    except (KeyError, TypeError, ValueError):
        raise Malformed(f"tensor {shown(name)} lacks dtype, shape or data_offsets") from None
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise Malformed(f"tensor {shown(name)} has a bad dtype or shape")
    # type() and not isinstance(): true and 1.0 are not lengths
    if not all(type(number) is int and 0 <= number <= MAX_BYTES for number in (begin, end, *shape)):
        raise Malformed(f"tensor {shown(name)} has a bad number in its shape or offsets")
    if end < begin:
        raise Malformed(f"tensor {shown(name)} ends before it begins")
    return begin, end


def _storage(name: str, info: dict[str, Any], offset: int, nbytes: int, notes: Notes, limits: Limits) -> Storage:
    dtype, shape = info["dtype"], tuple(info["shape"])
    known = DTYPES.get(dtype)
    if known is not None or dtype in _SUB_BYTE:
        bits = element_count(shape) * (8 * known.itemsize if known is not None else _SUB_BYTE[dtype])
        if bits != 8 * nbytes:
            raise Malformed(f"tensor {shown(name)} does not have the size of its shape")
    if known is None:
        notes.add(f"{shown(name)} of dtype {shown(dtype)} is kept as bytes")
        dtype, shape = "U8", (nbytes,)
    view = View(name, shape)
    problem = view_problem(view, nbytes // DTYPES[dtype].itemsize, limits)
    if problem:
        notes.add(f"{shown(name)} is not named: {problem}")
        return Storage(dtype, offset, nbytes)
    return Storage(dtype, offset, nbytes, (view,))


def _size_differs(have: int, want: int) -> str:
    if have < want:
        return f"it is cut off, {have} of {want} bytes"
    return f"{have - want} bytes follow its last tensor"
