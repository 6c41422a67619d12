"""What belongs to one run, and what came before what in it."""

from __future__ import annotations

from pathlib import Path

import pytest

import arzstream
from arzstream.archive.lineage import MAX_CHAIN
from arzstream.archive.references import Tensors
from arzstream.container.directory import open_directory
from arzstream.daemon.config import Settings
from arzstream.daemon.journal import Archive
from arzstream.daemon.runs import candidates, family, same_run, share, signature, step_of
from arzstream.formats.base import Layout
from arzstream.formats.detect import parser_for
from arzstream.store.ranges import LocalReader
from arzstream.testing import tensors


@pytest.mark.parametrize(
    ("path", "name", "step"),
    [
        (b"run/checkpoint-10", b"checkpoint-#", 10),
        (b"step_100.pt", b"step_#.pt", 100),
        (b"epoch=1-step=20.ckpt", b"epoch=#-step=#.ckpt", 20),
        (b"last.ckpt", b"last.ckpt", None),
        (b"exp7/last", b"last", None),
        (b"", b"", None),
        (b"run/tmp-checkpoint-10", b"checkpoint-#", 10),
        (b"step_5.orbax-checkpoint-tmp-17", b"step_#", 5),
        (b"step-" + b"9" * 5000, b"step-#", int("9" * 18)),
    ],
)
def test_names_have_a_family_and_a_step(path: bytes, name: bytes, step: int | None) -> None:
    assert family(path)[0] == name and step_of(path) == step


def named(path: str, published: float) -> Archive:
    return Archive(f"{path}.arz", path.encode(), published, 1, 1, "")


def test_candidates_are_those_of_the_name_and_not_of_later_steps_newest_first_then_the_rest_of_the_folder() -> None:
    archives = [
        named("run/step-10", 1),
        named("run/step-20", 2),
        named("run/step-30", 3),
        named("run/last", 2.5),
        named("other/step-15", 9),
        named("run/first", 0),
    ]
    found = [archive.name for archive in candidates(b"run/step-25", archives)]
    assert found == ["run/step-20.arz", "run/step-10.arz", "run/last.arz", "run/first.arz"]
    again = Archive("run/step-10.2.arz", b"run/step-10", 8.0, 1, 1, "")  # the run was begun again
    assert candidates(b"run/step-20", [*archives, again])[0] is again
    assert candidates(b"run/last", archives)[0].name == "run/last.arz"


def layout(data: bytes) -> Layout:
    return parser_for(b"model.safetensors").update(
        lambda offset, length: data[offset : offset + length], len(data), True
    )


def test_tensors_decide_what_is_of_one_run(tmp_path: Path) -> None:
    def model(**shape: int) -> list[tensors.Tensor]:
        return tensors.model(**{"layers": 2, "width": 64, "vocabulary": 64, **shape})

    (tmp_path / "model.safetensors").write_bytes(tensors.safetensors_bytes(model()))
    arzstream.pack(tmp_path / "model.safetensors", tmp_path / "x.arz")
    with LocalReader(str(tmp_path / "x.arz")) as reader:
        held = Tensors(open_directory(reader))

    def same(weights: list[tensors.Tensor]) -> bool:
        return same_run({b"model.safetensors": layout(tensors.safetensors_bytes(weights))}, held)

    assert same(model(seed=1))
    assert not same(model(width=128)) and not same(model(dtype="F16"))
    assert not same(model(layers=1)) and not same(model(layers=4))  # theirs and more, or a part of theirs
    assert not same([]) and not same_run({}, held)
    extra = tensors.Tensor("score.weight", "BF16", (2, 64), bytes(256))
    assert same([*model(), extra])
    whole = layout(tensors.safetensors_bytes(model()))
    assert share({b"m": whole}, {}) == 0
    assert len(signature(held)) == 32


def test_the_settings_bound_chains_as_pack_does() -> None:
    assert Settings().max_chain == MAX_CHAIN
