"""Canonical metadata: MessagePack with exactly one encoding per value; ARZ-1 section 4.1."""

from __future__ import annotations

from typing import Any

import msgpack

from arzstream.errors import CorruptError, LimitError
from arzstream.limits import DEFAULT_LIMITS, Limits

__all__ = ["pack", "unpack"]


def pack(value: Any, *, max_depth: int = DEFAULT_LIMITS.metadata_depth) -> bytes:
    """Encode ``value``: nil, bool, int, str, bytes, list or tuple, dict with string keys; anything else raises
    CorruptError."""
    return bytes(msgpack.packb(_canonical(value, max_depth), use_bin_type=True))


def unpack(data: bytes | memoryview, limits: Limits = DEFAULT_LIMITS) -> Any:
    """Decode ``data`` and refuse it unless encoding the result gives the same bytes again.

    Arrays come back as lists. Raises CorruptError, or LimitError if ``data`` is longer than ``limits.metadata_bytes``.
    """
    if len(data) > limits.metadata_bytes:
        raise LimitError(f"metadata of {len(data)} bytes; at most {limits.metadata_bytes} are read")
    try:
        # The lengths msgpack announces are bounded by the bytes that are there, so nothing larger is allocated.
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            use_list=True,
            max_str_len=len(data),
            max_bin_len=len(data),
            max_array_len=len(data),
            max_map_len=len(data),
        )
        again = pack(value, max_depth=limits.metadata_depth)
    except CorruptError:
        raise
    except Exception as error:  # noqa: BLE001  msgpack raises ValueError, its own exceptions and RecursionError
        raise CorruptError(f"metadata does not parse: {type(error).__name__}: {error}") from None
    if again != data:
        raise CorruptError("metadata is not in canonical form")
    return value


def _canonical(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, (bool, int, str, bytes)):
        return value
    if depth == 0:
        raise CorruptError("metadata is nested too deeply")
    if isinstance(value, (list, tuple)):
        return [_canonical(item, depth - 1) for item in value]
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise CorruptError("metadata has a key that is not a string")
        return {key: _canonical(value[key], depth - 1) for key in sorted(value, key=lambda key: key.encode())}
    raise CorruptError(f"metadata holds a {type(value).__name__}")
