"""Ranges over HTTP on sockets of our own, each received by the thread that asked, to where the bytes belong.

All answers to an event loop pass through its one thread, in pieces, which takes half as long again
(``tools.measure.remote --clients``). What a user configures of a library's client is that library's: who has such
options is served by it (:mod:`arzstream.store.backends.web`).
"""

from __future__ import annotations

import base64
import contextlib
import functools
import http.client
import io
import socket
import threading
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

from arzstream.store.backends.web import StatusError, placed
from arzstream.store.objects import BadAnswer
from arzstream.store.patience import Patience

__all__ = ["Connections"]

IDLE = 16
"""Connections to a server that are kept open."""
REDIRECTS = 10
_REDIRECTS = {301, 302, 303, 307, 308}
_PORTS = {"http": 80, "https": 443}
_Origin = tuple[str, str, int]


class Connections:
    """Connections that are used again. Thread-safe; a child process needs its own."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._idle: dict[_Origin, list[http.client.HTTPConnection]] = {}
        self._busy: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Let what is being received fail at once."""
        with self._lock:
            for connection in self._busy:
                if connection.sock is not None:
                    with contextlib.suppress(OSError):
                        # An SSLSocket's own shutdown makes a plain socket of it, and whoever is receiving would be
                        # given the rest of the answer as it was enciphered.
                        socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close what is kept open. What is asked for afterwards opens anew."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def get_into(
        self, url: str, out: memoryview, start: int, headers: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str]]:
        """Bytes of ``url``, which is encoded as it is to be sent, from ``start`` on into ``out``.

        Returns the object's length and the headers of the answer. Raises what failed; refusals as StatusError.
        """
        until = time.monotonic() + self._patience.within(len(out))
        asked = {**headers, "Range": f"bytes={start}-{start + len(out) - 1}", "Accept-Encoding": "identity"}
        for _ in range(REDIRECTS):
            origin, target, login = _parts(url)
            sent = {"Authorization": login, **asked} if login else asked
            with self._answer(origin, target, sent, until) as response:
                if response.status not in _REDIRECTS or "Location" not in response.headers:
                    if response.status >= 300:
                        raise StatusError(response.status, response.reason or "", response.headers)
                    size = placed(response.headers, response.status, start, len(out))
                    _fill(response, out)
                    return size, response.headers
                url = urllib.parse.urljoin(url, response.headers["Location"])
                if _parts(url)[0] != origin:  # what is secret is for the server that was named
                    asked = {k: v for k, v in asked.items() if k.lower() not in ("authorization", "cookie")}
        raise BadAnswer(f"more than {REDIRECTS} redirections")

    @contextlib.contextmanager
    def _answer(self, origin: _Origin, target: str, headers: Mapping[str, str], until: float):  # type: ignore[no-untyped-def]
        """The answer to one request, if it comes ``until`` then. Its connection is kept if it was read to its end."""
        connection, response = self._asked(origin, target, headers, until)
        whole = False
        try:
            yield response
            whole = response.isclosed() and not response.will_close
        except http.client.HTTPException as error:
            raise ConnectionError(f"the answer is cut off or is none: {error!r}") from error
        finally:
            response.close()
            self._done(origin, connection, whole)

    def _asked(
        self, origin: _Origin, target: str, headers: Mapping[str, str], until: float
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        while True:
            connection = self._taken(origin)
            used = connection.sock is not None
            connection.response_class = functools.partial(_Answer, until=until)  # type: ignore[assignment]
            try:
                connection.request("GET", target, headers=dict(headers))
                return connection, connection.getresponse()
            except (ConnectionError, http.client.BadStatusLine) as error:
                self._done(origin, connection, False)
                if not used:  # one that was kept may have been closed by the server meanwhile
                    raise ConnectionError(f"the answer is none: {error!r}") from error
            except BaseException as error:
                self._done(origin, connection, False)
                if isinstance(error, http.client.HTTPException):
                    raise ConnectionError(f"the answer is none: {error!r}") from error
                raise

    def _taken(self, origin: _Origin) -> http.client.HTTPConnection:
        with self._lock:
            idle = self._idle.get(origin)
            connection = idle.pop() if idle else self._connection(origin)
            self._busy.add(connection)
        return connection

    def _done(self, origin: _Origin, connection: http.client.HTTPConnection, again: bool) -> None:
        with self._lock:
            self._busy.discard(connection)
            idle = self._idle.setdefault(origin, [])
            if again and len(idle) < IDLE:
                idle.append(connection)
                return
        connection.close()

    def _connection(self, origin: _Origin) -> http.client.HTTPConnection:
        scheme, host, port = origin
        kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
        return kind(host, port, timeout=self._patience.stall)


def _parts(url: str) -> tuple[_Origin, str, str]:
    """(scheme, host and port; what is asked for; the value of ``Authorization``) of a URL."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise BadAnswer("it sends elsewhere than to a web server")
    login = ""
    if parts.username is not None:
        pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        login = "Basic " + base64.b64encode(pair.encode()).decode("ascii")
    target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
    return (parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme]), target, login


class _Answer(http.client.HTTPResponse):
    """An answer all of which, its headers too, has to come ``until`` then."""

    def __init__(self, sock: socket.socket, *arguments: Any, until: float, **keywords: Any) -> None:
        super().__init__(sock, *arguments, **keywords)
        self.fp = io.BufferedReader(_Received(self.fp.detach(), until))


class _Received(io.RawIOBase):
    """What comes on a connection, ``until`` then. Looked at each time that something comes: whoever reads a line, or
    fills a buffer, goes on receiving until it is complete."""

    def __init__(self, raw: io.RawIOBase, until: float) -> None:
        self._raw, self._until = raw, until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if time.monotonic() > self._until:
            raise TimeoutError("the answer did not come in time")
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _fill(response: http.client.HTTPResponse, out: memoryview) -> None:
    at = 0
    while at < len(out):
        got = response.readinto(out[at:])
        if not got:
            raise ConnectionError(f"the answer ends after {at} of {len(out)} bytes")
        at += got
    if response.read(1):
        raise BadAnswer(f"asked for {len(out)} bytes, it answers with more")
