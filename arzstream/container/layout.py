"""The fixed-size parts of a file: prologue, frame header, trailer; ARZ-1 sections 3, 4 and 7.

Each part is one :class:`struct.Struct` used by encoder and decoder alike.
"""

from __future__ import annotations

import dataclasses
import enum
import struct

from arzstream.errors import CorruptError, UnsupportedError
from arzstream.kernels.digests import crc32c

__all__ = [
    "ALIGNMENT",
    "ANCILLARY",
    "END_MAGIC",
    "HEADER_BYTES",
    "MAGIC",
    "NO_ORDINAL",
    "PROLOGUE_BYTES",
    "SYNC",
    "TRAILER_BYTES",
    "FrameHeader",
    "FrameType",
    "Prologue",
    "Trailer",
    "align",
]

MAGIC = bytes.fromhex("89 41 52 5A 0D 0A 1A 0A")
END_MAGIC = MAGIC[::-1]
SYNC = bytes.fromhex("F5 61 72 7A 66 72 6D 9C")
ALIGNMENT = 64
PROLOGUE_BYTES, HEADER_BYTES, TRAILER_BYTES = 64, 128, 128
MAJOR, MINOR = 1, 0
INCOMPATIBLE_KNOWN = 0
NO_ORDINAL = 0xFFFFFFFF
ANCILLARY = 0x8000
LARGEST_FRAME_LOG2 = 29  # a chunk of 2^28 bytes stored raw, its header and padding
LARGEST_CHUNK_LOG2 = 28

_PROLOGUE = struct.Struct("<8s HHH BB QQ 16s 12s I")
_HEADER = struct.Struct("<8s HH I Q 8s II QQ QQ 52s I")
_TRAILER = struct.Struct("<HHH BB QQ 16s QQQQ 32s 12s I 8s")
assert (_PROLOGUE.size, _HEADER.size, _TRAILER.size) == (PROLOGUE_BYTES, HEADER_BYTES, TRAILER_BYTES)


class FrameType(enum.IntEnum):
    """Section 5. Bit 15 marks a type that a reader may skip, bit 14 one that may be copied unread."""

    TENSOR = 1
    FILE = 2
    MODEL = 3
    CHUNK = 4
    COMMIT = 5
    TABLE = 6
    INDEX = 7
    PARENT = 8
    VOLUME = 10
    PAD = 0xC009


