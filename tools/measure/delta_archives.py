"""Archives of checkpoints given those before, proved by unpacking them, and how long the processor took."""

from __future__ import annotations

import collections
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import arzstream
from arzstream.archive import pipeline
from arzstream.archive.learning import Models
from arzstream.codec import registry
from arzstream.codec.base import ChunkContext
from arzstream.codec.best import DELTA_CTX

__all__ = ["Archived", "chain", "enlarged"]

CLOCKED = (0, 1, 3, 4, 5, 6, 7, 8, 9)
"""Numbers of the codecs, as in spec/registry.md."""


@dataclasses.dataclass(frozen=True)
class Archived:
    """The last archive of a chain. Speeds are bytes of the source per second of one core's time."""

    bytes_in: int
    bytes_out: int
    packing: float
    """Everything: reading, decoding the parents, learning the model, coding, digests, writing, proving."""
    coding: float
    """Of that, learning the model, choosing codecs and encoding."""
    unpacking: float
    """Everything: reading, decoding the parents and the archive, checksums, writing."""
    decoding: float
    """delta_ctx alone, of the archive and of its parents, once their references are decoded; 0 if it was not used."""
    changes: int
    """Bytes of the archive that delta_ctx decodes to, and others."""
    others: int
    """Bytes of the archive that other codecs decode to."""


class _Clock:
    """Seconds of the processor while it is entered: of each codec's decoding, with the bytes decoded, and of coding.

    References are decoded before a codec's clock is started, and what a codec has another one do counts as its own.
    Coding is the choice of codecs, and learning models, without what they have decoded for them.
    """

    def __init__(self) -> None:
        self.seconds: dict[int, float] = collections.defaultdict(float)
        self.nbytes: dict[int, int] = collections.defaultdict(int)
        self.coding = 0.0
        self._lock, self._thread = threading.Lock(), _Thread()
        self._originals: list[tuple[Any, str, Callable[..., Any]]] = []

    def __enter__(self) -> _Clock:
        for number in CLOCKED:
            self._replace(type(registry.get(number)), "decode", self._decoding)
        for owner, name in coders():
            self._replace(owner, name, self._coding)
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name, original in reversed(self._originals):
            setattr(owner, name, original)

    def _replace(self, owner: Any, name: str, clocked: Callable[..., Callable[..., Any]]) -> None:
        original = getattr(owner, name)
        self._originals.append((owner, name, original))
        setattr(owner, name, clocked(original))

    def _decoding(self, original: Callable[..., None]) -> Callable[..., None]:
        def decode(codec: Any, payload: memoryview, out: memoryview, ctx: ChunkContext) -> None:
            if self._thread.decodes:
                return original(codec, payload, out, ctx)
            for index in range(len(ctx.references)):
                ctx.references[index]
            self._thread.decodes, began = True, time.thread_time()
            try:
                original(codec, payload, out, ctx)
            finally:
                seconds, self._thread.decodes = time.thread_time() - began, False
            self._thread.decoding += seconds
            with self._lock:
                self.seconds[codec.id] += seconds
                self.nbytes[codec.id] += len(out)

        return decode

    def _coding(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def code(*args: Any, **options: Any) -> Any:
            began, decoded = time.thread_time(), self._thread.decoding
            try:
                return original(*args, **options)
            finally:
                with self._lock:
                    self.coding += time.thread_time() - began - (self._thread.decoding - decoded)

        return code


class _Thread(threading.local):
    """Whether a codec decodes in this thread now, and the seconds that it took so far."""

    decodes, decoding = False, 0.0


def coders() -> Iterator[tuple[Any, str]]:
    """(owner, name) of the functions that code chunks and learn what they are coded with."""
    yield pipeline, "encode_best"
    yield Models, "learn"


def chain(sources: Sequence[Path], profile: str, scratch: Path) -> Archived:
    """Pack ``sources``, the oldest first, each against the one before, into ``scratch``; the last one is unpacked and
    compared with its source byte for byte. SystemExit if it differs."""
    archives = [scratch / f"{number}-{source.stem}.arz" for number, source in enumerate(sources)]
    for number, (source, archive) in enumerate(zip(sources[:-1], archives, strict=False)):
        arzstream.pack(source, archive, parent=archives[number - 1] if number else None, profile=profile)
    with _Clock() as clock:
        began = time.process_time()
        packed = arzstream.pack(sources[-1], archives[-1], parent=archives[-2], profile=profile, jobs=1)
        packing = time.process_time() - began
        coding = clock.coding
    with _Clock() as clock:
        began = time.process_time()
        arzstream.unpack(archives[-1], scratch / "unpacked")
        unpacking = time.process_time() - began
    back = scratch / "unpacked" / sources[-1].name
    if not _equal(back, sources[-1]):
        raise SystemExit(f"{sources[-1]}: what comes back differs")
    back.unlink()
    back.parent.rmdir()
    size, changes = packed.bytes_in, _changes(archives[-1])
    decoding = clock.nbytes[DELTA_CTX] / clock.seconds[DELTA_CTX] if clock.nbytes[DELTA_CTX] else 0.0
    if packed.bytes_out != archives[-1].stat().st_size:
        raise SystemExit(f"{archives[-1]}: has another size than packing said")
    return Archived(
        size, packed.bytes_out, size / packing, size / coding, size / unpacking, decoding, *changes
    )  # fmt: skip


def _changes(archive: Path) -> tuple[int, int]:
    """(bytes coded with delta_ctx, bytes coded otherwise)."""
    found: collections.Counter[bool] = collections.Counter()
    with arzstream.open(archive) as opened:
        for entry in opened.directory.units:
            if entry.unit.has_chunks:
                for chunk in opened.directory.chunk_table(entry.number):
                    found[int(chunk["codec"]) == DELTA_CTX] += int(chunk["decoded"])
    return found[True], found[False]


def _equal(one: Path, other: Path, step: int = 1 << 24) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    with open(one, "rb") as first, open(other, "rb") as second:
        while piece := first.read(step):
            if piece != second.read(step):
                return False
    return True


def enlarged(source: Path, dest: Path, nbytes: int) -> None:
    """The tensors of ``source`` again and again under other names until they are ``nbytes`` or more.

    Each time their rows begin elsewhere, so that none is a duplicate; at the same place in every checkpoint of a run.
    """
    tensors = load_file(source)
    size = sum(t.nbytes for t in tensors.values())
    copies = max(1, math.ceil(nbytes / size))
    large: dict[str, torch.Tensor] = {}
    for copy in range(copies):
        for name, tensor in tensors.items():
            large[f"copy.{copy}.{name}"] = torch.roll(tensor, copy * max(1, len(tensor) // copies), 0)
    save_file(large, dest)
