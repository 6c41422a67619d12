"""Archives behind URLs are read, written, checked and compared as local ones are, in few requests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import arzstream
from arzstream.archive.difference import diff
from arzstream.archive.reader import Archive
from arzstream.store.backends import connect
from arzstream.store.remote import TAIL_BYTES, RemoteReader
from arzstream.testing import tensors
from arzstream.testing.conformance import written
from arzstream.testing.proxy import Around, FaultProxy, Stall
from arzstream.testing.servers import Server

ROWS, COLUMNS, LAYERS = 2048, 1024, 6
MIB = 1 << 20


def weights(seed: int, changed: float = 1.0, base: list[tensors.Tensor] | None = None) -> list[tensors.Tensor]:
    """Layers of bf16 weights; with ``base``, those with a share of the elements ``changed``."""
    rng = np.random.default_rng(seed)
    found = []
    for layer in range(LAYERS):
        data = tensors.gaussian((ROWS, COLUMNS), "BF16", rng)
        if base is not None:
            old = np.frombuffer(base[layer].data, np.uint16)
            new = np.where(rng.random(old.size) < changed, old ^ 1, old).astype(np.uint16)
            data = new.tobytes()
        found.append(tensors.Tensor(f"model.layers.{layer}.up.weight", "BF16", (ROWS, COLUMNS), data))
    return found


def folder_of(where: Path, found: list[tensors.Tensor]) -> Path:
    where.mkdir()
    (where / "model.safetensors").write_bytes(tensors.safetensors_bytes(found))
    (where / "config.json").write_text('{"layers": 6}')
    return where


class Checkpoints:
    """Two checkpoints, the second a little later than the first, and their archives."""

    def __init__(self, work: Path) -> None:
        self.first, self.second = weights(1), []
        self.second = weights(2, 0.01, self.first)
        self.folders = [folder_of(work / "step-1", self.first), folder_of(work / "step-2", self.second)]
        self.archives = [work / "step-1.arz", work / "step-2.arz"]
        arzstream.pack(self.folders[0], self.archives[0])
        arzstream.pack(self.folders[1], self.archives[1], parent=self.archives[0])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(params=["nginx", "moto", "azurite", "gcs", "sftp"])
def server(request: pytest.FixtureRequest) -> Server:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Server)
    return found


Upload = Callable[[Server, Path, str], str]


@pytest.fixture
def upload() -> Upload:
    def bring(server: Server, file: Path, name: str) -> str:
        if server.folder is not None:
            shutil.copyfile(file, server.folder / name)
        else:
            written(server, name, file.read_bytes(), replace=True)
        return f"{server.url}/{name}"

    return bring


def same(archive: Archive, expected: list[tensors.Tensor]) -> None:
    streamed = dict(archive.stream(framework="np"))
    assert list(streamed) == [tensor.name for tensor in expected]
    for tensor in expected:
        assert streamed[tensor.name].tobytes() == bytes(tensor.data)


def test_a_remote_archive_is_read_as_a_local_one(
    server: Server, checkpoints: Checkpoints, upload: Upload, tmp_path: Path
) -> None:
    url = upload(server, checkpoints.archives[0], "step-1.arz")
    with arzstream.open(url, server.storage_options) as archive:
        assert archive.sealed and archive.files() == ["config.json", "model.safetensors"]
        same(archive, checkpoints.first)
        name = checkpoints.first[2].name
        with arzstream.open(checkpoints.archives[0]) as local:
            assert archive.get_tensor(name).equal(local.get_tensor(name))
            assert archive.get_slice(name)[7:9, ::3].equal(local.get_tensor(name)[7:9, ::3])
        with archive.open_file("model.safetensors") as file:
            file.seek(-100, os.SEEK_END)
            assert file.read() == (checkpoints.folders[0] / "model.safetensors").read_bytes()[-100:]
        assert archive.read_file("config.json") == b'{"layers": 6}'
    report = arzstream.verify(url, deep=True, against=checkpoints.folders[0], storage_options=server.storage_options)
    assert report.deep and report.bytes == checkpoints.archives[0].stat().st_size
    arzstream.unpack(url, tmp_path / "out", storage_options=server.storage_options)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (checkpoints.folders[0] / name).read_bytes()


def test_parents_are_found_beside_a_remote_archive_and_elsewhere(
    server: Server, checkpoints: Checkpoints, upload: Upload
) -> None:
    upload(server, checkpoints.archives[0], "step-1.arz")
    url = upload(server, checkpoints.archives[1], "step-2.arz")
    with arzstream.open(url, server.storage_options) as archive:
        same(archive, checkpoints.second)
    with arzstream.open(checkpoints.archives[0]) as local, arzstream.open(url, server.storage_options) as archive:
        assert archive.parents() == [("step-1.arz", local.content_digest())]
    arzstream.verify(url, deep=True, storage_options=server.storage_options)
    found = diff(checkpoints.archives[0], url, storage_options=server.storage_options)
    assert {tensor.what for tensor in found.tensors} == {"changed"}
    assert all(0.005 < (tensor.changed or 0) < 0.02 for tensor in found.tensors)


def test_a_local_archive_may_have_a_remote_parent(
    moto: Server, checkpoints: Checkpoints, upload: Upload, tmp_path: Path
) -> None:

    upload(moto, checkpoints.archives[0], "only-here.arz")
    shutil.copy(checkpoints.archives[1], tmp_path / "step-2.arz")
    with pytest.raises(arzstream.MissingParentError), arzstream.open(tmp_path / "step-2.arz") as archive:
        archive.get_tensor(checkpoints.second[0].name)
    with arzstream.open(tmp_path / "step-2.arz", moto.storage_options, f"{moto.url}/only-here.arz") as archive:
        same(archive, checkpoints.second)


# -- requests


@pytest.fixture
def counted(
    nginx: Server, moto: Server, proxies: Callable[[Server], FaultProxy]
) -> Callable[[str], tuple[Server, FaultProxy]]:
    def through(kind: str) -> tuple[Server, FaultProxy]:
        server = {"nginx": nginx, "moto": moto}[kind]
        return server.through(proxies(server).port), proxies(server)

    return through


@pytest.mark.parametrize("kind", ["nginx", "moto"])
def test_opening_is_one_request_and_a_few_rows_two_and_all_of_it_large_ones(
    counted: Callable[[str], tuple[Server, FaultProxy]], kind: str, checkpoints: Checkpoints, upload: Upload
) -> None:
    server, proxy = counted(kind)
    url = upload(server, checkpoints.archives[0], "step-1.arz")
    size = checkpoints.archives[0].stat().st_size
    proxy.script([])
    with arzstream.open(url, server.storage_options) as archive:
        assert len(proxy.requests) == 1 and archive.keys()
        archive.get_slice(checkpoints.first[3].name)[ROWS // 2 - 5 : ROWS // 2 + 5]  # of two chunks
        assert len(proxy.requests) == 2
        assert sum(request.body_bytes for request in proxy.requests) < 4 * MIB
        proxy.script([])
        same(archive, checkpoints.first)
        # All of it once, and the first piece by itself, because someone waited for it.
        assert len(proxy.requests) <= -(-size // (8 * MIB)) + 3
        assert sum(request.body_bytes for request in proxy.requests) < size + TAIL_BYTES


def test_the_first_tensor_comes_before_the_rest_has(
    counted: Callable[[str], tuple[Server, FaultProxy]], checkpoints: Checkpoints, upload: Upload
) -> None:
    server, proxy = counted("nginx")
    url = upload(server, checkpoints.archives[0], "step-1.arz")
    with arzstream.open(url, server.storage_options) as archive:
        proxy.script([])
        proxy.rate = 20e6
        stream = archive.stream(framework="np")
        next(stream)
        sent = sum(request.body_bytes for request in proxy.requests)
        assert sent < 0.7 * checkpoints.archives[0].stat().st_size
        del stream  # what was not fetched yet is not fetched any more
        proxy.rate = None


def test_what_a_stream_holds_of_the_archive_is_bounded(
    counted: Callable[[str], tuple[Server, FaultProxy]], checkpoints: Checkpoints, upload: Upload
) -> None:
    server, proxy = counted("nginx")
    url = upload(server, checkpoints.archives[0], "step-1.arz")
    size = checkpoints.archives[0].stat().st_size
    with RemoteReader(url, window_bytes=4 * MIB) as reader:
        announced = reader.announce()
        announced.add([(at, min(MIB, size - at)) for at in range(0, size - TAIL_BYTES, MIB)])
        reader.read_at(0, MIB)
        # Two requests at most are under way or done, however long nobody reads.
        time.sleep(0.3)
        assert sum(request.body_bytes for request in proxy.requests) <= TAIL_BYTES + 16 * MIB
        announced.release()


# -- writing


@pytest.mark.parametrize("server", ["moto", "azurite", "gcs", "sftp"], indirect=True)
def test_packing_to_a_store_leaves_one_archive_that_was_read_back(
    server: Server, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "no-such-folder"))  # no local copy
    options = server.storage_options
    url = f"{server.url}/packed-1.arz"
    summary = arzstream.pack(checkpoints.folders[0], url, storage_options=options, force=True)
    assert summary.archive == url and summary.tensors == LAYERS
    child = f"{server.url}/packed-2.arz"
    summary = arzstream.pack(checkpoints.folders[1], child, parent=url, storage_options=options, force=True)
    assert [hint for hint, _ in summary.parents] == ["packed-1.arz"]
    with arzstream.open(child, options) as archive:
        same(archive, checkpoints.second)
    with pytest.raises(arzstream.StorageError, match="exists already"):
        arzstream.pack(checkpoints.folders[0], url, storage_options=options)


def test_packing_from_a_store_needs_no_local_copy(
    moto: Server, checkpoints: Checkpoints, upload: Upload, tmp_path: Path
) -> None:
    source = upload(moto, checkpoints.folders[0] / "model.safetensors", "model.safetensors")
    arzstream.pack(source, f"{moto.url}/from-store.arz", storage_options=moto.storage_options, force=True)
    arzstream.pack(source, tmp_path / "from-store.arz", storage_options=moto.storage_options)
    for place, options in ((f"{moto.url}/from-store.arz", moto.storage_options), (tmp_path / "from-store.arz", None)):
        with arzstream.open(place, options) as archive:
            same(archive, checkpoints.first)


def test_a_source_that_is_replaced_while_it_is_packed_is_noticed(
    moto: Server, checkpoints: Checkpoints, upload: Upload, tmp_path: Path
) -> None:
    source = upload(moto, checkpoints.folders[0] / "model.safetensors", "moving.safetensors")
    other = checkpoints.folders[1] / "model.safetensors"
    with FaultProxy(moto.port) as proxy:
        server = moto.through(proxy.port)
        change = Around(before=lambda: upload(moto, other, "moving.safetensors"))
        proxy.script([None, None, None, change], lambda request: request.method == "GET")
        with pytest.raises(arzstream.SourceChangedError, match="moving"):
            arzstream.pack(source, tmp_path / "moving.arz", storage_options=server.storage_options)
    assert os.listdir(tmp_path) == []


# -- the command line


def test_the_verbs_take_urls(nginx: Server, checkpoints: Checkpoints, upload: Upload, tmp_path: Path) -> None:
    url = upload(nginx, checkpoints.archives[0], "verbs.arz")

    def arz(*arguments: str) -> bytes:
        done = subprocess.run(
            [sys.executable, "-m", "arzstream", *arguments], capture_output=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert b"model.layers.0.up.weight" in arz("ls", url)
    assert arz("cat", url, "config.json") == b'{"layers": 6}'
    assert b"good" in arz("verify", url)
    arz("unpack", url, "-o", "out")
    assert (tmp_path / "out" / "config.json").exists()
    assert b"unchanged" in arz("diff", url, str(checkpoints.archives[0]))


# -- the cache


def test_a_cache_answers_the_second_time_and_is_not_needed(
    counted: Callable[[str], tuple[Server, FaultProxy]],
    checkpoints: Checkpoints,
    upload: Upload,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, proxy = counted("nginx")
    url = upload(server, checkpoints.archives[0], "cached.arz")
    monkeypatch.setenv("ARZ_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        proxy.script([])
        with arzstream.open(url) as archive:
            same(archive, checkpoints.first)
    assert len(proxy.requests) == 1  # who it is now; the rest is here
    for folder, _, names in os.walk(tmp_path / "cache"):
        for name in names:
            place = Path(folder) / name
            data = bytearray(place.read_bytes())
            data[len(data) // 2] ^= 1
            place.write_bytes(data)
    with arzstream.open(url) as archive:
        same(archive, checkpoints.first)


@pytest.mark.parametrize("server", ["nginx", "moto"], indirect=True)
def test_a_process_that_was_forked_reads_with_connections_of_its_own(
    server: Server, checkpoints: Checkpoints, upload: Upload
) -> None:
    url = upload(server, checkpoints.archives[0], "forked.arz")
    with RemoteReader(url, server.storage_options) as reader:
        first = reader.read_at(0, 1000)
        announced = reader.announce()
        announced.add([(0, 2000)])
        child = os.fork()
        if not child:
            code = 1
            try:
                code = 0 if reader.read_at(0, 1000) == first and reader.read_at(5000, 10) else 2
            finally:
                os._exit(code)
        deadline = time.monotonic() + 60
        done, status = 0, 0
        while not done and time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.02)
        if not done:
            os.kill(child, 9)
            os.waitpid(child, 0)
        assert done and os.waitstatus_to_exitcode(status) == 0
        assert reader.read_at(0, 1000) == first


@pytest.mark.parametrize("server", ["moto", "azurite", "gcs", "sftp"], indirect=True)
def test_a_folder_in_a_store_is_packed_as_one(server: Server, checkpoints: Checkpoints, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "deep er/rng.bin"):
        data = (checkpoints.folders[0] / name).read_bytes() if "deep" not in name else b"rng" * 100
        written(server, f"folder/step-1/{name}", data, replace=True)
    source, options = f"{server.url}/folder/step-1", server.storage_options
    arzstream.pack(source, tmp_path / "folder.arz", storage_options=options)
    with arzstream.open(tmp_path / "folder.arz") as archive:
        assert archive.files() == ["config.json", "deep er/rng.bin", "model.safetensors"]
        same(archive, checkpoints.first)
    arzstream.verify(tmp_path / "folder.arz", against=source + "/", storage_options=options)
    written(server, "folder/step-1/config.json", b"other", replace=True)
    with pytest.raises(arzstream.CorruptError, match=r"config\.json"):
        arzstream.verify(tmp_path / "folder.arz", against=source, storage_options=options)
    for missing in (f"{server.url}/folder/step-2", f"{server.url}/folder/step-2/"):
        with pytest.raises(arzstream.StorageError, match="check the address"):
            arzstream.pack(missing, tmp_path / "missing.arz", storage_options=options)


def aws(port: int) -> dict[str, str]:
    """The environment of somebody who uses S3."""
    return {
        **os.environ,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }


def test_the_command_line_packs_to_a_store_with_what_the_environment_says(
    moto: Server, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    environment = aws(moto.port)

    def arz(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "arzstream", *arguments]
        return subprocess.run(command, capture_output=True, check=False, cwd=tmp_path, env=environment)

    url = f"{moto.url}/by-hand/step-1.arz"
    done = arz("pack", str(checkpoints.folders[0]), "-o", url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(url.encode() + b": ")
    done = arz("pack", str(checkpoints.folders[0]), "-o", url)
    assert done.returncode == 4
    assert done.stderr == f"arzstream: {url}: exists already; choose another name, or --force to replace it\n".encode()
    with arzstream.open(url, moto.storage_options) as archive:
        same(archive, checkpoints.first)


def test_packing_that_is_interrupted_leaves_nothing(
    moto: Server, checkpoints: Checkpoints, proxies: Callable[[Server], FaultProxy]
) -> None:
    proxy = proxies(moto)
    proxy.script([Stall(2.0)], lambda request: "partNumber=1" in request.path)
    url = f"{moto.url}/interrupted/step-1.arz"
    process = subprocess.Popen(
        [sys.executable, "-m", "arzstream", "pack", str(checkpoints.folders[0]), "-o", url],
        env=aws(proxy.port), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while proxy.faults and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said == b"arzstream: interrupted\n"
    store, key = connect(url, moto.storage_options)
    assert list(store.names(key.rpartition("/")[0])) == []
    invoke = store._invoke  # type: ignore[attr-defined]
    pending = store.run(invoke, "list_multipart_uploads", Bucket="archives", Prefix="interrupted/")  # type: ignore[attr-defined]
    assert not pending.get("Uploads")
