"""Addresses of files that are not local: what is one, and how it is shown without what it may keep secret."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["is_remote", "is_url", "local_path", "one_line", "redacted", "shown", "without_secrets"]

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.\-]+(://|::)")
_USER_INFO = re.compile(r"(://)[^/@\s'\"]*@")
_QUERY = re.compile(r"(://[^\s?'\"]*)\?[^\s'\",)>]*")
_SECRET = re.compile(r"secret|token|passw|key|credential|signature|sas|auth|connection_string", re.IGNORECASE)
_SHORTEST_SECRET = 4
MOST_CHARACTERS = 400


def is_url(path: str | bytes | os.PathLike[str]) -> bool:
    """True for ``scheme://…`` and fsspec chains; Windows drive letters are paths."""
    return isinstance(path, str) and _URL.match(path) is not None


def is_remote(path: str | bytes | os.PathLike[str]) -> bool:
    """True for URLs but ``file://`` ones."""
    return is_url(path) and not str(path).startswith("file://")


def local_path(place: str) -> str:
    """The path that ``place``, a path or a ``file://`` URL, means."""
    return place.removeprefix("file://") if is_url(place) else place


def redacted(url: str) -> str:
    """``scheme://user:secret@host/…?signature`` without the parts that may be secret."""
    return _USER_INFO.sub(r"\1", url).split("?", 1)[0]


def shown(place: str) -> str:
    """A path, or a URL, as it is shown to people and written down: a URL :func:`redacted`."""
    return redacted(place) if is_url(place) else place


def without_secrets(text: str) -> str:
    """``text`` with what the URLs in it may keep secret left out: user names, passwords, queries."""
    return _QUERY.sub(r"\1?…", _USER_INFO.sub(r"\1", text))


def one_line(error: BaseException, options: Mapping[str, Any] | None = None) -> str:
    """What ``error`` says, on one line, without user names, passwords, signatures, and the secrets in ``options``."""
    text = " ".join(str(error).split())
    for secret in sorted(set(_secrets(options or {})), key=len, reverse=True):
        text = text.replace(secret, "…")
    text = without_secrets(text)
    if len(text) > MOST_CHARACTERS:
        text = text[:MOST_CHARACTERS] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _secrets(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _secrets(value)
        elif isinstance(value, str) and len(value) >= _SHORTEST_SECRET and _SECRET.search(str(name)):
            yield value
