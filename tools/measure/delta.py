"""Checkpoints of a training run, each given what came before: ``python -m tools.measure.delta``.

Trains the demo's GPT on Python source (``--folder`` keeps its checkpoints, and one that has them is not trained again),
then at a learning rate at which about a hundredth of the bf16 weights change between checkpoints. For each pair it
prints what is left of the newer one: by XOR with the older one, byte planes and zstd -3; by the best codec alone; by
``delta_ctx`` given the parent, and given parent and grandparent; all tensors, everything included.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import zstandard
from safetensors.torch import load_file, save_file

from arzstream.codec.base import ChunkContext
from arzstream.codec.best import encode_best
from arzstream.codec.dtypes import DTYPES
from arzstream.codec.registry import get
from tools.demo.gpt import Config, Trainer

CHUNK_ELEMENTS = 1 << 20
NAMES = {torch.bfloat16: "BF16", torch.float32: "F32"}
Tensors = dict[str, torch.Tensor]


class Pair(NamedTuple):
    """Names of checkpoints: the newer one, its parent, its grandparent."""

    title: str
    new: str
    parent: str
    grandparent: str


def pairs(last: int) -> list[Pair]:
    def at(step: int, suffix: str = "") -> str:
        return f"step-{step:04}{suffix}"

    return [
        Pair("bf16, 10 steps apart", at(last), at(last - 10), at(last - 20)),
        Pair("bf16, 50 steps apart", at(last), at(last - 50), at(last - 100)),
        Pair("bf16, low learning rate", "slow-3", "slow-2", "slow-1"),
        Pair("fp32, 10 steps apart", at(last, "-f32"), at(last - 10, "-f32"), at(last - 20, "-f32")),
    ]


def train(folder: Path, config: Config, batch: int, last: int, rate: float, slow_rate: float) -> None:
    """Write the checkpoints that :func:`pairs` names."""
    trainer = Trainer(config, batch=batch)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    print(f"training a GPT of {parameters / 1e6:.1f} M parameters for {last} steps of {batch} windows", flush=True)

    def save(name: str) -> None:
        state = trainer.model.state_dict()
        save_file({k: v.bfloat16() for k, v in state.items()}, folder / f"{name}.safetensors")
        if name.startswith("step") and trainer.step >= last - 20:
            save_file({k: v.clone() for k, v in state.items()}, folder / f"{name}-f32.safetensors")

    def set_rate(value: float) -> None:
        trainer.scheduler.base_lrs = [value for _ in trainer.scheduler.base_lrs]

    set_rate(rate)
    while trainer.step < last:
        loss = trainer.train(10)
        if last - trainer.step in (0, 10, 20, 50, 100):
            print(f"step {trainer.step}, loss {loss:.3f}", flush=True)
            save(f"step-{trainer.step:04}")
    set_rate(slow_rate)
    for k in (1, 2, 3):
        trainer.train(3)
        save(f"slow-{k}")


def chunks(tensors: list[torch.Tensor]) -> Iterator[tuple[ChunkContext, memoryview]]:
    """Chunks of the first tensor as the packer cuts them, with the others as references."""
    new = tensors[0]
    rows, cols = new.shape if new.dim() == 2 else (1, new.numel())
    step = max(1, CHUNK_ELEMENTS // max(1, cols))
    parts = [np.frombuffer(t.contiguous().flatten().view(torch.uint8).numpy().tobytes(), np.uint8) for t in tensors]
    row_bytes = cols * new.element_size()
    for row in range(0, rows, step):
        n = min(step, rows - row)
        data, *references = (memoryview(p[row * row_bytes : (row + n) * row_bytes].tobytes()) for p in parts)
        yield ChunkContext(DTYPES[NAMES[new.dtype]], n, cols, tuple(references)), data


@dataclasses.dataclass
class Total:
    """Bytes before and after, and seconds of the processor."""

    raw: int = 0
    packed: int = 0
    encoding: float = 0.0
    decoding: float = 0.0

    def add(self, ctx: ChunkContext, data: memoryview, profile: str) -> None:
        began = time.process_time()
        codec, payload = encode_best(data, ctx, profile)
        packed = time.process_time()
        out = bytearray(len(data))
        get(codec).decode(memoryview(payload), memoryview(out), ctx)
        done = time.process_time()
        if out != data:
            raise SystemExit("a chunk does not decode to what was encoded")
        self.raw += len(data)
        self.packed += len(payload)
        self.encoding += packed - began
        self.decoding += done - packed

    @property
    def share(self) -> float:
        return self.packed / self.raw


def xor_planes(data: memoryview, parent: memoryview, size: int) -> int:
    """Bytes of XOR, byte planes and zstd -3."""
    changed = (np.frombuffer(data, np.uint8) ^ np.frombuffer(parent, np.uint8)).reshape(-1, size)
    packer = zstandard.ZstdCompressor(3)
    return sum(len(packer.compress(changed[:, j].tobytes())) for j in range(size))


def map_entropy(data: list[memoryview], parents: list[memoryview], size: int) -> tuple[float, float]:
    """(share that changed, bits per weight of the map of changes and of the changes' XORs, each at order 0)."""
    new, old = (np.concatenate([np.frombuffer(m, f"<u{size}") for m in side]) for side in (data, parents))
    xors = (new ^ old)[new != old]
    share = len(xors) / len(new)
    values = np.unique(xors, return_counts=True)[1] / max(1, len(xors))
    map_bits = sum(-p * np.log2(p) for p in (share, 1 - share) if p)
    return share, float(map_bits - share * (values @ np.log2(values)))


def measure(pair: Pair, folder: Path, profile: str) -> None:
    new, parent, grandparent = (load_file(folder / f"{name}.safetensors") for name in pair[1:])
    alone, one, two, xor = Total(), Total(), Total(), 0
    data, parents, size = [], [], 0
    for name in new:
        for ctx, chunk in chunks([new[name], parent[name], grandparent[name]]):
            size = ctx.dtype.itemsize
            alone.add(dataclasses.replace(ctx, references=()), chunk, profile)
            one.add(dataclasses.replace(ctx, references=ctx.references[:1]), chunk, profile)
            two.add(ctx, chunk, profile)
            xor += xor_planes(chunk, ctx.references[0], size)
            data.append(chunk)
            parents.append(ctx.references[0])
    share, entropy = map_entropy(data, parents, size)
    print(f"\n{pair.title} ({pair.parent} -> {pair.new}): {share:.1%} of {one.raw // size:,} elements changed")
    print(f"  {'XOR, byte planes, zstd -3':28}{xor / one.raw:8.2%}{xor / one.raw * 8 * size:9.4f} bits each")
    print(f"  {'map and XORs, order 0':28}{entropy / 8 / size:8.2%}{entropy:9.4f} bits each")
    for title, total in (("alone", alone), ("given the parent", one), ("given the grandparent too", two)):
        speeds = (
            f"encoded at {total.raw / total.encoding / 1e9:.3f}, decoded at {total.raw / total.decoding / 1e9:.3f} GB/s"
        )
        bits = total.share * 8 * size
        print(
            f"  {title:28}{total.share:8.2%}{bits:9.4f} bits each{total.packed / xor:7.3f} of XOR   {speeds}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, help="where the checkpoints are, or are kept (a temporary folder)")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--rate", type=float, default=6e-4, help="learning rate")
    parser.add_argument("--slow-rate", type=float, default=3e-7, help="learning rate at which little changes")
    parser.add_argument("--profile", default="balanced")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        wanted = pairs(args.steps)
        if not all((folder / f"{name}.safetensors").exists() for pair in wanted for name in pair[1:]):
            config = Config(layers=args.layers, width=args.width, heads=args.width // 64)
            train(folder, config, args.batch, args.steps, args.rate, args.slow_rate)
        for pair in wanted:
            measure(pair, folder, args.profile)


if __name__ == "__main__":
    main()
