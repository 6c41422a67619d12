"""What torch and NumPy say of a tensor in a pickle: its storage or its bytes, dtype, shape and strides.

Persistent ids are those of ``torch/serialization.py``, arguments those of ``torch/_utils.py`` and of NumPy's
``ndarray.__reduce__``. Nothing here is checked against the bytes of a file yet.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from arzstream.codec.dtypes import DTYPES
from arzstream.formats.base import Malformed, contiguous_strides, element_count, shown
from arzstream.formats.pickle_walk import MAX_TEXT, Blob, Call, Dict, Global, Persistent

__all__ = [
    "ArrayFact",
    "StorageFact",
    "TensorFact",
    "array_fact",
    "numbers",
    "numpy_dtype",
    "storage_fact",
    "storage_id",
    "tensor_fact",
    "text_of",
    "torch_dtype",
]

MAX_DIMENSIONS = 64
_UNTYPED = "UntypedStorage"
_STORAGE_TYPES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
    "ComplexDoubleStorage": "C128",
    # quantised numbers are the integers that hold them
    "QInt8Storage": "I8",
    "QInt32Storage": "I32",
    "QUInt8Storage": "U8",
    "QUInt4x2Storage": "U8",
    "QUInt2x4Storage": "U8",
}
_PACKED = {"QUInt4x2Storage": 2, "QUInt2x4Storage": 4}
"""Elements in a byte."""
_TORCH_DTYPES = {kind.torch: kind.name for kind in DTYPES.values()} | {
    "double": "F64",
    "float": "F32",
    "half": "F16",
    "long": "I64",
    "int": "I32",
    "short": "I16",
    "qint8": "I8",
    "qint32": "I32",
    "quint8": "U8",
    "bits8": "U8",
    "bits16": "U16",
    "bits1x8": "U8",
    "bits2x4": "U8",
    "bits4x2": "U8",
    "float4_e2m1fn_x2": "U8",
    **{f"uint{bits}": "U8" for bits in range(1, 8)},
    **{f"int{bits}": "I8" for bits in range(1, 8)},
}
_HALVES = {"complex32": "F16"}  # no dtype of ours: a view of its halves, with a last dimension of 2
_NUMPY_DTYPES = {
    "f8": "F64", "f4": "F32", "f2": "F16", "i8": "I64", "i4": "I32", "i2": "I16", "i1": "I8", "u8": "U64", "u4": "U32",
    "u2": "U16", "u1": "U8", "b1": "BOOL", "c8": "C64", "c16": "C128",
}  # fmt: skip


@dataclass(frozen=True)
class StorageFact:
    """What a persistent id says of a storage: ``count`` elements of ``dtype``, or bytes if that is ``None``."""

    dtype: str | None
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * (DTYPES[self.dtype].itemsize if self.dtype else 1)


@dataclass(frozen=True)
class TensorFact:
    """A tensor as the pickle describes it. Nothing is checked against the storage yet; numbers may be anything."""

    name: str
    key: str
    dtype: str | None
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class ArrayFact:
    """A NumPy array whose elements are ``nbytes`` bytes of the pickle itself, from ``at`` on."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    at: int
    nbytes: int


def storage_fact(kind: str, count: int) -> StorageFact | None:
    """``count`` elements of the storage type ``kind``; None if it is unknown."""
    if kind != _UNTYPED and kind not in _STORAGE_TYPES:
        return None
    return StorageFact(_STORAGE_TYPES.get(kind), count)


def torch_dtype(name: str) -> str | None:
    """Our name of the dtype that torch calls ``name``; None if it is unknown."""
    return _TORCH_DTYPES.get(name)


def storage_id(pid: Any) -> tuple[str, str, int, int] | None:
    """(type, key, number of elements, the element where a view of the storage begins) of a persistent id.

    Files of PyTorch before 0.4 have (key of the view, offset, size) as a sixth item; Python 2 wrote texts as bytes.
    """
    if not (isinstance(pid, tuple) and len(pid) >= 5 and text_of(pid[0]) == "storage" and isinstance(pid[1], Global)):
        return None
    key, count, view = text_of(pid[2]), pid[4], pid[5] if len(pid) > 5 else None
    if key is None or type(count) is not int:
        return None
    begin = view[1] if isinstance(view, tuple) and len(view) == 3 else 0
    return (pid[1].name, key, count, begin) if type(begin) is int else None


