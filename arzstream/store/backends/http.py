"""Web servers, read-only."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from arzstream.store.backends import web
from arzstream.store.backends.loop import LoopStore
from arzstream.store.backends.wire import Connections
from arzstream.store.objects import BadAnswer, ObjectChangedError, Properties, Version
from arzstream.store.patience import Patience

__all__ = ["HttpStore"]


class HttpStore(LoopStore):
    """Files of a web server. A version is told by a strong ``ETag``; by ``Last-Modified`` where there is none."""

    properties = Properties(pinned=True, suffix=True)

    def __init__(self, fs: Any, patience: Patience) -> None:
        super().__init__(fs, patience)
        self._connections = Connections(patience)
        usual = inspect.signature(type(fs).__init__).parameters["get_client"].default
        self._plain = not (self._request() or fs.client_kwargs) and fs.get_client is usual
        """Nothing is configured that only the library's client knows."""

    def head(self, key: str) -> Version:
        return self.run(self._head, key)

    def tail(self, key: str, length: int) -> tuple[Version, bytes]:
        found = self.run(self._tail, key, length)
        return super().tail(key, length) if found is None else found

    def get_into(self, key: str, start: int, out: memoryview, version: Version) -> None:
        headers = self._headers()
        if version.tag.startswith('"'):  # a weak one never matches
            headers["If-Match"] = version.tag
        try:
            size, answer = self._got_into(key, start, out, headers)
        except web.StatusError as error:
            if error.status in (412, 416):
                raise ObjectChangedError("it was replaced") from error
            raise
        if Version(size, _tag(answer)) != version:
            raise ObjectChangedError("it was replaced")

    def stop(self) -> None:
        self._connections.stop()

    def close(self, key: str) -> None:
        self._connections.close()

    def _got_into(
        self, key: str, start: int, out: memoryview, headers: dict[str, str]
    ) -> tuple[int, Mapping[str, str]]:
        if self._plain:
            return self._connections.get_into(str(self._fs.encode_url(key)), out, start, headers)
        return self.run(self._get_into, key, start, out, headers)

    async def _head(self, key: str) -> Version:
        session, url = await self._fs.set_session(), self._fs.encode_url(key)
        asked = {"Accept-Encoding": "identity"}
        async with session.head(
            url, headers=asked, allow_redirects=True, timeout=web.timeout(self._patience, 0), **self._request()
        ) as response:
            if response.status in (403, 405, 501):  # signed for GET, or no HEAD here: one byte says it, too
                out = bytearray(1)
                size, headers = await web.get_into(
                    session, url, memoryview(out), 0, self._patience, self._headers(), **self._request()
                )
                return Version(size, _tag(headers))
            web.raise_for(response)
            if response.content_length is None:
                raise BadAnswer("it does not say how long the file is")
            return Version(response.content_length, _tag(response.headers))

    async def _tail(self, key: str, length: int) -> tuple[Version, bytes] | None:
        """None from a server that does not know the question."""
        session, url = await self._fs.set_session(), self._fs.encode_url(key)
        found = await web.get_tail(session, url, length, self._patience, self._headers(), **self._request())
        if found is None:
            return None
        size, headers, data = found
        version = Version(size, _tag(headers))
        # A whole file instead of its end may be an error message that came with the wrong status.
        if "Content-Range" not in headers and await self._head(key) != version:
            raise BadAnswer("it answers with something else than the file")
        return version, data

    async def _get_into(
        self, key: str, start: int, out: memoryview, headers: dict[str, str]
    ) -> tuple[int, Mapping[str, str]]:
        session, url = await self._fs.set_session(), self._fs.encode_url(key)
        return await web.get_into(session, url, out, start, self._patience, headers, **self._request())

    def _headers(self) -> dict[str, str]:
        return dict(self._fs.kwargs.get("headers") or {})

    def _request(self) -> dict[str, Any]:
        return {name: value for name, value in self._fs.kwargs.items() if name not in ("headers", "timeout")}


def _tag(headers: Mapping[str, str]) -> str:
    return headers.get("ETag") or headers.get("Last-Modified") or ""
