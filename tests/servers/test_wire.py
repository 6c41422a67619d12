"""Ranges on sockets of our own: connections are used again, secrets stay with their server, and closing ends it all."""

from __future__ import annotations

import base64
import contextlib
import datetime
import ipaddress
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from arzstream.errors import StorageError
from arzstream.store.backends.http import HttpStore
from arzstream.store.backends.web import StatusError
from arzstream.store.backends.wire import Connections
from arzstream.store.blocks import BlockCache
from arzstream.store.objects import BadAnswer
from arzstream.store.patience import Patience
from arzstream.store.remote import RemoteReader

DATA = bytes(range(256)) * 4096
RECORD_BYTES = 16 << 10
"""No record of TLS has more."""
ANSWER = b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 1000-70999/%d\r\n" % len(DATA)
PIECES = ANSWER + b"Transfer-Encoding: chunked\r\n\r\n11170"
DRIPPING = {
    "status": (b"HTTP/1.1 206 ", b"x"),
    "headers": (ANSWER + b"X-Other: ", b"x"),
    "body": (ANSWER + b"Content-Length: 70000\r\n\r\n", b"x"),
    "piece": (PIECES + b"\r\n", b"x"),
    "length of a piece": (PIECES + b";", b"x"),
    "end": (PIECES + b"\r\n" + DATA[1000:71000] + b"\r\n0\r\n", b"X: x\r\n"),
}
"""How an answer begins, and what comes of it drop by drop."""


