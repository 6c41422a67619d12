"""Tensors that lie in parts: checkpoints of several ranks, read as if one had written them."""

from __future__ import annotations

import dataclasses
import filecmp
import itertools
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

import arzstream
from arzstream.archive.builder import CheckpointBuilder
from arzstream.archive.difference import diff
from arzstream.archive.output import new_archive
from arzstream.archive.reader import Archive
from arzstream.archive.sets import write_set
from arzstream.archive.sources import EntriesBeside, collect, open_source
from arzstream.container.records import ReferenceKind

KINDS = ["dcp", "async", "safetensors"]


def packed(source: Path, dest: Path, parent: Path | None = None) -> Path:
    arzstream.pack(source, dest, parent=parent)
    return dest


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(
        one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)
    )


def decoded(archive: Archive, name: str) -> set[int]:
    """The units that decoding the first row of ``name`` touches."""
    touched: set[int] = set()
    tasks = archive.decoder.tasks

    def watched(number: int, *rest: object) -> object:
        touched.add(number)
        return tasks(number, *rest)  # type: ignore[arg-type]

    archive.decoder.tasks = watched  # type: ignore[method-assign, assignment]
    archive.get_slice(name)[0]
    archive.decoder.tasks = tasks  # type: ignore[method-assign]
    return touched


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_hold_together_what_one_file_holds(ranks: Path, tmp_path: Path, kind: str) -> None:
    whole = load_file(ranks / "whole" / "step-0.safetensors")
    made = arzstream.pack(ranks / kind / "step-0", tmp_path / "a.arz")
    with arzstream.open(tmp_path / "a.arz") as archive:
        assert made.tensors == len(list(archive.keys()))
        assert set(whole) <= set(archive.keys())
        assert not any("[" in name for name in archive.keys())  # noqa: SIM118
        for name, tensor in whole.items():
            assert same_bits(archive.get_tensor(name), tensor)
            assert same_bits(archive.state_dict()[name][:], tensor)
        streamed = dict(archive.stream())
        assert streamed.keys() == set(archive.keys())
        assert all(same_bits(streamed[name], tensor) for name, tensor in whole.items())
        expected = torch.arange(60.0).reshape(6, 10)
        assert torch.equal(archive.get_tensor("columns"), expected)
        assert archive.get_slice("columns").get_shape() == [6, 10]


INDEXES = [
    0, -1, slice(1, 4), slice(None), (slice(2, 5), 3), (slice(None), slice(3, 8)), (0, slice(5, None)),
    (Ellipsis, 9), (slice(5, 1), 0), (slice(None, None, 2), slice(1, 9, 3)), [0, 3], (5, 9),
]  # fmt: skip


@pytest.mark.parametrize("index", INDEXES, ids=str)
def test_a_slice_of_parts_is_the_slice_of_the_whole(ranks: Path, tmp_path: Path, index: object) -> None:
    with arzstream.open(packed(ranks / "dcp" / "step-0", tmp_path / "a.arz")) as archive:
        for name in ("columns", "0.weight"):
            whole = archive.get_tensor(name)
            assert torch.equal(archive.get_slice(name)[index], whole[index])  # type: ignore[index]


def test_a_slice_reads_only_the_parts_it_touches(ranks: Path, tmp_path: Path) -> None:
    with arzstream.open(packed(ranks / "dcp" / "step-0", tmp_path / "a.arz")) as archive:
        first, second = archive.catalog.find("0.weight").parts
        assert decoded(archive, "0.weight") == {first.entry.number} != {second.entry.number}


def test_a_part_is_found_by_its_own_name(ranks: Path, tmp_path: Path) -> None:
    with arzstream.open(packed(ranks / "dcp" / "step-0", tmp_path / "a.arz")) as archive:
        whole = archive.numpy("0.weight")
        assert np.array_equal(archive.numpy("0.weight[130:259,0:64]"), whole[130:])
        assert np.array_equal(archive.numpy("__1_0.distcp:0.weight[130:259,0:64]"), whole[130:])
        with pytest.raises(KeyError):
            archive.numpy("0.weight[130:258,0:64]")


def test_parts_of_which_one_is_missing_are_listed_themselves(ranks: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ranks / "dcp" / "step-0", source)
    (source / "__1_0.distcp").unlink()
    with arzstream.open(packed(source, tmp_path / "a.arz")) as archive:
        assert "0.weight" not in archive
        assert archive.get_tensor("0.weight[0:130,0:64]").shape == (130, 64)


