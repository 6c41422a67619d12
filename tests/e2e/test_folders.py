"""Whole folders through the command line, byte for byte."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from arzstream.testing import folders, process, tensors, writers


def arz(*arguments: str | Path, status: int = 0) -> str:
    """Run a command that must end with ``status``; what it printed."""
    done = process.arzstream(*arguments)
    assert done.returncode == status, done.stderr
    return done.stdout


def round_trip(source: Path, base: Path) -> Path:
    """Pack, verify and unpack ``source``; the unpacked folder."""
    arz("pack", source, "-o", base / "x.arz", "--quiet")
    arz("verify", "--deep", base / "x.arz", "--quiet")
    arz("verify", "--against", source, base / "x.arz", "--quiet")
    arz("unpack", base / "x.arz", "-o", base / "back", "--quiet")
    return base / "back"


def test_awkward_folder_comes_back_byte_for_byte(tmp_path: Path) -> None:
    source = folders.awkward(tmp_path / "source")
    back = round_trip(source, tmp_path)
    expected = process.tree(source)
    outside = (tmp_path / "source-outside" / "blob").stat()
    # A link that points outside is followed: the archive holds what it pointed to.
    content = (tmp_path / "source-outside" / "blob").read_bytes()
    expected[b"link-outside"] = ("file", outside.st_mode & 0o7777, outside.st_mtime_ns, content)
    found = process.tree(back)
    assert sorted(found) == sorted(expected)
    for name, entry in expected.items():
        assert found[name] == entry, name


def test_malformed_files_are_opaque_and_ls_says_why(tmp_path: Path) -> None:
    source = folders.awkward(tmp_path / "source")
    arz("pack", source, "-o", tmp_path / "x.arz", "--quiet")
    files = {entry["path"]: entry for entry in json.loads(arz("ls", "--json", tmp_path / "x.arz"))["files"]}
    for name in folders.malformed():
        entry = files[f"bad/{name}"]
        # A dtype that is not known makes only its tensor bytes; the file is a valid one all the same.
        assert entry["format"] == ("safetensors" if name.startswith("no-dtype") else "opaque"), entry
        # Nothing is wrong with a .bin that is no zip: the name promises nothing.
        assert entry["note"] or name == "no-zip.bin", entry
    assert files["model.safetensors"]["format"] == "safetensors" and not files["model.safetensors"]["note"]


def test_trainer_folder_with_optimizer_comes_back(tmp_path: Path) -> None:
    source = tmp_path / "source"
    writers.folder(source, tensors.model("gpt2", layers=2, width=64), pace=writers.Pace(), log=writers.EventLog())
    assert process.tree(round_trip(source, tmp_path)) == process.tree(source)
    listing = json.loads(arz("ls", "--json", tmp_path / "x.arz"))
    formats = {entry["path"]: entry["format"] for entry in listing["files"]}
    assert formats["optimizer.pt"] == "torch-zip" and formats["model.safetensors"] == "safetensors"


@pytest.mark.parametrize("name", ["model.safetensors", "odd.safetensors", "empty", "one-byte", "zeros.dat"])
def test_single_file_comes_back(name: str, tmp_path: Path) -> None:
    source = folders.awkward(tmp_path / "source") / name
    back = round_trip(source, tmp_path)
    assert os.listdir(back) == [name]
    assert (back / name).read_bytes() == source.read_bytes()
    assert (back / name).stat().st_mtime_ns == source.stat().st_mtime_ns


def test_cat_gives_one_file_and_only_restores_some(tmp_path: Path) -> None:
    source = folders.awkward(tmp_path / "source")
    arz("pack", source, "-o", tmp_path / "x.arz", "--quiet")
    assert arz("cat", tmp_path / "x.arz", "config.json") == (source / "config.json").read_text()
    arz("unpack", tmp_path / "x.arz", "-o", tmp_path / "some", "--only", "*.json", "--quiet")
    assert [p.name for p in (tmp_path / "some").rglob("*") if p.is_file()] == ["config.json"]


def test_standard_output_gives_the_same_archive_as_a_file(tmp_path: Path) -> None:
    source = folders.step(tmp_path / "source")
    arz("pack", source, "-o", tmp_path / "x.arz", "--reproducible", "--quiet")
    arz("pack", source, "-o", tmp_path / "y.arz", "--reproducible", "--quiet")
    command = " ".join(
        [*process.command(), "pack", str(source), "-o", "-", "--reproducible", ">", str(tmp_path / "z.arz")]
    )
    assert os.system(command) == 0
    assert (tmp_path / "x.arz").read_bytes() == (tmp_path / "y.arz").read_bytes() == (tmp_path / "z.arz").read_bytes()


def test_json_summary_adds_up(tmp_path: Path) -> None:
    source = folders.step(tmp_path / "source")
    summary = json.loads(arz("pack", source, "-o", tmp_path / "x.arz", "--json"))
    assert summary["bytes_in"] == sum(p.stat().st_size for p in source.rglob("*") if p.is_file())
    assert summary["bytes_out"] == (tmp_path / "x.arz").stat().st_size
    assert summary["ratio"] == pytest.approx(summary["bytes_out"] / summary["bytes_in"])
    assert 0 < summary["ratio"] < 0.8 and summary["seconds"] > 0
