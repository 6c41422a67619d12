"""DeepSpeed's flattened and partitioned optimiser state, by parameter again."""

from __future__ import annotations

import filecmp
import re
from pathlib import Path

import pytest
import torch

import arzstream
from arzstream.formats.deepspeed import DeepSpeedParser
from arzstream.testing.zero import write_zero

SHAPES = {"embed.weight": (33, 16), "layers.0.w": (16, 16), "layers.0.b": (16,), "layers.1.w": (48, 16), "scale": ()}
STATES = ("exp_avg", "exp_avg_sq")


def tensors(seed: int) -> dict[str, torch.Tensor]:
    dice = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=dice) for name, shape in SHAPES.items()}


def folder(place: Path, **options: object) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
    weights, state = tensors(1), {key: tensors(i + 2) for i, key in enumerate(STATES)}
    write_zero(place, weights, state, **options)  # type: ignore[arg-type]
    return weights, state


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("bf16", [True, False])
def test_parameters_are_put_together_again(tmp_path: Path, stage: int, ranks: int, bf16: bool) -> None:
    weights, state = folder(tmp_path / "run", ranks=ranks, stage=stage, bf16=bf16)
    arzstream.pack(tmp_path / "run", tmp_path / "run.arz")
    with arzstream.open(tmp_path / "run.arz") as archive:
        for key, expected in {"fp32": weights, **state}.items():
            for name, tensor in expected.items():
                found = archive.get_tensor(f"optimizer.state.{name}.{key}")
                assert torch.equal(found.flatten(), tensor.flatten()), (name, key)
                assert found.shape in (tensor.shape, (tensor.numel(),))
        assert not any(re.search("flat_groups|fp32_groups|state.0.exp", name) for name in archive.keys())  # noqa: SIM118
        assert all(not record.note for record in archive.catalog.files.values())


def test_whole_rows_have_the_shape_of_the_parameter(tmp_path: Path) -> None:
    weights = {"a": torch.randn(32, 16), "b": torch.randn(16, 16)}
    write_zero(tmp_path / "run", weights, {"exp_avg": weights}, ranks=3, stage=2)
    arzstream.pack(tmp_path / "run", tmp_path / "run.arz")
    with arzstream.open(tmp_path / "run.arz") as archive:
        assert torch.equal(archive.get_tensor("optimizer.state.a.fp32"), weights["a"])
        parts = archive.catalog.find("optimizer.state.a.fp32").parts
        assert [part.shape for part in parts] == [(16, 16), (16, 16)]


def test_every_file_comes_back(tmp_path: Path) -> None:
    folder(tmp_path / "run", ranks=2)
    arzstream.pack(tmp_path / "run", tmp_path / "run.arz")
    arzstream.unpack(tmp_path / "run.arz", tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "run" / "global_step1").iterdir())
    one, other = tmp_path / "run" / "global_step1", tmp_path / "out" / "global_step1"
    assert filecmp.cmpfiles(one, other, names, shallow=False) == (names, [], [])
    assert (tmp_path / "out" / "latest").read_text() == "global_step1"


def test_ranks_are_coded_against_the_same_parameters_of_the_step_before(tmp_path: Path) -> None:
    folder(tmp_path / "a", ranks=3)
    weights, state = tensors(1), {key: tensors(i + 2) for i, key in enumerate(STATES)}
    weights["layers.0.w"] += 1e-3
    write_zero(tmp_path / "b", weights, state, ranks=3)
    arzstream.pack(tmp_path / "a", tmp_path / "a.arz")
    arzstream.pack(tmp_path / "b", tmp_path / "b.arz", parent=tmp_path / "a.arz")
    assert (tmp_path / "b.arz").stat().st_size < 0.5 * (tmp_path / "a.arz").stat().st_size
    with arzstream.open(tmp_path / "b.arz") as archive:
        assert torch.equal(
            archive.get_tensor("optimizer.state.layers.0.w.fp32").flatten(), weights["layers.0.w"].flatten()
        )


