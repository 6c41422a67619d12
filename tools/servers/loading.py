"""What loading out of an archive takes: time, memory, and the bytes that a rank of a tensor-parallel job reads.

    .venv/bin/python -m tools.servers.loading [--layers 48] [--rounds 3] [--profile fast balanced]

Makes a random Llama in bf16 (its 48 layers and two embeddings have 389 million parameters), packs it, and loads it in
processes of their own, in turn: with transformers out of the folder, with ``arzstream.transformers`` out of the
archive, and with accelerate's hooks, which leave the weights in the archive. For each: the median seconds, and by how
much the peak of the process's memory lies above what it was before loading, all of it (RSS) and without the pages of
files (anonymous). All files are in the page cache. Then the bytes that rank r of four reads out of an archive packed
with ``--tensor-parallel 4``, with transformers' own tensor parallelism, and those of a server that asks for slices.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import arzstream
from tools.servers.vllm_cpu import make_model

BEGIN = """
import json, sys, threading, time, torch, transformers, arzstream
torch.set_num_threads(1)
import accelerate.hooks, transformers.models.llama.modeling_llama, arzstream.transformers
from arzstream.integrations.accelerate import offloaded_from_pretrained

def status(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) << 10

anonymous, done = [0], threading.Event()
def watch():
    while not done.wait(0.01):
        anonymous[0] = max(anonymous[0], status("RssAnon"))
ids = torch.arange(3, 20)[None]
before = status("RssAnon")
open("/proc/self/clear_refs", "w").write("5")
rss = status("VmHWM")
thread = threading.Thread(target=watch)
thread.start()
started = time.perf_counter()
"""
END = """
seconds = time.perf_counter() - started
done.set(); thread.join()
with torch.no_grad():
    token = int(model(ids).logits[0, -1].argmax())
peaks = {"rss": status("VmHWM") - rss, "anonymous": anonymous[0] - before}
print(json.dumps({"seconds": seconds, "token": token, **peaks}))
"""
WAYS = {
    "transformers, safetensors": "model = transformers.LlamaForCausalLM.from_pretrained(sys.argv[1])",
    "arzstream.transformers": "model = arzstream.transformers.from_pretrained(sys.argv[2])",
    "accelerate, first forward pass, cache of 64 MiB": (
        "model = offloaded_from_pretrained(sys.argv[2], cache_bytes=64 << 20)\nwith torch.no_grad(): model(ids)"
    ),
}
RANK = """
import json, sys, torch, transformers, arzstream
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers.distributed import DistributedConfig
from arzstream.store.ranges import LocalReader

into, read, total = LocalReader.read_into, LocalReader.read_at, [0]
def read_into(self, offset, buffer):
    total[0] += buffer.nbytes
    into(self, offset, buffer)
def read_at(self, offset, length):
    total[0] += length
    return read(self, offset, length)
LocalReader.read_into, LocalReader.read_at = read_into, read_at
rank = int(sys.argv[1])
dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=4)
arzstream.transformers.from_pretrained(sys.argv[2], distributed_config=DistributedConfig(tp_size=4))
loaded, total[0] = total[0], 0
with arzstream.open(sys.argv[2]) as archive:
    for name in archive.keys():
        part = archive.get_slice(name)
        shape = part.get_shape()
        if len(shape) == 1:
            part[:]
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            part[:, rank * shape[1] // 4 : (rank + 1) * shape[1] // 4]
        else:
            part[rank * shape[0] // 4 : (rank + 1) * shape[0] // 4]
print(json.dumps([loaded, total[0]]))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", nargs="+", default=["fast", "balanced"], choices=["fast", "balanced", "max"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_model(work / "model", options.layers)
        for profile in options.profile:
            time_loading(work, profile, options.rounds)
        count_bytes(work)
    return 0


def time_loading(work: Path, profile: str, rounds: int) -> None:
    archive = work / f"{profile}.arz"
    packed = arzstream.pack([work / "model"], archive, profile=profile)
    print(f"\nprofile {profile}: {packed.bytes_in / 1e6:.0f} MB, archive {packed.bytes_out / 1e6:.0f} MB", flush=True)
    said: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, loading in WAYS.items():
            command = [sys.executable, "-c", BEGIN + loading + END, work / "model", archive]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            said[way].append(json.loads(done.stdout))
    print("| | seconds | peak, anonymous | peak, with pages of files |\n|---|---|---|---|")
    for way, runs in said.items():
        seconds, anonymous, rss = (
            statistics.median(run[key] for run in runs) for key in ("seconds", "anonymous", "rss")
        )
        print(f"| {way} | {seconds:.2f} | {anonymous / 1e6:.0f} MB | {rss / 1e6:.0f} MB |", flush=True)
    if len({run["token"] for runs in said.values() for run in runs}) != 1:
        raise SystemExit("the models do not say the same")


def count_bytes(work: Path) -> None:
    archive = work / "parallel.arz"
    arzstream.pack([work / "model"], archive, profile="fast", tensor_parallel=4)
    size = archive.stat().st_size
    print(
        f"\n--tensor-parallel 4: archive {size / 1e6:.0f} MB\n| rank of four | transformers | slices |\n|---|---|---|"
    )
    for rank in range(4):
        command = [sys.executable, "-c", RANK, str(rank), archive]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        loaded, sliced = json.loads(done.stdout.splitlines()[-1])
        print(f"| {rank} | {loaded / size:.1%} | {sliced / size:.1%} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
