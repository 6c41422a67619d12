"""Reading frames one after the other, believing nothing before it is checked; ARZ-1 sections 2, 4 and 9."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from arzstream.codec import registry, zstd
from arzstream.container import metadata
from arzstream.container.layout import (
    ALIGNMENT,
    ANCILLARY,
    HEADER_BYTES,
    NO_ORDINAL,
    PROLOGUE_BYTES,
    SYNC,
    FrameHeader,
    FrameType,
    Prologue,
    align,
)
from arzstream.container.records import Commit, FileRecord, Parent, Volume, units_of_frame
from arzstream.container.state import ENTRY, ArchiveState, ChunkEntry, ModelEntry, chained
from arzstream.errors import CorruptError, LimitError, UnsupportedError
from arzstream.kernels.digests import blake3, xxh3_64
from arzstream.limits import DEFAULT_LIMITS, Limits

__all__ = ["Frame", "Reader", "Replay", "SeenTable", "plain_payload", "read_frame", "read_prologue", "resynchronise"]


class Reader(Protocol):
    """Somewhere ranges of bytes can be read from."""

    name: str

    @property
    def size(self) -> int: ...

    def read_at(self, offset: int, length: int) -> bytes: ...

    def read_into(self, offset: int, buffer: memoryview) -> None: ...


KNOWN_TYPES = frozenset(int(kind) for kind in FrameType)
_NUMBERED = {
    FrameType.TENSOR,
    FrameType.FILE,
    FrameType.MODEL,
    FrameType.CHUNK,
    FrameType.TABLE,
    FrameType.PARENT,
    FrameType.VOLUME,
}
_PACKED = {*FrameType} - {FrameType.CHUNK, FrameType.PAD}


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame whose header, stored payload and padding are good."""

    offset: int
    header: FrameHeader
    head: bytes
    payload: memoryview

    @property
    def end(self) -> int:
        return self.offset + self.header.frame_bytes


class SeenTable(NamedTuple):
    """A TABLE frame that was checked: where it is, how long, the XXH3-64 of its stored payload, and how many rows it
    has."""

    offset: int
    frame_bytes: int
    stored_xxh3: int
    rows: int


def read_prologue(reader: Reader) -> tuple[Prologue, bytes]:
    """The prologue and its 64 bytes."""
    data = reader.read_at(0, min(PROLOGUE_BYTES, reader.size))
    return Prologue.decode(data), data


def read_frame(
    reader: Reader,
    offset: int,
    end: int,
    prologue: Prologue,
    limits: Limits = DEFAULT_LIMITS,
    memory: Callable[[int], memoryview] | None = None,
) -> Frame:
    """The frame at ``offset``, which must not go beyond ``end``. Sequence and place in the file are not judged here.

    ``memory`` gives the bytes that the payload of a CHUNK is read into; others get their own.
    """
    if offset + HEADER_BYTES > end:
        raise CorruptError("truncated within a frame header")
    head = reader.read_at(offset, HEADER_BYTES)
    header = FrameHeader.decode(head)
    check_header(header, prologue, end - offset, limits)
    rest = header.frame_bytes - HEADER_BYTES
    if memory is not None and header.type == FrameType.CHUNK:
        body = memory(rest)
        reader.read_into(offset + HEADER_BYTES, body)
    else:
        body = memoryview(reader.read_at(offset + HEADER_BYTES, rest))
    payload, padding = body[: header.stored], body[header.stored :]
    if xxh3_64(payload) != header.stored_xxh3:
        raise CorruptError(f"the payload of the {_name(header.type)} frame at byte {offset} is damaged (checksum)")
    if any(padding):
        raise CorruptError(f"the padding of the {_name(header.type)} frame at byte {offset} is not zero")
    return Frame(offset, header, head, payload)


