"""The kernels of records as the codecs see them: arguments are checked here. See ``api.py``."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from arzstream.kernels.api import kernels

__all__ = ["FLOAT_KINDS", "Rule", "put_part", "record_classes", "scale_codes", "take_part"]

U8 = NDArray[np.uint8]
I8 = NDArray[np.int8]
F32 = NDArray[np.float32]
FLOAT_KINDS = ("F32", "BF16", "F16")
"""Types that codes can be scaled to."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """Class of a byte: clamp(z - z_base, 0, z_classes - 1) · e_classes + clamp(e + e_base, 0, e_classes - 1).

    z: the field at ``numerator``, less that at ``denominator`` if there is one, both shifted right by ``z_shift``.
    e: how far the field at ``scale``, shifted right by ``e_shift``, is below the mean of its row, and with ``columns``
    the scale of the byte's column. A field is the offset in the record of two bytes, bit 15 of which is left out.
    """

    z_classes: int = 1
    e_classes: int = 1
    numerator: int | None = None
    denominator: int | None = None
    scale: int | None = None
    columns: bool = False
    z_shift: int = 0
    e_shift: int = 0
    z_base: int = 0
    e_base: int = 0

    @property
    def classes(self) -> int:
        return self.z_classes * self.e_classes

    @property
    def fields(self) -> tuple[int, ...]:
        """Offsets of the fields that are needed."""
        return tuple(f for f in (self.numerator, self.denominator, self.scale) if f is not None)


def take_part(data: U8, record: int, at: int, length: int) -> U8:
    """Bytes ``at`` to ``at + length`` of each record of ``record`` bytes, one record after the other."""
    out = np.empty(len(data) // record * length, np.uint8)
    kernels().take_part(data, record, at, length, out)
    return out


def put_part(part: U8, record: int, at: int, length: int, data: U8) -> None:
    """Undo :func:`take_part` into ``data``."""
    kernels().put_part(part, record, at, length, data)


def record_classes(data: U8, record: int, row: int, length: int, rule: Rule, cols: U8) -> U8:
    """Classes of ``length`` bytes of each record, one record after the other. Of ``data`` only the fields are read.

    ``row``: records of a row; ``cols``: scales of the columns, min(row, records) · ``length`` of them, or none.
    Raises ValueError where the rule's fields are outside of the record.
    """
    if any(field + 2 > record for field in rule.fields):
        raise ValueError(f"fields at {rule.fields} in records of {record} bytes")
    out = np.empty(len(data) // record * length, np.uint8)
    places = (-1 if f is None else f for f in (rule.numerator, rule.denominator, rule.scale))
    numbers = (rule.z_classes, rule.e_classes, *places, rule.z_shift, rule.e_shift, rule.z_base, rule.e_base)
    kernels().record_classes(data, record, row, length, *numbers, cols, out)
    return out


def scale_codes(codes: I8, group: int, scales: F32, minus_zero: bool, dtype: str, out: U8) -> None:
    """Codes times the scale of their group of ``group`` elements, as elements of ``dtype``, to ``out``.

    The product is one of binary32, rounded to ``dtype`` (F32, BF16, F16), both times to nearest, ties to even.
    ``scales``: none, or none but zeros and normal numbers, of one sign; ``minus_zero``: code -128 stands for -0.
    """
    kernels().scale_codes(codes, group, scales, minus_zero, FLOAT_KINDS.index(dtype), out)
