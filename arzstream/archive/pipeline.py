"""Encoding in parallel, writing in order, with bounded memory."""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import numpy as np

from arzstream.archive.plan import Buffer, Planned, ReadAt
from arzstream.archive.references import context
from arzstream.codec import registry
from arzstream.codec.base import ChunkContext
from arzstream.codec.best import OFTEN_USED, encode_best, encode_plainly
from arzstream.codec.roles import Role
from arzstream.container.records import Member, Unit
from arzstream.container.writer import FrameWriter
from arzstream.errors import CorruptError
from arzstream.kernels.digests import Hasher, blake3_hasher, xxh3_64
from arzstream.kernels.memory import PAYLOADS, Scratch

__all__ = ["Given", "MemberDigests", "Pipeline", "Proof", "gathered"]

GATHER_BYTES = 16 << 20
_logger = logging.getLogger("arzstream.archive")


class Given(NamedTuple):
    """What a chunk may be coded with; and the XXH3-64 of chunks of other units of the archive, as their sources are,
    which must be what was coded."""

    ctx: ChunkContext
    relied: dict[tuple[Planned, int], int]
    parents: Sequence[memoryview] = ()
    """The references that are not of this archive."""


class Proof(NamedTuple):
    """A payload was decoded as soon as there was one: its XXH3-64, and that of each chunk of the archive it took."""

    payload_xxh3: int
    relied: tuple[int, ...]


class _Encoded(NamedTuple):
    data: Buffer
    xxh3: int
    codec: int
    payload: bytes | memoryview
    given: Given
    proof: Proof | None


class Pipeline:
    """A queue of things to write, of which chunks are encoded ahead by ``jobs`` threads.

    What is put in comes out at the writer in the same order. One thread puts; at most about ``memory_bytes`` of
    chunks are in flight.
    """

    def __init__(self, writer: FrameWriter, *, profile: str, jobs: int, memory_bytes: int, prove: bool = True) -> None:
        """``prove`` says to decode what has references while these are at hand, since it is too dear to decode them
        again; and what rarer codecs made, so that one that is wrong does not stop a checkpoint at its end."""
        self.writer = writer
        self._prove, self._scratch = prove, Scratch()
        self.proofs: dict[tuple[int, int], Proof] = {}
        """By unit and chunk, of what was written last."""
        self.given: Callable[[Planned, int], Given] = lambda planned, chunk: Given(context(planned.unit, chunk), {})
        """What a chunk may be coded with."""
        self.profile = profile
        self._pool = ThreadPoolExecutor(max_workers=max(1, jobs), thread_name_prefix="arz-encode")
        self._queue: collections.deque[tuple[int, Future[_Encoded] | None, Callable[[_Encoded | None], None]]] = (
            collections.deque()
        )
        self._in_flight = 0
        self._memory = memory_bytes

    @property
    def pool(self) -> ThreadPoolExecutor:
        return self._pool

    def put(self, action: Callable[[], None]) -> None:
        """Run ``action`` when everything put in before has been written."""
        self._queue.append((0, None, lambda _: action()))

    def put_chunk(self, planned: Planned, chunk: int, read_at: ReadAt, done: Callable[[Buffer], None]) -> None:
        """Read, encode and write a chunk; then ``done(decoded bytes)`` in the writing thread. ``planned.number`` is
        set by then."""
        cost = 2 * planned.unit.tile(chunk).elements * planned.unit.type.itemsize
        while self._queue and self._in_flight + cost > self._memory:
            self._step()

        def write(encoded: _Encoded | None) -> None:
            assert encoded is not None
            data, xxh3, codec, payload, given, proof = encoded
            if any(source.chunk_xxh3.get(place) != seen for (source, place), seen in given.relied.items()):
                # The source of another unit changed after that was coded; that change will be found, too.
                alone = dataclasses.replace(given.ctx, references=given.parents, role=Role.OTHER, roles=())
                codec, payload = encode_best(memoryview(data), alone, self.profile)
                proof = None
            self.proofs.pop((planned.number, chunk), None)
            if proof is not None:
                self.proofs[planned.number, chunk] = proof
            self.writer.add_chunk(planned.number, chunk, codec, payload, len(data), xxh3)
            planned.chunk_xxh3[chunk] = xxh3
            done(data)

        future = self._pool.submit(self._encode, planned, chunk, read_at)
        self._in_flight += cost
        self._queue.append((cost, future, write))
        while self._queue and (self._queue[0][1] is None or self._queue[0][1].done()):
            self._step()

    def drain(self) -> None:
        """Write everything that was put in."""
        while self._queue:
            self._step()

    def abandon(self) -> None:
        """Drop what was not written, and wait until nothing reads from a source any more."""
        futures = [future for _, future, _ in self._queue if future is not None]
        self._queue.clear()
        self._in_flight = 0
        for future in futures:
            future.cancel()
        wait([future for future in futures if not future.cancelled()])

    def set_jobs(self, jobs: int) -> None:
        """Go on with so many threads. They are new ones, which start with the calling thread's priority."""
        self.drain()
        self._pool.shutdown(wait=True)
        self._pool = ThreadPoolExecutor(max_workers=max(1, jobs), thread_name_prefix="arz-encode")

    def close(self) -> None:
        """Drop what was not written and end the threads."""
        self.abandon()
        self._pool.shutdown(wait=True, cancel_futures=True)
        PAYLOADS.trim()

    def _encode(self, planned: Planned, chunk: int, read_at: ReadAt) -> _Encoded:
        data = planned.read_chunk(read_at, chunk)
        xxh3 = xxh3_64(data)  # first: it reads forwards, as memory likes it, and leaves the data in the cache
        given = self.given(planned, chunk)
        codec, payload = encode_best(memoryview(data), given.ctx, self.profile)
        proof = None
        if self._prove and (given.ctx.references or codec not in OFTEN_USED):
            wrong = self._wrong(codec, payload, xxh3, len(data), given.ctx)
            if wrong:
                what = f"chunk {chunk} of {planned.unit.members[0].name!r}"
                _logger.warning(
                    "%s, coded with codec %d, does not decode to its source (%s): it is kept plainly; please report it",
                    what, codec, wrong,
                )  # fmt: skip
                codec, payload = encode_plainly(memoryview(data))
                if self._wrong(codec, payload, xxh3, len(data), given.ctx):
                    raise CorruptError(f"{what} does not decode to its source; the memory may be bad")
            proof = Proof(xxh3_64(payload), tuple(given.relied.values()))
        return _Encoded(data, xxh3, codec, payload, given, proof)

    def _wrong(self, codec: int, payload: bytes | memoryview, xxh3: int, nbytes: int, ctx: ChunkContext) -> str:
        """What is wrong with a payload; nothing, if it decodes to bytes with this XXH3-64."""
        decoded = self._scratch.get("proof", nbytes)
        try:
            registry.get(codec).decode(memoryview(payload).toreadonly(), decoded, ctx)
        except CorruptError as error:
            return str(error)
        return "" if xxh3_64(decoded) == xxh3 else "other bytes"

    def _step(self) -> None:
        cost, future, action = self._queue.popleft()
        self._in_flight -= cost
        action(None if future is None else future.result())


