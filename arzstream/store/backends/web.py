"""Ranges over HTTP with aiohttp, for plain web servers and for stores that speak it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arzstream.store.objects import BadAnswer, answered
from arzstream.store.patience import Patience

__all__ = ["WHOLE_BYTES", "StatusError", "get_into", "get_tail", "placed", "raise_for", "timeout"]

WHOLE_BYTES = 1 << 20
"""A server without ranges may still serve files of up to so many bytes, whole."""


class StatusError(Exception):
    """An answer that is a refusal. ``status`` and ``headers`` say the rest."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str]) -> None:
        super().__init__(f"{status} {reason}")
        self.status, self.headers = status, headers


def raise_for(response: Any) -> None:
    """Refusals are errors."""
    if response.status >= 300:
        raise StatusError(response.status, response.reason or "", response.headers)


def timeout(patience: Patience, nbytes: int) -> Any:
    """How long a request for ``nbytes`` may take, and how long nothing may come."""
    import aiohttp

    return aiohttp.ClientTimeout(
        total=patience.within(nbytes), sock_connect=patience.stall, sock_read=patience.stall
    )  # fmt: skip


def placed(headers: Mapping[str, str], status: int, start: int, length: int) -> int:
    """Check that an answer is ``length`` bytes from ``start`` on. Returns the object's length, 0 if it does not say."""
    said = headers.get("Content-Length") or ""
    given = int(said) if said.isdigit() else None
    if status == 200 and start == 0 and given == length:
        size: int | None = length  # all there is was asked for
    else:
        size = answered(headers, status, start, length)
    if given not in (None, length) or "Content-Encoding" in headers:
        raise BadAnswer(f"asked for {length} bytes, it answers with {given}")
    return size or 0


async def get_into(
    session: Any, url: Any, out: memoryview, start: int, patience: Patience, headers: Mapping[str, str], **request: Any
) -> tuple[int, Mapping[str, str]]:
    """Bytes of ``url`` from ``start`` on into ``out``. Returns the object's length and the headers of the answer."""
    asked = {**headers, "Range": f"bytes={start}-{start + len(out) - 1}", "Accept-Encoding": "identity"}
    request = {"timeout": timeout(patience, len(out)), **request}
    async with session.get(url, headers=asked, **request) as response:
        raise_for(response)
        size = placed(response.headers, response.status, start, len(out))
        await _fill(response, out)
        return size, response.headers


async def get_tail(
    session: Any, url: Any, length: int, patience: Patience, headers: Mapping[str, str], **request: Any
) -> tuple[int, Mapping[str, str], bytes] | None:
    """The last ``length`` bytes of ``url``; the object's length and the headers, too. None if this server does not
    understand the question. A whole file instead is taken if it is short; the caller asks whether it is one."""
    asked = {**headers, "Range": f"bytes=-{length}", "Accept-Encoding": "identity"}
    request = {"timeout": timeout(patience, length), **request}
    async with session.get(url, headers=asked, **request) as response:
        if response.status in (400, 416, 501):
            return None
        raise_for(response)
        given = response.content_length
        if "Content-Encoding" in response.headers:
            return None
        if response.status == 206:
            try:
                size = answered(response.headers, response.status, -1, length)
            except BadAnswer:
                return None
            if given not in (None, min(length, size or 0)):
                raise BadAnswer(f"asked for the last {length} bytes, it answers with {given}")
            out = bytearray(min(length, size or 0))
        elif response.status == 200 and given is not None and given <= WHOLE_BYTES:
            size, out = given, bytearray(given)
        else:
            return None
        await _fill(response, memoryview(out))
        return size or 0, response.headers, bytes(out)


async def _fill(response: Any, out: memoryview) -> None:
    at = 0
    async for block in response.content.iter_any():
        if at + len(block) > len(out):
            raise BadAnswer(f"asked for {len(out)} bytes, it answers with more")
        out[at : at + len(block)] = block
        at += len(block)
    if at < len(out):
        raise ConnectionError(f"the answer ends after {at} of {len(out)} bytes")
