"""SFTP when the connection stalls or breaks: it goes on with a new one, with the file that was opened or with none."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from arzstream.errors import StorageError
from arzstream.store.patience import Patience
from arzstream.store.publishing import NewObject
from arzstream.store.remote import RemoteReader
from arzstream.testing.servers import Server

STALL_SECONDS = 1.0
PATIENCE = Patience(attempts=4, first=0.01, longest=0.2, stall=STALL_SECONDS)
MIB = 1 << 20
DATA = random.Random(0).randbytes(3 * MIB)


class Line:
    """Passes connections on to ``port``. ``hold_after``: so many bytes of answers later nothing more comes for longer
    than is waited for, once."""

    def __init__(self, port: int) -> None:
        self._target, self.hold_after, self.held = ("127.0.0.1", port), -1, 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._open: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections."""
        for ends in self._open:
            for end in ends:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)  # ends accepting
        self._listening.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server:
            self._open.append((client, server))
            asking = threading.Thread(target=self._pass, args=(client, server, False), daemon=True)
            asking.start()
            self._pass(server, client, True)
            asking.join()

    def _pass(self, come: socket.socket, go: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := come.recv(1000):
                if answers and self.hold_after >= 0:
                    self.hold_after -= len(data)
                    if self.hold_after < 0:
                        self.held += 1
                        time.sleep(2.5 * STALL_SECONDS)
                go.sendall(data)
            go.shutdown(socket.SHUT_WR)


@pytest.fixture
def line(sftp: Server) -> Iterator[Line]:
    line = Line(sftp.port)
    yield line
    line.close()


@pytest.fixture
def through(sftp: Server, line: Line) -> Server:
    return sftp._replace(storage_options={**sftp.storage_options, "port": line.port})


def replaced(file: Path, data: bytes) -> None:
    file.with_suffix(".new").write_bytes(data)
    os.utime(file.with_suffix(".new"), (1, 1))
    os.replace(file.with_suffix(".new"), file)


def test_a_read_that_stalls_within_an_answer_is_made_again_on_another_connection(through: Server, line: Line) -> None:
    assert through.folder is not None
    (through.folder / "stalls").write_bytes(DATA)
    with RemoteReader(f"{through.url}/stalls", through.storage_options, patience=PATIENCE) as reader:
        for hold_after in (0, 100_000, 333_333):
            line.hold_after = hold_after
            assert reader.read_at(1000, MIB) == DATA[1000 : 1000 + MIB]
    assert line.held == 3


def test_a_file_that_was_replaced_while_the_connection_broke_is_another_one(through: Server, line: Line) -> None:
    assert through.folder is not None
    (through.folder / "replaced").write_bytes(DATA)
    with RemoteReader(f"{through.url}/replaced", through.storage_options, patience=PATIENCE) as reader:
        assert reader.read_at(0, 1000) == DATA[:1000]
        line.cut()
        assert reader.read_at(0, 1000) == DATA[:1000]
        replaced(through.folder / "replaced", DATA[::-1])
        assert reader.read_at(0, 1000) == DATA[:1000]  # the one that is open
        line.cut()
        with pytest.raises(StorageError, match="replaced since it was opened"):
            reader.read_at(0, 1000)


@pytest.mark.parametrize("how", ["stalls", "breaks", "ends"])
def test_an_upload_goes_on_where_it_was(through: Server, line: Line, how: str) -> None:
    assert through.folder is not None
    data = random.Random(1).randbytes(20 * MIB)
    written = NewObject(f"{through.url}/up-{how}", through.storage_options, patience=PATIENCE)
    try:
        written.write(data[: 9 * MIB])
        if how == "breaks":
            (temporary,) = [path for path in through.folder.iterdir() if f"up-{how}" in path.name]
            deadline = time.monotonic() + 10
            while temporary.stat().st_size < 8 * MIB and time.monotonic() < deadline:
                time.sleep(0.01)
            line.cut()  # a part came, and the next one was not begun
        elif how == "stalls":
            line.hold_after = 0
        written.write(data[9 * MIB :])
        if how == "ends":
            line.hold_after = 0
        assert written.complete().read_at(0, len(data)) == data
        written.publish()
    except BaseException:
        written.abort()
        raise
    assert (through.folder / f"up-{how}").read_bytes() == data and line.held == (how != "breaks")
