"""Digests of buffers. Every function takes any contiguous bytes-like object and copies nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Protocol

import google_crc32c
import xxhash
from blake3 import blake3 as _Blake3

__all__ = ["Hasher", "blake3", "blake3_hasher", "crc32c", "sha256_hasher", "xxh3_64"]

Buffer = bytes | bytearray | memoryview


class Hasher(Protocol):
    """The part of hashlib's interface that both hashers share."""

    def update(self, data: Any, /) -> object: ...

    def digest(self) -> bytes: ...

    def hexdigest(self) -> str: ...


_crc32c: Callable[[bytes], int] = google_crc32c.value


def xxh3_64(data: Buffer) -> int:
    """XXH3-64 of ``data``, seed 0."""
    return xxhash.xxh3_64_intdigest(data)


def crc32c(data: Buffer) -> int:
    """CRC-32C (Castagnoli) of ``data``."""
    return _crc32c(data if isinstance(data, bytes) else bytes(data))


def blake3(data: Buffer) -> bytes:
    """Unkeyed BLAKE3 of ``data``, 32 bytes."""
    return _Blake3(data).digest()


def blake3_hasher() -> Hasher:
    """An incremental BLAKE3."""
    return _Blake3()


def sha256_hasher() -> Hasher:
    """An incremental SHA-256."""
    return hashlib.sha256()
