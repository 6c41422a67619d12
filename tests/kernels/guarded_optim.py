"""Encodes and decodes codec optim_ctx in buffers that end, or begin, at pages that nobody may touch.

python guarded_optim.py PATH     0 if all went well; a kernel that reaches too far dies of a signal
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from guarded import Fence, hostile

from arzstream.kernels import api, context, optim

LOG_SEGMENT = 10
NONE = np.empty(0, np.uint8)


def exercise(kind: int, scaled: bool, count: int, rng: np.random.Generator, fence: Fence) -> None:
    """One chunk there and back, and damaged."""
    size = 4 * count
    parent, moment, square, data = (fence.copy(rng.integers(0, 256, size, np.uint8)) for _ in range(4))
    halves = fence.copy(rng.integers(0, 256, 2 * count, np.uint8)) if kind else NONE
    expected = fence.empty(size)
    api.kernels().optim_predict(parent, moment, square, np.array((0.9, -0.1, 1e-8)), expected)
    api.kernels().optim_ratios(data, square, fence.empty(count, np.uint16))
    rows, cols = (fence.copy(rng.integers(0, 100, n, np.uint8)) for n in (-(-count // 40), min(40, count)))
    base, raw = int(rng.integers(-100, 600)), 17 if scaled else int(rng.integers(0, 20))
    before = parent if scaled else NONE
    rule = (expected, before, halves, scaled, raw, kind, base, 40, rows, cols)
    symbols, cells = fence.empty(count), fence.empty(count, np.uint16)
    api.kernels().optim_count(data, *rule, symbols, cells, fence.empty(256 * optim.CELLS, np.uint32))
    classes = fence.copy((np.arange(optim.CELLS) % 5).astype(np.uint8))
    table = np.where(optim.symbol_exists(scaled, raw), 4096 // 256, 0).astype(np.uint16)
    table[1] += 4096 - table.sum()
    freqs = fence.copy(np.tile(table, 5))
    streams, symbol_bytes = context.rans_ctx_encode(symbols, classes[cells], 1 << LOG_SEGMENT, freqs.reshape(5, 256))
    raw_bytes = np.empty(-(-count >> LOG_SEGMENT), np.uint32)
    bits = int(optim.raw_lengths(scaled, raw)[symbols].sum())
    room = fence.empty(bits // 8 + len(raw_bytes))
    written = api.kernels().optim_raw(data, symbols, *rule, LOG_SEGMENT, room, raw_bytes)
    payload = np.concatenate([streams, room[:written]])
    model = (LOG_SEGMENT, classes, freqs, 0, len(streams), symbol_bytes, raw_bytes)

    def decode(damaged: np.ndarray) -> tuple[int, np.ndarray]:
        out = fence.empty(size)
        return api.kernels().optim_decode(fence.copy(damaged), *rule, *model, out), out

    for k, damaged in enumerate(hostile(payload, 0, rng)):
        status, out = decode(damaged)
        assert k or (status == 0 and np.array_equal(out, data))
    for cut in {0, len(streams) - 1, len(streams), len(payload) // 2, len(payload) - 1}:
        if cut < len(payload):
            assert decode(payload[:cut])[0] != 0


def main(path: str) -> None:
    api.set_backend(path)
    rng = np.random.default_rng(0)
    for kind, scaled in ((0, False), (1, False), (2, False), (0, True)):
        for at_end in (True, False):
            for count in (1, 3, 4, 7, 8, 9, 31, 33, 63, 65, 1023, 1024, 1025, 2047, 2049, 4100):
                exercise(kind, scaled, count, rng, Fence(at_end))


if __name__ == "__main__":
    main(sys.argv[1])
