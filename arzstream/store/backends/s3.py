"""S3 and what speaks like it, with the client of s3fs: its endpoints, profiles, session tokens and provider chains."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from arzstream.errors import StorageError, UnsupportedError
from arzstream.store.backends.loop import LoopStore
from arzstream.store.backends.sending import Sent
from arzstream.store.objects import (
    BadAnswer,
    ObjectChangedError,
    Properties,
    StaleUploadError,
    Upload,
    Version,
    answered,
)
from arzstream.store.patience import Patience, status_of

__all__ = ["S3Store"]

CONNECTIONS = 32
COPY_BYTES = 1 << 30
"""A part that is copied: at most 5 GiB, and the store answers only when it is done."""
BLOCK_BYTES = 1 << 20
CLIENT = "aiobotocore>=2.15"
"""The first whose botocore knows what a commit says."""


class S3Store(LoopStore):
    """Objects in S3. Versions are told by their ETags."""

    properties = Properties(
        pinned=True, suffix=True, writable=True, repeatable=True, unordered_parts=True, exclusive=True, resumable=True
    )

    @classmethod
    def options(cls, options: Mapping[str, Any], patience: Patience) -> dict[str, Any]:
        """s3fs's, with as many connections as we use, and without botocore's retries below ours."""
        ours = {
            "max_pool_connections": CONNECTIONS, "retries": {"total_max_attempts": 1, "mode": "standard"},
            "connect_timeout": patience.stall, "read_timeout": patience.stall,
        }  # fmt: skip
        config = {**ours, **(options.get("config_kwargs") or {})}
        return {"use_listings_cache": False, **options, "config_kwargs": config}

    def head(self, key: str) -> Version:
        found = self._call("head_object", key)
        return Version(int(found["ContentLength"]), str(found.get("ETag", "")))

    def tail(self, key: str, length: int) -> tuple[Version, bytes]:
        try:
            return self.run(self._tail, key, length)
        except BadAnswer:  # some do not know suffixes, and an empty object has no last bytes
            return super().tail(key, length)
        except Exception as error:
            if status_of(error) == 416:
                return super().tail(key, length)
            raise

    def get_into(self, key: str, start: int, out: memoryview, version: Version) -> None:
        self.run(self._get_into, key, start, out, version)

    def upload(self, key: str) -> Upload:
        self._check_client(key)
        return _S3Upload(self, key)

    def resume(self, key: str, upload: str) -> Upload | None:
        """With the parts that ListParts tells of. Of an upload that was completed there is the object."""
        try:
            return _S3Upload(self, key, upload)
        except Exception as error:
            if status_of(error) != 404:
                raise
        try:
            return _S3Object(self, key)
        except Exception as error:
            if status_of(error) != 404:
                raise
            return None

    def commit(self, temporary: str, final: str, version: Version, *, replace: bool) -> None:
        """A multipart copy of any length, completed with ``If-None-Match: *``. Not every server knows that, so the name
        is looked for, too, before the copy and after it."""
        if not replace:
            self._check_client(final)
            self.refuse_taken(final)
        upload = _S3Upload(self, final)
        try:
            self._copy(upload, temporary, final, version)
            if not replace:
                self.patiently(lambda: self.refuse_taken(final), final, "look at it")
            self._finish(upload, final, create=not replace)
        except BaseException:
            with contextlib.suppress(Exception):
                upload.abort()
            raise

    def _copy(self, upload: _S3Upload, temporary: str, final: str, version: Version) -> None:
        bucket, name, _ = self._fs.split_path(temporary)
        source = {"Bucket": bucket, "Key": name}
        for number, start in enumerate(range(0, version.size, COPY_BYTES)):
            end = min(version.size, start + COPY_BYTES)
            copy = functools.partial(upload.copy, number, source, start, end, version.tag)
            self.patiently(copy, final, f"copy part {number + 1} of it")

    def _finish(self, upload: _S3Upload, final: str, *, create: bool) -> None:
        try:
            self.patiently(lambda: upload.finish(create), final, "publish it")
        except StorageError as error:
            if status_of(error) in (409, 412):
                raise FileExistsError(final) from error
            raise

    def _check_client(self, key: str) -> None:
        """What a client does not know of a request it leaves out. Without ``If-None-Match`` it would replace
        archives."""
        if "IfNoneMatch" not in self.run(self._members, "CompleteMultipartUpload"):
            bucket, _, _ = self._fs.split_path(key)
            said = "this botocore cannot publish without replacing what may be there"
            raise UnsupportedError(f"s3://{bucket}: {said}; pip install s3fs '{CLIENT}'")

    async def _members(self, operation: str) -> Collection[str]:
        """What can be said in a request."""
        client = await self._fs.set_session()
        return set(client.meta.service_model.operation_model(operation).input_shape.members)

    def remove(self, key: str) -> None:
        self._call("delete_object", key)
        with contextlib.suppress(Exception):  # listing them may not be allowed
            for upload in self._unfinished(key):
                self._call("abort_multipart_upload", key, UploadId=upload)

    def _below(self, folder: str) -> tuple[str, str]:
        """The bucket, and what the keys of all objects below ``folder`` begin with."""
        bucket, prefix, _ = self._fs.split_path(folder.rstrip("/") + "/")
        return bucket, prefix.rstrip("/") + "/" if prefix.strip("/") else ""

    def names(self, folder: str, *, deep: bool = False) -> Iterator[tuple[str, Version]]:
        bucket, prefix = self._below(folder)
        more: dict[str, str] = {} if deep else {"Delimiter": "/"}
        while True:
            page = self.run(self._invoke, "list_objects_v2", Bucket=bucket, Prefix=prefix, **more)
            for item in page.get("Contents", ()):
                yield item["Key"][len(prefix) :], Version(int(item["Size"]), str(item.get("ETag", "")))
            if not page.get("IsTruncated"):
                return
            more["ContinuationToken"] = page["NextContinuationToken"]

    def unfinished(self, folder: str) -> Iterator[str]:
        bucket, prefix = self._below(folder)
        more: dict[str, str] = {}
        while True:
            page = self.run(self._invoke, "list_multipart_uploads", Bucket=bucket, Prefix=prefix, **more)
            yield from (item["Key"][len(prefix) :] for item in page.get("Uploads", ()))
            if not page.get("IsTruncated"):
                return
            more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def _unfinished(self, key: str) -> list[str]:
        """Uploads to ``key`` that were begun: all, if the answer to the first request was lost."""
        bucket, name, _ = self._fs.split_path(key)
        found = self.run(self._invoke, "list_multipart_uploads", Bucket=bucket, Prefix=name)
        return [item["UploadId"] for item in found.get("Uploads", ()) if item["Key"] == name]

    def _call(self, method: str, key: str, **keywords: Any) -> Any:
        bucket, name, version = self._fs.split_path(key)
        if version is not None and method in ("head_object", "get_object"):
            keywords["VersionId"] = version
        return self.run(self._invoke, method, Bucket=bucket, Key=name, **keywords)

    async def _invoke(self, method: str, **keywords: Any) -> Any:
        client = await self._fs.set_session()
        bound = getattr(client, method)
        return await bound(**self._fs._get_s3_method_kwargs(bound, **keywords))

    async def _get(self, key: str, **keywords: Any) -> Any:
        bucket, name, version = self._fs.split_path(key)
        if version is not None:
            keywords["VersionId"] = version
        return await self._invoke("get_object", Bucket=bucket, Key=name, **keywords)

    async def _tail(self, key: str, length: int) -> tuple[Version, bytes]:
        answer = await self._get(key, Range=f"bytes=-{length}")
        async with answer["Body"] as body:
            size = _checked(answer, -1, length)
            out = bytearray(min(length, size))
            await self._fill(body, memoryview(out))
        return Version(size, str(answer.get("ETag", ""))), bytes(out)

    async def _get_into(self, key: str, start: int, out: memoryview, version: Version) -> None:
        pinned = {"IfMatch": version.tag} if version.tag else {}
        try:
            answer = await self._get(key, Range=f"bytes={start}-{start + len(out) - 1}", **pinned)
        except Exception as error:
            if status_of(error) in (412, 416):
                raise ObjectChangedError("it was replaced") from error
            raise
        async with answer["Body"] as body:
            size = _checked(answer, start, len(out))
            if Version(size, str(answer.get("ETag", ""))) != version:
                raise ObjectChangedError("it was replaced")
            await self._fill(body, out)

    async def _fill(self, body: Any, out: memoryview) -> None:
        await asyncio.wait_for(_read_all(body, out), self._patience.within(len(out)))


async def _read_all(body: Any, out: memoryview) -> None:
    at = 0
    while at < len(out):
        block = await body.read(min(BLOCK_BYTES, len(out) - at))
        if not block:
            raise ConnectionError(f"the answer ends after {at} of {len(out)} bytes")
        out[at : at + len(block)] = block
        at += len(block)


def _checked(answer: Any, start: int, length: int) -> int:
    headers = {"Content-Range": answer.get("ContentRange")}
    size = answered(headers, answer["ResponseMetadata"]["HTTPStatusCode"], start, length)
    assert size is not None
    expected = length if start >= 0 else min(length, size)
    if answer.get("ContentLength") not in (None, expected):
        raise BadAnswer(f"asked for {expected} bytes, it answers with {answer['ContentLength']}")
    return size


class _S3Upload(Upload):
    """A multipart upload; with ``upload``, one that another process began.

    A part's ETag is the MD5 of its bytes, unless a key of KMS or of the customer encrypts them: such a one is equal to
    no MD5, and the part is sent again.
    """

    def __init__(self, store: S3Store, key: str, upload: str = "") -> None:
        self._store, self._key = store, key
        self._sent = self._listed(upload) if upload else {}
        self.id = upload or store._call("create_multipart_upload", key)["UploadId"]
        self._parts: dict[int, str] = {}

    def _listed(self, upload: str) -> dict[int, tuple[int, str]]:
        """Length and ETag of each part that is there."""
        found: dict[int, tuple[int, str]] = {}
        more: dict[str, int] = {}
        while True:
            page = self._store._call("list_parts", self._key, UploadId=upload, **more)
            for part in page.get("Parts", ()):
                found[int(part["PartNumber"]) - 1] = (int(part["Size"]), str(part["ETag"]))
            if not page.get("IsTruncated"):
                return found
            more = {"PartNumberMarker": int(page["NextPartNumberMarker"])}

    def has(self, number: int, data: memoryview) -> bool:
        size, tag = self._sent.get(number, (-1, ""))
        if size != len(data) or tag.strip('"') != _md5(data).hexdigest():
            return False
        self._parts[number] = tag
        return True

    def part(self, number: int, data: memoryview, last: bool) -> None:
        with Sent(data) as body:
            answer = self._store._call(
                "upload_part", self._key, UploadId=self.id, PartNumber=number + 1, Body=body
            )  # fmt: skip
        self._parts[number] = answer["ETag"]

    def copy(self, number: int, source: Mapping[str, str], start: int, end: int, tag: str) -> None:
        pinned = {"CopySourceIfMatch": tag} if tag else {}
        answer = self._store._call(
            "upload_part_copy", self._key, UploadId=self.id, PartNumber=number + 1, CopySource=dict(source),
            CopySourceRange=f"bytes={start}-{end - 1}", **pinned,
        )  # fmt: skip
        self._parts[number] = answer["CopyPartResult"]["ETag"]

    def finish(self, create: bool = False) -> None:
        listed = [{"PartNumber": number + 1, "ETag": self._parts[number]} for number in sorted(self._parts)]
        only_new = {"IfNoneMatch": "*"} if create else {}
        self._store._call(
            "complete_multipart_upload", self._key, UploadId=self.id, MultipartUpload={"Parts": listed}, **only_new
        )

    def abort(self) -> None:
        self._store._call("abort_multipart_upload", self._key, UploadId=self.id)


class _S3Object(Upload):
    """What was uploaded by another process, as a whole: nothing is left to send, or nothing of it is of use.

    The ETag of an object that was uploaded in parts is the MD5 of their MD5s, and how many there were.
    """

    def __init__(self, store: S3Store, key: str) -> None:
        self._version = store.head(key)
        self._parts: dict[int, tuple[int, bytes]] = {}

    def has(self, number: int, data: memoryview) -> bool:
        self._parts[number] = (len(data), _md5(data).digest())
        return True

    def part(self, number: int, data: memoryview, last: bool) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        parts = [self._parts[number] for number in sorted(self._parts)]
        tag = f"{_md5(b''.join(digest for _, digest in parts)).hexdigest()}-{len(parts)}"
        if (sum(size for size, _ in parts), tag) != (self._version.size, self._version.tag.strip('"')):
            raise StaleUploadError("an earlier try sent something else; it is sent again")

    def abort(self) -> None:
        """The object is removed by whoever gives it up."""


def _md5(data: bytes | memoryview) -> Any:
    return hashlib.md5(data, usedforsecurity=False)
