"""Codec 3: Zstandard over byte planes; with one plane also the codec of metadata."""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence

import numpy as np
import zstandard

from arzstream.codec.base import ChunkContext
from arzstream.codec.dtypes import DTYPES
from arzstream.errors import CorruptError
from arzstream.kernels import api

__all__ = ["STRIDES", "Zstd", "decode_metadata", "encode_metadata", "encode_planes"]

STRIDES = (1, 2, 4, 8, 16)
DEFAULT_LEVEL = 3
METADATA_LEVEL = 9
_STORED = 1 << 31
_BYTES = ChunkContext(DTYPES["U8"], 1, 1)
_local = threading.local()  # contexts of the library must not be shared between threads


def _compressor(level: int) -> zstandard.ZstdCompressor:
    cache: dict[int, zstandard.ZstdCompressor] = _local.__dict__.setdefault("compressors", {})
    if level not in cache:
        cache[level] = zstandard.ZstdCompressor(level=level, write_checksum=False, write_content_size=True)
    return cache[level]


def _decompressor() -> zstandard.ZstdDecompressor:
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    return _local.decompressor  # type: ignore[no-any-return]


def encode_planes(data: memoryview, stride: int, levels: Sequence[int], stored: int = 0) -> bytes:
    """Payload of codec 3, each plane at the level that makes it smallest.

    ``stored`` has bit j set where plane j is known not to shrink and is not even tried.
    """
    count = len(data) // stride
    planes = api.split_planes(data, stride) if stride > 1 else np.frombuffer(data, np.uint8)
    header = bytearray(struct.pack("<B3x", stride))
    parts: list[bytes | bytearray | memoryview] = [header]
    for j in range(stride):
        plane = planes[j * count : (j + 1) * count].data
        skip = not count or stored >> j & 1
        packed = None if skip else min((_compressor(level).compress(plane) for level in levels), key=len)
        if packed is not None and len(packed) < count:
            header += struct.pack("<I", len(packed))
            parts.append(packed)
        else:
            header += struct.pack("<I", count | _STORED)
            parts.append(plane)
    return b"".join(parts)


def _decode_plane(stored: memoryview, count: int) -> bytes:
    try:
        frame = zstandard.get_frame_parameters(stored)
        if frame.content_size != count or frame.dict_id:
            raise CorruptError("a Zstandard plane states a wrong size; the chunk is damaged")
        return _decompressor().decompress(stored, max_output_size=count, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptError(f"a Zstandard plane does not decode ({error}); the chunk is damaged") from None


class Zstd:
    id = 3
    name = "zstd"

    def encode(self, data: memoryview, ctx: ChunkContext) -> bytes | None:
        """One plane per byte of an element, at the default level."""
        stride = ctx.dtype.itemsize
        return encode_planes(data, stride if stride in STRIDES and len(data) % stride == 0 else 1, (DEFAULT_LEVEL,))

    def decode(self, payload: memoryview, out: memoryview, ctx: ChunkContext) -> None:
        if len(payload) < 4 or payload[0] not in STRIDES or any(payload[1:4]):
            raise CorruptError("a zstd chunk has a bad header; the chunk is damaged")
        stride = payload[0]
        count, odd = divmod(len(out), stride)
        place = 4 + 4 * stride
        if odd or len(payload) < place:
            raise CorruptError("a zstd chunk has a bad number of planes; the chunk is damaged")
        planes = np.empty(len(out), np.uint8) if stride > 1 else np.frombuffer(out, np.uint8)
        for j in range(stride):
            (word,) = struct.unpack_from("<I", payload, 4 + 4 * j)
            length = word & ~_STORED
            plane = payload[place : place + length]
            place += length
            if len(plane) != length or (length != count if word & _STORED else not count):
                raise CorruptError("a zstd chunk has a plane of a wrong length; the chunk is damaged")
            planes[j * count : (j + 1) * count] = np.frombuffer(
                plane if word & _STORED else _decode_plane(plane, count), np.uint8
            )
        if place != len(payload):
            raise CorruptError("a zstd chunk goes on after its last plane; the chunk is damaged")
        if stride > 1:
            api.merge_planes(planes, stride, out)


_zstd = Zstd()


def encode_metadata(data: bytes | memoryview) -> tuple[int, bytes]:
    """(codec number, payload) for metadata: raw, or zstd with stride 1 where that is smaller."""
    payload = encode_planes(memoryview(data), 1, (METADATA_LEVEL,))
    return (Zstd.id, payload) if len(payload) < len(data) else (0, bytes(data))


def decode_metadata(codec_id: int, payload: bytes | memoryview, decoded_length: int) -> bytes:
    """Undo :func:`encode_metadata`. The caller has bounded ``decoded_length``. Raises CorruptError."""
    view = memoryview(payload)
    if codec_id == 0 and len(view) == decoded_length:
        return bytes(view)
    if codec_id != Zstd.id or len(view) < 4 or view[0] != 1:
        raise CorruptError("metadata is stored with a wrong codec or length; the archive is damaged")
    # A frame that lies about its size must not make us allocate: deflation by more than 2^16 is not believed.
    if decoded_length > len(view) << 16:
        raise CorruptError("metadata claims an impossible size; the archive is damaged")
    out = bytearray(decoded_length)
    _zstd.decode(view, memoryview(out), _BYTES)
    return bytes(out)
