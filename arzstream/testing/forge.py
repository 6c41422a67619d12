"""Forging archives: change what a good one says, and make every checksum right again.

Damage is found by checksums; an archive that somebody made on purpose has good ones. Take one apart with :func:`parse`,
change metadata or chunk tables, and put it together again with :func:`assemble`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from arzstream.codec import zstd
from arzstream.container import metadata
from arzstream.container.layout import HEADER_BYTES, PROLOGUE_BYTES, FrameHeader, FrameType, Prologue, Trailer, align
from arzstream.container.state import ENTRY
from arzstream.errors import CorruptError
from arzstream.kernels.digests import blake3, crc32c, xxh3_64

__all__ = ["Frame", "assemble", "frames", "parse", "recode", "reprologue"]

Table = npt.NDArray[Any]
METADATA = {FrameType.TENSOR, FrameType.FILE, FrameType.COMMIT, FrameType.INDEX, FrameType.PARENT, FrameType.VOLUME}


@dataclasses.dataclass
class Frame:
    """A frame at ``offset`` of the original. ``value`` is its metadata, or its chunk table, where it has one; without
    it, the payload is taken as it is."""

    offset: int
    header: FrameHeader
    payload: bytes
    value: Any = None

    @property
    def kind(self) -> int:
        return self.header.type

    @property
    def end(self) -> int:
        return self.offset + self.header.frame_bytes

    @property
    def units(self) -> dict[int, dict[str, Any]]:
        """The units that a TENSOR announces, by number; those of no other frame."""
        if self.kind != FrameType.TENSOR:
            return {}
        return dict(enumerate(self.value if isinstance(self.value, list) else [self.value], self.header.ordinal))


def frames(data: bytes) -> list[Frame]:
    """The frames of a good archive, sealed or growing."""
    found, at = [], PROLOGUE_BYTES
    while at + HEADER_BYTES <= len(data):
        try:
            header = FrameHeader.decode(data[at : at + HEADER_BYTES])
        except CorruptError:  # the trailer, or what a growing archive ends with
            break
        found.append(Frame(at, header, data[at + HEADER_BYTES : at + HEADER_BYTES + header.stored]))
        at += header.frame_bytes
    return found


def parse(data: bytes) -> tuple[Prologue, list[Frame]]:
    """Prologue and frames of a good archive, metadata and tables decoded."""
    found = frames(data)
    for frame in found:
        if frame.kind in METADATA or frame.kind == FrameType.TABLE:
            plain = zstd.decode_metadata(frame.header.codec, frame.payload, frame.header.decoded)
            table = frame.kind == FrameType.TABLE
            frame.value = np.frombuffer(plain, ENTRY).copy() if table else metadata.unpack(plain)
    return Prologue.decode(data[:PROLOGUE_BYTES]), found


def assemble(
    prologue: Prologue,
    found: list[Frame],
    *,
    edit_table: Callable[[Table], None] | None = None,
    edit_index: Callable[[dict[str, Any]], None] | None = None,
) -> bytes:
    """A sealed archive of the frames, with sequence numbers, chains, offsets and checksums as they have to be.

    ``edit_table`` and ``edit_index`` may change, in place, what the tables and the index would rightly say.
    """
    out = bytearray(prologue.encode())
    chain, pending, previous = blake3(bytes(out)), b"", 0
    moved: dict[int, int] = {}
    tables: list[list[int]] = []
    for number, frame in enumerate(found):
        offset, value = len(out), frame.value
        moved[frame.offset] = offset
        if frame.kind == FrameType.COMMIT:
            chain = blake3(chain + pending)
            pending, value = b"", {**value, "chain": chain, "previous": previous}
            previous = offset
        elif frame.kind == FrameType.TABLE:
            value = value.copy()
            value["offset"] = [moved.get(int(at), int(at)) for at in value["offset"]]
            if edit_table:
                edit_table(value)
        elif frame.kind == FrameType.INDEX and value is not None:
            value = {**copy.deepcopy(value), "chain": blake3(chain + pending), "tables": tables}
            if edit_index:
                edit_index(value)
        head = _append(out, prologue, number, frame, value)
        pending += head
        if frame.kind == FrameType.TABLE:
            tables.append([offset, len(out) - offset, FrameHeader.decode(head).stored_xxh3])
    _seal(out, prologue, found, moved)
    return bytes(out)


def _append(out: bytearray, prologue: Prologue, number: int, frame: Frame, value: Any) -> bytes:
    """Append one frame; returns its header."""
    old = frame.header
    codec, payload, decoded, digest = old.codec, frame.payload, old.decoded, old.decoded_xxh3
    if value is not None:
        plain = value.tobytes() if isinstance(value, np.ndarray) else metadata.pack(value)
        codec, payload = zstd.encode_metadata(plain)
        decoded, digest = len(plain), xxh3_64(plain)
    header = FrameHeader(
        old.type,
        codec,
        number,
        prologue.file_id[:8],
        old.ordinal,
        old.chunk,
        len(payload),
        decoded,
        xxh3_64(payload),
        digest,
    )
    head = header.encode()
    out += head + payload + bytes(header.frame_bytes - HEADER_BYTES - len(payload))
    return head


def _seal(out: bytearray, prologue: Prologue, found: list[Frame], moved: dict[int, int]) -> None:
    index = moved[found[-1].offset]
    table = min((moved[frame.offset] for frame in found if frame.kind == FrameType.TABLE), default=index)
    header = FrameHeader.decode(bytes(out[index : index + HEADER_BYTES]))
    root = blake3(bytes(out[index : index + HEADER_BYTES + header.stored]))
    length = align(HEADER_BYTES + header.stored)
    out += Trailer(prologue, index, length, table, len(out) + HEADER_BYTES, root).encode()


def recode(frame: Frame, **fields: Any) -> Frame:
    """The frame with other header fields (``codec=999``, ``decoded=1 << 40``, …)."""
    return dataclasses.replace(frame, header=dataclasses.replace(frame.header, **fields))


def reprologue(data: bytes, at: int, value: bytes) -> bytes:
    """``data`` with ``value`` at byte ``at`` of the prologue, and the prologue's checksum right."""
    head = bytearray(data[:60])
    head[at : at + len(value)] = value
    return bytes(head) + crc32c(bytes(head)).to_bytes(4, "little") + data[64:]
