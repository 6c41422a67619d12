"""The models that units are coded with, as readers get them: each read and checked once."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from arzstream.archive.again import once_more
from arzstream.container.layout import HEADER_BYTES, FrameType, Prologue, align
from arzstream.container.scan import plain_payload, read_frame
from arzstream.container.state import ModelEntry
from arzstream.errors import CorruptError
from arzstream.limits import Limits
from arzstream.store.ranges import RangeReader

__all__ = ["StoredModels"]


class StoredModels:
    """Payloads of MODEL frames, each read and checked once. Thread-safe."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._lock = limits, threading.Lock()
        self._known: dict[tuple[str, ModelEntry], bytes] = {}

    def read(self, reader: RangeReader, prologue: Prologue, entries: Sequence[ModelEntry]) -> tuple[bytes, ...]:
        """The payloads of ``entries`` of the archive in ``reader``. Raises CorruptError."""
        return tuple(self._read(reader, prologue, entry) for entry in entries)

    def _read(self, reader: RangeReader, prologue: Prologue, entry: ModelEntry) -> bytes:
        key = (reader.name, entry)
        with self._lock:
            known = self._known.get(key)
        if known is not None:
            return known
        length = align(HEADER_BYTES + entry.stored)
        payload = once_more(reader, lambda: self._checked(reader, prologue, entry), entry.offset, length)
        with self._lock:
            self._known[key] = payload
        return payload

    def _checked(self, reader: RangeReader, prologue: Prologue, entry: ModelEntry) -> bytes:
        frame = read_frame(reader, entry.offset, reader.size, prologue, self._limits)
        header = frame.header
        found = (header.stored, header.decoded, header.codec, header.stored_xxh3, header.decoded_xxh3)
        if header.type != FrameType.MODEL or found != entry[1:]:
            raise CorruptError(f"the model at byte {entry.offset} is not the one the index means")
        return bytes(plain_payload(frame))
