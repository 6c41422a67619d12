"""One model of codec 8 for many chunks: learned from some of them, before any is coded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from arzstream.codec.base import ChunkContext
from arzstream.codec.delta_ctx import TOP_BITS, elements_of, look, origin_of, scales_of, top_bits
from arzstream.codec.delta_learning import MAX_LEAVES, Changes, learn

__all__ = ["LEAST", "MOST", "learn_shared"]

LEAST, MOST = 1 << 17, 1 << 21
"""Elements below which a model of a chunk's own does as well, about, and how many are learned from."""
ELEMENTS_OF_LEAF = 4096
"""A leaf of the tree for so many elements, at most."""


def learn_shared(chunks: Sequence[tuple[memoryview, ChunkContext]], references: int) -> bytes | None:
    """The payload of a MODEL frame for chunks of one dtype like these, each with its context, with so many references.

    None if there is too little to learn from, or nothing changed.
    """
    usable = [(data, ctx) for data, ctx in chunks if len(ctx.references) >= references and data != ctx.references[0]]
    kind = elements_of(usable[0][1]) if usable else None
    if kind is None or sum(len(data) for data, _ in usable) < LEAST * kind.itemsize:
        return None
    top = top_bits(kind, TOP_BITS)
    scales = [scales_of(data, ctx) for data, ctx in usable]
    origin = int(np.median([origin_of(ctx, its) for (_, ctx), its in zip(usable, scales, strict=True)]))
    looked = [look(data, ctx, its, references, top, origin) for (data, ctx), its in zip(usable, scales, strict=True)]
    parts = [(cells, symbols) for found in looked if found is not None for _, symbols, cells in [found]]
    if not parts:
        return None
    leaves = sum(len(symbols) for _, symbols in parts) // ELEMENTS_OF_LEAF
    return learn(Changes.of(references, parts), top, origin, leaves=max(1, min(leaves, MAX_LEAVES))).stored
