"""Tensors that look like a trained model's, the same ones on every machine, without torch.

A weight matrix is Gaussian with a scale per row and per column, as trained matrices are: that is what makes the
exponents of bf16 and fp32 compress and their mantissas not. Names and shapes are those of the Llama and GPT-2
families.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "Tensor",
    "gaussian",
    "model",
    "optimizer",
    "safetensors_bytes",
    "safetensors_header",
    "tensor_bytes",
    "to_bits",
    "trained",
]

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A named tensor as it lies in a file: ``data`` is little-endian and row-major, ``dtype`` a safetensors name."""

    name: str
    dtype: str
    shape: Shape
    data: bytes

    @property
    def nbytes(self) -> int:
        return len(self.data)


def to_bits(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any]:
    """fp32 values in another float format; bf16 (round to nearest even) and fp8 e4m3 (truncated) come as unsigned
    integers."""
    if dtype == "F32":
        return values.astype("<f4")
    if dtype == "F64":
        return values.astype("<f8")
    if dtype == "F16":
        return values.astype("<f2")
    bits = np.ascontiguousarray(values, "<f4").view("<u4")
    if dtype == "BF16":
        rounded: npt.NDArray[Any] = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return rounded.astype("<u2")
    if dtype == "F8_E4M3":
        exponent = ((bits >> 23) & 0xFF).astype(np.int64) - 127 + 7
        code = (np.clip(exponent, 0, 15) << 3) | ((bits >> 20) & 7).astype(np.int64)
        code = np.where(exponent < 1, 0, np.minimum(code, 0x7E))
        return (code | ((bits >> 24) & 0x80).astype(np.int64)).astype(np.uint8)
    raise ValueError(f"no conversion from fp32 to {dtype}")


def gaussian(shape: Shape, dtype: str, rng: np.random.Generator, scale: float = 0.02) -> bytes:
    """Elements of a weight: N(0, scale²), times a log-normal factor per row and one per column."""
    values = rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
    if len(shape) >= 2:
        tail = (1,) * (len(shape) - 2)
        values *= np.exp(0.3 * rng.standard_normal((shape[0], 1, *tail), dtype=np.float32))
        values *= np.exp(0.15 * rng.standard_normal((1, shape[1], *tail), dtype=np.float32))
    return to_bits(values, dtype).tobytes()


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.nbytes for t in tensors)


def _llama(layers: int, width: int, vocabulary: int) -> Iterator[tuple[str, Shape, str]]:
    hidden, heads = width * 8 // 3 // 8 * 8, max(width // 4, 1)
    yield "model.embed_tokens.weight", (vocabulary, width), "matrix"
    for i in range(layers):
        at = f"model.layers.{i}."
        yield at + "input_layernorm.weight", (width,), "norm"
        yield at + "mlp.down_proj.weight", (width, hidden), "matrix"
        yield at + "mlp.gate_proj.weight", (hidden, width), "matrix"
        yield at + "mlp.up_proj.weight", (hidden, width), "matrix"
        yield at + "post_attention_layernorm.weight", (width,), "norm"
        yield at + "self_attn.k_proj.weight", (heads, width), "matrix"
        yield at + "self_attn.o_proj.weight", (width, width), "matrix"
        yield at + "self_attn.q_proj.weight", (width, width), "matrix"
        yield at + "self_attn.v_proj.weight", (heads, width), "matrix"
    yield "model.norm.weight", (width,), "norm"
    yield "lm_head.weight", (vocabulary, width), "matrix"


def _gpt2(layers: int, width: int, vocabulary: int) -> Iterator[tuple[str, Shape, str]]:
    yield "transformer.wte.weight", (vocabulary, width), "matrix"
    yield "transformer.wpe.weight", (128, width), "matrix"
    for i in range(layers):
        at = f"transformer.h.{i}."
        yield at + "attn.bias", (1, 1, 128, 128), "mask"
        yield at + "attn.c_attn.bias", (3 * width,), "bias"
        yield at + "attn.c_attn.weight", (width, 3 * width), "matrix"
        yield at + "attn.c_proj.bias", (width,), "bias"
        yield at + "attn.c_proj.weight", (width, width), "matrix"
        yield at + "ln_1.bias", (width,), "bias"
        yield at + "ln_1.weight", (width,), "norm"
        yield at + "ln_2.bias", (width,), "bias"
        yield at + "ln_2.weight", (width,), "norm"
        yield at + "mlp.c_fc.bias", (4 * width,), "bias"
        yield at + "mlp.c_fc.weight", (width, 4 * width), "matrix"
        yield at + "mlp.c_proj.bias", (width,), "bias"
        yield at + "mlp.c_proj.weight", (4 * width, width), "matrix"
    yield "transformer.ln_f.bias", (width,), "bias"
    yield "transformer.ln_f.weight", (width,), "norm"
    yield "position_ids", (1, 128), "position"


