"""Models of changes in archives: learned once, shared by units, read back with them, never needed by what has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import arzstream
from arzstream.archive import learning
from arzstream.archive.builder import CheckpointBuilder
from arzstream.archive.learning import Models
from arzstream.archive.lineage import open_lineage
from arzstream.archive.recover import recover
from arzstream.archive.sets import write_set

ROWS, COLS = 400, 500


def run(folder: Path, steps: int, layers: int = 3, dtype: torch.dtype = torch.bfloat16) -> list[Path]:
    """Checkpoints of a model whose rows and columns move at rates of their own, with momentum."""
    g = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {f"layers.{k}.w": torch.randn(ROWS, COLS, generator=g) * 0.02 for k in range(layers)}
    rates = {n: 2e-4 * torch.exp(torch.randn(ROWS, 1, generator=g) + torch.randn(COLS, generator=g)) for n in weights}
    speed = {n: torch.randn(ROWS, COLS, generator=g) for n in weights}
    made = []
    for step in range(steps):
        made.append(folder / f"step-{step}.safetensors")
        save_file({n: w.to(dtype) for n, w in weights.items()}, made[-1])
        for n in weights:
            speed[n] = 0.9 * speed[n] + 0.4 * torch.randn(ROWS, COLS, generator=g)
            weights[n] = weights[n] + rates[n] * speed[n]
    return made


def chain(sources: list[Path]) -> list[Path]:
    archives: list[Path] = []
    for source in sources:
        archives.append(source.with_suffix(".arz"))
        arzstream.pack(source, archives[-1], parent=archives[-2] if len(archives) > 1 else None)
    return archives


def same(archive: Path, source: Path) -> bool:
    with arzstream.open(archive) as opened:
        return all(torch.equal(opened.get_tensor(n), t) for n, t in load_file(source).items())


def test_units_of_a_dtype_share_a_model_that_is_written_once(tmp_path: Path) -> None:
    sources = run(tmp_path, 3)
    archives = chain(sources)
    assert all(same(*pair) for pair in zip(archives, sources, strict=True))
    for archive, models in zip(archives, (0, 1, 1), strict=True):
        with arzstream.open(archive) as opened:
            directory = opened.directory
            assert len(directory.models) == models
            named = [entry.unit.models for entry in directory.units if entry.unit.dtype == "BF16"]
            assert named == [(0,) * models] * 3
            assert sum(m.stored for m in directory.models) < 8192


def test_it_saves_more_than_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = run(tmp_path, 3)
    shared = chain(sources)[2].stat().st_size
    monkeypatch.setattr(Models, "learn", lambda *_: None)
    for archive in tmp_path.glob("*.arz"):
        archive.unlink()
    assert shared < 0.995 * chain(sources)[2].stat().st_size


def test_no_model_is_written_that_none_is_coded_with(tmp_path: Path) -> None:
    """A parent of the same shapes that has nothing to do with it."""
    g = torch.Generator().manual_seed(7)
    for name in ("one", "other"):
        save_file({"w": torch.randn(ROWS, COLS, generator=g).bfloat16()}, tmp_path / f"{name}.safetensors")
    chain([tmp_path / "one.safetensors", tmp_path / "other.safetensors"])
    with arzstream.open(tmp_path / "other.arz") as opened:
        assert not opened.directory.models
    arzstream.pack(tmp_path / "other.safetensors", tmp_path / "alone.arz")
    assert (tmp_path / "other.arz").stat().st_size < 1.001 * (tmp_path / "alone.arz").stat().st_size + 512


def test_it_is_learned_anew_when_much_more_has_landed(
    tmp_path: Path, new_source: Any, new_sink: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that grows: one layer, then all the others at once, which are many times what is learned from."""
    monkeypatch.setattr(learning, "MOST", 250_000)
    monkeypatch.setattr(learning, "KIND_FROM", 1 << 40)  # one model at a time
    sources = run(tmp_path, 2, layers=12)
    parent = chain(sources[:1])[0]
    data, sink = sources[1].read_bytes(), new_sink()
    source = new_source(data[: len(data) // 12 + 5000])
    dest = tmp_path / "step-1.arz"
    with (
        open_lineage(parent, str(dest)) as lineage,
        CheckpointBuilder(sink, lineage=lineage) as builder,
    ):
        job = builder.add_file(b"step-1.safetensors", source)
        assert builder.update(job, source.size) == 2 * ROWS * COLS
        source.data += data[len(source.data) :]
        builder.finish(job, size=len(data), mode=0o644, mtime=0)
        builder.verify_written(sink)
        builder.seal()
    dest.write_bytes(sink.data)
    assert same(dest, sources[1])
    with arzstream.open(dest) as opened:
        models = [entry.unit.models for entry in opened.directory.units if entry.unit.dtype == "BF16"]
    assert sorted(models) == [(0,)] + [(1,)] * 11


def test_a_damaged_model_is_reported_and_other_tensors_still_read(tmp_path: Path) -> None:
    sources = run(tmp_path, 2)
    for step, source in enumerate(sources):
        steps = torch.arange(40_000) * (step + 1)
        save_file({**load_file(source), "steps": steps}, source)
    archives = chain(sources)
    with arzstream.open(archives[1]) as opened:
        offset = opened.directory.models[0].offset
    data = bytearray(archives[1].read_bytes())
    data[offset + 128 + 40] ^= 1
    archives[1].write_bytes(data)
    with arzstream.open(archives[1]) as opened:
        with pytest.raises(arzstream.CorruptError, match="MODEL"):
            opened.get_tensor("layers.0.w")
        assert torch.equal(opened.get_tensor("steps"), steps)


def test_recovering_keeps_models_and_names_what_a_lost_one_takes_with_it(tmp_path: Path) -> None:
    sources = run(tmp_path, 2)
    archives = chain(sources)
    with arzstream.open(archives[1]) as opened:
        offset = opened.directory.models[0].offset
    whole = archives[1].read_bytes()
    archives[1].write_bytes(whole[:-200])  # no trailer
    recover(archives[1], tmp_path / "again.arz")
    assert same(tmp_path / "again.arz", sources[1])
    damaged = bytearray(whole)
    damaged[offset + 140] ^= 1
    archives[1].write_bytes(damaged)
    report = recover(archives[1], tmp_path / "less.arz")
    assert sorted(report.lost_tensors) == ["layers.0.w", "layers.1.w", "layers.2.w"]


def test_volumes_have_models_of_their_own(tmp_path: Path) -> None:
    sources = run(tmp_path / "a", 2), run(tmp_path / "b", 2, layers=2, dtype=torch.float32)
    volumes = []
    for k, made in enumerate(sources):
        renamed = {f"{k}.{name}": tensor for name, tensor in load_file(made[1]).items()}
        before = {f"{k}.{name}": tensor for name, tensor in load_file(made[0]).items()}
        for step, tensors in enumerate((before, renamed)):
            save_file(tensors, tmp_path / f"{k}-{step}.safetensors")
        volumes.append(chain([tmp_path / f"{k}-{step}.safetensors" for step in (0, 1)])[1])
    write_set(tmp_path / "set.arz", volumes)
    with arzstream.open(tmp_path / "set.arz") as whole:
        assert len(whole.directory.models) == 2
        for k in (0, 1):
            for name, tensor in load_file(tmp_path / f"{k}-1.safetensors").items():
                assert torch.equal(whole.get_tensor(name), tensor)
