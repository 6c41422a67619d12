"""Which small tensors share a unit across layers, and that nobody notices but by the size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from arzstream.archive.sharing import FULL_BYTES, LITTLE_BYTES, plan_units
from arzstream.formats.base import Storage, View
from arzstream.formats.order import layer_of
from arzstream.testing.tensors import Tensor, safetensors_bytes

New = Callable[..., Any]
ITEM = {"F32": 4, "I64": 8}


def storages(listed: Sequence[tuple[str, str, int]]) -> dict[str, list[Storage]]:
    """(name, dtype, bytes) of tensors that lie in a file one after the other → by layer."""
    found: dict[str, list[Storage]] = {}
    offset = 0
    for name, dtype, nbytes in listed:
        view = View(name, (nbytes // ITEM[dtype],))
        found.setdefault(layer_of(name), []).append(Storage(dtype, offset, nbytes, (view,)))
        offset += nbytes
    return found


def planned(listed: Sequence[tuple[str, str, int]]) -> list[tuple[str, list[list[str | None]]]]:
    """Layers in order, and the names in each of their units."""
    plan = plan_units(storages(listed))
    return [(layer, [[m.name for m in one.unit.members] for one, _ in units]) for layer, units in plan]


def test_layers_that_have_little_share_units_which_stand_with_the_first() -> None:
    size = FULL_BYTES // 4
    found = planned([(f"h.{i}.w", "F32", size) for i in range(7)])
    names = [f"h.{i}.w" for i in range(7)]
    assert found == [
        ("h.0", [names[:4]]), ("h.1", []), ("h.2", []), ("h.3", []), ("h.4", [names[4:]]), ("h.5", []), ("h.6", []),
    ]  # fmt: skip


def test_a_layer_that_has_enough_is_on_its_own_and_the_others_share_around_it() -> None:
    found = planned([("h.0.w", "F32", 64), ("h.1.w", "F32", LITTLE_BYTES), ("h.2.w", "F32", 64)])
    assert found == [("h.0", [["h.0.w", "h.2.w"]]), ("h.1", [["h.1.w"]]), ("h.2", [])]


def test_a_lone_layer_is_planned_as_ever() -> None:
    assert planned([("h.0.a", "F32", 64), ("h.0.b", "F32", 64)]) == [("h.0", [["h.0.a", "h.0.b"]])]


@pytest.mark.parametrize(
    "names", [("wte.a", "h.0.a"), ("h.0.a", "ln_f.a"), ("h.0.a", "optimizer.state.0.a")], ids=lambda names: names[1]
)
def test_what_is_not_read_together_does_not_share(names: tuple[str, str]) -> None:
    found = planned([(name, "F32", 64) for name in names])
    assert sorted(units for _, units in found) == [[[name]] for name in sorted(names)]


def test_types_do_not_share() -> None:
    found = planned([(f"h.{i}.{dtype}", dtype, 64) for i in range(2) for dtype in ("F32", "I64")])
    assert found == [("h.0", [["h.0.F32", "h.1.F32"], ["h.0.I64", "h.1.I64"]]), ("h.1", [])]


def test_the_bytes_are_in_file_order_and_the_tensors_in_layer_order() -> None:
    listed = [(f"h.{i}.w", "F32", 64) for i in (0, 1, 10, 2)]
    (_, [(one, held)]), *_ = plan_units(storages(listed))
    assert [m.name for m in one.unit.members] == ["h.0.w", "h.1.w", "h.2.w", "h.10.w"]
    assert [m.start for m in one.unit.members] == [0, 16, 48, 32]
    assert [s.offset for s in held] == [0, 64, 128, 192]


def test_layers_are_told_by_name_where_a_unit_is_shared(built: New) -> None:
    tensors = [Tensor(f"h.{i}.{n}", "F32", (8,), np.full(8, i, "<f4").tobytes()) for i in range(12) for n in "ab"]
    tensors.sort(key=lambda tensor: tensor.name)  # h.10 before h.2
    archive = built({b"m.safetensors": safetensors_bytes(tensors)}).archive()
    assert len({place.entry.number for place in archive.catalog.tensors.values()}) == 1
    assert archive.layers() == {f"h.{i}": [f"h.{i}.a", f"h.{i}.b"] for i in range(12)}
    assert all(archive.numpy(t.name).tobytes() == t.data for t in tensors)
    assert math.prod(archive.get_slice("h.11.b").get_shape()) == 8
