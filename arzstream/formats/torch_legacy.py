"""The files that ``torch.save`` wrote before PyTorch 1.6, and does with ``_use_new_zipfile_serialization=False``.

Four pickles (a magic number, a version, facts of the machine, the object), a fifth with the keys of the storages, and
then each storage: how many elements, eight bytes, and the elements, little-endian (``_legacy_save`` in
``torch/serialization.py``). The pickles tell all of it, so that the layout is known when they are there.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from arzstream.formats.base import Layout, Malformed, Notes, ReadAt, Storage, opaque, problem_of, shown
from arzstream.formats.pickle_walk import MAX_WORK, Machine, work_allowed
from arzstream.formats.torch_facts import text_of
from arzstream.formats.torch_pickle import read_contents
from arzstream.formats.torch_storages import Facts, array_storages, distinct, storage_of
from arzstream.limits import DEFAULT_LIMITS, Limits

__all__ = ["FORMAT", "TorchLegacyParser"]

FORMAT = "torch-legacy"
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_FIRST_MACHINE_WORK = 1000
_COUNT_SIZE = 8
_LIKELY = 1 << 20
"""Pickles are hardly ever longer."""
_OFTEN = 64 << 10
"""So far the pickles are tried again whenever there is more of them; then, when there is a quarter more."""


class TorchLegacyParser:
    """Incremental: once the pickles are there, a call costs a read and hash of them to notice that they were
    rewritten."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._head: _Head | None = None
        self._tried = 0

    def update(self, read: ReadAt, frontier: int, final: bool) -> Layout:
        try:
            if final:
                return _checked(_head_of(read, frontier, work_allowed(frontier), self._limits), read, frontier)
            head = self._known(read, frontier)
        except Malformed as error:
            return opaque(frontier, f"not a valid PyTorch file of the old format: {error}", final=final)
        if head is None:
            return Layout(FORMAT)
        try:
            complete = frontier >= head.end and _counted(head, read, frontier)
        except Malformed:
            return Layout(FORMAT)
        return Layout(FORMAT, head.storages, head.end, complete and frontier == head.end, head.note)

    def _known(self, read: ReadAt, frontier: int) -> _Head | None:
        head = self._head
        if head is not None and (frontier < head.start or _digest(read(0, head.start)) != head.digest):
            self._head, self._tried = None, 0
        if self._head is not None:
            return self._head
        if frontier < self._tried:
            self._tried = 0
        if frontier > self._tried + (self._tried // 4 if self._tried > _OFTEN else 0):
            self._tried = frontier
            try:
                self._head = _head_of(read, frontier, MAX_WORK, self._limits)
            except Malformed:
                return None  # more of it may make sense
        return self._head


class _Head(NamedTuple):
    """What the pickles, which are the first ``start`` bytes, tell: the layout up to ``end``, and (where it is written,
    how many elements) of each storage."""

    start: int
    digest: bytes
    storages: tuple[Storage, ...]
    counts: tuple[tuple[int, int], ...]
    end: int
    note: str


def _head_of(read: ReadAt, frontier: int, work: int, limits: Limits) -> _Head:
    """Follow the pickles. Raises :class:`Malformed`, also where they are not wholly there."""
    if frontier > _LIKELY:
        try:
            return _followed(read(0, _LIKELY), work)
        except Malformed:
            pass  # they may be longer
    return _followed(read(0, min(frontier, limits.metadata_bytes)), work)


def _followed(data: bytes, work: int) -> _Head:
    at = 0
    for wanted in (_MAGIC, _VERSION, None):
        machine = Machine(data, at, _FIRST_MACHINE_WORK)
        found = machine.run()
        at = machine.end
        if wanted is not None and (type(found) is not int or found != wanted):
            raise Malformed("its version is unknown")
    contents = read_contents(data, at, must_end=False, work=work)
    if not contents.end:
        raise Malformed(str(contents.notes))
    machine = Machine(data, contents.end)
    keys = machine.run()
    if not isinstance(keys, list):
        raise Malformed("it has no list of storages")
    facts, notes = Facts(contents), Notes()
    notes.extend(contents.notes)
    storages = array_storages(0, facts, notes)
    counts = []
    end = machine.end
    for node in keys:
        key = text_of(node)
        fact = contents.storages.get(key) if key is not None else None
        if key is None or fact is None:
            raise Malformed("it has a storage that no pickle speaks of")
        counts.append((end, fact.count))
        storages.append(storage_of(key, end + _COUNT_SIZE, fact.nbytes, facts, notes))
        end += _COUNT_SIZE + fact.nbytes
    for key in contents.storages.keys() - {text_of(node) for node in keys}:
        notes.add(f"storage {shown(key)} is missing")
    layout = Layout(FORMAT, tuple(distinct(storages)), end)
    problem = problem_of(layout)
    if problem:
        raise Malformed(problem)
    return _Head(machine.end, _digest(data[: machine.end]), layout.storages, tuple(counts), end, str(notes))


def _checked(head: _Head, read: ReadAt, size: int) -> Layout:
    """The layout of a complete file. Raises :class:`Malformed`."""
    if size < head.end:
        raise Malformed("it is cut off")
    _counted(head, read, size)
    note = head.note
    if size > head.end:
        note = "; ".join(filter(None, (note, "bytes follow its last storage")))
    return Layout(FORMAT, head.storages, size, True, note)


def _counted(head: _Head, read: ReadAt, frontier: int) -> bool:
    """Has each storage as many elements as the pickle says? Raises :class:`Malformed` if not."""
    for at, count in head.counts:
        if at + _COUNT_SIZE > frontier or int.from_bytes(read(at, _COUNT_SIZE), "little") != count:
            raise Malformed("a storage does not have the size its pickle says")
    return True


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=32).digest()
