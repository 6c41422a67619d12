"""Archives that grow in a local folder."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from arzstream.daemon import destination
from arzstream.daemon.destination import Folder
from arzstream.errors import StorageError

from .conftest import temporaries


def test_an_archive_whose_name_is_taken_can_be_given_another_one(tmp_path: Path) -> None:
    (tmp_path / "step-1.arz").write_bytes(b"somebody else's")
    growing = Folder(str(tmp_path)).new("step-1.arz", 0o700)
    growing.sink.write(b"archive")
    with pytest.raises(StorageError) as taken:
        growing.publish("step-1.arz", 0o640)
    assert taken.value.errno == errno.EEXIST
    growing.publish("step-1.2.arz", 0o640)
    assert (tmp_path / "step-1.arz").read_bytes() == b"somebody else's"
    assert (tmp_path / "step-1.2.arz").read_bytes() == b"archive"
    assert (tmp_path / "step-1.2.arz").stat().st_mode & 0o777 == 0o640 and temporaries(tmp_path) == []


def test_an_archive_that_cannot_be_begun_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(place: str) -> None:
        raise StorageError(f"{place}: cannot open it for reading: too many open files", errno=errno.EMFILE)

    monkeypatch.setattr(destination, "LocalReader", refusing)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StorageError, match="too many"):
        Folder(str(tmp_path)).new("step-1.arz", 0o700)
    assert temporaries(tmp_path) == [] and len(os.listdir("/proc/self/fd")) == before
