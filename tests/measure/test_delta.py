"""What the measure of checkpoints prints is what it says."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from safetensors.torch import load_file, save_file

import arzstream
from tools.measure import delta, delta_archives
from tools.measure.delta import changes, entropy
from tools.measure.delta_archives import chain, enlarged
from tools.measure.delta_peers import PEERS, Peer, installed, xor_zstd


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three checkpoints, the oldest first."""
    folder, rng = tmp_path_factory.mktemp("line"), torch.Generator().manual_seed(0)
    weights, paths = 0.02 * torch.randn(256, 256, generator=rng), []
    for step in range(3):
        weights = weights + 1e-4 * torch.randn(256, 256, generator=rng)
        paths.append(folder / f"step-{step}.safetensors")
        save_file({"a.weight": weights.bfloat16(), "norm": torch.arange(30.0).bfloat16()}, paths[-1])
    return paths


def test_entropy_is_that_of_order_zero() -> None:
    assert entropy(np.array([1, 1, 2, 0])) == 1.5
    assert entropy(np.array([7])) == entropy(np.array([0])) == 0


def test_changes_count_the_map_and_the_values(tmp_path: Path) -> None:
    old = torch.arange(1.0, 9.0).bfloat16()
    new = old.view(torch.int16).clone()
    new[2] ^= 1
    new[5] ^= 4
    save_file({"w": old}, tmp_path / "old")
    save_file({"w": new.view(torch.bfloat16)}, tmp_path / "new")
    found = changes(tmp_path / "new", tmp_path / "old")
    assert found.share == 0.25
    assert math.isclose(found.map_bits, -0.25 * math.log2(0.25) - 0.75 * math.log2(0.75))
    assert math.isclose(found.value_bits, 0.25)  # two values, once each: a bit for each of a quarter
    assert found.bits == found.map_bits + found.value_bits


def test_values_of_changes_are_xors_or_differences_whichever_say_less(tmp_path: Path) -> None:
    old = torch.tensor([0x4000, 0x4001, 0x4010, 0x4011], dtype=torch.int16)
    save_file({"w": old.view(torch.bfloat16)}, tmp_path / "old")
    for name, new in (("up by one", old + 1), ("last bit", old ^ 1), ("either", old + torch.tensor([1, 2, 1, 2]))):
        save_file({"w": new.to(torch.int16).view(torch.bfloat16)}, tmp_path / name)
    assert changes(tmp_path / "up by one", tmp_path / "old").value_bits == 0  # XORs are 1 and 3
    assert changes(tmp_path / "last bit", tmp_path / "old").value_bits == 0  # differences are 1 and -1
    assert changes(tmp_path / "either", tmp_path / "old").value_bits == 1


def test_nothing_changed_has_no_entropy(line: list[Path]) -> None:
    assert changes(line[0], line[0]) == (0, 0, 0)


def test_xor_is_of_each_tensor_in_byte_planes(line: list[Path]) -> None:
    expected, packer = 0, zstandard.ZstdCompressor(3)
    before = load_file(line[1])
    for name, tensor in load_file(line[2]).items():
        words = (tensor.view(torch.int16) ^ before[name].view(torch.int16)).flatten().numpy().view("<u2")
        for plane in (words & 255, words >> 8):
            expected += len(packer.compress(plane.astype(np.uint8).tobytes()))
    assert xor_zstd(line[2], line[1]) == expected


def test_a_chain_is_measured_with_everything_in_it(line: list[Path], tmp_path: Path) -> None:
    made = chain(line, "balanced", tmp_path)
    archives = sorted(tmp_path.glob("*.arz"))
    assert len(archives) == 3 and made.bytes_out == archives[-1].stat().st_size
    assert made.bytes_in == line[2].stat().st_size
    with arzstream.open(archives[-1]) as opened:
        assert opened.directory.parents
    assert made.changes >= 256 * 256 * 2
    assert 0 < made.packing < made.coding and 0 < made.unpacking < made.decoding


def test_a_chain_that_does_not_come_back_is_no_measurement(
    line: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lying(archive: Path, dest: Path) -> None:
        dest.mkdir()
        data = bytearray(line[2].read_bytes())
        data[-1] ^= 1
        (dest / line[2].name).write_bytes(data)

    monkeypatch.setattr(delta_archives.arzstream, "unpack", lying)
    with pytest.raises(SystemExit, match="differs"):
        chain(line, "balanced", tmp_path)


def test_codecs_decode_as_before_when_they_were_clocked(line: list[Path], tmp_path: Path) -> None:
    codec = type(delta_archives.registry.get(delta_archives.DELTA_CTX))
    decode = codec.decode
    chain(line[:2], "balanced", tmp_path)
    assert codec.decode is decode


def test_enlarged_checkpoints_hold_no_tensor_twice_and_match_one_another(line: list[Path], tmp_path: Path) -> None:
    for source in line[:2]:
        enlarged(source, tmp_path / source.name, 400_000)
    old, new = (load_file(tmp_path / source.name) for source in line[:2])
    assert sum(t.nbytes for t in new.values()) >= 400_000
    weights = [tensor for name, tensor in new.items() if name.endswith("a.weight")]
    assert len({tensor.view(torch.int16).numpy().tobytes() for tensor in weights}) == len(weights) == 4
    for name, tensor in new.items():
        assert (tensor.float() - old[name].float()).abs().max() < 2e-3


def test_a_program_that_is_not_there_is_named() -> None:
    absent = Peer("absent", "no_such_module_at_all", lambda new, old, scratch: 0)
    assert installed([absent]) == ([], ["absent"])


def test_differences_given_to_pcodec_come_back(line: list[Path], tmp_path: Path) -> None:
    stored = next(peer for peer in PEERS if peer.module == "pcodec").stored(line[2], line[1], tmp_path)
    assert 0 < stored < xor_zstd(line[2], line[1])


def test_a_small_run_is_measured_from_training_to_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ("--layers", "1", "--width", "64", "--batch", "1", "--steps", "60")
    options = ("--run", "bytes-constant", "--folder", str(tmp_path), "--peers", "none", "--large", "1e6")
    monkeypatch.setattr(sys, "argv", ["delta", *size, *options])
    delta.main()
    printed = capsys.readouterr().out
    assert printed.count("arzstream balanced") == 4 and printed.count("arzstream max") == 3
    assert printed.count("  ok  ") + printed.count("  FAILED  ") == 9
    assert "10 steps apart: step-0050.safetensors -> step-0060.safetensors" in printed
    assert "learning rate" in printed and "AdamW with betas 0.9 and 0.95" in printed
