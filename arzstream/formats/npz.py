"""NumPy's ``.npz`` files, complete or still being written: zip files of ``.npy`` members.

``numpy.savez`` stores the members as they are; while one is being written its local header has no sizes yet, but its
array's own header tells them, and with them where the next member begins. ``numpy.savez_compressed`` deflates; such
members stay the bytes that they are (docs/formats.md says why they are not inflated).
"""

from __future__ import annotations

from arzstream.formats.base import (
    Layout,
    Malformed,
    Notes,
    ReadAt,
    Storage,
    opaque,
    problem_of,
    shown,
)
from arzstream.formats.npy import array_storage, read_array_header
from arzstream.formats.zip_records import EndedFile, Record, descriptor_size, read_directory, read_local_header
from arzstream.limits import DEFAULT_LIMITS, Limits

__all__ = ["FORMAT", "NpzParser"]

FORMAT = "npz"
_SUFFIX = ".npy"
_DESCRIPTOR_SIZE = 24


class NpzParser:
    """Walks the members that are there anew at each call: two short reads each."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._ended = EndedFile(_whole_layout, limits)

    def update(self, read: ReadAt, frontier: int, final: bool) -> Layout:
        if final:
            try:
                return _whole_layout(read, frontier, self._limits)
            except Malformed as error:
                return opaque(frontier, f"not a valid NumPy zip file: {error}")
        return self._ended.layout(read, frontier) or _front_layout(read, frontier, self._limits)


def _whole_layout(read: ReadAt, size: int, limits: Limits) -> Layout:
    """The layout of a complete file, by its directory. Raises :class:`Malformed`."""
    notes, storages = Notes(), []
    packed = 0
    records = read_directory(read, size, limits)
    for record in records:
        if record.method:
            packed += 1
        elif record.name.endswith(_SUFFIX.encode()):
            storage = _storage(read, record, notes, limits)
            if storage is not None:
                storages.append(storage)
    if packed:
        notes.add(f"{packed} of its {len(records)} members are compressed already; they are kept as they are")
    layout = Layout(FORMAT, tuple(storages), size, True, str(notes))
    problem = problem_of(layout, size)
    if problem:
        raise Malformed(problem)
    return layout


def _storage(read: ReadAt, record: Record, notes: Notes, limits: Limits) -> Storage | None:
    """None for a member that is not understood."""
    name, problem = _name(record.name)
    if not problem:
        try:
            header = read_array_header(read, record.start, record.end)
            if header is not None and header.nbytes is None:
                notes.add(f"{shown(name)} {header.note}")
                return None
            if header is None or header.nbytes is None or header.length + header.nbytes != record.size:
                problem = "its member does not have the size of its shape"
            else:
                return array_storage(header, record.start, name, notes, limits)
        except Malformed as error:
            problem = str(error)
    notes.add(f"{shown(name)} is kept as bytes: {problem}")
    return None


def _front_layout(read: ReadAt, frontier: int, limits: Limits) -> Layout:
    """What the members at the beginning of a growing file tell."""
    storages: list[Storage] = []
    notes = Notes()
    at = 0
    try:
        while len(storages) < limits.members:
            local = read_local_header(read, at, frontier)
            name, problem = _name(local.name) if local is not None else ("", "")
            if local is None or local.method or problem or not local.name.endswith(_SUFFIX.encode()):
                break
            header = read_array_header(read, local.start, frontier)
            if header is None or header.nbytes is None:
                break
            storage = array_storage(header, local.start, name, notes, limits)
            storages.append(storage)
            at = storage.end
            if local.has_descriptor:
                after = read(at, _DESCRIPTOR_SIZE) if at + _DESCRIPTOR_SIZE <= frontier else b""
                length = descriptor_size(after, at - local.start) if len(after) == _DESCRIPTOR_SIZE else 0
                if not length:
                    break
                at += length
    except Malformed:
        pass  # only the directory at the end can tell more
    layout = Layout(FORMAT, tuple(storages), None, False, str(notes))
    return Layout(FORMAT) if problem_of(layout) else layout


def _name(raw: bytes) -> tuple[str, str]:
    """(what a member's array is called, why it cannot be called so)"""
    try:
        return raw.decode("utf-8").removesuffix(_SUFFIX), ""
    except UnicodeDecodeError:
        return raw.decode("utf-8", "backslashreplace"), "its name is not UTF-8"
