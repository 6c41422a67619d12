"""What a ``data.pkl`` of ``torch.save`` says: which storages there are, and which tensors, by name, are views of them.

The name of a tensor is the path to it: keys of dicts, numbers in lists and tuples, attributes of objects, joined with
dots. So a ``state_dict`` gives the names it has in torch, and an optimiser's gives ``state.0.exp_avg``. A module
pickled whole gives the names of its ``state_dict``: the parts ``_modules``, ``_parameters`` and ``_buffers`` are left
out. A name that would appear twice gets ``#2``, ``#3``, … appended. What is called but not known here is not called;
its arguments are looked through all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from arzstream.codec.dtypes import DTYPES
from arzstream.formats.base import Malformed, Notes, shown
from arzstream.formats.pickle_walk import Call, Dict, Global, Machine, Persistent

__all__ = ["Contents", "StorageFact", "TensorFact", "read_contents"]

MAX_STEPS = 4_000_000
TENSOR_STEPS = 10  # what it costs to note a tensor, in steps
MAX_DEPTH = 100
MAX_DIMENSIONS = 64
MAX_NAME = 1024

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
_UNTYPED = "UntypedStorage"

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

_SPARSE_PARTS = {
    "torch.sparse_coo": ("indices", "values"),
    "torch.sparse_csr": ("crow_indices", "col_indices", "values"),
    "torch.sparse_csc": ("ccol_indices", "row_indices", "values"),
    "torch.sparse_bsr": ("crow_indices", "col_indices", "values"),
    "torch.sparse_bsc": ("ccol_indices", "row_indices", "values"),
}
_CONTAINERS = (list, tuple, Dict, Call)
_MODULE_PARTS = ("_parameters", "_buffers", "_modules")


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


@dataclass
class Contents:
    """Storages by key, tensors in order of appearance, and in ``notes`` what could not be named."""

    storages: dict[str, StorageFact] = field(default_factory=dict)
    tensors: list[TensorFact] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)


def read_contents(data: bytes, *, must_end: bool = True) -> Contents:
    """Follow the pickle. Never raises: what cannot be followed is in ``notes``, and what was found before it counts."""
    contents = Contents()
    machine = Machine(data)
    root: Any = None
    try:
        root = machine.run()
        if must_end and machine.end != len(data):
            contents.notes.add("bytes follow its pickle")
    except Malformed as error:
        contents.notes.add(str(error))
    for pid in machine.persistent:
        _note_storage(contents, pid)
    try:
        names = _Names(contents)
        names.walk(root)
    except Malformed as error:
        contents.notes.add(str(error))
    return contents


def _note_storage(contents: Contents, pid: Any) -> None:
    """('storage', type, key, location, number of elements), as torch/serialization.py writes it."""
    if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage" and isinstance(pid[1], Global)):
        return
    key, count, kind = pid[2], pid[4], pid[1].name
    if not isinstance(key, str) or type(count) is not int or count < 0 or len(key) > MAX_NAME:
        return
    if kind != _UNTYPED and kind not in _STORAGE_TYPES:
        contents.notes.add(f"storage {shown(key)} has the unknown type {shown(kind)}")
        return
    fact = StorageFact(_STORAGE_TYPES.get(kind), count)
    known = contents.storages.setdefault(key, fact)
    if known != fact:  # two types for the same bytes: neither is believed
        contents.storages[key] = StorageFact(None, max(known.nbytes, fact.nbytes))


@dataclass(frozen=True)
class _Place:
    """A node of the walk, linked to the places above it, which make its name."""

    node: Any
    part: str
    above: _Place | None
    length: int

    def below(self, node: Any, part: str) -> _Place:
        return _Place(node, part, self, self.length + len(part) + 1)

    def name(self) -> str:
        if self.length > MAX_NAME:
            raise Malformed("its name is too long")
        parts = []
        place: _Place | None = self
        while place is not None:
            if place.part:
                parts.append(place.part)
            place = place.above
        return ".".join(reversed(parts)) or "tensor"


class _Names:
    """Walks the nodes in order without recursion. Shared nodes are named on every path to them, within a budget."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._taken: dict[str, int] = {}
        self._budget = MAX_STEPS

    def walk(self, root: Any) -> None:
        place = _Place(root, "", None, 0)
        stack = [(id(root), self._children(place))]
        path = {id(root)}
        while stack:
            identity, children = stack[-1]
            child = next(children, None)
            if child is None:
                stack.pop()
                path.discard(identity)
            elif isinstance(child.node, _CONTAINERS) and id(child.node) not in path:
                if len(stack) > MAX_DEPTH:
                    raise Malformed("its pickle is nested too deeply to name all tensors")
                path.add(id(child.node))
                stack.append((id(child.node), self._children(child)))

    def _charge(self, steps: int) -> None:
        """Account for looking at ``steps`` nodes: paths to shared nodes can be exponentially many."""
        self._budget -= steps + 1
        if self._budget < 0:
            raise Malformed("its pickle has too many paths to name all tensors")

    def _children(self, place: _Place) -> Iterator[_Place]:
        node = place.node
        if isinstance(node, Call):
            yield from self._of_call(place, node)
        elif isinstance(node, Dict):
            yield from self._of_pairs(place, node.pairs)
            yield from self._of_state(place, node.state)
        elif isinstance(node, (list, tuple)):
            yield from self._of_items(place, node)

    def _of_call(self, place: _Place, call: Call) -> Iterator[_Place]:
        module, function = ("", "")
        if isinstance(call.function, Global):
            module, function = call.function.module, call.function.name
        args = call.args if isinstance(call.args, tuple) else ()
        meaning = _MEANINGS.get(function)
        self._charge(0)
        if meaning is not None and (module == "torch" or module.startswith("torch.")):
            yield from meaning(self, place, args)
        elif function in ("OrderedDict", "defaultdict", "dict"):
            for arg in args:
                yield from self._of_pairs(place, self._constructor_pairs(arg))
        else:
            yield from self._of_items(place, args)
        yield from self._of_items(place, call.items)
        yield from self._of_pairs(place, call.pairs)
        yield from self._of_state(place, call.state)

    def _of_items(self, place: _Place, items: Any) -> Iterator[_Place]:
        if items:
            self._charge(len(items))
        for i, node in enumerate(items):
            if isinstance(node, _CONTAINERS):
                yield place.below(node, str(i))

    def _of_pairs(self, place: _Place, pairs: list[tuple[Any, Any]]) -> Iterator[_Place]:
        if not pairs:
            return
        self._charge(len(pairs))
        last: dict[Any, Any] = {}
        for key, node in pairs:  # of two values for one key the later counts
            last[key if isinstance(key, (str, int)) else _part(key)] = node
        for key, node in last.items():
            if isinstance(node, _CONTAINERS):
                yield place.below(node, _part(key))

    def _of_state(self, place: _Place, state: Any) -> Iterator[_Place]:
        """What BUILD gives an object: its attributes, (attributes, slots), or whatever its __setstate__ takes."""
        if isinstance(state, Dict):
            self._charge(len(state.pairs))
            for key, node in state.pairs:
                if isinstance(node, _CONTAINERS):
                    yield place.below(node, "" if key in _MODULE_PARTS else _part(key))
        elif isinstance(state, (tuple, list)):
            self._charge(len(state))
            for i, node in enumerate(state):
                if isinstance(node, Dict):
                    yield from self._of_state(place, node)
                elif isinstance(node, _CONTAINERS):
                    yield place.below(node, str(i))
        elif isinstance(state, Call):
            yield place.below(state, "")

    def _constructor_pairs(self, arg: Any) -> list[tuple[Any, Any]]:
        """The pairs that a dict's constructor is given; Python 2 pickled OrderedDict with [[key, value], …]."""
        if isinstance(arg, Dict):
            return arg.pairs
        if not isinstance(arg, (list, tuple)):
            return []
        self._charge(len(arg))
        return [(pair[0], pair[1]) for pair in arg if isinstance(pair, (list, tuple)) and len(pair) == 2]

    # Meanings of torch's callables. Arguments are those of torch/_utils.py and torch/_tensor.py.

    def _tensor(self, place: _Place, args: tuple[Any, ...]) -> Iterator[_Place]:
        """_rebuild_tensor, _rebuild_tensor_v2: storage, offset, size, stride, requires_grad, hooks, metadata"""
        self._add(place, args, None, args[6] if len(args) > 6 else None)
        return iter(())

    def _tensor_v3(self, place: _Place, args: tuple[Any, ...]) -> Iterator[_Place]:
        """_rebuild_tensor_v3: storage, offset, size, stride, requires_grad, hooks, dtype, metadata"""
        dtype = args[6] if len(args) > 6 else None
        self._add(place, args, dtype.name if isinstance(dtype, Global) else "", args[7] if len(args) > 7 else None)
        return iter(())

    def _quantised(self, place: _Place, args: tuple[Any, ...]) -> Iterator[_Place]:
        """_rebuild_qtensor: storage, offset, size, stride, (scheme, scales, zero points, axis), …"""
        self._add(place, args, None, None)
        scheme = args[4] if len(args) > 4 and isinstance(args[4], tuple) else ()
        for part, node in zip(("scales", "zero_points"), scheme[1:3], strict=False):
            yield place.below(node, part)

    def _parameter(self, place: _Place, args: tuple[Any, ...]) -> Iterator[_Place]:
        """_rebuild_parameter: data, …; _rebuild_parameter_with_state: data, requires_grad, hooks, state"""
        if args:
            yield place.below(args[0], "")
        if len(args) > 3:
            yield from self._of_state(place, args[3])

    def _from_type(self, place: _Place, args: tuple[Any, ...]) -> Iterator[_Place]:
        """_rebuild_from_type, _rebuild_from_type_v2: function, type, its arguments, state"""
        if len(args) == 4:
            yield place.below(Call(args[0], args[2]), "")
            yield from self._of_state(place, args[3])

    def _sparse(self, place: _Place, args: tuple[Any, ...]) -> Iterator[_Place]:
        """_rebuild_sparse_tensor: layout, (indices…, values, size, …)"""
        if len(args) != 2 or not isinstance(args[1], tuple):
            return
        layout = args[0].args if isinstance(args[0], Call) else None  # _get_layout(name)
        name = layout[0] if isinstance(layout, tuple) and len(layout) == 1 else None
        parts = _SPARSE_PARTS.get(name, ()) if isinstance(name, str) else ()
        self._charge(len(args[1]))
        for i, node in enumerate(args[1]):
            yield place.below(node, parts[i] if i < len(parts) else str(i))

    def _add(self, place: _Place, args: tuple[Any, ...], dtype: str | None, metadata: Any) -> None:
        """Note the tensor at ``place``; ``dtype`` is torch's name, or None for that of its storage."""
        self._charge(TENSOR_STEPS)
        name = "a tensor"
        try:
            name = place.name()
            fact = _tensor_fact(name, args, dtype, metadata)
        except Malformed as error:
            self._contents.notes.add(f"{shown(name)} is not named: {error}")
            return
        if name in self._taken:
            times = self._taken[name] + 1
            while f"{name}#{times}" in self._taken:
                times += 1
            self._taken[name] = times
            fact = replace(fact, name=f"{name}#{times}")
        self._taken[fact.name] = 1
        self._contents.tensors.append(fact)