class Folder:
    """The files of a folder, for a parser of one of them."""

    def __init__(self, place: Path) -> None:
        self.files = {path.name.encode(): path.read_bytes() for path in place.iterdir()}

    def paths(self) -> list[bytes]:
        return list(self.files)

    def version(self, path: bytes) -> int | None:
        return len(self.files[path]) if path in self.files else None

    def size(self, path: bytes) -> int:
        return len(self.files.get(path, b""))

    def read(self, path: bytes, offset: int, length: int) -> bytes:
        return self.files.get(path, b"")[offset : offset + length]

    def foretold(self, path: bytes) -> None:
        return None


@pytest.mark.parametrize("stage", [2, 3])
def test_while_a_file_lands_its_state_has_the_names_it_will_have(tmp_path: Path, stage: int) -> None:
    """The state is written before the weights, which tell where it is cut; the pickle tells of both."""
    folder(tmp_path / "run", ranks=2, stage=stage)
    beside = Folder(tmp_path / "run" / "global_step1")
    name = b"bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    data = beside.files[name]

    def layout_at(frontier: int) -> set[str]:
        parser = DeepSpeedParser(name, beside)
        layout = parser.update(lambda offset, length: data[offset : min(frontier, offset + length)], frontier, False)
        return {view.name for storage in layout.storages for view in storage.views}

    whole = layout_at(len(data))
    assert any(found.startswith("optimizer.state.layers.1.w.exp_avg") for found in whole)
    landing = [layout_at(frontier) for frontier in range(0, len(data), len(data) // 50)]
    assert all(found <= whole for found in landing)
    assert sum(bool(found) for found in landing) > 40


@pytest.mark.parametrize("missing", ["mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"])
def test_without_the_files_that_name_them_flat_tensors_stay_flat(tmp_path: Path, missing: str) -> None:
    folder(tmp_path / "run", ranks=2)
    (tmp_path / "run" / "global_step1" / missing).unlink()
    arzstream.pack(tmp_path / "run", tmp_path / "run.arz")
    with arzstream.open(tmp_path / "run.arz") as archive:
        assert any("single_partition_of_fp32_groups" in name for name in archive.keys())  # noqa: SIM118
        notes = [record.note for record in archive.catalog.files.values() if record.note]
        assert notes and all("is not beside it" in note for note in notes)


def test_another_order_than_that_of_the_shapes_is_noticed(tmp_path: Path) -> None:
    weights, state = tensors(1), {key: tensors(2) for key in STATES}
    write_zero(tmp_path / "run", weights, state, ranks=2)
    model = tmp_path / "run" / "global_step1" / "mp_rank_00_model_states.pt"
    body = torch.load(model, weights_only=False)
    body["param_shapes"] = [dict(reversed(body["param_shapes"][0].items()))]
    torch.save(body, model)
    arzstream.pack(tmp_path / "run", tmp_path / "run.arz")
    with arzstream.open(tmp_path / "run.arz") as archive:
        notes = [record.note for record in archive.catalog.files.values() if record.note]
        assert len(notes) == 2 and all("another order" in note for note in notes)


def test_without_mappings_shapes_alone_serve(tmp_path: Path) -> None:
    weights, _ = folder(tmp_path / "run", ranks=2, mappings=False)
    arzstream.pack(tmp_path / "run", tmp_path / "run.arz")
    with arzstream.open(tmp_path / "run.arz") as archive:
        assert torch.equal(
            archive.get_tensor("optimizer.state.layers.1.w.fp32").flatten(), weights["layers.1.w"].flatten()
        )


def test_shards_of_tensor_parallel_ranks_are_not_taken_for_parts_of_one(tmp_path: Path) -> None:
    folder(tmp_path / "run", ranks=2)
    place = tmp_path / "run" / "global_step1"
    for path in list(place.iterdir()):
        (place / path.name.replace("mp_rank_00", "mp_rank_01")).write_bytes(path.read_bytes())
    arzstream.pack(tmp_path / "run", tmp_path / "run.arz")
    with arzstream.open(tmp_path / "run.arz") as archive:
        assert "mp_rank_01.optimizer.state.layers.0.w.fp32" in archive
        assert len(archive.catalog.find("optimizer.state.layers.0.b.fp32").parts) == 2