def align(length: int) -> int:
    """``length`` rounded up to the next multiple of 64."""
    return -(-length // ALIGNMENT) * ALIGNMENT


def _check_versions(major: int, minimum: int, frame_log2: int, chunk_log2: int, incompatible: int) -> None:
    if major != MAJOR:
        raise UnsupportedError(f"format version {major} is not known to this version of arzstream; install a newer one")
    if minimum > MINOR:
        raise UnsupportedError(f"format version {major}.{minimum} is needed to read it; install a newer arzstream")
    if incompatible & ~INCOMPATIBLE_KNOWN:
        raise UnsupportedError(
            f"it uses features unknown to this version (flags {incompatible:#x}); install a newer arzstream"
        )
    if not 7 <= frame_log2 <= 40 or not chunk_log2 <= 28:
        raise CorruptError("the largest frame or chunk it announces is out of range")


@dataclasses.dataclass(frozen=True)
class Prologue:
    """The first 64 bytes."""

    file_id: bytes
    writer_minor: int = MINOR
    minimum_minor: int = 0
    frame_log2: int = LARGEST_FRAME_LOG2
    chunk_log2: int = LARGEST_CHUNK_LOG2
    incompatible: int = 0
    compatible: int = 0

    def encode(self) -> bytes:
        body = _PROLOGUE.pack(
            MAGIC, MAJOR, self.minimum_minor, self.writer_minor, self.frame_log2, self.chunk_log2,
            self.incompatible, self.compatible, self.file_id, bytes(12), 0,
        )  # fmt: skip
        return body[:60] + struct.pack("<I", crc32c(body[:60]))

    @classmethod
    def decode(cls, data: bytes) -> Prologue:
        """Raises CorruptError or UnsupportedError, in the order of checks of section 3."""
        if data[:8] != MAGIC[: len(data[:8])] or not data:
            raise CorruptError("not an arzstream archive")
        if len(data) < PROLOGUE_BYTES:
            raise CorruptError("truncated within its first 64 bytes")
        _, major, minimum, writer, frame_log2, chunk_log2, incompatible, compatible, file_id, zero, crc = (
            _PROLOGUE.unpack(data)
        )
        if major != MAJOR:
            _check_versions(major, 0, 7, 0, 0)
        if crc != crc32c(data[:60]):
            raise CorruptError("the prologue is damaged (checksum)")
        _check_versions(major, minimum, frame_log2, chunk_log2, incompatible)
        if any(zero):
            raise CorruptError("the prologue's reserved bytes are not zero")
        return cls(file_id, writer, minimum, frame_log2, chunk_log2, incompatible, compatible)


def is_whole(part: bytes) -> bool:
    """Does the CRC of a prologue (64 bytes) or of a trailer (128 bytes) hold, whatever version it announces?

    Opening believes the version before the CRC, because a later format may keep its CRC elsewhere; recovery asks this
    to tell a flipped bit from a later format.
    """
    at = 60 if len(part) == PROLOGUE_BYTES else 116
    return part[at : at + 4] == struct.pack("<I", crc32c(part[:at]))


@dataclasses.dataclass(frozen=True)
class FrameHeader:
    """The 128 bytes before a payload. Lengths are in bytes, digests are XXH3-64."""

    type: int
    codec: int
    sequence: int
    file_tag: bytes
    ordinal: int
    chunk: int
    stored: int
    decoded: int
    stored_xxh3: int
    decoded_xxh3: int

    @property
    def frame_bytes(self) -> int:
        """Header, payload and padding."""
        return align(HEADER_BYTES + self.stored)

    def encode(self) -> bytes:
        body = _HEADER.pack(
            SYNC, self.type, self.codec, 0, self.sequence, self.file_tag, self.ordinal, self.chunk,
            self.stored, self.decoded, self.stored_xxh3, self.decoded_xxh3, bytes(52), 0,
        )  # fmt: skip
        return body[:124] + struct.pack("<I", crc32c(body[:124]))

    @classmethod
    def decode(cls, data: bytes) -> FrameHeader:
        """Check everything that the 128 bytes alone can show; raises CorruptError."""
        if len(data) < HEADER_BYTES:
            raise CorruptError("truncated within a frame header")
        sync, kind, codec, flags, sequence, tag, ordinal, chunk, stored, decoded, xs, xd, zero, crc = _HEADER.unpack(
            data
        )
        if sync != SYNC:
            raise CorruptError("a frame does not begin where one should")
        if crc != crc32c(data[:124]):
            raise CorruptError("a frame header is damaged (checksum)")
        if flags or any(zero):
            raise CorruptError("a frame header's reserved bytes are not zero")
        return cls(kind, codec, sequence, tag, ordinal, chunk, stored, decoded, xs, xd)


@dataclasses.dataclass(frozen=True)
class Trailer:
    """The last 128 bytes of a sealed file. Offsets and lengths are in bytes."""

    prologue: Prologue
    index_offset: int
    index_bytes: int
    tables_offset: int
    total_bytes: int
    root: bytes

    def encode(self) -> bytes:
        p = self.prologue
        body = _TRAILER.pack(
            MAJOR, p.minimum_minor, p.writer_minor, p.frame_log2, p.chunk_log2, p.incompatible, p.compatible, p.file_id,
            self.index_offset, self.index_bytes, self.tables_offset, self.total_bytes, self.root, bytes(12), 0,
            END_MAGIC,
        )  # fmt: skip
        return body[:116] + struct.pack("<I", crc32c(body[:116])) + END_MAGIC

    @classmethod
    def decode(cls, data: bytes, file_size: int) -> Trailer:
        """``data`` is the last 128 bytes of a file of ``file_size`` bytes and ends with the end magic."""
        (major, minimum, writer, frame_log2, chunk_log2, incompatible, compatible, file_id,
         index_offset, index_bytes, tables_offset, total, root, zero, crc, magic) = _TRAILER.unpack(data)  # fmt: skip
        if magic != END_MAGIC:
            raise CorruptError("the end magic is missing")
        if major != MAJOR:
            _check_versions(major, 0, 7, 0, 0)
        if crc != crc32c(data[:116]):
            raise CorruptError("the trailer is damaged (checksum)")
        _check_versions(major, minimum, frame_log2, chunk_log2, incompatible)
        if any(zero):
            raise CorruptError("the trailer's reserved bytes are not zero")
        if total != file_size:
            raise CorruptError(f"it should be {total} bytes long but is {file_size}")
        aligned = not (index_offset | index_bytes | tables_offset) % ALIGNMENT
        if not aligned or index_offset + index_bytes + TRAILER_BYTES != total:
            raise CorruptError("the trailer does not say where the index is")
        if not PROLOGUE_BYTES <= tables_offset <= index_offset or index_bytes < HEADER_BYTES:
            raise CorruptError("the trailer does not say where the index is")
        prologue = Prologue(file_id, writer, minimum, frame_log2, chunk_log2, incompatible, compatible)
        return cls(prologue, index_offset, index_bytes, tables_offset, total, root)
