"""Every vector of spec/vectors, against the reference decoder and against the package."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import blake3
import pytest
from oracle import ABOUT, ROOT, VECTORS, described_file, good, reference, reported

from arzstream.archive import reader
from arzstream.archive.files import piece_starts, read_range
from arzstream.archive.tensors import load
from arzstream.archive.verify import verify
from arzstream.container.records import Kind
from arzstream.errors import CorruptError, UnsupportedError
from arzstream.kernels import api
from arzstream.limits import DEFAULT_LIMITS, Limits

SEALED = [name for name in good() if ABOUT[name]["state"] == "sealed"]
GROWING = [name for name in good() if ABOUT[name]["state"] == "growing"]
OPENING = [name for name in reported("unsupported") if ABOUT[name]["opens"]]
CLOSED = [name for name in reported("unsupported") if not ABOUT[name]["opens"]]


# ---------------------------------------------------------------------------------------------- the vectors themselves


def test_there_are_vectors_of_every_kind() -> None:
    assert len(ABOUT) >= 60
    assert set(ABOUT) == {path.name for path in VECTORS.glob("*.arz")}
    assert {name.split("-")[0] for name in ABOUT} == {"good", "bad", "unsupported"}
    assert all(name.startswith("good-") or "report" in about for name, about in ABOUT.items())


def test_the_generator_makes_the_same_bytes_again() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "gen_vectors.py"), "--check"],
        check=False, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_reference_decoder_takes_nothing_from_the_package() -> None:
    source = (ROOT / "spec" / "reference_decoder.py").read_text()
    assert "import arzstream" not in source and "from arzstream" not in source


# ----------------------------------------------------------------------------------------------- the reference decoder


def decoded_by_reference(name: str) -> Any:
    """With the parents that vectors.json names, oldest first."""
    parents: list[Any] = []
    for parent in ABOUT[name].get("parents", ()):
        parents.append(reference.decode((VECTORS / parent).read_bytes(), parents=parents))
    return reference.decode((VECTORS / name).read_bytes(), parents=parents)


@pytest.mark.parametrize("name", good())
def test_reference_reads(name: str) -> None:
    about, decoded = ABOUT[name], decoded_by_reference(name)
    assert decoded.growing == (about["state"] == "growing")
    tensors = [[t.name, t.dtype, list(t.shape), t.blake3.hex()] for t in decoded.members]
    assert sorted(tensors) == sorted(about["tensors"])
    assert all(blake3.blake3(t.data).digest() == t.blake3 for t in decoded.members)
    files = [
        described_file(path, f.kind, f.mode, f.mtime, f.content, f.sha256) for path, f in decoded.files.items()
    ]  # fmt: skip
    assert files == about["files"]
    assert not decoded.unsupported
    if "content" in about:
        assert decoded.content_digest.hex() == about["content"]
    if "valid_length" in about:
        assert decoded.valid_length == about["valid_length"]


@pytest.mark.parametrize("name", reported("corrupt"))
def test_reference_finds_damage(name: str) -> None:
    with pytest.raises(reference.Corrupt):
        decoded_by_reference(name)


@pytest.mark.parametrize("name", reported("not sealed"))
def test_reference_says_that_it_is_not_sealed(name: str) -> None:
    assert decoded_by_reference(name).growing


@pytest.mark.parametrize("name", reported("not an archive"))
def test_reference_says_that_it_is_no_archive(name: str) -> None:
    with pytest.raises(reference.NotAnArchive):
        decoded_by_reference(name)


@pytest.mark.parametrize("name", CLOSED)
def test_reference_needs_a_newer_version(name: str) -> None:
    with pytest.raises(reference.Unsupported):
        decoded_by_reference(name)


@pytest.mark.parametrize("name", OPENING)
def test_reference_lists_what_it_cannot_decode(name: str) -> None:
    about, decoded = ABOUT[name], decoded_by_reference(name)
    assert sorted([t.name, t.dtype, list(t.shape), t.blake3.hex()] for t in decoded.members) == sorted(about["tensors"])
    unreadable = [t.name for t in decoded.members if t.data is None]
    unreadable += [os.fsdecode(path) for path, file in decoded.files.items() if file.content is None]
    assert sorted(unreadable) == about["unreadable"] and decoded.unsupported


def test_reference_command_line_extracts_and_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive, dest = VECTORS / "good-written-model.arz", tmp_path / "out"
    assert reference.main([str(archive), "--list", "--extract", str(dest)]) == 0
    assert "lm_head.weight" in capsys.readouterr().out
    for file in ABOUT[archive.name]["files"]:
        path = os.path.join(os.fsencode(dest), unquote_to_bytes(file["path"]))
        status = os.lstat(path)
        if file["kind"] == "link":
            assert os.readlink(path) == unquote_to_bytes(file["target"])
            continue
        assert (status.st_mode & 0o7777, status.st_mtime_ns) == (file["mode"], file["mtime"])
        if file["kind"] == "file":
            assert hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest() == file["sha256"]
    assert reference.main([str(VECTORS / "bad-blake3.arz")]) == 1
    assert reference.main([str(VECTORS / "unsupported-major.arz")]) == 3


# --------------------------------------------------------------------------------------------------------- the package


def limits_of(about: dict[str, Any]) -> Limits:
    return Limits(expansion=about["expansion"]) if "expansion" in about else DEFAULT_LIMITS


def read_everything(path: Path, limits: Limits = DEFAULT_LIMITS) -> tuple[list[Any], list[dict[str, Any]]]:
    """All tensors and files by the lazy reader, in the words of vectors.json; digests are of the bytes read."""
    tensors, files = [], []
    with reader.open(path, limits=limits) as archive:
        for place in archive.catalog.stored:
            digest = blake3.blake3(load(archive.decoder, place).numpy().tobytes()).hexdigest()
            if place.digest is not None and digest != place.digest.hex():
                raise CorruptError(f"{place.name}: the BLAKE3 is wrong")
            tensors.append([place.member.name, place.dtype, list(place.shape), digest])
        for _, record in archive.directory.files:
            content = record.target
            if record.kind == Kind.REGULAR:
                content = read_range(archive.decoder, record, piece_starts(record), 0, record.size)
                assert hashlib.sha256(content).digest() == record.sha256
            files.append(described_file(record.path, record.kind, record.mode, record.mtime, content, record.sha256))
    return sorted(tensors), files


@pytest.mark.parametrize("name", SEALED)
def test_package_verifies_and_reads(name: str) -> None:
    about = ABOUT[name]
    report = verify(VECTORS / name, deep=True)
    assert "content" not in about or report.content == about["content"]
    tensors, files = read_everything(VECTORS / name)
    whole = [about, *(ABOUT[volume] for volume in about.get("volumes", ()))]  # a set is read with its volumes
    assert tensors == sorted(tensor for part in whole for tensor in part["tensors"])
    assert sorted(map(str, files)) == sorted(str(file) for part in whole for file in part["files"])


WHOLES = [name for name in SEALED if "wholes" in ABOUT[name]]


@pytest.mark.parametrize("name", WHOLES)
def test_both_make_one_tensor_of_its_parts(name: str) -> None:
    wanted = ABOUT[name]["wholes"]
    decoded = decoded_by_reference(name)
    found = [[w.name, w.dtype, list(w.shape), blake3.blake3(w.data).hexdigest()] for w in decoded.wholes]
    assert sorted(found) == wanted
    with reader.open(VECTORS / name) as archive:
        places = [place for place in archive.catalog.tensors.values() if place.parts]
        assert [[p.name, p.dtype, list(p.shape)] for p in places] == [whole[:3] for whole in wanted]
        for place, whole in zip(places, wanted, strict=True):
            assert blake3.blake3(archive.numpy(place.name).tobytes()).hexdigest() == whole[3]


@pytest.mark.parametrize("name", GROWING)
def test_package_reads_what_is_committed(name: str) -> None:
    about = ABOUT[name]
    with reader.open(VECTORS / name) as archive:
        assert not archive.sealed
    tensors, files = read_everything(VECTORS / name)
    assert tensors == sorted(about["tensors"])
    assert files == about["files"]
    with pytest.raises(CorruptError):
        verify(VECTORS / name)


@pytest.mark.parametrize("name", [*reported("corrupt"), *reported("not an archive"), *reported("not sealed")])
def test_package_verify_finds_damage(name: str) -> None:
    with pytest.raises(CorruptError) as raised:
        verify(VECTORS / name, deep=True, limits=limits_of(ABOUT[name]))
    assert "\n" not in str(raised.value) and name in str(raised.value)


@pytest.mark.parametrize("name", [n for n in reported("corrupt") if ABOUT[n]["about"].startswith("Growing")])
def test_package_finds_damage_in_what_is_committed(name: str) -> None:
    with pytest.raises(CorruptError):
        read_everything(VECTORS / name, limits_of(ABOUT[name]))


@pytest.mark.parametrize("name", reported("not sealed"))
def test_package_opens_what_is_not_sealed(name: str) -> None:
    if not decoded_by_reference(name).members:
        with pytest.raises(CorruptError):  # it holds nothing, so that there is nothing to open
            reader.open(VECTORS / name)
        return
    with reader.open(VECTORS / name) as archive:
        assert not archive.sealed


@pytest.mark.parametrize("name", CLOSED)
def test_package_needs_a_newer_version(name: str) -> None:
    with pytest.raises(UnsupportedError):
        verify(VECTORS / name)
    if "seen" not in ABOUT[name]:
        with pytest.raises(UnsupportedError):
            read_everything(VECTORS / name)


@pytest.mark.parametrize("name", OPENING)
def test_package_lists_what_it_cannot_decode(name: str) -> None:
    about = ABOUT[name]
    with reader.open(VECTORS / name) as archive:
        assert sorted(archive.keys()) == sorted(tensor[0] for tensor in about["tensors"])
        assert archive.files() == [file["path"] for file in about["files"]]
        for tensor in list(archive.keys()):
            if tensor in about["unreadable"]:
                with pytest.raises(UnsupportedError):
                    archive.numpy(tensor)
            else:
                archive.numpy(tensor)
        for path in archive.files():
            if path in about["unreadable"]:
                with pytest.raises(UnsupportedError):
                    archive.read_file(path)
            else:
                archive.read_file(path)
    with pytest.raises(UnsupportedError):
        verify(VECTORS / name, deep=True)


@pytest.mark.parametrize("path", [*api.cpu_features(), "numpy"])
@pytest.mark.parametrize("name", [n for n in ABOUT if n.startswith(("good-float-", "good-ctx-"))])
def test_every_path_of_the_kernels_reads(name: str, path: str) -> None:
    api.set_backend(path)
    tensors, _ = read_everything(VECTORS / name)
    assert tensors == sorted(ABOUT[name]["tensors"])


@pytest.mark.parametrize("path", [*api.cpu_features(), "numpy"])
@pytest.mark.parametrize("name", [n for n in ABOUT if n.startswith(("bad-float-", "bad-ctx-"))])
def test_every_path_of_the_kernels_finds_damage(name: str, path: str) -> None:
    """In the payload already: the checksum of what it decodes to is not asked."""
    api.set_backend(path)
    with reader.open(VECTORS / name) as archive, pytest.raises(CorruptError) as raised:
        archive.numpy("w")
    assert "XXH3" not in str(raised.value) and "checksum" not in str(raised.value)


# ----------------------------------------------------------------------------------------------------------- any damage

DAMAGED = ["good-shared-unit.arz", "good-recoded.arz"]


@pytest.mark.parametrize("name", DAMAGED)
def test_reference_finds_a_flipped_bit_in_every_byte(name: str) -> None:
    data = (VECTORS / name).read_bytes()
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place * 5 % 8
        try:
            assert reference.decode(bytes(damaged)).growing, f"byte {place}"
            assert place >= len(data) - 8, f"byte {place} is not in the end magic"
        except reference.ArchiveError:
            pass


@pytest.mark.parametrize("name", DAMAGED)
def test_reference_finds_every_truncation(name: str) -> None:
    data = (VECTORS / name).read_bytes()
    whole = {(t.name, t.data) for t in reference.decode(data).members}
    for length in range(len(data)):
        try:
            decoded = reference.decode(data[:length])
        except reference.NotAnArchive:
            assert length < 64
            continue
        assert decoded.growing
        if name != "good-recoded.arz":  # of which an older state is committed too
            assert {(t.name, t.data) for t in decoded.members} <= whole
