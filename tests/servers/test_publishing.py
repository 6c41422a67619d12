"""The last step: an object gets its name and replaces nothing; if it is refused, the reason that is given is true."""

from __future__ import annotations

import errno
import random
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from arzstream.errors import StorageError, UnsupportedError
from arzstream.store.backends import connect, s3, web
from arzstream.store.objects import Version
from arzstream.store.patience import Patience
from arzstream.store.publishing import NewObject, part_bytes
from arzstream.store.remote import RemoteReader
from arzstream.testing.conformance import written
from arzstream.testing.proxy import Fault, FaultProxy, Request, Reset, Status
from arzstream.testing.servers import Server

MIB = 1 << 20


@pytest.fixture
def through(moto: Server, proxies: Callable[[Server], FaultProxy]) -> tuple[Server, FaultProxy]:
    proxy = proxies(moto)
    return moto.through(proxy.port), proxy


def is_copy(request: Request) -> bool:
    return "x-amz-copy-source" in request.headers


def is_commit(request: Request) -> bool:
    return request.method == "POST" and "uploadId=" in request.path and "if-none-match" in request.headers


def names(server: Server, folder: str) -> list[str]:
    store, key = connect(f"{server.url}/{folder}", server.storage_options)
    return [name for name, _ in store.names(key)]


def unfinished(server: Server, folder: str) -> list[str]:
    store, key = connect(f"{server.url}/{folder}", server.storage_options)
    return list(store.unfinished(key))


def content(url: str, server: Server) -> bytes:
    with RemoteReader(url, server.storage_options) as reader:
        return reader.read_at(0, reader.size)


@pytest.fixture
def complete() -> Iterator[Callable[[Server, str, bytes], NewObject]]:
    """Objects that have everything but their names."""
    made = []

    def new(server: Server, url: str, data: bytes) -> NewObject:
        found = NewObject(url, server.storage_options)
        made.append(found)
        found.write(data)
        found.complete()
        return found

    yield new
    for one in made:
        one.abort()


