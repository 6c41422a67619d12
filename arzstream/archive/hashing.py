"""Comparing a finished source with what was coded of it, in one pass over its bytes.

SHA-256 is ten times slower than everything else here, so it runs ahead while a file lands
(:class:`PrefixHash`); the final pass compares the blocks it has seen by their XXH3-64 and hashes only the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import xxhash

from arzstream.archive.plan import Buffer, Planned, ReadAt
from arzstream.kernels.digests import xxh3_64

__all__ = ["PrefixHash", "compare_source"]

BLOCK_BYTES = 4 << 20
Changed = list[tuple[Planned, list[int]]]


class PrefixHash:
    """SHA-256 of the first blocks of a file, with the XXH3-64 of each block that went into it."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._blocks: list[int] = []

    def advance(self, read: ReadAt, frontier: int) -> None:
        """Hash the whole blocks that now lie behind ``frontier``."""
        while (len(self._blocks) + 1) * BLOCK_BYTES <= frontier:
            data = read(len(self._blocks) * BLOCK_BYTES, BLOCK_BYTES)
            self._sha256.update(data)
            self._blocks.append(xxh3_64(data))

    def forget(self) -> None:
        """What was hashed is not what the file holds: start again."""
        self._sha256, self._blocks = hashlib.sha256(), []

    def complete(self) -> _WholeHash:
        """Goes on from here over the whole file, without changing this object."""
        return _WholeHash(self._sha256.copy(), self._blocks)


class _WholeHash:
    """Takes all blocks of a file in order; ``fresh`` is False once one differs from what was hashed ahead."""

    def __init__(self, sha256: hashlib._Hash, blocks: Sequence[int]) -> None:
        self._sha256, self._blocks, self._next = sha256, blocks, 0
        self.fresh = True

    def update(self, block: Buffer) -> None:
        if self._next < len(self._blocks):
            self.fresh = self.fresh and xxh3_64(block) == self._blocks[self._next]
        else:
            self._sha256.update(block)
        self._next += 1

    def digest(self) -> bytes:
        return self._sha256.digest()


class _Run:
    """Feeds a unit's bytes, in order, to the digests of its chunks; ``changed`` are the chunks that differ."""

    def __init__(self, planned: Planned) -> None:
        self.planned = planned
        self.changed: list[int] = []
        self._chunk, self._left = 0, -1
        self._hasher = xxhash.xxh3_64()

    def feed(self, data: memoryview) -> None:
        while len(data):
            if self._left < 0:
                start, end = self.planned.chunk_range(self._chunk)
                self._left = end - start
                self._hasher.reset()
            part = data[: self._left]
            self._hasher.update(part)
            self._left -= len(part)
            data = data[len(part) :]
            if self._left == 0:
                if self._hasher.intdigest() != self.planned.chunk_xxh3.get(self._chunk):
                    self.changed.append(self._chunk)
                self._chunk, self._left = self._chunk + 1, -1


def compare_source(
    read: ReadAt, size: int, prefix: PrefixHash, units: Sequence[Planned], literals: Mapping[int, bytes]
) -> tuple[Changed, bytes | None]:
    """Compare a file of ``size`` bytes with its ``units`` and with ``literals``, its bytes by offset.

    Returns the units of which chunks changed, with the chunks' numbers, and the SHA-256 of the file: None if a
    literal, or what ``prefix`` hashed ahead, is not what the file holds now (the prefix then starts again; ask again).
    """
    runs = [_Run(planned) for planned in units if planned.contiguous]
    whole = prefix.complete()
    same = True
    spans = _spans(runs, literals)
    span = next(spans, None)
    for start in range(0, size, BLOCK_BYTES):
        block = read(start, min(BLOCK_BYTES, size - start))
        whole.update(block)
        view, end = memoryview(block), start + len(block)
        while span is not None and span[0] < end:
            offset, stop, owner = span
            part = view[max(offset, start) - start : min(stop, end) - start]
            if isinstance(owner, _Run):
                owner.feed(part)
            else:
                same = same and part == memoryview(owner)[max(offset, start) - offset :][: len(part)]
            if stop > end:
                break
            span = next(spans, None)
    changed = [(run.planned, run.changed) for run in runs if run.changed]
    changed += _changed_blocks(read, [planned for planned in units if not planned.contiguous])
    if not whole.fresh:
        prefix.forget()
    return changed, whole.digest() if whole.fresh and same else None


def _spans(runs: Sequence[_Run], literals: Mapping[int, bytes]) -> Iterator[tuple[int, int, _Run | bytes]]:
    """(offset, end, whose) of everything to compare, in file order."""
    spans: list[tuple[int, int, _Run | bytes]] = [(o, o + len(data), data) for o, data in literals.items() if data]
    spans += [(e.offset, e.offset + e.nbytes, run) for run in runs for e in run.planned.extents if e.nbytes]
    return iter(sorted(spans, key=lambda span: span[0]))


def _changed_blocks(read: ReadAt, units: Sequence[Planned]) -> Changed:
    """The same for units whose chunks are column blocks, which a pass in file order cannot follow."""
    changed = []
    for planned in units:
        bad = [k for k, xxh3 in planned.chunk_xxh3.items() if xxh3_64(planned.read_chunk(read, k)) != xxh3]
        if bad:
            changed.append((planned, bad))
    return changed
