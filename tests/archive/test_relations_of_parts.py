"""Master weights that ranks hold in parts, coded against the whole weights in half precision."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import arzstream
from arzstream.archive.builder import CheckpointBuilder
from arzstream.archive.rebase import rebase
from arzstream.archive.sources import EntriesBeside, collect
from arzstream.container.records import ReferenceKind
from arzstream.testing.zero import write_zero

SHAPES = {"embed.weight": (400, 256), "layers.0.w": (640, 256), "layers.0.b": (256,), "layers.1.w": (666, 256)}
MASTER = "optimizer.state.layers.0.w.fp32"
RANKS = 3


def tensors(seed: int, scale: float, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, torch.Tensor]:
    dice = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=dice) for name, shape in shapes.items()}


def step(number: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> tuple[dict[str, torch.Tensor], Any]:
    weights = tensors(1, 0.02, shapes)
    for name, change in tensors(10 + number, 1e-4, shapes).items():
        weights[name] = weights[name] + number * change
    squares = {name: change.square() for name, change in tensors(30 + number, 1e-4, shapes).items()}
    return weights, {"exp_avg": tensors(20 + number, 1e-4, shapes), "exp_avg_sq": squares}


def folder(place: Path, number: int = 0, ranks: int = RANKS, stage: int = 2, **shapes: Any) -> Path:
    weights, state = step(number, **shapes)
    write_zero(place, weights, state, ranks=ranks, stage=stage)
    return place


def refs(archive: Path, name: str) -> list[list[tuple[str, int]]]:
    """Of each part, the units of the archive it is coded against, by their tensors' names, and the first element."""
    with arzstream.open(archive) as opened:
        units = opened.directory.by_number
        return [
            [
                (units[ref.source].unit.members[0].name or "", ref.start)
                for ref in part.entry.unit.refs
                if ref.kind == ReferenceKind.UNIT
            ]
            for part in opened.catalog.find(name).parts
        ]


@pytest.mark.parametrize("stage", [2, 3])
def test_a_part_is_coded_against_its_place_in_the_whole(tmp_path: Path, stage: int) -> None:
    source = folder(tmp_path / "run", stage=stage)
    arzstream.pack(source, tmp_path / "run.arz")
    with arzstream.open(tmp_path / "run.arz") as archive:
        places = [part.part.offset for part in archive.catalog.find(MASTER).parts]
        width = 256 if len(places[0]) == 2 else 1
        assert torch.equal(archive.get_tensor(MASTER).flatten(), step(0)[0]["layers.0.w"].flatten())
    halves = [
        next((ref for ref in found if ref[0].startswith("module.")), None)
        for found in refs(tmp_path / "run.arz", MASTER)
    ]
    assert halves == [("module.layers.0.w", place[0] * width) for place in places] and len(halves) > 1
    assert arzstream.verify(tmp_path / "run.arz", deep=True, against=source).tensors


def test_ranks_take_what_one_takes(tmp_path: Path) -> None:
    shapes = dict.fromkeys(("a.weight", "b.weight", "c.weight"), (900, 512))
    sizes = [
        arzstream.pack(folder(tmp_path / str(n), ranks=n, shapes=shapes), tmp_path / f"{n}.arz").bytes_out
        for n in (1, 2, 5)
    ]
    assert max(sizes) < 1.005 * min(sizes)


def test_a_chain_of_ranks_reads_back_and_can_be_rebased(tmp_path: Path) -> None:
    parent = None
    for number in range(3):
        source, archive = folder(tmp_path / str(number), number), tmp_path / f"{number}.arz"
        arzstream.pack(source, archive, parent=parent)
        assert arzstream.verify(archive, deep=True, against=source).tensors
        parent = archive
    rebase(tmp_path / "2.arz", tmp_path / "alone.arz")
    assert refs(tmp_path / "alone.arz", MASTER) == refs(tmp_path / "2.arz", MASTER)
    assert arzstream.verify(tmp_path / "alone.arz", deep=True, against=tmp_path / "2").tensors


def test_the_reference_decoder_reads_it(tmp_path: Path, repository: Path) -> None:
    spec = importlib.util.spec_from_file_location("reference", repository / "spec" / "reference_decoder.py")
    assert spec is not None and spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = reference
    spec.loader.exec_module(reference)
    shapes = {"layers.0.w": (280, 128)}
    source = folder(tmp_path / "run", ranks=2, shapes=shapes)
    arzstream.pack(source, tmp_path / "run.arz")
    assert any(name == "module.layers.0.w" for found in refs(tmp_path / "run.arz", MASTER) for name, _ in found)
    decoded = reference.decode((tmp_path / "run.arz").read_bytes())
    for path in (source / "global_step1").iterdir():
        assert decoded.files[b"global_step1/" + path.name.encode()].content == path.read_bytes()
    whole = {tensor.name: tensor.data for tensor in decoded.wholes}
    assert whole[MASTER] == step(0, shapes)[0]["layers.0.w"].numpy().tobytes()


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("finished", [False, True])
def test_weights_may_change_after_parts_were_coded_against_them(
    tmp_path: Path, jobs: int, finished: bool, new_source: Callable[..., Any], new_sink: Callable[..., Any]
) -> None:
    entries = collect([folder(tmp_path / "run")])
    names = sorted((e.path for e in entries if e.path.endswith(b".pt")), key=lambda path: b"model_states" not in path)
    sources = {name: new_source((tmp_path / "run" / name.decode()).read_bytes()) for name in names}
    sink, weights = new_sink(), sources[names[0]]
    with CheckpointBuilder(sink, jobs=jobs, beside=EntriesBeside(entries)) as builder:
        files = {name: builder.add_file(name, source) for name, source in sources.items()}
        for name, job in files.items():
            builder.update(job, sources[name].size, final=finished)
            for at in range(5000, weights.size - 2000, 30_000) if name == names[0] and finished else ():
                weights.data[at] ^= 1
        for at in range(5000, weights.size - 2000, 30_000) if not finished else ():
            weights.data[at] ^= 1
        for name, job in files.items():
            builder.finish(job, size=sources[name].size, mode=0o644, mtime=0)
        builder.verify_written(sink)
        builder.seal()
    with sink.archive() as archive:
        for name, source in sources.items():
            assert archive.read_file(name.decode()) == bytes(source.data)
