"""Whatever fsspec reads, as fsspec reads it: memory, hf, ftp, smb, chains, and protocols that plug-ins bring."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from arzstream.store.objects import BadAnswer, ObjectStore, Properties, Upload, Version
from arzstream.store.patience import Patience

__all__ = ["GenericStore"]

_TELLING = ("ETag", "etag", "generation", "blob_id", "LastModified", "last_modified", "mtime", "modified", "created")


class GenericStore(ObjectStore):
    """A file system that nothing more is known of. A commit looks whether the name is free and then moves."""

    properties = Properties(writable=True)

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    @classmethod
    def connect(cls, url: str, options: Mapping[str, Any], patience: Patience) -> tuple[ObjectStore, str]:
        import fsspec.core

        fs, path = fsspec.core.url_to_fs(url, **options)
        return cls(fs), path

    def head(self, key: str) -> Version:
        self._fs.invalidate_cache()
        return _version(self._fs.info(key))

    def get_into(self, key: str, start: int, out: memoryview, version: Version) -> None:
        data = self._fs.cat_file(key, start=start, end=start + len(out))
        if len(data) != len(out):
            raise BadAnswer(f"asked for {len(out)} bytes, it answers with {len(data)}")
        out[:] = data

    def upload(self, key: str) -> Upload:
        return _FsspecUpload(self._fs, key)

    def commit(self, temporary: str, final: str, version: Version, *, replace: bool) -> None:
        self._fs.invalidate_cache()
        if not replace and self._fs.exists(final):
            raise FileExistsError(final)
        from fsspec.spec import AbstractFileSystem

        if type(self._fs).mv is not AbstractFileSystem.mv:
            self._fs.mv(temporary, final)
        else:  # which takes names for patterns
            self._fs.cp_file(temporary, final)
            self._fs.rm_file(temporary)

    def remove(self, key: str) -> None:
        self._fs.invalidate_cache()
        if self._fs.exists(key):
            self._fs.rm_file(key)

    def names(self, folder: str, *, deep: bool = False) -> Iterator[tuple[str, Version]]:
        self._fs.invalidate_cache()
        try:
            found = self._fs.find(folder, detail=True).values() if deep else self._fs.ls(folder, detail=True)
        except FileNotFoundError:
            return
        for item in found:
            if item.get("type") == "file" and item.get("size") is not None:
                name = str(item["name"])
                below = posixpath.relpath(name, folder) if deep else posixpath.basename(name)
                yield below, _version(item)


def _version(info: Mapping[str, Any]) -> Version:
    if info.get("type") == "directory":
        raise IsADirectoryError("is a folder; name a file")
    if info.get("size") is None:
        raise BadAnswer("the store does not say how long it is")
    return Version(int(info["size"]), " ".join(str(info[name]) for name in _TELLING if info.get(name)))


class _FsspecUpload(Upload):
    """A file that fsspec writes; where it is a store of objects, in parts of its own."""

    def __init__(self, fs: Any, key: str) -> None:
        if hasattr(fs, "makedirs"):
            fs.makedirs(posixpath.dirname(key), exist_ok=True)
        self._fs, self._key = fs, key
        self._file = fs.open(key, "wb")

    def part(self, number: int, data: memoryview, last: bool) -> None:
        self._file.write(data)

    def finish(self) -> None:
        self._file.close()

    def abort(self) -> None:
        if hasattr(self._file, "discard"):
            self._file.discard()
        self._file.closed = True  # or what was written becomes an object when the file is forgotten
