"""What packing achieved, in numbers."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

__all__ = ["PackSummary"]


@dataclasses.dataclass(frozen=True)
class PackSummary:
    """``bytes_in`` of source files, ``bytes_out`` of the archive, wall ``seconds``, and how many tensors, or parts of
    tensors, each codec holds."""

    bytes_in: int
    bytes_out: int
    seconds: float
    files: int
    tensors: int
    codecs: dict[str, int]
    content: str = ""
    """Content digest, hexadecimal: the checkpoint's identity."""
    opaque: dict[str, str] = dataclasses.field(default_factory=dict)
    """Files that could not be understood, or not wholly, and why."""
    archive: str = ""
    parents: list[list[str]] = dataclasses.field(default_factory=list)
    """(hint, content digest) of each archive that this one was coded against; none if it stands alone."""

    @property
    def ratio(self) -> float:
        """Archive ÷ source, 0.66 for 34 % saved; 1 for an empty source."""
        return self.bytes_out / self.bytes_in if self.bytes_in else 1.0

    def as_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "ratio": self.ratio}

    def to_json(self) -> str:
        return json.dumps(self.as_dict())
