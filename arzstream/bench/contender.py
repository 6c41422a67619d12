"""What takes part: something that codes a sample, gives it back, and is asked whether it is the same.

Times are taken around :meth:`Contender.encode` and :meth:`Contender.decode` only. What a program needs to be given
first (memory to decode into, a copy because it destroys its input) is done in :meth:`Contender.ready`, outside.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from arzstream.archive.pack import pack
from arzstream.bench.sample import U8, Sample
from arzstream.codec import registry
from arzstream.codec.base import ChunkContext, Codec
from arzstream.codec.best import encode_best
from arzstream.container.layout import ALIGNMENT, HEADER_BYTES
from arzstream.errors import CorruptError
from arzstream.kernels.digests import xxh3_64
from arzstream.kernels.memory import Results

__all__ = ["BufferContender", "Contender", "Item", "Memcpy", "Profile", "SingleCodec", "codec_called"]

STALE = 0xA5
"""What memory is filled with before something is decoded into it, so that nothing old passes for a result."""

T = TypeVar("T")
R = TypeVar("R")


class Contender:
    """``settings`` say how it is used, in its own words."""

    settings = ""
    stored = 0
    """Bytes that stand for the sample, all of its overhead included; known after ``encode``."""

    def load(self, sample: Sample, threads: int) -> None:
        """Get to know the sample, and that at most ``threads`` threads will be asked for."""
        raise NotImplementedError

    def ready(self) -> None:
        """Whatever has to be done before each ``encode`` and is not part of it."""

    def encode(self, threads: int) -> None:
        raise NotImplementedError

    def decode(self, threads: int) -> None:
        """Decode what was encoded last."""
        raise NotImplementedError

    def wrong(self) -> str:
        """What is not as it was, after ``decode``; empty if every byte is."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the sample and of all threads."""


@dataclasses.dataclass(frozen=True)
class Item:
    """Bytes that are coded in one call: a part for peers, a chunk for arzstream."""

    data: U8
    context: ChunkContext

    @property
    def dtype(self) -> str:
        return self.context.dtype.name


class BufferContender(Contender):
    """A contender that codes buffers in memory, item by item.

    ``own_threads``: it is told how many threads to use; else a thread pool serves the items, the largest first.
    """

    own_threads = False
    _memory = Results()

    def load(self, sample: Sample, threads: int) -> None:
        self.items = self.cut(sample)
        self.outs: Sequence[U8] = self.room(sample)
        self.blobs: list[Any] = []
        self.decoded: list[Any] = []
        self._pool = ThreadPoolExecutor(threads) if threads > 1 and not self.own_threads else None

    def cut(self, sample: Sample) -> list[Item]:
        """Largest first, so that a pool of threads ends together."""
        return [Item(part.data, part.context) for part in sorted(sample.parts, key=lambda part: -part.data.nbytes)]

    def room(self, sample: Sample) -> list[U8]:
        """Memory to decode into, that of a part in one piece and written before, as a reader's results are."""
        starts = sorted((part.data.ctypes.data, part.data.nbytes) for part in sample.parts if part.data.nbytes)
        rooms = [self._memory.empty(nbytes) for _, nbytes in starts]
        found = []
        for item in self.items:
            at = item.data.ctypes.data
            number = bisect.bisect_right(starts, (at, 1 << 62)) - 1
            found.append(rooms[number][at - starts[number][0] :][: item.data.nbytes])
            found[-1].fill(STALE)
        return found

    def encode_item(self, item: Item, threads: int) -> Any:
        """Bytes that stand for the item, or None: it is then kept as it is."""
        raise NotImplementedError

    def decode_item(self, item: Item, blob: Any, out: U8, threads: int) -> Any:
        """Fill ``out`` and return None, or return a buffer where the API gives no choice."""
        raise NotImplementedError

    def ready(self) -> None:
        self.blobs, self.decoded = [], []
        for out in self.outs:
            out.fill(STALE)

    def encode(self, threads: int) -> None:
        self.blobs = self.map(threads, lambda item: self.encode_item(item, threads), self.items)

    def decode(self, threads: int) -> None:
        def one(index: int) -> Any:
            item, blob, out = self.items[index], self.blobs[index], self.outs[index]
            if blob is None:
                np.copyto(out, item.data)
                return None
            return self.decode_item(item, blob, out, threads)

        self.decoded = self.map(threads, one, range(len(self.items)))

    def wrong(self) -> str:
        self.stored = self.count()
        bad = 0
        for item, out, given in zip(self.items, self.outs, self.decoded, strict=True):
            bad += not np.array_equal(item.data, out if given is None else np.frombuffer(given, np.uint8))
        return f"{bad} of {len(self.items)} buffers come back with other bytes" if bad else ""

    def count(self) -> int:
        """Stored bytes. What a peer makes larger is counted as kept."""
        pairs = zip(self.items, self.blobs, strict=True)
        return sum(i.data.nbytes if b is None else min(len(b), i.data.nbytes) for i, b in pairs)

    def map(self, threads: int, function: Callable[[T], R], over: Iterable[T]) -> list[R]:
        if threads == 1 or self._pool is None:
            return [function(one) for one in over]
        return list(self._pool.map(function, over))

    def close(self) -> None:
        if getattr(self, "_pool", None) is not None:
            self._pool.shutdown()  # type: ignore[union-attr]
        self.items, self.outs, self.blobs, self.decoded = [], [], [], []