class MemberDigests:
    """BLAKE3 of each member of a unit, from its chunks as they come, in order.

    Row-major members are hashed on the fly. Chunks that are column blocks are put together to whole rows first, and a
    unit with strided members is kept until its end, because their elements lie anywhere.
    """

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self._itemsize = unit.type.itemsize
        self._position = 0
        self._blocks: list[Buffer] = []
        self._kept = bytearray() if any(m.strides is not None for m in unit.members) else None
        self._hashers: list[Hasher] = [blake3_hasher() for _ in unit.members]
        self._across = 1 if unit.grid[0] == 1 else unit.chunks_across

    def update(self, data: Buffer) -> None:
        """The next chunk's decoded bytes."""
        if self._across == 1:
            return self._take(data)
        self._blocks.append(data)
        if len(self._blocks) == self._across:
            rows = len(data) // (
                (self._unit.tile(self._across - 1).col1 - self._unit.tile(self._across - 1).col0) * self._itemsize
            )
            self._take(np.hstack([np.frombuffer(b, np.uint8).reshape(rows, -1) for b in self._blocks]).tobytes())
            self._blocks = []

    def _take(self, data: Buffer) -> None:
        start, end = self._position, self._position + len(data)
        view = memoryview(data)
        for member, hasher in zip(self._unit.members, self._hashers, strict=True):
            if member.strides is None:
                low = max(start, member.start * self._itemsize)
                high = min(end, (member.start + member.elements) * self._itemsize)
                if low < high:
                    hasher.update(view[low - start : high - start])
        if self._kept is not None:
            self._kept += data
        self._position = end

    def result(self) -> tuple[bytes, ...]:
        """One digest per member, after the last chunk."""
        for member, hasher in zip(self._unit.members, self._hashers, strict=True):
            if member.strides is not None:
                assert self._kept is not None
                for part in gathered(memoryview(self._kept), member, self._itemsize):
                    hasher.update(part)
        return tuple(hasher.digest() for hasher in self._hashers)


def gathered(unit_bytes: memoryview, member: Member, itemsize: int) -> collections.abc.Iterator[bytes]:
    """A strided member's elements in row-major order, in pieces, so that repeated elements do not fill the memory."""
    if member.elements == 0:
        return
    base = np.frombuffer(unit_bytes, f"V{itemsize}")[member.start :]
    strides = tuple(s * itemsize for s in member.strides or ())
    view = np.lib.stride_tricks.as_strided(base, member.shape, strides, writeable=False)
    yield from _pieces(view)


def _pieces(view: np.ndarray) -> collections.abc.Iterator[bytes]:
    if view.size * view.itemsize <= GATHER_BYTES or view.ndim == 0:
        yield view.tobytes()
        return
    rows = GATHER_BYTES // (view[0].size * view.itemsize)
    for start in range(0, len(view), max(1, rows)):
        if rows:
            yield view[start : start + rows].tobytes()
        else:
            yield from _pieces(view[start])
