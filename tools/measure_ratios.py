"""Measure what packing saves on real checkpoints, and print it as the table that README.md shows.

    .venv/bin/python -m tools.measure_ratios

Every folder is packed, verified in depth against its digests, unpacked, and compared with the original byte for byte; a
figure is printed only then. Seconds are wall-clock time, on all cores, with whatever else the machine is doing.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import arzstream
from arzstream.kernels import api
from arzstream.testing import folders, process


class Row(NamedTuple):
    """One line of the table."""

    title: str
    make: Callable[[Path], object]


def training_checkpoint(dest: Path) -> None:
    """A GPT of 22 M parameters after 60 steps: bf16 weights, fp32 master weights and AdamW's moments."""
    from tools.demo.gpt import Config, Trainer
    from tools.demo.saving import save

    trainer = Trainer(Config(), batch=4)
    trainer.train(60)
    save(trainer, dest, rate=None)


ROWS = [
    Row("all-MiniLM-L6-v2, whole folder, bf16", lambda dest: folders.convert(dest, "BF16")),
    Row("the same, fp16", lambda dest: folders.convert(dest, "F16")),
    Row("the same, fp32", lambda dest: folders.convert(dest, "F32")),
    Row("the same, bf16, sharded by `save_pretrained`", lambda dest: folders.pretrained(dest, "BF16")),
    Row("training checkpoint: bf16 weights, fp32 master weights, AdamW", training_checkpoint),
]


def measure(row: Row, folder: Path) -> str:
    """Make the checkpoint, pack it, prove it, and return its line of the table."""
    source, archive, back = folder / "source", folder / "it.arz", folder / "back"
    row.make(source)
    began = time.monotonic()
    summary = arzstream.pack(str(source), str(archive))
    packed = time.monotonic()
    done = process.arzstream("verify", "--deep", archive, "--quiet")
    verified = time.monotonic()
    if done.returncode:
        raise SystemExit(f"{row.title}: {done.stderr.strip()}")
    arzstream.unpack(str(archive), str(back))
    if process.tree(back) != process.tree(source):
        raise SystemExit(f"{row.title}: what came back differs")
    size = summary.bytes_in / 1e6
    return (
        f"| {row.title} | {size:.1f} MB | {summary.bytes_out / 1e6:.1f} MB | {summary.ratio:.1%} "
        f"| {packed - began:.1f} s | {verified - packed:.1f} s |"
    )


def main() -> int:
    features = " ".join(api.cpu_features())
    print(f"{platform.machine()}, {os.cpu_count()} cores, {api.backend()} kernels ({features})\n")
    print("| what | original | archive | ratio | pack | verify |\n|---|---|---|---|---|---|")
    for row in ROWS:
        with tempfile.TemporaryDirectory() as folder:
            print(measure(row, Path(folder)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
