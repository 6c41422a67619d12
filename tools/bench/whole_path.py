"""``get_tensor`` of everything in a large archive, beside the kernels alone: ``python -m tools.bench.whole_path``.

A gigabyte of bf16 tensors like a 7 B model's is packed; the archive is then in the page cache. A process of its own
opens it and gets every tensor, one after the other, keeping all of them: its peak memory, less what it had before and
less the tensors, is what reading costs. Then the same is timed in rounds, with the kernels' rate in between: every
chunk decoded with both XXH3 checks, from payloads in memory into memory that is there already, on as many threads.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from arzstream.testing.tensors import Tensor, safetensors_header, to_bits
from tools.bench.weights import simulated

__all__ = ["measure"]


def write_model(path: Path, nbytes: int) -> None:
    """A safetensors file of about ``nbytes``: layers of a 7 B model's shapes, the same values in every layer times a
    factor, so that no two tensors are equal and it takes seconds."""
    layer = list(simulated({"q_proj": (4096, 4096), "gate_proj": (5504, 4096), "norm": (4096, 1)}))
    one = sum(2 * values.size for _, values in layer)
    made = []
    for number in range(max(1, round(nbytes / one))):
        factor = np.float32(1 + 0.013 * number)
        for name, values in layer:
            bits = to_bits(values * factor, "BF16")
            shape = (4096,) if name == "norm" else values.shape
            made.append(Tensor(f"model.layers.{number}.{name}.weight", "BF16", shape, bits.tobytes()))
    header, ordered = safetensors_header(made)
    with path.open("wb") as file:
        file.write(header)
        for tensor in ordered:
            file.write(tensor.data)


def peak() -> int:
    """Bytes of memory this process has had at most. Linux hands ``ru_maxrss`` on to the program that a process runs,
    so that is no use here."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024


def read_all(archive: Path, threads: int) -> dict[str, int]:
    """In a process of its own: peak memory of getting every tensor."""
    import torch

    import arzstream

    torch.set_num_threads(1)
    torch.zeros(1)
    with arzstream.open(archive, jobs=threads) as opened:
        opened.get_tensor(opened.keys()[-1])
        before = peak()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    held = sum(t.numel() * t.element_size() for t in tensors.values())
    return {"bytes": held, "extra_bytes": peak() - before - held}


class Kernels:
    """Every chunk of an archive, decoded into memory that is there already."""

    def __init__(self, path: Path, threads: int) -> None:
        import arzstream
        from arzstream.archive.pipeline import context
        from arzstream.container.layout import HEADER_BYTES

        self._tasks: list[tuple[int, bytes, int, int, Any, np.ndarray]] = []
        with arzstream.open(path) as archive, path.open("rb") as file:
            for entry in archive.directory.units:
                for chunk, row in enumerate(archive.directory.chunk_table(entry.number)):
                    file.seek(int(row["offset"]) + HEADER_BYTES)
                    known = context(entry.unit, chunk)
                    out = np.full(known.rows * known.cols * known.dtype.itemsize, 1, np.uint8)
                    digests = int(row["stored_xxh3"]), int(row["decoded_xxh3"])
                    self._tasks.append((int(row["codec"]), file.read(int(row["stored"])), *digests, known, out))
        self.nbytes = sum(len(task[-1]) for task in self._tasks)
        self._pool = ThreadPoolExecutor(threads)

    def run(self) -> None:
        list(self._pool.map(self._one, self._tasks))

    @staticmethod
    def _one(task: tuple[int, bytes, int, int, Any, np.ndarray]) -> None:
        from arzstream.codec import registry
        from arzstream.kernels.digests import xxh3_64

        codec, payload, stored, decoded, known, out = task
        assert xxh3_64(payload) == stored
        registry.get(codec).decode(memoryview(payload), out.data, known)
        assert xxh3_64(out.data) == decoded


def rates(archive: Path, threads: int, rounds: int) -> dict[str, float]:
    """Median GB/s of ``get_tensor`` and of the kernels, by the clock, and the median of their quotients."""
    import arzstream

    kernels = Kernels(archive, threads)
    got, alone = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        kernels.run()
        alone.append(kernels.nbytes / (time.perf_counter() - began) / 1e9)
        began = time.perf_counter()
        with arzstream.open(archive, jobs=threads) as opened:
            tensors = [opened.get_tensor(name) for name in opened.keys()]  # noqa: SIM118
        seconds = time.perf_counter() - began
        got.append(sum(t.numel() * t.element_size() for t in tensors) / seconds / 1e9)
        del tensors
    shares = [a / b for a, b in zip(got, alone, strict=True)]
    return {"get_tensor": statistics.median(got), "kernels": statistics.median(alone),
            "share": statistics.median(shares)}  # fmt: skip


def measure(nbytes: int, profile: str, threads: int, rounds: int) -> dict[str, Any]:
    """Pack, then measure in processes of their own."""
    import arzstream

    with tempfile.TemporaryDirectory(prefix="arz-whole-path-") as folder:
        source, archive = Path(folder) / "model.safetensors", Path(folder) / "model.arz"
        write_model(source, nbytes)
        arzstream.pack(source, archive, profile=profile, jobs=threads)
        source.unlink()
        found = {}
        for what in ("memory", "rates"):
            command = [sys.executable, "-m", "tools.bench.whole_path", "--child", what, str(archive),
                       "--threads", str(threads), "--rounds", str(rounds)]  # fmt: skip
            found |= json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"profile": profile, "threads": threads, "archive": f"profile {profile}", **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bytes", type=int, default=10**9)
    parser.add_argument("--profile", default="fast")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, archive = options.child
        read = read_all(Path(archive), options.threads) if what == "memory" else None
        print(json.dumps(read or rates(Path(archive), options.threads, options.rounds)))
        return
    found = measure(options.bytes, options.profile, options.threads, options.rounds)
    print(f"get_tensor of everything, {options.threads} threads, profile {options.profile}: {found['get_tensor']:.2f} "
          f"GB/s, {found['share']:.0%} of the kernels' {found['kernels']:.2f} GB/s; "
          f"{found['extra_bytes'] / 2**20:.0f} MiB beyond {found['bytes'] / 1e6:.0f} MB of tensors")  # fmt: skip


if __name__ == "__main__":
    main()
