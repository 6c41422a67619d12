"""What a codec is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from arzstream.codec.dtypes import DType
from arzstream.codec.roles import Role

__all__ = ["ChunkContext", "Codec"]


@dataclasses.dataclass(frozen=True)
class ChunkContext:
    """What a chunk may be decoded from, beside its payload: ARZ-1 section 6."""

    dtype: DType
    rows: int
    cols: int
    references: Sequence[memoryview] = ()
    """Decoded bytes of the same tile of the unit's references, in order; one is decoded when it is looked at."""
    models: Sequence[bytes] = ()
    """Decoded MODEL payloads of the unit, in order; one is read when it is looked at."""
    role: Role = Role.OTHER
    """For encoders, who must not believe it: what the elements are."""
    roles: tuple[Role, ...] = ()
    """The same of each reference; empty where all are parents."""

    half: str = ""
    """The dtype of the reference that is in half precision."""

    def parents(self) -> Sequence[memoryview]:
        """The references that are the same tensor earlier."""
        if not self.roles:
            return self.references
        count = next((i for i, role in enumerate(self.roles) if role != Role.PARENT), len(self.roles))
        return self.references[:count]


class Codec(Protocol):
    """One way to write a chunk. Stateless, and safe to call from several threads."""

    @property
    def id(self) -> int:
        """Number in spec/registry.md."""

    @property
    def name(self) -> str:
        """Name in spec/registry.md."""

    def encode(self, data: memoryview, ctx: ChunkContext) -> bytes | memoryview | None:
        """The payload for ``data``, or None if the codec does not apply to it."""

    def decode(self, payload: memoryview, out: memoryview, ctx: ChunkContext) -> None:
        """Fill ``out`` (writable, the decoded length). Raises CorruptError; allocates in proportion to ``out`` only."""
