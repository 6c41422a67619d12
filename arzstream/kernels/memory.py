"""Memory for results: large ones lie on huge pages, and what the caller has let go of is used again.

The first write to a fresh 4 KiB page costs about as much as decoding it. A page of 2 MiB costs a fifth of that for the
same bytes, and memory that was written before costs nothing; see docs/performance.md.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from typing import Any

import numpy as np

__all__ = ["HUGE_BYTES", "PAYLOADS", "SLAB_BYTES", "Payloads", "Results", "Scratch"]

HUGE_BYTES = 2 << 20
IDLE_BYTES = 128 << 20
"""How much of what callers let go of is kept for the next results, until the archive is closed."""
SCRATCH_BYTES = 16 << 20
"""A thread keeps its buffers up to this length; longer ones, which few archives need, come and go."""
SLAB_BYTES = 8 << 20
"""What payloads are cut from: several of them, and the room that the last one turns out not to need."""


class Results:
    """Arrays that their users own: when the last reference to one goes, its memory comes back here.

    Thread-safe without a lock, because memory comes back from ``__del__``, which may run anywhere.
    """

    def __init__(self, idle_bytes: int = IDLE_BYTES) -> None:
        self._idle: dict[int, np.ndarray] = {}
        self._most = idle_bytes
        self._open = True

    def empty(self, nbytes: int) -> np.ndarray:
        """Shape (nbytes,), dtype uint8, not initialised."""
        if nbytes < HUGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
            return np.empty(nbytes, np.uint8)
        length = -(-nbytes // HUGE_BYTES) * HUGE_BYTES
        memory = self._take(length)
        if memory is None:
            memory = _mapped(nbytes, length)
        if memory is None:
            return np.empty(nbytes, np.uint8)
        return np.asarray(_Block(self, memory, nbytes))

    def trim(self) -> None:
        """Let go of what is kept."""
        self._idle.clear()

    def close(self) -> None:
        """Let go of what is kept; what comes back from now on is let go of at once."""
        self._open = False
        self.trim()

    def _take(self, length: int) -> np.ndarray | None:
        for address in reversed(list(self._idle)):  # what came back last may still be in a cache
            memory = self._idle.get(address)
            if memory is not None and len(memory) == length and self._idle.pop(address, None) is not None:
                return memory
        return None

    def give_back(self, address: int, memory: np.ndarray) -> None:
        if not self._open:
            return
        self._idle[address] = memory
        while sum(map(len, list(self._idle.values()))) > self._most:
            for address in list(self._idle)[:1]:
                self._idle.pop(address, None)


class _Block:
    """Owns the memory of one result on behalf of the arrays and tensors that are views of it."""

    def __init__(self, results: Results, memory: np.ndarray, nbytes: int) -> None:
        self._results, self._memory, self._address = results, memory, int(memory.ctypes.data)
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (self._address, False),
        }

    def __del__(self) -> None:
        self._results.give_back(self._address, self._memory)


def _mapped(nbytes: int, length: int) -> np.ndarray | None:
    """``length`` bytes from a multiple of 2 MiB on, of which whole huge pages below ``nbytes`` are asked for as such.

    The rest is left in small pages, so that no result holds more memory than its length. None if the system refuses.
    """
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        mapping = mmap.mmap(-1, length + HUGE_BYTES, flags=flags)
    except (OSError, ValueError):
        return None
    start = -np.frombuffer(mapping, np.uint8).ctypes.data % HUGE_BYTES
    whole = nbytes // HUGE_BYTES * HUGE_BYTES
    with contextlib.suppress(OSError):  # a hint, which a kernel without huge pages refuses
        mapping.madvise(mmap.MADV_HUGEPAGE, start, whole)
    return np.frombuffer(mapping, np.uint8)[start : start + length]


class Scratch(threading.local):
    """Buffers that a thread uses again and again, by name, so that they stay in its cache."""

    def __init__(self) -> None:
        self._buffers: dict[str, np.ndarray] = {}

    def get(self, name: str, nbytes: int) -> memoryview:
        """``nbytes`` writable bytes, good until this thread next asks for ``name``."""
        kept = self._buffers.get(name)
        if kept is None or len(kept) < nbytes:
            kept = self._new(nbytes)
            if nbytes <= SCRATCH_BYTES:
                self._buffers[name] = kept
        return kept[:nbytes].data

    @staticmethod
    def _new(nbytes: int) -> np.ndarray:
        if nbytes <= HUGE_BYTES // 8:
            return np.empty(max(nbytes, 1 << 16), np.uint8)
        length = -(-nbytes // HUGE_BYTES) * HUGE_BYTES
        memory = _mapped(length, length) if hasattr(mmap, "MADV_HUGEPAGE") else None
        return np.empty(length, np.uint8) if memory is None else memory


class Payloads(threading.local):
    """Where encoders write, whose results are shorter than they could have been: one after the other into slabs.

    A slab is used again when the last payload in it is gone, so payloads are for those who pass them on, and not for
    keeping a few.
    """

    def __init__(self, results: Results) -> None:
        self._results = results
        self._slab = np.empty(0, np.uint8)
        self._at = 0

    def room(self, nbytes: int) -> np.ndarray:
        """Shape (nbytes,), dtype uint8, not initialised: this thread's until it calls :meth:`room` again."""
        if len(self._slab) - self._at < nbytes:
            self._slab, self._at = self._results.empty(max(nbytes, SLAB_BYTES)), 0
        return self._slab[self._at : self._at + nbytes]

    def keep(self, nbytes: int) -> np.ndarray:
        """The first ``nbytes`` of what :meth:`room` gave last, now its caller's."""
        start = self._at
        self._at = min(len(self._slab), start + nbytes + -nbytes % 64)
        return self._slab[start : start + nbytes]

    def trim(self) -> None:
        """Let go of memory that no payload is in."""
        self._results.trim()


PAYLOADS = Payloads(Results())
