"""Plain values out of followed pickles: dicts, attributes and sizes, without any class being known or called."""

from __future__ import annotations

from typing import Any

from arzstream.formats.pickle_walk import Call, Dict, Global

__all__ = ["attributes", "name_of", "numbers", "pairs"]

MOST_DIMENSIONS = 64
_DICTS = ("OrderedDict", "defaultdict", "dict")


def name_of(node: Any) -> str:
    """The name of what ``node`` is made by, for example of its class; empty for a plain value."""
    function = node.function if isinstance(node, Call) else node
    return function.name if isinstance(function, Global) else ""


def pairs(node: Any) -> list[tuple[Any, Any]]:
    """Keys and values of a dict of any kind, in order; none of what is no dict."""
    if not isinstance(node, Call):
        return list(node.pairs) if isinstance(node, Dict) else []
    if name_of(node) not in _DICTS:
        return []
    found: list[tuple[Any, Any]] = []
    for argument in node.args if isinstance(node.args, tuple) else ():
        if isinstance(argument, (list, tuple)):  # as Python 2 pickled an OrderedDict
            found += [(item[0], item[1]) for item in argument if isinstance(item, (list, tuple)) and len(item) == 2]
    return [*found, *node.pairs]


def attributes(node: Any) -> dict[str, Any]:
    """The attributes that an object is given; none of what is no object, or sets them in its own way."""
    state = node.state if isinstance(node, Call) else None
    return {key: value for key, value in pairs(state) if isinstance(key, str)}


def numbers(node: Any) -> tuple[int, ...] | None:
    """A tuple or list of integers that are not negative, or a ``torch.Size``; else None."""
    if isinstance(node, Call) and name_of(node) == "Size" and isinstance(node.args, tuple) and len(node.args) == 1:
        node = node.args[0]
    if not isinstance(node, (tuple, list)) or len(node) > MOST_DIMENSIONS:
        return None
    return tuple(node) if all(type(number) is int and number >= 0 for number in node) else None
