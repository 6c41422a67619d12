"""Stores by the protocol of their URLs. What is not known here is read as fsspec reads it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from arzstream.errors import StorageError, UnsupportedError
from arzstream.store.address import one_line, redacted
from arzstream.store.objects import ObjectStore
from arzstream.store.patience import PATIENCE, Patience

__all__ = ["Backend", "connect"]


class Backend(NamedTuple):
    """Where a protocol's store is, and what has to be installed for it."""

    module: str
    store: str
    package: str


_HOME = "arzstream.store.backends"
_BACKENDS: dict[str, Backend] = {
    **dict.fromkeys(("http", "https"), Backend(f"{_HOME}.http", "HttpStore", "aiohttp")),
    **dict.fromkeys(("s3", "s3a"), Backend(f"{_HOME}.s3", "S3Store", "s3fs")),
    **dict.fromkeys(("gs", "gcs"), Backend(f"{_HOME}.gcs", "GcsStore", "gcsfs")),
    **dict.fromkeys(("az", "abfs", "abfss"), Backend(f"{_HOME}.azure", "AzureStore", "adlfs")),
    **dict.fromkeys(("sftp", "ssh"), Backend(f"{_HOME}.sftp", "SftpStore", "paramiko")),
}
_ANY = Backend(f"{_HOME}.generic", "GenericStore", "")


def connect(
    url: str, storage_options: Mapping[str, Any] | None = None, patience: Patience = PATIENCE
) -> tuple[ObjectStore, str]:
    """The store that ``url`` is in, and its key there. Options go to the fsspec file system as they are.

    Raises UnsupportedError, naming what to install, or StorageError.
    """
    name, options = redacted(url), dict(storage_options or {})
    protocol = url.split("://", 1)[0].lower()
    backend = _BACKENDS.get(protocol, _ANY)
    try:
        kind = getattr(importlib.import_module(backend.module), backend.store)
        store, key = kind.connect(url, options, patience)
    except ImportError as error:
        advice = f"; pip install {backend.package}" if backend.package else ""
        raise UnsupportedError(f"{name}: {one_line(error, options)}{advice}") from error
    except Exception as error:
        raise StorageError(f"{name}: cannot open it: {one_line(error, options)}") from error
    assert isinstance(store, ObjectStore)
    return store, key
