"""Optimiser state in a .pt file and in a safetensors file: ``python -m tools.measure.optimiser_formats CHECKPOINT...``.

Packs the ``.pt`` file of a checkpoint folder, with the weights beside it where there are some, and the same tensors
written as safetensors, and prints both sizes for each profile, and how they differ. Without a folder it trains the
demo's GPT for a few steps. Fails if the .pt file's archive is more than half a percent larger.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

import arzstream
from tools.demo.gpt import Config, Trainer
from tools.demo.saving import save

__all__ = ["MOST", "compare", "flat"]

MOST = 0.005
"""By how much the archive of the .pt file may be larger, as a share of the other one."""


def flat(value: object, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of nested dicts and lists, by the paths to them."""
    if isinstance(value, torch.Tensor):
        yield prefix[:-1], value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{prefix}{key}.")
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from flat(inner, f"{prefix}{i}.")


def rewritten(checkpoint: Path, folder: Path) -> int:
    """Copies a checkpoint, with safetensors files for its .pt files. Bytes of these."""
    folder.mkdir(parents=True)
    found = 0
    for file in sorted(checkpoint.iterdir()):
        if file.suffix in (".pt", ".bin", ".pth"):
            tensors = dict(flat(torch.load(file, weights_only=True)))
            save_file({name: t.contiguous() for name, t in tensors.items()}, folder / f"{file.stem}.safetensors")
            found += file.stat().st_size
        elif file.is_file():
            shutil.copy(file, folder)
    return found


def compare(checkpoint: Path, profile: str = "balanced", parent: Path | None = None) -> tuple[int, int, int]:
    """Bytes of the .pt files of ``checkpoint``, of the archive with them, and of that with safetensors files instead.
    What else the folder holds is in both archives. They are coded against ``parent``, written likewise, or alone."""
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        original = rewritten(checkpoint, scratch / "after")
        pairs = [[checkpoint], [scratch / "after"]]
        if parent is not None:
            rewritten(parent, scratch / "after-parent")
            pairs = [[parent, checkpoint], [scratch / "after-parent", scratch / "after"]]
        sizes = []
        for number, folders in enumerate(pairs):
            last: Path | None = None
            for step, folder in enumerate(folders):
                archive = scratch / f"{number}-{step}.arz"
                size = arzstream.pack(folder, archive, profile=profile, parent=last).bytes_out
                last = archive
            sizes.append(size)
        return original, sizes[0], sizes[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", nargs="*", type=Path, help="folders with .pt files (one is trained)")
    parser.add_argument("--profile", choices=("fast", "balanced", "max"), nargs="*", default=["fast", "balanced"])
    parser.add_argument("--parent", type=Path, help="the checkpoint before, which they are coded against")
    args = parser.parse_args()
    torch.set_num_threads(1)
    worst = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        folders = args.checkpoint
        if not folders:
            trainer = Trainer(Config(layers=2, width=256, heads=4), batch=2)
            trainer.train(20)
            folders = [scratch / "trained"]
            save(trainer, folders[0], None)
        print(f"{'checkpoint':16}{'profile':10}{'.pt, bytes':>14}{'archive':>14}{'as safetensors':>16}{'more':>9}")
        for folder in folders:
            for profile in args.profile:
                original, pt, safetensors = compare(folder, profile, args.parent)
                more = pt / safetensors - 1
                worst = max(worst, more)
                print(f"{folder.name:16}{profile:10}{original:14,}{pt:14,}{safetensors:16,}{more:+9.3%}", flush=True)
    return int(worst > MOST)


if __name__ == "__main__":
    sys.exit(main())
