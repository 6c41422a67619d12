"""Where the processor time of a call goes, by kind of work: functions are wrapped and each is charged for itself.

Time is that of the thread, so that neither waiting nor other programs count. What is charged to nothing is Python, the
interpreter's own work and the kernel's on its behalf.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["REST", "charged"]

REST = "Python and the rest"
_DIGESTS = ["decoding", "coder", "pipeline", "hashing"]
WRAPPED: dict[str, list[str]] = {
    "reading": ["store.ranges:LocalReader.read_into", "store.ranges:LocalReader.read_at"],
    "XXH3": [*(f"archive.{name}:xxh3_64" for name in _DIGESTS), "container.writer:xxh3_64", "container.scan:xxh3_64",
             "archive.builder:compare_source"],
    "codec": [*(f"codec.{name}.decode" for name in (
        "raw:Raw", "const:Const", "zstd:Zstd", "float_fast:FloatFast", "float_ctx:FloatCtx")),
        "archive.pipeline:encode_best"],
    "BLAKE3": ["archive.pipeline:MemberDigests.update"],
    "SHA-256": ["archive.hashing:PrefixHash.advance", "archive.deep:file_digest"],
    "writing": ["store.local:append", "store.local:write_at", "store.local:sync_file"],
    "allocating": ["kernels.memory:Results.empty"],
}  # fmt: skip


class _Account:
    """Seconds by kind, over all threads; a call inside another is charged to its own kind only."""

    def __init__(self) -> None:
        self.seconds: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()
        self._inner = threading.local()

    def wrap(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def charged_function(*arguments: Any, **keywords: Any) -> Any:
            outer = getattr(self._inner, "seconds", 0.0)
            self._inner.seconds = 0.0
            began = time.thread_time()
            try:
                return function(*arguments, **keywords)
            finally:
                spent = time.thread_time() - began
                with self._lock:
                    self.seconds[kind] += spent - self._inner.seconds
                self._inner.seconds = outer + spent

        return charged_function


@contextlib.contextmanager
def charged() -> Iterator[dict[str, float]]:
    """Inside, count; afterwards the yielded mapping has the seconds of processor time by kind, and :data:`REST`."""
    account, found, undo = _Account(), dict[str, float](), list[Callable[[], None]]()
    for kind, names in WRAPPED.items():
        for name in names:
            module, _, path = name.partition(":")
            *outer, last = path.split(".")
            holder: Any = importlib.import_module(f"arzstream.{module}")
            for part in outer:
                holder = getattr(holder, part)
            function = getattr(holder, last)
            undo.append(lambda holder=holder, last=last, function=function: setattr(holder, last, function))  # type: ignore[misc]
            setattr(holder, last, account.wrap(kind, function))
    began = time.process_time()
    try:
        yield found
    finally:
        total = time.process_time() - began
        for back in reversed(undo):
            back()
        found.update({kind: account.seconds[kind] for kind in WRAPPED})
        found[REST] = max(0.0, total - sum(found.values()))
