"""Folders of torch.distributed.checkpoint, as real processes wrote them."""

from __future__ import annotations

import io
import itertools
import os
import pickle
import random
import zipfile
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from arzstream.codec.parts import Part
from arzstream.formats import pickle_walk, torch_zip
from arzstream.formats.base import Layout, Malformed, problem_of
from arzstream.formats.dcp_metadata import read_metadata
from arzstream.formats.detect import parser_for
from arzstream.formats.torch_pickle import Contents, read_contents

Reader = Callable[[bytes], Callable[[int, int], bytes]]


class Folder:
    """Files beside each other, in memory."""

    def __init__(self, files: dict[bytes, bytes], told: dict[bytes, bytes] | None = None) -> None:
        self.files, self.told = files, told or {}

    def paths(self) -> Iterable[bytes]:
        return self.files

    def version(self, path: bytes) -> Hashable:
        return hash(self.files[path]) if path in self.files else None

    def size(self, path: bytes) -> int:
        return len(self.files.get(path, b""))

    def read(self, path: bytes, offset: int, length: int) -> bytes:
        return self.files.get(path, b"")[offset : offset + length]

    def foretold(self, path: bytes) -> bytes | None:
        return self.told.get(path)

    def layout(self, name: bytes, frontier: int | None = None, *, final: bool = True) -> Layout:
        data = self.files[name][:frontier]
        layout = parser_for(name, beside=self).update(lambda o, n: data[o : o + n], len(data), final)
        assert problem_of(layout, len(data) if final else None) == ""
        return layout


def load(folder: Path) -> Folder:
    return Folder({os.fsencode(path.name): path.read_bytes() for path in folder.iterdir()})


def names(layout: Layout) -> list[str]:
    return [view.name for storage in layout.storages for view in storage.views]


# ------------------------------------------------------------------------------------------------ what torch writes


@pytest.mark.parametrize("kind", ["dcp", "async"])
def test_tensors_of_two_ranks_have_their_names_shapes_and_places(ranks: Path, kind: str) -> None:
    folder = load(ranks / kind / "step-0")
    first, second = folder.layout(b"__0_0.distcp"), folder.layout(b"__1_0.distcp")
    assert (first.format, first.note, second.note) == ("torch-distcp", "", "")
    views = {view.name: view for layout in (first, second) for s in layout.storages for view in s.views}
    assert views["0.weight[0:130,0:64]"].part == Part((259, 64), (0, 0))
    assert views["0.weight[130:259,0:64]"].part == Part((259, 64), (130, 0))
    assert views["columns[0:6,5:10]"].part == Part((6, 10), (0, 5))
    assert views["optimizer.state.0.weight.step"].part is None
    assert views["optimizer.state.1.weight.exp_avg[0:32,0:64]"].whole == "optimizer.state.1.weight.exp_avg"


def test_a_tensor_lies_where_the_layout_says(ranks: Path) -> None:
    from safetensors.torch import load_file

    weights = load_file(ranks / "whole" / "step-1.safetensors")
    folder = load(ranks / "dcp" / "step-1")
    for name, rows in ((b"__0_0.distcp", slice(0, 130)), (b"__1_0.distcp", slice(130, 259))):
        storages = [s for s in folder.layout(name).storages if s.views and s.views[0].whole == "0.weight"]
        (storage,) = storages
        data = folder.files[name][storage.offset : storage.end]
        assert torch.equal(
            torch.frombuffer(bytearray(data), dtype=torch.bfloat16).reshape(-1, 64), weights["0.weight"][rows]
        )


