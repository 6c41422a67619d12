"""The longer suite: the files it reads, what it concludes, and what it writes."""

from __future__ import annotations

import json
import platform
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arzstream.bench.rounds import Result
from arzstream.testing.tensors import Tensor, safetensors_bytes, to_bits
from tools.bench import suite, weights, whole_path
from tools.bench.claims import Claim, claims
from tools.bench.foreign import gguf_tensors, onnx_tensors
from tools.bench.weights import File


def message(number: int, body: bytes) -> bytes:
    """A length-delimited protobuf field."""
    length, out = len(body), bytearray([number << 3 | 2])
    while length > 127:
        out.append(length & 127 | 128)
        length >>= 7
    return bytes(out) + bytes([length]) + body


def test_initialisers_are_found_in_an_onnx_file(tmp_path: Path) -> None:
    values = np.arange(300, dtype="<f4").reshape(3, 100)
    tensor = b"\x08\x03\x08\x64\x10\x01" + message(8, b"weight") + message(9, values.tobytes())
    graph = message(1, b"a node") + message(5, tensor)
    (tmp_path / "x.onnx").write_bytes(b"\x08\x07" + message(2, b"producer") + message(7, graph))
    found = onnx_tensors(tmp_path / "x.onnx")
    assert list(found) == ["weight"]
    np.testing.assert_array_equal(found["weight"], values)


def test_float_tensors_are_found_in_a_gguf_file(tmp_path: Path) -> None:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    values = np.arange(6, dtype="<f4").reshape(2, 3)
    pairs = text("general.name") + struct.pack("<I", 8) + text("x")
    pairs += text("list") + struct.pack("<IIQ3i", 9, 5, 3, 1, 2, 3)
    infos = text("codes") + struct.pack("<IQIQ", 1, 32, 8, 0) + text("norm") + struct.pack("<IQQIQ", 2, 3, 2, 0, 64)
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, 2) + pairs + infos
    (tmp_path / "x.gguf").write_bytes(head + bytes(-len(head) % 32) + bytes(64) + values.tobytes())
    found = gguf_tensors(tmp_path / "x.gguf")
    assert list(found) == ["norm"]
    np.testing.assert_array_equal(found["norm"], values)


def test_blocks_stand_for_the_weights() -> None:
    """Decoded as GGML does it, Q8_0 is within half a step and Q4_0 within one."""
    values = np.random.default_rng(0).standard_normal((64, 32), dtype=np.float32)
    data = np.frombuffer(weights.q8_0(values), np.uint8).reshape(-1, 34)
    scale = data[:, :2].copy().view("<f2").astype(np.float32)
    assert np.abs(data[:, 2:].view(np.int8) * scale - values).max() <= 0.52 * scale.max()
    data = np.frombuffer(weights.q4_0(values), np.uint8).reshape(-1, 18)
    scale = data[:, :2].copy().view("<f2").astype(np.float32)
    codes = np.hstack([data[:, 2:] & 15, data[:, 2:] >> 4]).astype(np.float32) - 8
    assert np.abs(codes * scale - values).max() <= 1.02 * np.abs(scale).max()


def test_every_file_has_a_name_of_its_own_and_real_ones_are_marked() -> None:
    names = [file.name for file in weights.FILES]
    assert len(names) == len(set(names))
    assert {file.name.split("-")[0] for file in weights.FILES if file.real} == {
        "minilm", "efficientnet", "piper", "smollm2",
    }  # fmt: skip


def result(
    name: str, package: str, stored: int = 660, encode: float = 1, decode: float = 1, share: float = 1
) -> Result:
    return Result(name, package, "", "1", nbytes=1000, stored=stored, rounds=1, payload=0,
                  speeds={"encode_one": [encode], "decode_one": [decode]},
                  relative={"encode_one": [share], "decode_one": [share]})  # fmt: skip


def verdicts(*results: Result, whole: dict[str, Any] | None = None) -> dict[str, Claim]:
    file = File("minilm-bf16.safetensors", "BF16", True, lambda path: None)
    return {claim.text: claim for claim in claims([(file, {r.name: r for r in results})], whole)}


def one(found: dict[str, Claim], text: str) -> Claim:
    return next(claim for key, claim in found.items() if text in key)


def test_claims_compare_with_the_peers_of_the_same_run() -> None:
    fast = result("codec float_fast", "arzstream", encode=2, decode=5, share=0.44)
    found = verdicts(fast, result("zipnn", "zipnn", encode=0.4, decode=2.1))
    assert one(found, "decode at least 4 GB/s").verdict == "PASS"
    assert one(found, "decode at least 0.45 of memcpy").verdict == "FALLS SHORT"
    assert one(found, "decode at least 2.5 × zipnn").verdict == "FALLS SHORT"
    assert "2.38 ×" in one(found, "decode at least 2.5 × zipnn").got
    assert one(found, "encode at least 4 × zipnn").verdict == "PASS"
    assert one(found, "fp8 of Gaussian").verdict == "NOT MEASURED"


