"""Safetensors files that torch.distributed.checkpoint writes, one per rank: tensors, or blocks of tensors.

The ``__metadata__`` of each says under ``DCP_SHARDING_INFO`` at which offsets its tensors lie in the whole ones
(torch/distributed/checkpoint/_hf_utils.py and hf_storage.py of torch 2.13). How large these are is what the files of
all ranks together tell, as torch itself takes it to be when it loads them.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Hashable, Iterator
from dataclasses import replace
from typing import Any

from arzstream.codec.parts import Part, part_name
from arzstream.formats.base import Layout, Malformed, ReadAt, Storage, View, problem_of
from arzstream.formats.beside import NOTHING, Beside, folder_of
from arzstream.formats.safetensors import SafetensorsParser, parse_header
from arzstream.limits import DEFAULT_LIMITS, Limits

__all__ = ["ShardedSafetensorsParser"]

INFO = "DCP_SHARDING_INFO"
SUFFIX = b".safetensors"

Extents = dict[str, tuple[int, ...]]
"""Where a file's blocks of tensors end, along each dimension of the whole."""

_known: weakref.WeakKeyDictionary[Beside, dict[bytes, tuple[Hashable, Extents]]] = weakref.WeakKeyDictionary()
"""What was read of the files of a checkpoint: each of its parsers looks at all of them."""


class ShardedSafetensorsParser:
    """A :class:`SafetensorsParser` that knows which tensors are parts."""

    def __init__(self, path: bytes, beside: Beside = NOTHING, limits: Limits = DEFAULT_LIMITS) -> None:
        self._path, self._beside, self._limits = path, beside, limits
        self._plain = SafetensorsParser(limits)

    def update(self, read: ReadAt, frontier: int, final: bool) -> Layout:
        layout = self._plain.update(read, frontier, final)
        offsets = _offsets(layout.metadata)
        if not offsets or not layout.storages:
            return layout
        whole, alone = _extents(layout, offsets), True
        for path in self._beside.paths():
            if path != self._path and path.endswith(SUFFIX) and folder_of(path) == folder_of(self._path):
                others = self._others(path)
                alone = alone and not others
                for name, ends in others.items():
                    if len(whole.get(name, ())) == len(ends):
                        whole[name] = tuple(map(max, whole[name], ends))
        if alone and not final and self._beside is not NOTHING:
            return replace(layout, storages=(), size=None)  # which tensors are parts, the next rank's file will tell
        storages = tuple(
            Storage(s.dtype, s.offset, s.nbytes, tuple(_placed(view, offsets, whole) for view in s.views))
            for s in layout.storages
        )
        placed = replace(layout, storages=storages)
        return layout if problem_of(placed) else placed

    def _others(self, path: bytes) -> Extents:
        """What the header of another file says; nothing while it is not there."""
        version = self._beside.version(path)
        held = _known.setdefault(self._beside, {})
        if path not in held or held[path][0] != version:
            held[path] = version, self._header(path)
        return held[path][1]

    def _header(self, path: bytes) -> Extents:
        start = self._beside.read(path, 0, 8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > self._limits.metadata_bytes:
            return {}
        header = self._beside.read(path, 8, length)
        try:
            layout = parse_header(header, self._limits) if len(header) == length else Layout("")
        except Malformed:
            return {}
        return _extents(layout, _offsets(layout.metadata))


def _offsets(metadata: dict[str, str]) -> Extents:
    """Where each tensor of a file begins in the whole one; nothing if the file does not say."""
    try:
        info: Any = json.loads(metadata.get(INFO, "{}"))
    except (ValueError, RecursionError):
        return {}
    found = {}
    for name, value in info.items() if isinstance(info, dict) else ():
        place = value.get("saved_offsets") if isinstance(value, dict) else None
        if isinstance(place, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in place):
            found[name] = tuple(place)
    return found


def _views(layout: Layout, offsets: Extents) -> Iterator[tuple[View, tuple[int, ...]]]:
    for storage in layout.storages:
        for view in storage.views:
            place = offsets.get(view.name)
            if place is not None and len(place) == len(view.shape):
                yield view, place


def _extents(layout: Layout, offsets: Extents) -> Extents:
    return {v.name: tuple(o + n for o, n in zip(place, v.shape, strict=True)) for v, place in _views(layout, offsets)}


def _placed(view: View, offsets: Extents, whole: Extents) -> View:
    place, shape = offsets.get(view.name), whole.get(view.name)
    if place is None or shape is None or len(place) != len(view.shape) or shape == view.shape:
        return view
    return replace(view, name=part_name(view.name, place, view.shape), part=Part(shape, place))
