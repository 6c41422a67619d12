"""Sets: several archives that are read as one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import arzstream
from arzstream.archive.recover import recover
from arzstream.archive.sets import write_set

SHARDS = {
    "a": {f"model.layers.{i}.w": torch.randn(300, 200) for i in range(3)},
    "deep/b": {f"model.layers.{i}.w": torch.randn(300, 200) for i in range(3, 6)},
}
SHARDS["deep/b"]["model.layers.5.tied"] = SHARDS["deep/b"]["model.layers.3.w"].clone()
ALL = {name: tensor for shard in SHARDS.values() for name, tensor in shard.items()}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A set of two archives; the sources lie in ``sources``."""
    for name, tensors in SHARDS.items():
        source = tmp_path / "sources" / f"model-{name[-1]}.safetensors"
        source.parent.mkdir(exist_ok=True)
        save_file(tensors, source)
        (tmp_path / f"{name}.arz").parent.mkdir(exist_ok=True)
        arzstream.pack(source, tmp_path / f"{name}.arz")
    write_set(tmp_path / "set.arz", [tmp_path / f"{name}.arz" for name in SHARDS])
    return tmp_path / "set.arz"


def test_a_set_is_read_as_one_archive(whole: Path) -> None:
    with arzstream.open(whole) as archive:
        assert set(archive.keys()) == set(ALL)
        assert all(torch.equal(archive.get_tensor(name), tensor) for name, tensor in ALL.items())
        assert all(torch.equal(tensor, ALL[name]) for name, tensor in archive.stream())
        assert torch.equal(archive.get_slice("model.layers.4.w")[7:9], ALL["model.layers.4.w"][7:9])
        assert archive.files() == ["model-a.safetensors", "model-b.safetensors"]
        for file in archive.files():
            assert archive.read_file(file) == (whole.parent / "sources" / file).read_bytes()


def test_a_set_is_unpacked_and_verified_with_its_volumes(whole: Path, tmp_path: Path) -> None:
    report = arzstream.verify(whole, deep=True, against=tmp_path / "sources")
    assert (report.tensors, report.files) == (len(ALL), 2)
    assert len(arzstream.unpack(whole, tmp_path / "out")) == 2
    assert (whole.stat().st_size < 4096) and not list(tmp_path.glob(".arz-tmp-*"))


def test_a_damaged_volume_is_noticed_and_named(whole: Path, tmp_path: Path) -> None:
    data = bytearray((tmp_path / "a.arz").read_bytes())
    data[2000] ^= 4
    (tmp_path / "a.arz").write_bytes(data)
    with pytest.raises(arzstream.CorruptError, match=r"a\.arz: the payload"):
        arzstream.verify(whole)


def test_a_missing_volume_is_named(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "a.arz").rename(tmp_path / "elsewhere.arz")
    for read in (arzstream.open, arzstream.verify):
        with pytest.raises(arzstream.StorageError, match=r"a\.arz: .*it is a volume of .*set\.arz"):
            read(whole)


def test_another_archive_of_that_name_is_refused(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "a.arz").write_bytes((tmp_path / "deep" / "b.arz").read_bytes())
    with pytest.raises(arzstream.CorruptError, match="not the volume"):
        arzstream.open(whole)


def test_a_set_is_no_volume_of_another_and_volumes_lie_below_it(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(arzstream.CorruptError, match="cannot be a volume"):
        write_set(tmp_path / "sets.arz", [whole])
    with pytest.raises(ValueError, match="does not lie in the folder"):
        write_set(tmp_path / "deep" / "set.arz", [tmp_path / "a.arz"])
    with pytest.raises(arzstream.CorruptError, match="two files"):
        twin = tmp_path / "twin.arz"
        twin.write_bytes((tmp_path / "a.arz").read_bytes())
        write_set(tmp_path / "sets.arz", [tmp_path / "a.arz", twin])
    assert not (tmp_path / "sets.arz").exists()


def test_recover_keeps_what_a_set_names(whole: Path, tmp_path: Path) -> None:
    data = bytearray(whole.read_bytes())
    data[-200] ^= 1  # in the index or its padding
    whole.write_bytes(data)
    recover(whole, tmp_path / "again.arz")
    with arzstream.open(tmp_path / "again.arz") as archive:
        assert set(archive.keys()) == set(ALL)
