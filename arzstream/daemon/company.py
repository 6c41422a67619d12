"""What lies beside a file of a watched checkpoint, for parsers of formats that keep names in a file of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterable, Mapping

from arzstream.daemon.scan import Identity
from arzstream.daemon.source import SourceFile
from arzstream.errors import ArzError
from arzstream.formats.base import Layout
from arzstream.formats.beside import folder_of, inside
from arzstream.formats.deepspeed import names_others
from arzstream.formats.distcp import METADATA

__all__ = ["Company", "lacks_names"]

DISTCP = b".distcp"
OPAQUE = "opaque"


def lacks_names(layout: Layout | None) -> bool:
    """Is this a file whose tensors are named in what is not there yet, in another file perhaps?"""
    return layout is not None and layout.format != OPAQUE and not layout.storages


class Company:
    """The files of one checkpoint by their paths inside it. The supervisor replaces ``files`` as they come and go; jobs
    read them in threads of their own. ``told`` is what files held in the checkpoint before this one."""

    def __init__(self) -> None:
        self.files: Mapping[bytes, SourceFile] = {}
        self.told: Mapping[bytes, bytes] | None = None
        """None while nobody was asked."""

    def paths(self) -> Iterable[bytes]:
        return list(self.files)

    def version(self, path: bytes) -> Hashable:
        file = self.files.get(path)
        with contextlib.suppress(ArzError, OSError):
            return Identity.of(file.status()) if file is not None else None
        return None

    def size(self, path: bytes) -> int:
        file = self.files.get(path)
        with contextlib.suppress(ArzError, OSError):
            return file.size if file is not None else 0
        return 0

    def read(self, path: bytes, offset: int, length: int) -> bytes:
        file = self.files.get(path)
        with contextlib.suppress(ArzError, OSError):  # gone by now; what it said is read again when it is back
            if file is not None:
                length = min(length, max(0, file.size - offset))
                return file.read_at(offset, length) if length else b""
        return b""

    def foretold(self, path: bytes) -> bytes | None:
        return (self.told or {}).get(path)

    def unnamed(self) -> set[bytes]:
        """Files with names that are not there yet, but for which others wait."""
        places = {inside(folder_of(path), METADATA) for path in self.files if path.endswith(DISTCP)}
        return places - self.files.keys()

    def news(self) -> Hashable:
        """What changes when names do."""
        named = [path for path in self.files if path.rpartition(b"/")[2] == METADATA or names_others(path)]
        return tuple((path, self.version(path)) for path in sorted(named)), self.told is not None
