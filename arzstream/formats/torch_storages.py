"""From what a pickle says to storages of a file and the tensors that are views of them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from arzstream.codec.dtypes import DTYPES
from arzstream.formats.base import Notes, Storage, View, contiguous_strides, shown, view_problem
from arzstream.formats.torch_facts import ArrayFact, TensorFact
from arzstream.formats.torch_pickle import Contents

__all__ = ["Facts", "array_storages", "distinct", "plain_strides", "storage_of"]


class Facts:
    """The contents of a pickle, with its tensors by storage."""

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self.tensors: dict[str, list[TensorFact]] = defaultdict(list)
        for tensor in contents.tensors:
            self.tensors[tensor.key].append(tensor)


def storage_of(
    key: str, start: int, nbytes: int, facts: Facts, notes: Notes, prefix: str = "", *, big_endian: bool = False
) -> Storage:
    """The storage ``key``, ``nbytes`` from ``start`` of the file on, with its views; their names begin with
    ``prefix``. Numbers of several bytes that are big-endian are kept as bytes."""
    fact = facts.contents.storages.get(key)
    tensors = facts.tensors.get(key, [])
    if fact is None or fact.nbytes != nbytes:
        if fact is not None:
            notes.add(f"storage {shown(key)} does not have the size its pickle says")
        return Storage("U8", start, nbytes)
    dtype = fact.dtype or _common_dtype(tensors)
    itemsize = DTYPES[dtype].itemsize
    if big_endian and itemsize > 1:
        notes.add("its numbers are big-endian; they are kept as bytes")
        return Storage("U8", start, nbytes)
    if nbytes % itemsize:
        dtype, itemsize = "U8", 1
    views = []
    for tensor in tensors:
        view = View(prefix + tensor.name, tensor.shape, tensor.start, plain_strides(tensor.shape, tensor.strides))
        problem = view_problem(view, nbytes // itemsize)
        if (tensor.dtype or fact.dtype) != dtype:
            problem = f"its storage holds {dtype}"
        if problem:
            notes.add(f"{shown(tensor.name)} is not named: {problem}")
        else:
            views.append(view)
    return Storage(dtype, start, nbytes, tuple(views))


def _common_dtype(tensors: list[TensorFact]) -> str:
    """The dtype that most tensors on a storage without a type give it; of equals the first."""
    votes: dict[str, int] = {}
    for tensor in tensors:
        if tensor.dtype:
            votes[tensor.dtype] = votes.get(tensor.dtype, 0) + 1
    return max(votes, key=lambda dtype: votes[dtype]) if votes else "U8"


def plain_strides(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...] | None:
    """None if the elements lie in row-major order without gaps; strides of dimensions of one element do not matter."""
    if 0 in shape:
        return None
    if len(strides) == len(shape):
        plain = contiguous_strides(shape)
        if all(d == 1 or have == want for d, have, want in zip(shape, strides, plain, strict=True)):
            return None
        # Strides of single-element dimensions are arbitrary, negative ones too; they would only trip readers.
        return tuple(0 if d == 1 else have for d, have in zip(shape, strides, strict=True))
    return strides


def distinct(storages: list[Storage]) -> list[Storage]:
    """Storages whose views have names of their own: where one appears again, ``#2`` and so on is appended."""
    taken: set[str] = set()
    used: dict[str, int] = {}  # up to which number a name has appeared: it may do so very often
    found = []
    for storage in storages:
        views = []
        for view in storage.views:
            name = view.name
            while name in taken:
                used[view.name] = times = used.get(view.name, 1) + 1
                name = f"{view.name}#{times}"
            taken.add(name)
            views.append(view if name == view.name else replace(view, name=name))
        found.append(replace(storage, views=tuple(views)))
    return found


def array_storages(start: int, facts: Facts, notes: Notes, prefix: str = "") -> list[Storage]:
    """NumPy's arrays in a pickle that begins at ``start`` of the file, by place."""
    by_place: dict[tuple[int, int, str], list[ArrayFact]] = defaultdict(list)
    for array in facts.contents.arrays:
        by_place[array.at, array.nbytes, array.dtype].append(array)
    found: list[Storage] = []
    for (at, nbytes, dtype), arrays in sorted(by_place.items()):
        if found and start + at < found[-1].end:
            notes.add(f"{shown(arrays[0].name)} is not named: its bytes hold elements of another type")
            continue
        views = tuple(View(prefix + array.name, array.shape, 0, array.strides) for array in arrays)
        found.append(Storage(dtype, start + at, nbytes, views))
    return found
