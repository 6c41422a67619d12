"""Whatever goes wrong between here and the store: the right data or a clear error, never wrong data, never a hang."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import arzstream
from arzstream.store import remote
from arzstream.store.backends import connect
from arzstream.store.local import TEMPORARY_PREFIX
from arzstream.store.patience import Patience
from arzstream.testing import tensors
from arzstream.testing.conformance import written
from arzstream.testing.proxy import (
    Around,
    ErrorBody,
    Fault,
    FaultProxy,
    Flip,
    Request,
    Reset,
    Stall,
    Status,
    Trickle,
    Truncate,
    WrongRange,
)
from arzstream.testing.servers import Server

Proxies = Callable[[Server], FaultProxy]

LONGEST_SECONDS = 20.0
LAYERS = 4


@pytest.fixture(scope="module")
def weights() -> list[tensors.Tensor]:
    rng = np.random.default_rng(3)
    shape = (600, 512)
    return [tensors.Tensor(f"layers.{n}.w", "BF16", shape, tensors.gaussian(shape, "BF16", rng)) for n in range(LAYERS)]


@pytest.fixture(scope="module")
def archive(weights: list[tensors.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    (folder / "model.safetensors").write_bytes(tensors.safetensors_bytes(weights))
    arzstream.pack(folder / "model.safetensors", folder / "weights.arz")
    return folder / "weights.arz"


@pytest.fixture(params=["nginx", "moto"])
def way(request: pytest.FixtureRequest, archive: Path, proxies: Proxies) -> tuple[str, Server, FaultProxy]:
    """The archive behind a proxy, and the proxy."""
    server = request.getfixturevalue(request.param)
    data = archive.read_bytes()
    assert len(data) > 3 * (256 << 10)  # more than comes with the tail
    if server.folder is not None:
        (server.folder / "faulty.arz").write_bytes(data)
    else:
        written(server, "faulty.arz", data, replace=True)
    proxy = proxies(server)
    through = server.through(proxy.port)
    return f"{through.url}/faulty.arz", through, proxy


def _get(request: Request) -> bool:
    return request.method == "GET"


def _ahead(request: Request) -> bool:
    """Ranges of the middle: what is asked for after opening."""
    return request.method == "GET" and not request.range.startswith("bytes=-")


PASSING: dict[str, list[Fault | None]] = {
    "500": [Status(500)],
    "503 with advice": [Status(503, {"Retry-After": "0"})],
    "429 twice": [Status(429), Status(429)],
    "408": [Status(408)],
    "a reset before the answer": [Reset()],
    "a reset within the answer": [Reset(after=1000)],
    "an answer that ends early": [Truncate(after=1000)],
    "an answer that is empty": [Truncate(after=0)],
    "nothing comes": [Stall(3.0)],
    "nothing more comes": [Stall(3.0, after=5000)],
    "an error for a body": [ErrorBody()],
    "another range": [WrongRange("bytes 5-9/10")],
    "another length": [WrongRange("bytes 0-1/2")],
    "no range": [WrongRange(None)],
    "no sense": [WrongRange("elephants")],
    "a bit that is another one": [Flip(40_000)],
    "a bit of the first header": [Flip(3)],
    "one after the other": [Status(500), Reset(after=10), Truncate(after=10)],
}


@pytest.mark.parametrize("match", [_get, _ahead], ids=["opening", "reading"])
@pytest.mark.parametrize("what", list(PASSING))
def test_what_passes_is_survived(
    way: tuple[str, Server, FaultProxy], weights: list[tensors.Tensor], quick: Patience, what: str, match: object
) -> None:
    url, server, proxy = way
    began = time.monotonic()
    proxy.script(PASSING[what], match)  # type: ignore[arg-type]
    with arzstream.open(url, server.storage_options) as opened:
        for name, array in opened.stream(framework="np"):
            expected = next(tensor for tensor in weights if tensor.name == name)
            assert array.tobytes() == bytes(expected.data)
    assert not proxy.faults  # all of them happened
    assert time.monotonic() - began < LONGEST_SECONDS


LASTING: dict[str, tuple[Fault, str]] = {
    "503": (Status(503), r"cannot read .* 4 times.*503.*try again later"),
    "resets": (Reset(), r"cannot read .* 4 times.*try again later"),
    "no permission": (Status(403), r"access denied.*credentials"),
    "expired credentials": (Status(401), r"access denied.*credentials"),
    "answers that end early": (Truncate(after=1000), r"cannot read .* 4 times"),
    "nothing comes": (Stall(3.0), r"cannot read .* 4 times"),
    "errors for bodies": (ErrorBody(), r"does not serve ranges"),
    "other ranges": (WrongRange("bytes 5-9/10"), r"does not serve ranges"),
}


@pytest.mark.parametrize("what", list(LASTING))
def test_what_lasts_is_said_in_one_line_after_a_few_tries(
    way: tuple[str, Server, FaultProxy], weights: list[tensors.Tensor], quick: Patience, what: str
) -> None:
    url, server, proxy = way
    fault, message = LASTING[what]
    began = time.monotonic()
    with arzstream.open(url, server.storage_options) as opened:
        proxy.script([fault] * 1000, _ahead)
        with pytest.raises(arzstream.StorageError, match=message) as caught:
            opened.get_tensor(weights[0].name)
        assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
        assert len(proxy.requests) <= 8
        proxy.script([])
        assert opened.get_tensor(weights[0].name).shape == (600, 512)  # it went on
    assert time.monotonic() - began < LONGEST_SECONDS


@pytest.mark.parametrize("match", [_get, _ahead], ids=["opening", "reading"])
def test_a_request_that_brings_too_little_in_its_time_is_made_again(
    way: tuple[str, Server, FaultProxy],
    weights: list[tensors.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    match: Callable[[Request], bool],
) -> None:
    """Something comes again and again, so that it never stalls."""
    url, server, proxy = way
    monkeypatch.setattr(remote, "PATIENCE", Patience(attempts=4, first=0.01, longest=0.05, stall=1.0, rate=1 << 20))
    began = time.monotonic()
    proxy.script([Trickle(0.1, after=5000, count=int(10 * LONGEST_SECONDS))], match)
    with arzstream.open(url, server.storage_options) as opened:
        assert opened.numpy(weights[0].name).tobytes() == bytes(weights[0].data)
    assert not proxy.faults and time.monotonic() - began < LONGEST_SECONDS


def test_bytes_that_stay_damaged_name_the_tensor(
    way: tuple[str, Server, FaultProxy], weights: list[tensors.Tensor], quick: Patience
) -> None:
    url, server, proxy = way
    with arzstream.open(url, server.storage_options) as opened:
        proxy.script([Flip(40_000)] * 1000, _ahead)
        with pytest.raises(
            arzstream.CorruptError, match=rf"faulty.arz: tensor '{weights[0].name}', chunk 0: .*checksum"
        ):
            opened.get_tensor(weights[0].name)
        assert len(proxy.requests) == 2  # it was asked for once more


def test_verifying_survives_a_bit_that_is_another_one_on_its_way(
    way: tuple[str, Server, FaultProxy], quick: Patience
) -> None:
    url, server, proxy = way
    for faults in ([Flip(40_000)], [None, Flip(40_000)]):  # in the beginning, and in a frame
        proxy.script(faults, _ahead)
        arzstream.verify(url, storage_options=server.storage_options)
        assert not proxy.faults
    proxy.script([Flip(40_000)] * 1000, _ahead)
    with pytest.raises(arzstream.CorruptError, match=r"faulty\.arz"):
        arzstream.verify(url, storage_options=server.storage_options)


def test_an_archive_that_is_replaced_while_it_is_read_is_not_mixed(
    moto: Server, archive: Path, weights: list[tensors.Tensor], proxies: Proxies, quick: Patience, tmp_path: Path
) -> None:
    written(moto, "moving.arz", archive.read_bytes(), replace=True)
    arzstream.pack(archive.with_name("model.safetensors"), tmp_path / "other.arz", profile="fast")
    other = (tmp_path / "other.arz").read_bytes()
    proxy = proxies(moto)
    server = moto.through(proxy.port)
    with arzstream.open(f"{server.url}/moving.arz", server.storage_options) as opened:
        proxy.script([Around(before=lambda: written(moto, "moving.arz", other, replace=True))], _ahead)
        with pytest.raises(arzstream.StorageError, match="was replaced since it was opened"):
            opened.get_tensor(weights[0].name)


def test_a_server_without_ranges_is_refused_but_for_small_files(
    nginx_without_ranges: Server, archive: Path, quick: Patience
) -> None:
    folder, url = nginx_without_ranges.folder, nginx_without_ranges.url
    assert folder is not None
    (folder / "small").write_bytes(b"x" * 100_000)
    (folder / "large.arz").write_bytes(archive.read_bytes() + bytes(1 << 20))
    from arzstream.store.remote import RemoteReader

    with RemoteReader(f"{url}/small") as reader:
        assert reader.read_at(99_999, 1) == b"x" and reader.size == 100_000
    with pytest.raises(arzstream.StorageError, match="does not serve ranges; copy it to a local disk"):
        arzstream.open(f"{url}/large.arz")


# -- writing


def _writing(request: Request) -> bool:
    return request.method in ("POST", "PUT")


@pytest.mark.parametrize("position", range(8))
@pytest.mark.parametrize("fault", [Status(500), Reset(), Reset(after=0)], ids=["refused", "lost", "answer lost"])
def test_packing_survives_each_request_that_fails_once(
    moto: Server, archive: Path, proxies: Proxies, quick: Patience, fault: Fault, position: int
) -> None:
    source = archive.with_name("model.safetensors")
    name = f"write-{type(fault).__name__}-{getattr(fault, 'after', '')}-{position}/w.arz"
    proxy = proxies(moto)
    server = moto.through(proxy.port)
    proxy.script([*[None] * position, fault], _writing)
    arzstream.pack(source, f"{server.url}/{name}", storage_options=server.storage_options)
    _only(moto, name)
    arzstream.verify(f"{moto.url}/{name}", deep=True, against=source, storage_options=moto.storage_options)


def test_packing_that_fails_for_good_publishes_nothing_and_the_next_try_leaves_the_archive_only(
    moto: Server, archive: Path, proxies: Proxies, quick: Patience
) -> None:
    source = archive.with_name("model.safetensors")
    for position in range(6):
        proxy = proxies(moto)
        server = moto.through(proxy.port)
        url = f"{server.url}/never-{position}/w.arz"

        proxy.script([*[None] * position, *[Status(500)] * 4], _writing)
        try:
            arzstream.pack(source, url, storage_options=server.storage_options)
        except arzstream.StorageError as error:
            assert "try again later" in str(error)
            store, key = connect(url, server.storage_options)
            assert "w.arz" not in [found for found, _ in store.names(key.rpartition("/")[0])]
            proxy.script([])
            arzstream.pack(source, url, storage_options=server.storage_options)
        else:
            assert proxy.faults  # there were fewer requests than that
        _only(moto, f"never-{position}/w.arz")


def test_an_archive_that_comes_back_damaged_is_not_published(
    moto: Server, archive: Path, proxies: Proxies, quick: Patience
) -> None:
    source = archive.with_name("model.safetensors")
    proxy = proxies(moto)
    server = moto.through(proxy.port)
    proxy.script([Flip(40_000)] * 1000, _ahead)
    with pytest.raises(arzstream.CorruptError):
        arzstream.pack(source, f"{server.url}/damaged/w.arz", storage_options=server.storage_options)
    _only(moto, "damaged/w.arz", there=False)


def _only(server: Server, name: str, *, there: bool = True) -> None:
    """Nothing lies beside the archive, and no upload is left unfinished."""
    store, key = connect(f"{server.url}/{name}", server.storage_options)
    listed = [found for found, _ in store.names(key.rpartition("/")[0])]
    assert listed == ([name.rpartition("/")[2]] if there else [])
    pending = store.run(store._invoke, "list_multipart_uploads", Bucket="archives")  # type: ignore[attr-defined]
    prefix = name.rpartition("/")[0] + "/"
    left = [upload["Key"] for upload in pending.get("Uploads", ()) if upload["Key"].startswith(prefix)]
    # One to the final name, of which nobody knows because the answer was lost, has no parts and costs nothing.
    assert [found for found in left if TEMPORARY_PREFIX in found] == []
