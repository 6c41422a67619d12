"""Blocks of larger tensors: what a rank of a distributed job writes of a tensor, and how such a block is called.

A part's name is the whole tensor's, and where along each dimension the part lies: ``layers.0.w[0:128,64:96]`` (ARZ-1
section 5.1). So several parts of one tensor in one file have different names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = ["Box", "Part", "part_name", "split_name", "tiles_whole", "whole_name"]

MOST_CUTS = 8
"""Dimensions along which a tensor may be cut, at most: what a set of parts is checked by doubles with each."""

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""(offset, shape) of a block."""


class Part(NamedTuple):
    """The block at ``offset`` of a tensor of ``shape``."""

    shape: tuple[int, ...]
    offset: tuple[int, ...]


def part_name(whole: str, offset: Sequence[int], shape: Sequence[int]) -> str:
    """What the block of ``shape`` at ``offset`` of the tensor ``whole`` is called."""
    return whole + _ending(offset, shape)


def whole_name(name: str, offset: Sequence[int], shape: Sequence[int]) -> str:
    """The whole tensor's name, given that of its block of ``shape`` at ``offset``; other names are the whole's."""
    return name.removesuffix(_ending(offset, shape))


def split_name(name: str) -> tuple[str, str]:
    """``name`` without what looks like the place of a part at its end, and that."""
    at = name.rfind("[")
    inside = name[at + 1 : -1]
    if at <= 0 or not name.endswith("]") or not inside or inside.strip("0123456789:,"):
        return name, ""
    return name[:at], name[at:]


def _ending(offset: Sequence[int], shape: Sequence[int]) -> str:
    return "[" + ",".join(f"{o}:{o + n}" for o, n in zip(offset, shape, strict=True)) + "]"


def tiles_whole(whole: tuple[int, ...], boxes: Iterable[Box]) -> bool:
    """Do ``boxes`` (each inside ``whole``) cover every element of a tensor of this shape, and none twice?

    By their corners: give each the sign of its number of upper ends. Boxes cover a larger one exactly if their signed
    corners add up to those of the larger one, because the sum of their indicator functions has these as its mixed
    derivative. Linear in the number of boxes, whatever they look like. Boxes without elements (a rank's, where a
    dimension is cut into more ranks than it has rows) are neither here nor there; a whole without elements is not
    covered.
    """
    listed = [box for box in boxes if 0 not in box[1]]
    cut = [
        axis
        for axis, length in enumerate(whole)
        if any((offset[axis], shape[axis]) != (0, length) for offset, shape in listed)
    ]
    if len(cut) > MOST_CUTS or not listed:
        return False
    signs: dict[tuple[int, ...], int] = {}
    for offset, shape, sign in [*((*box, 1) for box in listed), ((0,) * len(whole), whole, -1)]:
        corners: list[tuple[tuple[int, ...], int]] = [((), sign)]
        for axis in cut:
            low, high = offset[axis], offset[axis] + shape[axis]
            corners = [((*c, end), s if end == low else -s) for c, s in corners for end in (low, high)]
        for corner, s in corners:
            signs[corner] = signs.get(corner, 0) + s
    return not any(signs.values())
