"""Tensors as a safetensors file that never lies on a disk: its header, and a source that reads from the tensors' own
memory."""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from arzstream.codec.dtypes import dtype
from arzstream.errors import StorageError

__all__ = ["MemorySource", "NamedBytes", "safetensors_header", "tensor_order"]

ALIGNMENT = 8
_ORDER = (
    "C128", "U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "F8_E5M2FNUZ", "F8_E4M3FNUZ",
    "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL",
)  # fmt: skip
_RANK = {name: rank for rank, name in enumerate(_ORDER)}


class NamedBytes(NamedTuple):
    """A tensor by name, dtype (safetensors' name), shape and length in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def tensor_order(tensors: Sequence[NamedBytes]) -> list[NamedBytes]:
    """As safetensors itself writes: large items first, so that every tensor is aligned, then by dtype and name."""
    return sorted(tensors, key=lambda tensor: (-dtype(tensor.dtype).itemsize, _RANK[tensor.dtype], tensor.name))


def safetensors_header(tensors: Sequence[NamedBytes], metadata: Mapping[str, str] | None = None) -> bytes:
    """The length and JSON header of a safetensors file that holds ``tensors`` one after the other."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


class MemorySource:
    """Buffers one after the other, as a source file."""

    name = "memory"

    def __init__(self, buffers: Sequence[bytes | memoryview]) -> None:
        self._buffers = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        self._starts = list(itertools.accumulate(map(len, self._buffers), initial=0))

    @property
    def size(self) -> int:
        return self._starts[-1]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        data = self.read_at(offset, len(buffer))
        if len(data) != len(buffer):
            raise StorageError(f"{self.name}: ends {len(buffer) - len(data)} bytes too early")
        buffer[:] = data

    def read_at(self, offset: int, length: int) -> bytes:
        parts, end = [], min(offset + length, self.size)
        at = bisect.bisect_right(self._starts, offset) - 1
        while offset < end:
            start = self._starts[at]
            part = self._buffers[at][offset - start : end - start]
            parts.append(part)
            offset, at = offset + len(part), at + 1
        return b"".join(parts)
