"""The servers, each started once for all tests of a process that want it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from arzstream.store.patience import Patience
from arzstream.testing import servers
from arzstream.testing.proxy import FaultProxy

QUICK = Patience(attempts=4, first=0.01, longest=0.05, stall=1.0)


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[servers.Server]:
    program = repository / ".venv" / "servers" / "node_modules" / ".bin" / "azurite-blob"
    with servers.azurite(tmp_path_factory.mktemp("azurite"), program) as server:
        yield server


@pytest.fixture(scope="session")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.gcs(tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture(scope="session")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.nginx(tmp_path_factory.mktemp("nginx")) as server:
        yield server


@pytest.fixture(scope="session")
def nginx_without_ranges(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.nginx(tmp_path_factory.mktemp("nginx"), ranges=False) as server:
        yield server


@pytest.fixture(scope="session")
def sftp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.sftp(tmp_path_factory.mktemp("sftp")) as server:
        yield server


@pytest.fixture(scope="session")
def proxies() -> Iterator[Callable[[servers.Server], FaultProxy]]:
    """One proxy for each server, which all tests share: a client is made for each address, and that takes long."""
    found: dict[int, FaultProxy] = {}

    def proxy_of(server: servers.Server) -> FaultProxy:
        if server.port not in found:
            found[server.port] = FaultProxy(server.port)
        found[server.port].script([])
        return found[server.port]

    yield proxy_of
    for proxy in found.values():
        proxy.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Patience:
    """The same number of tries for everything, without the waiting."""
    from arzstream.store import publishing, remote

    monkeypatch.setattr(remote, "PATIENCE", QUICK)
    monkeypatch.setattr(publishing, "PATIENCE", QUICK)
    return QUICK
