"""Which checkpoints belong to one training run, and which came before which.

A run is what one folder holds of one model: ``checkpoint-10``, ``checkpoint-20``, …, or one name that is written again
and again. Names give candidates and their order; tensors decide: a model with other names, dtypes or shapes is another
run, whatever it is called.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from arzstream.archive.references import Tensors
from arzstream.codec.dtypes import DTYPES
from arzstream.daemon.journal import Archive
from arzstream.formats.base import Layout

__all__ = ["candidates", "family", "folder_of", "same_run", "share", "signature", "step_of"]

ALIKE = 0.9
"""Share of the bytes of two checkpoints' tensors that must have the same name, dtype and shape in one run."""
NUMBER = re.compile(rb"\d+")
UNFINISHED = re.compile(
    rb"^\.?tmp[._-]|(?:[._-]tmp|\.temp|\.part(?:ial)?|\.incomplete|\.orbax-checkpoint-tmp(?:-\d+)?)$", re.IGNORECASE
)
"""What a name has until its writer renames it."""

Facts = Mapping[tuple[str, str, tuple[int, ...]], int]
"""(name, dtype, shape) of a tensor → its bytes."""


def folder_of(path: bytes) -> bytes:
    """The folder that a checkpoint lies in."""
    return os.path.dirname(path)


@functools.lru_cache(1 << 14)
def family(path: bytes) -> tuple[bytes, tuple[int, ...]]:
    """A checkpoint's name with its numbers taken out, and the numbers: ``epoch=1-step=20`` is (``epoch=#-step=#``,
    (1, 20))."""
    name = UNFINISHED.sub(b"", os.path.basename(path))
    return NUMBER.sub(b"#", name), tuple(int(digits[:18]) for digits in NUMBER.findall(name))


def step_of(path: bytes) -> int | None:
    """The step that a checkpoint's name counts: its last number."""
    numbers = family(path)[1]
    return numbers[-1] if numbers else None


Known = TypeVar("Known", bound=Archive)


def candidates(path: bytes, archives: Iterable[Known]) -> list[Known]:
    """Archives of the folder of ``path`` that it may be coded against, likeliest first.

    First those of the same name but for its numbers, if those are not higher; then the others. The newest come first:
    a run that was begun again counts from the start, and what it wrote last is nearest all the same.
    """
    name, numbers = family(path)
    found: list[tuple[bool, float, Known]] = []
    for archive in archives:
        if folder_of(archive.path) != folder_of(path):
            continue
        their_name, theirs = family(archive.path)
        if their_name != name:
            found.append((False, archive.published, archive))
        elif theirs <= numbers:
            found.append((True, archive.published, archive))
    return [archive for *_, archive in sorted(found, key=lambda item: item[:2], reverse=True)]


def same_run(layouts: Mapping[bytes, Layout], tensors: Tensors) -> bool:
    """Are the files with these layouts, as far as they are known, of the model that an archive's ``tensors`` are of?"""
    theirs: dict[tuple[str, str, tuple[int, ...]], int] = {}
    by_path: dict[bytes, Facts] = {}
    for number, record in enumerate(tensors.files):
        by_path[record.path] = held = dict(_held(tensors, number))
        theirs.update(held)
    if share(layouts, theirs) < ALIKE:
        return False
    lone = len(layouts) == 1 and len(by_path) == 1
    for path, layout in layouts.items():
        counterpart = next(iter(by_path.values())) if lone else by_path.get(path, {})
        if layout.size is not None and counterpart:  # all its tensors are known, so none of theirs may be missing
            ours, total = dict(_landing(layout)), sum(counterpart.values())
            if sum(nbytes for fact, nbytes in counterpart.items() if fact in ours) < ALIKE * total:
                return False
    return True


def share(layouts: Mapping[bytes, Layout], theirs: Facts) -> float:
    """The share of the bytes of named tensors that ``theirs`` has, too; 0 if there are none."""
    total = found = 0
    for layout in layouts.values():
        for fact, nbytes in _landing(layout):
            total += nbytes
            found += nbytes if fact in theirs else 0
    return found / total if total else 0.0


def held(tensors: Tensors) -> Facts:
    """All tensors of an archive."""
    return {fact: nbytes for number in range(len(tensors.files)) for fact, nbytes in _held(tensors, number)}


def signature(tensors: Tensors) -> str:
    """A short text that is the same for all checkpoints of one run: of names, dtypes and shapes."""
    digest = hashlib.blake2b(digest_size=16)
    for fact in sorted(held(tensors)):
        digest.update(repr(fact).encode())
    return digest.hexdigest()


def _held(tensors: Tensors, number: int) -> Iterator[tuple[tuple[str, str, tuple[int, ...]], int]]:
    for name, tensor in tensors.file(number).items():
        unit, member = tensor.entry.unit, tensor.member
        yield (name, unit.dtype, tuple(member.shape)), member.elements * unit.type.itemsize


def _landing(layout: Layout) -> Iterator[tuple[tuple[str, str, tuple[int, ...]], int]]:
    for storage in layout.storages:
        for view in storage.views:
            nbytes = math.prod(view.shape) * DTYPES[storage.dtype].itemsize
            yield (view.name, storage.dtype, tuple(view.shape)), nbytes
