"""ONNX models, complete or still being written, and the files with their external data.

Format: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. Tensors are found wherever the format has them:
initialisers of the graph and of graphs in it, functions, dense and sparse, and larger tensors that are attributes of
nodes. Elements lie in ``raw_data``, or packed in fields whose bytes are the same (``float_data``, ``double_data``), or
in another file; those in other typed fields stay the numbers that they are.

Names of what is in the graph of a node, or in a function, begin with those of what holds them: ``loop/body/w``.

Nodes come before initialisers, and sizes before what they are of, so that a growing file tells where a tensor lies
before it is there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

from arzstream.codec.dtypes import DTYPES
from arzstream.formats.base import (
    MAX_BYTES,
    Layout,
    Malformed,
    Notes,
    ReadAt,
    Storage,
    View,
    element_count,
    opaque,
    problem_of,
    shown,
    view_problem,
)
from arzstream.formats.companions import Companions, place_of
from arzstream.formats.protobuf import BYTES, VARINT, Field, Message
from arzstream.formats.window import Head, TooShort, Window
from arzstream.limits import DEFAULT_LIMITS, Limits

__all__ = ["DATA_FORMAT", "FORMAT", "OnnxParser", "looks_like_onnx"]

FORMAT, DATA_FORMAT = "onnx", "onnx-data"
MAX_DEPTH = 16
"""Graphs in graphs."""
MIN_ATTRIBUTE = 1024
"""Bytes from which on a tensor that is a node's attribute is one of the model's, and not a number that it calculates
with."""
MAX_TEXT = 4096

DTYPE_OF = {
    1: "F32", 2: "U8", 3: "I8", 4: "U16", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64", 12: "U32",
    13: "U64", 14: "C64", 15: "C128", 16: "BF16", 17: "F8_E4M3", 18: "F8_E4M3FNUZ", 19: "F8_E5M2", 20: "F8_E5M2FNUZ",
    24: "F8_E8M0",
}  # fmt: skip
PACKED = {21: ("UINT4", 4), 22: ("INT4", 4), 23: ("FLOAT4E2M1", 4), 25: ("UINT2", 2), 26: ("INT2", 2)}
"""Types of which a byte holds several, and their bits."""

# Field numbers.
_MODEL_GRAPH, _MODEL_OPSETS, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 8, 20, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_FUNCTION_NODE, _FUNCTION_ATTRIBUTE = 7, 11
_NODE_OUTPUT, _NODE_NAME, _NODE_ATTRIBUTE = 2, 3, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_T, _ATTRIBUTE_G, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 1, 5, 6, 10, 11
_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES = 22, 23
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_SEGMENT, _TENSOR_NAME, _TENSOR_RAW, _TENSOR_EXTERNAL = 1, 2, 3, 8, 9, 13
_SPARSE_VALUES, _SPARSE_INDICES = 1, 2
_TYPED = {4: ("F32", "C64"), 10: ("F64", "C128")}
"""Fields whose packed bytes are those of ``raw_data``, for tensors of these types."""
_TYPED_OTHERS = (5, 6, 7, 11)


class OnnxParser:
    """While the file grows, goes on where it had to stop; walks it all when it is complete."""

    def __init__(self, path: str, companions: Companions | None = None, limits: Limits = DEFAULT_LIMITS) -> None:
        """``path`` is where the file is in its checkpoint, ``companions`` who is told of external data."""
        self._path, self._companions, self._limits = path, companions, limits
        self._head = Head()
        self._walk = _Walk(path, limits)

    def update(self, read: ReadAt, frontier: int, final: bool) -> Layout:
        if self._head.is_new(read, frontier) or final:
            self._walk = _Walk(self._path, self._limits)
        try:
            complete = self._walk.go_on(Window(read, frontier))
            layout = self._walk.layout(frontier if complete else None)
            if final and not complete:
                raise Malformed("it is cut off")
        except Malformed as error:
            return opaque(frontier, f"not a valid ONNX file: {error}") if final else Layout(FORMAT)
        if self._companions is not None:
            self._companions.tell(self._path, DATA_FORMAT, self._walk.elsewhere)
        return layout


def looks_like_onnx(start: bytes) -> bool:
    """Whether a file that starts with these (at least 16) bytes may be a model: a version, then the producer's name, as
    exporters write it, or the graph."""
    if len(start) < 16 or start[0] != 0x08 or not 3 <= start[1] <= 32:
        return False
    if start[2] == 0x12 and 2 <= start[3] <= 32:
        name = start[4 : 4 + start[3]]
        return name.isascii() and name.decode().isprintable()
    return start[2] == 0x3A and start[3] >= 0x80


@dataclass
class _Tensor:
    """The fields of a tensor that matter."""

    dims: list[int] = field(default_factory=list)
    kind: int = 0
    name: str = ""
    data: Field | None = None
    typed: bool = False
    """Its elements are in fields whose bytes are not those of the elements."""
    segmented: bool = False
    external: dict[str, str] = field(default_factory=dict)


class _Walk:
    """A walk over a file: storages ``found`` in it, and ``elsewhere``, in other files by their paths."""

    def __init__(self, path: str, limits: Limits) -> None:
        self.found: list[Storage] = []
        self.elsewhere: dict[str, list[Storage]] = {}
        self.notes = Notes()
        self._path, self._limits = path, limits
        self._message = Message()
        self._names: dict[str, None] = {}
        self._told: list[str] = []
        """The file of each storage in ``elsewhere``, in the order in which they were found."""
        self._at = 0
        """Where the model's next field begins."""
        self._graph_open: Field | None = None
        self._inside = 0
        """The graph that is being read, and where in it the next field begins."""
        self._graphs = self._opsets = 0

    def go_on(self, window: Window) -> bool:
        """Walk as far as the window goes; whether it holds a whole model. Raises :class:`Malformed`."""
        self._message.window = window
        try:
            while self._at < window.frontier:
                self._field(window.frontier)
        except TooShort:
            return False
        if not self._graphs and self._at:
            raise Malformed("it has no graph")
        return self._opsets > 0

    def layout(self, size: int | None) -> Layout:
        """What was found by now; ``size`` is that of the file if it is complete. Raises :class:`Malformed`."""
        storages = sorted(self.found, key=lambda storage: (storage.offset, storage.nbytes))
        layout = Layout(FORMAT, tuple(storages), size, size is not None, str(self.notes))
        problem = problem_of(layout)
        if problem:
            raise Malformed(problem)
        return layout

    def _field(self, end: int) -> None:
        """One field of the model, or the rest of one."""
        item = self._graph_open or next(self._message.fields(self._at, MAX_BYTES))
        if item.kind == BYTES and item.number == _MODEL_GRAPH:
            if self._graph_open is None:
                self._graph_open, self._inside = item, item.start
            for part in self._message.fields(self._inside, item.end):
                self._entirely(functools.partial(self._part, part, "", 0, _GRAPH_NODE, 0))
                self._inside = part.end
        elif item.kind == BYTES and item.number in (_MODEL_FUNCTIONS, _MODEL_TRAINING):
            self._entirely(functools.partial(self._beside_graph, item, end))
        if item.end > end:
            raise TooShort
        self._graphs += self._graph_open is not None
        self._opsets += item.number == _MODEL_OPSETS
        self._at, self._graph_open = item.end, None

    def _entirely(self, walk: Callable[[], None]) -> None:
        """``walk`` over something, of which nothing stays if the file is too short for it: it will be walked again."""
        found, names, told = len(self.found), len(self._names), len(self._told)
        left, notes = self._message.left, self.notes.mark
        try:
            walk()
        except TooShort:
            del self.found[found:]
            while len(self._names) > names:
                self._names.popitem()
            while len(self._told) > told:
                path = self._told.pop()
                self.elsewhere[path].pop()
                if not self.elsewhere[path]:
                    del self.elsewhere[path]
            self._message.left = left
            self.notes.back_to(notes)
            raise

    def _beside_graph(self, item: Field, end: int) -> None:
        """A function or training graph, which is there to its end."""
        if item.number == _MODEL_FUNCTIONS:
            name = next((self._text(i) for i in self._message.fields(item.start, item.end) if i.number == 1), "")
            for part in self._message.fields(item.start, item.end):
                self._part(part, f"{name}/", 0, _FUNCTION_NODE, _FUNCTION_ATTRIBUTE)
        else:
            for part in self._message.fields(item.start, item.end):
                if part.kind == BYTES and part.number in (1, 2):
                    self._graph(part, "training/", 0)
        if item.end > end:
            raise TooShort

    def _graph(self, place: Field, scope: str, depth: int) -> None:
        """``scope`` stands before the names in it."""
        if depth == MAX_DEPTH:
            raise Malformed("its graphs are nested too deeply")
        for item in self._message.fields(place.start, place.end):
            self._part(item, scope, depth, _GRAPH_NODE, 0)

    def _part(self, item: Field, scope: str, depth: int, node: int, attribute: int) -> None:
        """A field of a graph, or of a function, whose attributes have the number ``attribute``."""
        if item.kind != BYTES:
            return
        if item.number == node:
            self._node(item, scope, depth)
        elif attribute:
            if item.number == attribute:
                self._attribute(item, scope, scope, depth)
        elif item.number == _GRAPH_INITIALIZER:
            self._tensor(item, scope, 0)
        elif item.number == _GRAPH_SPARSE:
            self._sparse(item, scope)

    def _node(self, place: Field, scope: str, depth: int) -> None:
        name = output = ""
        for item in self._message.fields(place.start, place.end):
            if item.kind != BYTES:
                continue
            if item.number == _NODE_NAME:
                name = self._text(item)
            elif item.number == _NODE_OUTPUT:
                output = output or self._text(item)
            elif item.number == _NODE_ATTRIBUTE:
                self._attribute(item, scope, f"{scope}{name or output}/", depth, output)

    def _attribute(self, place: Field, outside: str, scope: str, depth: int, output: str = "") -> None:
        """``output`` is what a node gives out: a constant is called so, as a tensor of what is around it."""
        if place.length < MIN_ATTRIBUTE:
            return
        name = ""
        for item in self._message.fields(place.start, place.end):
            if item.kind != BYTES:
                continue
            if item.number == _ATTRIBUTE_NAME:
                name = self._text(item)
            elif item.number in (_ATTRIBUTE_T, _ATTRIBUTE_TENSORS):
                if output and name == "value":
                    self._tensor(item, outside, MIN_ATTRIBUTE, output)
                else:
                    self._tensor(item, scope, MIN_ATTRIBUTE, name)
            elif item.number in (_ATTRIBUTE_G, _ATTRIBUTE_GRAPHS):
                self._graph(item, f"{scope}{name}/", depth + 1)
            elif item.number in (_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES):
                self._sparse(item, scope)

    def _sparse(self, place: Field, scope: str) -> None:
        name = ""
        for item in self._message.fields(place.start, place.end):
            if item.kind == BYTES and item.number == _SPARSE_VALUES:
                name = self._tensor(item, scope, 0)
            elif item.kind == BYTES and item.number == _SPARSE_INDICES:
                self._tensor(item, scope, 0, f"{name}.indices" if name else "")

    def _tensor(self, place: Field, scope: str, least: int, otherwise: str = "") -> str:
        """Take a tensor of at least ``least`` bytes; its name in ``scope``, ``otherwise`` where it has none."""
        tensor = self._read(place)
        name = tensor.name or otherwise
        if not name:
            self.notes.add("a tensor without a name is kept as bytes")
            return ""
        inside, name = name, scope + name
        if tensor.external:
            self._external(tensor, name)
        elif tensor.typed:
            if place.length >= MIN_ATTRIBUTE:
                self.notes.add(f"{shown(name)} is written as numbers of varying length; it is kept as bytes")
        elif tensor.data is not None and tensor.data.length >= least:
            self.found.append(self._storage(tensor, name, tensor.data.start, tensor.data.length))
        return inside

    def _read(self, place: Field) -> _Tensor:
        tensor = _Tensor()
        typed: Field | None = None
        for item in self._message.fields(place.start, place.end):
            if item.number == _TENSOR_DIMS:
                for number in self._message.numbers(item):
                    if len(tensor.dims) == self._limits.dimensions:
                        raise Malformed(f"a tensor has more than {self._limits.dimensions} dimensions")
                    tensor.dims.append(number)
            elif item.number == _TENSOR_TYPE and item.kind == VARINT:
                tensor.kind = item.value
            elif item.number == _TENSOR_SEGMENT:
                tensor.segmented = True
            elif item.number == _TENSOR_NAME and item.kind == BYTES:
                tensor.name = self._text(item)
            elif item.number == _TENSOR_RAW and item.kind == BYTES:
                tensor.data = item
            elif item.number == _TENSOR_EXTERNAL and item.kind == BYTES:
                key, value = self._entry(item)
                tensor.external[key] = value
            elif item.number in (*_TYPED, *_TYPED_OTHERS):
                once = typed is None and item.kind == BYTES and item.number in _TYPED
                typed, tensor.typed = item, tensor.typed or not once
        if tensor.data is None and typed is not None and DTYPE_OF.get(tensor.kind) in _TYPED.get(typed.number, ()):
            tensor.data = typed
        else:
            tensor.typed = tensor.typed or (tensor.data is None and typed is not None)
        return tensor

    def _entry(self, place: Field) -> tuple[str, str]:
        texts = {1: "", 2: ""}
        for item in self._message.fields(place.start, place.end):
            if item.kind == BYTES and item.number in texts:
                texts[item.number] = self._text(item)
        return texts[1], texts[2]

    def _external(self, tensor: _Tensor, name: str) -> None:
        try:
            place = place_of(self._path, tensor.external.get("location", ""))
            offset = _number(tensor.external.get("offset", "0"))
            length = tensor.external.get("length")
            nbytes = self._nbytes(tensor) if length is None else _number(length)
            if nbytes is None:
                raise Malformed("its size is not known")
        except Malformed as error:
            self.notes.add(f"the data of {shown(name)} is not found: {error}")
            return
        self.elsewhere.setdefault(place, []).append(self._storage(tensor, name, offset, nbytes))
        self._told.append(place)

    def _nbytes(self, tensor: _Tensor) -> int | None:
        """Bytes of a tensor's elements by its shape; None for a type that is not known."""
        elements = element_count(tuple(tensor.dims))
        if tensor.kind in PACKED:
            return (elements * PACKED[tensor.kind][1] + 7) // 8
        dtype = DTYPE_OF.get(tensor.kind)
        return elements * DTYPES[dtype].itemsize if dtype is not None else None

    def _storage(self, tensor: _Tensor, name: str, offset: int, nbytes: int) -> Storage:
        dtype, shape = DTYPE_OF.get(tensor.kind, "U8"), tuple(tensor.dims)
        if tensor.kind in PACKED:
            self.notes.add(f"{shown(name)} of type {PACKED[tensor.kind][0]} is kept as bytes")
            shape = (nbytes,)
        if tensor.segmented or (self._nbytes(tensor) != nbytes):
            self.notes.add(f"{shown(name)} is not named: its data does not have the size of its shape")
            return Storage("U8", offset, nbytes)
        view = View(name, shape)
        problem = view_problem(view, nbytes // DTYPES[dtype].itemsize, self._limits)
        if name in self._names:
            problem = problem or "another tensor has its name"
        if problem:
            self.notes.add(f"{shown(name)} is not named: {problem}")
            return Storage(dtype, offset, nbytes)
        self._names[name] = None
        return Storage(dtype, offset, nbytes, (view,))

    def _text(self, item: Field) -> str:
        if item.length > MAX_TEXT:
            raise Malformed("a name in it is too long")
        return self._message.text(item)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise Malformed("its place is no number")
    return Window.end(int(text), 0)
