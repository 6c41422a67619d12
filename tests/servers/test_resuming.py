"""An upload that was cut off is gone on with: what the store has is not sent again, and what it should not have is."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import arzstream
from arzstream.archive.output import new_object
from arzstream.daemon.bucket import home_of
from arzstream.store import publishing
from arzstream.store.backends import connect
from arzstream.store.notes import KEPT_SECONDS
from arzstream.store.patience import Patience
from arzstream.store.publishing import NewObject
from arzstream.testing import process, tensors
from arzstream.testing.proxy import Fault, FaultProxy, Request, Stall, Status
from arzstream.testing.servers import Server

from .test_remote_archives import aws

MIB = 1 << 20
PART_BYTES = 8 * MIB
PACK = "import sys, json, arzstream; arzstream.pack(sys.argv[1], sys.argv[2], storage_options=json.loads(sys.argv[3]))"
NOISE = 64 << 10
"""Bytes of requests that are not parts: names, lists of parts."""


@pytest.fixture(scope="module")
def data() -> bytes:
    """Of a model whose archive takes four parts."""
    rng, shape = np.random.default_rng(0), (4096, 1024)
    return tensors.safetensors_bytes(
        [tensors.Tensor(f"layers.{n}.weight", "BF16", shape, tensors.gaussian(shape, "BF16", rng)) for n in range(5)]
    )


@pytest.fixture
def source(data: bytes, tmp_path: Path) -> Path:
    folder = tmp_path / "source" / "step-1"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(data)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def state() -> Path:
    """Where this user's notes are."""
    return Path(os.environ["XDG_STATE_HOME"])


class Link:
    """A store behind a proxy that counts what is sent."""

    def __init__(self, server: Server, proxy: FaultProxy, name: str) -> None:
        self.server, self.proxy = server, proxy
        self.through = server.through(proxy.port)
        self.url, self.direct = f"{self.through.url}/{name}/it.arz", f"{server.url}/{name}/it.arz"
        self._store, key = connect(self.direct, server.storage_options)
        self._folder = key.rpartition("/")[0]

    @property
    def sent(self) -> int:
        return sum(request.sent_bytes for request in self.proxy.requests)

    def pack(self, source: Path) -> subprocess.Popen[bytes]:
        options = json.dumps(self.through.storage_options)
        return subprocess.Popen([sys.executable, "-c", PACK, str(source), self.url, options])

    def until(self, running: subprocess.Popen[bytes]) -> None:
        """Kill it when it has met what the proxy has for it."""
        deadline = time.monotonic() + 60
        while self.proxy.faults and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert running.poll() is None and not self.proxy.faults
        running.kill()
        running.wait()

    def names(self) -> list[str]:
        return [name for name, _ in self._store.names(self._folder)] + list(self._store.unfinished(self._folder))

    def size(self) -> int:
        return self._store.head(f"{self._folder}/it.arz").size

    def verify(self, source: Path) -> None:
        arzstream.verify(self.direct, deep=True, against=source, storage_options=self.server.storage_options)


@pytest.fixture(params=["moto", "azurite", "gcs"])
def link(request: pytest.FixtureRequest, proxies: Callable[[Server], FaultProxy]) -> Iterator[Link]:
    server = request.getfixturevalue(request.param)
    yield Link(server, proxies(server), request.node.name.partition("[")[0])


def is_part(request: Request) -> bool:
    return request.method == "PUT" and request.sent_bytes > MIB


def is_back(request: Request) -> bool:
    """Is what was sent read back?"""
    ranged = "range" in request.headers or "x-ms-range" in request.headers
    return request.method == "GET" and "arz-tmp-" in request.path and ranged


def left(state: Path) -> list[Path]:
    return [path for path in state.rglob("uploads/*") if path.is_file()]


def test_a_pack_that_is_killed_is_gone_on_with_by_the_next_one(link: Link, source: Path, state: Path) -> None:
    sent = []
    for faults, match in (([None, None, Stall(60.0)], is_part), ([Stall(60.0)], is_back)):
        link.proxy.script(list[Fault | None](faults), match)
        link.until(link.pack(source))
        sent.append(link.sent)
        assert len(left(state)) == 1
        if link.server.url.startswith("az:"):  # or the names of blocks prove nothing
            assert all("content-md5" in request.headers for request in link.proxy.requests if is_part(request))
    link.proxy.script([])
    assert link.pack(source).wait(60) == 0
    sent.append(link.sent)
    size = link.size()
    assert 3 * PART_BYTES < size < 4 * PART_BYTES
    assert 2 * PART_BYTES < sent[0] < size + NOISE  # it may have been killed while it sent the third
    # GCS is told of the second part that it came, and not of the third; others have it, told or not.
    assert sent[1] <= size - 2 * PART_BYTES + NOISE and sum(sent) <= size + PART_BYTES + 3 * NOISE
    assert sent[2] < NOISE, "it was complete, and only had no name"
    link.verify(source)
    assert link.names() == ["it.arz"] and left(state) == []


