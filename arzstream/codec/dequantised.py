"""Codec 7: floats that are integers times a scale, as quantised models are when somebody has made floats of them again.

The integers are coded as codec 6 codes int8; the scales are found again (``find_scales``). What does not come out
exactly is listed.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arzstream.codec.base import ChunkContext
from arzstream.codec.block_layouts import SCALES
from arzstream.codec.find_scales import KINDS, LARGEST, Kind, find_scales, likely
from arzstream.codec.quant_blocks import decode_records, encode_parts, encode_records
from arzstream.errors import CorruptError
from arzstream.kernels.records import scale_codes

__all__ = ["Dequantised", "encode_dequantised"]

U8 = NDArray[np.uint8]
I8 = NDArray[np.int8]
F32 = NDArray[np.float32]

_HEADER = struct.Struct("<IIIII")
_MINUS_ZERO = 1
GROUPS = (128, 64, 32)
"""Elements that share a scale, where it is not a row or everything."""
MIN_ROW = 16
TRIED = 8
"""Groups that a size is tried on."""
SOLVED_SHARE = 512
"""Elements of a group that its scale is found from; where it then does not fit all, from all."""
MAX_EXCEPTIONS = 1 / 32
"""Share of elements above which it does not apply."""


def _as_floats(data: memoryview, dtype: str) -> F32:
    if dtype == "BF16":
        wide: F32 = (np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
        return wide
    if dtype == "F16":
        return np.frombuffer(data, "<f2").astype(np.float32)
    return np.frombuffer(data, "<f4")


def _sample_of(data: memoryview, itemsize: int) -> memoryview:
    """The middle of the data."""
    size = 1 << 10
    count = len(data) // itemsize
    start = max(0, (count - size) // 2) // 32 * 32
    return data[start * itemsize : (start + size) * itemsize]


def _group_size(values: F32, cols: int, kind: Kind) -> int | None:
    """How many elements share a scale: the most for which a few groups have one."""
    rows = [cols] if MIN_ROW <= cols <= len(values) else []
    sizes = [*rows, *(g for g in GROUPS if cols % g == 0 or cols < MIN_ROW)]
    if cols < MIN_ROW:
        sizes.insert(0, len(values))
    for size in sizes:
        whole = len(values) // size
        if not whole or len(values) % size:
            continue
        tried = np.arange(min(TRIED, whole)) * whole // min(TRIED, whole)
        some = values.reshape(whole, size)[tried]
        scales, found = find_scales(_thinned(some), kind)
        if np.count_nonzero(found) * 8 >= len(found) * 7 and scales.any():
            return size
    return None


def _thinned(groups: F32) -> F32:
    step = -(-groups.shape[1] // SOLVED_SHARE)
    # An odd step, so that a pattern in the columns does not hide the rest.
    thinned: F32 = groups[:, :: step | 1]
    return thinned


def _codes(groups: F32, scales: F32, minus_zero: bool) -> I8:
    with np.errstate(all="ignore"):
        ratio = groups / np.where(scales == 0, np.float32(1), scales)[:, None]
        np.rint(ratio, out=ratio)
        codes = np.clip(np.nan_to_num(ratio, copy=False), -LARGEST - (not minus_zero), LARGEST).astype(np.int8)
    if minus_zero:
        codes[(groups == 0) & np.signbit(groups)] = -128
    return codes


def encode_dequantised(data: memoryview, ctx: ChunkContext, contexts: bool = True) -> bytes | None:
    """Payload for a chunk of floats that are codes times scales; None if they are not. Costs next to nothing then."""
    kind = KINDS.get(ctx.dtype.name)
    if kind is None or not likely(_as_floats(_sample_of(data, ctx.dtype.itemsize), ctx.dtype.name), kind):
        return None
    values = _as_floats(data, ctx.dtype.name)
    group = _group_size(values, ctx.cols, kind)
    if group is None:
        return None
    groups = values.reshape(-1, group)
    scales, _ = find_scales(_thinned(groups), kind)
    minus_zero = bool(np.any((values == 0) & np.signbit(values)))
    codes = _codes(groups, scales, minus_zero)
    source = np.frombuffer(data, f"<u{ctx.dtype.itemsize}")
    wrong = _wrong(codes, scales, minus_zero, ctx, source)
    again = np.flatnonzero(wrong.reshape(groups.shape).any(axis=1))
    if len(again) and group > SOLVED_SHARE:
        scales[again], _ = find_scales(groups[again], kind)
        codes[again] = _codes(groups[again], scales[again], minus_zero)
        wrong = _wrong(codes, scales, minus_zero, ctx, source)
    exceptions = np.flatnonzero(wrong).astype("<u4")
    if len(exceptions) > MAX_EXCEPTIONS * len(values):
        return None
    flat = codes.reshape(-1).view(np.uint8)
    coded = encode_records(flat, ctx.cols if ctx.cols >= MIN_ROW else len(flat), None, contexts)
    scale_bytes = scales.astype("<f4").view(np.uint8)
    coded_scales = encode_parts(SCALES, scale_bytes, len(scales), False)
    parts = [_stream(coded_scales, scale_bytes), _stream(coded, flat), exceptions.tobytes(), source[wrong].tobytes()]
    head = _HEADER.pack(_MINUS_ZERO * minus_zero, group, len(parts[0]), len(parts[1]), len(exceptions))
    return b"".join([head, *parts])


def _wrong(codes: I8, scales: F32, minus_zero: bool, ctx: ChunkContext, source: NDArray[Any]) -> NDArray[np.bool_]:
    """Which elements do not come out as they are in ``source``."""
    out = np.empty(source.nbytes, np.uint8)
    scale_codes(codes.reshape(-1), codes.shape[1], scales, minus_zero, ctx.dtype.name, out)
    differ: NDArray[np.bool_] = out.view(source.dtype) != source
    return differ


def _stream(coded: bytes | None, plain: U8) -> bytes:
    return coded if coded is not None and len(coded) < len(plain) else plain.tobytes()


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise CorruptError(f"a dequantised chunk has {what}; the chunk is damaged")


def _read_stream(stored: memoryview, length: int) -> U8:
    if len(stored) == length:
        return np.frombuffer(stored, np.uint8)
    _require(0 < len(stored) < length, "a stream of a wrong length")
    out = np.empty(length, np.uint8)
    decode_records(stored, out.data)
    return out


class Dequantised:
    id = 7
    name = "dequantised"

    def encode(self, data: memoryview, ctx: ChunkContext) -> bytes | None:
        """None for types other than BF16, F16 and F32, and for floats that are no integers times scales."""
        return encode_dequantised(data, ctx)

    def decode(self, payload: memoryview, out: memoryview, ctx: ChunkContext) -> None:
        _require(ctx.dtype.name in KINDS, "elements of another type")
        itemsize = ctx.dtype.itemsize
        count, odd = divmod(len(out), itemsize)
        _require(not odd and count > 0 and len(payload) >= _HEADER.size, "a wrong length")
        flags, group, scale_bytes, code_bytes, n_exceptions = _HEADER.unpack_from(payload)
        _require(flags <= _MINUS_ZERO and group >= 1, "a bad header")
        n_groups = -(-count // group)
        codes_at = _HEADER.size + scale_bytes
        listed_at = codes_at + code_bytes
        values_at = listed_at + 4 * n_exceptions
        _require(values_at + itemsize * n_exceptions == len(payload), "streams of a wrong length")
        scales = _read_stream(payload[_HEADER.size : codes_at], 4 * n_groups).view("<f4").astype(np.float32)
        usual = (scales >= np.finfo(np.float32).tiny) & np.isfinite(scales)
        _require(bool(np.all(usual | (scales.view(np.uint32) == 0))), "a scale that cannot be")
        codes = _read_stream(payload[codes_at:listed_at], count).view(np.int8)
        target = np.frombuffer(out, np.uint8)
        scale_codes(codes, min(group, count), scales, bool(flags & _MINUS_ZERO), ctx.dtype.name, target)
        if n_exceptions:
            places = np.frombuffer(payload, "<u4", n_exceptions, listed_at).astype(np.int64)
            _require(bool(np.all(np.diff(places) > 0)) and places[-1] < count, "exceptions out of order")
            target.view(f"<u{itemsize}")[places] = np.frombuffer(payload, f"<u{itemsize}", n_exceptions, values_at)
