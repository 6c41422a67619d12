"""Damaged files beside each other: no parser raises, hangs, or says what no layout may say."""

from __future__ import annotations

import os
import random
from collections.abc import Hashable, Iterable
from pathlib import Path

import pytest
import torch

from arzstream.formats.base import pieces, problem_of
from arzstream.formats.detect import parser_for
from arzstream.testing.zero import write_zero

TIMES = 60


class Damaged:
    """A folder, some of whose files change now and then."""

    def __init__(self, folder: Path) -> None:
        files = [path for path in folder.rglob("*") if path.is_file()]
        self.good = {os.fsencode(path.relative_to(folder)): path.read_bytes() for path in files}
        self.files = dict(self.good)

    def damage(self, dice: random.Random) -> None:
        self.files = dict(self.good)
        for path in dice.sample(sorted(self.good), dice.randint(1, 2)):
            data = bytearray(self.good[path])
            # Where structure is: in the first and last kilobytes, and in a small file everywhere.
            for _ in range(dice.randint(0, 6)):
                at = dice.randrange(len(data))
                near = dice.choice([at, dice.randrange(min(len(data), 2000)), -1 - dice.randrange(min(len(data), 600))])
                data[near] = dice.choice([dice.randrange(256), data[near] ^ 1 << dice.randrange(8), 255, 0])
            if dice.random() < 0.3:
                del data[dice.randrange(len(data)) :]
            if dice.random() < 0.1:
                data = bytearray(self.good[dice.choice(sorted(self.good))])
            self.files[path] = bytes(data)
        if dice.random() < 0.1:
            del self.files[dice.choice(sorted(self.files))]

    def paths(self) -> Iterable[bytes]:
        return self.files

    def version(self, path: bytes) -> Hashable:
        return hash(self.files[path]) if path in self.files else None

    def size(self, path: bytes) -> int:
        return len(self.files.get(path, b""))

    def read(self, path: bytes, offset: int, length: int) -> bytes:
        return self.files.get(path, b"")[offset : offset + length]

    def foretold(self, path: bytes) -> bytes | None:
        return self.good.get(path)


def examine(folder: Damaged) -> None:
    for path, data in folder.files.items():
        parser = parser_for(path, beside=folder)
        for frontier, final in ((len(data) // 2, False), (len(data), False), (len(data), True)):
            layout = parser.update(lambda o, n, end=frontier, d=data: d[o : min(o + n, end)], frontier, final)
            assert problem_of(layout, len(data) if final else None) == "", path
        assert layout.complete and layout.size == len(data)
        assert sum(piece.nbytes for piece in pieces(layout, len(data))) == len(data)


@pytest.mark.parametrize("kind", ["dcp", "safetensors"])
def test_damaged_checkpoints_of_ranks(ranks: Path, kind: str) -> None:
    folder, dice = Damaged(ranks / kind / "step-0"), random.Random(7)
    for _ in range(TIMES):
        folder.damage(dice)
        examine(folder)


@pytest.mark.parametrize("stage", [2, 3])
def test_damaged_folders_of_deepspeed(tmp_path: Path, stage: int) -> None:
    weights = {"a": torch.randn(9, 8), "b": torch.randn(8), "c": torch.randn(16, 8)}
    write_zero(tmp_path / "run", weights, {"exp_avg": weights}, ranks=3, stage=stage)
    folder, dice = Damaged(tmp_path / "run"), random.Random(8)
    for _ in range(TIMES):
        folder.damage(dice)
        examine(folder)
