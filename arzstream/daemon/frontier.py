"""How far a file has been written: bytes [0, frontier) are believed to be there.

Three kinds of writers are met. An *appender* grows the file: its size is the frontier. A writer that sets the size
first leaves a hole, and ``SEEK_HOLE`` finds where it begins. One that has the file system allocate first
(``fallocate``) leaves zeros which look like data; there the frontier is where the zeros at the end begin, found by
samples.

All of it is belief. Data written out of order, or a region written twice, is found when the file is complete:
everything is compared with the source once more. A belief that is too low costs time, never correctness.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

__all__ = ["Frontier"]

ReadAt = Callable[[int, int], bytes]

PAGE = 4096
SAMPLES = 64


class Frontier:
    """Follows one open file. Not thread-safe."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._first_size: int | None = None
        self._known = 0

    def update(self, status: os.stat_result) -> int:
        """The frontier for the file as ``status`` (a fresh ``fstat``) describes it. Falls back if the file was cut."""
        size = status.st_size
        if self._first_size is None:
            self._first_size = size
        self._known = min(self._known, size)
        grows = size != self._first_size
        end = self._before_hole(size, status)
        if end == size and not grows:
            # Never seen growing and without a hole: finished, or allocated in advance. The zeros at the end tell.
            end = self._before_zeros(end)
        self._known = max(self._known, end)
        return self._known

    def _before_hole(self, size: int, status: os.stat_result) -> int:
        """``size``, or, if there is a hole, the last block border before it: that block may be half written."""
        if not hasattr(os, "SEEK_HOLE") or size == 0:
            return size
        try:
            hole = os.lseek(self._fd, self._known, os.SEEK_HOLE)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOTSUP, errno.ENXIO):
                return size  # this file system does not tell
            raise
        if hole >= size:
            return size
        block = max(PAGE, getattr(status, "st_blksize", PAGE))
        return max(0, hole - block)

    def _before_zeros(self, end: int) -> int:
        """Where the zeros at the end of [known, ``end``) begin, by a few samples, so possibly too early."""
        if not self._zero(end - PAGE):
            return end
        low, high = self._known, end  # everything before low is data, the page before high is zeros
        step = max(PAGE, (high - low) // SAMPLES // PAGE * PAGE)
        for position in range(low + step * ((high - low) // step), low, -step):
            if not self._zero(position - PAGE):
                low, high = position, min(end, position + step)
                break
        else:
            high = min(end, low + step)
        while high - low > PAGE:
            middle = low + max(PAGE, (high - low) // 2 // PAGE * PAGE)
            if middle >= high:
                break
            if self._zero(middle - PAGE):
                high = middle
            else:
                low = middle
        return max(self._known, low - PAGE)  # the last page with data may be half written

    def _zero(self, position: int) -> bool:
        """Is the page at ``position`` all zeros?"""
        start = max(0, position)
        data = os.pread(self._fd, PAGE, start)
        return data.count(0) == len(data)
