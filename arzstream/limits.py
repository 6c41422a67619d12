"""What a hostile or damaged file may make us do; ARZ-1 section 10."""

from __future__ import annotations

import dataclasses

__all__ = ["DEFAULT_LIMITS", "Limits"]

KIB, MIB, TIB = 1 << 10, 1 << 20, 1 << 40


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds checked before anything is allocated. Lengths are in bytes.

    Which one an archive meets first depends on it: an INDEX of ``metadata_bytes`` and ``metadata_items`` lists some
    250,000 units of one tensor each, and fewer than ``units`` in any case.
    """

    units: int = 1_000_000
    members: int = 1_000_000
    files: int = 1_000_000
    chunks_per_unit: int = 1_000_000
    name_bytes: int = KIB
    path_bytes: int = 4 * KIB
    dimensions: int = 32
    metadata_bytes: int = 64 * MIB
    metadata_items: int = 16_000_000
    """Arrays and maps in the metadata of one frame, and their items: 64 bytes of memory each, whatever their bytes."""
    metadata_depth: int = 8
    chunk_bytes: int = 256 * MIB
    total_bytes: int = 16 * TIB
    """Decoded bytes of one archive, duplicates and file recipes included."""
    expansion: int | None = None
    """Decoded bytes per stored byte; set to 64 for input that is not trusted."""
    parent_depth: int = 64


DEFAULT_LIMITS = Limits()
