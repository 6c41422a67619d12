"""What a parser may look at beside its own file: other files of the checkpoint, which may name what is in this one."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Protocol

__all__ = ["NOTHING", "Beside", "folder_of", "inside"]


class Beside(Protocol):
    """The files of one checkpoint, by their paths relative to it. They may be growing, too."""

    def paths(self) -> Iterable[bytes]:
        """All files that can be read now."""
        ...

    def version(self, path: bytes) -> Hashable:
        """What changes when the file changes; None if there is no such file. (An answer is good until it changes.)"""
        ...

    def size(self, path: bytes) -> int:
        """How long a file is now; 0 if there is none."""
        ...

    def read(self, path: bytes, offset: int, length: int) -> bytes:
        """Bytes of a file, fewer at its end, none if there is no such file. Raises what reading raises."""
        ...

    def foretold(self, path: bytes) -> bytes | None:
        """What a file that is not there yet will hold, as far as can be guessed: what it held in the checkpoint
        before this one."""
        ...


class _Nothing:
    def paths(self) -> Iterable[bytes]:
        return ()

    def version(self, path: bytes) -> Hashable:
        return None

    def size(self, path: bytes) -> int:
        return 0

    def read(self, path: bytes, offset: int, length: int) -> bytes:
        return b""

    def foretold(self, path: bytes) -> bytes | None:
        return None


NOTHING: Beside = _Nothing()
"""A file that lies alone."""


def folder_of(path: bytes) -> bytes:
    """The folder of a path inside a checkpoint; empty for the checkpoint's own."""
    return path.rpartition(b"/")[0]


def inside(folder: bytes, name: bytes) -> bytes:
    """The path of what is called ``name`` in ``folder``."""
    return folder + b"/" + name if folder else name
