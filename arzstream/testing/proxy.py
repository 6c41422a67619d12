"""A web server between a client and a store that misbehaves as it is told, request by request.

    with FaultProxy(port) as proxy:
        proxy.faults = [Status(503), None, Reset(after=100)]      # one for each request that matches, then none
        proxy.match = lambda request: request.method == "GET"
        ...
        proxy.requests                                            # what went through, in order

It speaks HTTP/1.1 to both sides and passes signatures on as they are.
"""

from __future__ import annotations

import dataclasses
import http.client
import http.server
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Around", "ErrorBody", "Fault", "FaultProxy", "Flip", "Request", "Reset", "Stall", "Status", "Trickle",
           "Truncate", "WrongRange"]  # fmt: skip

BLOCK_BYTES = 64 << 10
MAKE_UP_SECONDS = 0.02
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}
ERROR_BODY = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>Please try again.</Message></Error>"


@dataclasses.dataclass
class Request:
    """A request that went through, and what was answered."""

    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    body_bytes: int = 0
    """Bytes of the answer's body that the client was sent."""
    sent_bytes: int = 0
    """Bytes of the body that the client sent."""

    @property
    def range(self) -> str:
        return self.headers.get("range", "")


class Fault:
    """Something that goes wrong with one request."""


@dataclasses.dataclass
class Status(Fault):
    """A refusal; the store is not asked."""

    status: int
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    body: bytes = b""


@dataclasses.dataclass
class Reset(Fault):
    """The connection is reset after so many bytes of the body; at once if negative."""

    after: int = -1


@dataclasses.dataclass
class Truncate(Fault):
    """The connection ends, as if all was well, after so many bytes of the body."""

    after: int = 0


@dataclasses.dataclass
class Stall(Fault):
    """Nothing more comes for ``seconds`` after so many bytes of the body; then the connection ends."""

    seconds: float
    after: int = 0


@dataclasses.dataclass
class Trickle(Fault):
    """After so many bytes of the body each of the next ``count`` takes ``seconds``; then comes the rest."""

    seconds: float
    after: int = 0
    count: int = 1000


class ErrorBody(Fault):
    """Status 200, and an error message for a body."""


@dataclasses.dataclass
class WrongRange(Fault):
    """``Content-Range`` says something else, or (None) nothing."""

    said: str | None = "bytes 0-0/1"


@dataclasses.dataclass
class Flip(Fault):
    """One bit of the body is another one."""

    at: int = 0


@dataclasses.dataclass
class Around(Fault):
    """``before`` runs before the store is asked, ``after`` when it has answered."""

    before: Callable[[], object] = lambda: None
    after: Callable[[], object] = lambda: None


class FaultProxy:
    """Listens on a free port of the loopback interface and passes on to ``port`` there."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.requests: list[Request] = []
        self.faults: list[Fault | None] = []
        self.match: Callable[[Request], bool] = lambda request: True
        self.rate: float | None = None
        """Bytes of bodies a second, of all answers together; None for as fast as it goes."""
        self._lock, self._link = threading.Lock(), threading.Lock()
        self._free_at = 0.0
        self._target = (host, port)
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def script(self, faults: Sequence[Fault | None], match: Callable[[Request], bool] = lambda request: True) -> None:
        """From now on: one of ``faults`` for each request that matches; forget what went through."""
        with self._lock:
            self.requests, self.faults, self.match = [], list(faults), match

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _next(self, request: Request) -> Fault | None:
        with self._lock:
            self.requests.append(request)
            return self.faults.pop(0) if self.faults and self.match(request) else None

    def _pass(self, nbytes: int) -> None:
        if self.rate is not None:
            with self._link:  # one link for all, and what was slept too long is made up for
                now = time.monotonic()
                self._free_at = max(self._free_at, now - MAKE_UP_SECONDS) + nbytes / self.rate
                wait = self._free_at - now
            if wait > 0:
                time.sleep(wait)

    def _ask(self, request: Request, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(*self._target, timeout=60)
        try:
            headers = {k: v for k, v in request.headers.items() if k not in _HOP}
            connection.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            if body or request.method in ("PUT", "POST"):
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body or None)
            answer = connection.getresponse()
            data = answer.read()
            kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP]
            length = answer.getheader("Content-Length")
            if request.method == "HEAD" and length is not None:
                kept.append(("Content-Length", length))
            return answer.status, kept, data
        finally:
            connection.close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what this is about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    proxy: FaultProxy
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        request = Request(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
        body = self._body()
        request.sent_bytes = len(body)
        fault = self.proxy._next(request)
        if isinstance(fault, Status):
            self._answer(request, fault.status, list(fault.headers.items()), fault.body, None)
            return
        if isinstance(fault, Reset) and fault.after < 0:
            self._reset()
            return
        if isinstance(fault, Around):
            fault.before()
        status, headers, data = self.proxy._ask(request, body)
        if isinstance(fault, Around):
            fault.after()
        if isinstance(fault, ErrorBody):
            status, data = 200, ERROR_BODY
            headers = [(name, value) for name, value in headers if name.lower() != "content-range"]
        if isinstance(fault, WrongRange):
            headers = [(name, value) for name, value in headers if name.lower() != "content-range"]
            headers += [("Content-Range", fault.said)] if fault.said is not None else []
        if isinstance(fault, Flip) and data:
            at = fault.at % len(data)
            data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        self._answer(request, status, headers, data, fault)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what went through is in ``requests``."""

    def _body(self) -> bytes:
        if self.headers.get("Expect", "").lower() == "100-continue":
            pass  # the base class has answered it
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while length := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(length))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(
        self, request: Request, status: int, headers: list[tuple[str, str]], data: bytes, fault: Fault | None
    ) -> None:
        request.status = status
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if request.method != "HEAD":
            if status not in (204, 304):
                self.send_header("Content-Length", str(len(data)))
        elif not any(name.lower() == "content-length" for name, _ in headers):
            self.send_header("Content-Length", "0")
        self.end_headers()
        if request.method == "HEAD":
            return
        after = fault.after if isinstance(fault, (Reset, Truncate, Stall, Trickle)) else len(data)
        sent = memoryview(data)[:after]
        for start in range(0, len(sent), BLOCK_BYTES):
            block = sent[start : start + BLOCK_BYTES]
            self.proxy._pass(len(block))
            self.wfile.write(block)
            request.body_bytes += len(block)
        if isinstance(fault, Stall):
            time.sleep(fault.seconds)
        if isinstance(fault, Trickle):
            rest = memoryview(data)[after:]
            for at in range(min(fault.count, len(rest))):
                time.sleep(fault.seconds)
                self.wfile.write(rest[at : at + 1])
            self.wfile.write(rest[fault.count :])
            request.body_bytes += len(rest)
        if isinstance(fault, Reset):
            self._reset()
        elif isinstance(fault, (Truncate, Stall)):
            self.wfile.flush()
            self.close_connection = True

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True
