"""Writing frames, strictly forwards, into anything that appends.

:class:`FrameWriter` numbers and chains the frames and keeps the :class:`~arzstream.container.state.ArchiveState` they
add up to; what to write, and in which order, is decided above it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from arzstream.codec import zstd
from arzstream.container import metadata
from arzstream.container.layout import HEADER_BYTES, NO_ORDINAL, FrameHeader, FrameType, Prologue, Trailer
from arzstream.container.records import Commit, FileRecord, Parent, Unit, Volume
from arzstream.container.state import ArchiveState, ChunkEntry, ModelEntry, TableRef, chained, check_paths, index_map
from arzstream.errors import UnsupportedError
from arzstream.kernels.digests import blake3, xxh3_64
from arzstream.limits import DEFAULT_LIMITS, Limits

__all__ = ["FrameWriter", "Sink", "check_metadata"]

TABLE_ENTRIES = 4096
"""A TABLE frame holds the tables of consecutive units up to about this many entries (192 KiB)."""


class Sink(Protocol):
    """Somewhere bytes can be appended."""

    def write(self, data: bytes | memoryview) -> Any: ...


def check_metadata(kind: str, nbytes: int, items: Callable[[], int], limits: Limits = DEFAULT_LIMITS) -> None:
    """May a frame of this ``kind`` hold metadata of ``nbytes`` bytes and so many ``items``? Raises UnsupportedError for
    more than readers take."""
    many = "too many tensors or files for one archive" if kind == "INDEX" else "too much for one frame of an archive"
    advice = "make more archives than one, of a folder each"
    if nbytes > limits.metadata_bytes:
        raise UnsupportedError(
            f"{many}: its {kind} would have {nbytes:,} bytes, of at most {limits.metadata_bytes:,} that are read; "
            f"{advice}"
        )
    if nbytes > limits.metadata_items and (count := items()) > limits.metadata_items:  # an item takes a byte at least
        raise UnsupportedError(
            f"{many}: its {kind} would have {count:,} items, of at most {limits.metadata_items:,} that are read; "
            f"{advice}"
        )


class FrameWriter:
    """Writes one archive into ``sink``. Not thread-safe: one thread writes, whoever encodes.

    ``limits`` are those of the readers that it is for: what they would refuse is not written.
    """

    def __init__(self, sink: Sink, *, file_id: bytes | None = None, limits: Limits = DEFAULT_LIMITS) -> None:
        self.prologue = Prologue(file_id if file_id is not None else secrets.token_bytes(16))
        self.state = ArchiveState(limits)
        self._charge = metadata.Charge(limits)
        self.digests: dict[int, tuple[bytes, ...]] = {}
        """The members' BLAKE3 of the units that are complete."""
        self.offset = 0
        self.sealed = False
        self._sink = sink
        self._sequence = 0
        self._previous_commit = 0
        self._covered = 0
        head = self.prologue.encode()
        self._append(head)
        self._chain = chained(blake3(head))

    @property
    def committed(self) -> bool:
        """Is everything so far covered by a COMMIT?"""
        return self._covered == self.offset

    # -- frames -----------------------------------------------------------------------------------------------------

    def add_unit(self, unit: Unit) -> int:
        """Announce a unit; returns its number."""
        return self.add_units([unit])

    def add_units(self, units: Sequence[Unit]) -> int:
        """Announce one or more units in one frame; returns the number of the first."""
        number = len(self.state.units)
        self.state.check_units(number, units)
        maps = [unit.to_map() for unit in units]
        _, frame_bytes = self._metadata(FrameType.TENSOR, maps if len(maps) > 1 else maps[0], number)
        self.state.add_units(number, units, frame_bytes)
        return number

    def add_chunk(
        self, unit: int, chunk: int, codec: int, payload: bytes | memoryview, decoded: int, decoded_xxh3: int
    ) -> ChunkEntry:
        """Append a coded chunk; ``decoded`` is its decoded length in bytes."""
        offset = self.offset
        stored_xxh3 = xxh3_64(payload)
        frame_bytes = self._frame(FrameType.CHUNK, codec, payload, decoded, stored_xxh3, decoded_xxh3, unit, chunk)
        entry = ChunkEntry(offset, len(payload), decoded, stored_xxh3, decoded_xxh3, codec)
        self.state.add_chunk(unit, chunk, entry, frame_bytes)
        return entry

    def add_file(self, record: FileRecord, number: int | None = None) -> int:
        """Write a FILE frame, with the next number, or again for ``number``, which it replaces. Returns the number."""
        number = self.state.next_file if number is None else number
        _, frame_bytes = self._metadata(FrameType.FILE, record.to_map(), number)
        self.state.add_file(number, record, frame_bytes)
        return number

    def add_model(self, payload: bytes, codec: int = 0, decoded: bytes | None = None) -> int:
        """Append a MODEL frame; returns its number."""
        plain = payload if decoded is None else decoded
        number, offset = len(self.state.models), self.offset
        stored_xxh3, decoded_xxh3 = xxh3_64(payload), xxh3_64(plain)
        self._frame(FrameType.MODEL, codec, payload, len(plain), stored_xxh3, decoded_xxh3, number, 0)
        self.state.add_model(number, ModelEntry(offset, len(payload), len(plain), codec, stored_xxh3, decoded_xxh3))
        return number

    def add_parent(self, parent: Parent) -> int:
        """Name an archive that units will refer to; returns its number."""
        number = len(self.state.parents)
        self._metadata(FrameType.PARENT, parent.to_map(), number)
        self.state.add_parent(number, parent)
        return number

    def add_volume(self, volume: Volume) -> int:
        """Name an archive that this set is made of; returns its number."""
        number = len(self.state.volumes)
        self._metadata(FrameType.VOLUME, volume.to_map(), number)
        self.state.add_volume(number, volume)
        return number

    def commit(self, layer: str, units: Sequence[tuple[int, tuple[bytes, ...]]] = ()) -> int:
        """Make everything so far count; ``units`` are those now complete, with their members' BLAKE3. Returns the
        file's length."""
        chain, offset = self._chain.digest(), self.offset
        listed = tuple((number, self.state.listed(number, digests)) for number, digests in sorted(units))
        record = Commit(chain, layer, self._previous_commit, listed)
        self._chain = chained(chain)
        self._metadata(FrameType.COMMIT, record.to_map(), NO_ORDINAL)
        self.state.add_commit(record)
        self.digests.update(units)
        self._previous_commit, self._covered = offset, self.offset
        return self.offset

    def seal(self, order: Sequence[int]) -> bytes:
        """Write the tables, the INDEX and the trailer; ``order`` lists the live units in layer order. Returns the
        content digest."""
        self.state.require_complete()
        check_paths((record.path, record.kind) for record in self.state.live_files().values())
        tables_offset = self.offset
        tables, places = self._tables(order)
        digests = {number: self.digests[number] for number in order}
        index = index_map(self.state, digests, self._chain.digest(), tables, places)
        offset = self.offset
        (header, payload), index_bytes = self._metadata(FrameType.INDEX, index, NO_ORDINAL)
        total = self.offset + HEADER_BYTES  # the trailer is as long as a frame header
        trailer = Trailer(self.prologue, offset, index_bytes, tables_offset, total, blake3(header + payload))
        self._append(trailer.encode())
        self.sealed = True
        return bytes(index["content"])

    # -- parts ------------------------------------------------------------------------------------------------------

    def _tables(self, order: Sequence[int]) -> tuple[list[TableRef], dict[int, tuple[int, int]]]:
        tables: list[TableRef] = []
        places: dict[int, tuple[int, int]] = {}
        batch: list[np.ndarray] = []
        for number in order:
            table = self.state.table(number)
            if not len(table):
                continue
            held = sum(map(len, batch))
            if held and held + len(table) > TABLE_ENTRIES:
                tables.append(self._table(len(tables), batch))
                batch, held = [], 0
            places[number] = (len(tables), held)
            batch.append(table)
        if batch:
            tables.append(self._table(len(tables), batch))
        return tables, places

    def _table(self, number: int, batch: list[np.ndarray]) -> TableRef:
        offset, plain = self.offset, np.concatenate(batch).tobytes()
        codec, payload = zstd.encode_metadata(plain)
        stored_xxh3 = xxh3_64(payload)
        length = self._frame(FrameType.TABLE, codec, payload, len(plain), stored_xxh3, xxh3_64(plain), number, 0)
        return TableRef(offset, length, stored_xxh3)

    def _metadata(self, kind: FrameType, value: Any, ordinal: int) -> tuple[tuple[bytes, bytes], int]:
        plain = metadata.pack(value)
        check_metadata(kind.name, len(plain), lambda: metadata.count_items(value), self.state.limits)
        codec, payload = zstd.encode_metadata(plain)
        charge = self._charge if kind != FrameType.INDEX else metadata.Charge(self.state.limits)
        charge.check(len(plain), self.offset + HEADER_BYTES + len(payload))
        charge.add(len(plain))
        before = self._sequence
        length = self._frame(kind, codec, payload, len(plain), xxh3_64(payload), xxh3_64(plain), ordinal, 0)
        assert self._sequence == before + 1
        return (self._last_header, payload), length

    def _frame(
        self,
        kind: int,
        codec: int,
        payload: bytes | memoryview,
        decoded: int,
        stored_xxh3: int,
        decoded_xxh3: int,
        ordinal: int,
        chunk: int,
    ) -> int:
        assert not self.sealed, "an archive is sealed once"
        header = FrameHeader(
            kind,
            codec,
            self._sequence,
            self.prologue.file_id[:8],
            ordinal,
            chunk,
            len(payload),
            decoded,
            stored_xxh3,
            decoded_xxh3,
        )
        head = header.encode()
        self._append(head)
        self._append(payload)
        padding = header.frame_bytes - HEADER_BYTES - len(payload)
        if padding:
            self._append(bytes(padding))
        self._chain.update(head)
        self._last_header = head
        self._sequence += 1
        return header.frame_bytes

    def _append(self, data: bytes | memoryview) -> None:
        self._sink.write(data)
        self.offset += len(data)
