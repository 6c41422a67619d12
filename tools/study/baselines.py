"""What needs no training: entropies at order 0, XOR as others do it, tables under contexts made by hand, the codec."""

from __future__ import annotations

import time

import numpy as np
import zstandard
from numpy.typing import NDArray

from tools.study.checkpoints import Run
from tools.study.payloads import Total, chunks
from tools.study.sample import Sample
from tools.study.scores import Result, Tables

__all__ = ["alone", "codec", "hand_made", "xor"]

I64 = NDArray[np.int64]
SCALES, SIZES = 64, 7
"""Cells of scales, a quarter of an octave each, and sizes of the change before, an octave each, in either direction."""


def _entropy(counts: NDArray[np.number]) -> float:
    """Bits of all that was counted."""
    some = counts[counts > 0]
    return float(-(some * np.log2(some / some.sum())).sum())


def alone(run: Run) -> Result:
    """The newest checkpoint without the others: entropy of the exponents, all tensors together."""
    counts, rest = np.zeros(256), 0
    for m in run.matrices:
        assert m.dtype.float_bits
        counts += np.bincount(m.exponents(0).ravel(), minlength=256)
        rest += (8 * m.dtype.itemsize - m.dtype.float_bits[0]) * m.rows * m.cols
    return Result("alone: exponents at order 0", (_entropy(counts) + rest) / run.weights)


def xor(run: Run) -> list[Result]:
    """XOR with the parent in byte planes: zstd -3 of each tensor's, and the entropy of all tensors' together."""
    packer, unpacker = zstandard.ZstdCompressor(3), zstandard.ZstdDecompressor()
    packed, seconds, counts = 0, 0.0, np.zeros((4, 256))
    for m in run.matrices:
        changed = (m.words(0) ^ m.words(1)).reshape(-1, 1).view(np.uint8)
        for plane in range(m.dtype.itemsize):
            data = np.ascontiguousarray(changed[:, plane])
            counts[plane] += np.bincount(data, minlength=256)
            squeezed = packer.compress(data.tobytes())
            packed += len(squeezed)
            began = time.process_time()
            unpacker.decompress(squeezed)
            seconds += time.process_time() - began
    return [
        Result("XOR, byte planes, zstd -3", 8 * packed / run.weights, decoding=1e9 * seconds / run.weights, how="zstd"),
        Result("XOR, byte planes, order 0", sum(_entropy(c) for c in counts) / run.weights),
    ]


def contexts(sample: Sample) -> tuple[I64, I64]:
    """Cells of scales, and of the change before: as registry.md section 8 has them, but one cell for each."""
    at = {name: sample.inputs[..., i] for i, name in enumerate(sample.names)}
    scale = np.clip(np.round(4 * at["scale"]) + SCALES // 3, 0, SCALES - 1)
    size = np.clip(np.round(at["step 1"] - at["scale"]) + SIZES // 2, 0, SIZES - 1)
    step = np.where(at["sign"] == 0, 0, 1 + size + SIZES * (at["sign"] < 0))
    return scale.astype(np.int64), step.astype(np.int64)


def hand_made(run: Run, sample: Sample) -> list[Result]:
    """Tables of tokens under contexts made by hand, one set for all tensors."""
    results = []

    def add(title: str, context: I64, n: int, scales: bool, prior: NDArray[np.float64] | None = None) -> Tables:
        began = time.process_time()
        tables = Tables.learned(sample.learned(context), sample.learned(sample.plain), n, sample.alphabet, prior)
        seconds = time.process_time() - began
        bits = tables.bits(sample.scored(context), sample.scored(sample.plain))
        side = sample.scale_bits if scales else 0.0
        results.append(Result(title, bits, side, 8 * tables.bytes / run.weights, seconds))
        return tables

    scale, step = contexts(sample)
    steps = 2 * SIZES + 1
    add("tokens at order 0", np.zeros_like(scale), 1, False)
    add("given the parent's exponent", sample.exponents, 256, False)
    of_scale = add("given the scale in units of the last place", scale, SCALES, True)
    prior = of_scale.probabilities.repeat(steps, axis=0)
    add("the same and the change before", scale * steps + step, SCALES * steps, True, prior)
    return results


def codec(run: Run, profile: str) -> Result:
    """The project's own codec given parent and grandparent, every tensor, everything included; it is decoded, too."""
    total = Total()
    for m in run.matrices:
        for context, data in chunks([v.reshape(m.rows, m.cols) for v in m.values[:3]]):
            total.add(context, data, profile)
    title = f"the codec as it stands, profile {profile}"
    each = 1e9 / run.weights
    return Result(
        title,
        8 * total.packed / run.weights,
        0.0,
        0.0,
        total.encoding,
        total.decoding * each,
        "native, bytes to weights",
    )