def test_what_changed_since_is_sent_and_nothing_else_believed(link: Link, source: Path, state: Path) -> None:
    link.proxy.script([None, None, Stall(60.0)], is_part)
    link.until(link.pack(source))
    with open(source / "model.safetensors", "r+b") as file:
        file.seek(20 * MIB)
        file.write(bytes(1000))
    link.proxy.script([])
    assert link.pack(source).wait(60) == 0
    link.verify(source)
    assert link.names() == ["it.arz"] and left(state) == []


def test_a_store_that_cannot_be_reached_keeps_what_was_sent(
    link: Link, source: Path, state: Path, quick: Patience
) -> None:
    def refused(request: Request) -> bool:
        return request.method in ("PUT", "POST") and sum(map(is_part, link.proxy.requests)) > 2

    link.proxy.script([Status(503)] * 100, refused)
    with pytest.raises(arzstream.StorageError, match="try again later") as caught:
        arzstream.pack(source, link.url, storage_options=link.through.storage_options)
    assert caught.value.errno == errno.EAGAIN and len(left(state)) == 1
    came = sum(request.sent_bytes for request in link.proxy.requests if request.status in (200, 201, 308))
    link.proxy.script([])
    arzstream.pack(source, link.url, storage_options=link.through.storage_options)
    assert came > PART_BYTES and link.sent <= link.size() - came + NOISE
    link.verify(source)
    assert link.names() == ["it.arz"] and left(state) == []


def test_two_at_one_name_have_an_upload_each(link: Link, state: Path) -> None:
    options = {"replace": False, "storage_options": link.through.storage_options}
    with pytest.raises(RuntimeError), new_object(link.url, **options) as (first, one):  # type: ignore[arg-type]
        with pytest.raises(RuntimeError), new_object(link.url, **options) as (second, two):  # type: ignore[arg-type]
            assert first.started != second.started and one != two
            raise RuntimeError
        assert len(left(state)) == 1
        raise RuntimeError
    assert left(state) == []


