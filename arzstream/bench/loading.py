"""What loading from a store gains: its measured rate, raw and compressed, with decoding while it transfers."""

from __future__ import annotations

import dataclasses
import os
import time
from concurrent.futures import ThreadPoolExecutor

from arzstream.errors import StorageError
from arzstream.store.ranges import LocalReader, open_reader

__all__ = ["StoreRate", "load_seconds", "store_rate"]

RANGE_BYTES = 8 << 20
MOST_BYTES = 256 << 20
MOST_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class StoreRate:
    """GB/s over ``nbytes`` read in ``requests`` ranges at a time; ``first`` is the seconds until a first byte came."""

    name: str
    gb_per_s: float
    nbytes: int
    requests: int
    first: float


def store_rate(url: str, requests: int = 4) -> StoreRate:
    """Read ranges of the object at ``url`` (a local path or any fsspec URL) for at most five seconds or 256 MB.

    A local file is first dropped from the page cache where the system allows it. Raises StorageError.
    """
    began = time.perf_counter()
    with open_reader(url) as reader:
        size = min(reader.size, MOST_BYTES)
        if not size:
            raise StorageError(f"{reader.name}: is empty; name a file of some megabytes to measure the store with")
        if isinstance(reader, LocalReader) and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(reader.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        reader.read_at(0, 1)
        first = time.perf_counter() - began
        deadline = time.perf_counter() + MOST_SECONDS

        def one(offset: int) -> int:
            if time.perf_counter() > deadline:
                return 0
            return len(reader.read_at(offset, min(RANGE_BYTES, size - offset)))

        began = time.perf_counter()
        with ThreadPoolExecutor(requests) as pool:
            nbytes = sum(pool.map(one, range(0, size, RANGE_BYTES)))
        seconds = max(time.perf_counter() - began, 1e-9)
        return StoreRate(reader.name, nbytes / seconds / 1e9, nbytes, requests, first)


def load_seconds(nbytes: int, ratio: float, store: float, decode: float) -> tuple[float, float]:
    """(raw, compressed) seconds to load ``nbytes`` at ``store`` GB/s where decoding at ``decode`` GB/s overlaps the
    transfer: the slower of the two decides."""
    return nbytes / store / 1e9, nbytes / 1e9 * max(ratio / store, 1 / decode)
