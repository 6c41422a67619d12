"""Tables of bytes that are two codes of four bits: 16 frequencies instead of 256.

Both halves of a byte come from one distribution, independently, as far as anything to be gained is concerned; and
quantised tensors are too small to pay for tables of 256 entries under each of their contexts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from arzstream.codec.tables import U16
from arzstream.kernels.api import SLOTS

__all__ = ["expand", "halves"]

I64 = NDArray[np.int64]
_LOW, _HIGH = np.arange(256) & 15, np.arange(256) >> 4


def halves(counts: NDArray[np.integer]) -> I64:
    """Counts of the 16 codes from those of the bytes; shape (tables, 256) to (tables, 16)."""
    grid = counts.astype(np.int64).reshape(-1, 16, 16)
    sums: I64 = grid.sum(axis=1) + grid.sum(axis=2)
    return sums


def expand(codes: U16) -> U16:
    """Frequencies of the 256 bytes: those of their halves multiplied, but none below 1 (spec/registry.md, section 6).

    Shape (tables, 16), frequencies that sum to 4096, to (tables, 256); a table of zeros stays one.
    """
    f = codes.astype(np.int64)
    sums = np.cumsum(f[:, _LOW] * f[:, _HIGH], axis=1)
    starts = np.arange(1, 257) + sums * (SLOTS - 256) // SLOTS**2
    freqs: U16 = np.diff(starts, axis=1, prepend=0).astype(np.uint16) * (f.sum(axis=1, keepdims=True) > 0)
    return freqs