def text_of(node: Any) -> str | None:
    if isinstance(node, bytes):
        return node.decode("latin-1")
    return node if isinstance(node, str) else None


def tensor_fact(name: str, args: tuple[Any, ...], dtype: str | None, metadata: Any) -> TensorFact:
    storage = storage_id(args[0].pid) if len(args) >= 4 and isinstance(args[0], Persistent) else None
    if storage is None or type(args[1]) is not int:
        raise Malformed("its description is not torch's")
    kind, key, _, begin = storage
    start, shape, strides = begin + args[1], numbers(args[2]), numbers(args[3])
    if isinstance(metadata, Dict):  # the storage holds the conjugate or the negative of the tensor
        on = {flag for flag, value in itertools.islice(metadata.pairs, 16) if value is True and isinstance(flag, str)}
        name += "".join(f".{flag}" for flag in ("conj", "neg") if flag in on)
    if kind in _PACKED:
        start, shape, strides = _packed(start, shape, strides, _PACKED[kind])
        name += ".packed"
    if dtype in _HALVES:
        dtype, start = _HALVES[dtype], 2 * start
        shape, strides = (*shape, 2), (*(2 * stride for stride in strides), 1)
    elif dtype:
        if dtype not in _TORCH_DTYPES:
            raise Malformed(f"its dtype {shown(dtype)} is unknown")
        dtype = _TORCH_DTYPES[dtype]
    elif dtype is not None:
        raise Malformed("its description is not torch's")
    return TensorFact(name, key, dtype, start, shape, strides)


def _packed(
    start: int, shape: tuple[int, ...], strides: tuple[int, ...], of_a_byte: int
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Where elements of which several share a byte are, as a row of bytes."""
    count = element_count(shape)
    if start or strides != contiguous_strides(shape):
        raise Malformed("it is part of a storage whose elements share bytes")
    return 0, (-(-count // of_a_byte),), (1,)


def numpy_dtype(node: Any) -> str:
    """NumPy's dtype("f4"), built with (version, byte order, …)."""
    args = node.args if isinstance(node, Call) and isinstance(node.args, tuple) else ()
    state = node.state if isinstance(node, Call) and isinstance(node.state, tuple) else ()
    name, order = (text_of(args[0]) if args else None), (text_of(state[1]) if len(state) > 1 else None)
    kind = _NUMPY_DTYPES.get(name or "")
    if kind is None:
        raise Malformed("its elements are of no type known here")
    if order not in ("<", "|") and DTYPES[kind].itemsize > 1:
        raise Malformed("its elements are big-endian")
    return kind


def array_fact(name: str, dtype: str, shape: tuple[int, ...], fortran: bool, data: Any) -> ArrayFact | None:
    """None for an array that is too short to be worth it."""
    if element_count(shape) * DTYPES[dtype].itemsize <= MAX_TEXT:
        return None
    if isinstance(data, Call) and isinstance(data.function, Global) and data.function.name in ("bytes", "bytearray"):
        data = data.args[0] if isinstance(data.args, tuple) and data.args else None
    if not isinstance(data, Blob):
        raise Malformed("its bytes are written as text")
    if min(shape, default=0) < 0 or element_count(shape) * DTYPES[dtype].itemsize != data.nbytes:
        raise Malformed("its shape is not that of its bytes")
    strides = contiguous_strides(shape[::-1])[::-1] if fortran and len(shape) > 1 else None
    return ArrayFact(name, dtype, shape, strides, data.start, data.nbytes)


def numbers(node: Any) -> tuple[int, ...]:
    """A shape or strides, also as torch.Size((2, 3))."""
    if isinstance(node, Call) and isinstance(node.args, tuple) and len(node.args) == 1:
        node = node.args[0]
    if not isinstance(node, (tuple, list)) or len(node) > MAX_DIMENSIONS:
        raise Malformed("its shape is not one")
    if not all(type(number) is int for number in node):
        raise Malformed("its shape is not one")
    return tuple(node)
