"""Which codec a chunk is written with."""

from __future__ import annotations

from typing import Literal

from arzstream.codec.base import ChunkContext
from arzstream.codec.registry import get
from arzstream.codec.zstd import STRIDES, encode_planes

__all__ = ["PROFILES", "Profile", "encode_best"]

Profile = Literal["fast", "balanced", "max"]
PROFILES: dict[str, int] = {"fast": 1, "balanced": 3, "max": 9}
"""Zstandard level of each profile."""


def encode_best(data: memoryview, ctx: ChunkContext, profile: str = "balanced") -> tuple[int, bytes]:
    """(codec number, payload) for ``data``, never longer than ``data``. The same on every backend."""
    const = get(1).encode(data, ctx)
    if const is not None:
        return 1, const
    stride = ctx.dtype.itemsize
    packed = encode_planes(data, stride if stride in STRIDES and len(data) % stride == 0 else 1, PROFILES[profile])
    return (3, packed) if len(packed) < len(data) else (0, bytes(data))
