"""A damaged answer from far away is asked for once more."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from arzstream.container.directory import Directory, open_directory
from arzstream.errors import CorruptError
from arzstream.limits import DEFAULT_LIMITS, Limits
from arzstream.store.ranges import DistantReader, RangeReader

__all__ = ["directory_of", "once_more"]

T = TypeVar("T")


def once_more(reader: RangeReader, function: Callable[[], T], offset: int = 0, length: int | None = None) -> T:
    """``function()``, and again if what it reads, ``length`` bytes from ``offset`` on, is damaged but comes from far
    away: the second answer may be right."""
    try:
        return function()
    except CorruptError:
        if not isinstance(reader, DistantReader):
            raise
        reader.forget(offset, reader.size - offset if length is None else length)
    return function()


def directory_of(reader: RangeReader, limits: Limits = DEFAULT_LIMITS) -> Directory:
    """:func:`~arzstream.container.directory.open_directory`, with a second try for a reader that is far away."""
    return once_more(reader, lambda: open_directory(reader, limits))
