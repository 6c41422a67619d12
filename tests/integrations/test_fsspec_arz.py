"""``arz://`` as fsspec sees it."""

from __future__ import annotations

import gc
import io
import shutil
from pathlib import Path

import fsspec
import pytest
import safetensors.torch
import torch

import arzstream
from arzstream.integrations.fsspec_arz import ArzFileSystem


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    tensors = {f"layers.{n}.weight": torch.randn(600, 700).bfloat16() for n in range(5)}
    safetensors.torch.save_file(tensors, made / "model.safetensors")
    torch.save({"step": 3, "exp_avg": torch.randn(300, 300)}, made / "optimizer.pt")
    (made / "config.json").write_text('{"a": "ü"}')
    (made / "sub" / "deep").mkdir(parents=True)
    (made / "sub" / "deep" / "x.txt").write_bytes(b"0123456789")
    (made / "empty").mkdir()
    (made / "link").symlink_to("config.json")
    return made


@pytest.fixture(scope="module")
def archive(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "x.arz"
    arzstream.pack([folder], path, profile="fast")
    return path


def test_every_file_is_read_through_a_chained_url(folder: Path, archive: Path) -> None:
    for name in ("model.safetensors", "optimizer.pt", "config.json", "sub/deep/x.txt"):
        with fsspec.open(f"arz://{name}::file://{archive}") as file:
            assert file.read() == (folder / name).read_bytes()
    with fsspec.open(f"arz://config.json::file://{archive}", "r", encoding="utf-8") as text:
        assert text.read() == '{"a": "ü"}'


def test_an_archive_in_another_store_is_read_in_place(folder: Path, archive: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/models/x.arz", archive.read_bytes())
    with fsspec.open("arz://model.safetensors::memory://models/x.arz") as file:
        assert file.read() == (folder / "model.safetensors").read_bytes()
    with fsspec.open(f"arz://config.json::simplecache::file://{archive}") as file:
        assert file.read() == (folder / "config.json").read_bytes()


def test_the_listing_is_that_of_the_folder(folder: Path, archive: Path) -> None:
    with ArzFileSystem(str(archive)) as fs:
        assert fs.ls("", detail=False) == ["config.json", "empty", "link", "model.safetensors", "optimizer.pt", "sub"]
        assert fs.ls("sub", detail=False) == ["sub/deep"]
        assert fs.find("") == ["config.json", "link", "model.safetensors", "optimizer.pt", "sub/deep/x.txt"]
        assert fs.info("model.safetensors")["size"] == (folder / "model.safetensors").stat().st_size
        assert fs.info("arz://sub/deep/x.txt")["type"] == "file" and fs.isdir("sub/deep") and fs.isdir("empty")
        assert fs.modified("config.json").timestamp() == pytest.approx((folder / "config.json").stat().st_mtime)
        assert fs.glob("**/*.txt") == ["sub/deep/x.txt"]
        with pytest.raises(FileNotFoundError):
            fs.info("nothing")
        with pytest.raises(FileNotFoundError):
            fs.open("nothing")
        with pytest.raises(IsADirectoryError):
            fs.open("sub")
        assert fs.cat_file("link") == b'{"a": "\xc3\xbc"}'


def test_files_are_seekable_and_only_what_is_read_is_decoded(folder: Path, archive: Path, decoded: list[str]) -> None:
    wanted = (folder / "model.safetensors").read_bytes()
    with ArzFileSystem(str(archive)) as fs, fs.open("model.safetensors") as file:
        decoded.clear()
        file.seek(-10, io.SEEK_END)
        assert file.read() == wanted[-10:] and len(set(decoded)) == 1
        assert fs.cat_file("model.safetensors", start=-20, end=-10) == wanted[-20:-10]
        assert fs.cat_file("model.safetensors", start=1000, end=1000) == b""
        assert fs.cat_file("model.safetensors", end=9) == wanted[:9]
        assert fs.cat_ranges(["model.safetensors"] * 2, [0, 500_000], [8, 500_100]) == [
            wanted[:8],
            wanted[500_000:500_100],
        ]
        assert len(set(decoded)) <= 3


def test_torch_and_safetensors_load_from_it(folder: Path, archive: Path) -> None:
    with fsspec.open(f"arz://optimizer.pt::file://{archive}") as file:
        loaded = torch.load(file, weights_only=True)
    assert loaded["step"] == 3 and torch.equal(loaded["exp_avg"], torch.load(folder / "optimizer.pt")["exp_avg"])
    with ArzFileSystem(str(archive)) as fs:
        found = safetensors.torch.load(fs.cat_file("model.safetensors"))
    wanted = safetensors.torch.load_file(folder / "model.safetensors")
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_nothing_can_be_written(archive: Path) -> None:
    with ArzFileSystem(str(archive)) as fs:
        with pytest.raises(OSError, match="read-only"):
            fs.open("config.json", "wb")
        with pytest.raises(NotImplementedError):
            fs.rm_file("config.json")


def test_the_archive_is_open_as_long_as_a_file_is_and_no_longer(
    archive: Path, tmp_path: Path, closed_archives: list[str]
) -> None:
    copy = shutil.copy(archive, tmp_path / "own.arz")
    fs, path = fsspec.core.url_to_fs(f"arz://sub/deep/x.txt::file://{copy}")
    file = fs.open(path)
    del fs
    gc.collect()
    assert file.read(4) == b"0123" and str(copy) not in closed_archives
    del file
    gc.collect()
    assert closed_archives.count(str(copy)) == 1


def test_an_archive_that_was_opened_elsewhere_stays_open(archive: Path) -> None:
    with arzstream.open(archive) as opened:
        with ArzFileSystem(opened) as fs:
            assert fs.cat_file("sub/deep/x.txt") == b"0123456789"
        assert opened.read_file("sub/deep/x.txt") == b"0123456789"


def test_parents_are_found_beside_the_archive_or_where_it_is_said(folder: Path, tmp_path: Path) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    changed = {name: tensor * 1.01 for name, tensor in tensors.items()}
    for name, state in (("a", tensors), ("b", changed)):
        (tmp_path / name).mkdir()
        safetensors.torch.save_file(state, tmp_path / name / "model.safetensors")
    arzstream.pack([tmp_path / "a"], tmp_path / "a.arz", profile="fast")
    arzstream.pack([tmp_path / "b"], tmp_path / "b.arz", parent=tmp_path / "a.arz")
    wanted = (tmp_path / "b" / "model.safetensors").read_bytes()
    with fsspec.open(f"arz://model.safetensors::file://{tmp_path}/b.arz") as file:
        assert file.read() == wanted
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a.arz").rename(tmp_path / "elsewhere" / "a.arz")
    with (
        fsspec.open(f"arz://model.safetensors::file://{tmp_path}/b.arz") as file,
        pytest.raises(arzstream.MissingParentError),
    ):
        file.read()
    with fsspec.open(
        f"arz://model.safetensors::file://{tmp_path}/b.arz", arz={"parents": str(tmp_path / "elsewhere")}
    ) as file:
        assert file.read() == wanted
