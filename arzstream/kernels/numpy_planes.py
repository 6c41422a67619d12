"""NumPy reference of the byte planes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["merge_planes", "split_planes"]

U8 = NDArray[np.uint8]


def split_planes(data: U8, stride: int, planes: U8) -> None:
    """``planes``: bytes 0, stride, 2·stride, … of ``data``, then bytes 1, stride + 1, … and so on."""
    planes.reshape(stride, -1)[...] = data.reshape(-1, stride).T


def merge_planes(planes: U8, stride: int, out: U8) -> None:
    """Undo :func:`split_planes`."""
    out.reshape(-1, stride)[...] = planes.reshape(stride, -1).T
