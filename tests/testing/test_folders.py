"""The awkward folder has in it what it promises, and two looks at it agree."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from arzstream.testing import folders, process


def test_awkward_folder_holds_every_oddity(tmp_path: Path) -> None:
    found = process.tree(folders.awkward(tmp_path / "f"))
    kinds = {kind for kind, *_ in found.values()}
    assert kinds == {"file", "link", "folder"}
    assert found[b"empty"][3] == b"" and found[b"empty-folder"][0] == "folder"
    assert {found[name][1] for name in (b"config.json", b"one-byte", b"random.dat")} == {0o600, 0o444, 0o640}
    assert any(b"\xff" in name for name in found)
    assert os.path.isabs(found[b"link-outside"][3]) and found[b"link-inside"][3] == b"nested/copy.safetensors"


def test_malformed_files_are_refused_by_the_library(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    for name, content in folders.malformed().items():
        if name.endswith(".safetensors") and not name.startswith("twice"):  # the library takes the last of equal keys
            path = tmp_path / "x.safetensors"
            path.write_bytes(content)
            with pytest.raises((safetensors.SafetensorError, OSError)):  # noqa: SIM117
                with safetensors.safe_open(path, "np") as opened:
                    [opened.get_tensor(key) for key in opened.keys()]  # noqa: SIM118


def test_tree_sees_a_changed_byte_mode_or_time(tmp_path: Path) -> None:
    path = tmp_path / "f" / "x"
    path.parent.mkdir()
    path.write_bytes(b"abc")
    before = process.tree(tmp_path / "f")
    path.chmod(0o611)
    assert process.tree(tmp_path / "f") != before
    path.chmod(0o644)
    assert process.tree(tmp_path / "f") == before
    os.utime(path, ns=(0, 1))
    assert process.tree(tmp_path / "f") != before


def test_leftovers_are_all_but_archives_and_journal(tmp_path: Path) -> None:
    for name in (
        ".arzstream/journal.db",
        "a.arz",
        "run/b.arz",
        ".arz-tmp-a.arz-0123456789ab",
        "run/x.partial",
        ".arzstream/t/x",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expected = [".arz-tmp-a.arz-0123456789ab", ".arzstream/t/x", "run/x.partial"]
    assert process.leftovers(tmp_path, ["a.arz", "run/b.arz"]) == expected
