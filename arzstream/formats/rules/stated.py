"""What a file of torch.save states about the run that wrote it, read without unpickling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arzstream.formats.base import Malformed
from arzstream.formats.evidence import Folder
from arzstream.formats.pickle_data import attributes, pairs
from arzstream.formats.pickle_walk import Machine
from arzstream.formats.zip_records import read_directory

__all__ = ["count", "stated"]

MOST_PICKLE = 8 << 20
"""Bytes of a pickle that is searched."""
MOST_RANKS = 1 << 16


def stated(folder: Folder, path: bytes) -> Mapping[str, Any]:
    """The root's entries or attributes by name, as nodes of ``pickle_walk``; none while the file is not whole, and of
    what is no zip file of torch.save."""
    facts = folder.files.get(path)
    if facts is None or facts.layout is None or not facts.layout.complete or facts.layout.format == "opaque":
        return {}
    found: Mapping[str, Any] = folder.once("stated", path, lambda: _read(folder, path, facts.size))
    return found


def count(value: Any) -> int | None:
    """A number of ranks, if it can be one."""
    return value if isinstance(value, int) and value is not True and 0 < value <= MOST_RANKS else None


def _read(folder: Folder, path: bytes, size: int) -> Mapping[str, Any]:
    def read(offset: int, length: int) -> bytes:
        return folder.read(path, offset, length) or b""

    try:
        for record in read_directory(read, size) or ():
            if record.name.endswith(b"/data.pkl") and record.method == 0 and record.size <= MOST_PICKLE:
                root = Machine(read(record.start, record.size)).run()
                return attributes(root) or {key: value for key, value in pairs(root) if isinstance(key, str)}
    except Malformed:
        pass
    return {}