class Memcpy(BufferContender):
    """NumPy's copy of the same chunks into memory that is there already: what everything else is compared with."""

    settings = "numpy.copyto, chunk by chunk"

    def cut(self, sample: Sample) -> list[Item]:
        return _chunks(sample)

    def encode_item(self, item: Item, threads: int) -> Any:
        return None


class Chunked(BufferContender):
    """arzstream's codecs on the chunks that ``pack`` makes.

    Encoding includes the XXH3-64 of the chunk and of its payload; decoding checks both, as every read of an archive
    does, and fills memory that is there already. Payloads lie where earlier ones have been, as in ``pack``: what was
    coded in the round before was let go of, as was every peer's.
    """

    def cut(self, sample: Sample) -> list[Item]:
        return _chunks(sample)

    def choose(self, data: memoryview, context: ChunkContext) -> tuple[int, bytes | memoryview]:
        """(codec number, payload)."""
        raise NotImplementedError

    def encode_item(self, item: Item, threads: int) -> Any:
        data = item.data.data
        decoded = xxh3_64(data)  # first: it reads forwards, as memory likes it, and leaves the data in the cache
        codec, payload = self.choose(data, item.context)
        return codec, payload, xxh3_64(payload), decoded

    def decode_item(self, item: Item, blob: Any, out: U8, threads: int) -> Any:
        codec, payload, stored, decoded = blob
        if xxh3_64(payload) != stored:
            raise CorruptError("the stored bytes are damaged (checksum)")
        registry.get(codec).decode(memoryview(payload), out.data, item.context)
        if xxh3_64(out.data) != decoded:
            raise CorruptError("the bytes decode to something else (checksum)")

    def count(self) -> int:
        """Payloads with a frame header and padding each; the index, a few bytes a chunk, is not in it."""
        return sum(-(-(HEADER_BYTES + len(payload)) // ALIGNMENT) * ALIGNMENT for _, payload, _, _ in self.blobs)

    def payload_bytes(self) -> int:
        return sum(len(payload) for _, payload, _, _ in self.blobs)

    def codecs(self) -> dict[str, int]:
        """Decoded bytes by the codec that holds them."""
        found: dict[str, int] = {}
        for item, blob in zip(self.items, self.blobs, strict=True):
            name = registry.name_of(blob[0])
            found[name] = found.get(name, 0) + item.data.nbytes
        return found


class Profile(Chunked):
    """A profile as ``pack --profile`` uses it; its size is that of a real archive of the files."""

    def __init__(self, profile: str) -> None:
        self._profile = profile
        self.settings = f"encode_best, profile {profile}; the ratio is that of an archive with everything in it"
        self._archive: tuple[Sample, int] | None = None

    def load(self, sample: Sample, threads: int) -> None:
        super().load(sample, threads)
        self._sample, self._jobs = sample, threads

    def choose(self, data: memoryview, context: ChunkContext) -> tuple[int, bytes | memoryview]:
        return encode_best(data, context, self._profile)

    def count(self) -> int:
        if self._archive is None or self._archive[0] is not self._sample:
            path = self._sample.folder / f"{self._profile}.arz"
            paths: list[Path] = list(self._sample.paths)
            packed = pack(paths, path, profile=self._profile, jobs=self._jobs, force=True).bytes_out
            path.unlink()
            self._archive = self._sample, packed
        return self._archive[1]


class SingleCodec(Chunked):
    """One codec by itself; chunks it does not apply to are kept as they are."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.settings = "this codec for every chunk it applies to; the ratio counts payloads and frame headers"

    def choose(self, data: memoryview, context: ChunkContext) -> tuple[int, bytes | memoryview]:
        payload = self._codec.encode(data, context)
        if payload is None or len(payload) >= len(data):
            return 0, bytes(data)
        return self._codec.id, payload


def codec_called(name: str) -> Codec | None:
    """The codec of this name, if there is one."""
    numbers = (number for number in range(256) if registry.name_of(number) == name)
    found = next(numbers, None)
    return None if found is None else registry.get(found)


def _chunks(sample: Sample) -> list[Item]:
    return [Item(part.data[c.start : c.end], c.context) for part in sample.parts for c in part.chunks]
