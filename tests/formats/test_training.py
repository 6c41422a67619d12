"""What names say of optimiser state, and whose it is."""

from __future__ import annotations

import pytest

from arzstream.codec.roles import Role
from arzstream.formats.training import Part, Slot, Weight, orders, owners, part_of, slot_of


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
        ("state.3.momentum_buffer", Role.MOMENT, "3", "state"),
        ("state.3.square_avg", Role.SQUARE, "3", "state"),
        ("optimizer.state.3.sum", Role.SQUARE, "3", "optimizer.state"),
        ("state.3.state1", Role.MOMENT, "3", "state"),
        ("layers.0.sum", Role.OTHER, "layers.0.sum", ""),
        ("", Role.OTHER, "", ""),
        ("..exp_avg", Role.MOMENT, ".", ""),
    ],
)
def test_roles_by_name(name: str, role: Role, key: str, owner: str) -> None:
    assert part_of(name) == Part(role, key, owner)


def owners_of(numbered: dict[int, tuple[int, ...]], names: list[Weight]) -> dict[str, int]:
    return owners(numbered, orders(names))


@pytest.mark.parametrize(
    ("name", "slot"),
    [
        ("state.7.exp_avg", Slot("state", "7", "exp_avg")),
        ("optimizer.state.7.old_dirs.0", Slot("optimizer.state", "7", "old_dirs.0")),
        ("optim.state.layers.0.w.exp_avg", Slot("optim.state", "layers.0.w", "exp_avg")),
        ("optim.state.w.exp_avg._local_tensor", Slot("optim.state", "w", "exp_avg._local_tensor")),
        ("optim.state.w.unknown", None),
        ("state.exp_avg", None),
        ("layers.0.w", None),
        ("", None),
    ],
)
def test_slots_of_state(name: str, slot: Slot | None) -> None:
    assert slot_of(name) == slot


MODEL = [("embed", (9, 4)), ("layers.0.norm", (4,)), ("layers.0.w", (4, 4)), ("layers.10.w", (4, 4)), ("norm", (4,))]


def test_numbers_in_the_order_of_the_model() -> None:
    assert owners_of({i: shape for i, (_, shape) in enumerate(MODEL)}, MODEL) == {
        n: i for i, (n, _) in enumerate(MODEL)
    }


def test_numbers_with_weight_decay_first() -> None:
    numbered = {0: (9, 4), 1: (4, 4), 2: (4, 4), 3: (4,), 4: (4,)}
    assert owners_of(numbered, MODEL) == {"embed": 0, "layers.0.w": 1, "layers.10.w": 2, "layers.0.norm": 3, "norm": 4}


def test_names_in_the_order_of_the_alphabet_are_brought_into_that_of_the_model() -> None:
    numbered = {0: (9, 4), 1: (4,), 2: (4, 4), 3: (5, 5)}
    names = [("embed", (9, 4)), ("layers.10.w", (5, 5)), ("layers.2.norm", (4,)), ("layers.2.w", (4, 4))]
    assert owners_of(numbered, names) == {"embed": 0, "layers.2.norm": 1, "layers.2.w": 2, "layers.10.w": 3}


def test_where_orders_do_not_agree_shapes_that_occur_once_do() -> None:
    assert owners_of({0: (4,), 1: (9, 4), 2: (3, 3), 3: (4,)}, MODEL) == {"embed": 1}
    assert owners_of({}, MODEL) == {} and owners_of({0: (1,)}, []) == {}
