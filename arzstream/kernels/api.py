"""The kernels as the codecs see them: arguments are checked here, and the backend is picked here.

``ARZ_KERNELS`` is ``auto`` (default: native where it was built), ``native`` (an error where it was not) or ``numpy``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from arzstream.kernels import numpy_planes

__all__ = ["backend", "cpu_features", "merge_planes", "native_error", "split_planes"]

U8 = NDArray[np.uint8]


def backend() -> str:
    """``"native"`` or ``"numpy"``."""
    return "numpy"


def native_error() -> str | None:
    """Why the native kernels are not used, or None if they are."""
    return "the native kernels were not built"


def cpu_features() -> list[str]:
    """Instruction sets of this machine that the native kernels can use, best last."""
    return []


def split_planes(data: memoryview, stride: int) -> U8:
    """Byte planes of ``data``, one after the other."""
    source = np.frombuffer(data, np.uint8)
    if stride < 1 or len(source) % stride:
        raise ValueError(f"{len(source)} bytes do not make {stride} planes")
    planes = np.empty(len(source), np.uint8)
    numpy_planes.split_planes(source, stride, planes)
    return planes


def merge_planes(planes: U8, stride: int, out: memoryview) -> None:
    """Undo :func:`split_planes` into ``out``, of the same length."""
    target = np.frombuffer(out, np.uint8)
    if stride < 1 or len(target) % stride or len(planes) != len(target):
        raise ValueError(f"{len(planes)} bytes of {stride} planes do not make {len(target)} bytes")
    numpy_planes.merge_planes(planes, stride, target)
