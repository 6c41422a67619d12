"""Encodes and decodes codec delta_ctx in buffers that end, or begin, at pages that nobody may touch.

python guarded_delta.py PATH     0 if all went well; a kernel that reaches too far dies of a signal
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from guarded import Fence, hostile

from arzstream.kernels import api, context, delta

TOP, PER_SEGMENT = 2, 1024


def exercise(kind: delta.Elements, count: int, references: int, rng: np.random.Generator, fence: Fence) -> None:
    """One chunk there and back, and damaged."""
    size = count * kind.itemsize
    made = [rng.integers(0, 256, size, np.uint8)]
    for shift in (3, 1, 2)[:references]:
        change = rng.integers(0, 256, size, np.uint8) >> shift
        made.append(made[-1] ^ (change * (rng.random(size) < 0.3)).astype(np.uint8))
    *known, data = (fence.copy(x) for x in made)
    known.reverse()
    rows, cols = (fence.copy(rng.integers(0, 100, n, np.uint8)) for n in (-(-count // 40), min(40, count)))
    rule = delta.Rule(40, rows, cols, int(rng.integers(-100, 600)), 2 if references > 1 else 0)
    symbols, cells = delta.delta_cells(data, known, kind, TOP, rule)
    delta.delta_fields(data, known[0], kind)
    class_of = fence.copy((np.arange(1 << delta.cell_bits(references)) % 7).astype(np.uint8))
    limit = delta.symbol_limit(kind.itemsize, TOP)
    table = np.zeros(256, np.uint16)
    table[1:limit] = (4096 - 1) // (limit - 1)
    table[1] += 4096 - table.sum()
    freqs = fence.copy(np.tile(table, 7)).reshape(7, 256)
    found = delta.delta_classes(fence.copy(cells), symbols, class_of, freqs, 0)
    assert found is not None
    streams, symbol_bytes = context.rans_ctx_encode(symbols, found[0], PER_SEGMENT, freqs)
    octaves = np.maximum((symbols.astype(np.int64) >> 1 >> TOP) - 1, 0)
    raw, raw_bytes = delta.delta_raw(data, known[0], symbols, kind, TOP, PER_SEGMENT, int(octaves.sum()))
    payload = np.concatenate([streams, raw])
    slots, halved = delta.rans_tables(freqs)
    settings = (*kind.arguments, TOP, PER_SEGMENT, *rule.arguments)
    model = (class_of, fence.copy(slots), halved, 0, len(streams), symbol_bytes, raw_bytes)

    def decode(damaged: np.ndarray) -> tuple[int, np.ndarray]:
        out = fence.empty(size)
        return api.kernels().delta_decode(fence.copy(damaged), known, *settings, *model, out), out

    for k, damaged in enumerate(hostile(payload, 0, rng)):
        status, out = decode(damaged)
        assert k or (status == 0 and np.array_equal(out, data))
    for cut in {0, len(streams) - 1, len(streams), len(payload) // 2, len(payload) - 1}:
        if cut < len(payload):
            assert decode(payload[:cut])[0] != 0


def main(path: str) -> None:
    api.set_backend(path)
    rng = np.random.default_rng(0)
    for kind in (delta.Elements(2, 8, 7), delta.Elements(4, 8, 23), delta.Elements(1, 4, 3), delta.Elements(2)):
        for at_end in (True, False):
            for count in (1, 3, 4, 7, 8, 9, 31, 33, 63, 65, 1023, 1024, 1025, 2047, 2049, 4100):
                for references in (1, 2, 3):
                    exercise(kind, count, references, rng, Fence(at_end))


if __name__ == "__main__":
    main(sys.argv[1])
