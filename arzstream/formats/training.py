"""What the names of tensors say of their part in training: master weights, Adam's moments, and of which weights.

Known are the state dicts of torch's optimisers, whose tensors are numbered (``optimizer.state.7.exp_avg``), and names
that hold the weight's (``master.model.norm.weight``, ``model.norm.weight.exp_avg_sq``, ``v.model.norm.weight``).
What each of torch's optimisers keeps is known, and what bitsandbytes' do.
All of it is a guess, which costs nothing when it is wrong but the time to find out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from arzstream.codec.parts import split_name
from arzstream.codec.roles import Role
from arzstream.formats.order import layer_key, layer_of

__all__ = ["Part", "Slot", "Weight", "orders", "owners", "part_of", "shape_of", "slot_of"]

_WORDS = {
    Role.MOMENT: ("exp_avg", "momentum_buffer", "grad_avg", "first_moment", "moment1", "mu", "m"),
    Role.SQUARE: ("exp_avg_sq", "square_avg", "exp_inf", "second_moment", "moment2", "nu", "v"),
    Role.MASTER: (
        "master", "master_weight", "master_weights", "master_param", "master_params", "main_param", "main_params",
        "fp32_master", "fp32_param", "fp32_params", "fp32_weight", "fp32_weights", "fp32",
    ),
}  # fmt: skip
_ROLES = {word: role for role, words in _WORDS.items() for word in words}
_IN_STATE = {
    # what Adagrad, Rprop and bitsandbytes call it
    "sum": Role.SQUARE, "prev": Role.MOMENT, "state1": Role.MOMENT, "state2": Role.SQUARE,
    # beside another one, which is what helps: Adadelta, AMSGrad
    "acc_delta": Role.MOMENT, "max_exp_avg_sq": Role.SQUARE,
}  # fmt: skip
"""Words that count only at the end of a name beneath an optimiser's state."""
_SECOND = frozenset({"acc_delta", "max_exp_avg_sq"})
_WHOLE = frozenset(
    [word for word in (*_ROLES, *_IN_STATE) if len(word) > 2 and _ROLES.get(word) != Role.MASTER] + ["ax", "variance"]
)
"""Parts of a parameter's state that have its shape."""
_SLOTS = _WHOLE | {
    "step", "eta", "mu", "mu_product", "step_size", "row_var", "col_var", "exp_avg_sq_row", "exp_avg_sq_col", "RMS",
    "qmap1", "qmap2", "absmax1", "absmax2", "max1", "max2", "new_max1", "new_max2", "gnorm_vec", "unorm_vec",
}  # fmt: skip
"""What the optimisers of torch, transformers and bitsandbytes call the parts of a parameter's state."""
_SHORT = 2
"""Words of so many letters may be parts of a weight's name, too, and count only at its ends."""
_CONTAINERS = frozenset({"optimizer", "optimizer_state", "optimizer_states", "optim", "opt", "opt_state", "state"})


_STATES = frozenset({"state", "opt_state", "optimizer_state", "optim_state"})


class Part(NamedTuple):
    """A tensor's part in training; whose it is: a weight's name, or a number; what of the name is before that; and
    whether there is another part of this role that tells more of the others."""

    role: Role
    key: str
    owner: str
    second: bool = False

    @property
    def numbered(self) -> bool:
        return self.key.isascii() and self.key.isdigit()


def part_of(name: str) -> Part:
    """What the tensor called ``name`` is; any string gives an answer. Of a part, the key says which part."""
    name, place = split_name(name)
    parts = name.split(".")
    start = 0
    while start < len(parts) - 1 and parts[start].lower() in _CONTAINERS:
        start += 1
    word = parts[-1].lower()
    if start and start < len(parts) - 1 and word in _IN_STATE:
        return Part(_IN_STATE[word], ".".join(parts[start:-1]) + place, ".".join(parts[:start]), word in _SECOND)
    for i in range(start, len(parts) if len(parts) > 1 else 0):
        role = _ROLES.get(parts[i].lower())
        if role is not None and (len(parts[i]) > _SHORT or i in (start, len(parts) - 1)):
            rest = parts[start:i] + parts[i + 1 :]
            return Part(role, ".".join(rest) + place, ".".join(parts[:start]))
    return Part(Role.OTHER, name + place, "")