def _fill(name: str, shape: Shape, kind: str, dtype: str, rng: np.random.Generator) -> Tensor:
    if kind == "matrix":
        return Tensor(name, dtype, shape, gaussian(shape, dtype, rng))
    if kind == "norm":
        return Tensor(
            name, dtype, shape, to_bits(1 + 0.1 * rng.standard_normal(shape, dtype=np.float32), dtype).tobytes()
        )
    if kind == "bias":
        return Tensor(name, dtype, shape, gaussian(shape, dtype, rng, 0.1))
    if kind == "mask":
        return Tensor(name, "BOOL", shape, np.tril(np.ones(shape, np.uint8)).tobytes())
    return Tensor(name, "I64", shape, np.broadcast_to(np.arange(shape[-1], dtype="<i8"), shape).tobytes())


def model(
    family: str = "llama",
    *,
    layers: int = 4,
    width: int = 128,
    vocabulary: int = 512,
    dtype: str = "BF16",
    seed: int = 0,
) -> list[Tensor]:
    """The tensors of a small ``llama`` or ``gpt2``, in the family's own order; ``dtype`` is that of the floats."""
    shapes = {"llama": _llama, "gpt2": _gpt2}[family](layers, width, vocabulary)
    rng = np.random.default_rng(seed)
    return [_fill(name, shape, kind, dtype, rng) for name, shape, kind in shapes]


def trained(weights: Sequence[Tensor], steps: int = 1, *, share: float = 0.05, seed: int = 0) -> list[Tensor]:
    """The same weights ``steps`` checkpoints later: each time a ``share`` of the floats of 16 bits has moved to the
    next pattern. ``seed`` tells runs apart."""
    out = []
    for number, tensor in enumerate(weights):
        if tensor.dtype in ("BF16", "F16"):
            bits = np.frombuffer(tensor.data, "<u2").copy()
            for step in range(steps):
                bits += np.random.default_rng([seed, step, number]).random(bits.shape) < share
            out.append(dataclasses.replace(tensor, data=bits.tobytes()))
        else:
            out.append(tensor)
    return out


def optimizer(weights: Sequence[Tensor], *, seed: int = 0) -> list[Tensor]:
    """AdamW's two fp32 moments of every float tensor of ``weights``, and its step counters."""
    rng = np.random.default_rng([seed, 1])
    out = []
    for i, weight in enumerate(t for t in weights if t.dtype in ("BF16", "F16", "F32")):
        out.append(Tensor(f"state.{i}.step", "F32", (), np.float32(1000).tobytes()))
        first = np.frombuffer(gaussian(weight.shape, "F32", rng, 1e-4), "<f4")
        noise = rng.standard_normal(first.shape, dtype=np.float32) * np.float32(1e-4)
        out.append(Tensor(f"state.{i}.exp_avg", "F32", weight.shape, first.tobytes()))
        out.append(Tensor(f"state.{i}.exp_avg_sq", "F32", weight.shape, (first * first + noise * noise).tobytes()))
    return out


_ITEM = {"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


def safetensors_header(tensors: Iterable[Tensor], metadata: dict[str, str] | None = None) -> tuple[bytes, list[Tensor]]:
    """The header, its length field included, and the tensors in the order of the file: as the safetensors library does
    it, widest dtype first, then by name, the header padded with spaces to a multiple of eight bytes."""
    ordered = sorted(tensors, key=lambda t: (-_ITEM.get(t.dtype, 1), t.name))
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for t in ordered:
        header[t.name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [offset, offset + t.nbytes]}
        offset += t.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, ordered


def safetensors_bytes(tensors: Iterable[Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """A whole .safetensors file."""
    header, ordered = safetensors_header(tensors, metadata)
    return header + b"".join(t.data for t in ordered)
