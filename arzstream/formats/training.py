"""What the names of tensors say of their part in training: master weights, Adam's moments, and of which weights.

Known are the state dicts of torch's optimisers, whose tensors are numbered (``optimizer.state.7.exp_avg``), and names
that hold the weight's (``master.model.norm.weight``, ``model.norm.weight.exp_avg_sq``, ``v.model.norm.weight``).
All of it is a guess, which costs nothing when it is wrong but the time to find out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from arzstream.codec.parts import split_name
from arzstream.codec.roles import Role
from arzstream.formats.order import layer_key, layer_of

__all__ = ["Part", "owners", "part_of"]

_WORDS = {
    Role.MOMENT: ("exp_avg", "first_moment", "moment1", "mu", "m"),
    Role.SQUARE: ("exp_avg_sq", "second_moment", "moment2", "nu", "v"),
    Role.MASTER: (
        "master", "master_weight", "master_weights", "master_param", "master_params", "main_param", "main_params",
        "fp32_master", "fp32_param", "fp32_params", "fp32_weight", "fp32_weights", "fp32",
    ),
}  # fmt: skip
_ROLES = {word: role for role, words in _WORDS.items() for word in words}
_SHORT = 2
"""Words of so many letters may be parts of a weight's name, too, and count only at its ends."""
_CONTAINERS = frozenset({"optimizer", "optimizer_state", "optimizer_states", "optim", "opt", "opt_state", "state"})


class Part(NamedTuple):
    """A tensor's part in training; whose it is: a weight's name, or a number; and what of the name is before that."""

    role: Role
    key: str
    owner: str

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
    for i in range(start, len(parts) if len(parts) > 1 else 0):
        role = _ROLES.get(parts[i].lower())
        if role is not None and (len(parts[i]) > _SHORT or i in (start, len(parts) - 1)):
            rest = parts[start:i] + parts[i + 1 :]
            return Part(role, ".".join(rest) + place, ".".join(parts[:start]))
    return Part(Role.OTHER, name + place, "")


Shape = tuple[int, ...]


def owners(numbered: Mapping[int, Shape], names: Sequence[tuple[str, Shape]]) -> dict[str, int]:
    """Which number is whose: ``numbered`` state has these shapes, and the weights ``names`` theirs, in some order.

    Optimisers number weights in the order of the model, or those with weight decay, the matrices, before the others.
    Of these orders the first counts in which all shapes agree; where none does, shapes that occur once.
    """
    numbers = sorted(numbered)
    shapes = [numbered[n] for n in numbers]
    natural = sorted(names, key=lambda item: layer_key(layer_of(item[0])))
    for order in (list(names), natural):
        split = [item for item in order if len(item[1]) > 1] + [item for item in order if len(item[1]) <= 1]
        for tried in (order, split):
            if [shape for _, shape in tried] == shapes:
                return {name: number for (name, _), number in zip(tried, numbers, strict=True)}
    single = {shape: n for n, shape in numbered.items() if shapes.count(shape) == 1}
    listed = [shape for _, shape in names]
    return {name: single[shape] for name, shape in names if shape in single and listed.count(shape) == 1}