def check_header(header: FrameHeader, prologue: Prologue, room: int, limits: Limits) -> None:
    """What a good header may say in this file, with ``room`` bytes left from its first one."""
    if header.file_tag != prologue.file_id[:8]:
        raise CorruptError("a frame belongs to another archive")
    if header.stored > (1 << prologue.frame_log2) - HEADER_BYTES:
        raise CorruptError("a frame is longer than the prologue allows")
    if header.frame_bytes > room:
        raise CorruptError("a frame goes beyond the end of the file")
    if header.stored > 2 * limits.chunk_bytes:  # a sparse file holds any length, the memory does not
        raise LimitError(f"a frame of {header.stored} bytes; at most {2 * limits.chunk_bytes} are read")
    if header.type not in KNOWN_TYPES:
        if not header.type & ANCILLARY:
            raise UnsupportedError(f"frame type {header.type} is not known to this version; install a newer arzstream")
        return
    if header.type == FrameType.CHUNK:
        if header.decoded > min(1 << prologue.chunk_log2, limits.chunk_bytes):
            raise CorruptError("a chunk is longer than the prologue allows")
    elif header.chunk:
        raise CorruptError("a frame that is not a chunk has a chunk number")
    if (header.ordinal == NO_ORDINAL) == (header.type in _NUMBERED):
        raise CorruptError("a frame is not numbered as its type requires")
    if header.type in _PACKED:
        if header.decoded > limits.metadata_bytes:
            raise LimitError(f"metadata of {header.decoded} bytes; at most {limits.metadata_bytes} are read")
        if header.codec not in (0, zstd.Zstd.id):
            codec = registry.get(header.codec)  # unknown: a newer version may know it
            raise CorruptError(f"metadata is stored with {codec.name}, which is not for metadata")


def plain_payload(frame: Frame) -> bytes:
    """The decoded payload of a metadata, TABLE or MODEL frame, checked."""
    header = frame.header
    data = zstd.decode_metadata(header.codec, frame.payload, header.decoded)
    if len(data) != header.decoded or xxh3_64(data) != header.decoded_xxh3:
        raise CorruptError(
            f"the {_name(header.type)} frame at byte {frame.offset} decodes to something else (checksum)"
        )
    return data


def table_entries(data: bytes) -> np.ndarray:
    """The rows of a TABLE payload, shape (n,), dtype ENTRY."""
    if len(data) % ENTRY.itemsize:
        raise CorruptError("a chunk table is not a whole number of entries")
    table = np.frombuffer(data, ENTRY)
    if any(table["reserved"].tobytes()):
        raise CorruptError("a chunk table's reserved bytes are not zero")
    return table


def _name(kind: int) -> str:
    return FrameType(kind).name if kind in KNOWN_TYPES else f"type {kind}"


