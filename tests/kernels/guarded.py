"""Encodes and decodes codec float_fast in buffers that end, or begin, at pages that nobody may touch.

python guarded.py PATH     0 if all went well; a kernel that reaches too far dies of a signal
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator

import numpy as np

from arzstream.kernels import api

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PROT_NONE = 0


class Fence:
    """Memory between two pages without any rights. ``at_end``: arrays end at the upper one, else begin at the lower."""

    def __init__(self, at_end: bool) -> None:
        self.at_end = at_end
        self.kept: list[mmap.mmap] = []

    def empty(self, count: int, dtype: type = np.uint8) -> np.ndarray:
        size = count * np.dtype(dtype).itemsize
        pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        region = mmap.mmap(-1, pages + 2 * mmap.PAGESIZE)
        self.kept.append(region)
        start = ctypes.addressof(ctypes.c_char.from_buffer(region))
        for page in (start, start + mmap.PAGESIZE + pages):
            if _libc.mprotect(page, mmap.PAGESIZE, PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")
        offset = mmap.PAGESIZE + (pages - size if self.at_end else 0)
        return np.frombuffer(region, dtype, count, offset) if count else np.empty(0, dtype)

    def copy(self, values: np.ndarray) -> np.ndarray:
        place = self.empty(len(values), values.dtype.type)
        place[...] = values
        return place


def chunk(bits: tuple[int, int], count: int, rng: np.random.Generator) -> np.ndarray:
    """Elements whose exponents thin out from the middle."""
    exponents = np.maximum((1 << bits[0]) // 2 - rng.geometric(0.4, count) + 1, 0)
    values = rng.integers(0, 1 << 63, count, dtype=np.uint64) % np.uint64(2 << (sum(bits)))
    values &= ~np.uint64(((1 << bits[0]) - 1) << bits[1])
    return (values | exponents.astype(np.uint64) << np.uint64(bits[1])).astype(f"<u{(1 + sum(bits)) // 8}")


def hostile(payload: np.ndarray, coded: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The payload, and the same with noise, zeros and ones in its coded streams, and with bits flipped there."""
    yield payload
    for fill in (rng.integers(0, 256, len(payload) - coded, dtype=np.uint8), np.uint8(0), np.uint8(255)):
        bad = payload.copy()
        bad[coded:] = fill
        yield bad
    for _ in range(20):
        bad = payload.copy()
        for at in rng.integers(coded, len(payload), rng.integers(1, 4)):
            bad[at] ^= 1 << rng.integers(8)
        yield bad


def exercise(
    bits: tuple[int, int], count: int, lanes: int, sizes: tuple[int, int], rng: np.random.Generator, fence: Fence
) -> None:
    """One chunk there and back, and damaged."""
    itemsize, log_segment = api.itemsize_of(bits), 10
    data = fence.copy(chunk(bits, count, rng).view(np.uint8))
    order = np.arange((1 << bits[0]) // 2 + 1)[::-1].astype(np.uint8)[: sum(sizes)]
    firsts, seconds = fence.copy(order[: sizes[0]]), fence.copy(order[sizes[0] :])
    freqs = np.full(len(firsts) + 1, 128 // (len(firsts) + 1), np.uint8)
    freqs[0] += 128 - freqs.sum()
    freqs = fence.copy(freqs)
    segments = -(-count >> log_segment)
    table = fence.empty(3 * segments, np.uint32)
    raw = api.raw_size(count, bits[1], log_segment)
    out = fence.empty(raw + count + 2 * lanes * segments + 2 * count + 64)
    scratch = fence.empty(min(count, 1 << log_segment) + 2 * lanes + 64 + 3 * count + segments)
    kernels, settings = api.kernels(), (itemsize, *bits, log_segment, lanes, firsts, seconds, freqs)
    written = kernels.float_fast_encode(data, *settings, count, out, scratch, table)
    assert written <= len(out)
    places = (0, raw, raw + int(table[::3].sum()))
    payload = out[:written].copy()
    for k, damaged in enumerate(hostile(payload, raw, rng)):
        target = fence.empty(len(data))
        status = kernels.float_fast_decode(fence.copy(damaged), *settings, *places, table, target)
        assert k or (status == 0 and np.array_equal(target, data))
    for cut in {0, raw - 1, raw, raw + 1, written // 2, written - 1}:
        kernels.float_fast_decode(fence.copy(payload[: max(0, cut)]), *settings, *places, table, fence.empty(len(data)))
    fewer = kernels.float_fast_encode(data, *settings, int(table[1::3].sum()) // 2, out, scratch, table)
    assert fewer > len(out) or fewer == written
    kernels.sample_exponents(data, itemsize, *bits, 64, 65, fence.empty(256, np.uint32))


def main(path: str) -> None:
    api.set_backend(path)
    rng = np.random.default_rng(0)
    for bits in ((8, 7), (5, 10), (8, 23), (4, 3), (5, 2)):
        for lanes in (32, 128):
            for at_end in (True, False):
                for count in (1, 2, 7, 8, 9, 31, 33, 64, 127, 128, 129, 255, 1023, 1024, 1025, 2047, 4095, 4096, 4097):
                    for sizes in ((1, 0), (3, 2), (8, 1)):
                        exercise(bits, count, lanes, sizes, rng, Fence(at_end))


if __name__ == "__main__":
    main(sys.argv[1])
