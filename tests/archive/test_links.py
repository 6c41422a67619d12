"""Links come back leading to where they led, and none leads out of the folder that it is restored to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import arzstream
from arzstream.archive.links import leads_outside
from arzstream.archive.sources import kept_target
from arzstream.container.records import FileRecord, Kind
from arzstream.container.writer import FrameWriter
from arzstream.errors import CorruptError, StorageError

New = Callable[..., Any]
FOLDERS = {b"a", b"a/b", b"a/b/c"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with a file, and a link to a folder outside of it, which is followed."""
    (tmp_path / "run" / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "mnt" / "big" / "data").mkdir(parents=True)
    (tmp_path / "run" / "model.bin").write_bytes(b"x" * 100)
    (tmp_path / "run" / "extra").symlink_to(tmp_path / "mnt" / "big" / "data")
    return tmp_path / "run"


def restored(run: Path) -> Path:
    """Packed, verified and unpacked."""
    base = run.parent
    arzstream.pack(run, base / "x.arz")
    assert arzstream.verify(base / "x.arz", deep=True, against=run).refused_links == []
    arzstream.unpack(base / "x.arz", base / "back" / "there")
    return base / "back" / "there"


@pytest.mark.parametrize("relative", [False, True])
def test_a_link_in_a_followed_folder_that_leads_back_inside_does_so_when_restored(run: Path, relative: bool) -> None:
    data = run.parent / "mnt" / "big" / "data"
    (data / "best").symlink_to("../../../run/model.bin" if relative else run / "model.bin")
    back = restored(run)
    assert os.readlink(back / "extra" / "best") == "../model.bin"
    assert (back / "extra" / "best").read_bytes() == b"x" * 100


@pytest.mark.parametrize(
    "place, target",
    [
        ("by-name", "../run/model.bin"),
        ("through-a-link", "way/../../model.bin"),
        ("sub/through-a-followed-link", "../extra/../../../run/model.bin"),
        ("absolute", "{run}/model.bin"),
        ("sub/deep/up", "../../model.bin"),
        ("chain", "sub/deep/../../model.bin"),
    ],
)
def test_a_link_leads_to_the_same_file_when_restored(run: Path, place: str, target: str) -> None:
    (run / "way").symlink_to("sub/deep")
    (run / place).symlink_to(target.format(run=run))
    assert (run / place).resolve() == run / "model.bin"
    back = restored(run)
    assert (back / place).is_symlink() and (back / place).resolve() == (back / "model.bin").resolve()
    plain = place in ("sub/deep/up", "chain")
    assert not plain or os.readlink(back / place) == target, "what would lead there as it is stays as it is"


def test_a_link_is_where_its_folder_really_is(run: Path) -> None:
    """A link to a folder inside is kept, whichever way the folder that holds it was named."""
    named = run.parent / "named"
    named.symlink_to(run)
    (run / "sub" / "l").symlink_to(run / "model.bin")
    arzstream.pack(named, run.parent / "x.arz")
    arzstream.unpack(run.parent / "x.arz", run.parent / "back")
    assert os.readlink(run.parent / "back" / "sub" / "l") == "../model.bin"
    assert kept_target(os.fsencode(run), os.fsencode(run / "sub" / "l")) == b"../model.bin"


@pytest.mark.parametrize(
    "link, target, outside",
    [
        (b"l", b"x", False),
        (b"a/l", b"../x", False),
        (b"a/b/l", b"../../x/y", False),
        (b"a/l", b".././x//y", False),
        (b"l", b"a/../x", False),
        (b"l", b"a/b/../../x", False),
        (b"a/l", b"../a/b/../b/c/../../../x", False),
        (b"l", b"..", True),
        (b"a/l", b"../..", True),
        (b"l", b"/etc/passwd", True),
        (b"l", b"x/..", True),
        (b"l", b"a/x/../y", True),
        (b"l", b"a/../..", True),
    ],
)
def test_up_is_believed_only_where_it_starts_from_a_folder(link: bytes, target: bytes, outside: bool) -> None:
    assert leads_outside(link, target, FOLDERS.__contains__) == outside


def forged(new_sink: New, links: dict[bytes, bytes], folders: tuple[bytes, ...] = (b"a", b"a/b", b"a/b/c")) -> bytes:
    sink = new_sink()
    writer = FrameWriter(sink)
    for path in folders:
        writer.add_file(FileRecord(path, Kind.DIRECTORY, 0o755))
    for path, target in links.items():
        writer.add_file(FileRecord(path, Kind.LINK, 0o777, target=target))
    writer.commit("")
    writer.seal([])
    return bytes(sink.data)


def test_links_that_lead_outside_together_are_refused_before_anything_is_written(tmp_path: Path, new_sink: New) -> None:
    archive, dest = tmp_path / "x.arz", tmp_path / "dest"
    (tmp_path / "secret.txt").write_text("outside")
    for name in (b"m", b"z"):
        archive.write_bytes(forged(new_sink, {b"a/b/c/l": b"../../..", name: b"a/b/c/l/../secret.txt"}))
        with pytest.raises(CorruptError, match=f"the link {name.decode()} leads outside"):
            arzstream.unpack(archive, dest)
        assert not dest.exists()
        assert arzstream.verify(archive, deep=True).refused_links == [name.decode()]


def test_links_do_not_lead_outside_through_those_of_another_archive(tmp_path: Path, new_sink: New) -> None:
    """The second says that x is a folder, where the first left a link."""
    first, second, dest = tmp_path / "1.arz", tmp_path / "2.arz", tmp_path / "dest"
    first.write_bytes(forged(new_sink, {b"a/x": b".."}, (b"a",)))
    second.write_bytes(forged(new_sink, {b"a/m": b"x/../secret"}, (b"a", b"a/x")))
    arzstream.unpack(first, dest)
    with pytest.raises(StorageError):
        arzstream.unpack(second, dest)
    with pytest.raises(CorruptError, match="leads outside"):
        arzstream.unpack(second, dest, only="a/m")
    assert os.listdir(dest / "a") == ["x"]