class Slot(NamedTuple):
    """A tensor of an optimiser's state: what of the name is before the key, the key, and what it is called after it."""

    owner: str
    key: str
    slot: str


def slot_of(name: str) -> Slot | None:
    """The part of a parameter's state that the tensor called ``name`` is; None if it is none."""
    parts = name.split(".")
    start = next((i + 1 for i, part in enumerate(parts[:-2]) if part.lower() in _STATES), 0)
    if not start:
        return None
    owner = ".".join(parts[:start])
    if parts[start].isascii() and parts[start].isdigit():
        return Slot(owner, parts[start], ".".join(parts[start + 1 :]))
    for end in range(len(parts) - 1, start, -1):
        if parts[end] in _SLOTS:
            return Slot(owner, ".".join(parts[start:end]), ".".join(parts[end:]))
    return None


Shape = tuple[int, ...]
Weight = tuple[str, Shape]


def orders(names: Sequence[Weight]) -> list[list[Weight]]:
    """The orders in which an optimiser may number the weights ``names``, likelier ones first: as they are, or as a
    model has them; all, or those with weight decay, the matrices, and the others behind them, or before."""
    natural = sorted(names, key=lambda item: layer_key(layer_of(item[0])))
    return [tried for order in (list(names), natural) for tried in (order, *_split(order))]


def owners(numbered: Mapping[int, Shape], tried: Sequence[Sequence[Weight]]) -> dict[str, int]:
    """Which number is whose: ``numbered`` state has these shapes, and the weights theirs, in one of the orders
    ``tried``.

    The first counts in which all shapes agree. Weights that were never trained may have no state, but have a number,
    or none. Where no order agrees, shapes count that occur once.
    """
    numbers = sorted(numbered)
    shapes = [numbered[n] for n in numbers]
    for order in tried:
        if len(order) == len(shapes) and [shape for _, shape in order] == shapes:
            return {name: number for (name, _), number in zip(order, numbers, strict=True)}
    for order in tried:
        if numbers and numbers[-1] < len(order) and all(order[n][1] == numbered[n] for n in numbers):
            return {order[n][0]: n for n in numbers}
    once = Counter(shapes)
    single = {shape: n for n, shape in numbered.items() if once[shape] == 1}
    names = tried[0] if tried else []
    listed = Counter(shape for _, shape in names)
    return {name: single[shape] for name, shape in names if shape in single and listed[shape] == 1}


def shape_of(slots: Mapping[str, Shape]) -> Shape | None:
    """The shape of the parameter whose state has parts of these shapes; None if they do not tell."""
    for slot, shape in slots.items():
        if slot in _WHOLE:
            return shape
    row, column = slots.get("row_var"), slots.get("col_var")
    if row and column and len(row) == len(column) and row[-1] == 1:
        return (*row[:-1], column[-1])
    return None


def _split(order: Sequence[Weight]) -> Iterator[list[Weight]]:
    """Those with weight decay before or behind those without: what is no matrix, or is called a bias or a norm."""
    for decays in (_is_matrix, _is_weight):
        with_decay = [item for item in order if decays(item)]
        without = [item for item in order if not decays(item)]
        yield with_decay + without
        yield without + with_decay


def _is_matrix(item: Weight) -> bool:
    return len(item[1]) > 1


def _is_weight(item: Weight) -> bool:
    return not _NO_DECAY.search(item[0])


_NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|[._])(?:norm|ln)(?:$|[._\d])", re.IGNORECASE)