@pytest.mark.parametrize(("stored", "verdict"), [(657, "PASS"), (658, "FALLS SHORT"), (659, "FALLS SHORT")])
def test_smaller_than_every_peer_means_smaller(stored: int, verdict: str) -> None:
    peers = [result("pcodec 12", "pcodec", 658), result("zipnn", "zipnn", 665)]
    found = verdicts(result("arzstream balanced", "arzstream", stored), *peers)
    assert one(found, "profile balanced: smaller").verdict == verdict
    assert "pcodec 12" in one(found, "profile balanced: smaller").got


def test_a_peer_that_saw_a_part_only_is_not_compared_by_size() -> None:
    part = result("bigsmall", "bigsmall", 100)
    part.note = "measured on 1 MB"
    found = verdicts(result("arzstream max", "arzstream", 650), result("zipnn", "zipnn", 665), part)
    assert one(found, "profile max: smaller").verdict == "PASS"


def test_wrong_bytes_are_a_claim_that_does_not_hold() -> None:
    ours = result("arzstream fast", "arzstream")
    ours.state = "wrong"
    assert one(verdicts(ours), "bit for bit").verdict == "FALLS SHORT"
    theirs = result("zipnn", "zipnn")
    theirs.state = "wrong"
    claim = one(verdicts(result("arzstream fast", "arzstream"), theirs), "bit for bit")
    assert claim.verdict == "PASS"
    assert "peers with wrong bytes: zipnn" in claim.got


def test_the_whole_path_is_held_against_the_kernels() -> None:
    whole = {
        "share_warm": 0.79, "share_cpu": 0.9, "extra_bytes": 64 << 20, "get_tensor_warm": 4, "kernels_warm": 5,
        "archive": "", "bytes": 10**9,
    }  # fmt: skip
    found = verdicts(whole=whole)
    assert one(found, "get_tensor").verdict == "FALLS SHORT"
    assert one(found, "peak memory").verdict == "PASS"


def test_the_suite_writes_a_report_without_names_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tiny(path: Path) -> None:
        values = np.random.default_rng(0).standard_normal((300, 256), dtype=np.float32)
        path.write_bytes(safetensors_bytes([Tensor("w", "BF16", (300, 256), to_bits(values, "BF16").tobytes())]))

    monkeypatch.setattr(suite, "FILES", [File("minilm-bf16.safetensors", "BF16", True, tiny)])
    options = suite.parse(
        ["minilm", "--peers", "zstandard", "--rounds", "1", "--write", "--results", str(tmp_path / "results")]
    )
    assert suite.run(options, tmp_path) == 0
    printed = capsys.readouterr().out
    assert "codec float_ctx" in printed
    assert "FALLS SHORT" in printed or "PASS" in printed
    written = sorted((tmp_path / "results").iterdir())
    assert [path.suffix for path in written] == [".json", ".md", ".png"]
    report = json.loads(written[0].read_text())
    assert report["files"][0]["name"] == "minilm-bf16.safetensors"
    for path in written[:2]:
        text = path.read_text()
        assert str(tmp_path) not in text
        assert platform.node() not in text or len(platform.node()) < 3


def test_a_missing_package_leaves_its_files_out_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = File("a.safetensors", "BF16", True, lambda path: weights.package_file("no_such_package_here", "*") and None)
    monkeypatch.setattr(suite, "FILES", [file])
    assert suite.run(suite.parse(["a", "--peers", "none"]), tmp_path) == 0
    assert "a.safetensors: left out: the package no-such-package-here is not installed" in capsys.readouterr().out


@pytest.mark.alone
def test_the_whole_path_is_measured_in_processes_of_its_own() -> None:
    found = whole_path.measure(50_000_000, "fast", 2, 1)
    assert found["bytes"] > 40_000_000
    assert found["share"] > 0 and found["share_warm"] > 0
    assert found["extra_bytes"] < 64 << 20


@pytest.mark.alone
def test_every_way_through_is_measured_and_its_time_accounted_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["whole_path", "--bytes", "50000000", "--rounds", "1", "--threads", "2"])
    whole_path.main()
    printed = capsys.readouterr().out
    for name in ("memcpy", "read the archive", "write the original", "kernels", "get_tensor", "stream", "load_file",
                 "unpack", "pack", "verify", "verify --deep"):  # fmt: skip
        speeds = next(line for line in printed.splitlines() if line.startswith(f"{name:30}"))
        assert all(float(speed) > 0 for speed in speeds.split()[-2:])
    rows = {
        line[:18].strip(): line[18:].split()
        for line in printed.split("processor time, milliseconds")[1].splitlines()[2:]
    }
    assert int(rows["pack"][4]) > 0 and int(rows["unpack"][5]) > 0, "SHA-256 and writing are seen"
    assert sum(map(int, rows["get_tensor"][:-1])) == pytest.approx(int(rows["get_tensor"][-1]), abs=8)
