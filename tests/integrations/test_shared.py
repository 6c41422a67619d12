"""One decode per host, with real processes in a real gloo group."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import arzstream

RANK = """
import json, os, sys, torch
torch.set_num_threads(1)
import torch.distributed as dist
import arzstream
from arzstream.integrations import shared
from arzstream.archive.decoding import Decoder, describe

rank, ranks, rendezvous, path, out, case = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks)
group = dist.group.WORLD
shared.BATCH_BYTES = 3 << 20
decoded, original = [], Decoder.chunk_into
def chunk_into(self, entry, chunk, memory):
    if case == "fails" and rank == 1 and len(decoded) == 2:
        raise arzstream.CorruptError("damaged on purpose")
    decoded.append((describe(entry.unit), chunk))
    original(self, entry, chunk, memory)
Decoder.chunk_into = chunk_into
said = {"same_host": shared.same_host(group)}
with arzstream.open(path, jobs=2) as archive:
    names = archive.keys()
    if case == "experts":
        names = [name for name in names if "expert" not in name or f"expert{rank}" in name]
    found = {}
    try:
        for name, tensor in shared.decoded_together(archive, names, group):
            found[name] = tensor
            if case == "writes":
                tensor.flatten().view(torch.uint8).fill_(rank + 1)
            if case == "stops" and rank == 0 and len(found) == 2:
                break
    except arzstream.ArzError as error:
        said["error"] = f"{type(error).__name__}: {error}"
    dist.barrier()
torch.save(found, f"{out}.pt")
said |= {"decoded": decoded, "fds": len(os.listdir("/proc/self/fd")), "names": list(found)}
with open(f"{out}.json", "w") as file:
    json.dump(said, file)
os._exit(0)  # gloo's threads now and then abort a process that ends as usual
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shared") / "x.arz"
    torch.manual_seed(0)
    state = {f"layers.{n}.weight": torch.randn(500 + 300 * n, 600).bfloat16() for n in range(5)}
    state |= {f"layers.{n}.norm": torch.randn(600).bfloat16() for n in range(5)}
    state |= {f"layers.0.expert{n}.weight": torch.randn(700, 800).bfloat16() for n in range(2)}
    state |= {"big": torch.randn(3000, 900).bfloat16(), "scalar": torch.tensor(3.5), "empty": torch.empty(0, 4)}
    arzstream.torch.save_file(state, path, profile="fast")
    return path


def together(
    archive: Path, folder: Path, case: str = "", ranks: int = 2
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What each rank said, and the tensors that it got."""
    running = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                RANK,
                str(rank),
                str(ranks),
                folder / "rendezvous",
                archive,
                folder / f"{rank}",
                case,
            ]
        )
        for rank in range(ranks)
    ]
    assert [process.wait(timeout=300) for process in running] == [0] * ranks
    return [
        (json.loads((folder / f"{rank}.json").read_text()), torch.load(folder / f"{rank}.pt")) for rank in range(ranks)
    ]


def test_every_rank_gets_every_tensor_and_each_is_decoded_once(archive: Path, tmp_path: Path) -> None:
    wanted = arzstream.torch.load_file(archive)
    with arzstream.open(archive) as opened:
        order = opened.keys()
    said = together(archive, tmp_path, ranks=3)
    for rank, found in said:
        assert rank["same_host"] and rank["names"] == order
        assert all(
            torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in wanted.items()
        )
    chunks = [tuple(chunk) for rank, _ in said for chunk in rank["decoded"] if chunk[0].count("more") == 0]
    assert len(chunks) == len(set(chunks))
    shares = [len(rank["decoded"]) for rank, _ in said]
    assert min(shares) >= max(shares) // 3
    assert all(rank["fds"] < 40 for rank, _ in said)


def test_what_a_rank_writes_into_a_tensor_is_its_own(archive: Path, tmp_path: Path) -> None:
    for rank, (_, found) in enumerate(together(archive, tmp_path, "writes")):
        for tensor in found.values():
            assert bool((tensor.flatten().view(torch.uint8) == rank + 1).all())


def test_a_tensor_that_one_rank_wants_is_decoded_by_that_rank_alone(archive: Path, tmp_path: Path) -> None:
    wanted = arzstream.torch.load_file(archive)
    for rank, (said, found) in enumerate(together(archive, tmp_path, "experts")):
        assert f"layers.0.expert{1 - rank}.weight" not in found
        assert f"tensor 'layers.0.expert{1 - rank}.weight'" not in [name for name, _ in said["decoded"]]
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())


def test_an_error_in_one_rank_is_an_error_in_all(archive: Path, tmp_path: Path) -> None:
    (first, _), (second, _) = together(archive, tmp_path, "fails")
    assert first["error"].startswith("StorageError") and "rank 1" in first["error"] and "on purpose" in first["error"]
    assert second["error"] == "CorruptError: damaged on purpose"


def test_a_rank_that_stops_early_still_does_its_share(archive: Path, tmp_path: Path) -> None:
    (first, _), (_, found) = together(archive, tmp_path, "stops")
    wanted = arzstream.torch.load_file(archive)
    assert len(first["names"]) == 2 and found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
