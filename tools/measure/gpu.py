"""Loading a model onto a GPU: ``python -m tools.measure.gpu``.

Packs bf16 tensors with the shapes of a 7 B model's layers, and loads them onto the device, from the page cache: the
original by safetensors, the archive by ``arzstream.torch.load_file`` and tensor by tensor by ``arzstream.safe_open``.
Every tensor is compared on the device, bit for bit. Prints medians of GB of weights per second.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open

import arzstream
from arzstream.testing.tensors import to_bits
from tools.measure.checks import Checks

Loaded = dict[str, torch.Tensor]
SHAPES = {"q_proj": (4096, 4096), "k_proj": (1024, 4096), "gate_proj": (11008, 4096), "down_proj": (4096, 11008)}


def write(path: Path, layers: int) -> None:
    """Gaussian weights with a scale of their own for each row."""
    rng = np.random.default_rng(0)
    tensors = {}
    for layer in range(layers):
        for name, (rows, cols) in SHAPES.items():
            values = rng.standard_normal((rows, cols), dtype=np.float32) * np.float32(0.02)
            values *= np.exp(0.3 * rng.standard_normal((rows, 1), dtype=np.float32))
            bits = torch.from_numpy(to_bits(values, "BF16").view(np.int16)).view(torch.bfloat16)
            tensors[f"model.layers.{layer}.{name}.weight"] = bits.reshape(rows, cols)
    safetensors.torch.save_file(tensors, path)


def one_by_one(opener: Callable[..., object], path: Path, device: str) -> Loaded:
    with opener(path, framework="pt", device=device) as file:  # type: ignore[attr-defined]
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a file is no dict)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--layers", type=int, default=8, help="of 229 MB each")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    check = Checks()
    with tempfile.TemporaryDirectory() as folder:
        source, archive = Path(folder) / "model.safetensors", Path(folder) / "model.arz"
        write(source, args.layers)
        made = arzstream.pack(source, archive)
        size = source.stat().st_size
        print(f"{size:,} bytes of bf16, packed to {made.bytes_out / size:.1%}; loaded onto {args.device}, GB/s:")
        ways: dict[str, Callable[[], Loaded]] = {
            "safetensors.torch.load_file": lambda: safetensors.torch.load_file(source, device=args.device),
            "safetensors.safe_open": lambda: one_by_one(safe_open, source, args.device),
            "arzstream.torch.load_file": lambda: arzstream.torch.load_file(archive, device=args.device),
            "arzstream.safe_open": lambda: one_by_one(arzstream.safe_open, archive, args.device),
        }
        first = next(iter(ways.values()))()
        for title, load in ways.items():
            seconds = []
            for _ in range(args.rounds):
                began = time.perf_counter()
                loaded = load()
                torch.cuda.synchronize() if torch.cuda.is_available() else None
                seconds.append(time.perf_counter() - began)
            same = loaded.keys() == first.keys() and all(
                torch.equal(loaded[n].view(torch.int16), first[n].view(torch.int16)) for n in first
            )
            print(f"  {title:30}{size / statistics.median(seconds) / 1e9:8.2f}", flush=True)
            check(same and all(str(t.device) == str(first[n].device) for n, t in loaded.items()), f"{title}: same bits")
            del loaded
    return check.status()


if __name__ == "__main__":
    raise SystemExit(main())