class Replay:
    """Feeds the frames of a file, in order and without gaps, to an :class:`ArchiveState`, and checks the chain.

    ``valid_end`` is the end of the last good COMMIT.
    """

    def __init__(self, reader: Reader, limits: Limits = DEFAULT_LIMITS) -> None:
        self.reader, self.limits = reader, limits
        self.prologue, head = read_prologue(reader)
        self.state = ArchiveState(limits)
        self.offset = PROLOGUE_BYTES
        self.valid_end = 0
        self.tables: list[SeenTable] = []
        self.index: tuple[Frame, Any] | None = None
        self._sequence = 0
        self._previous = 0
        self._rows_left: int | None = None
        self._chain = chained(blake3(head))
        self._after_commit = False
        self._charge = metadata.Charge(limits)
        self.chain_at_index = b""
        self._buffer = bytearray()
        self.believed = False
        """The frame at ``offset`` is good by itself: if it is refused, then for what it says."""

    @property
    def frames(self) -> int:
        """How many frames have been taken over."""
        return self._sequence

    def run(self, end: int) -> Iterator[Frame]:
        """Yield each frame up to ``end`` after it has been checked and taken over; raises at the first that is not
        good. The payload of a CHUNK is there until the next frame."""
        while self.offset < end:
            frame = read_frame(self.reader, self.offset, end, self.prologue, self.limits, self._memory)
            if frame.header.sequence != self._sequence:
                raise CorruptError(f"frame {frame.header.sequence} stands where frame {self._sequence} should")
            self.believed = frame.header.type == FrameType.CHUNK or bool(self.tables) or self.index is not None
            if self.index is not None:
                raise CorruptError("something follows the index")
            self._take(frame)
            self._chain.update(frame.head)
            self._sequence += 1
            self.offset, self.believed = frame.end, False
            if frame.header.type == FrameType.COMMIT:
                self.valid_end = frame.end
            yield frame

    def _memory(self, nbytes: int) -> memoryview:
        if len(self._buffer) < nbytes:
            self._buffer = bytearray(nbytes)
        return memoryview(self._buffer)[:nbytes]

    def _take(self, frame: Frame) -> None:
        header, kind = frame.header, frame.header.type
        if self.tables and kind not in (FrameType.TABLE, FrameType.INDEX):
            raise CorruptError(f"a {_name(kind)} frame follows a chunk table")
        if kind == FrameType.CHUNK:
            self._after_commit = True
            entry = ChunkEntry(
                frame.offset, header.stored, header.decoded, header.stored_xxh3, header.decoded_xxh3, header.codec
            )
            self.state.add_chunk(header.ordinal, header.chunk, entry, header.frame_bytes)
        elif kind == FrameType.PAD:
            decoded = (header.decoded, header.decoded_xxh3)
            if header.codec or any(frame.payload) or decoded != (header.stored, header.stored_xxh3):
                raise CorruptError(f"the padding frame at byte {frame.offset} is not zero, or not raw")
        elif kind in KNOWN_TYPES:
            believed, self.believed = self.believed, True
            self._check_amount(frame)
            self.believed = believed
            self._take_metadata(frame, plain_payload(frame))

    def _check_amount(self, frame: Frame) -> None:
        """What is kept of all frames together is bounded, too; nothing is of a TABLE and a MODEL."""
        header = frame.header
        if header.type == FrameType.TABLE:
            if self._rows_left is None:  # no chunk may follow
                self._rows_left = sum(map(len, self.state.chunks.values()))
            if header.decoded > self._rows_left * ENTRY.itemsize:
                raise CorruptError("the chunk tables have more entries than there are chunks")
        elif header.type == FrameType.INDEX:  # it says once more what the others said
            metadata.Charge(self.limits).check(header.decoded, frame.end)
        elif header.type != FrameType.MODEL:
            self._charge.check(header.decoded, frame.end)

    def _take_metadata(self, frame: Frame, data: bytes) -> None:
        header = frame.header
        value = None if header.type in (FrameType.TABLE, FrameType.MODEL) else metadata.unpack(data, self.limits)
        self.believed = True
        if header.type == FrameType.TABLE:
            self._take_table(frame, data)
        elif header.type == FrameType.MODEL:
            self._after_commit = True
            model = ModelEntry(
                frame.offset, header.stored, header.decoded, header.codec, header.stored_xxh3, header.decoded_xxh3
            )
            self.state.add_model(header.ordinal, model)
        else:
            self._charge.add(header.decoded)
            self._take_record(frame, value)

    def _take_table(self, frame: Frame, data: bytes) -> None:
        if frame.header.ordinal != len(self.tables) or self._after_commit:
            raise CorruptError("a chunk table stands where it should not")
        rows = len(table_entries(data))
        assert self._rows_left is not None
        self._rows_left -= rows
        self.tables.append(SeenTable(frame.offset, frame.header.frame_bytes, frame.header.stored_xxh3, rows))

    def _take_record(self, frame: Frame, value: Any) -> None:
        header = frame.header
        if header.type == FrameType.INDEX:
            if self._after_commit or not self.state.commits:
                raise CorruptError("there is something before the index that no COMMIT covers")
            self.chain_at_index = self._chain.digest()
            self.index = (frame, value)
            return
        self._after_commit = True
        if header.type == FrameType.TENSOR:
            self.state.add_units(header.ordinal, units_of_frame(value, self.limits), header.frame_bytes)
        elif header.type == FrameType.FILE:
            self.state.add_file(header.ordinal, FileRecord.from_map(value, self.limits), header.frame_bytes)
        elif header.type == FrameType.PARENT:
            self.state.add_parent(header.ordinal, Parent.from_map(value))
        elif header.type == FrameType.VOLUME:
            self.state.add_volume(header.ordinal, Volume.from_map(value, self.limits))
        elif header.type == FrameType.COMMIT:
            commit = Commit.from_map(value)
            if commit.chain != self._chain.digest() or commit.previous != self._previous:
                raise CorruptError("frames are missing, doubled or in another order (chain)")
            self.state.add_commit(commit)
            self._chain = chained(commit.chain)
            self._previous, self._after_commit = frame.offset, False


def resynchronise(reader: Reader, offset: int, end: int, prologue: Prologue | None) -> int:
    """The next offset at or after ``offset`` where a believable header of this file stands, or ``end``; ARZ-1 section
    9."""
    offset = align(offset)
    block = 1 << 20
    while offset < end:
        data = reader.read_at(offset, min(block, end - offset))
        place = data.find(SYNC)
        while place >= 0:
            if place % ALIGNMENT == 0 and offset + place + HEADER_BYTES <= end:
                with contextlib.suppress(CorruptError):
                    header = FrameHeader.decode(reader.read_at(offset + place, HEADER_BYTES))
                    if prologue is None or header.file_tag == prologue.file_id[:8]:
                        return offset + place
            place = data.find(SYNC, place + 1)
        offset += block
    return end