def test_a_server_that_knows_no_conditions_is_asked_whether_the_name_is_taken(
    through: tuple[Server, FaultProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, proxy = through
    finish = s3._S3Upload.finish
    monkeypatch.setattr(s3._S3Upload, "finish", lambda upload, create=False: finish(upload))
    url = written(server, "no-conditions/it.arz", b"first")
    proxy.script([])
    with pytest.raises(StorageError, match="exists already") as caught:
        written(server, "no-conditions/it.arz", b"second")
    assert caught.value.errno == errno.EEXIST
    assert not any(map(is_copy, proxy.requests)), "a taken name is learned before the copy"
    assert content(url, server) == b"first" and names(server, "no-conditions") == ["it.arz"]


def test_a_name_that_is_taken_while_it_is_copied_is_seen_without_conditions(
    through: tuple[Server, FaultProxy], monkeypatch: pytest.MonkeyPatch, complete: Callable[..., NewObject]
) -> None:
    server, _ = through
    finish, copy = s3._S3Upload.finish, s3._S3Upload.copy
    new = complete(server, f"{server.url}/meanwhile/it.arz", b"second")
    monkeypatch.setattr(s3._S3Upload, "finish", lambda upload, create=False: finish(upload))

    def slow(*arguments: object) -> None:
        copy(*arguments)  # type: ignore[arg-type]
        monkeypatch.setattr(s3._S3Upload, "copy", copy)
        written(server, "meanwhile/it.arz", b"first")

    monkeypatch.setattr(s3._S3Upload, "copy", slow)
    with pytest.raises(StorageError, match="exists already"):
        new.publish()
    assert content(f"{server.url}/meanwhile/it.arz", server) == b"first"
    new.abort()
    assert unfinished(server, "meanwhile") == []


def test_a_client_that_leaves_the_condition_out_is_refused_before_anything_is_sent(moto: Server) -> None:
    """As botocore did before it knew the condition."""
    store, _ = connect(f"{moto.url}/old-client/it.arz", moto.storage_options)
    assert isinstance(store, s3.S3Store)
    client = store.run(store._fs.set_session)
    members = client.meta.service_model.operation_model("CompleteMultipartUpload").input_shape.members
    condition = members.pop("IfNoneMatch")
    try:
        with pytest.raises(UnsupportedError, match=r"cannot publish without replacing.*pip install.*aiobotocore"):
            NewObject(f"{moto.url}/old-client/it.arz", moto.storage_options)
    finally:
        members["IfNoneMatch"] = condition
    assert unfinished(moto, "old-client") == []


@pytest.mark.parametrize("fault", [Status(503), Reset()])
def test_a_part_that_could_not_be_copied_is_copied_again_and_no_other(
    through: tuple[Server, FaultProxy], monkeypatch: pytest.MonkeyPatch, quick: Patience, fault: Fault,
    complete: Callable[..., NewObject],
) -> None:  # fmt: skip
    server, proxy = through
    monkeypatch.setattr(s3, "COPY_BYTES", 5 * MIB)
    data = random.Random(1).randbytes(21 * MIB)
    url = f"{server.url}/copied-{type(fault).__name__}/it.arz"
    new = complete(server, url, data)
    proxy.script([None, None, None, fault, fault], is_copy)
    new.publish()
    assert sum(map(is_copy, proxy.requests)) == 5 + 2
    assert content(url, server) == data


def test_a_copy_whose_parts_fail_for_good_leaves_nothing_and_says_so(
    through: tuple[Server, FaultProxy], quick: Patience, complete: Callable[..., NewObject]
) -> None:
    server, proxy = through
    new = complete(server, f"{server.url}/fails/it.arz", b"x")
    proxy.script([Status(503)] * 100, is_copy)
    with pytest.raises(StorageError, match=r"fails/it\.arz: cannot copy part 1 of it, 4 times") as caught:
        new.publish()
    assert caught.value.errno == errno.EAGAIN
    assert sum(map(is_copy, proxy.requests)) == quick.attempts
    assert unfinished(server, "fails") == []


def test_a_rewrite_of_many_steps_goes_on_at_the_step_that_failed(gcs: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    store, key = connect(f"{gcs.url}/steps/it.arz", gcs.storage_options)
    answers: list[object] = [
        web.StatusError(404, "none", {}), {"done": False, "rewriteToken": "one"}, web.StatusError(503, "later", {}),
        {"done": False, "rewriteToken": "two"}, {"done": True},
    ]  # fmt: skip
    said: list[tuple[str, str | None]] = []

    async def answer(_: object, method: str, path: str, params: dict[str, str]) -> object:
        said.append((method, params.get("rewriteToken")))
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(type(store), "_json", answer)
    monkeypatch.setattr(Patience, "wait", lambda *_: 0.0)
    store.commit(f"{key}-temporary", key, Version(1, "1"), replace=False)
    assert said == [("GET", None), ("POST", None), ("POST", "one"), ("POST", "one"), ("POST", "two")]


def test_who_may_not_list_a_bucket_may_publish(
    moto: Server, monkeypatch: pytest.MonkeyPatch, complete: Callable[..., NewObject]
) -> None:
    """Asked for what is not there, S3 answers him 403."""
    new = complete(moto, f"{moto.url}/no-listing/it.arz", b"x")
    head = s3.S3Store.head

    def denied(store: s3.S3Store, key: str) -> Version:
        try:
            return head(store, key)
        except Exception as error:
            raise web.StatusError(403, "denied", {}) from error

    monkeypatch.setattr(s3.S3Store, "head", denied)
    new.publish()
    assert names(moto, "no-listing") == ["it.arz"]


@pytest.mark.parametrize("status", [409, 412])
def test_a_refusal_that_is_not_about_the_name_does_not_say_that_it_is_taken(
    through: tuple[Server, FaultProxy], complete: Callable[..., NewObject], status: int
) -> None:
    """409: something else is done to the name at the moment."""
    server, proxy = through
    new = complete(server, f"{server.url}/refused-{status}/it.arz", b"x")
    proxy.script([Status(status)], is_commit)
    with pytest.raises(StorageError, match=f"refused to publish it.*{status}.*try again later") as caught:
        new.publish()
    assert caught.value.errno == errno.EAGAIN
    new.publish()
    assert names(server, f"refused-{status}") == ["it.arz"] and unfinished(server, f"refused-{status}") == []


def test_a_temporary_object_that_was_replaced_is_not_published(
    azurite: Server, complete: Callable[..., NewObject]
) -> None:
    new = complete(azurite, f"{azurite.url}/replaced/it.arz", b"x")
    store, key = connect(f"{azurite.url}/replaced/{new.started.name}", azurite.storage_options)
    other = store.upload(key)
    other.part(0, memoryview(b"y"), True)
    other.finish()
    with pytest.raises(StorageError, match="refused to publish") as caught:
        new.publish()
    assert caught.value.errno == errno.EAGAIN and names(azurite, "replaced") == [new.started.name]


def test_a_source_that_does_not_meet_its_condition_is_no_name_that_is_taken(
    through: tuple[Server, FaultProxy], complete: Callable[..., NewObject]
) -> None:
    server, proxy = through
    new = complete(server, f"{server.url}/source/it.arz", b"x")
    proxy.script([Status(412)], is_copy)
    with pytest.raises(StorageError, match="cannot copy part 1 of it") as caught:
        new.publish()
    assert caught.value.errno != errno.EEXIST


def test_what_is_refused_though_it_may_replace_is_not_said_to_be_taken(
    through: tuple[Server, FaultProxy], complete: Callable[..., NewObject]
) -> None:
    server, proxy = through
    url = written(server, "forced/it.arz", b"first")
    new = complete(server, url, b"second")
    proxy.script([Status(409)], lambda request: request.method == "POST" and "uploadId=" in request.path)
    with pytest.raises(StorageError, match="refused to publish it") as caught:
        new.publish(replace=True)
    assert caught.value.errno == errno.EAGAIN and content(url, server) == b"first"


@pytest.mark.alone
@pytest.mark.parametrize(("kind", "threads"), [("moto", 4), ("azurite", 4), ("gcs", 1)])
@pytest.mark.parametrize("steady", [8, 20])
def test_what_is_held_of_an_upload_are_the_parts_that_are_filled_and_sent_and_no_copies(
    request: pytest.FixtureRequest, kind: str, threads: int, steady: int
) -> None:
    server: Server = request.getfixturevalue(kind)
    url, block = f"{server.url}/held/it.arz", random.Random(2).randbytes(MIB)
    first = NewObject(url, server.storage_options)  # what the client takes when it is first used is not counted
    first.write(block)
    first.complete()
    first.abort()
    new = NewObject(url, server.storage_options, expected=9000 * steady * MIB)
    try:
        tracemalloc.start()
        for _ in range(10 * steady):
            new.write(block)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        new.abort()
    held = (min(threads, 32 // steady) + 1) * part_bytes(0, steady * MIB)
    assert held < most < held + 5 * MIB