def cut(folder: Path, tensor: torch.Tensor, ranks: int) -> None:
    """``tensor`` as torch.distributed.checkpoint saves a DTensor of so many ranks: torch.chunk, then empty blocks."""
    folder.mkdir()
    blocks = [*torch.chunk(tensor, ranks)]
    ends = [0, *itertools.accumulate(map(len, blocks))]
    blocks += [tensor[:0]] * (ranks - len(blocks))
    stored, chunks = {}, []
    for rank, block in enumerate(blocks):
        place = torch.Size([ends[min(rank, len(ends) - 1)], *(0 for _ in tensor.shape[1:])])
        chunks.append(ChunkStorageMetadata(place, block.shape))
        if MetadataIndex("w", place) not in stored:  # torch writes one of those that are the same
            torch.save(block.clone(), folder / f"__{rank}_0.distcp")
            size = (folder / f"__{rank}_0.distcp").stat().st_size
            stored[MetadataIndex("w", place)] = _StorageInfo(f"__{rank}_0.distcp", 0, size)
    about = TensorStorageMetadata(TensorProperties(tensor.dtype), tensor.shape, chunks)
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata({"w": about}, storage_data=stored)))


@pytest.mark.parametrize(("rows", "ranks", "parts"), [(5, 4, 3), (5, 8, 5), (1, 4, 0)])
def test_a_tensor_with_fewer_rows_than_ranks_is_shown_whole(tmp_path: Path, rows: int, ranks: int, parts: int) -> None:
    tensor = torch.arange(3.0 * rows).reshape(rows, 3)
    cut(tmp_path / "cut", tensor, ranks)
    made = arzstream.pack(tmp_path / "cut", tmp_path / "a.arz")
    with arzstream.open(tmp_path / "a.arz") as archive:
        assert list(archive.keys()) == ["w"] and made.tensors == 1
        assert len(archive.catalog.find("w").parts) == parts
        assert torch.equal(archive.get_tensor("w"), tensor)
        assert torch.equal(archive.get_slice("w")[-1:], tensor[-1:])
        assert archive.get_tensor(f"w[{rows}:{rows},0:3]").shape == (0, 3)
    save_file({"w": tensor}, tmp_path / "whole.safetensors")
    whole = packed(tmp_path / "whole.safetensors", tmp_path / "b.arz")
    assert [found.what for found in diff(tmp_path / "a.arz", whole).tensors] == ["unchanged"]


def test_empty_parts_of_safetensors_files_are_no_tensors(tmp_path: Path) -> None:
    (tmp_path / "cut").mkdir()
    for rank, (row, block) in enumerate([(0, torch.ones(1, 2)), (1, torch.ones(1, 2)), (2, torch.ones(0, 2))]):
        alone = torch.full((1, 4), 7.0) if not rank else torch.ones(0, 4)
        info = {"w": {"saved_offsets": [row, 0]}, "alone": {"saved_offsets": [min(rank, 1), 0]}}
        path = tmp_path / "cut" / f"shard-{rank + 1:05}-model-00001-of-00001.safetensors"
        save_file({"w": block, "alone": alone}, path, {"DCP_SHARDING_INFO": json.dumps(info)})
    with arzstream.open(packed(tmp_path / "cut", tmp_path / "a.arz")) as archive:
        assert sorted(archive.keys()) == ["alone", "w"]
        assert torch.equal(archive.get_tensor("w"), torch.ones(2, 2))
        assert torch.equal(archive.get_tensor("alone"), torch.full((1, 4), 7.0))


def test_empty_parts_of_a_tensor_that_is_not_there_are_listed_themselves(tmp_path: Path) -> None:
    cut(tmp_path / "cut", torch.ones(5, 3), 4)
    (tmp_path / "cut" / "__0_0.distcp").unlink()
    with arzstream.open(packed(tmp_path / "cut", tmp_path / "a.arz")) as archive:
        assert sorted(archive.keys()) == ["w[2:4,0:3]", "w[4:5,0:3]", "w[5:5,0:3]"]


def test_the_volumes_of_a_set_hold_a_tensor_together(ranks: Path, tmp_path: Path) -> None:
    entries = {entry.path: entry for entry in collect([ranks / "dcp" / "step-0"])}
    volumes = []
    for name in (b"__0_0.distcp", b"__1_0.distcp"):
        volumes.append(tmp_path / f"{name.decode()}.arz")
        with (
            new_archive(str(volumes[-1]), replace=False) as (sink, _),
            open_source(entries[name]) as source,
            CheckpointBuilder(sink, beside=EntriesBeside(list(entries.values())), prove=False) as builder,
        ):
            builder.finish(builder.add_file(name, source), size=source.size, mode=0o644, mtime=0)
            builder.seal()
    write_set(tmp_path / "set.arz", volumes)
    whole = load_file(ranks / "whole" / "step-0.safetensors")
    with arzstream.open(tmp_path / "set.arz") as archive:
        assert all(same_bits(archive.get_tensor(name), tensor) for name, tensor in whole.items())