_MEANINGS = {
    "_rebuild_tensor": _Names._tensor,
    "_rebuild_tensor_v2": _Names._tensor,
    "_rebuild_tensor_v3": _Names._tensor_v3,
    "_rebuild_qtensor": _Names._quantised,
    "_rebuild_parameter": _Names._parameter,
    "_rebuild_parameter_with_state": _Names._parameter,
    "_rebuild_from_type": _Names._from_type,
    "_rebuild_from_type_v2": _Names._from_type,
    "_rebuild_sparse_tensor": _Names._sparse,
}


def _tensor_fact(name: str, args: tuple[Any, ...], dtype: str | None, metadata: Any) -> TensorFact:
    if len(args) < 4 or not isinstance(args[0], Persistent):
        raise Malformed("its description is not torch's")
    pid, start, shape, strides = args[0].pid, args[1], _numbers(args[2]), _numbers(args[3])
    if not (isinstance(pid, tuple) and len(pid) >= 5 and isinstance(pid[2], str)) or type(start) is not int:
        raise Malformed("its description is not torch's")
    if isinstance(metadata, Dict) and any(k in ("conj", "neg") and on is True for k, on in metadata.pairs[:16]):
        raise Malformed("its storage holds the conjugate or the negative of its values")
    if dtype in _HALVES:
        dtype, start = _HALVES[dtype], 2 * start
        shape, strides = (*shape, 2), (*(2 * stride for stride in strides), 1)
    elif dtype is not None:
        if dtype not in _TORCH_DTYPES:
            raise Malformed(f"its dtype {shown(dtype)} is unknown")
        dtype = _TORCH_DTYPES[dtype]
    return TensorFact(name, pid[2], dtype, start, shape, strides)


def _numbers(node: Any) -> tuple[int, ...]:
    """A shape or strides, also as torch.Size((2, 3))."""
    if isinstance(node, Call) and isinstance(node.args, tuple) and len(node.args) == 1:
        node = node.args[0]
    if not isinstance(node, (tuple, list)) or len(node) > MAX_DIMENSIONS:
        raise Malformed("its shape is not one")
    if not all(type(number) is int for number in node):
        raise Malformed("its shape is not one")
    return tuple(node)


def _part(key: Any) -> str:
    """A dict key as part of a name."""
    if isinstance(key, str):
        return key
    if isinstance(key, bytes):
        return key[:MAX_NAME].decode("utf-8", "replace")
    if key is None or isinstance(key, (int, float)):
        return str(key)
    if isinstance(key, tuple):
        return "(" + ", ".join("…" if isinstance(k, tuple) else _part(k)[:128] for k in key[:8]) + ")"
    if isinstance(key, Global):
        return key.name
    return "?"
