"""What a tensor is to training: hints for coding, never needed to decode."""

from __future__ import annotations

import enum

__all__ = ["Role"]


class Role(enum.Enum):
    """Of a tensor, or of a reference that a chunk may be coded against."""

    OTHER = enum.auto()
    """Weights that are used as they are, and whatever has no part in training."""
    PARENT = enum.auto()
    """The same tensor in the checkpoint before; where there are two, in that and in the one before it."""
    HALF = enum.auto()
    """Weights in half precision, which the master weights round to."""
    MASTER = enum.auto()
    """Weights in single precision that are trained, and rounded for use."""
    MOMENT = enum.auto()
    """Adam's first moment: the mean of gradients."""
    SQUARE = enum.auto()
    """Adam's second moment: the mean of their squares."""
