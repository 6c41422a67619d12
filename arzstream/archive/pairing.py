"""Whose the tensors of an optimiser's state are: their parameters' names, as far as they can be known.

State that is keyed by names says so itself. Where it is numbered, as in the state dicts of torch's optimisers, the
numbers count parameters in an order that the file does not tell: the weights of the same file or of another one beside
it are tried in their own order and others (``formats/training.owners``), and all shapes have to agree. Weights of
safetensors files come in the order of the alphabet; there, those of one layer that have one shape are told apart by
nothing, and have no state that is known to be theirs. None of this is needed to decode anything.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from arzstream.container.records import Kind, Piece
from arzstream.formats.order import layer_of
from arzstream.formats.training import Weight, orders, owners, part_of, shape_of, slot_of

if TYPE_CHECKING:
    from arzstream.archive.reader import Archive

__all__ = ["Held", "parameters", "parameters_of"]

_ORDERED = frozenset({"torch-zip"})
"""Formats that keep tensors in the order in which they were saved."""
_NEVER_TRAINED = ("running_mean", "running_var", "num_batches_tracked", "position_ids", "inv_freq", "masked_bias")
_WRAPPERS = ("module.", "_orig_mod.", "model.")
MOST_MODELS, MOST_STATES = 16, 64
"""Beyond so many models in a file, and states of optimisers, they are not told apart."""

Shape = tuple[int, ...]
State = dict[str, dict[str, Shape]]
"""Shapes of the parts of each parameter's state, by key."""


class Held(NamedTuple):
    """The tensors of a file, in their order, with their shapes."""

    format: str
    tensors: Sequence[Weight]


def parameters_of(archive: Archive) -> dict[str, str]:
    """The parameter's name for each tensor of optimiser state in ``archive`` whose parameter is known."""
    return parameters({path: _held(archive, path) for path in archive.catalog.files})


def parameters(files: Mapping[str, Held]) -> dict[str, str]:
    """The same for the tensors of these files."""
    weights = [(path, group) for path, held in files.items() for group in _weights(held)]
    together = _together(files)
    found: dict[str, str] = {}
    for path, held in files.items():
        groups: dict[str, State] = defaultdict(lambda: defaultdict(dict))
        members: dict[tuple[str, str], list[str]] = defaultdict(list)
        for name, shape in held.tensors:
            slot = slot_of(name)
            if slot is not None:
                groups[slot.owner][slot.key][slot.slot] = shape
                members[slot.owner, slot.key].append(name)
        near = [group for place, group in weights if place == path]
        near += together + [group for place, group in weights if place != path][:MOST_STATES]
        for owner, state in itertools.islice(groups.items(), MOST_STATES):
            for key, name in _paired(state, near).items():
                found.update(dict.fromkeys(members[owner, key], name))
    return found


@dataclasses.dataclass(frozen=True)
class _Group:
    """Weights that may be one model's: names, as they are called in it, with their shapes; their whole names; and
    whether their order means anything."""

    names: Sequence[Weight]
    whole: Mapping[str, str]
    ordered: bool

    @functools.cached_property
    def orders(self) -> list[list[Weight]]:
        return orders(self.names)

    @functools.cached_property
    def alike(self) -> Counter[tuple[str, Shape]]:
        """How many weights of one layer have one shape."""
        return Counter((layer_of(name), shape) for name, shape in self.names)


def _weights(held: Held) -> Iterator[_Group]:
    """The weights of a file: all of them, and where there are several models, each."""
    plain = [(n, s) for n, s in held.tensors if slot_of(n) is None and not n.endswith(_NEVER_TRAINED)]
    ordered = held.format in _ORDERED
    masters = [(part_of(n), n, s) for n, s in plain if part_of(n).key != n]
    if masters:
        names = [(part.key, shape) for part, _, shape in masters]
        yield _Group(names, {part.key: name for part, name, _ in masters}, ordered)
    rest = [(n, s) for n, s in plain if part_of(n).key == n]
    roots = Counter(name.partition(".")[0] for name, _ in rest)
    models = list(roots) if len(roots) <= MOST_MODELS else []
    for prefix in ("", *(f"{root}." for root in models)):
        names = [(n.removeprefix(prefix), s) for n, s in rest if n.startswith(prefix)]
        yield _Group(names, {n.removeprefix(prefix): n for n, _ in rest if n.startswith(prefix)}, ordered)


