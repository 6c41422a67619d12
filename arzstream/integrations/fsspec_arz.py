"""``arz://`` as a file system of fsspec: the original files of an archive, decoded as they are read.

``fsspec.open("arz://model.safetensors::s3://models/llama.arz")`` is the file that was packed, seekable, and only what
is read of it is decoded. So whatever reads through fsspec reads archives. Read-only.
"""

from __future__ import annotations

import datetime
import io
import os
import posixpath
from typing import Any

from fsspec.archive import AbstractArchiveFileSystem

from arzstream.archive.ancestry import SearchPath
from arzstream.archive.files import piece_starts, read_range
from arzstream.archive.reader import Archive
from arzstream.archive.reader import open as open_archive
from arzstream.container.records import Kind

__all__ = ["ArzFileSystem"]

MOST_LINKS = 40
_KINDS = {Kind.REGULAR: "file", Kind.DIRECTORY: "directory", Kind.LINK: "link"}


class ArzFileSystem(AbstractArchiveFileSystem):  # type: ignore[misc]
    """The files of one archive.

    ``fo`` is the archive's path or URL, or an open :class:`~arzstream.Archive`, which stays open; fsspec gives it, and
    ``target_protocol`` and ``target_options``, from chained URLs. ``parents`` and ``jobs`` as in
    :func:`arzstream.open`. Raises what that raises. :meth:`close`, or the end of a ``with``, closes the archive.
    """

    root_marker = ""
    protocol = "arz"
    cachable = False

    def __init__(
        self,
        fo: str | os.PathLike[str] | Archive = "",
        target_protocol: str | None = None,
        target_options: dict[str, Any] | None = None,
        parents: SearchPath = None,
        jobs: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._own = not isinstance(fo, Archive)
        if isinstance(fo, Archive):
            self.archive = fo
        else:
            url, options = _location(os.fspath(fo), target_protocol, target_options or {})
            self.archive = open_archive(url, options or None, parents, jobs=jobs)
        self.fo = self.archive.name
        self.dir_cache: dict[str, dict[str, Any]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path)).strip("/")

    def _get_dirs(self) -> None:
        if self.dir_cache or not self.archive.catalog.files:
            return
        found: dict[str, dict[str, Any]] = {}
        for path, record in self.archive.catalog.files.items():
            if record.kind not in _KINDS:
                continue
            found[path] = {
                "name": path, "size": record.size, "type": _KINDS[record.kind], "mode": record.mode,
                "mtime": record.mtime / 1e9, "created": None,
                "sha256": record.sha256.hex() if record.kind == Kind.REGULAR else None,
            }  # fmt: skip
            if record.kind == Kind.LINK:
                found[path].update(islink=True, destination=os.fsdecode(record.target))
        for folder in self._all_dirnames(set(found)) - set(found):
            found[folder] = {"name": folder, "size": 0, "type": "directory"}
        self.dir_cache = found

    def modified(self, path: str) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self.info(path)["mtime"], tz=datetime.timezone.utc)

    def checksum(self, path: str) -> int:
        return int(self.info(path)["sha256"][:16], 16)

    def _regular(self, path: str) -> str:
        """The regular file that ``path`` is, or that it leads to. Raises FileNotFoundError, IsADirectoryError."""
        info = self.info(path)
        for _ in range(MOST_LINKS):
            if info["type"] != "link":
                break
            info = self.info(posixpath.normpath(posixpath.join(posixpath.dirname(info["name"]), info["destination"])))
        if info["type"] == "directory":
            raise IsADirectoryError(path)
        if info["type"] == "link":
            raise FileNotFoundError(path)
        return str(info["name"])

    def _open(self, path: str, mode: str = "rb", **_kwargs: Any) -> io.BufferedReader:
        if mode not in ("rb", "r"):
            raise OSError(f"{path}: archives are read-only")
        file = self.archive.open_file(self._regular(path))
        file.fs = self  # type: ignore[attr-defined]  # whoever keeps only the file keeps the archive open
        return file

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_kwargs: Any) -> bytes:
        """Bytes [start, end) of a file, counted as in a slice; only they are decoded."""
        record = self.archive.catalog.files[self._regular(path)]
        low, high, _ = slice(start, end).indices(record.size)
        return bytes(read_range(self.archive.decoder, record, piece_starts(record), low, max(low, high)))

    def close(self) -> None:
        if self._own:
            self.archive.close()

    def __enter__(self) -> ArzFileSystem:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if "archive" in vars(self):
            self.close()


def _location(path: str, protocol: str | None, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The URL of an archive, and options for it, from what fsspec makes of a chained URL: a path without its protocol,
    and, where the chain goes on, the rest of it in ``target_protocol``, ``target_options`` and ``fo``."""
    if protocol is None or "://" in path or "::" in path or (os.path.isabs(path) and protocol in ("file", "local")):
        return path, options
    if protocol in ("file", "local"):
        return f"file://{os.path.abspath(path)}", options
    if "target_protocol" in options:
        own = {key: value for key, value in options.items() if key not in ("fo", "target_protocol", "target_options")}
        inner, more = _location(
            options.get("fo", path), options["target_protocol"], options.get("target_options") or {}
        )
        head = f"{protocol}://{path}" if path != options.get("fo", path) else protocol
        by_protocol = more if "::" in inner else {options["target_protocol"]: more}
        return f"{head}::{inner}", {protocol: own, **by_protocol}
    return f"{protocol}://{path}", options
