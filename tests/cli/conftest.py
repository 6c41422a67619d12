"""A small checkpoint, its archive, and the command line in this process."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import arzstream
from arzstream.cli import main
from arzstream.testing import tensors

EVIL = "evil\x1b[2J\u202e\nname"


@dataclasses.dataclass
class Done:
    """How a run ended."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """What it said went wrong: exactly one line."""
        assert self.err.endswith("\n") and self.err.count("\n") == 1, self.err
        assert self.err.startswith("arzstream: ") and "Traceback" not in self.err
        return self.err.removeprefix("arzstream: ").rstrip("\n")

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on standard output."""
        assert self.code == 0, self.err
        assert self.err == ""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


Arz = Callable[..., Done]


@pytest.fixture
def arz(capsys: pytest.CaptureFixture[str]) -> Arz:
    """Run ``arzstream ARGUMENTS`` in this process."""

    def run(*arguments: str | Path) -> Done:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights with tied and with oddly named tensors, a file that is not what its name says, a link, a folder."""
    folder, rng = tmp_path_factory.mktemp("source") / "step-1", np.random.default_rng(7)
    (folder / "sub").mkdir(parents=True)
    embedding = tensors.gaussian((300, 256), "BF16", rng)
    weights = [
        tensors.Tensor("model.embed_tokens.weight", "BF16", (300, 256), embedding),
        tensors.Tensor("model.layers.0.up.weight", "BF16", (256, 256), tensors.gaussian((256, 256), "BF16", rng)),
        tensors.Tensor("model.layers.1.up.weight", "F32", (256, 256), tensors.gaussian((256, 256), "F32", rng)),
        tensors.Tensor("model.layers.1.up.bias", "F32", (), tensors.gaussian((), "F32", rng)),
        tensors.Tensor(f"{EVIL}.größe", "BF16", (3, 5), tensors.gaussian((3, 5), "BF16", rng)),
        tensors.Tensor("lm_head.weight", "BF16", (300, 256), embedding),
    ]
    (folder / "model.safetensors").write_bytes(tensors.safetensors_bytes(weights))
    (folder / "config.json").write_text('{"layers": 2}\n')
    (folder / "broken.safetensors").write_bytes(b"no header here, nowhere")
    (folder / "sub" / "generation_config.json").write_text("{}\n")
    (folder / "link").symlink_to("config.json")
    return folder


@pytest.fixture(scope="session")
def archive(checkpoint: Path) -> Path:
    """The archive of :func:`checkpoint`; not to be changed."""
    path = checkpoint.with_suffix(".arz")
    arzstream.pack(str(checkpoint), str(path))
    return path
