"""The real torch.distributed.checkpoint: saved compressed, and loaded out of archives of its folders."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

import arzstream
from arzstream.integrations.dcp import ArchiveReader, ArzExtension, registry

pytestmark = pytest.mark.filterwarnings("ignore")


def state() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "model": {"a.weight": torch.randn(900, 700).bfloat16(), "b": torch.randn(5), "ids": torch.arange(9)},
        "optim": {"exp_avg": torch.randn(300, 300).t()},
        "step": 17,
        "name": "größe",
    }


def empty() -> dict[str, Any]:
    made = state()
    for part in made.values():
        if isinstance(part, dict):
            for tensor in part.values():
                tensor.zero_()
    return {**made, "step": 0, "name": ""}


def equal(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found["step"] == wanted["step"] and found["name"] == wanted["name"]
    for part in ("model", "optim"):
        assert all(torch.equal(found[part][name], tensor) for name, tensor in wanted[part].items())


def save(folder: Path, **writer: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state(), storage_writer=dcp.FileSystemWriter(folder, **writer), no_dist=True)


def load(reader: Any) -> dict[str, Any]:
    found = empty()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(found, storage_reader=reader, no_dist=True)
    return found


@pytest.mark.parametrize("writer", [{}, {"thread_count": 2}, {"single_file_per_rank": False}])
def test_what_is_saved_with_the_extension_is_loaded_and_smaller(tmp_path: Path, writer: dict[str, Any]) -> None:
    save(tmp_path / "x", _extensions=[ArzExtension()], **writer)
    equal(load(dcp.FileSystemReader(tmp_path / "x", _extension_registry=registry())), state())
    save(tmp_path / "plain", **writer)
    ours, theirs = (sum(path.stat().st_size for path in (tmp_path / name).glob("*.distcp")) for name in ("x", "plain"))
    assert ours < 0.9 * theirs


def test_damage_in_a_saved_item_is_an_error(tmp_path: Path) -> None:
    save(tmp_path / "x", _extensions=[ArzExtension("fast")])
    path = next((tmp_path / "x").glob("*.distcp"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises((arzstream.CorruptError, dcp.CheckpointException), match=r"damaged|checksum|CorruptError"):
        load(dcp.FileSystemReader(tmp_path / "x", _extension_registry=registry()))


def test_a_version_of_the_extension_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match=r"stream\.arz/2"):
        ArzExtension.from_descriptor("2")
    assert isinstance(registry().from_descriptor_list([ArzExtension().get_descriptor()])[0], ArzExtension)


def test_a_packed_folder_is_loaded_from_its_archive_reading_only_what_is_asked_for(
    tmp_path: Path, decoded: list[str]
) -> None:
    save(tmp_path / "run" / "step-3")
    arzstream.pack([tmp_path / "run"], tmp_path / "x.arz")
    reader = ArchiveReader(tmp_path / "x.arz", "step-3")
    equal(load(reader), state())
    reader.close()
    with arzstream.open(tmp_path / "x.arz") as archive:
        part: dict[str, Any] = {"model": {"b": torch.zeros(5)}}
        decoded.clear()
        dcp.load(part, storage_reader=ArchiveReader(archive, "step-3"), no_dist=True)
        assert torch.equal(part["model"]["b"], state()["model"]["b"])
        archive.keys()


def test_a_folder_saved_with_the_extension_is_loaded_from_an_archive_too(tmp_path: Path) -> None:
    save(tmp_path / "x", _extensions=[ArzExtension("fast")])
    arzstream.pack([tmp_path / "x"], tmp_path / "x.arz")
    equal(load(ArchiveReader(tmp_path / "x.arz")), state())


def test_the_archive_that_it_was_coded_against_is_looked_for_where_it_is_said(tmp_path: Path) -> None:
    save(tmp_path / "step-1")
    save(tmp_path / "step-2")
    arzstream.pack(tmp_path / "step-1", tmp_path / "1.arz")
    arzstream.pack(tmp_path / "step-2", tmp_path / "2.arz", parent=tmp_path / "1.arz")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "1.arz").rename(tmp_path / "elsewhere" / "1.arz")
    reader = ArchiveReader(tmp_path / "2.arz")
    with pytest.raises((arzstream.MissingParentError, dcp.CheckpointException), match="coded against"):
        load(reader)
    reader.close()
    reader = ArchiveReader(tmp_path / "2.arz", parents=tmp_path / "elsewhere")
    equal(load(reader), state())
    reader.close()
