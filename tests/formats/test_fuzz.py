"""A short run of ``tools/fuzz`` on every parser, and that it notices what it is there to notice."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from tools.fuzz import campaign
from tools.fuzz.examine import Broken
from tools.fuzz.seeds import SOURCES, Files
from tools.fuzz.targets import PARSERS

INPUTS = 400


@pytest.mark.parametrize("parser", PARSERS)
def test_damaged_files_keep_every_promise(parser: str) -> None:
    outcome = campaign.run(parser, INPUTS, seed=7)
    assert outcome.inputs >= INPUTS and not outcome.failures
    assert outcome.kinds >= 3 or parser == "unknown"


def test_every_parser_has_seeds() -> None:
    assert list(SOURCES) == list(PARSERS)


def _spin(path: bytes, files: Files, dice: random.Random) -> tuple[Any, ...]:
    while dice:
        pass
    return ()


def _hoard(path: bytes, files: Files, dice: random.Random) -> tuple[Any, ...]:
    return (len(bytes(4 << 30)),)


def _break(path: bytes, files: Files, dice: random.Random) -> tuple[Any, ...]:
    raise Broken("a promise")


@pytest.mark.parametrize(
    ("examine", "said"), [(_spin, "processor time"), (_hoard, "MemoryError"), (_break, "Broken: a promise")]
)
def test_what_hangs_hoards_or_breaks_a_promise_is_found(examine: Any, said: str, monkeypatch: Any) -> None:
    monkeypatch.setitem(PARSERS, "npy", dataclasses.replace(PARSERS["npy"], examine=examine))
    monkeypatch.setattr(campaign, "SECONDS", 0.05)
    outcome = campaign.run("npy", 2)
    assert outcome.failures and said in outcome.failures[0].what


def test_the_same_seed_gives_the_same_inputs(monkeypatch: Any) -> None:
    tried: list[list[bytes]] = [[], []]
    plain = PARSERS["gguf"]
    for seen in tried:

        def note(path: bytes, files: Files, dice: random.Random, seen: list[bytes] = seen) -> tuple[Any, ...]:
            seen.append(files[path])
            return plain.examine(path, files, dice)

        monkeypatch.setitem(PARSERS, "gguf", dataclasses.replace(plain, examine=note))
        campaign.run("gguf", 200, seed=3)
    assert tried[0] == tried[1] and len(tried[0]) > 200
