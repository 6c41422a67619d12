"""Vectors written by the package itself: what a release writes, every later decoder reads.

They are made once and kept (``gen_vectors.py --written`` makes them anew): a better encoder or another Zstandard
may give other bytes for the same content. What is expected of them comes from the sources, not from the writer.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import unittest.mock
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

from vector_assembler import ITEM, blake3
from vector_good import noise, weights

Tensors = dict[str, tuple[str, list[int], bytes]]
FIRST_TIME = 1_600_000_000_123_456_789
VECTORS: dict[str, tuple[str, Callable[[Path], list[Tensors]], dict[str, Any]]] = {}


def safetensors(tensors: Tensors, metadata: dict[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file with the tensors in the given order."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values())


def tensor(dtype: str, shape: list[int], data: bytes | None = None, seed: int = 1) -> tuple[str, list[int], bytes]:
    count = 1
    for size in shape:
        count *= size
    data = weights(dtype, count, seed) if data is None else data
    assert len(data) == count * ITEM[dtype]
    return dtype, shape, data


def model(folder: Path) -> list[Tensors]:
    tensors: Tensors = {
        "model.embed_tokens.weight": tensor("BF16", [40, 16], seed=1),
        "model.layers.0.mlp.weight": tensor("BF16", [24, 16], seed=2),
        "model.layers.0.norm.weight": tensor("BF16", [16], b"\x80\x3f" * 16),
        "model.layers.1.mlp.weight": tensor("BF16", [24, 16], seed=3),
        "model.layers.1.norm.weight": tensor("BF16", [16], seed=4),
    }
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    (folder / "model.safetensors").write_bytes(safetensors(tensors, {"format": "pt"}))
    (folder / "config.json").write_text(
        json.dumps({"hidden_size": 16, "layers": 2, "words": "all work and no play " * 20}, indent=1)
    )
    (folder / "empty.txt").touch()
    (folder / "logs").mkdir()
    (folder / "latest").symlink_to("model.safetensors")
    return [tensors]


def mixed(folder: Path) -> list[Tensors]:
    step: Tensors = {
        "exp_avg": tensor("F32", [30, 10], seed=5),
        "exp_avg_zero": tensor("F32", [30, 10], bytes(1200)),
        "half": tensor("F16", [33, 7], seed=6),
        "double": tensor("F64", [5, 5], seed=7),
        "eight": tensor("F8_E4M3", [64], seed=8),
        "steps": tensor("I64", [20], b"".join(struct.pack("<q", 1000 + i) for i in range(20))),
        "mask": tensor("BOOL", [100], bytes([1, 0]) * 50),
        "bytes": tensor("U8", [7], noise(7)),
        "nothing": tensor("F32", [0, 4], b""),
        "scalar": tensor("F32", [], noise(4)),
    }
    (folder / "state.safetensors").write_bytes(safetensors(step))
    (folder / "sub").mkdir()
    (folder / "sub" / os.fsdecode(b"name \xff.bin")).write_bytes(noise(300))
    (folder / "sub" / "broken.safetensors").write_bytes(b"\xff" * 40)
    return [step]


def scaled(folder: Path) -> list[Tensors]:
    """Matrices whose rows have scales of their own, narrow floats in wide ones, signs that never change."""
    rows, cols = 96, 64
    wide = weights("F32", rows * cols, 9)
    scaled = bytearray(wide)
    for i in range(rows * cols):
        (value,) = struct.unpack_from("<I", wide, 4 * i)
        struct.pack_into("<I", scaled, 4 * i, value - ((i // cols * 7 % 5) << 23))
    upper = b"".join(bytes(scaled[i + 2 : i + 4]) for i in range(0, len(scaled), 4))
    padded = b"".join(bytes(2) + upper[i : i + 2] for i in range(0, len(upper), 2))
    squared = bytes(b & 0x7F if i % 4 == 3 else b for i, b in enumerate(scaled))
    tensors: Tensors = {
        "weight": tensor("BF16", [rows, cols], upper),
        "weight.wide": tensor("F32", [rows, cols], padded),
        "master": tensor("F32", [rows, cols], bytes(scaled)),
        "exp_avg_sq": tensor("F32", [rows, cols], squared),
    }
    (folder / "model.safetensors").write_bytes(safetensors(tensors))
    return [tensors]


def run(step: int) -> Callable[[Path], list[Tensors]]:
    """A matrix and a vector of a model that is trained: after ``step`` steps that go on where the one before went."""

    def make(folder: Path) -> list[Tensors]:
        rows, cols, seed = 64, 96, 12345
        values = list(struct.unpack(f"<{rows * cols}H", weights("BF16", rows * cols, 10)))
        for k in range(step):
            for i in range(len(values)):
                seed = (seed * 1103515245 + 12345) % 2**31
                size = (seed >> 16) % (3 + i // cols % 5 * 4)
                values[i] = (values[i] + (size if (i * 7 + k // 2) % 3 else -size)) % 2**16
        data = struct.pack(f"<{rows * cols}H", *values)
        tensors: Tensors = {
            "layers.0.up.weight": tensor("BF16", [rows, cols], data),
            "layers.1.up.weight": tensor("BF16", [cols, rows], data[::-1]),
            "layers.1.norm.weight": tensor("BF16", [cols], data[: 2 * cols]),
            "frozen.weight": tensor("BF16", [50, 30], seed=11),
        }
        (folder / "model.safetensors").write_bytes(safetensors(tensors))
        return [tensors]

    return make


VECTORS["good-written-model"] = (
    "Written by arzstream: BF16 weights with tied embeddings, JSON, an empty file, a folder, a link.",
    model,
    {},
)
VECTORS["good-written-max"] = ("Written by arzstream with --profile max: the same folder.", model, {"profile": "max"})
VECTORS["good-written-tiles"] = (
    "Written by arzstream with --tensor-parallel 2: the same folder.",
    model,
    {"tensor_parallel": 2},
)
VECTORS["good-written-contexts"] = (
    "Written by arzstream: matrices with scales, narrow floats in wide ones; codec float_ctx.",
    scaled,
    {},
)
VECTORS["good-written-contexts-max"] = (
    "Written by arzstream with --profile max: the same matrices.",
    scaled,
    {"profile": "max"},
)
VECTORS["good-written-fast"] = (
    "Written by arzstream with --profile fast: the same matrices; codec float_fast.",
    scaled,
    {"profile": "fast"},
)
VECTORS["good-written-mixed"] = (
    "Written by arzstream: many data types, no elements, a scalar, a path not in UTF-8, a file that does not parse.",
    mixed,
    {},
)

RUN = "good-written-run"
VECTORS[f"{RUN}-0"] = ("Written by arzstream: the first checkpoint of a run.", run(0), {})
VECTORS[f"{RUN}-1"] = (
    "Written by arzstream with --parent: the next; codec delta_ctx with a MODEL that units share, an inherited unit.",
    run(1),
    {"parents": [f"{RUN}-0"]},
)
VECTORS[f"{RUN}-2"] = (
    "Written by arzstream with --parent: the one after that, which refers to both.",
    run(2),
    {"parents": [f"{RUN}-0", f"{RUN}-1"]},
)
SHARED_FROM = 4096
"""Elements from which a model is shared in vectors, so that they stay small."""


def described(folder: Path) -> list[dict[str, Any]]:
    """The entries of ``folder`` as vectors.json has them."""
    entries = []
    for path in sorted(folder.rglob("*"), key=os.fsencode):
        status = path.lstat()
        kind = "link" if path.is_symlink() else "directory" if path.is_dir() else "file"
        content = path.read_bytes() if kind == "file" else b""
        entry = {
            "path": quote_from_bytes(os.fsencode(path.relative_to(folder))), "kind": kind,
            "mode": status.st_mode & 0o7777, "mtime": status.st_mtime_ns,
            "size": len(content), "sha256": hashlib.sha256(content).hexdigest(),
        }  # fmt: skip
        if kind == "link":
            entry["target"] = quote_from_bytes(os.fsencode(os.readlink(path)))
        entries.append(entry)
    return entries


def write(name: str, folder: Path, dest: Path) -> dict[str, Any]:
    """Make the sources in ``folder``, pack them to ``dest``; what is expected."""
    from arzstream.archive.pack import pack

    _, make, options = VECTORS[name]
    parents = [f"{parent}.arz" for parent in options.get("parents", ())]
    folder.mkdir()
    files = make(folder)
    for i, path in enumerate(sorted(folder.rglob("*"), key=os.fsencode, reverse=True)):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o640)
        os.utime(path, ns=(FIRST_TIME + i, FIRST_TIME + i), follow_symlinks=False)
    expected = {
        "tensors": sorted([n, d, s, blake3(b).hex()] for tensors in files for n, (d, s, b) in tensors.items()),
        "files": described(folder),
    }
    options = {key: value for key, value in options.items() if key != "parents"}
    parent = str(dest.parent / parents[-1]) if parents else None
    with (
        unittest.mock.patch.multiple("arzstream.archive.learning", LEAST=SHARED_FROM),
        unittest.mock.patch.multiple("arzstream.codec.delta_shared", LEAST=SHARED_FROM),
    ):
        pack([str(folder)], str(dest), parent=parent, reproducible=True, force=True, **options)
    return {**expected, "parents": parents} if parents else expected
