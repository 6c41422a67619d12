"""Opening: paths and URLs, errors that say what to do, limits, closing."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

import arzstream
from arzstream.archive.sets import write_set
from arzstream.errors import ArzError, CorruptError, LimitError, StorageError, UnsupportedError
from arzstream.store.backends.generic import GenericStore
from arzstream.store.objects import Version
from arzstream.store.remote import TAIL_BYTES
from arzstream.testing import folders, forge
from arzstream.testing.tensors import model, safetensors_bytes


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("opening")
    folders.step(base / "source", layers=2, width=64)
    arzstream.pack(base / "source", base / "x.arz")
    return base / "x.arz"


def test_paths_of_every_kind_and_urls_open_alike(archive: Path) -> None:
    with fsspec.open("memory://deep/x.arz", "wb") as file:
        file.write(archive.read_bytes())
    digests = set()
    for place in (archive, str(archive), f"file://{archive}", "memory://deep/x.arz"):
        with arzstream.open(place) as opened:
            assert opened.sealed and opened.keys() and opened.keys()[0] in opened and "nothing" not in opened
            assert opened.numpy(opened.keys()[0]).size
            digests.add(opened.content_digest())
            assert "tensors" in repr(opened)
        arzstream.verify(place, deep=True)
    assert len(digests) == 1


def test_a_source_behind_a_url_is_packed(tmp_path: Path) -> None:
    data = safetensors_bytes(model("llama", layers=1, width=64, vocabulary=64))
    with fsspec.open("memory://models/m.safetensors", "wb") as file:
        file.write(data)
    summary = arzstream.pack("memory://models/m.safetensors", tmp_path / "x.arz")
    assert summary.bytes_in == len(data)
    with arzstream.open(tmp_path / "x.arz") as opened:
        assert opened.read_file("m.safetensors") == data


class Way:
    """Between here and ``memory://``: of the answers that have this byte one has another, and later ones the right."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, number: int) -> None:
        plain, self.answers = GenericStore.get_into, 0

        def get_into(store: GenericStore, key: str, start: int, out: memoryview, version: Version) -> None:
            plain(store, key, start, out, version)
            if start <= at < start + len(out):
                out[at - start] ^= self.answers == number
                self.answers += 1

        monkeypatch.setattr(GenericStore, "get_into", get_into)


