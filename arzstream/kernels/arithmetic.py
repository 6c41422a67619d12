"""Whether native kernels calculate as IEEE 754 says: a build that does not would write what no other machine reads.

``optim_predict`` is the only floating-point arithmetic that decoders do. Options of a compiler (``-ffast-math``), or
registers wider than the numbers, change a result in a few of a billion; these are such, one unit from where it shows.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

__all__ = ["exact"]

COUNT = 37
"""Elements that are predicted at once: enough for the longest vectors, and some that are left over."""
_CASES = (
    ((0x3F9132D9, 0x3F800000, 0x00000000), (1.2550791086986517, -0.42371680886397123, 1.0), 0x3F800000),
    ((0x3FD36766, 0x3F800000, 0x00000000), (0.8442526100464705, -0.3943616159631117, 1.0), 0x3F800000),
    ((0x3FEAFA5A, 0x3F800000, 0x00000000), (0.6626030304581324, -0.21638335513859241, 1.0), 0x3F800002),
    ((0x3FB90273, 0x3F800000, 0x00000000), (0.941457053538926, -0.36076983735645707, 1.0), 0x3F800002),
    ((0x3A800000, 0x3D308882, 0x3960D265), (-343.90737828173417, 0.4538473755263598, 1e-08), 0x3F800000),
    ((0x3A800000, 0x3CE047B0, 0x3A2EB286), (-173.33365793402766, 1.1025239059875422, 1e-08), 0x3F800002),
)
"""(parent, moment, square), factors, prediction: each shows, in the last place of its binary32, another way of
calculating the same: operations that are fused, reordered or approximated, or numbers that are wider."""


@functools.cache
def exact(native: Any) -> bool:
    """Do all instruction sets of the module ``native`` predict these? It sets each: call it before
    one is chosen."""
    out = np.empty(COUNT, "<u4")
    for isa in native.isas():
        native.set_isa(isa)
        for numbers, factors, expected in _CASES:
            known = (np.full(COUNT, number, "<u4").view(np.uint8) for number in numbers)
            native.optim_predict(*known, np.array(factors), out.view(np.uint8))
            if (out != expected).any():
                return False
    return True
