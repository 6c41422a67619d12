"""Rounds: who is right, who is wrong, who breaks down, and what is reported of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arzstream.bench import rounds as rounds_module
from arzstream.bench.contender import BufferContender, Item
from arzstream.bench.roster import Entrant, codecs, installed_peers, peers, profiles
from arzstream.bench.rounds import DIRECTIONS, measure
from arzstream.bench.sample import U8, Sample, load


@pytest.fixture
def sample(weights: Path, tmp_path: Path) -> Sample:
    return load([str(weights)], 1 << 30, tmp_path)


class Liar(BufferContender):
    """Gives back other bytes once in a while."""

    def encode_item(self, item: Item, threads: int) -> Any:
        return item.data.tobytes()

    def decode_item(self, item: Item, blob: Any, out: U8, threads: int) -> Any:
        out[:] = np.frombuffer(blob, np.uint8)
        out[-1] ^= 1


class Idle(Liar):
    """Does not decode at all."""

    def decode_item(self, item: Item, blob: Any, out: U8, threads: int) -> Any:
        return None


class Broken(Liar):
    def encode_item(self, item: Item, threads: int) -> Any:
        raise RuntimeError("no\nsuch luck")


def absent() -> BufferContender:
    raise ImportError("libsomething.so is missing")


def test_everyone_is_reported_whatever_the_others_do(sample: Sample) -> None:
    entrants = [
        Entrant("liar", "x", Liar),
        Entrant("broken", "x", Broken),
        Entrant("absent", "x", absent),
        *profiles(["fast"]),
        Entrant("idle", "x", Idle),
    ]
    results = measure(entrants, sample, rounds=2, threads=2)
    assert [r.name for r in results] == ["memcpy", "liar", "broken", "absent", "arzstream fast", "idle"]
    assert [r.state for r in results] == ["ok", "wrong", "failed", "failed", "ok", "wrong"]
    assert "other bytes" in results[1].why
    assert results[2].why == "RuntimeError: no such luck"
    assert "libsomething.so" in results[3].why
    assert all(r.ratio is None for r in results if r.state != "ok")


def test_a_result_has_a_speed_for_each_round_and_direction(sample: Sample) -> None:
    copy, fast = measure(profiles(["fast"]), sample, rounds=3, threads=2)
    for direction in DIRECTIONS:
        assert len(fast.speeds[direction]) == len(fast.relative[direction]) == 3
        assert 0 < (fast.speed(direction) or 0) < 1000
    assert copy.to_memcpy("decode_one") == 1
    assert 0 < (fast.to_memcpy("decode_one") or 0) < 1.5
    assert fast.nbytes == sample.nbytes
    assert 0.5 < (fast.ratio or 0) < 0.9
    assert sum(fast.codecs.values()) == sample.nbytes


def test_one_thread_measures_one_core_only(sample: Sample) -> None:
    assert set(measure(profiles(["fast"]), sample, rounds=1, threads=1)[1].speeds) == set(DIRECTIONS[:2])


def test_the_ratio_of_a_profile_is_that_of_its_archive(sample: Sample, weights: Path, tmp_path: Path) -> None:
    import arzstream

    packed = arzstream.pack(str(weights), str(tmp_path / "x.arz"), profile="max").bytes_out
    assert measure(profiles(["max"]), sample, rounds=1, threads=1)[1].stored == packed


def test_a_single_codec_codes_what_it_applies_to(sample: Sample) -> None:
    result = measure(codecs(["float_fast"]), sample, rounds=1, threads=1)[1]
    assert result.state == "ok"
    assert set(result.codecs) == {"float_fast", "raw"}


def test_a_slow_contender_gets_a_part_of_the_sample_and_says_so(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds_module, "PATIENCE", 1e-4)
    monkeypatch.setattr(rounds_module, "SHARE", 0.0)
    result = measure(profiles(["fast"]), sample, rounds=3, threads=1)[1]
    assert result.rounds == 1
    assert result.nbytes < sample.nbytes
    assert "pieces of" in result.note


@pytest.mark.parametrize("name", ["zstandard", "zipnn", "pcodec"])
def test_a_peer_gives_back_every_type(sample: Sample, name: str) -> None:
    pytest.importorskip(name)
    for result in measure(peers([name]), sample, rounds=1, threads=2)[1:]:
        assert (result.state, result.why) == ("ok", "")
        assert 0.3 < (result.ratio or 0) < 1
        assert result.version


def test_every_other_peer_that_is_installed_gives_back_every_type(sample: Sample) -> None:
    """They are no part of the test installation; tools/bench/install installs them."""
    names = [name for name in installed_peers() if name not in ("zstandard", "zipnn", "pcodec")]
    results = measure(peers(names), sample, rounds=1, threads=2)
    assert {r.name: (r.state, r.why) for r in results} == {r.name: ("ok", "") for r in results}


def test_names_that_nobody_has() -> None:
    with pytest.raises(ValueError, match="no peer 'zip'"):
        peers(["zip"])
    with pytest.raises(ValueError, match="no codec 'float'"):
        codecs(["float"])
    with pytest.raises(ValueError, match="no profile 'least'"):
        profiles(["least"])