@pytest.mark.parametrize("width", [64, 512], ids=["all of it comes with its end", "it is longer"])
def test_bytes_of_a_source_that_are_damaged_on_their_way_are_not_packed_whatever_cache_there_is(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = safetensors_bytes(model("llama", layers=1, width=width, vocabulary=64))
    monkeypatch.setenv("ARZ_CACHE", str(tmp_path / "cache"))
    with fsspec.open("memory://way/m.safetensors", "wb") as file:
        file.write(data)
    at = len(data) // 2
    assert (at < len(data) - TAIL_BYTES) == (width == 512)
    for number in range(4):
        with monkeypatch.context() as patched:
            way = Way(patched, at, number)
            arzstream.pack("memory://way/m.safetensors", tmp_path / f"{number}.arz")
        assert way.answers >= 2
        with arzstream.open(tmp_path / f"{number}.arz") as opened:
            assert opened.read_file("m.safetensors") == data
    arzstream.verify(tmp_path / "0.arz", against="memory://way/m.safetensors")
    assert not (tmp_path / "cache").exists()


def test_what_is_verified_is_what_the_store_has_and_not_what_a_cache_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARZ_CACHE", str(tmp_path / "cache"))
    folders.step(tmp_path / "source", layers=1, width=256)
    arzstream.pack(tmp_path / "source", tmp_path / "x.arz")
    assert (tmp_path / "x.arz").stat().st_size > 2 * TAIL_BYTES
    write_set(tmp_path / "set.arz", [tmp_path / "x.arz"])
    with fsspec.open("memory://rotten/set.arz", "wb") as file:
        file.write((tmp_path / "set.arz").read_bytes())
    with fsspec.open("memory://rotten/x.arz", "wb") as file:
        file.write((tmp_path / "x.arz").read_bytes())
    for place in ("memory://rotten/x.arz", "memory://rotten/set.arz"):
        with arzstream.open(place) as opened:
            dict(opened.stream(framework="np"))
        arzstream.verify(place, deep=True)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    fsspec.filesystem("memory").store["/rotten/x.arz"].getbuffer()[1000] ^= 1  # the time of which stays as it was
    for place in ("memory://rotten/x.arz", "memory://rotten/set.arz"):
        with pytest.raises(CorruptError, match=r"x\.arz"):
            arzstream.verify(place)


@pytest.mark.parametrize(
    ("place", "error", "says"),
    [
        ("missing.arz", StorageError, "No such file"),
        (".", StorageError, "not a regular file"),
        ("memory://missing.arz", StorageError, "no such file|cannot open|not found"),
        ("nosuchscheme://x.arz", ArzError, "nosuchscheme"),
    ],
)
def test_what_cannot_be_opened_is_named(place: str, error: type[ArzError], says: str, tmp_path: Path) -> None:
    where = place if "://" in place else str(tmp_path / place)
    for call in (arzstream.open, arzstream.verify, lambda path: arzstream.unpack(path, tmp_path / "out")):
        with pytest.raises(error, match=says) as caught:
            call(where)
        message = str(caught.value)
        assert "\n" not in message and message.startswith(where.rstrip("/."))
    assert not (tmp_path / "out").exists()


def changed(archive: Path, tmp_path: Path, change: Any) -> Path:
    prologue, frames = forge.parse(archive.read_bytes())
    change(frames)
    (tmp_path / "bad.arz").write_bytes(forge.assemble(prologue, frames))
    return tmp_path / "bad.arz"


def test_an_unknown_codec_costs_its_own_tensors_only(archive: Path, tmp_path: Path) -> None:
    number = -1

    def change(frames: list[forge.Frame]) -> None:
        nonlocal number
        at = max(i for i, f in enumerate(frames) if f.kind == 4)
        number = frames[at].header.ordinal
        frames[at] = forge.recode(frames[at], codec=999)
        for frame in frames:
            if frame.kind == 6:
                frame.value["codec"][frame.value["offset"] == frames[at].offset] = 999

    bad = changed(archive, tmp_path, change)
    arzstream.verify(bad)
    with arzstream.open(bad) as opened, arzstream.open(archive) as good:
        for name in good.keys():  # noqa: SIM118
            place = opened.catalog.find(name)
            if opened.directory.resolve(place.entry.number).number == number:
                with pytest.raises(UnsupportedError, match=r"bad\.arz: tensor .*codec 999.*newer"):
                    opened.numpy(name)
            else:
                assert (opened.numpy(name) == good.numpy(name)).all()
    with pytest.raises(UnsupportedError, match="codec 999"):
        arzstream.verify(bad, deep=True)


def test_a_damaged_chunk_is_found_when_it_is_read_and_named(archive: Path, tmp_path: Path) -> None:
    data = bytearray(archive.read_bytes())
    chunk = max((f for f in forge.frames(bytes(data)) if f.kind == 4), key=lambda f: f.header.stored)
    for place in (60, 100, 130, 128 + chunk.header.stored - 1):
        bad = bytearray(data)
        bad[chunk.offset + place] ^= 1
        (tmp_path / "bad.arz").write_bytes(bad)
        with arzstream.open(tmp_path / "bad.arz") as opened:
            entry = opened.directory.by_number[chunk.header.ordinal]
            name = entry.unit.members[0].name
            assert name is not None
            for read in (
                opened.numpy,
                opened.get_tensor,
                lambda n: opened.get_slice(n)[0:1],
                lambda n: dict(opened.stream()),
            ):
                with pytest.raises(CorruptError, match=r"bad\.arz: tensor '" + name):
                    read(name)
        before = sorted(os.listdir(tmp_path))
        with pytest.raises(CorruptError):
            arzstream.unpack(tmp_path / "bad.arz", tmp_path / "out")
        left = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
        with arzstream.open(archive) as good:
            for path in left:  # what was finished before the damage was met is whole
                assert path.read_bytes() == good.read_file(str(path.relative_to(tmp_path / "out")))
        assert before == ["bad.arz"]
        import shutil

        shutil.rmtree(tmp_path / "out")


def test_limits_are_honoured(archive: Path) -> None:
    for limits in (arzstream.Limits(units=1), arzstream.Limits(files=1), arzstream.Limits(total_bytes=1000)):
        with pytest.raises(LimitError, match=r"x\.arz: "):
            arzstream.open(archive, limits=limits)


def test_verify_against_another_source_says_what_differs(tmp_path: Path) -> None:
    source = tmp_path / "s"
    (source / "d").mkdir(parents=True)
    (source / "a.bin").write_bytes(np.random.default_rng(0).bytes(100_000))
    (source / "l").symlink_to("a.bin")
    arzstream.pack(source, tmp_path / "x.arz")
    arzstream.verify(tmp_path / "x.arz", against=source)

    def differs(match: str) -> None:
        with pytest.raises(CorruptError, match=match):
            arzstream.verify(tmp_path / "x.arz", against=source)

    with open(source / "a.bin", "r+b") as file:
        file.seek(99_999)
        last = file.read(1)
        file.seek(99_999)
        file.write(bytes([last[0] ^ 1]))
    differs("a.bin differs")
    with open(source / "a.bin", "ab") as file:
        file.write(b"x")
    differs("100001 bytes")
    with open(source / "a.bin", "r+b") as file:
        file.truncate(99_999)
        file.seek(99_999)
        file.write(last)
    arzstream.verify(tmp_path / "x.arz", against=source)
    (source / "new").touch()
    differs("new is only in")
    (source / "new").unlink()
    (source / "l").unlink()
    (source / "l").symlink_to("d")
    differs("l is not the same kind")
    (source / "l").unlink()
    differs("l is only in")


def test_threads_and_descriptors_go_with_the_archive(archive: Path) -> None:
    before = (len(os.listdir("/proc/self/fd")), threading.active_count())
    for _ in range(10):
        opened = arzstream.open(archive, jobs=4)
        list(opened.stream(framework="np"))
        opened.close()
        opened.close()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before
    with pytest.raises(ArzError):
        opened.numpy(opened.keys()[-1])
