"""The proxy passes on what it is given, and misbehaves exactly as it is told."""

from __future__ import annotations

import http.client
import http.server
import threading
import time
from collections.abc import Iterator

import pytest

from arzstream.testing.proxy import Around, ErrorBody, FaultProxy, Flip, Reset, Stall, Status, Truncate, WrongRange

BODY = bytes(range(256)) * 400


class _Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(206)
        self.send_header("Content-Range", f"bytes 0-{len(BODY) - 1}/{len(BODY)}")
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("X-Length", str(len(data)))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    with FaultProxy(server.server_port) as proxy:
        yield proxy
    server.shutdown()
    server.server_close()
    thread.join()


def get(proxy: FaultProxy) -> tuple[int, str | None, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=5)
    try:
        connection.request("GET", "/x", headers={"Range": "bytes=0-"})
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Range"), answer.read()
    finally:
        connection.close()


def test_without_faults_everything_passes(proxy: FaultProxy) -> None:
    status, said, body = get(proxy)
    assert (status, said, body) == (206, f"bytes 0-{len(BODY) - 1}/{len(BODY)}", BODY)
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=5)
    for length in (0, 10, 300_000):  # one connection for all
        connection.request("PUT", "/x", body=bytes(length))
        answer = connection.getresponse()
        assert answer.read() == b"" and answer.getheader("X-Length") == str(length)
    connection.close()
    assert [(r.method, r.path, r.range, r.status, r.body_bytes) for r in proxy.requests[:2]] == [
        ("GET", "/x", "bytes=0-", 206, len(BODY)),
        ("PUT", "/x", "", 200, 0),
    ]


def test_each_fault_happens_once_to_what_matches(proxy: FaultProxy) -> None:
    ran: list[str] = []
    proxy.script(
        [Status(503, {"Retry-After": "7"}), None, ErrorBody(), WrongRange("bytes 1-2/3"), WrongRange(None), Flip(300),
         Around(before=lambda: ran.append("before"), after=lambda: ran.append("after"))],
        lambda request: request.method == "GET",
    )  # fmt: skip
    assert get(proxy)[0] == 503
    assert get(proxy)[2] == BODY
    status, said, body = get(proxy)
    assert (status, said) == (200, None) and body.startswith(b"<?xml")
    assert get(proxy)[1] == "bytes 1-2/3"
    assert get(proxy)[1] is None
    body = get(proxy)[2]
    assert [i for i, (a, b) in enumerate(zip(body, BODY, strict=True)) if a != b] == [300]
    assert get(proxy)[2] == BODY and ran == ["before", "after"]
    assert get(proxy)[2] == BODY and not proxy.faults


def test_connections_end_as_they_are_told_to(proxy: FaultProxy) -> None:
    proxy.script([Reset(), Reset(after=1000), Truncate(after=1000), Stall(0.2, after=1000)])
    with pytest.raises(ConnectionError):
        get(proxy)
    with pytest.raises((ConnectionError, http.client.IncompleteRead)):
        get(proxy)
    with pytest.raises(http.client.IncompleteRead) as caught:
        get(proxy)
    assert caught.value.partial == BODY[:1000]
    began = time.monotonic()
    with pytest.raises(http.client.IncompleteRead):
        get(proxy)
    assert time.monotonic() - began >= 0.2


def test_the_link_is_as_slow_as_it_is_told_to_be(proxy: FaultProxy) -> None:
    proxy.rate = len(BODY) / 0.5
    began = time.monotonic()
    assert get(proxy)[2] == BODY
    assert time.monotonic() - began >= 0.4
