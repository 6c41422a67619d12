"""What codec 8 would make of a chunk, by a sample: so that it need not be coded to be compared."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from arzstream.codec import tables
from arzstream.codec.base import ChunkContext
from arzstream.codec.cell_classes import sampled_bits
from arzstream.codec.delta_ctx import EXCEPTIONS, OWN_TOP_BITS, elements_of, look, origin_of, scales_of, top_bits
from arzstream.codec.delta_model import Model, nearest
from arzstream.codec.optim_fit import log_cost
from arzstream.codec.scales import rice_parameters
from arzstream.kernels import api, delta

__all__ = ["estimate_delta", "fewest_bits"]

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]

SAMPLE = 1 << 15
"""Elements of a sample, about: the same that codec 9 plans with, so that chance favours neither."""
FEW = 1 << 12
"""The same where logarithms are enough."""
EXCEPTION_BITS = 64
"""What an element takes for which a model has no frequency."""


def estimate_delta(data: memoryview, ctx: ChunkContext) -> int | None:
    """Bits of a payload of codec 8 for a chunk with references, about; None if it does not apply."""
    kind = elements_of(ctx)
    if kind is None or not len(data) or not ctx.references:
        return None
    some, few, step = _sample(data, ctx)
    shared = nearest(ctx.models, kind, len(ctx.references))
    bits = _with_model(some, few, step, shared[1]) if shared is not None else None
    if bits is None:
        bits = _alone(some, few, step, top_bits(kind, OWN_TOP_BITS))
    return None if bits is None else bits * len(data) // (len(some) * step)


def _with_model(some: memoryview, few: ChunkContext, step: int, model: Model) -> int | None:
    """Bits of ``step`` times some rows; None if the model has no frequency for too many."""
    looked = look(some, few, scales_of(some, few), model.references, model.top, model.origin)
    if looked is None:
        return None
    rule, symbols, cells = looked
    places = model.class_of[cells].astype(np.intp) << 8 | symbols
    counts, freqs = np.bincount(places, minlength=model.freqs.size), model.freqs.reshape(-1)
    missing = freqs == 0
    exceptions = int(counts[missing].sum())
    if exceptions > len(symbols) // EXCEPTIONS + 1:
        return None
    counts[missing] = 0
    coded = tables.cost(counts, np.maximum(freqs, 1)) // tables.COST_UNIT + exceptions * EXCEPTION_BITS
    return step * (coded + _raw_bits(symbols, model.top)) + _side_bits(rule, step)


def _alone(some: memoryview, few: ChunkContext, step: int, top: int) -> int | None:
    """The same with a model of the chunk's own."""
    scales = scales_of(some, few)
    looked = look(some, few, scales, min(2, len(few.references)), top, origin_of(few, scales))
    if looked is None:
        return None
    rule, symbols, cells = looked
    return sampled_bits(symbols, _merged(cells), step) + step * _raw_bits(symbols, top) + _side_bits(rule, step)


def _raw_bits(symbols: U8, top: int) -> int:
    octaves = np.maximum((np.arange(256) >> 1 >> top) - 1, 0)
    return int(api.histogram(symbols).astype(np.int64) @ octaves)


def _side_bits(rule: delta.Rule, step: int) -> int:
    """Of scales of rows, ``step`` times as many, and of columns."""
    sides = ((rule.rows, step), (rule.cols, 1))
    return sum(repeated * rice_parameters(side)[2] for side, repeated in sides if len(side))


def fewest_bits(data: memoryview, parent: memoryview) -> int:
    """What differences of fp32 to a parent take at least, about: their logarithms, by a few of them. Which octave and
    direction it is comes on top, about three bits where most changed."""
    step = max(1, len(data) // 4 // FEW)
    new, old = (np.ascontiguousarray(np.frombuffer(x, "<u4")[::step]).view(np.uint8) for x in (data, parent))
    return log_cost(new, old) * len(data) // len(new) >> 8


def _sample(data: memoryview, ctx: ChunkContext) -> tuple[memoryview, ChunkContext, int]:
    """(some rows, their context, one in how many they are)."""
    step = max(1, ctx.rows * ctx.cols // SAMPLE)
    if ctx.rows < 4 * step or ctx.rows * ctx.cols * ctx.dtype.itemsize != len(data):
        return data, ctx, 1

    def part(of: memoryview) -> memoryview:
        rows = np.frombuffer(of, np.uint8).reshape(ctx.rows, -1)
        return memoryview(rows[::step].tobytes())

    references = tuple(part(memoryview(reference)) for reference in ctx.references)
    return part(data), dataclasses.replace(ctx, rows=-(-ctx.rows // step), references=references), step


def _merged(cells: U16) -> U16:
    """Cells without the parent's mantissa, which tells least."""
    sizes, before = delta.SCALE_BITS, delta.SCALE_BITS + delta.MANTISSA_BITS
    merged: U16 = cells & np.uint16((1 << sizes) - 1) | cells >> np.uint16(before) << np.uint16(sizes)
    return merged
