"""``arzstream bench``: what it prints, and how it ends."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from arzstream.bench.contender import Profile
from arzstream.bench.roster import PEERS

if TYPE_CHECKING:
    from tests.cli.conftest import Arz

PEERS_HERE = ("zstandard", "zipnn", "pcodec")
FIRST = ("--rounds", "1", "--threads", "2")


@pytest.fixture
def model(checkpoint: Path) -> Path:
    return checkpoint / "model.safetensors"


def test_the_table_has_a_line_for_everyone(arz: Arz, model: Path) -> None:
    for name in PEERS_HERE:
        pytest.importorskip(name)
    done = arz("bench", model, "--peers", ",".join(PEERS_HERE), *FIRST)
    assert (done.code, done.err) == (0, "")
    for name in ("memcpy", "arzstream fast", "arzstream balanced", "arzstream max", "zstd 3", "zipnn", "pcodec 12"):
        assert sum(line.startswith(name + " ") for line in done.out.splitlines()) >= 1, name
    assert "exponent entropy + raw bits" in done.out
    assert "WRONG" not in done.out
    assert "FAILED" not in done.out


def test_json_is_one_object_with_machine_versions_and_results(arz: Arz, model: Path) -> None:
    found = arz("bench", model, "--peers", "zstandard", "--json", *FIRST).json
    assert found["bytes"] == model.stat().st_size
    assert found["machine"]["processor"]
    assert found["kernels"]["backend"] in ("native", "numpy")
    assert found["versions"]["zstandard"] and found["versions"]["arzstream"]
    assert 0.5 < found["bounds"]["gaussian"] < found["bounds"]["order0"] < 1
    by_name: dict[str, Any] = {result["name"]: result for result in found["results"]}
    assert 0.5 < by_name["arzstream balanced"]["ratio"] < 0.9
    assert by_name["zstd 3"]["median"]["decode_all"] > 0
    assert by_name["memcpy"]["median_relative"]["decode_one"] == 1


def test_csv_is_a_table_with_titles(arz: Arz, model: Path) -> None:
    done = arz("bench", model, "--peers", "none", "--profile", "fast", "--codec", "float_ctx", "--csv", *FIRST)
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [row["name"] for row in rows] == ["memcpy", "arzstream fast", "codec float_ctx"]
    assert all(float(row["decode_one"]) > 0 for row in rows)


def test_a_store_is_measured_and_its_gain_told(arz: Arz, model: Path) -> None:
    done = arz("bench", model, "--peers", "none", "--profile", "fast", "--store", f"file://{model}", *FIRST)
    assert done.code == 0
    assert "arzstream fast: loading takes" in done.out


def test_an_archive_and_a_folder_can_be_measured(arz: Arz, checkpoint: Path, archive: Path) -> None:
    for source in (checkpoint, archive):
        done = arz("bench", source, "--peers", "none", "--profile", "balanced", *FIRST)
        assert (done.code, done.err) == (0, "")


def test_the_plot_is_written(arz: Arz, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "bench.png"
    assert arz("bench", model, "--peers", "none", "--plot", target, *FIRST).code == 0
    assert target.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_a_plot_is_unsupported(arz: Arz, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    done = arz("bench", model, "--peers", "none", "--plot", "x.png")
    assert done.code == 3
    assert "pip install matplotlib" in done.line


def test_a_peer_that_is_not_installed_is_unsupported(arz: Arz, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arzstream.bench.roster.version", lambda name: None)
    done = arz("bench", model, "--peers", "zipnn")
    assert done.code == 3
    assert "pip install zipnn" in done.line


@pytest.mark.parametrize("option", [("--peers", "gzip"), ("--codec", "gzip"), ("--profile", "least")])
def test_an_unknown_name_is_a_usage_error(arz: Arz, model: Path, option: tuple[str, str]) -> None:
    done = arz("bench", model, *option)
    assert done.code == 2
    assert option[1] in done.line


def test_a_file_that_is_not_there_is_a_storage_error(arz: Arz, tmp_path: Path) -> None:
    done = arz("bench", tmp_path / "nothing.safetensors")
    assert done.code == 4
    assert "nothing.safetensors" in done.line


def test_wrong_bytes_of_our_own_are_bad_data(arz: Arz, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Profile, "wrong", lambda self: "1 of 2 buffers come back with other bytes")
    done = arz("bench", model, "--peers", "none", "--profile", "fast", *FIRST)
    assert done.code == 1
    assert "WRONG BYTES" in done.out
    assert "other bytes" in done.err


def test_every_peer_of_the_issue_can_take_part() -> None:
    assert {"zipnn", "zstandard", "openzl", "pcodec", "blosc2", "lmzip", "bigsmall"} <= PEERS.keys()
