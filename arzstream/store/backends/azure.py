"""Azure Blob Storage, with the client of adlfs: its accounts, connection strings and credentials."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from arzstream.store.backends.loop import LoopStore
from arzstream.store.backends.sending import Sent
from arzstream.store.objects import BadAnswer, ObjectChangedError, Properties, Upload, Version
from arzstream.store.patience import Patience, status_of

__all__ = ["AzureStore"]

POLL_SECONDS = 0.2


class AzureStore(LoopStore):
    """Block blobs. Versions are told by their ETags. (There are no suffix ranges: the length is asked for first.)"""

    properties = Properties(
        pinned=True, writable=True, repeatable=True, unordered_parts=True, exclusive=True, resumable=True
    )

    @classmethod
    def options(cls, options: Mapping[str, Any], patience: Patience) -> dict[str, Any]:
        return {"use_listings_cache": False, **options}

    def head(self, key: str) -> Version:
        return self.run(self._head, key)

    def get_into(self, key: str, start: int, out: memoryview, version: Version) -> None:
        self.run(self._get_into, key, start, out, version)

    def upload(self, key: str) -> Upload:
        return _Blocks(self, key)

    def resume(self, key: str, upload: str) -> Upload | None:
        try:
            return _Blocks(self, key, self.run(self._blocks, key))
        except Exception as error:
            if status_of(error) != 404:
                raise
            return None

    def commit(self, temporary: str, final: str, version: Version, *, replace: bool) -> None:
        self.run(self._commit, temporary, final, version, replace)

    def remove(self, key: str) -> None:
        self.run(self._remove, key)

    def names(self, folder: str, *, deep: bool = False) -> Iterator[tuple[str, Version]]:
        yield from self.run(self._names, folder, deep)

    def _blob(self, key: str) -> Any:
        container, name, _ = self._fs.split_path(key)
        return self._fs.service_client.get_blob_client(container, name)

    def _patient(self, nbytes: int = 0) -> dict[str, Any]:
        """No retries below ours, and how long nothing may come."""
        return {"retry_total": 0, "connection_timeout": self._patience.stall, "read_timeout": self._patience.stall}

    async def _head(self, key: str) -> Version:
        found = await self._blob(key).get_blob_properties(**self._patient())
        return Version(int(found.size), str(found.etag))

    async def _get_into(self, key: str, start: int, out: memoryview, version: Version) -> None:
        from azure.core import MatchConditions

        try:
            stream = await self._blob(key).download_blob(
                offset=start, length=len(out), etag=version.tag, match_condition=MatchConditions.IfNotModified,
                max_concurrency=1, **self._patient(),
            )  # fmt: skip
            if stream.size != len(out):
                raise BadAnswer(f"asked for {len(out)} bytes, it answers with {stream.size}")
            await asyncio.wait_for(_read_all(stream, out), self._patience.within(len(out)))
        except Exception as error:
            if status_of(error) in (412, 416):
                raise ObjectChangedError("it was replaced") from error
            raise
        if str(stream.properties.etag) != version.tag:
            raise ObjectChangedError("it was replaced")

    async def _commit(self, temporary: str, final: str, version: Version, replace: bool) -> None:
        from azure.core import MatchConditions

        source, dest = self._blob(temporary), self._blob(final)
        only_new = {} if replace else {"match_condition": MatchConditions.IfMissing}
        try:
            await dest.start_copy_from_url(source.url, source_etag=version.tag,
                source_match_condition=MatchConditions.IfNotModified, **only_new, **self._patient())  # fmt: skip
        except Exception as error:
            if status_of(error) in (409, 412):
                raise FileExistsError(final) from error
            raise
        while (found := await dest.get_blob_properties(**self._patient())).copy.status == "pending":
            await asyncio.sleep(POLL_SECONDS)
        if found.copy.status != "success":
            raise ConnectionError(f"the copy ended with {found.copy.status}")

    async def _blocks(self, key: str) -> frozenset[str]:
        """Names of the blocks that are there, listed or not."""
        listed, staged = await self._blob(key).get_block_list("all", **self._patient())
        return frozenset(str(block.id) for block in [*listed, *staged])

    async def _remove(self, key: str) -> None:
        try:
            await self._blob(key).delete_blob(**self._patient())
        except Exception as error:
            if status_of(error) != 404:
                raise

    async def _names(self, folder: str, deep: bool) -> list[tuple[str, Version]]:
        container, prefix, _ = self._fs.split_path(folder.rstrip("/") + "/")
        prefix = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
        client = self._fs.service_client.get_container_client(container)
        found = []
        listing = client.list_blobs if deep else client.walk_blobs
        async for item in listing(name_starts_with=prefix, **self._patient()):
            if hasattr(item, "etag"):
                found.append((item.name[len(prefix) :], Version(int(item.size or 0), f'"{item.etag}"')))
        return found


async def _read_all(stream: Any, out: memoryview) -> None:
    at = 0
    async for block in stream.chunks():
        if at + len(block) > len(out):
            raise BadAnswer(f"asked for {len(out)} bytes, it answers with more")
        out[at : at + len(block)] = block
        at += len(block)
    if at < len(out):
        raise ConnectionError(f"the answer ends after {at} of {len(out)} bytes")


class _Blocks(Upload):
    """Blocks that are staged, and committed as a list.

    A list of blocks tells names and no digests. So a block is named by its number and its MD5, which goes with it in
    ``Content-MD5``, too: the store compares that with the bytes that came before it takes them under that name.
    """

    def __init__(self, store: AzureStore, key: str, there: frozenset[str] = frozenset()) -> None:
        """``there`` are names of blocks that another process sent."""
        self._store, self._key, self._there = store, key, there
        self._names: dict[int, str] = {}

    def has(self, number: int, data: memoryview) -> bool:
        name = _block_name(number, data) if self._there else ""
        if name not in self._there:
            return False
        self._names[number] = name
        return True

    def part(self, number: int, data: memoryview, last: bool) -> None:
        name = self._names[number] = _block_name(number, data)
        with Sent(data) as body:
            self._store.run(self._stage, name, body, len(data))

    def finish(self) -> None:
        self._store.run(self._list)

    def abort(self) -> None:
        """Blocks that no list names go by themselves, within a week."""

    async def _stage(self, name: str, data: Sent, length: int) -> None:
        await self._store._blob(self._key).stage_block(
            name, data, length=length, validate_content=True, **self._store._patient()
        )

    async def _list(self) -> None:
        from azure.storage.blob import BlobBlock

        blocks = [BlobBlock(self._names[number]) for number in sorted(self._names)]
        await self._store._blob(self._key).commit_block_list(blocks, **self._store._patient())


def _block_name(number: int, data: memoryview) -> str:
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return f"{number:08d}-{digest}"
