"""What the verbs say of tensors that lie in parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import arzstream
from arzstream.testing.zero import write_zero

from .conftest import Arz

NAME = "optimizer.state.b.fp32"


@pytest.fixture
def parted(tmp_path: Path) -> Path:
    """An archive in which two ranks hold parts of some tensors, [0:8] and [8:16] of ``b``."""
    dice = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(16, 8, generator=dice) for name in ("a", "b", "c")}
    write_zero(tmp_path / "run", weights, {"exp_avg": weights}, ranks=2)
    arzstream.pack(tmp_path / "run", tmp_path / "run.arz")
    return tmp_path / "run.arz"


def test_ls_shows_a_tensor_once_and_where_its_parts_are(arz: Arz, parted: Path) -> None:
    lines = arz("ls", parted).out.splitlines()
    (at,) = [i for i, line in enumerate(lines) if line.startswith(NAME + " ")]
    assert "16×8" in lines[at]
    assert " ".join(lines[at + 1].split()) == (
        "2 parts: [0, 0] in global_step1/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt, "
        "[8, 0] in global_step1/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    )


def test_ls_json_has_every_part_and_sums(arz: Arz, parted: Path) -> None:
    found = {tensor["name"]: tensor for tensor in arz("ls", parted, "--json", "--chunks").json["tensors"]}
    whole = found[NAME]
    assert [(part["name"], part["offset"], part["shape"]) for part in whole["parts"]] == [
        (f"{NAME}[0:8,0:8]", [0, 0], [8, 8]),
        (f"{NAME}[8:16,0:8]", [8, 0], [8, 8]),
    ]
    assert whole["shape"] == [16, 8] and whole["bytes"] == 16 * 8 * 4
    assert whole["stored"] == sum(part["stored"] for part in whole["parts"])
    assert all(part["chunks"] for part in whole["parts"])
    assert not any("[" in name for name in found)


def test_ls_chunks_lists_those_of_every_part(arz: Arz, parted: Path) -> None:
    out = arz("ls", parted, "--chunks").out
    assert f"{NAME}[0:8,0:8]" in out and f"{NAME}[8:16,0:8]" in out


def test_a_file_counts_what_it_holds(arz: Arz, parted: Path) -> None:
    files = {file["path"]: file for file in arz("ls", parted, "--json").json["files"] if file["kind"] == "file"}
    assert files["global_step1/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"]["tensors"] == 5


def test_diff_of_whole_and_parted_weights_matches_them(arz: Arz, parted: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with arzstream.open(parted) as archive:
        save_file(
            {f"optimizer.state.{name}.fp32": archive.get_tensor(f"optimizer.state.{name}.fp32") for name in "abc"},
            tmp_path / "n.safetensors",
        )
    arzstream.pack(tmp_path / "n.safetensors", tmp_path / "n.arz")
    found = {t["name"]: t["what"] for t in arz("diff", parted, tmp_path / "n.arz", "--json").json["tensors"]}
    assert found[NAME] == "unchanged"
