"""GGUF files beside general compressors: ``python -m tools.measure.quantised [NAME...]``.

SmolLM2-135M as it is published (Q4_1), and all-MiniLM-L6-v2 as Q8_0 and as Q4_K: real weights from packages that
tools/bench/install installs, Q8_0 by the gguf package, Q4_K by rounding to the nearest code (llama.cpp searches longer
for scales; tensors are seen as rows of 1536, since its own are no whole number of blocks).

For each it prints size and speed, in seconds of processor time on one core, of packing and unpacking as a user does it
(digests, proof and files included), of the codec alone, and of zstd -19 and xz -9 in memory.
"""

from __future__ import annotations

import argparse
import lzma
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import numpy.typing as npt
import zstandard

import arzstream
from arzstream.archive.filejob import FileJob
from arzstream.archive.plan import units_of
from arzstream.archive.references import context
from arzstream.codec.best import encode_best
from arzstream.codec.registry import get
from arzstream.formats.detect import parser_for
from arzstream.store.ranges import open_reader
from tools.bench.weights import minilm, smollm
from tools.measure.checks import Checks

Array = npt.NDArray[Any]
TIMES_FASTER = 20
SCALES = 63
"""Largest code of a scale in a block of Q4_K."""


def q4_k(values: Array) -> Array:
    """uint8 (rows, bytes) of Q4_K blocks: 8 times 32 codes of 4 bits, a 6-bit scale and minimum for each 32, and two
    fp16 numbers that these are multiples of."""
    x = values.reshape(-1, 8, 32).astype(np.float32)
    low = np.minimum(x.min(axis=2), 0)
    scale = (x.max(axis=2) - low) / 15
    d, m = (scale.max(axis=1) / SCALES).astype("<f2"), ((-low).max(axis=1) / SCALES).astype("<f2")
    scales = np.rint(scale / np.maximum(d.astype(np.float32), 1e-9)[:, None]).clip(0, SCALES).astype(np.uint8)
    lows = np.rint(-low / np.maximum(m.astype(np.float32), 1e-9)[:, None]).clip(0, SCALES).astype(np.uint8)
    step = np.maximum(d.astype(np.float32)[:, None] * scales, 1e-9)[:, :, None]
    codes = np.rint((x + (m.astype(np.float32)[:, None] * lows)[:, :, None]) / step).clip(0, 15).astype(np.uint8)
    first = scales[:, :4] & 63 | (scales[:, 4:] >> 4) << 6
    second = lows[:, :4] & 63 | (lows[:, 4:] >> 4) << 6
    third = scales[:, 4:] & 15 | (lows[:, 4:] & 15) << 4
    pairs = codes.reshape(-1, 4, 2, 32)
    packed = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    heads = [part[:, None].view(np.uint8).reshape(-1, 2) for part in (d, m)]
    return np.concatenate([*heads, first, second, third, packed], axis=1).reshape(len(values), -1)


def write(path: Path, kind: gguf.GGMLQuantizationType) -> None:
    """MiniLM's matrices as ``kind``, the rest as fp32."""
    writer = gguf.GGUFWriter(path, "bert")
    for name, tensor in minilm().items():
        floats = np.ascontiguousarray(tensor)
        if floats.dtype.kind != "f" or floats.ndim != 2 or floats.size % 1536:
            writer.add_tensor(name, floats)
        elif kind == gguf.GGMLQuantizationType.Q4_K:
            writer.add_tensor(name, q4_k(floats.reshape(-1, 1536).astype(np.float32)), raw_dtype=kind)
        else:
            writer.add_tensor(name, gguf.quants.quantize(floats.astype(np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


FILES: dict[str, Callable[[Path], None]] = {
    "smollm2-q4_1": smollm,
    "minilm-q8_0": lambda path: write(path, gguf.GGMLQuantizationType.Q8_0),
    "minilm-q4_k": lambda path: write(path, gguf.GGMLQuantizationType.Q4_K),
}


class Measured(NamedTuple):
    """Bytes left, and seconds of processor time there and back."""

    nbytes: int
    encode: float
    decode: float


def clocked(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.process_time()
    result = work()
    return result, time.process_time() - began


def whole(path: Path, folder: Path) -> Measured:
    """Packing and unpacking with one thread. SystemExit if a byte differs."""
    summary, encode = clocked(lambda: arzstream.pack(path, folder / "x.arz", jobs=1))
    _, decode = clocked(lambda: arzstream.unpack(folder / "x.arz", folder / "back"))
    if (folder / "back" / path.name).read_bytes() != path.read_bytes():
        raise SystemExit(f"{path.name} does not come back")
    return Measured(summary.bytes_out, encode, decode)


def codec(path: Path) -> Measured:
    """The choice of codec and the codecs alone, chunk by chunk."""
    total, encode, decode = 0, 0.0, 0.0
    with open_reader(path) as source:
        job = FileJob(path.name.encode(), source, parser_for(path.name))
        layout = job.look(source.size, final=True)
        for planned, _ in units_of(layout.storages, ""):
            for chunk in range(planned.unit.chunk_count):
                data, ctx = memoryview(planned.read_chunk(job.read, chunk)), context(planned.unit, chunk)
                (number, payload), seconds = clocked(lambda data=data, ctx=ctx: encode_best(data, ctx))
                encode += seconds
                out, view = bytearray(len(data)), memoryview(payload).toreadonly()
                decode += clocked(lambda n=number, v=view, o=out, c=ctx: get(n).decode(v, memoryview(o), c))[1]
                total += len(payload)
        job.memory.close()
    return Measured(total, encode, decode)


def general(data: bytes, compress: Callable[[bytes], bytes], decompress: Callable[[bytes], bytes]) -> Measured:
    packed, encode = clocked(lambda: compress(data))
    back, decode = clocked(lambda: decompress(packed))
    assert back == data
    return Measured(len(packed), encode, decode)


def one(name: str, check: Checks) -> None:
    with tempfile.TemporaryDirectory(prefix="arz-quantised-") as base:
        path = Path(base) / f"{name}.gguf"
        FILES[name](path)
        data = path.read_bytes()
        print(f"{name}: {len(data) / 1e6:.1f} MB", flush=True)
        warm = Path(base) / "warm"
        warm.mkdir()
        whole(path, warm)
        found = {"arzstream": whole(path, Path(base)), "its codecs": codec(path)}
        report(found, len(data))
        others = {
            "zstd -19": general(data, zstandard.ZstdCompressor(level=19).compress, zstandard.decompress),
            "xz -9": general(data, lambda d: lzma.compress(d, preset=9), lzma.decompress),
        }
        report(others, len(data))
        mine = found["arzstream"]
        for other, measured in others.items():
            check(
                mine.nbytes < measured.nbytes, f"{name}: {1 - mine.nbytes / measured.nbytes:.2%} smaller than {other}"
            )
            times = measured.encode / mine.encode
            check(times >= TIMES_FASTER, f"{name}: {times:.0f} × as fast as {other}")


def report(found: dict[str, Measured], size: int) -> None:
    for name, (nbytes, encode, decode) in found.items():
        speeds = f"{size / encode / 1e6:9.1f} MB/s in {size / decode / 1e6:9.1f} MB/s out"
        print(f"  {name:12} {nbytes:12,} bytes {nbytes / size:8.2%} {speeds}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("only", nargs="*", metavar="NAME", help=f"of {', '.join(FILES)}")
    args = parser.parse_args()
    check = Checks()
    for name in args.only or FILES:
        one(name, check)
    return check.status()


if __name__ == "__main__":
    sys.exit(main())
