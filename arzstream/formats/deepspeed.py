"""DeepSpeed's optimiser state: what ZeRO flattened and cut into partitions, by parameter again.

A rank's ``zero_pp_rank_D_mp_rank_MM_optim_states.pt`` (``bf16_zero_…``, ``fp16_zero_…``) is an ordinary file of
``torch.save`` whose large tensors are flat: in stages 1 and 2 a slice of all parameters of a group one after the
other, in stage 3 a slice of each parameter (deepspeed/runtime/zero/stage_1_and_2.py and stage3.py, bf16_optimizer.py,
utils/zero_to_fp32.py). Names and shapes are in ``param_shapes`` of the ``…_model_states.pt`` beside it; what
``param_slice_mappings`` say of a rank's own slice must agree. Both are read as data.

Each slice of a parameter becomes a tensor of its own: ``optimizer.state.<parameter>.fp32``, ``….exp_avg``, and so on, a
part of the parameter (rows of it, where all ranks have whole rows; else of the parameter laid out flat). Where shapes
or partitions are not as they should be, the flat tensors keep the names that they have in the file.
"""

from __future__ import annotations

import dataclasses
import math
import re
import weakref
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from arzstream.codec.parts import Part, part_name
from arzstream.formats.base import Layout, Malformed, ReadAt, Storage, View, problem_of
from arzstream.formats.beside import NOTHING, Beside, folder_of, inside
from arzstream.formats.pickle_data import attributes, numbers, pairs
from arzstream.formats.pickle_walk import Machine
from arzstream.formats.torch_pickle import Contents, read_contents
from arzstream.formats.torch_zip import FORMAT, TorchZipParser
from arzstream.formats.zip_records import read_directory
from arzstream.limits import DEFAULT_LIMITS, Limits

__all__ = ["DeepSpeedParser", "is_optimizer_state", "names_others"]

_FILE = re.compile(
    rb"^(?P<kind>(?:[a-z0-9]+_)?)zero_pp_rank_(?P<rank>\d{1,6})_mp_rank_(?P<model>\d+)_optim_states\.pt$"
)
_NAMING = re.compile(rb"_model_states\.pt$|zero_pp_rank_0_mp_rank_\d+_optim_states\.pt$")
_FLAT = re.compile(
    r"^optimizer_state_dict\.(?:(?P<key>single_partition_of_fp32_groups|fp32_flat_groups)\.(?P<group>\d{1,6})"
    r"|(?:base_optimizer_state|optimizer_state_dict)\.state\.(?P<number>\d{1,6})\.(?P<state>\w+))$"
)
_STAGE_3 = "fp32_flat_groups"
_ITEM = 4

Groups = list[list[tuple[str, tuple[int, ...]]]]
"""Parameters by group, in order: name and shape."""


def is_optimizer_state(path: bytes) -> bool:
    """Is this, by its name, what a rank writes of its optimiser?"""
    return _FILE.match(path.rpartition(b"/")[2]) is not None


def names_others(path: bytes) -> bool:
    """Do parsers of other files look into this one for names?"""
    return _NAMING.search(path) is not None


class Slice(NamedTuple):
    """``length`` elements of a flat tensor from ``start`` on are those of a parameter of ``shape`` from ``offset`` on.
    ``rows``: every rank has whole rows of it."""

    name: str
    shape: tuple[int, ...]
    start: int
    offset: int
    length: int
    rows: bool


