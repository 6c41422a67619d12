"""The data types of ARZ-1 section 6.1, by their safetensors names."""

from __future__ import annotations

import dataclasses

from arzstream.errors import UnsupportedError

__all__ = ["DTYPES", "DType", "dtype"]


@dataclasses.dataclass(frozen=True)
class DType:
    """What the rest of the program needs to know of a data type. Importing this imports neither NumPy nor torch."""

    name: str
    itemsize: int
    """Bytes of an element."""
    float_bits: tuple[int, int] | None
    """Bits of exponent and mantissa (of one half, for complex numbers) where there is a sign above them; else None."""
    numpy: str
    """dtype that NumPy can view the bytes with: integers of the same size where NumPy has no such float."""
    torch: str
    """Name of the dtype in the ``torch`` module."""
    components: int = 1
    """2 for complex numbers, whose halves are coded as elements."""


DTYPES: dict[str, DType] = {
    d.name: d
    for d in (
        DType("F64", 8, (11, 52), "<f8", "float64"),
        DType("F32", 4, (8, 23), "<f4", "float32"),
        DType("F16", 2, (5, 10), "<f2", "float16"),
        DType("BF16", 2, (8, 7), "<u2", "bfloat16"),
        DType("F8_E4M3", 1, (4, 3), "|u1", "float8_e4m3fn"),
        DType("F8_E4M3FNUZ", 1, (4, 3), "|u1", "float8_e4m3fnuz"),
        DType("F8_E5M2", 1, (5, 2), "|u1", "float8_e5m2"),
        DType("F8_E5M2FNUZ", 1, (5, 2), "|u1", "float8_e5m2fnuz"),
        DType("F8_E8M0", 1, None, "|u1", "float8_e8m0fnu"),
        DType("I64", 8, None, "<i8", "int64"),
        DType("I32", 4, None, "<i4", "int32"),
        DType("I16", 2, None, "<i2", "int16"),
        DType("I8", 1, None, "|i1", "int8"),
        DType("U64", 8, None, "<u8", "uint64"),
        DType("U32", 4, None, "<u4", "uint32"),
        DType("U16", 2, None, "<u2", "uint16"),
        DType("U8", 1, None, "|u1", "uint8"),
        DType("BOOL", 1, None, "|b1", "bool"),
        DType("C64", 8, (8, 23), "<c8", "complex64", components=2),
        DType("C128", 16, (11, 52), "<c16", "complex128", components=2),
    )
}


def dtype(name: str) -> DType:
    """The data type called ``name``, such as ``"BF16"``. Raises UnsupportedError for a name that ARZ-1 lacks."""
    try:
        return DTYPES[name]
    except KeyError:
        raise UnsupportedError(f"data type {name!r} is not known to this version; a newer one may read it") from None
