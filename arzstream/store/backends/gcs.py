"""Google Cloud Storage, with the credentials and the session of gcsfs."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from arzstream.errors import StorageError
from arzstream.store.backends import web
from arzstream.store.backends.loop import LoopStore
from arzstream.store.backends.sending import SentBlocks
from arzstream.store.objects import ObjectChangedError, Properties, StaleUploadError, Upload, Version
from arzstream.store.patience import Patience, status_of

__all__ = ["GcsStore"]

REWRITE_BYTES = 1 << 30
QUANTUM_BYTES = 256 << 10
"""A session keeps multiples of this."""
GONE = (400, 404, 410, 499)
"""What is answered for a session that was ended, given up, or is too old."""


class GcsStore(LoopStore):
    """Objects in Google Cloud Storage. Versions are told by their generations, which never change."""

    properties = Properties(pinned=True, writable=True, repeatable=True, exclusive=True, resumable=True)

    @classmethod
    def options(cls, options: Mapping[str, Any], patience: Patience) -> dict[str, Any]:
        return {"use_listings_cache": False, **options}

    def head(self, key: str) -> Version:
        return self.run(self._head, key)

    def get_into(self, key: str, start: int, out: memoryview, version: Version) -> None:
        self.run(self._get_into, key, start, out, version)

    def upload(self, key: str) -> Upload:
        return _Resumable(self, key)

    def resume(self, key: str, upload: str) -> Upload | None:
        try:
            found = _Resumable(self, key, upload)
        except web.StatusError as error:
            if error.status not in GONE:
                raise
            return None
        if not found.worth_it:
            found.abort()
            return None
        return found

    def commit(self, temporary: str, final: str, version: Version, *, replace: bool) -> None:
        """A rewrite on the store's side, in as many steps as it wants."""
        params = {"ifSourceGenerationMatch": version.tag, "maxBytesRewrittenPerCall": str(REWRITE_BYTES)}
        if not replace:
            params["ifGenerationMatch"] = "0"
            self.refuse_taken(final)
        path = f"{self._object(temporary)}/rewriteTo/{self._object(final)}"
        while True:
            try:
                answer = self.patiently(lambda: self.run(self._json, "POST", path, params), final, "publish it")
            except StorageError as error:
                if status_of(error) == 412:
                    raise FileExistsError(final) from error
                raise
            if answer.get("done", True):
                return
            params["rewriteToken"] = answer["rewriteToken"]

    def remove(self, key: str) -> None:
        self.run(self._remove, key)

    def names(self, folder: str, *, deep: bool = False) -> Iterator[tuple[str, Version]]:
        bucket, _, prefix = folder.strip("/").partition("/")
        prefix = f"{prefix}/" if prefix else ""
        params = {"prefix": prefix} if deep else {"prefix": prefix, "delimiter": "/"}
        while True:
            page = self.run(self._json, "GET", f"b/{quote(bucket)}/o", params)
            for item in page.get("items", ()):
                yield item["name"][len(prefix) :], _version(item)
            if "nextPageToken" not in page:
                return
            params["pageToken"] = page["nextPageToken"]

    async def _head(self, key: str) -> Version:
        return _version(await self._json("GET", self._object(key), {}))

    async def _get_into(self, key: str, start: int, out: memoryview, version: Version) -> None:
        session, url = await self._session(), f"{self._fs.base}{self._object(key)}"
        params = {"alt": "media", "generation": version.tag}
        try:
            size, headers = await web.get_into(
                session, url, out, start, self._patience, self._fs._get_headers({}), params=params
            )
        except web.StatusError as error:
            if error.status in (404, 412, 416):  # a generation that was replaced is not there any more
                raise ObjectChangedError("it was replaced, or removed") from error
            raise
        if size != version.size or headers.get("x-goog-generation", version.tag) != version.tag:
            raise ObjectChangedError("it was replaced")

    async def _remove(self, key: str) -> None:
        session, url = await self._session(), f"{self._fs.base}{self._object(key)}"
        async with session.delete(
            url, headers=self._fs._get_headers({}), timeout=web.timeout(self._patience, 0)
        ) as response:
            if response.status != 404:
                web.raise_for(response)

    async def _json(self, method: str, path: str, params: Mapping[str, str]) -> Any:
        session = await self._session()
        async with session.request(
            method, f"{self._fs.base}{path}", params=self._fs._get_params(dict(params)),
            headers=self._fs._get_headers({}), timeout=web.timeout(self._patience, 0),
        ) as response:  # fmt: skip
            web.raise_for(response)
            return await response.json()

    async def _session(self) -> Any:
        return await self._fs._set_session()

    @staticmethod
    def _object(key: str) -> str:
        bucket, _, name = key.partition("/")
        return f"b/{quote(bucket, safe='')}/o/{quote(name, safe='')}"