class Web(ThreadingHTTPServer):
    """A server of ``DATA`` with ranges. ``moves``: where it sends to; ``stalls``: seconds before each body;
    ``forgets``: it closes connections after an answer without saying so; ``drips``: the part of an answer that comes
    in drops."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.moves, self.stalls, self.forgets, self.encoding, self.refuses = "", 0.0, False, "", 0
        self.suffixless, self.tag, self.drips = False, '"one"', ""
        self.seen: list[dict[str, str]] = []
        self.connections = 0

    @property
    def url(self) -> str:
        scheme = "https" if isinstance(self.socket, ssl.SSLSocket) else "http"
        return f"{scheme}://127.0.0.1:{self.server_port}/x"

    def encrypt(self, work: Path) -> Path:
        """Speak TLS, with a certificate that is made for it; where that is."""
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.timezone.utc)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
        named = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        made = made.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
        signed = made.add_extension(named, critical=False).sign(key, hashes.SHA256())
        format, pem = serialization.PrivateFormat.PKCS8, serialization.Encoding.PEM
        (work / "certificate.pem").write_bytes(signed.public_bytes(pem))
        (work / "key.pem").write_bytes(key.private_bytes(pem, format, serialization.NoEncryption()))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(work / "certificate.pem", work / "key.pem")
        self.socket = context.wrap_socket(self.socket, server_side=True)
        return work / "certificate.pem"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Web

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_GET(self) -> None:
        self.server.seen.append(dict(self.headers))
        if self.server.drips:
            with contextlib.suppress(OSError):
                beginning, drop = DRIPPING[self.server.drips]
                self.wfile.write(beginning)
                for _ in range(200):
                    time.sleep(0.05)
                    self.wfile.write(drop)
            return
        if self.server.moves:
            self.send_response(302)
            self.send_header("Location", self.server.moves)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.server.refuses:
            self.send_error(self.server.refuses)
            return
        span = self.headers["Range"].removeprefix("bytes=")
        if self.server.suffixless and span.startswith("-"):
            self.send_error(416)
            return
        low, _, high = span.partition("-")
        start, end = (int(low), int(high) + 1) if low else (len(DATA) - int(high), len(DATA))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(DATA)}")
        self.send_header("ETag", self.server.tag)
        if self.server.encoding:
            self.send_header("Transfer-Encoding", self.server.encoding)
        else:
            self.send_header("Content-Length", str(end - start))
        self.end_headers()
        body = DATA[start:end]
        if self.server.encoding:
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        self.wfile.write(body[:10])
        time.sleep(self.server.stalls)
        self.wfile.write(body[10:])
        self.close_connection = self.server.forgets

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("ETag", '"one"')
        self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def wire() -> Iterator[Connections]:
    connections = Connections(Patience(stall=5))
    yield connections
    connections.close()


def got(wire: Connections, url: str, start: int = 1000, length: int = 70000, **headers: str) -> bytes:
    out = bytearray(length)
    size, _ = wire.get_into(url, memoryview(out), start, headers)
    assert size == len(DATA)
    return bytes(out)


def test_a_connection_is_used_again(web: Web, wire: Connections) -> None:
    for start in (0, 5000, 70000):
        assert got(wire, web.url, start) == DATA[start : start + 70000]
    assert web.connections == 1


def test_a_connection_that_the_server_has_closed_is_replaced(web: Web, wire: Connections) -> None:
    web.forgets = True
    assert got(wire, web.url) == got(wire, web.url) == DATA[1000:71000]
    assert web.connections == 2


def test_a_body_in_pieces_is_read_to_its_end(web: Web, wire: Connections) -> None:
    web.encoding = "chunked"
    assert got(wire, web.url) == got(wire, web.url) == DATA[1000:71000]
    assert web.connections == 1


@pytest.mark.parametrize("part", list(DRIPPING))
def test_an_answer_any_part_of_which_comes_in_drops_is_given_up_in_time(web: Web, part: str) -> None:
    web.drips, began = part, time.monotonic()
    with contextlib.closing(Connections(Patience(stall=1, rate=1 << 20))) as wire, pytest.raises(TimeoutError):
        got(wire, web.url)
    assert time.monotonic() - began < 4


def test_secrets_stay_with_the_server_that_they_are_for(web: Web, wire: Connections) -> None:
    with Web() as first:
        threading.Thread(target=first.serve_forever, daemon=True).start()
        first.moves = web.url
        named = first.url.replace("//", "//me:p%40ss@")
        assert got(wire, named, **{"X-Other": "1"}) == DATA[1000:71000]
        assert got(wire, first.url, Authorization="Bearer x", Cookie="y") == DATA[1000:71000]
        first.shutdown()
    assert first.seen[0]["Authorization"] == "Basic " + base64.b64encode(b"me:p@ss").decode()
    assert first.seen[1]["Authorization"] == "Bearer x"
    assert not any(name in seen for seen in web.seen for name in ("Authorization", "Cookie"))
    assert web.seen[0]["X-Other"] == "1"


def test_going_in_circles_ends_and_other_schemes_are_not_followed(web: Web, wire: Connections) -> None:
    web.moves = web.url
    with pytest.raises(BadAnswer, match="redirections"):
        got(wire, web.url)
    web.moves = "file:///etc/passwd"
    with pytest.raises(BadAnswer, match="elsewhere"):
        got(wire, web.url)


def test_a_refusal_is_an_error_with_its_status(web: Web, wire: Connections) -> None:
    web.refuses = 503
    with pytest.raises(StatusError) as caught:
        got(wire, web.url)
    assert caught.value.status == 503


def test_closing_ends_what_is_being_received(web: Web) -> None:
    web.stalls = 8.0
    with RemoteReader(web.url, patience=Patience(stall=20)) as reader:
        announced = reader.announce()
        announced.add([(0, len(DATA))])
        deadline = time.monotonic() + 5
        while len(web.seen) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        began = time.monotonic()
    assert time.monotonic() - began < 3


def test_stopping_passes_on_nothing_that_was_not_deciphered(
    wire: Connections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between two receptions, when the rest of the answer lies in the socket already."""
    plain, seen, stopped = ssl.SSLSocket.recv_into, 0, False

    def receive(sock: ssl.SSLSocket, *arguments: object) -> int:
        nonlocal seen, stopped
        if seen < len(DATA) - 60_000 <= seen + RECORD_BYTES:
            time.sleep(0.2)
            wire.stop()
            stopped = True
        got = plain(sock, *arguments)  # type: ignore[arg-type]
        seen += 0 if sock.server_side else got
        return got

    with Web() as web:
        monkeypatch.setenv("SSL_CERT_FILE", str(web.encrypt(tmp_path)))
        threading.Thread(target=web.serve_forever, daemon=True).start()
        assert got(wire, web.url) == DATA[1000:71000]
        monkeypatch.setattr(ssl.SSLSocket, "recv_into", receive)
        right = True
        with contextlib.suppress(ConnectionError):
            right = got(wire, web.url, 0, len(DATA)) == DATA
        assert right and stopped
        web.shutdown()


def test_what_comes_while_a_reader_is_closed_is_neither_believed_nor_kept(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = HttpStore.get_into

    def get_into(store: HttpStore, *arguments: object) -> None:
        plain(store, *arguments)  # type: ignore[arg-type]
        reader.close()

    with RemoteReader(web.url, cache=BlockCache(tmp_path)) as reader:
        monkeypatch.setattr(HttpStore, "get_into", get_into)
        with pytest.raises(StorageError, match="closed"):
            reader.read_at(0, 100)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_only_the_library_knows_is_left_to_it(web: Web) -> None:
    asked: list[bool] = []
    for options in ({}, {"client_kwargs": {"headers": {"X-Mine": "1"}}}):
        web.seen.clear()
        with RemoteReader(web.url, options) as reader:
            out = bytearray(100)
            reader.read_into(10, memoryview(out))
            assert bytes(out) == DATA[10:110]
        asked.append(any(header.get("X-Mine") == "1" and header["Range"] == "bytes=10-109" for header in web.seen))
    assert asked == [False, True]


def test_the_end_of_a_file_that_was_replaced_since_it_was_asked_about_is_not_believed(web: Web) -> None:
    web.suffixless = True
    with RemoteReader(web.url) as reader:
        assert reader.end == DATA[-len(reader.end) :]
    web.tag = '"two"'
    with pytest.raises(StorageError, match="replaced"):
        RemoteReader(web.url)
