"""What a ``data.pkl`` of ``torch.save`` says: which storages there are, and which tensors, by name, are views of them.

The name of a tensor is the path to it: keys of dicts, numbers in lists and tuples, attributes of objects, joined with
dots. So a ``state_dict`` gives the names it has in torch, and an optimiser's gives ``state.0.exp_avg``. A module
pickled whole gives the names of its ``state_dict``: the parts ``_modules``, ``_parameters`` and ``_buffers`` are left
out. A name that would appear twice gets ``#2``, ``#3``, … appended. What is called but not known here is not called;
its arguments are looked through all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from arzstream.formats.base import Malformed, Notes, shown
from arzstream.formats.pickle_walk import MAX_WORK, Blob, Call, Dict, Global, Machine
from arzstream.formats.torch_facts import (
    ArrayFact,
    StorageFact,
    TensorFact,
    array_fact,
    numbers,
    numpy_dtype,
    storage_fact,
    storage_id,
    tensor_fact,
)

__all__ = ["ArrayFact", "Contents", "StorageFact", "TensorFact", "read_contents"]

WORK_OF_STEP = 4  # a step of the walk over nodes costs what so much work does that made them
TENSOR_STEPS = 8  # what it costs to note a tensor, in steps
MAX_DEPTH = 100
MAX_NAME = 1024

_SPARSE_PARTS = {
    "torch.sparse_coo": ("indices", "values"),
    "torch.sparse_csr": ("crow_indices", "col_indices", "values"),
    "torch.sparse_csc": ("ccol_indices", "row_indices", "values"),
    "torch.sparse_bsr": ("crow_indices", "col_indices", "values"),
    "torch.sparse_bsc": ("ccol_indices", "row_indices", "values"),
}
_CONTAINERS = (list, tuple, Dict)
_MODULE_PARTS = ("_parameters", "_buffers", "_modules")


@dataclass
class Contents:
    """Storages by key, tensors and arrays in order of appearance, and in ``notes`` what could not be named. ``end`` is
    where the pickle ends, or 0 if it could not be followed; ``root`` what it holds."""

    storages: dict[str, StorageFact] = field(default_factory=dict)
    tensors: list[TensorFact] = field(default_factory=list)
    arrays: list[ArrayFact] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)
    end: int = 0
    root: Any = None
    work: int = 0
    """What it cost."""


def read_contents(data: bytes, start: int = 0, *, must_end: bool = True, work: int = MAX_WORK) -> Contents:
    """Follow the pickle that begins at ``start``, for ``work`` at most (and as much for the names). Never raises: what
    cannot be followed is in ``notes``, and what was found before it counts."""
    contents = Contents()
    machine = Machine(data, start, work)
    root: Any = None
    try:
        root = contents.root = machine.run()
        contents.end = machine.end
        if must_end and machine.end != len(data):
            contents.notes.add("bytes follow its pickle")
    except Malformed as error:
        contents.notes.add(str(error))
    for pid in machine.persistent:
        _note_storage(contents, pid)
    names = _Names(contents, work // WORK_OF_STEP)
    try:
        names.walk(root)
    except Malformed as error:
        contents.notes.add(str(error))
    contents.work = max(machine.work, names.steps * WORK_OF_STEP)
    return contents


def _note_storage(contents: Contents, pid: Any) -> None:
    """('storage', type, key, location, number of elements), as torch/serialization.py writes it."""
    pid = storage_id(pid)
    if pid is None:
        return
    kind, key, count, _ = pid
    if count < 0 or len(key) > MAX_NAME:
        return
    fact = storage_fact(kind, count)
    if fact is None:
        contents.notes.add(f"storage {shown(key)} has the unknown type {shown(kind)}")
        return
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

    def __init__(self, contents: Contents, steps: int) -> None:
        self._contents = contents
        self._taken: dict[str, int] = {}
        self._most = self._left = steps

    @property
    def steps(self) -> int:
        """How many were taken."""
        return self._most - max(self._left, 0)

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
        self._left -= steps + 1
        if self._left < 0:
            raise Malformed("its pickle has too many paths to name all tensors")

    def _children(self, place: _Place) -> Iterator[_Place]:
        node = place.node
        if isinstance(node, Call):
            yield from self._of_call(place, node)
        elif isinstance(node, Dict):
            yield from self._of_pairs(place, len(node), node.pairs)
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
        if meaning is not None and module.partition(".")[0] == "torch":
            yield from meaning(self, place, args)
        elif function in ("_reconstruct", "_frombuffer") and module.partition(".")[0] == "numpy":
            yield from self._array(place, call, args)
            return
        elif function in ("OrderedDict", "defaultdict", "dict"):
            for arg in args:
                yield from self._of_pairs(place, *self._constructor_pairs(arg))
        else:
            yield from self._of_items(place, args)
        yield from self._of_items(place, call.items)
        yield from self._of_pairs(place, len(call), call.pairs)
        yield from self._of_state(place, call.state)

    def _of_items(self, place: _Place, items: Any) -> Iterator[_Place]:
        if items:
            self._charge(len(items))
        for i, node in enumerate(items):
            if isinstance(node, _CONTAINERS):
                yield place.below(node, str(i))

    def _of_pairs(self, place: _Place, count: int, pairs: Iterable[tuple[Any, Any]]) -> Iterator[_Place]:
        if not count:
            return
        self._charge(count)
        last: dict[Any, Any] = {}
        for name, node in pairs:  # of two values for one key the later counts
            key = name if isinstance(name, (str, int)) else _part(name)
            if isinstance(node, _CONTAINERS):
                last[key] = node
            elif last:
                last.pop(key, None)
        for key, node in last.items():
            yield place.below(node, _part(key))

    def _of_state(self, place: _Place, state: Any) -> Iterator[_Place]:
        """What BUILD gives an object: its attributes, (attributes, slots), or whatever its __setstate__ takes."""
        if isinstance(state, Dict):
            self._charge(len(state))
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

    def _constructor_pairs(self, arg: Any) -> tuple[int, Iterable[tuple[Any, Any]]]:
        """The pairs that a dict's constructor is given; Python 2 pickled OrderedDict with [[key, value], …]."""
        if isinstance(arg, Dict):
            return len(arg), arg.pairs
        if not isinstance(arg, (list, tuple)):
            return 0, ()
        return len(arg), ((pair[0], pair[1]) for pair in arg if isinstance(pair, (list, tuple)) and len(pair) == 2)

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
        # Where there are no tensors of scales there are two numbers.
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

    def _inner(self, place: _Place, args: tuple[Any, ...]) -> Iterator[_Place]:
        """_rebuild_device_tensor_from_cpu_tensor, _rebuild_device_tensor_from_numpy: data, dtype, device, …"""
        if args:
            yield place.below(args[0], "")

    def _without_elements(self, place: _Place, args: tuple[Any, ...]) -> Iterator[_Place]:
        """_rebuild_meta_tensor_no_storage: dtype, size, stride, requires_grad"""
        self._contents.notes.add(f"{shown(self._name(place))} is a meta tensor, which has no elements")
        return iter(())

    def _nothing(self, place: _Place, args: tuple[Any, ...]) -> Iterator[_Place]:
        """_rebuild_wrapper_subclass: type, dtype, size, …; the tensors in it are attributes."""
        return iter(())

    def _nested(self, place: _Place, args: tuple[Any, ...]) -> Iterator[_Place]:
        """_rebuild_nested_tensor: values, sizes, strides, offsets"""
        for part, node in zip(("values", "sizes", "strides", "offsets"), args, strict=False):
            yield place.below(node, part)

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

    def _array(self, place: _Place, call: Call, args: tuple[Any, ...]) -> Iterator[_Place]:
        """NumPy's arrays. _reconstruct, built with (version, shape, dtype, in Fortran's order?, bytes or list);
        _frombuffer: bytes, dtype, shape, "C" or "F"."""
        self._charge(TENSOR_STEPS)
        state = call.state if isinstance(call.state, tuple) else ()
        if len(state) == 5:
            shape, kind, fortran, data = state[1:]
        elif len(args) == 4:
            data, kind, shape, order = args
            fortran = order == "F"
        else:
            return
        if isinstance(data, list):  # of objects
            yield from self._of_items(place, data)
            return
        name = self._name(place)
        try:
            array = array_fact(name, numpy_dtype(kind), numbers(shape), fortran is True, data)
        except Malformed as error:
            self._contents.notes.add(f"{shown(name)} is a NumPy array that is kept as part of the pickle: {error}")
            return
        if array is not None:
            self._contents.arrays.append(replace(array, name=self._unique(name)))

    def _add(self, place: _Place, args: tuple[Any, ...], dtype: str | None, metadata: Any) -> None:
        """Note the tensor at ``place``; ``dtype`` is torch's name, or None for that of its storage."""
        self._charge(TENSOR_STEPS)
        name = self._name(place)
        try:
            fact = tensor_fact(place.name(), args, dtype, metadata)
        except Malformed as error:
            self._contents.notes.add(f"{shown(name)} is not named: {error}")
            return
        self._contents.tensors.append(replace(fact, name=self._unique(fact.name)))

    def _name(self, place: _Place) -> str:
        try:
            return place.name()
        except Malformed:
            return "a tensor"

    def _unique(self, name: str) -> str:
        """``name``, or that and a number if there is one of that name."""
        if name in self._taken:
            times = self._taken[name] + 1
            while f"{name}#{times}" in self._taken:
                times += 1
            self._taken[name] = times
            name = f"{name}#{times}"
        self._taken[name] = 1
        return name


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
    "_rebuild_nested_tensor": _Names._nested,
    "_rebuild_wrapper_subclass": _Names._nothing,
    "_rebuild_meta_tensor_no_storage": _Names._without_elements,
    "_rebuild_device_tensor_from_cpu_tensor": _Names._inner,
    "_rebuild_device_tensor_from_numpy": _Names._inner,
    "_rebuild_xla_tensor": _Names._inner,
}


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
    if isinstance(key, Blob):
        return "?" * (MAX_NAME + 1)  # too long a name
    return "?"
