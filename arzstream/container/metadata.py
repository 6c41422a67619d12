"""Canonical metadata: MessagePack with exactly one encoding per value; ARZ-1 section 4.1."""

from __future__ import annotations

import itertools
from typing import Any

import msgpack

from arzstream.errors import CorruptError, LimitError
from arzstream.limits import DEFAULT_LIMITS, Limits

__all__ = ["Charge", "count_items", "pack", "unpack"]


LEAST_CHARGED, EXPANSION = 16 << 20, 64
"""What the metadata of any archive may come to, in bytes; and per stored byte where ``Limits.expansion`` is not set: it
lies beside headers, digests and names, and takes more than that."""


class Charge:
    """What the metadata and chunk tables of one archive decode to in all, against what they may: a few kilobytes can
    stand for gigabytes, of which each frame by itself is within the limits."""

    def __init__(self, limits: Limits) -> None:
        self._most, self._expansion = limits.total_bytes, limits.expansion or EXPANSION
        self._total = 0

    def check(self, nbytes: int, stored: int) -> None:
        """May ``nbytes`` more be decoded, of an archive that has ``stored`` bytes so far? Raises LimitError."""
        most = max(LEAST_CHARGED, min(self._most, self._expansion * stored))
        if self._total + nbytes > most:
            raise LimitError(f"its metadata would decode to {self._total + nbytes} bytes; at most {most} are allowed")

    def add(self, nbytes: int) -> None:
        """So much was decoded, and is kept."""
        self._total += nbytes


def pack(value: Any, *, max_depth: int = DEFAULT_LIMITS.metadata_depth) -> bytes:
    """Encode ``value``: nil, bool, int, str, bytes, list or tuple, dict with string keys; anything else raises
    CorruptError."""
    return bytes(msgpack.packb(_canonical(value, max_depth), use_bin_type=True))


def unpack(data: bytes | memoryview, limits: Limits = DEFAULT_LIMITS) -> Any:
    """Decode ``data`` and refuse it unless encoding the result gives the same bytes again.

    Arrays come back as lists. Raises CorruptError, or LimitError for more than ``limits.metadata_bytes`` bytes or
    ``limits.metadata_items`` arrays, maps and items of them.
    """
    if len(data) > limits.metadata_bytes:
        raise LimitError(f"metadata of {len(data)} bytes; at most {limits.metadata_bytes} are read")
    most = min(len(data), limits.metadata_items)
    count = _Count(limits.metadata_items)
    try:
        # The lengths msgpack announces are bounded by the bytes that are there, so nothing larger is allocated.
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            use_list=True,
            list_hook=count,
            object_hook=count,
            max_str_len=len(data),
            max_bin_len=len(data),
            max_array_len=most,
            max_map_len=most,
        )
        _check(value, limits.metadata_depth)
        again = msgpack.packb(value, use_bin_type=True)  # maps keep the order they have in ``data``
    except CorruptError:
        raise
    except (ValueError, TypeError, RecursionError, MemoryError, msgpack.UnpackException) as error:
        raise CorruptError(f"metadata does not parse: {type(error).__name__}: {error}") from None
    if again != data:
        raise CorruptError("metadata is not in canonical form")
    return value


def count_items(value: Any) -> int:
    """What ``limits.metadata_items`` counts: arrays and maps, and their items."""
    if isinstance(value, (list, tuple)):
        return 1 + len(value) + sum(map(count_items, value))
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(count_items, value.values()))
    return 0


class _Count:
    """Counts while msgpack builds them: an array takes one byte in a file and 64 in memory, so bytes are no bound."""

    def __init__(self, most: int) -> None:
        self._left = self._most = most

    def __call__(self, container: Any) -> Any:
        self._left -= 1 + len(container)
        if self._left < 0:
            raise LimitError(f"metadata of more than {self._most} items; that many are not read")
        return container


def _check(value: Any, depth: int) -> None:
    """What encoding again does not show: types that have no place here, depth, the order of keys."""
    kind = type(value)
    if kind in _PLAIN:
        return
    if depth == 0:
        raise CorruptError("metadata is nested too deeply")
    if kind is list:
        for item in value:
            if type(item) not in _PLAIN:
                _check(item, depth - 1)
    elif kind is dict:
        if not all(type(key) is str for key in value):
            raise CorruptError("metadata has a key that is not a string")
        keys = [key.encode() for key in value]
        if any(a >= b for a, b in itertools.pairwise(keys)):
            raise CorruptError("metadata is not in canonical form (order of keys)")
        for item in value.values():
            _check(item, depth - 1)
    else:
        raise CorruptError(f"metadata holds a {kind.__name__}")


_PLAIN = frozenset({type(None), bool, int, str, bytes})


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
