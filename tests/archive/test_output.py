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


def test_a_file_url_is_not_overwritten(archive: Path) -> None:
    with pytest.raises(StorageError, match="exists already"):
        arzstream.pack(archive.parent / "a.npy", f"file://{archive}")
