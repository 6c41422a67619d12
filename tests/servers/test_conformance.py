"""Every kind of store does what is asked of it, against a real server of its kind."""

from __future__ import annotations

import os
import secrets
from urllib.parse import quote

import pytest

from arzstream.testing.conformance import ReadableStore, WritableStore
from arzstream.testing.servers import Server


class TestMemory(WritableStore):
    listings_tell_versions = False
    refuses_taken_names = False  # it looks first, and two may look at once

    @pytest.fixture
    def server(self) -> Server:
        return Server("memory://archives", {}, 0)


class TestS3(WritableStore):
    @pytest.fixture
    def server(self, moto: Server) -> Server:
        return moto


class TestAzure(WritableStore):
    @pytest.fixture
    def server(self, azurite: Server) -> Server:
        return azurite


class TestGcs(WritableStore):
    refuses_taken_names = refuses_other_versions = False  # the emulator ignores preconditions and generations

    @pytest.fixture
    def server(self, gcs: Server) -> Server:
        return gcs


class TestSftp(WritableStore):
    @pytest.fixture
    def server(self, sftp: Server) -> Server:
        return sftp


class TestHttp(ReadableStore):
    writes = 0

    @pytest.fixture
    def server(self, nginx: Server) -> Server:
        return nginx

    def put(self, server: Server, name: str, data: bytes) -> str:
        assert server.folder is not None
        temporary = server.folder / secrets.token_hex(8)
        temporary.write_bytes(data)
        temporary.chmod(0o644)
        self.writes += 1  # nginx's ETag is made of the size and of the time in seconds
        os.utime(temporary, (1_700_000_000 + self.writes,) * 2)
        os.replace(temporary, server.folder / name)
        return f"{server.url}/{quote(name)}"
