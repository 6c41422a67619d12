"""No verb shows, or writes into an archive, what a URL may keep secret: a user's name, a password, a signature."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

import arzstream
from arzstream.archive.lineage import relative_hint
from arzstream.cli.group import VERBS
from arzstream.container.layout import FrameType
from arzstream.store.address import shown
from arzstream.testing import forge, tensors

from .conftest import Arz

USER, PASSWORD, SIGNATURE = "jsmith", "sekret", "51GNATURE"
SECRETS = (USER, PASSWORD, SIGNATURE)


def url(name: str) -> str:
    return f"memory://{USER}:{PASSWORD}@bucket/{name}?X-Amz-Signature={SIGNATURE}"


def put(place: str, data: bytes) -> None:
    """At every address that fsspec may make of the URL."""
    files = fsspec.filesystem("memory")
    for key in (place, shown(place), place.partition("?")[0]):
        files.pipe(key, data)


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Archives and a source behind URLs with secrets, one archive of them damaged; and a local one, whose folder this
    is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    rng = np.random.default_rng(0)
    held = [
        tensors.Tensor(f"layers.{k}.w", "BF16", (64, 64), tensors.gaussian((64, 64), "BF16", rng)) for k in range(3)
    ]
    weights = tensors.safetensors_bytes(held)
    (tmp_path / "model.safetensors").write_bytes(weights)
    changed = np.frombuffer(weights, np.uint8).copy()
    changed[-7] ^= 1
    (tmp_path / "other.safetensors").write_bytes(changed.tobytes())
    arzstream.pack(tmp_path / "model.safetensors", tmp_path / "x.arz")
    data = (tmp_path / "x.arz").read_bytes()
    put(url("x.arz"), data)
    put(url("model.safetensors"), weights)
    put(url("other.safetensors"), changed.tobytes())
    chunk = next(frame for frame in forge.frames(data) if frame.header.type == FrameType.CHUNK)
    broken = bytearray(data)
    broken[chunk.offset + 130] ^= 1
    put(url("bad.arz"), bytes(broken))
    put(url("notes.arz"), b"only some notes")
    yield tmp_path
    fsspec.filesystem("memory").store.clear()


X, BAD, NOTES, GONE = url("x.arz"), url("bad.arz"), url("notes.arz"), url("gone.arz")
RUNS: dict[str, list[list[str]]] = {
    "pack": [
        [url("model.safetensors"), "-o", "y.arz"],
        [url("model.safetensors"), "-o", "yy.arz", "--json"],
        ["model.safetensors", "-o", url("new.arz")],
        ["model.safetensors", "-o", url("new.arz")],
        ["model.safetensors", "-o", url("new.arz"), "--force", "--json"],
        ["model.safetensors", "-o", url("folder/")],
        ["other.safetensors", "-o", "child.arz", "--parent", X, "--max-chain", "0"],
        ["other.safetensors", "-o", "child-2.arz", "--parent", X],
        ["other.safetensors", "-o", "child-3.arz", "--parent", GONE],
        ["other.safetensors", "-o", "child-4.arz", "--parent", BAD],
        ["other.safetensors", "-o", X, "--force", "--parent", X],
        [url("gone"), "-o", "z.arz"],
    ],
    "unpack": [
        [X, "-o", "o1"], [X, "-o", "o2", "--json"], [X, "-o", "o3", "--only", "nope"],
        [BAD, "-o", "o4"], [GONE, "-o", "o5"],
    ],
    "ls": [[X], [X, "--json"], [X, "--chunks"], [NOTES], [GONE], [X, X]],
    "cat": [[X, "nope"], [NOTES, "a"], [GONE, "a"]],
    "verify": [
        [X], [X, "--json"], [X, "--deep"], [BAD], [BAD, "--json"], [NOTES], [GONE],
        [X, "--against", url("model.safetensors")],
        [X, "--against", url("model.safetensors"), "--json"],
        [X, "--against", url("other.safetensors")],
        ["x.arz", "--against", url("gone")],
    ],
    "diff": [[X, "x.arz"], ["x.arz", X, "--json"], [X, GONE], [NOTES, X]],
    "rebase": [
        [X, "--alone"], [X, "--alone", "-o", "r1.arz"], [X, "--alone", "-o", "r2.arz", "--json"],
        ["x.arz", "--alone", "-o", url("r3.arz")], ["x.arz", "--parent", X, "-o", "r4.arz"],
        ["x.arz", "--parent", GONE, "-o", "r5.arz"], [X, "--parent", X, "-o", "r6.arz"],
    ],
    "recover": [
        [X, "-o", "s1.arz"], [BAD, "-o", "s2.arz"], [BAD, "-o", "s3.arz", "--json"], [NOTES, "-o", "s4.arz"],
        ["x.arz", "-o", url("s5.arz")], [GONE, "-o", "s6.arz"],
    ],
    "bench": [
        [X, "--peers", "none", "--profile", "fast", "--rounds", "1", "--store", X],
        [X, "--peers", "none", "--profile", "fast", "--rounds", "1", "--store", X, "--json"],
        [url("model.safetensors"), "--peers", "none", "--profile", "fast", "--rounds", "1"],
        ["model.safetensors", "--peers", "none", "--profile", "fast", "--rounds", "1", "--store", GONE],
    ],
    "watch": [
        ["model.safetensors", url("d"), "--once", "--keep-last", "1"],
        ["model.safetensors", url("d"), "--once", "--parent", X],
        [url("none"), "d1", "--once"],
        ["missing", url("d2"), "--once", "--json"],
        ["missing", "d3", "--once", "--parent", GONE],
    ],
    "prune": [[url("d"), "--keep-last", "1"]],
    "status": [[url("d")], [url("d"), "--json"]],
    "doctor": [[]],
}  # fmt: skip


def test_every_verb_is_tried() -> None:
    assert set(RUNS) == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_shows_what_a_url_keeps_secret(verb: str, stored: Path, arz: Arz) -> None:
    for arguments in RUNS[verb]:
        done = arz(verb, *arguments)
        for secret in SECRETS:
            assert secret not in done.out and secret not in done.err, (verb, arguments, done)
    for path in stored.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not any(secret.encode() in data for secret in SECRETS), path


def test_the_hint_at_a_parent_is_its_name_alone() -> None:
    assert relative_hint(url("x.arz"), "child.arz") == relative_hint("s3://bucket/x.arz", url("child.arz")) == "x.arz"
    assert relative_hint("sub/odd?name.arz", "child.arz") == "sub/odd?name.arz"


@pytest.mark.parametrize("verb", ["ls", "unpack", "cat", "verify", "recover"])
def test_what_nobody_foresaw_is_reported_without_secrets(
    verb: str, stored: Path, arz: Arz, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError(f"cannot reach {X}")

    for place in ("archive.reader.open", "archive.verify.verify", "archive.recover.recover"):
        monkeypatch.setattr(f"arzstream.{place}", fail)
    rest = {"unpack": ["-o", "o"], "recover": ["-o", "o.arz"], "cat": ["a"]}.get(verb, [])
    done = arz(verb, X, *rest)
    assert done.code == 1 and "internal error" in done.line and "memory://bucket/x.arz" in done.line
    assert not any(secret in done.err for secret in SECRETS)