def _version(item: Mapping[str, Any]) -> Version:
    return Version(int(item.get("size", 0)), str(item["generation"]))


class _Resumable(Upload):
    """A resumable upload: parts one after the other, and the object is there with the last.

    ``id`` is the address of its session, which whoever knows it may write to. Of a session that another process began
    the store says how many bytes it has, and not which, and it takes them once. So what is there is believed until the
    object is, whose MD5 the store tells.
    """

    def __init__(self, store: GcsStore, key: str, session: str = "") -> None:
        self._store, self._at, self._uncertain, self._key = store, 0, False, key
        bucket, _, name = key.partition("/")
        self.id = session or store.run(self._begin, bucket, name)
        self._md5 = hashlib.md5(usedforsecurity=False) if session else None
        self._had, self._ended = store.run(self._status) if session else (0, False)

    @property
    def worth_it(self) -> bool:
        """Is there anything of it?"""
        return self._ended or self._had >= QUANTUM_BYTES

    def has(self, number: int, data: memoryview) -> bool:
        end = self._at + len(data)
        if self._md5 is None or end > self._had:
            self._uncertain |= self._at < self._had  # it has the beginning of this part
            return False
        self._md5.update(data)
        self._at = end
        return True

    def part(self, number: int, data: memoryview, last: bool) -> None:
        if self._ended:
            raise _stale()
        self._store.run(self._send, data, last)
        self._at += len(data)
        self._ended = last
        if self._md5 is not None:
            self._md5.update(data)

    def finish(self) -> None:
        """The object is there; if others began it, is it ours?"""
        if self._md5 is None:
            return
        if not self._ended:  # it had all of ours, and waits for the end of something longer
            raise _stale()
        size, digest = self._store.run(self._digest)
        if (size, digest) != (self._at, self._md5.digest()):
            raise _stale()

    def abort(self) -> None:
        self._store.run(self._cancel)

    async def _begin(self, bucket: str, name: str) -> str:
        fs, session = self._store._fs, await self._store._session()
        url = f"{fs._location}/upload/storage/v1/b/{quote(bucket, safe='')}/o"
        async with session.post(
            url, params=fs._get_params({"uploadType": "resumable", "name": name}), json={"name": name},
            headers=fs._get_headers({"X-Upload-Content-Type": "application/octet-stream"}),
            timeout=web.timeout(self._store._patience, 0),
        ) as response:  # fmt: skip
            web.raise_for(response)
            return str(response.headers["Location"])

    async def _status(self) -> tuple[int, bool]:
        """Bytes that the session has, and whether these are all, and the object is there."""
        fs, session = self._store._fs, await self._store._session()
        async with session.put(
            self.id, data=b"", headers=fs._get_headers({"Content-Range": "bytes */*"}), allow_redirects=False,
            timeout=web.timeout(self._store._patience, 0),
        ) as response:  # fmt: skip
            if response.status == 308:
                return _received(response), False
            if response.status not in GONE:  # one that ended may not be known any more, but the object is there then
                web.raise_for(response)
        size, _ = await self._digest()
        return size, True

    async def _digest(self) -> tuple[int, bytes]:
        """Length and MD5 of the object."""
        found = await self._store._json("GET", self._store._object(self._key), {})
        return int(found.get("size", 0)), base64.b64decode(found.get("md5Hash", ""))

    async def _send(self, data: memoryview, last: bool) -> None:
        """A part; after a failure, what the store does not have of it."""
        end = self._at + len(data)
        total = str(end) if last else "*"
        had = self._at
        if self._uncertain:
            had = max(had, await self._put(memoryview(b""), f"bytes */{total}", end))
        self._uncertain = True
        if had < end:
            had = await self._put(data[had - self._at :], f"bytes {had}-{end - 1}/{total}", end)
        if had < end:
            raise ConnectionError("the store kept less of a part than was sent")
        self._uncertain = False

    async def _put(self, data: memoryview, said: str, end: int) -> int:
        """How many bytes the store has now."""
        fs, session = self._store._fs, await self._store._session()
        headers = fs._get_headers({"Content-Range": said, "Content-Length": str(len(data))})
        async with session.put(
            self.id, data=SentBlocks(data), headers=headers, allow_redirects=False,
            timeout=web.timeout(self._store._patience, len(data)),
        ) as response:  # fmt: skip
            if response.status == 308:
                return _received(response)
            web.raise_for(response)
            return end

    async def _cancel(self) -> None:
        fs, session = self._store._fs, await self._store._session()
        async with session.delete(self.id, headers=fs._get_headers({})):
            pass


def _received(response: Any) -> int:
    """How many bytes a session has, as it says."""
    last = response.headers.get("Range", "").rpartition("-")[2]
    return int(last) + 1 if last.isdigit() else 0


def _stale() -> StaleUploadError:
    return StaleUploadError("an earlier try sent something else; it is sent again")
