"""The models that units are coded with, as readers get them: read and checked when they are needed."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Sequence
from typing import overload

from arzstream.archive.again import once_more
from arzstream.container.layout import HEADER_BYTES, FrameType, Prologue, align
from arzstream.container.scan import plain_payload, read_frame
from arzstream.container.state import ModelEntry
from arzstream.errors import CorruptError
from arzstream.limits import Limits
from arzstream.store.ranges import RangeReader

__all__ = ["StoredModels"]


KEPT_BYTES = 32 << 20
"""Models are kept up to this: some hundred times what the models of an archive are."""


class UnitModels(Sequence[bytes]):
    """The models of a unit, each read when a codec looks at it: a chunk needs one of them, or none."""

    def __init__(self, entries: Sequence[ModelEntry], read: Callable[[ModelEntry], bytes]) -> None:
        self._entries, self._read = entries, read

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...

    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(index, slice):
            return UnitModels(self._entries[index], self._read)
        return self._read(self._entries[index])


class StoredModels:
    """Payloads of MODEL frames, each checked when it is read; those used last are kept. Thread-safe."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._lock = limits, threading.Lock()
        self._known: collections.OrderedDict[tuple[str, ModelEntry], bytes] = collections.OrderedDict()
        self._bytes = 0

    def of(self, reader: RangeReader, prologue: Prologue, entries: Sequence[ModelEntry]) -> Sequence[bytes]:
        """The payloads of ``entries`` of the archive in ``reader``. Looking at one raises CorruptError if it is bad."""
        return UnitModels(entries, lambda entry: self.read(reader, prologue, entry)) if entries else ()

    def read(self, reader: RangeReader, prologue: Prologue, entry: ModelEntry) -> bytes:
        """The payload of one of them. Raises CorruptError."""
        key = (reader.name, entry)
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
                return known
        length = align(HEADER_BYTES + entry.stored)
        payload = once_more(reader, lambda: self._checked(reader, prologue, entry), entry.offset, length)
        with self._lock:
            if key not in self._known:
                self._known[key] = payload
                self._bytes += len(payload)
            while len(self._known) > 1 and self._bytes > KEPT_BYTES:
                self._bytes -= len(self._known.popitem(last=False)[1])
        return payload

    def _checked(self, reader: RangeReader, prologue: Prologue, entry: ModelEntry) -> bytes:
        frame = read_frame(reader, entry.offset, reader.size, prologue, self._limits)
        header = frame.header
        found = (header.stored, header.decoded, header.codec, header.stored_xxh3, header.decoded_xxh3)
        if header.type != FrameType.MODEL or found != entry[1:]:
            raise CorruptError(f"the model at byte {entry.offset} is not the one the index means")
        return bytes(plain_payload(frame))