def test_every_file_comes_back(ranks: Path, tmp_path: Path) -> None:
    for kind in KINDS:
        archive = packed(ranks / kind / "step-1", tmp_path / f"{kind}.arz")
        arzstream.unpack(archive, tmp_path / kind)
        compared = filecmp.dircmp(ranks / kind / "step-1", tmp_path / kind)
        assert not compared.left_only and not compared.right_only and not compared.diff_files
        same, differ, errors = filecmp.cmpfiles(compared.left, compared.right, compared.common_files, shallow=False)
        assert same and not differ and not errors


# ------------------------------------------------------------------------------------------------ across formats


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_weights_differ_in_nothing_whoever_wrote_them(ranks: Path, tmp_path: Path, kind: str) -> None:
    a = packed(ranks / kind / "step-0", tmp_path / "a.arz")
    b = packed(ranks / "whole" / "step-0.safetensors", tmp_path / "b.arz")
    for first, second in ((a, b), (b, a)):
        found = {tensor.name: tensor.what for tensor in diff(first, second).tensors}
        assert {found[name] for name in load_file(ranks / "whole" / "step-0.safetensors")} == {"unchanged"}


def test_a_change_is_measured_alike_across_formats(ranks: Path, tmp_path: Path) -> None:
    whole = [packed(ranks / "whole" / f"step-{i}.safetensors", tmp_path / f"w{i}.arz") for i in range(2)]
    parts = packed(ranks / "dcp" / "step-1", tmp_path / "p.arz")
    expected = {tensor.name: tensor for tensor in diff(*whole).tensors}
    found = {tensor.name: tensor for tensor in diff(whole[0], parts).tensors}
    for name, tensor in expected.items():
        ours, theirs = (dataclasses.asdict(item) for item in (found[name], tensor))
        assert ours.pop("relative") == pytest.approx(theirs.pop("relative"))
        assert ours == theirs


# ------------------------------------------------------------------------------------------------ chains


def refs(archive: Path, name: str) -> list[list[int]]:
    with arzstream.open(archive) as opened:
        return [[ref.kind for ref in part.entry.unit.refs] for part in opened.catalog.find(name).parts]


def test_parts_are_coded_against_the_same_parts(ranks: Path, tmp_path: Path) -> None:
    a = packed(ranks / "dcp" / "step-0", tmp_path / "a.arz")
    b = packed(ranks / "dcp" / "step-1", tmp_path / "b.arz", a)
    for name in ("1.weight", "optimizer.state.5.weight.exp_avg", "1.bias"):
        assert all(ReferenceKind.PARENT in kinds for kinds in refs(b, name)), name
    assert arzstream.open(b).get_tensor("1.weight").shape == (64, 64)


def test_parts_are_found_in_files_of_other_names(ranks: Path, tmp_path: Path) -> None:
    """What the other rank wrote in the step before, under another name, is the same part of the same tensor."""
    source = tmp_path / "swapped"
    shutil.copytree(ranks / "dcp" / "step-0", source)
    metadata = (source / ".metadata").read_bytes()
    for rank in range(2):
        metadata = metadata.replace(b"__%d_0.distcp" % rank, b"__%d_9.distcp" % (1 - rank))
        (source / f"__{rank}_0.distcp").rename(source / f"__{1 - rank}_9.distcp")
    (source / ".metadata").write_bytes(metadata)
    a = packed(source, tmp_path / "a.arz")
    b = packed(ranks / "dcp" / "step-1", tmp_path / "b.arz", a)
    assert all(ReferenceKind.PARENT in kinds for kinds in refs(b, "1.weight"))
    whole = load_file(ranks / "whole" / "step-1.safetensors")
    with arzstream.open(b) as archive:
        assert all(same_bits(archive.get_tensor(name), tensor) for name, tensor in whole.items())


def test_what_did_not_change_costs_next_to_nothing(ranks: Path, tmp_path: Path) -> None:
    a = packed(ranks / "dcp" / "step-0", tmp_path / "a.arz")
    source = tmp_path / "again"
    shutil.copytree(ranks / "dcp" / "step-0", source)
    (source / "log.txt").write_text("again")
    b = packed(source, tmp_path / "b.arz", a)
    assert b.stat().st_size < 0.25 * a.stat().st_size
    assert all(kinds == [ReferenceKind.INHERITED] for kinds in refs(b, "0.weight"))
