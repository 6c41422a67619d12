"""Small tensors of several layers in one unit.

What a layer has in small tensors of one type may be so little that a unit of its own would double it: a frame, an entry
in the chunk table, a digest, and the tables of the codec come to half a kilobyte or more. Layers that follow each other
then share a unit, which stands with the first of them. Whoever reads one layer decodes at most :data:`FULL_BYTES` and
what a last layer adds for nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from arzstream.archive.plan import SMALL_BYTES, Planned, shared_unit, units_of
from arzstream.formats.base import Storage
from arzstream.formats.order import layer_key, layer_of

__all__ = ["plan_units"]

LITTLE_BYTES = 32 << 10
"""A layer with less than this in small storages of a type shares their unit: what that costs is 2 % of it."""
FULL_BYTES = SMALL_BYTES
"""A unit that has so much takes no further layer."""

_Group = tuple[str, list[Storage]]
_Unit = tuple[Planned, Sequence[Storage]]


def plan_units(by_layer: Mapping[str, Sequence[Storage]], parallel: int = 1) -> Iterator[tuple[str, list[_Unit]]]:
    """Layers in order, each with its units and the storages that these hold, one after the other. A layer is complete
    with the last of its units, or before."""
    shared = _shared(by_layer)
    taken = {storage for units in shared.values() for _, storages in units for storage in storages}
    for layer in sorted(by_layer, key=layer_key):
        own = [storage for storage in by_layer[layer] if storage not in taken]
        yield layer, [*shared.get(layer, ()), *units_of(own, layer, parallel)]


def _shared(by_layer: Mapping[str, Sequence[Storage]]) -> dict[str, list[_Unit]]:
    """The units that several of these layers share, each under its first layer. No unit is shared between layers and
    what comes before or after all of them, or by weights and optimiser state."""
    shared: dict[str, list[_Unit]] = {}
    open_groups: dict[tuple[int, str], list[_Group]] = {}

    def close(groups: list[_Group]) -> None:
        if len(groups) > 1:
            # In file order, in which the source is compared with what was coded.
            storages = sorted((s for _, group in groups for s in group), key=lambda storage: storage.offset)
            first = groups[0][0]
            planned = shared_unit(storages, first)
            members = sorted(planned.unit.members, key=lambda member: layer_key(layer_of(member.whole or "")))
            planned.unit = dataclasses.replace(planned.unit, members=tuple(members))
            shared.setdefault(first, []).append((planned, storages))

    for layer in sorted(by_layer, key=layer_key):
        for dtype, group in _small(by_layer[layer]).items():
            key = layer_key(layer)[0], dtype
            groups = open_groups.setdefault(key, [])
            groups.append((layer, group))
            if sum(storage.nbytes for _, group in groups for storage in group) >= FULL_BYTES:
                close(open_groups.pop(key))
    for groups in open_groups.values():
        close(groups)
    return shared


def _small(storages: Sequence[Storage]) -> dict[str, list[Storage]]:
    """A layer's small storages by type, of types of which there is little."""
    found: dict[str, list[Storage]] = {}
    for storage in storages:
        if storage.nbytes < SMALL_BYTES:
            found.setdefault(storage.dtype, []).append(storage)
    return {dtype: group for dtype, group in found.items() if sum(s.nbytes for s in group) < LITTLE_BYTES}
