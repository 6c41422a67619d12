"""``diff``: what changed between two archives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import arzstream
from arzstream.archive import difference
from arzstream.archive.difference import diff


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two archives, the second packed against the first."""
    first = {
        "same": torch.randn(300, 200), "few": torch.ones(1000, 100).bfloat16(), "ints": torch.arange(50),
        "gone": torch.ones(3), "wider": torch.ones(4, 4), "nan": torch.full((8,), float("nan")),
        "eight": torch.ones(16).to(torch.float8_e4m3fn), "flags": torch.tensor([True, False]), "z": torch.ones(2) + 1j,
    }  # fmt: skip
    second = {name: tensor.clone() for name, tensor in first.items() if name != "gone"}
    second["few"][:10] = 2
    second["ints"][7] = -3
    second["nan"][1] = 5
    second["z"][0] = 4 + 5j
    second["eight"][3] = 0
    second["flags"][0] = False
    second |= {"wider": torch.ones(4, 5), "new": torch.ones(2)}
    for name, tensors in (("1", first), ("2", second)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
        (tmp_path / name / f"only-{name}.txt").write_text("x")
        (tmp_path / name / "same.txt").write_text("x")
        parent = tmp_path / "1.arz" if name == "2" else None
        arzstream.pack(tmp_path / name, tmp_path / f"{name}.arz", parent=parent)
    return tmp_path / "1.arz", tmp_path / "2.arz"


def test_diff_says_what_changed_and_by_how_much(pair: tuple[Path, Path]) -> None:
    found = diff(*pair)
    by_name = {tensor.name: tensor for tensor in found.tensors}
    assert {name: tensor.what for name, tensor in by_name.items()} == {
        "same": "unchanged", "few": "changed", "ints": "changed", "gone": "removed", "wider": "another",
        "nan": "changed", "new": "added", "eight": "changed", "flags": "changed", "z": "changed",
    }  # fmt: skip
    few, ints, nan, z = (by_name[name] for name in ("few", "ints", "nan", "z"))
    assert (few.changed, few.relative, few.largest) == (0.01, 0.1, 1.0)
    assert (ints.changed, ints.largest) == (0.02, 10.0)
    assert (nan.changed, nan.relative, nan.largest) == (0.125, None, 0.0)
    assert (z.changed, z.largest) == (0.5, 4.0)
    assert by_name["eight"].changed == 1 / 16 and by_name["eight"].relative is None
    assert by_name["new"].changed is None
    assert found.files == {"model.safetensors": "changed", "only-1.txt": "removed", "only-2.txt": "added"}
    assert {t.what for t in diff(pair[0], pair[0]).tensors} == {"unchanged"}


def test_diff_in_blocks_gives_what_it_gives_at_once(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = diff(*pair)
    monkeypatch.setattr(difference, "BLOCK_ELEMENTS", 7)
    in_blocks = diff(*pair)
    for one, other in zip(at_once.tensors, in_blocks.tensors, strict=True):
        assert (one.what, one.changed, one.largest) == (other.what, other.changed, other.largest)
        assert one.relative is None or one.relative == pytest.approx(other.relative)


def test_tensors_with_equal_digests_are_not_decoded(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    original = difference._blocks
    monkeypatch.setattr(
        difference, "_blocks", lambda archive, place: (asked.append(place.name), original(archive, place))[1]
    )
    diff(*pair)
    assert "same" not in asked and asked.count("few") == 2


def test_views_with_strides_are_compared_element_by_element(tmp_path: Path) -> None:
    for number in range(2):
        weight = torch.arange(60_000).reshape(200, 300).float()
        weight[3, 5] += number
        torch.save({"w": weight.t()}, tmp_path / f"{number}.pt")
        arzstream.pack(tmp_path / f"{number}.pt", tmp_path / f"{number}.arz")
    (found,) = diff(tmp_path / "0.arz", tmp_path / "1.arz").tensors
    assert (found.changed, found.largest) == (1 / 60_000, 1.0)


def test_the_command_prints_a_table_and_json(pair: tuple[Path, Path]) -> None:
    from click.testing import CliRunner

    from arzstream.cli.group import program

    done = CliRunner().invoke(program, ["diff", *map(str, pair)])
    assert done.exit_code == 0
    assert "10 tensors, 1 unchanged, 6 changed, 1 of another type or shape, 1 added, 1 removed" in done.output
    assert "\nsame" not in done.output and "removed file: only-1.txt" in done.output
    assert "\nsame" in CliRunner().invoke(program, ["diff", "--all", *map(str, pair)]).output
    said = json.loads(CliRunner().invoke(program, ["diff", "--json", *map(str, pair)]).output)
    assert {tensor["name"]: tensor["changed"] for tensor in said["tensors"]}["few"] == 0.01


def test_values_whose_squares_no_float_holds_give_numbers_that_json_has(tmp_path: Path) -> None:
    tiny, huge = torch.full((50,), 1e-200, dtype=torch.float64), torch.tensor([3e200, -4e200], dtype=torch.float64)
    ends = torch.tensor([1.7e308, 1.0], dtype=torch.float64)
    save_file({"tiny": tiny, "huge": huge, "ends": ends, "grown": tiny.clone()}, tmp_path / "1.safetensors")
    second = {"tiny": 3 * tiny, "huge": huge * 0.5, "ends": -ends, "grown": torch.full_like(tiny, 1e200)}
    save_file(second, tmp_path / "2.safetensors")
    for name in "12":
        arzstream.pack(tmp_path / f"{name}.safetensors", tmp_path / f"{name}.arz")
    found = diff(tmp_path / "1.arz", tmp_path / "2.arz")
    by_name = {tensor.name: (tensor.relative, tensor.largest) for tensor in found.tensors}
    assert by_name["tiny"] == (pytest.approx(2), pytest.approx(2e-200))
    assert by_name["huge"] == (pytest.approx(0.5), pytest.approx(2e200))
    assert by_name["ends"] == (pytest.approx(2), None)
    assert by_name["grown"] == (None, pytest.approx(1e200))
    json.dumps(found.as_dict(), allow_nan=False)


def test_an_archive_that_was_coded_against_the_other_finds_it_wherever_it_is(tmp_path: Path) -> None:
    """Whichever comes first, and whatever else was to be looked at."""
    weights = torch.randn(300, 200)
    save_file({"w": weights}, tmp_path / "model.safetensors")
    (tmp_path / "away").mkdir()
    old, new = tmp_path / "away" / "1.arz", tmp_path / "2.arz"
    arzstream.pack(tmp_path / "model.safetensors", old)
    save_file({"w": weights + torch.cat([torch.zeros(150, 200), weights[150:] * 1e-4])}, tmp_path / "model.safetensors")
    assert arzstream.pack(tmp_path / "model.safetensors", new, parent=old).parents
    old = old.rename(old.with_name("renamed.arz"))
    for pair in ((old, new), (new, old)):
        assert [tensor.what for tensor in diff(*pair).tensors] == ["changed"]
        assert diff(*pair, parents=tmp_path / "nowhere").tensors == diff(*pair).tensors