def _together(files: Mapping[str, Held]) -> list[_Group]:
    """The weights of all files that hold no state, as one model in shards; nothing if there is only one."""
    found: dict[str, Shape] = {}
    holding = [held for held in files.values() if held.tensors]
    holding = [held for held in holding if all(slot_of(name) is None for name, _ in held.tensors)]
    for held in holding:
        for name, shape in held.tensors:
            if not name.endswith(_NEVER_TRAINED):
                found.setdefault(name, shape)
    if len(holding) < 2:
        return []
    return [_Group(list(found.items()), {n: n for n in found}, all(h.format in _ORDERED for h in holding))]


def _paired(state: State, groups: Sequence[_Group]) -> dict[str, str]:
    """The weights whose state the keys of ``state`` are."""
    shapes = {key: shape_of(slots) for key, slots in state.items()}
    numbered = {int(key): shape for key, shape in shapes.items() if key.isdigit() and shape is not None}
    best: dict[str, str] = {}
    for group in groups:
        if numbered:
            paired = {str(n): name for name, n in owners(numbered, group.orders).items()}
            if not group.ordered:
                of = dict(group.names)
                paired = {key: name for key, name in paired.items() if group.alike[layer_of(name), of[name]] == 1}
        else:
            paired = _by_name(shapes, dict(group.names))
        paired = {key: group.whole[name] for key, name in paired.items()}
        best = max(best, paired, key=len)  # the nearest of several that are as good
        if len(best) == len(state):
            break
    return best


def _by_name(shapes: Mapping[str, Shape | None], names: Mapping[str, Shape]) -> dict[str, str]:
    """State that is keyed by names: these, perhaps with a wrapper's name before them, or without. It may be flat."""
    found: dict[str, str] = {}
    for key, shape in shapes.items():
        bare = key.replace("_fsdp_wrapped_module.", "").replace("_checkpoint_wrapped_module.", "")
        for wrapper in ("", *_WRAPPERS):
            for name in (wrapper + bare, bare.removeprefix(wrapper)):
                if name in names and (shape in (None, names[name]) or shape == (math.prod(names[name]),)):
                    found.setdefault(key, name)
    return found


def _held(archive: Archive, path: str) -> Held:
    """The tensors of a file in the order in which they lie there."""
    record = archive.catalog.files[path]
    if record.kind != Kind.REGULAR:
        return Held("", ())
    runs: dict[int, list[tuple[int, int]]] = defaultdict(list)
    at = 0
    for piece in record.recipe:
        if isinstance(piece, Piece):
            runs[piece.unit].append((piece.offset, at))
        at += piece.length if isinstance(piece, Piece) else len(piece)
    for of_unit in runs.values():
        of_unit.sort()
    placed = []
    for name, place in archive.catalog.tensors.items():
        of_unit = runs.get(place.entry.number, [])
        start = place.member.start * place.entry.unit.type.itemsize
        i = bisect.bisect_right(of_unit, (start, 1 << 63)) - 1
        if place.path == path and i >= 0:
            placed.append((of_unit[i][1] + start - of_unit[i][0], name, place.shape))
    placed.sort(key=lambda item: item[0])
    tensors, seen = [], set()
    for at, name, shape in placed:  # of tied weights the first counts: that is the one that optimisers number
        if slot_of(name) is not None or (at, shape) not in seen:
            tensors.append((name, shape))
        seen.add((at, shape))
    return Held(record.format, tensors)
