"""What a run of checkpoints takes as several ranks write them with torch.distributed.checkpoint, and as safetensors.

    python -m tools.measure.distributed --ranks 2 --steps 4 --width 512

The ranks are real processes (gloo, FSDP2) that train a small model with AdamW. Each folder and a safetensors
file with the same tensors, whole and of the same names, are packed as chains; the sizes of the archives are compared.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import arzstream
from arzstream.testing.distributed import write_checkpoints


def whole_file(archive: Path, dest: Path) -> Path:
    """All tensors of an archive in one safetensors file."""
    from safetensors.torch import save_file

    with arzstream.open(archive) as opened:
        save_file({name: tensor.contiguous() for name, tensor in opened.stream()}, dest)
    return dest


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        write_checkpoints(
            place, ranks=options.ranks, steps=options.steps, width=options.width, kinds=["dcp"], dtype=options.dtype
        )
        print(f"{options.ranks} ranks, width {options.width}, {options.dtype}; sizes of archives in bytes")
        print(f"{'step':>4} {'folder':>12} {'archive':>12} {'safetensors':>12} {'archive':>12} {'difference':>10}")
        before: list[Path | None] = [None, None]
        for step in range(options.steps):
            folder = place / "dcp" / f"step-{step}"
            ranks = arzstream.pack(folder, place / f"ranks-{step}.arz", parent=before[0])
            file = whole_file(place / f"ranks-{step}.arz", place / f"whole-{step}.safetensors")
            whole = arzstream.pack(file, place / f"whole-{step}.arz", parent=before[1])
            file.unlink()
            before = [place / f"ranks-{step}.arz", place / f"whole-{step}.arz"]
            sizes = f"{ranks.bytes_in:12} {ranks.bytes_out:12} {whole.bytes_in:12} {whole.bytes_out:12}"
            print(f"{step:4} {sizes} {ranks.bytes_out / whole.bytes_out - 1:10.2%}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