class DeepSpeedParser:
    """A :class:`TorchZipParser` that cuts flat tensors into those of parameters. While a file lands, nothing is said
    about it before the files with the names are there."""

    def __init__(self, path: bytes, beside: Beside = NOTHING, limits: Limits = DEFAULT_LIMITS) -> None:
        match = _FILE.match(path.rpartition(b"/")[2])
        assert match is not None
        self._rank, self._model, self._kind = int(match["rank"]), match["model"], match["kind"]
        self._folder, self._beside, self._limits = folder_of(path), beside, limits
        self._plain = TorchZipParser(limits)

    def update(self, read: ReadAt, frontier: int, final: bool) -> Layout:
        layout = self._plain.update(read, frontier, final)
        # The state comes before the weights, whose lengths tell where it is to be cut: the pickle has both.
        flat = _flat(layout) if layout.complete else _flat_to_come(self._plain.described)
        if layout.format != FORMAT or not flat or (not final and self._beside is NOTHING):
            return layout
        try:
            slices = self._slices(flat)
            if final:
                _check_mappings(_mappings(read, frontier, self._limits), slices)
        except Malformed as error:
            if not final:
                return dataclasses.replace(layout, storages=(), size=None)  # they will be known
            note = f"flat tensors of its optimiser are not cut into parameters: {error}"
            return dataclasses.replace(layout, note=f"{layout.note}; {note}" if layout.note else note)
        prefix = f"mp_rank_{self._model.decode()}." if int(self._model) else ""
        storages = [piece for s in layout.storages for piece in _cut(s, flat, slices, prefix)]
        cut = dataclasses.replace(layout, storages=tuple(storages))
        return layout if problem_of(cut) else cut

    def _slices(self, flat: Mapping[str, tuple[str, int, int]]) -> dict[int, list[Slice]]:
        """What of which parameter lies where in the flat tensors of each group. Raises :class:`Malformed`."""
        sizes = {group: count for key, group, count in flat.values() if key == "fp32"}
        stage_3 = any(_STAGE_3 in name for name in flat)
        model = b"mp_rank_%s_model_states.pt" % self._model
        groups = self._shapes(b"%szero_pp_rank_%d_" % (b"", self._rank) + model if stage_3 else model)
        first = b"%szero_pp_rank_0_mp_rank_%s_optim_states.pt" % (self._kind, self._model)
        if stage_3:
            ranks = self._ranks()
            return _slices_of_each(groups, sizes, self._rank, ranks)
        whole = self._facts(first, _partition_sizes) if self._rank else _largest(flat.values())
        return {
            group: _slices_of_all(groups[group], self._rank, whole.get(group, 0), count)
            for group, count in sizes.items()
            if group < len(groups)
        }

    def _ranks(self) -> int:
        names = (path.rpartition(b"/") for path in self._beside.paths())
        found = [_FILE.match(name) for folder, _, name in names if folder == self._folder]
        return len({int(match["rank"]) for match in found if match and match["model"] == self._model})

    def _shapes(self, name: bytes) -> Groups:
        found: Groups = self._facts(name, _param_shapes)
        return found

    def _facts(self, name: bytes, make: Any) -> Any:
        """What ``make`` finds in the pickle of another file of the folder."""
        path = inside(self._folder, name)
        version = self._beside.version(path)
        held = _known.setdefault(self._beside, {})
        if version is None:
            raise Malformed(f"{name.decode()} is not beside it")
        if path not in held or held[path][0] != version:
            held[path] = version, make(_pickle(self._beside, path, self._limits))
        return held[path][1]


_known: weakref.WeakKeyDictionary[Beside, dict[bytes, tuple[Hashable, Any]]] = weakref.WeakKeyDictionary()
"""What was read of the files of a checkpoint: every rank's parser wants it."""


def _pickle(beside: Beside, path: bytes, limits: Limits) -> bytes:
    """The ``data.pkl`` of a file of ``torch.save``."""
    return _data(lambda offset, length: beside.read(path, offset, length), beside.size(path), limits)


def _data(read: ReadAt, size: int, limits: Limits) -> bytes:
    for record in read_directory(read, size, limits):
        if record.name.partition(b"/")[2] == b"data.pkl" and not record.method and record.size <= limits.metadata_bytes:
            return read(record.start, record.size)
    raise Malformed("a file has no pickle")


def _param_shapes(data: bytes) -> Groups:
    root = dict(_named(pairs(Machine(data).run())))
    listed = root.get("param_shapes")
    groups: Groups = []
    for group in listed if isinstance(listed, list) else [listed]:
        shapes = [(name, numbers(shape)) for name, shape in _named(pairs(group))]
        groups.append([(name, shape) for name, shape in shapes if shape is not None])
        if len(groups[-1]) != len(shapes):
            raise Malformed("its param_shapes are not shapes")
    if not any(groups):
        raise Malformed("it has no param_shapes")
    return groups


def _named(items: Sequence[tuple[Any, Any]]) -> Iterator[tuple[str, Any]]:
    return ((key, value) for key, value in items if isinstance(key, str))


def _partition_sizes(data: bytes) -> dict[int, int]:
    """Elements of the flat tensor of each group."""
    matches = ((_FLAT.match(tensor.name), tensor) for tensor in read_contents(data).tensors)
    return _largest(("", int(m["group"] or m["number"]), math.prod(t.shape)) for m, t in matches if m)


def _largest(flat: Iterable[tuple[str, int, int]]) -> dict[int, int]:
    """Of each group; the state of the last rank is filled up, its weights are not."""
    found: dict[int, int] = {}
    for _, group, count in flat:
        found[group] = max(found.get(group, 0), count)
    return found


def _mappings(read: ReadAt, size: int, limits: Limits) -> list[dict[str, tuple[int, int]]]:
    """Parameter → (start, length) of its slice in the flat tensor of a group, as the file itself says; or nothing."""
    root = dict(_named(pairs(Machine(_data(read, size, limits)).run())))
    state = dict(_named(pairs(root.get("optimizer_state_dict"))))
    groups = state.get("param_slice_mappings")
    found = []
    for group in groups if isinstance(groups, list) else ():
        known = {name: attributes(address) for name, address in _named(pairs(group))}
        found.append({name: (address.get("start", -1), address.get("numel", -1)) for name, address in known.items()})
    return found


def _check_mappings(mappings: Sequence[Mapping[str, tuple[int, int]]], slices: Mapping[int, Sequence[Slice]]) -> None:
    for group, mapping in enumerate(mappings):
        if mapping and mapping != {piece.name: (piece.start, piece.length) for piece in slices.get(group, ())}:
            raise Malformed("its parameters lie in another order than their shapes")


