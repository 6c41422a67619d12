"""Stores whose file systems are asynchronous: what they do runs on fsspec's own event loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from arzstream.store.objects import ObjectStore
from arzstream.store.patience import Patience

__all__ = ["LoopStore"]

T = TypeVar("T")


class LoopStore(ObjectStore):
    """A store over an asynchronous fsspec file system."""

    def __init__(self, fs: Any, patience: Patience) -> None:
        self._fs, self._patience = fs, patience

    @classmethod
    def connect(cls, url: str, options: Mapping[str, Any], patience: Patience) -> tuple[ObjectStore, str]:
        """Make the file system, with what we want of it where the user says nothing else. Nothing is sent yet."""
        import fsspec.core

        fs, path = fsspec.core.url_to_fs(url, **cls.options(options, patience))
        return cls(fs, patience), path

    @classmethod
    def options(cls, options: Mapping[str, Any], patience: Patience) -> dict[str, Any]:
        """``options`` of the file system with our defaults."""
        return dict(options)

    def run(self, function: Callable[..., Awaitable[T]], *arguments: Any, **keywords: Any) -> T:
        """Await ``function(…)`` on the loop, from a thread that may block."""
        from fsspec.asyn import sync

        result: T = sync(self._fs.loop, function, *arguments, **keywords)
        return result
