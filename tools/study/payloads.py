"""Payloads alone: chunks cut as the packer cuts them, coded and decoded by the best codec."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import numpy as np
import torch

from arzstream.codec.base import ChunkContext
from arzstream.codec.best import encode_best
from arzstream.codec.dtypes import DTYPES
from arzstream.codec.registry import get

__all__ = ["Total", "chunks"]

CHUNK_ELEMENTS = 1 << 20
NAMES = {torch.bfloat16: "BF16", torch.float32: "F32"}


def chunks(tensors: list[torch.Tensor]) -> Iterator[tuple[ChunkContext, memoryview]]:
    """Chunks of the first tensor as the packer cuts them, with the others as references."""
    new = tensors[0]
    rows, cols = new.shape if new.dim() == 2 else (1, new.numel())
    step = max(1, CHUNK_ELEMENTS // max(1, cols))
    parts = [np.frombuffer(t.contiguous().flatten().view(torch.uint8).numpy().tobytes(), np.uint8) for t in tensors]
    row_bytes = cols * new.element_size()
    for row in range(0, rows, step):
        n = min(step, rows - row)
        data, *references = (memoryview(p[row * row_bytes : (row + n) * row_bytes].tobytes()) for p in parts)
        yield ChunkContext(DTYPES[NAMES[new.dtype]], n, cols, tuple(references)), data


@dataclasses.dataclass
class Total:
    """Bytes before and after, and seconds of the processor."""

    raw: int = 0
    packed: int = 0
    encoding: float = 0.0
    decoding: float = 0.0

    def add(self, ctx: ChunkContext, data: memoryview, profile: str) -> None:
        began = time.process_time()
        codec, payload = encode_best(data, ctx, profile)
        packed = time.process_time()
        out = bytearray(len(data))
        get(codec).decode(memoryview(payload), memoryview(out), ctx)
        done = time.process_time()
        if out != data:
            raise SystemExit("a chunk does not decode to what was encoded")
        self.raw += len(data)
        self.packed += len(payload)
        self.encoding += packed - began
        self.decoding += done - packed

    @property
    def share(self) -> float:
        return self.packed / self.raw
