"""Where a new archive may go, and what is refused before any work is done for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import arzstream
from arzstream.archive.rebase import rebase
from arzstream.archive.sets import write_set
from arzstream.errors import StorageError

WRITERS: dict[str, Callable[[Path, str], object]] = {
    "recover": arzstream.recover,
    "rebase": rebase,
    "write_set": lambda archive, dest: write_set(dest, [archive]),
    "save_file": lambda archive, dest: arzstream.torch.save_file({"a": torch.zeros(8)}, dest),
}


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "a.npy", np.arange(64, dtype=np.float32))
    arzstream.pack(tmp_path / "a.npy", tmp_path / "x.arz")
    return tmp_path / "x.arz"


@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_written_to_files_only_refuses_a_url_instead_of_making_a_folder_of_its_name(
    archive: Path, writer: str
) -> None:
    before = sorted(os.listdir())
    with pytest.raises(StorageError, match=r"^s3://bucket/y\.arz: .*local file") as raised:
        WRITERS[writer](archive, "s3://name:sekret@bucket/y.arz?sig=sekret")
    assert "sekret" not in str(raised.value)
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("writer", ["recover", "rebase", "save_file"])
def test_a_file_url_is_the_file_that_it_names(archive: Path, writer: str, tmp_path: Path) -> None:
    WRITERS[writer](archive, f"file://{tmp_path}/y.arz")
    assert sorted(os.listdir()) == ["a.npy", "x.arz", "y.arz"]
    arzstream.verify(tmp_path / "y.arz", deep=True)


def test_unpack_restores_to_the_folder_that_a_file_url_names_and_to_no_other_url(archive: Path, tmp_path: Path) -> None:
    before = sorted(os.listdir())
    with pytest.raises(StorageError, match=r"^s3://bucket/out: .*local folder") as raised:
        arzstream.unpack(archive, "s3://name:sekret@bucket/out?sig=sekret")
    assert "sekret" not in str(raised.value)
    assert sorted(os.listdir()) == before
    arzstream.unpack(archive, f"file://{tmp_path}/out")
    assert sorted(os.listdir()) == [*before[:1], "out", *before[1:]]
    assert (tmp_path / "out" / "a.npy").read_bytes() == (tmp_path / "a.npy").read_bytes()


def test_a_file_url_is_not_overwritten(archive: Path) -> None:
    with pytest.raises(StorageError, match="exists already"):
        arzstream.pack(archive.parent / "a.npy", f"file://{archive}")


@pytest.mark.parametrize("dest", ["model.npy", "file", "folder/config.json", "folder/linked", "a-link", "a-hard-link"])
def test_pack_replaces_none_of_its_sources(archive: Path, dest: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "linked").symlink_to("config.json")
    (folder / "outside").symlink_to(tmp_path / "model.npy")
    (tmp_path / "a.npy").rename(tmp_path / "model.npy")
    (tmp_path / "a-link").symlink_to(folder / "config.json")
    os.link(folder / "config.json", tmp_path / "a-hard-link")
    place = f"file://{tmp_path}/model.npy" if dest == "file" else tmp_path / dest
    with pytest.raises(StorageError, match="is one of the files to pack, which stay as they are; choose another name"):
        arzstream.pack(folder, place, force=True)
    with pytest.raises(StorageError, match="is one of the files to pack"):
        arzstream.pack([f"file://{tmp_path}/model.npy", folder / "config.json"], place, force=True)
    assert (tmp_path / "model.npy").read_bytes()[:6] == b"\x93NUMPY" and (folder / "config.json").read_text() == "{}"


def test_pack_replaces_no_source_behind_a_url(archive: Path) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    store.pipe("/forced/m.npy", (archive.parent / "a.npy").read_bytes())
    for source in ("memory://forced/m.npy", "memory://forced"):
        with pytest.raises(StorageError, match="is one of the files to pack"):
            arzstream.pack(source, "memory://forced/m.npy", force=True)
    with pytest.raises(StorageError, match=r"^memory://forced/m\.npy: is no archive"):
        arzstream.pack("a.npy", "memory://forced/m.npy", force=True)
    arzstream.pack("a.npy", "memory://forced/new", force=True)
    arzstream.pack("a.npy", "memory://forced/new", force=True)
    store.rm("/forced", recursive=True)


def test_recover_replaces_nothing_that_it_needs(archive: Path, tmp_path: Path) -> None:
    """Itself, a parent that is whole, one that is damaged, and a volume."""
    data = np.load(tmp_path / "a.npy")
    for number in range(3):
        np.save(tmp_path / "a.npy", data + number)
        parent = {"parent": f"{number - 1}.arz"} if number else {}
        arzstream.pack("a.npy", f"{number}.arz", **parent)  # type: ignore[arg-type]
    write_set("set.arz", ["x.arz"])
    write_set("rescued.arz", ["x.arz"], force=True)
    held = {path: path.read_bytes() for path in tmp_path.glob("*.arz")}
    for place in ("2.arz", tmp_path / "2.arz", f"file://{tmp_path}/2.arz"):
        with pytest.raises(StorageError, match="is what would be recovered, and stays as it is; choose another name"):
            arzstream.recover("2.arz", place, force=True)
    for damaged, dest in (("2.arz", "1.arz"), ("2.arz", "0.arz"), ("set.arz", "x.arz")):
        with pytest.raises(StorageError, match=f"^{dest}: is needed to read what would take its place"):
            arzstream.recover(damaged, dest, force=True)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.arz")} == held
    (tmp_path / "1.arz").write_bytes(held[tmp_path / "1.arz"][:-9])
    with pytest.raises(StorageError, match="is needed to read what would take its place"):
        arzstream.recover("2.arz", "1.arz", force=True)
    arzstream.recover("2.arz", "rescued.arz", force=True)


def test_a_volume_is_not_replaced_by_its_set_nor_by_what_is_coded_against_that(archive: Path) -> None:
    with pytest.raises(StorageError, match="is needed to read what would take its place"):
        write_set("x.arz", ["x.arz"], force=True)
    write_set("set.arz", ["x.arz"])
    np.save("a.npy", np.arange(64, dtype=np.float32) + 1)
    with pytest.raises(StorageError, match="is needed to read what would take its place"):
        arzstream.pack("a.npy", "x.arz", parent="set.arz", force=True)


def test_force_replaces_archives_only(archive: Path, tmp_path: Path) -> None:
    """Also one that is damaged, which its name tells; and one of any name, which its beginning does."""
    (tmp_path / "notes").write_text("Dear diary")
    (tmp_path / "empty").touch()
    (tmp_path / "other").write_bytes(archive.read_bytes())
    (tmp_path / "damaged.arz").write_bytes(bytes(1000))
    for writer in ("recover", "rebase", "write_set", "pack"):
        force: dict[str, Callable[[str], object]] = {
            "recover": lambda dest: arzstream.recover(archive, dest, force=True),
            "rebase": lambda dest: rebase(archive, dest, force=True),
            "write_set": lambda dest: write_set(dest, [archive], force=True),
            "pack": lambda dest: arzstream.pack("a.npy", dest, force=True),
        }
        with pytest.raises(StorageError, match=r"^notes: is no archive, and --force replaces nothing else; choose"):
            force[writer]("notes")
        for name in ("empty", "other", "damaged.arz"):
            force[writer](name)
            arzstream.verify(tmp_path / name)
    assert (tmp_path / "notes").read_text() == "Dear diary"
