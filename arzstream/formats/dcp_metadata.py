"""The ``.metadata`` of torch.distributed.checkpoint: which item of which file is which tensor, or which block of one.

It is a pickle of dataclasses (torch/distributed/checkpoint/metadata.py and filesystem.py of torch 2.13):
``Metadata.state_dict_metadata`` maps names to ``TensorStorageMetadata`` (global size, and chunks with offsets and
sizes) or ``BytesStorageMetadata``; ``Metadata.storage_data`` maps ``MetadataIndex`` (name, offset) to ``_StorageInfo``
(file, offset, length). It is followed and not run; what of it is not understood is left out. Subclasses and other
classes with these attributes, as Megatron-LM has them, serve as well.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from arzstream.codec.parts import Part
from arzstream.formats.base import MAX_BYTES, Malformed
from arzstream.formats.pickle_data import attributes, name_of, numbers, pairs
from arzstream.formats.pickle_walk import Machine

__all__ = ["Item", "read_metadata"]

MAX_WORK = 16_000_000
"""About 250,000 blocks of tensors."""
KEPT = 2


class Item(NamedTuple):
    """``length`` bytes from ``offset`` on of a file: what ``torch.save`` writes of a tensor or of an object.

    ``shape`` is None for an object. ``part``: the tensor is a block of a larger one. ``plain``: the bytes are as
    ``torch.save`` wrote them, and not compressed or otherwise changed on the way.
    """

    offset: int
    length: int
    name: str
    shape: tuple[int, ...] | None = None
    part: Part | None = None
    plain: bool = True

    @property
    def end(self) -> int:
        return self.offset + self.length


@functools.lru_cache(KEPT)
def read_metadata(data: bytes) -> dict[str, tuple[Item, ...]]:
    """The items of each file, by its path relative to the ``.metadata``, in order of their offsets; no two overlap.

    Raises :class:`Malformed` if ``data`` is no such pickle.
    """
    root = attributes(Machine(data, max_work=MAX_WORK).run())
    tensors = {name: attributes(node) for name, node in pairs(root.get("state_dict_metadata")) if isinstance(name, str)}
    stored = pairs(root.get("storage_data"))
    if not stored:
        raise Malformed("it does not say where anything is stored")
    chunks: dict[str, dict[tuple[int, ...], tuple[int, ...]]] = {}
    found: dict[str, list[Item]] = {}
    for key, value in stored:
        file, item = _item(attributes(key), attributes(value), tensors, chunks)
        if item is not None:
            found.setdefault(file, []).append(item)
    return {file: _apart(items) for file, items in found.items()}


def _item(
    index: dict[str, Any],
    info: dict[str, Any],
    tensors: dict[str, dict[str, Any]],
    chunks: dict[str, dict[tuple[int, ...], tuple[int, ...]]],
) -> tuple[str, Item | None]:
    name, file = index.get("fqn"), info.get("relative_path")
    offset, length = info.get("offset"), info.get("length")
    if not isinstance(name, str) or not isinstance(file, str):
        return "", None
    if type(offset) is not int or type(length) is not int or not 0 <= offset <= offset + length <= MAX_BYTES:
        return "", None
    plain = not info.get("transform_descriptors")
    size = numbers(tensors.get(name, {}).get("size"))
    if size is None:
        return file, Item(offset, length, name, plain=plain)
    if name not in chunks:
        chunks[name] = _chunks(tensors[name].get("chunks"))
    place = numbers(index.get("offset"))
    if place is None:
        place = (0,) * len(size)
    shape = chunks[name].get(place)
    if shape is None or len(shape) != len(size):
        return file, Item(offset, length, name, plain=plain)
    return file, Item(offset, length, name, shape, None if shape == size else Part(size, place), plain)


def _chunks(node: Any) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Offsets of the blocks of a tensor → their sizes."""
    found = {}
    for chunk in node if isinstance(node, list) else ():
        known = attributes(chunk) if name_of(chunk) else {}
        offsets, sizes = numbers(known.get("offsets")), numbers(known.get("sizes"))
        if offsets is not None and sizes is not None and len(offsets) == len(sizes):
            found[offsets] = sizes
    return found


def _apart(items: list[Item]) -> tuple[Item, ...]:
    """In order; of those that overlap the first."""
    found: list[Item] = []
    for item in sorted(items, key=lambda item: (item.offset, item.length)):
        if not found or item.offset >= found[-1].end:
            found.append(item)
    return tuple(found)
