"""What names say of optimiser state, and whose it is."""

from __future__ import annotations

import pytest

from arzstream.codec.roles import Role
from arzstream.formats.training import Part, owners, part_of


@pytest.mark.parametrize(
    ("name", "role", "key", "owner"),
    [
        ("state.7.exp_avg", Role.MOMENT, "7", "state"),
        ("optimizer.state.7.exp_avg_sq", Role.SQUARE, "7", "optimizer.state"),
        ("optimizer.state.layers.0.w.exp_avg", Role.MOMENT, "layers.0.w", "optimizer.state"),
        ("exp_avg.layers.0.w", Role.MOMENT, "layers.0.w", ""),
        ("layers.0.w.exp_avg_sq", Role.SQUARE, "layers.0.w", ""),
        ("master.layers.0.w", Role.MASTER, "layers.0.w", ""),
        ("optimizer.fp32_param.layers.0.w", Role.MASTER, "layers.0.w", "optimizer"),
        ("m.layers.0.w", Role.MOMENT, "layers.0.w", ""),
        ("layers.0.w.v", Role.SQUARE, "layers.0.w", ""),
        ("opt_state.mu.layers.0.kernel", Role.MOMENT, "layers.0.kernel", "opt_state"),
        ("layers.0.attn.v.weight", Role.OTHER, "layers.0.attn.v.weight", ""),
        ("layers.0.w", Role.OTHER, "layers.0.w", ""),
        ("m", Role.OTHER, "m", ""),
        ("", Role.OTHER, "", ""),
        ("..exp_avg", Role.MOMENT, ".", ""),
    ],
)
def test_roles_by_name(name: str, role: Role, key: str, owner: str) -> None:
    assert part_of(name) == Part(role, key, owner)


MODEL = [("embed", (9, 4)), ("layers.0.norm", (4,)), ("layers.0.w", (4, 4)), ("layers.10.w", (4, 4)), ("norm", (4,))]


def test_numbers_in_the_order_of_the_model() -> None:
    assert owners({i: shape for i, (_, shape) in enumerate(MODEL)}, MODEL) == {n: i for i, (n, _) in enumerate(MODEL)}


def test_numbers_with_weight_decay_first() -> None:
    numbered = {0: (9, 4), 1: (4, 4), 2: (4, 4), 3: (4,), 4: (4,)}
    assert owners(numbered, MODEL) == {"embed": 0, "layers.0.w": 1, "layers.10.w": 2, "layers.0.norm": 3, "norm": 4}


def test_names_in_the_order_of_the_alphabet_are_brought_into_that_of_the_model() -> None:
    numbered = {0: (9, 4), 1: (4,), 2: (4, 4), 3: (5, 5)}
    names = [("embed", (9, 4)), ("layers.10.w", (5, 5)), ("layers.2.norm", (4,)), ("layers.2.w", (4, 4))]
    assert owners(numbered, names) == {"embed": 0, "layers.2.norm": 1, "layers.2.w": 2, "layers.10.w": 3}


def test_where_orders_do_not_agree_shapes_that_occur_once_do() -> None:
    assert owners({0: (4,), 1: (9, 4), 2: (3, 3), 3: (4,)}, MODEL) == {"embed": 1}
    assert owners({}, MODEL) == {} and owners({0: (1,)}, []) == {}
