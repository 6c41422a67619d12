"""Where archives are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from arzstream.store import folders


def test_the_folder_of_a_path_and_of_a_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert folders.folder_of("a.arz") == str(tmp_path)
    assert folders.folder_of("x/../y/a.arz") == str(tmp_path / "y")
    assert folders.folder_of("s3://bucket/run/a.arz") == "s3://bucket/run"
    assert folders.beside("s3://bucket/run", "b.arz") == "s3://bucket/run/b.arz"
    assert folders.beside(str(tmp_path), "d/b.arz") == str(tmp_path / "d" / "b.arz")


def test_archives_are_listed_by_name_and_what_cannot_be_listed_has_none(tmp_path: Path) -> None:
    for name in ("b.arz", "a.arz", "a.bin", ".arz-tmp-a.arz-000000000000"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "c.arz").write_bytes(b"")
    wanted = [str(tmp_path / "a.arz"), str(tmp_path / "b.arz")]
    assert folders.archives_in(str(tmp_path)) == folders.archives_in(f"file://{tmp_path}") == wanted
    for place in (tmp_path / "none", tmp_path / "a.bin"):
        assert folders.archives_in(str(place)) == []
    assert folders.archives_in("no-such-scheme://host/folder") == []


def test_only_so_many_archives_of_a_folder_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "MOST", 2)
    for name in "dbca":
        (tmp_path / f"{name}.arz").write_bytes(b"")
    assert [Path(place).stem for place in folders.archives_in(str(tmp_path))] == ["a", "b"]


def test_a_link_to_a_file_means_that_file(tmp_path: Path) -> None:
    (tmp_path / "a.arz").write_bytes(b"")
    (tmp_path / "link.arz").symlink_to("a.arz")
    assert folders.same_place(str(tmp_path / "link.arz"), str(tmp_path / "d" / ".." / "a.arz"))
    assert not folders.same_place(str(tmp_path / "a.arz"), "s3://bucket/a.arz")
    assert folders.same_place("s3://bucket/a.arz", "s3://bucket/a.arz")
