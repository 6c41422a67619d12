"""The kernels of records in NumPy, the reference for the native ones. Layouts: spec/registry.md, section 6.

Functions, arguments and results are those of the native module; ``records.py`` has checked sizes and dtypes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["put_part", "record_classes", "scale_codes", "take_part"]

U8 = NDArray[np.uint8]
I8 = NDArray[np.int8]
I32 = NDArray[np.int32]
F32 = NDArray[np.float32]


def take_part(data: U8, record: int, at: int, length: int, out: U8) -> None:
    """``length`` bytes from ``at`` on of each record of ``record`` bytes."""
    out.reshape(-1, length)[...] = data.reshape(-1, record)[:, at : at + length]


def put_part(part: U8, record: int, at: int, length: int, data: U8) -> None:
    """Undo :func:`take_part`."""
    data.reshape(-1, record)[:, at : at + length] = part.reshape(-1, length)


def field(records: U8, offset: int) -> I32:
    """Two bytes of each record, without bit 15; ``records``: shape (records, bytes)."""
    low, high = records[:, offset].astype(np.int32), records[:, offset + 1].astype(np.int32)
    return low | (high & 0x7F) << 8


def below_mean(u: I32, row: int) -> I32:
    """How far each of ``u`` is below the mean, rounded down, of its row of ``row``."""
    starts = np.arange(0, len(u), row)
    counts = np.diff(starts, append=len(u))
    mean = np.add.reduceat(u.astype(np.int64), starts) // counts
    return np.repeat(mean.astype(np.int32), counts) - u


def record_classes(
    data: U8,
    record: int,
    row: int,
    length: int,
    z_classes: int,
    e_classes: int,
    numerator: int,
    denominator: int,
    scale: int,
    z_shift: int,
    e_shift: int,
    z_base: int,
    e_base: int,
    cols: U8,
    out: U8,
) -> None:
    records = data.reshape(-1, record)
    n = len(records)
    k, e = np.zeros(n, np.int32), np.full(n, e_base, np.int32)
    if numerator >= 0:
        z = field(records, numerator) >> z_shift
        if denominator >= 0:
            z -= field(records, denominator) >> z_shift
        k = np.clip(z - z_base, 0, z_classes - 1) * e_classes
    if scale >= 0:
        e += below_mean(field(records, scale) >> e_shift, row)
    classes = out.reshape(n, length)
    if not len(cols):
        classes[...] = (k + np.clip(e, 0, e_classes - 1))[:, None]
        return
    width = len(cols) // length
    columns = np.tile(cols.reshape(width, length), (-(-n // width), 1))[:n].astype(np.int32)
    classes[...] = k[:, None] + np.clip(e[:, None] + columns, 0, e_classes - 1)


def scale_codes(codes: I8, group: int, scales: F32, minus_zero: bool, kind: int, out: U8) -> None:
    """Codes times the scale of their group, rounded to binary32, bfloat16 or binary16 (kinds 0, 1, 2)."""
    with np.errstate(all="ignore"):
        product = codes.astype(np.float32) * np.repeat(scales, group)[: len(codes)]
        bits = product.view(np.uint32)
        if kind == 1:
            bits = (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)
        elif kind == 2:
            bits = product.astype(np.float16).view(np.uint16)
    if minus_zero:
        bits[codes == -128] = 1 << (8 * bits.itemsize - 1)
    out[...] = bits.view(np.uint8)
