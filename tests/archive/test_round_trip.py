"""pack, verify, unpack: every byte, mode, time, link and name comes back, whatever is in the folder."""

from __future__ import annotations

import io
import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import arzstream
from arzstream.codec.dtypes import DTYPES
from arzstream.errors import SourceChangedError, StorageError
from arzstream.testing import folders
from arzstream.testing.tensors import Tensor, safetensors_bytes

SHAPES = [(), (0,), (1,), (7,), (0, 5), (5, 0), (3, 5), (127, 131), (2, 3, 5), (1, 1, 1, 1), (40_009,), (211, 331)]
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=30)


def content(seed: int, nbytes: int, kind: int) -> bytes:
    rng = np.random.default_rng(seed)
    if kind == 0:
        return rng.bytes(nbytes)
    if kind == 1:
        return bytes([seed % 256]) * nbytes
    values = (rng.standard_normal(nbytes // 2 + 1).astype("<f4") * 0.02).view("<u4") >> 16
    return values.astype("<u2").tobytes()[:nbytes]


@st.composite
def safetensors(draw: st.DrawFn) -> bytes:
    names = draw(st.lists(NAMES.filter(lambda n: n != "__metadata__"), max_size=6, unique=True))
    tensors = []
    for name in names:
        dtype, shape = draw(st.sampled_from(sorted(DTYPES))), draw(st.sampled_from(SHAPES))
        nbytes = int(np.prod(shape, dtype=int)) * DTYPES[dtype].itemsize
        tensors.append(Tensor(name, dtype, shape, content(draw(st.integers(0, 5)), nbytes, draw(st.integers(0, 2)))))
    metadata = draw(st.none() | st.dictionaries(NAMES, st.text(max_size=10), min_size=1, max_size=3))
    try:
        return safetensors_bytes(tensors, metadata)
    except UnicodeEncodeError:
        return b""


@st.composite
def torch_zips(draw: st.DrawFn) -> bytes:
    base = torch.from_numpy(np.random.default_rng(draw(st.integers(0, 3))).standard_normal(60_000).astype("f4"))
    kinds: dict[str, Any] = {
        "whole": base,
        "matrix": base.reshape(200, 300),
        "transposed": base.reshape(200, 300).t(),
        "view": base[777:7777],
        "stepped": base[::3],
        "expanded": base[:1].expand(50),
        "bf16": base.bfloat16(),
        "ints": torch.arange(30_011),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "bool": base > 0,
        "number": 7,
        "nested": {"list": [base[:5], "text"], "half": base.half()},
        "parameter": torch.nn.Parameter(base[:100].clone()),
    }
    chosen = draw(st.lists(st.sampled_from(sorted(kinds)), max_size=8, unique=True))
    out = io.BytesIO()
    torch.save({key: kinds[key] for key in chosen}, out)
    return out.getvalue()


FILES = st.one_of(
    st.tuples(st.just(".safetensors"), safetensors()),
    st.tuples(st.just(".pt"), torch_zips()),
    st.tuples(
        st.sampled_from([".bin", ".json", ".safetensors", ""]),
        st.builds(
            content, st.integers(0, 9), st.sampled_from([0, 1, 5, 127, 128, 129, 4096, 70_000]), st.integers(0, 2)
        ),
    ),
)
PART = st.binary(min_size=1, max_size=12).filter(lambda p: not {0, 47} & set(p) and p not in (b".", b".."))


@st.composite
def trees(draw: st.DrawFn, deep: int = 2) -> dict[bytes, Any]:
    tree: dict[bytes, Any] = {}
    for name in draw(st.lists(PART, max_size=4, unique=True)):
        if deep and draw(st.booleans()):
            tree[name] = draw(trees(deep=deep - 1))
        else:
            suffix, data = draw(FILES)
            tree[name + suffix.encode()] = (data, draw(st.integers(0, 0o777)) | 0o400, draw(st.integers(0, 2**40)))
    return tree


def plant(root: bytes, tree: dict[bytes, Any]) -> None:
    os.makedirs(root)
    for name, item in tree.items():
        path = os.path.join(root, name)
        if isinstance(item, dict):
            plant(path, item)
            continue
        data, mode, mtime = item
        with open(path, "wb") as file:
            file.write(data)
        os.chmod(path, mode)
        os.utime(path, ns=(0, mtime))


def snapshot(root: Path) -> dict[bytes, Any]:
    """Everything below ``root`` that must come back."""
    found: dict[bytes, Any] = {}
    top = os.fsencode(root)
    for folder, names, files in os.walk(top):
        for name in names + files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            entry: Any
            if stat.S_ISLNK(status.st_mode):
                entry = os.readlink(path)
            elif stat.S_ISDIR(status.st_mode):
                entry = "folder"
            else:
                entry = Path(os.fsdecode(path)).read_bytes()
            mode = 0 if isinstance(entry, bytes) and stat.S_ISLNK(status.st_mode) else stat.S_IMODE(status.st_mode)
            found[os.path.relpath(path, top)] = (entry, mode, status.st_mtime_ns)
    return found


@hypothesis.settings(max_examples=40)
@given(tree=trees(), parallel=st.sampled_from([1, 1, 4]), jobs=st.sampled_from([1, 3]))
def test_any_folder_comes_back(
    tree: dict[bytes, Any], parallel: int, jobs: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.mktemp("trip")
    plant(os.fsencode(base / "source"), tree)
    archive = base / "x.arz"
    summary = arzstream.pack(base / "source", archive, tensor_parallel=parallel, jobs=jobs)
    arzstream.verify(archive, deep=True, against=base / "source")
    arzstream.unpack(archive, base / "back")
    assert snapshot(base / "back") == snapshot(base / "source")
    assert summary.bytes_out == archive.stat().st_size
    assert sorted(os.listdir(base)) == ["back", "source", "x.arz"], "nothing else is left"


def test_an_awkward_folder_comes_back(tmp_path: Path) -> None:
    source = folders.awkward(tmp_path / "source")
    wanted = snapshot(source)
    arzstream.pack(source, tmp_path / "x.arz")
    arzstream.verify(tmp_path / "x.arz", deep=True, against=source)
    arzstream.unpack(tmp_path / "x.arz", tmp_path / "back")
    found = snapshot(tmp_path / "back")
    outside = (source / "link-outside").resolve().read_bytes()
    assert found.pop(b"link-outside")[0] == outside, "a link that points outside is followed"
    wanted.pop(b"link-outside")
    assert found == wanted


def test_several_sources_keep_their_names(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    (tmp_path / "single.txt").write_text("one")
    arzstream.pack([tmp_path / "a", tmp_path / "b", tmp_path / "single.txt"], tmp_path / "x.arz")
    assert arzstream.unpack(tmp_path / "x.arz", tmp_path / "out", only="*.json") == ["a/config.json", "b/config.json"]
    assert arzstream.unpack(tmp_path / "x.arz", tmp_path / "all")[-1] == "single.txt"
    with pytest.raises(StorageError, match="another source has a file called"):
        arzstream.pack([tmp_path / "a", tmp_path / "a"], tmp_path / "y.arz")
    assert not (tmp_path / "y.arz").exists()


def test_reproducible_archives_are_identical(tmp_path: Path) -> None:
    source = folders.step(tmp_path / "source", layers=2, width=64)
    for number, jobs in enumerate((1, 8)):
        arzstream.pack(source, tmp_path / f"{number}.arz", reproducible=True, jobs=jobs)
    assert (tmp_path / "0.arz").read_bytes() == (tmp_path / "1.arz").read_bytes()
    arzstream.pack(source, tmp_path / "2.arz")
    assert (tmp_path / "0.arz").read_bytes() != (tmp_path / "2.arz").read_bytes()


def test_both_backends_write_the_same_archive(tmp_path: Path) -> None:
    import subprocess
    import sys

    source = folders.awkward(tmp_path / "source")
    script = "import sys, arzstream; arzstream.pack(sys.argv[1], sys.argv[2], reproducible=True)"
    for backend in ("native", "numpy"):
        subprocess.run(
            [sys.executable, "-c", script, str(source), str(tmp_path / f"{backend}.arz")],
            check=True,
            env={**os.environ, "ARZ_KERNELS": backend},
        )
    assert (tmp_path / "native.arz").read_bytes() == (tmp_path / "numpy.arz").read_bytes()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_nothing_is_left_open_or_lying_about(tmp_path: Path) -> None:
    source = folders.step(tmp_path / "source", layers=1, width=64)
    arzstream.pack(source, tmp_path / "warm.arz")
    files, threads = descriptors(), threading.active_count()
    for number in range(3):
        arzstream.pack(source, tmp_path / f"{number}.arz")
        arzstream.verify(tmp_path / f"{number}.arz", deep=True, against=source)
        arzstream.unpack(tmp_path / f"{number}.arz", tmp_path / f"out{number}")
        with arzstream.open(tmp_path / f"{number}.arz") as archive:
            for _ in archive.stream():
                break
            archive.read_file(archive.files()[0])
        arzstream.recover(tmp_path / f"{number}.arz", tmp_path / f"{number}r.arz")
    assert (descriptors(), threading.active_count()) == (files, threads)
    # Errors leave nothing either.
    (tmp_path / "bad.arz").write_bytes(b"not an archive")
    for attempt in (
        lambda: arzstream.open(tmp_path / "bad.arz"),
        lambda: arzstream.verify(tmp_path / "bad.arz"),
        lambda: arzstream.unpack(tmp_path / "bad.arz", tmp_path / "never"),
        lambda: arzstream.recover(tmp_path / "bad.arz", tmp_path / "never.arz"),
        lambda: arzstream.pack(tmp_path / "missing", tmp_path / "never.arz"),
        lambda: arzstream.pack(source, tmp_path / "0.arz"),
        lambda: arzstream.pack(source, tmp_path),
    ):
        with pytest.raises(arzstream.ArzError) as caught:
            attempt()
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    assert (descriptors(), threading.active_count()) == (files, threads)
    assert not [name for name in os.listdir(tmp_path) if name.startswith((".", "never"))]


def test_a_source_that_changes_while_it_is_packed_gives_no_archive(tmp_path: Path) -> None:
    source = folders.step(tmp_path / "source", layers=2, width=64)
    victim = next(iter(sorted(source.glob("*.safetensors"))))

    def touch(done: int, total: int, what: str) -> None:
        if what == "packing" and done:
            with open(victim, "r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"?")

    with pytest.raises(SourceChangedError, match=victim.name):
        arzstream.pack(source, tmp_path / "x.arz", progress=touch)
    assert sorted(os.listdir(tmp_path)) == ["source"]


def test_a_source_that_is_removed_while_it_is_packed_gives_no_archive(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.bin").write_bytes(bytes(100_000))

    def remove(done: int, total: int, what: str) -> None:
        if what == "verifying":
            (tmp_path / "source" / "a.bin").unlink(missing_ok=True)

    with pytest.raises(SourceChangedError, match=r"a\.bin: was removed"):
        arzstream.pack(tmp_path / "source", tmp_path / "x.arz", progress=remove)
    assert os.listdir(tmp_path) == ["source"]


def test_an_interrupted_pack_leaves_nothing(tmp_path: Path) -> None:
    source = folders.step(tmp_path / "source", layers=2, width=64)

    def interrupt(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        arzstream.pack(source, tmp_path / "x.arz", progress=interrupt)
    assert sorted(os.listdir(tmp_path)) == ["source"]


def test_progress_goes_up_to_the_total(tmp_path: Path) -> None:
    source = folders.step(tmp_path / "source", layers=2, width=64)
    seen: dict[str, list[tuple[int, int]]] = {}
    note = lambda done, total, what: seen.setdefault(what, []).append((done, total))  # noqa: E731
    arzstream.pack(source, tmp_path / "x.arz", progress=note)
    arzstream.unpack(tmp_path / "x.arz", tmp_path / "out", progress=note)
    arzstream.verify(tmp_path / "x.arz", deep=True, progress=note)
    assert {"packing", "verifying", "unpacking", "decoding"} <= set(seen)
    for what, steps in seen.items():
        assert all(done <= total for done, total in steps), what
        assert len({total for _, total in steps}) <= 2
    for what in ("unpacking", "decoding"):
        assert seen[what][-1][0] == seen[what][-1][1]


def test_unpacking_never_overwrites_and_keeps_inside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "source" / "sub").mkdir(parents=True)
    (tmp_path / "source" / "sub" / "a.txt").write_text("new")
    arzstream.pack(tmp_path / "source", tmp_path / "x.arz")
    (tmp_path / "there" / "sub").mkdir(parents=True)
    (tmp_path / "there" / "sub" / "a.txt").write_text("old")
    with pytest.raises(StorageError, match=r"a\.txt"):
        arzstream.unpack(tmp_path / "x.arz", tmp_path / "there")
    assert (tmp_path / "there" / "sub" / "a.txt").read_text() == "old"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "trap").mkdir()
    (tmp_path / "trap" / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError):
        arzstream.unpack(tmp_path / "x.arz", tmp_path / "trap")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_archive_is_no_more_readable_than_its_sources(tmp_path: Path) -> None:
    for number, mode in enumerate((0o600, 0o640, 0o644, 0o400, 0o755)):
        (tmp_path / "x").write_text("secret")
        (tmp_path / "x").chmod(mode)
        arzstream.pack(tmp_path / "x", tmp_path / f"{number}.arz")
        assert stat.S_IMODE((tmp_path / f"{number}.arz").stat().st_mode) & ~0o600 == mode & 0o066
        (tmp_path / "x").unlink()


def test_the_summary_is_one_json_object(tmp_path: Path) -> None:
    source = folders.awkward(tmp_path / "source")
    summary = arzstream.pack(source, tmp_path / "x.arz")
    said = json.loads(summary.to_json())
    assert {"bytes_in", "bytes_out", "ratio", "seconds", "codecs", "files", "tensors"} <= set(said)
    assert said["bytes_in"] == sum(
        path.stat().st_size
        for path in source.rglob("*")
        if path.is_file() and not (path.is_symlink() and path.name != "link-outside")
    )
    assert said["ratio"] == said["bytes_out"] / said["bytes_in"]
    assert sum(said["codecs"].values()) == said["tensors"]


@pytest.mark.parametrize("arguments", [{"profile": "best"}, {"tensor_parallel": 0}])
def test_bad_arguments_are_refused(arguments: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        arzstream.pack(tmp_path, tmp_path / "x.arz", **arguments)
