"""Which archives lie in a folder, local or behind a URL: where a parent may be looked for."""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Mapping
from typing import Any

from arzstream.store.address import is_remote, is_url, local_path, redacted
from arzstream.store.backends import connect
from arzstream.store.patience import patiently

__all__ = ["archives_in", "beside", "folder_of", "is_archive_name", "objects_below", "same_place"]

SUFFIX = ".arz"
MOST = 10_000
"""Archives of one folder that are looked at."""


def is_archive_name(place: str) -> bool:
    """Is this the name of an archive, not of a folder?"""
    return place.endswith(SUFFIX)


def folder_of(place: str) -> str:
    """The folder that holds the file at ``place``, a path or a URL."""
    return place.rpartition("/")[0] if is_url(place) else os.path.dirname(os.path.abspath(place))


def beside(folder: str, name: str) -> str:
    """The place of ``name`` in ``folder``."""
    return posixpath.join(folder, name) if is_url(folder) else os.path.join(folder, *name.split("/"))


def same_place(one: str, other: str) -> bool:
    """Do two local names mean one file? URLs of what is not local are compared as they are written."""
    if is_remote(one) or is_remote(other):
        return one == other
    one, other = local_path(one), local_path(other)
    with contextlib.suppress(OSError):  # one of them is not there, or a link that leads nowhere
        return os.path.samefile(one, other)
    return os.path.realpath(one) == os.path.realpath(other)


def archives_in(folder: str, storage_options: Mapping[str, Any] | None = None) -> list[str]:
    """The archives in ``folder`` itself, by name; none if it cannot be listed. Parents lie there, or elsewhere."""
    if is_url(folder) and not folder.startswith("file://"):
        return _behind(folder, storage_options)
    path = folder.removeprefix("file://")
    try:
        names = sorted(name for name in os.listdir(path) if is_archive_name(name))
    except OSError:
        return []
    return [os.path.join(path, name) for name in names[:MOST]]


def objects_below(folder: str, storage_options: Mapping[str, Any] | None = None) -> list[tuple[str, int]]:
    """The objects below the URL ``folder``, by their names from there on, with their lengths; nothing if there are
    none, or if the store cannot list. Raises StorageError."""
    store, key = connect(folder, storage_options)
    try:
        found = patiently(
            lambda: list(store.names(key, deep=True)), redacted(folder), "list it", options=storage_options
        )  # fmt: skip
    except NotImplementedError:
        return []
    finally:
        store.close(key)
    # Some programs make empty objects with a slash at their end to show folders.
    return sorted((name, version.size) for name, version in found if name and not name.endswith("/"))


def _behind(folder: str, storage_options: Mapping[str, Any] | None) -> list[str]:
    try:
        store, key = connect(folder, storage_options)
        try:
            found = sorted(name for name, _ in store.names(key))
        except NotImplementedError:
            found = _listed(folder, storage_options)
        finally:
            store.close(key)
    except Exception:  # noqa: BLE001  (many stores cannot list; whatever the reason, nothing is found there)
        return []
    return [beside(folder, name) for name in found if is_archive_name(name)][:MOST]


def _listed(folder: str, storage_options: Mapping[str, Any] | None) -> list[str]:
    """As fsspec lists it: of a web server, the links on the page that it may have for a folder."""
    import fsspec.core

    files, path = fsspec.core.url_to_fs(folder, **(storage_options or {}))
    files.invalidate_cache()
    return sorted(posixpath.basename(str(name).rstrip("/")) for name in files.ls(path, detail=False))
