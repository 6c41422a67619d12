"""Checkpoints of several ranks, watched while they land."""

from __future__ import annotations

import filecmp
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import arzstream
from arzstream.container.records import ReferenceKind
from arzstream.testing.zero import write_zero

SLICE = 16 << 10


def slowly(source: Path, dest: Path, *, pause: float = 0.02, before_names: Callable[[], None] = lambda: None) -> None:
    """Copy a folder as torch writes it: the ranks' files grow side by side, ``.metadata`` is renamed into place."""
    dest.mkdir()
    data = {path.name: path.read_bytes() for path in sorted(source.iterdir())}
    metadata = data.pop(".metadata")
    with_handles = {name: (dest / name).open("wb") for name in data}
    for start in range(0, max(map(len, data.values())), SLICE):
        for name, stream in with_handles.items():
            stream.write(data[name][start : start + SLICE])
            stream.flush()
        time.sleep(pause)
    for stream in with_handles.values():
        stream.close()
    before_names()
    (dest / ".metadata.tmp").write_bytes(metadata)
    os.rename(dest / ".metadata.tmp", dest / ".metadata")


def same_folder(archive: Path, source: Path, scratch: Path) -> None:
    arzstream.unpack(archive, scratch)
    names = sorted(os.listdir(source))
    assert sorted(os.listdir(scratch)) == names
    assert filecmp.cmpfiles(source, scratch, names, shallow=False) == (names, [], [])


def test_a_run_of_ranks_becomes_a_chain(
    ranks: Path, places: tuple[Path, Path], running: Callable[..., Any], tmp_path: Path
) -> None:
    source, _ = places
    daemon = running()
    slowly(ranks / "dcp" / "step-0", source / "step-0")
    first = daemon.published("step-0.arz")
    coded: list[int] = []

    def early() -> None:
        """Names are foretold, so tensors are coded before ``.metadata`` is there."""
        daemon.until(lambda: (e := daemon.entry("step-1")) and e.bytes_coded > 50_000, "tensors to be coded early")
        coded.append(daemon.entry("step-1").bytes_coded)

    slowly(ranks / "dcp" / "step-1", source / "step-1", before_names=early)
    second = daemon.published("step-1.arz")
    same_folder(first, source / "step-0", tmp_path / "0")
    same_folder(second, source / "step-1", tmp_path / "1")
    assert coded
    with arzstream.open(second) as archive:
        assert [hint for hint, _ in archive.parents()] == ["step-0.arz"]
        for part in archive.catalog.find("1.weight").parts:
            assert [ref.kind for ref in part.entry.unit.refs] == [ReferenceKind.PARENT]
        assert archive.get_tensor("0.weight").shape == (259, 64)
    packed = tmp_path / "packed.arz"
    shutil.copy(first, tmp_path / "step-0.arz")
    arzstream.pack(ranks / "dcp" / "step-1", packed, parent=tmp_path / "step-0.arz")
    assert second.stat().st_size < 1.05 * packed.stat().st_size


def test_wrong_guesses_of_names_cost_nothing_but_time(
    ranks: Path, places: tuple[Path, Path], running: Callable[..., Any], tmp_path: Path
) -> None:
    """The ranks swapped their files since the step before: what is foretold of each is put right at the end."""
    source, _ = places
    daemon = running()
    slowly(ranks / "dcp" / "step-0", source / "step-0")
    daemon.published("step-0.arz")
    swapped = tmp_path / "swapped"
    shutil.copytree(ranks / "dcp" / "step-1", swapped)
    metadata = (swapped / ".metadata").read_bytes()
    metadata = metadata.replace(b"__0_0", b"__X_0").replace(b"__1_0", b"__0_0").replace(b"__X_0", b"__1_0")
    (swapped / ".metadata").write_bytes(metadata)
    (swapped / "__0_0.distcp").rename(swapped / "x")
    (swapped / "__1_0.distcp").rename(swapped / "__0_0.distcp")
    (swapped / "x").rename(swapped / "__1_0.distcp")
    slowly(swapped, source / "step-1")
    archive = daemon.published("step-1.arz")
    same_folder(archive, source / "step-1", tmp_path / "1")
    arzstream.pack(ranks / "whole" / "step-1.safetensors", tmp_path / "whole.arz")
    from arzstream.archive.difference import diff

    found = {tensor.name: tensor.what for tensor in diff(tmp_path / "whole.arz", archive).tensors}
    assert found["0.weight"] == found["5.bias"] == found["1.weight"] == "unchanged"


def test_a_file_that_an_earlier_save_left_is_not_waited_for(
    ranks: Path, places: tuple[Path, Path], running: Callable[..., Any], tmp_path: Path
) -> None:
    source, _ = places
    daemon = running()
    stale = tmp_path / "stale"
    shutil.copytree(ranks / "dcp" / "step-0", stale)
    shutil.copy(stale / "__1_0.distcp", stale / "__2_0.distcp")
    slowly(stale, source / "step-0")
    archive = daemon.published("step-0.arz", 20.0)
    with arzstream.open(archive) as opened:
        assert any(name.startswith("item.") for name in opened.keys())  # noqa: SIM118
        assert opened.get_tensor("0.weight").shape == (259, 64)


def zero(place: Path, step: int) -> Path:
    """What DeepSpeed writes at a step, two ranks."""
    dice = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(200, 200, generator=dice) for name in ("layers.0.w", "layers.1.w", "layers.2.w")}
    for tensor in weights.values():
        tensor += 1e-4 * step * torch.randn(200, 200, generator=dice)
    write_zero(place, weights, {"exp_avg": weights}, ranks=2)
    return place / "global_step1"


def test_a_run_of_deepspeed_becomes_a_chain(
    places: tuple[Path, Path], running: Callable[..., Any], tmp_path: Path
) -> None:
    source, _ = places
    daemon = running()
    for step in (1, 2):
        files = {path.name: path.read_bytes() for path in zero(tmp_path / f"{step}", step).iterdir()}
        place = source / f"global_step{step}"
        place.mkdir()
        order = sorted(files, reverse=step == 2)  # the names come last, or first
        for name in order:
            with (place / name).open("wb") as stream:
                for start in range(0, len(files[name]), 4 * SLICE):
                    stream.write(files[name][start : start + 4 * SLICE])
                    stream.flush()
                    time.sleep(0.01)
        (source / "latest").write_text(f"global_step{step}")
        archive = daemon.published(f"global_step{step}.arz")
        same_folder(archive, place, tmp_path / f"back-{step}")
        with arzstream.open(archive) as opened:
            assert opened.get_tensor("optimizer.state.layers.1.w.fp32").numel() == 40_000
            assert opened.catalog.find("optimizer.state.layers.1.w.fp32").parts
            assert len(opened.parents()) == step - 1
