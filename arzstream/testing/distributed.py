"""Checkpoints as several processes write them with torch.distributed.checkpoint, for tests and measurements.

python -m arzstream.testing.distributed DEST --ranks 2 --steps 3 --kinds dcp safetensors
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["KINDS", "write_checkpoints"]

KINDS = ("dcp", "async", "safetensors")
"""``dcp.save``, ``dcp.async_save``, and ``HuggingFaceStorageWriter`` with a file per rank (weights only)."""


def write_checkpoints(
    dest: Path,
    *,
    ranks: int = 2,
    steps: int = 1,
    kinds: Sequence[str] = KINDS,
    width: int = 64,
    dtype: str = "bfloat16",
) -> None:
    """Folders ``dcp/step-0``, ``dcp/step-1``, …, and so of each kind, below ``dest``, written by ``ranks`` real
    processes (gloo), and ``whole/step-0.safetensors``, … with the whole weights. They train a little between steps."""
    command = [sys.executable, "-m", "arzstream.testing.distributed", str(dest), "--kinds", *kinds]
    command += ["--ranks", str(ranks), "--steps", str(steps), "--width", str(width), "--dtype", dtype]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)


def _rank(rank: int, options: argparse.Namespace, meeting: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=options.ranks)
    try:
        _train(rank, options)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _train(rank: int, options: argparse.Namespace) -> None:
    import torch
    from safetensors.torch import save_file
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    torch.manual_seed(1)
    width = options.width
    model = torch.nn.Sequential(
        torch.nn.Embedding(4 * width + 3, width),
        *(torch.nn.Linear(width, width) for _ in range(3)),
        torch.nn.LayerNorm(width),
        torch.nn.Linear(width, 4 * width + 3),
    ).to(getattr(torch, options.dtype))
    fully_shard(model, mesh=init_device_mesh("cpu", (options.ranks,)))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(options.steps):
        for _ in range(3):
            optimiser.zero_grad()
            tokens = torch.randint(0, 4 * width, (16,))
            model(tokens).float().square().mean().backward()
            optimiser.step()
        for kind in options.kinds:
            _save(model, optimiser, step, kind, options)
        whole = {
            name: value.full_tensor() if isinstance(value, DTensor) else value
            for name, value in model.state_dict().items()
        }
        if rank == 0:
            place = Path(options.dest) / "whole" / f"step-{step}.safetensors"
            place.parent.mkdir(exist_ok=True)
            save_file(whole, place)


def _save(model: Any, optimiser: Any, step: int, kind: str, options: argparse.Namespace) -> None:
    import torch
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.checkpoint.state_dict_saver import async_save, save
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    place = os.path.join(options.dest, kind, f"step-{step}")
    weights, state = get_state_dict(model, optimiser)
    columns = distribute_tensor(
        torch.arange(6.0 * 10).reshape(6, 10) + step, init_device_mesh("cpu", (options.ranks,)), [Shard(1)]
    )
    if kind == "safetensors":
        everything: dict[str, Any] = {**weights, "columns": columns}
        writer = HuggingFaceStorageWriter(
            place, save_distributed=True, fqn_to_index_mapping=dict.fromkeys(everything, 1)
        )
        save(everything, storage_writer=writer)
        return
    everything = {
        **weights,
        "columns": columns,
        "optimizer": state,
        "trainer": {"step": step, "note": "x" * (200 * step)},
    }
    if kind == "async":
        async_save(everything, checkpoint_id=place).result()  # type: ignore[union-attr]
    else:
        save(everything, checkpoint_id=place)


def main() -> int:
    from torch.multiprocessing.spawn import spawn

    parser = argparse.ArgumentParser(description="Write checkpoints with torch.distributed.checkpoint.")
    parser.add_argument("dest")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    options = parser.parse_args()
    os.makedirs(options.dest, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        meeting = os.path.join(scratch, "meeting")
        spawn(_rank, (options, meeting), nprocs=options.ranks)  # type: ignore[no-untyped-call]
    return 0


if __name__ == "__main__":
    sys.exit(main())
