"""As much of ONNX and GGUF as it takes to get at the float tensors in files that we know."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["gguf_tensors", "onnx_tensors"]

Array = npt.NDArray[Any]

ONNX_TYPES = {1: "<f4", 2: "|u1", 7: "<i8"}
GRAPH, INITIALIZER, DIMS, DATA_TYPE, NAME, RAW_DATA = 7, 5, 1, 2, 8, 9
"""Field numbers of ModelProto, GraphProto and TensorProto: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto"""


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of a protobuf message's fields."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        else:
            length = {1: 8, 5: 4}[wire]
        yield key >> 3, data[at : at + length]
        at += length


def onnx_tensors(path: Path) -> dict[str, Array]:
    """The initialisers with raw data, by name."""
    found: dict[str, Array] = {}
    for number, graph in _fields(memoryview(path.read_bytes())):
        if number != GRAPH:
            continue
        assert isinstance(graph, memoryview)
        for inner, tensor in _fields(graph):
            if inner == INITIALIZER:
                assert isinstance(tensor, memoryview)
                name, array = _onnx_tensor(tensor)
                if array is not None and array.size:
                    found[name] = array
    return found


def _onnx_tensor(message: memoryview) -> tuple[str, Array | None]:
    dims: list[int] = []
    fields: dict[int, Any] = {}
    for number, value in _fields(message):
        if number == DIMS:
            dims.append(int(value))  # type: ignore[arg-type]
        else:
            fields[number] = value
    raw, kind = fields.get(RAW_DATA), ONNX_TYPES.get(fields.get(DATA_TYPE, 0))
    array = None if raw is None or kind is None else np.frombuffer(raw, kind).reshape(dims)
    return bytes(fields.get(NAME, b"")).decode(), array


GGUF_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
GGUF_STRING, GGUF_ARRAY, GGML_F32, GGUF_ALIGNMENT = 8, 9, 0, 32
"""https://github.com/ggml-org/ggml/blob/master/docs/gguf.md"""


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> Any:
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values[0]

    def string(self) -> str:
        length = self.take("Q")
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == GGUF_STRING:
            return self.string()
        if kind == GGUF_ARRAY:
            inner, count = self.take("I"), self.take("Q")
            return [self.value(inner) for _ in range(count)]
        return self.take(GGUF_SCALARS[kind])


def gguf_tensors(path: Path) -> dict[str, Array]:
    """The fp32 tensors of a GGUF file of version 3."""
    cursor = _Cursor(path.read_bytes())
    assert cursor.data[:4] == b"GGUF"
    cursor.at = 8
    count, pairs = cursor.take("Q"), cursor.take("Q")
    alignment = GGUF_ALIGNMENT
    for _ in range(pairs):
        key = cursor.string()
        value = cursor.value(cursor.take("I"))
        if key == "general.alignment":
            alignment = value
    infos = []
    for _ in range(count):
        name = cursor.string()
        dims = [cursor.take("Q") for _ in range(cursor.take("I"))]
        infos.append((name, dims, cursor.take("I"), cursor.take("Q")))
    start = -(-cursor.at // alignment) * alignment
    found = {}
    for name, dims, kind, offset in infos:
        if kind == GGML_F32:
            array = np.frombuffer(cursor.data, "<f4", math.prod(dims), start + offset)
            found[name] = array.reshape(dims[::-1])
    return found