def test_etags_that_are_no_md5_are_not_believed(
    moto: Server, source: Path, state: Path, quick: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with keys of KMS: everything is sent again, and the archive is right."""
    from arzstream.store.backends.s3 import _S3Upload

    listed = _S3Upload._listed

    def other(upload: _S3Upload, name: str) -> dict[int, tuple[int, str]]:
        return {number: (size, f'"{"5e" * 16}"') for number, (size, _) in listed(upload, name).items()}

    monkeypatch.setattr(_S3Upload, "_listed", other)
    url, options = f"{moto.url}/kms/it.arz", {"replace": False, "storage_options": moto.storage_options}
    with pytest.raises(arzstream.StorageError), new_object(url, **options) as (written, _):  # type: ignore[arg-type]
        written.write(bytes(20 * MIB))
        raise arzstream.StorageError("gone", errno=errno.EAGAIN)
    with new_object(url, **options) as (written, _):  # type: ignore[arg-type]
        assert written.resumed
        written.write(bytes(20 * MIB))
        assert written.complete().size == 20 * MIB and written.bytes_found == 0


@pytest.mark.parametrize("kind", ["moto", "azurite", "gcs"])
def test_parts_have_the_lengths_that_they_had(kind: str, request: pytest.FixtureRequest) -> None:
    """Though another length is expected now; else nothing would fit that was sent."""
    server, data = request.getfixturevalue(kind), bytes(21 * MIB)
    url = f"{server.url}/lengths/it.arz"
    first = NewObject(url, server.storage_options, expected=9000 * 10 * MIB)
    assert first.started.steady == 10 * MIB
    first.write(data)
    first.park()
    second = NewObject(url, server.storage_options, resume=first.started, expected=1)
    try:
        second.write(data)
        assert second.complete().size == len(data)
        assert second.bytes_found in (10 * MIB, 20 * MIB)  # the second may have been on its way
        assert second.started == first.started
    finally:
        second.abort()


@pytest.mark.parametrize("steady", [-1, 1, MIB, 8 * MIB + 1, 1 << 60])
def test_lengths_of_parts_that_cannot_be_are_not_believed(moto: Server, steady: int) -> None:
    url = f"{moto.url}/odd-lengths/it.arz"
    first = NewObject(url, moto.storage_options)
    first.write(bytes(17 * MIB))
    first.park()
    second = NewObject(url, moto.storage_options, resume=first.started._replace(steady=steady))
    try:
        second.write(bytes(17 * MIB))
        assert second.complete().size == 17 * MIB and second.bytes_found == 16 * MIB
    finally:
        second.abort()


def test_the_length_of_a_source_says_how_long_the_parts_are(
    link: Link, source: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "STEADY_PARTS", 4)
    arzstream.pack(source, link.url, storage_options=link.through.storage_options)
    total = sum(file.stat().st_size for file in source.iterdir())
    parts = [request for request in link.proxy.requests if is_part(request)]
    lengths = [request.sent_bytes for request in parts]
    assert max(lengths) == publishing.steady_bytes(total) > 10 * MIB and len(lengths) == 3
    # In one piece: some stores take no other.
    assert [int(request.headers["content-length"]) for request in parts] == lengths
    link.verify(source)


# -- the daemon


def environment(server: Server, port: int) -> dict[str, str]:
    """Of somebody who uses the store through ``port``."""
    options = server.through(port).storage_options
    return {
        **aws(port),
        "AZURE_STORAGE_CONNECTION_STRING": options.get("connection_string", ""),
        "FSSPEC_GS_TOKEN": "anon",
        "FSSPEC_GS_ENDPOINT_URL": options.get("endpoint_url", ""),
    }


class Watched:
    """A source that lands in a daemon's folder, and the bucket that it archives to."""

    def __init__(self, server: Server, proxy: FaultProxy, work: Path, name: str) -> None:
        self.server, self.proxy, self.url = server, proxy, f"{server.url}/{name}"
        self.source = work / "watched"
        (self.source / "step-1").mkdir(parents=True)
        self._at = 0
        self._store, self._key = connect(self.url, server.storage_options)

    def daemon(self, *options: str) -> process.Daemon:
        env = environment(self.server, self.proxy.port)
        return process.Daemon(str(self.source), self.url, "--quiet-time", "0.3", "--rescan", "1", *options, env=env)

    def land(self, data: bytes, share: float) -> None:
        """Write that much of the file; when it is all, another one, too."""
        end = int(len(data) * share)
        with open(self.source / "step-1" / "model.safetensors", "ab") as file:
            file.write(data[self._at : end])
        self._at = end
        if share == 1:
            (self.source / "step-1" / "config.json").write_text("{}")

    def parts(self) -> int:
        """How many came."""
        return sum(is_part(request) and request.status in (200, 201, 308) for request in self.proxy.requests)

    def sent(self) -> int:
        return sum(request.sent_bytes for request in self.proxy.requests)

    def names(self) -> list[str]:
        return [name for name, _ in self._store.names(self._key, deep=True)] + list(self._store.unfinished(self._key))

    def notes(self) -> list[Path]:
        return sorted(Path(home_of(self.url)).rglob("uploads/*"))


def facts(note: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(note.read_text().splitlines()[0])["facts"]
    return found


@pytest.fixture
def watched(
    proxies: Callable[[Server], FaultProxy], tmp_path: Path, request: pytest.FixtureRequest, state: Path
) -> Watched:
    server = request.getfixturevalue(getattr(request, "param", "moto"))
    return Watched(server, proxies(server), tmp_path, re.sub(r"\W", "-", request.node.name))


@pytest.mark.parametrize("watched", ["moto", "azurite", "gcs"], indirect=True)
def test_a_daemon_goes_on_with_what_was_sent_while_the_files_landed(watched: Watched, data: bytes) -> None:
    """Killed, told to end, killed again while it reads back: each part is sent once, and one of them perhaps twice."""
    lives = []
    for life in range(4):
        watched.proxy.script([Stall(60.0)] if life == 2 else [], is_back)
        with watched.daemon(*(["--once"] if life == 3 else [])) as daemon:
            if life < 2:
                for share in ((0.3, 0.6), (0.75, 0.9))[life]:
                    watched.land(data, share)
                    time.sleep(0.3)
                daemon.until(lambda: watched.parts() >= 1, "a part")
                time.sleep(0.3)
                daemon.terminate() if life else daemon.kill()
            elif life == 2:
                watched.land(data, 1)
                daemon.until(lambda: not watched.proxy.faults, "it to be read back")
                daemon.kill()
            else:
                assert daemon.wait() == 0
            said = daemon.output()
        lives.append(watched.sent())
        assert len(watched.notes()) == (life < 3)
    size = watched._store.head(f"{watched._key}/step-1.arz").size
    assert sum(lives) <= size + PART_BYTES + 4 * NOISE and lives[3] < NOISE
    assert f"not_sent_again={size}" in said
    assert watched.names() == ["step-1.arz"]
    arzstream.verify(
        f"{watched.url}/step-1.arz", deep=True, against=watched.source / "step-1",
        storage_options=watched.server.storage_options,
    )  # fmt: skip


def test_what_was_coded_against_a_parent_is_gone_on_with_against_it(watched: Watched, data: bytes) -> None:
    head = 8 + int.from_bytes(data[:8], "little")
    noise = np.random.default_rng(1).integers(0, 256, (len(data) - head) // 2, np.uint16)
    later = data[:head] + (np.frombuffer(data, np.uint16, offset=head) ^ noise).tobytes()
    watched.land(data, 1)
    watched.proxy.script([])
    with watched.daemon("--once") as daemon:
        assert daemon.wait() == 0
    second = watched.source / "step-2"
    second.mkdir()
    (second / "model.safetensors").write_bytes(later)
    (second / "config.json").write_text("{}")
    watched.proxy.script([None, Stall(60.0)], is_part)
    with watched.daemon() as daemon:
        daemon.until(lambda: not watched.proxy.faults, "a part")
        daemon.kill()
    sent = watched.sent()
    (note,) = watched.notes()
    assert facts(note)["steady"] == PART_BYTES, "it is expected to be as long as the one before"
    watched.proxy.script([])
    with watched.daemon("--once") as daemon:
        assert daemon.wait() == 0
        assert "upload-resumed" in daemon.output()
    size = watched._store.head(f"{watched._key}/step-2.arz").size
    assert PART_BYTES < size < 0.6 * len(data)
    assert sent > PART_BYTES and watched.sent() < size - PART_BYTES + NOISE
    with arzstream.open(f"{watched.url}/step-2.arz", watched.server.storage_options) as archive:
        assert [hint for hint, _ in archive.parents()] == ["step-1.arz"]
        assert archive.read_file("model.safetensors") == later


def test_a_daemon_whose_store_was_away_goes_on_when_it_is_back(watched: Watched, data: bytes) -> None:
    watched.land(data, 1)

    def refused(request: Request) -> bool:
        return request.method == "PUT" and watched.parts() >= 2

    watched.proxy.script([Status(503)] * 14, refused)  # six tries for each of two parts, and some more
    with watched.daemon() as daemon:
        daemon.until(lambda: "step-1.arz" in watched.names(), "the archive", timeout=90)
        daemon.until(lambda: not watched.notes(), "it to be noted")
        said = daemon.output()
    assert "now=blocked" in said and "upload-resumed" in said
    size = watched._store.head(f"{watched._key}/step-1.arz").size
    came = sum(request.sent_bytes for request in watched.proxy.requests if request.status == 200)
    assert came <= size + NOISE


@pytest.mark.parametrize("why", ["gone", "old"])
def test_what_was_sent_and_nobody_wants_any_more_is_removed(watched: Watched, data: bytes, why: str) -> None:
    watched.land(data, 0.6)
    watched.proxy.script([])
    with watched.daemon() as daemon:
        daemon.until(lambda: watched.parts() >= 1, "a part")
        daemon.kill()
    (name,) = watched.names()
    (note,) = watched.notes()
    assert facts(note)["steady"] == 0, "nobody knows how long it gets"
    if why == "gone":
        os.unlink(watched.source / "step-1" / "model.safetensors")
        (watched.source / "step-1").rmdir()
    else:
        note.write_text(json.dumps({"facts": {**facts(note), "since": time.time() - KEPT_SECONDS}}) + "\n")
    watched.proxy.script([])
    with watched.daemon() as daemon:
        if why == "gone":
            daemon.until(lambda: not watched.names() and not watched.notes(), "it to be removed")
        else:
            daemon.until(lambda: name not in watched.names(), "it to be removed")