def _flat(layout: Layout) -> dict[str, tuple[str, int, int]]:
    """The flat tensors of a file by name: what of the optimiser they are, their group, their elements."""
    views = [(s.dtype, view) for s in layout.storages for view in s.views if view.strides is None]
    return _flat_among((view.name, dtype, view.shape) for dtype, view in views)


def _flat_to_come(contents: Contents) -> dict[str, tuple[str, int, int]]:
    """The same, of tensors that a pickle tells of."""
    dtypes = {key: storage.dtype for key, storage in contents.storages.items()}
    flat = [tensor for tensor in contents.tensors if tensor.strides == (1,)]
    return _flat_among((t.name, t.dtype or dtypes.get(t.key), t.shape) for t in flat)


def _flat_among(tensors: Iterable[tuple[str, str | None, tuple[int, ...]]]) -> dict[str, tuple[str, int, int]]:
    found: dict[str, tuple[str, int, int]] = {}
    for name, dtype, shape in tensors:
        match = _FLAT.match(name)
        if match and len(shape) == 1 and dtype == "F32":
            key = "fp32" if match["key"] else match["state"]
            found[name] = key, int(match["group"] or match["number"]), shape[0]
    sizes = {group: count for key, group, count in found.values() if key == "fp32"}
    return {name: item for name, item in found.items() if item[1] in sizes and item[2] >= sizes[item[1]] > 0}


def _slices_of_all(parameters: Sequence[tuple[str, tuple[int, ...]]], rank: int, size: int, count: int) -> list[Slice]:
    """Stages 1 and 2: parameters lie one after the other, and each rank has ``size`` elements of them; this one,
    perhaps the last, ``count``."""
    total = sum(math.prod(shape) for _, shape in parameters)
    if not size or count > size or min((rank + 1) * size, total) - rank * size > count:
        raise Malformed("partitions are not as large as their parameters")
    low, high, at = rank * size, rank * size + count, 0
    found = []
    for name, shape in parameters:
        length = math.prod(shape)
        first, last = max(low, at), min(high, at + length)
        if first < last:
            inner = math.prod(shape[1:])
            cut = -(-(at + 1) // size) * size  # the first partition that begins inside it, if one does
            one, more = cut < at + length, cut + size < at + length
            rows = bool(shape) and not (one and (cut - at) % inner) and not (more and size % inner)
            found.append(Slice(name, shape, first - low, first - at, last - first, rows))
        at += length
    return found


def _slices_of_each(groups: Groups, sizes: Mapping[int, int], rank: int, ranks: int) -> dict[int, list[Slice]]:
    """Stage 3: of each parameter every rank has a slice, the last ones filled up; slices lie one after the other in
    flat tensors that end between parameters."""
    found: dict[int, list[Slice]] = {group: [] for group in sizes}
    order = sorted(sizes)
    at = 0
    for name, shape in (item for group in groups for item in group):
        length = math.prod(shape)
        share = -(-length // ranks) if ranks else 0
        while order and at == sizes[order[0]]:
            order.pop(0)
            at = 0
        if not order or at + share > sizes[order[0]]:
            raise Malformed("partitions are not as large as their parameters")
        count = max(0, min(share, length - rank * share))
        inner = math.prod(shape[1:])
        if count:
            rows = bool(shape) and share % inner == 0
            found[order[0]].append(Slice(name, shape, at, rank * share, count, rows))
        at += share
    return found


def _cut(
    storage: Storage, flat: Mapping[str, tuple[str, int, int]], slices: Mapping[int, Sequence[Slice]], prefix: str
) -> Iterator[Storage]:
    """A storage that is one flat tensor, cut where parameters begin and end; another one as it is."""
    view = storage.views[0] if len(storage.views) == 1 else None
    if view is None or view.name not in flat or view.start or storage.nbytes != _ITEM * view.shape[0]:
        yield storage
        return
    key, group, count = flat[view.name]
    at = 0
    for piece in slices.get(group, ()):
        if piece.start > at:
            yield _rest(storage, at, piece.start)
        offset = storage.offset + _ITEM * piece.start
        yield Storage(storage.dtype, offset, _ITEM * piece.length, (_view(piece, key, prefix),))
        at = piece.start + piece.length
    if at < count:
        yield _rest(storage, at, count)


def _rest(storage: Storage, start: int, end: int) -> Storage:
    """What fills a partition up."""
    return Storage(storage.dtype, storage.offset + _ITEM * start, _ITEM * (end - start))


def _view(piece: Slice, key: str, prefix: str) -> View:
    name = f"{prefix}optimizer.state.{piece.name}.{key}"
    length = math.prod(piece.shape)
    if piece.length == length:
        return View(name, piece.shape)
    if piece.rows:
        inner = math.prod(piece.shape[1:])
        shape = (piece.length // inner, *piece.shape[1:])
        place = (piece.offset // inner, *(0 for _ in piece.shape[1:]))
        return View(part_name(name, place, shape), shape, part=Part(piece.shape, place))
    flat = (piece.length,)
    return View(part_name(name, (piece.offset,), flat), flat, part=Part((length,), (piece.offset,)))
