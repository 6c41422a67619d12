"""Lossless, streaming archives for model checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Archive",
    "ArzError",
    "CorruptError",
    "LimitError",
    "Limits",
    "MissingParentError",
    "PackSummary",
    "RecoverReport",
    "SourceChangedError",
    "StorageError",
    "UnsupportedError",
    "VerifyReport",
    "__version__",
    "open",
    "pack",
    "recover",
    "safe_open",
    "torch",
    "transformers",
    "unpack",
    "verify",
]

_HOME = {
    "Archive": "arzstream.archive.reader",
    "ArzError": "arzstream.errors",
    "CorruptError": "arzstream.errors",
    "LimitError": "arzstream.errors",
    "Limits": "arzstream.limits",
    "MissingParentError": "arzstream.errors",
    "PackSummary": "arzstream.archive.summary",
    "RecoverReport": "arzstream.archive.recover",
    "SourceChangedError": "arzstream.errors",
    "StorageError": "arzstream.errors",
    "UnsupportedError": "arzstream.errors",
    "VerifyReport": "arzstream.archive.verify",
    "open": "arzstream.archive.reader",
    "pack": "arzstream.archive.pack",
    "recover": "arzstream.archive.recover",
    "safe_open": "arzstream.archive.compat",
    "unpack": "arzstream.archive.restore",
    "verify": "arzstream.archive.verify",
}

if TYPE_CHECKING:
    from arzstream import torch, transformers
    from arzstream.archive.compat import safe_open
    from arzstream.archive.pack import pack
    from arzstream.archive.reader import Archive, open
    from arzstream.archive.recover import RecoverReport, recover
    from arzstream.archive.restore import unpack
    from arzstream.archive.summary import PackSummary
    from arzstream.archive.verify import VerifyReport, verify
    from arzstream.errors import (
        ArzError,
        CorruptError,
        LimitError,
        MissingParentError,
        SourceChangedError,
        StorageError,
        UnsupportedError,
    )
    from arzstream.limits import Limits


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for, so that importing the package costs nothing (PEP 562)."""
    import importlib

    if name in ("torch", "transformers"):
        return importlib.import_module(f"arzstream.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'arzstream' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
