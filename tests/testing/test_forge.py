"""Taking an archive apart and putting it together gives the same archive; changing it gives one whose checksums are
right."""

from __future__ import annotations

from pathlib import Path

import pytest

import arzstream
from arzstream.archive.verify import verify
from arzstream.testing import folders, forge


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    base = tmp_path_factory.mktemp("forge")
    arzstream.pack(str(folders.step(base / "step", layers=2, width=32)), str(base / "x.arz"))
    return (base / "x.arz").read_bytes()


def test_assembling_the_parts_gives_the_same_bytes(archive: bytes) -> None:
    assert forge.assemble(*forge.parse(archive)) == archive


def test_a_forged_layer_name_in_unit_and_index_passes_verification(archive: bytes, tmp_path: Path) -> None:
    prologue, frames = forge.parse(archive)
    for frame in frames:
        for unit in frame.units.values():
            unit["layer"] = "forged"

    def edit(index: dict) -> None:
        for unit in index["units"]:
            unit[1]["layer"] = "forged"

    path = tmp_path / "x.arz"
    path.write_bytes(forge.assemble(prologue, frames, edit_index=edit))
    verify(str(path))
    with arzstream.open(str(path)) as opened:
        assert list(opened.layers()) == ["forged"]


def test_an_index_that_contradicts_the_frames_is_noticed(archive: bytes, tmp_path: Path) -> None:
    def edit(index: dict) -> None:
        index["units"][0][1]["layer"] = "forged"

    path = tmp_path / "x.arz"
    path.write_bytes(forge.assemble(*forge.parse(archive), edit_index=edit))
    with pytest.raises(arzstream.CorruptError):
        verify(str(path))
