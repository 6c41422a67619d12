"""The verbs on archives that were coded against others."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arzstream.container.layout import FrameType
from arzstream.testing import forge, process, tensors

Arz = Callable[..., Any]


@pytest.fixture
def run(arz: Arz, tmp_path: Path) -> Path:
    """``0.arz`` and ``1.arz`` in ``archive``, of a model of which one matrix changes, packed against each other."""
    weights = tensors.model("gpt2", layers=2, width=128, vocabulary=300)
    for number in range(2):
        folder = tmp_path / f"step-{number}"
        folder.mkdir()
        data = np.frombuffer(weights[0].data, np.uint8).copy()
        data[:4] ^= number
        changed = [tensors.Tensor(weights[0].name, weights[0].dtype, weights[0].shape, data.tobytes()), *weights[1:]]
        (folder / "model.safetensors").write_bytes(tensors.safetensors_bytes(changed))
        (folder / "config.json").write_text("{}")
        options = ["--parent", tmp_path / "archive" / "0.arz"] if number else []
        done = arz("pack", folder, "-o", tmp_path / "archive" / f"{number}.arz", *options)
        assert done.code == 0, done.err
    assert done.out.endswith("\n  coded against 0.arz, which it needs from now on\n")
    return tmp_path / "archive"


def test_ls_shows_the_parent_and_what_is_unchanged(arz: Arz, run: Path) -> None:
    found = arz("ls", run / "1.arz", "--json").json
    assert [parent["hint"] for parent in found["parents"]] == ["0.arz"]
    assert found["parents"][0]["content"] == arz("ls", run / "0.arz", "--json").json["content"]
    unchanged = [tensor for tensor in found["tensors"] if tensor["codec"] == "unchanged"]
    assert len(unchanged) > 2 and all(t["stored"] == 0 and t["parents"] == [0] for t in unchanged)
    out = arz("ls", run / "1.arz").out
    assert f"\ncoded against 0.arz, content {found['parents'][0]['content']}\n" in out and " unchanged " in out
    assert arz("ls", run / "1.arz", "--chunks").code == 0
    assert arz("ls", run / "0.arz", "--json").json["parents"] == []


def test_every_verb_that_decodes_finds_parents_or_says_which_to_bring(arz: Arz, run: Path, tmp_path: Path) -> None:
    (tmp_path / "away").mkdir()
    (run / "0.arz").rename(tmp_path / "away" / "renamed.arz")
    child, there = run / "1.arz", ["--parents", tmp_path / "nowhere", "--parents", tmp_path / "away"]
    decoding = [
        ("unpack", child, "-o", tmp_path / "out"),
        ("verify", "--deep", child),
        ("verify", child, "--against", tmp_path / "step-1"),
        ("diff", tmp_path / "away" / "renamed.arz", child),
        ("pack", tmp_path / "step-1", "-o", tmp_path / "2.arz", "--parent", child),
        ("rebase", child, "--alone", "-o", tmp_path / "3.arz"),
    ]
    for verb, *arguments in decoding[:-2]:
        done = arz(verb, *arguments)
        if verb != "diff":
            assert done.code == 3, (verb, done.err)
            assert f"{child}: tensor " in done.line and "it was coded against '0.arz' (content " in done.line
            assert "--parents" in done.line and "doctor" not in done.line
        if verb == "unpack":
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert arz(verb, *arguments, *there).code == 0, verb
    for verb, *arguments in decoding[-2:]:
        assert arz(verb, *arguments).code == 3
        assert arz(verb, *arguments, *there).code == 0, verb
    assert arz("verify", child).code == arz("ls", child).code == 0  # without it
    assert arz("unpack", child, "-o", tmp_path / "some", "--only", "*.json").code == 0
    for path in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / path).read_bytes() == (tmp_path / "step-1" / path).read_bytes()
    assert arz("verify", "--deep", tmp_path / "3.arz").code == 0
    assert process.arzstream("cat", child, "model.safetensors").returncode == 3
    assert process.arzstream("cat", child, "model.safetensors", *there).returncode == 0


def test_recover_names_what_it_could_not_check(arz: Arz, run: Path, tmp_path: Path) -> None:
    data = (run / "1.arz").read_bytes()
    (run / "1.arz").write_bytes(data[:-1])
    (run / "0.arz").rename(tmp_path / "parent.arz")
    done = arz("recover", run / "1.arz", "-o", run / "new.arz")
    assert "saved tensors that cannot be checked without the archive they were coded against:" in done.out
    done = arz("recover", run / "1.arz", "-o", run / "new.arz", "--force", "--parents", tmp_path, "--json")
    assert '"unchecked": []' in done.out


def test_recover_says_which_parent_is_damaged(arz: Arz, run: Path) -> None:
    frames = [frame for frame in forge.frames((run / "0.arz").read_bytes()) if frame.kind == FrameType.CHUNK]
    data = bytearray((run / "0.arz").read_bytes())
    for frame in frames:
        data[frame.offset + 130] ^= 1
    (run / "0.arz").write_bytes(data)
    done = arz("recover", run / "1.arz", "-o", run / "new.arz")
    assert done.code == 0, done.err
    assert "nothing lost; 0 damaged places" in done.out
    assert f"\nwhy they cannot be:\n  {run / '0.arz'}: tensor " in done.out


def test_rebase_says_what_became_of_the_archive(arz: Arz, run: Path, tmp_path: Path) -> None:
    done = arz("rebase", run / "1.arz", "--alone")
    assert done.out.startswith(f"{run / '1.arz'}: stands alone; ") and " → " in done.out
    done = arz("rebase", run / "1.arz", "--parent", run / "0.arz", "--json")
    assert done.json["parents"][0][0] == "0.arz"
    done = arz("pack", tmp_path / "step-0", "-o", tmp_path / "x.arz", "--parent", run / "1.arz", "--max-chain", "1")
    assert done.out.endswith(
        f"  stands alone: {run / '1.arz'} has no tensor like one of these, or 1 archive behind it\n"
    )