def test_one_process_writes_whole_tensors(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save

    state = {"a": torch.arange(12.0).reshape(3, 4), "s": torch.tensor(3), "o": {"x": [torch.ones(2), "text"]}, "n": 7}
    save(state, checkpoint_id=str(tmp_path / "one"), no_dist=True)
    layout = load(tmp_path / "one").layout(b"__0_0.distcp")
    shapes = {view.name: view.shape for storage in layout.storages for view in storage.views}
    assert shapes == {"a": (3, 4), "s": (), "o.x.0": (2,)}
    assert all(view.part is None for storage in layout.storages for view in storage.views)


def test_the_files_of_a_safetensors_checkpoint_hold_parts(ranks: Path) -> None:
    folder = load(ranks / "safetensors" / "step-0")
    found = {}
    for name in sorted(folder.files):
        layout = folder.layout(name)
        assert layout.format == "safetensors"
        found.update({view.name: view.part for storage in layout.storages for view in storage.views})
    assert found["0.weight[0:130,0:64]"] == Part((259, 64), (0, 0))
    assert found["columns[0:6,5:10]"] == Part((6, 10), (0, 5))


# ------------------------------------------------------------------------------------------------ while it lands


def test_nothing_is_said_before_the_names_are_there(ranks: Path) -> None:
    folder = load(ranks / "dcp" / "step-0")
    metadata = folder.files.pop(b".metadata")
    assert folder.layout(b"__0_0.distcp", final=False) == Layout("torch-distcp")
    folder.files[b".metadata"] = metadata
    landed = folder.layout(b"__0_0.distcp", final=False)
    assert landed.complete and landed.storages == folder.layout(b"__0_0.distcp").storages
    half = folder.layout(b"__0_0.distcp", 90_000, final=False)
    assert not half.complete and half.size == landed.size
    assert half.storages == tuple(s for s in landed.storages if s in half.storages) and half.storages


@pytest.mark.parametrize("name", [b"__0_0.distcp", b"__1_0.distcp"])
def test_names_are_foretold_from_the_checkpoint_before_whatever_was_shifted(ranks: Path, name: bytes) -> None:
    before, folder = load(ranks / "dcp" / "step-0"), load(ranks / "dcp" / "step-1")
    assert sum(map(len, before.files.values())) != sum(map(len, folder.files.values()))
    final = folder.layout(name)
    del folder.files[b".metadata"]
    folder.told = {b".metadata": before.files[b".metadata"]}
    size = len(folder.files[name])
    assert folder.layout(name, size, final=False).storages == final.storages
    half = folder.layout(name, size // 2, final=False)
    assert half.storages and half.storages == final.storages[: len(half.storages)]


def test_nothing_is_guessed_of_an_item_with_another_shape(ranks: Path) -> None:
    folder = load(ranks / "dcp" / "step-0")
    final = folder.layout(b"__0_0.distcp")
    metadata = folder.files.pop(b".metadata")
    folder.told = {b".metadata": metadata.replace(b"__0_0", b"__X_0").replace(b"__1_0", b"__0_0")}
    guessed = folder.layout(b"__0_0.distcp", final=False)
    shapes = {view.name: view.shape for storage in guessed.storages for view in storage.views}
    assert "0.weight[130:259,0:64]" not in shapes and len(guessed.storages) < len(final.storages)


def test_growing_byte_by_byte_never_says_what_is_not_so(ranks: Path) -> None:
    folder = load(ranks / "dcp" / "step-0")
    final = folder.layout(b"__1_0.distcp")
    folder.told = {b".metadata": folder.files.pop(b".metadata")}
    parser = parser_for(b"__1_0.distcp", beside=folder)
    data = folder.files[b"__1_0.distcp"]
    for frontier in range(0, len(data), 997):
        layout = parser.update(lambda o, n, end=frontier: data[o : min(o + n, end)], frontier, False)  # type: ignore[misc]
        assert layout.storages == final.storages[: len(layout.storages)]


def test_whether_a_tensor_is_a_part_is_not_said_before_another_rank_has_begun(ranks: Path) -> None:
    folder = load(ranks / "safetensors" / "step-0")
    first, second = sorted(folder.files)
    final = folder.layout(first)
    later = folder.files.pop(second)
    assert not folder.layout(first, final=False).storages
    folder.files[second] = later[: len(later) // 2]
    assert folder.layout(first, final=False).storages == final.storages


# ------------------------------------------------------------------------------------------------ what is not in order


def test_without_metadata_items_are_numbered(ranks: Path) -> None:
    folder = load(ranks / "dcp" / "step-0")
    del folder.files[b".metadata"]
    layout = folder.layout(b"__0_0.distcp")
    assert names(layout)[0].startswith("item.") and "names" in layout.note
    assert {s.dtype for s in layout.storages} >= {"BF16", "F32"}


@pytest.mark.parametrize("end", [0, 1, 100, 5000, 100_000])
def test_a_file_that_is_cut_off_keeps_its_first_tensors(ranks: Path, end: int) -> None:
    folder = load(ranks / "dcp" / "step-0")
    whole = folder.layout(b"__0_0.distcp").storages
    layout = folder.layout(b"__0_0.distcp", end)
    assert layout.complete and layout.storages == whole[: len(layout.storages)] and layout.note


def test_items_that_were_compressed_on_the_way_are_kept_as_bytes(tmp_path: Path) -> None:
    from torch.distributed.checkpoint._extension import ZStandard
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    if not ZStandard.is_available():
        pytest.fail("install zstandard")
    writer = FileSystemWriter(str(tmp_path / "one"), _extensions=[ZStandard()])
    save({"a": torch.zeros(1000)}, storage_writer=writer, no_dist=True)
    layout = load(tmp_path / "one").layout(b"__0_0.distcp")
    assert not layout.storages and "compressed" in layout.note


def test_metadata_is_followed_and_not_run(ranks: Path, tmp_path: Path) -> None:
    class Canary:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "canary"),)

    folder = load(ranks / "dcp" / "step-0")
    stream = io.BytesIO()
    pickle.dump(Canary(), stream)
    folder.files[b".metadata"] = stream.getvalue()
    assert names(folder.layout(b"__0_0.distcp"))[0].startswith("item.")
    assert not (tmp_path / "canary").exists()


def test_damaged_metadata_makes_no_parser_raise(ranks: Path) -> None:
    folder = load(ranks / "dcp" / "step-0")
    good, dice = folder.files[b".metadata"], random.Random(1)
    for _ in range(150):
        bad = bytearray(good)
        for _ in range(dice.randint(1, 4)):
            bad[dice.randrange(len(bad))] = dice.randrange(256)
        folder.files[b".metadata"] = bytes(bad[: dice.randint(len(bad) // 2, len(bad))])
        folder.layout(b"__0_0.distcp")


def test_a_metadata_that_is_none_is_said_to_be_of_no_use() -> None:
    for data in (b"", b"\x80\x04N.", pickle.dumps({"storage_data": {}})):
        with pytest.raises(Malformed):
            read_metadata(data)


def test_overlapping_items_are_not_believed() -> None:
    stored = {MetadataIndex(str(i)): _StorageInfo("f", 10 * i, 15) for i in range(4)}
    items = read_metadata(pickle.dumps(Metadata({}, storage_data=stored)))["f"]
    assert [item.offset for item in items] == [0, 20]


def saved(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def bomb(number: int) -> bytes:
    """A zip file of torch.save, of about a kilobyte, whose pickle leads to one tensor on 2^40 paths."""
    with zipfile.ZipFile(io.BytesIO(saved([torch.ones(1)]))) as file:
        pickled = file.read("archive/data.pkl")
    body = pickled[: pickled.rindex(b"a")] + b"K" + bytes([number]) + b"0"
    for i in range(100, 140):
        body += b"q" + bytes([i]) + b"0](h" + bytes([i]) + b"h" + bytes([i]) + b"e"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("archive/data.pkl", body + b".")
        file.writestr("archive/data/0", bytes(4))
    return stream.getvalue()


@pytest.fixture
def bombs() -> Folder:
    """Forty hostile items, and twenty tensors among them."""
    items = [saved(torch.arange(4.0)) if i % 3 == 2 else bomb(i) for i in range(60)]
    places = itertools.pairwise([0, *itertools.accumulate(map(len, items))])
    stored = {
        MetadataIndex(str(i), torch.Size([0])): _StorageInfo("__0_0.distcp", start, end - start)
        for i, (start, end) in enumerate(places)
    }
    whole = [ChunkStorageMetadata(torch.Size([0]), torch.Size([4]))]
    about = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size([4]), whole)
    metadata = Metadata({str(i): about for i in range(2, 60, 3)}, storage_data=stored)
    return Folder({b"__0_0.distcp": b"".join(items), b".metadata": pickle.dumps(metadata)})


@pytest.mark.parametrize("case", ["named", "foretold", "numbered"])
def test_items_cost_together_what_one_file_may(bombs: Folder, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, and while it grows; and the tensors among hostile items are understood all the same."""
    monkeypatch.setattr(pickle_walk, "MAX_WORK", 50_000)
    costs: list[int] = []

    def counted(data: bytes, **rest: Any) -> Contents:
        contents = read_contents(data, **rest)
        costs.append(contents.work)
        return contents

    monkeypatch.setattr(torch_zip, "read_contents", counted)
    if case != "named":
        metadata = bombs.files.pop(b".metadata")
        bombs.told = {b".metadata": metadata} if case == "foretold" else {}
    name, data, passes = b"__0_0.distcp", bombs.files[b"__0_0.distcp"], 1 if case == "named" else 2
    once = passes * (51_000 + 60 * 256)
    fresh = bombs.layout(name)
    assert sum(costs) < once and "too many paths" in fresh.note
    found = {view.name for storage in fresh.storages for view in storage.views if view.shape == (4,)}
    assert found == {f"{'' if case == 'named' else 'item.'}{i}" for i in range(2, 60, 3)}
    costs.clear()
    parser = parser_for(name, beside=bombs)
    for frontier in [*range(1000, len(data), 7000), len(data)]:
        parser.update(lambda o, n, end=frontier: data[o : min(o + n, end)], frontier, False)  # type: ignore[misc]
    assert sum(costs) < 2 * once  # as it grows, and what was cut short once more when it is whole
    assert parser.update(lambda o, n: data[o : o + n], len(data), True) == fresh


def test_tensors_cost_nothing_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_walk, "MAX_WORK", 100)
    layout = Folder({b"__0_0.distcp": saved(torch.nn.Parameter(torch.ones(2, 3))) * 50}).layout(b"__0_0.distcp")
    assert names(layout) == [f"item.{i}" for i in range(50)]


def test_a_file_that_shrinks_while_it_is_read_is_no_error(ranks: Path) -> None:
    """Reads come back short at every place there is, also within the record that ends a zip file."""
    data = (ranks / "dcp" / "step-0" / "__0_0.distcp").read_bytes()
    end = data.index(b"PK\5\6")
    for have in range(end - 30, end + 30):
        layout = parser_for(b"__0_0.distcp").update(lambda o, n, have=have: data[o : min(o + n, have)], len(data), True)
        assert layout.complete and layout.size == len(data) and problem_of(layout, len(data)) == ""
