"""Stores whose file systems are asynchronous: what they do runs on fsspec's own event loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from arzstream.store.address import redacted
from arzstream.store.objects import ObjectStore
from arzstream.store.patience import Patience, patiently, status_of

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

    def patiently(self, function: Callable[[], T], key: str, doing: str) -> T:
        """One of many steps, tried again by itself: all of them anew would take too long. Raises StorageError."""
        name = redacted(self._fs.unstrip_protocol(key))
        return patiently(function, name, doing, patience=self._patience, options=self._fs.storage_options)

    def refuse_taken(self, key: str) -> None:
        """Raises FileExistsError if there is such an object: before work that would be in vain, and for servers that
        do not know conditions. Who may not list a bucket is not told that there is none, and goes on."""
        try:
            self.head(key)
        except Exception as error:
            if status_of(error) in (403, 404):
                return
            raise
        raise FileExistsError(key)
