"""What every store has to do: one suite, which each of them runs, and anybody's own, too.

class TestMine(WritableStore):
    @pytest.fixture
    def server(self): return Server("mine://bucket", {…}, port)
"""

from __future__ import annotations

import contextlib
import errno
import random
import threading
from collections.abc import Iterator

import pytest

from arzstream.errors import StorageError
from arzstream.store.backends import connect
from arzstream.store.local import TEMPORARY_PREFIX
from arzstream.store.notes import Started
from arzstream.store.objects import ObjectChangedError, ObjectStore, StaleUploadError
from arzstream.store.patience import Patience
from arzstream.store.publishing import NewObject
from arzstream.store.remote import TAIL_BYTES, RemoteReader
from arzstream.testing.servers import Server

__all__ = ["ReadableStore", "WritableStore", "written"]

MIB = 1 << 20


def written(server: Server, name: str, data: bytes, *, replace: bool = False) -> str:
    """Publish ``data``; returns its URL."""
    url = f"{server.url}/{name}"
    new = NewObject(url, server.storage_options)
    try:
        new.write(data)
        new.complete()
        new.publish(replace=replace)
    except BaseException:
        new.abort()
        raise
    return url


@contextlib.contextmanager
def connected(server: Server, name: str) -> Iterator[tuple[ObjectStore, str]]:
    """The store itself, and the key of ``name``."""
    store, key = connect(f"{server.url}/{name}", server.storage_options)
    try:
        yield store, key
    finally:
        store.close(key)


def _parked(server: Server, url: str, data: bytes, *, complete: bool) -> Started:
    """An upload that was given up for another one to go on with; as far as the store can do that."""
    new = NewObject(url, server.storage_options)
    try:
        new.write(data)
        if complete:
            new.complete()
        new.park()
    except BaseException:
        new.abort()
        raise
    if not new._store.properties.resumable:
        new.abort()
    return new.started


class ReadableStore:
    """A store that can be read. ``put`` is how the test brings something there."""

    refuses_other_versions = True
    """False for emulators that do not do what the real store does."""

    @pytest.fixture
    def server(self) -> Server:
        raise NotImplementedError

    def put(self, server: Server, name: str, data: bytes) -> str:
        """Bring ``data`` there, over what was there; returns its URL."""
        raise NotImplementedError

    @pytest.mark.parametrize("size", [1, 5000, TAIL_BYTES, TAIL_BYTES + 1, 9 * MIB + 7])
    def test_any_range_of_any_object_is_read(self, server: Server, size: int) -> None:
        rng = random.Random(size)
        data = rng.randbytes(size)
        url = self.put(server, f"ranges-{size}", data)
        with RemoteReader(url, server.storage_options) as reader:
            assert reader.size == size
            places = [(0, size), (0, 1), (size - 1, 1), (0, 0), (size, 0), (size // 2, size - size // 2)]
            places += [(at, rng.randrange(size - at + 1)) for at in (rng.randrange(size) for _ in range(6))]
            for offset, length in places:
                assert reader.read_at(offset, length) == data[offset : offset + length]
            assert reader.tail(10) == (size, data[-10:])
            assert reader.tail(size + 10) == (size, data)
            for offset, length in ((size, 1), (0, size + 1)):
                with pytest.raises(StorageError, match="truncated"):
                    reader.read_at(offset, length)

    def test_what_was_announced_is_read_in_any_order_and_by_many_threads(self, server: Server) -> None:
        data = random.Random(1).randbytes(6 * MIB)
        url = self.put(server, "announced", data)
        places = [(at, 100_000) for at in range(0, 5 * MIB, 150_000)]
        with RemoteReader(url, server.storage_options) as reader:
            announced = reader.announce()
            announced.add(places)
            found: dict[int, bytes] = {}

            def read(part: list[tuple[int, int]]) -> None:
                for offset, length in part:
                    found[offset] = reader.read_at(offset, length)

            shuffled = random.Random(2).sample(places, len(places))
            threads = [threading.Thread(target=read, args=(shuffled[n::3],)) for n in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            announced.release()
            assert found == {offset: data[offset : offset + length] for offset, length in places}

    def test_opening_takes_two_requests_at_most_and_a_small_object_no_more(self, server: Server) -> None:
        data = random.Random(3).randbytes(100_000)
        url = self.put(server, "small", data)
        with RemoteReader(url, server.storage_options) as reader:
            assert reader.requests == 1
            assert reader.read_at(0, len(data)) == data
            assert reader.requests == 1

    def test_what_is_not_there_is_said_to_be_not_there(self, server: Server) -> None:
        with pytest.raises(StorageError, match="no such file") as caught:
            RemoteReader(f"{server.url}/nothing-here", server.storage_options)
        assert caught.value.errno == errno.ENOENT and "nothing-here" in str(caught.value)

    def test_an_object_that_is_replaced_is_not_mixed_with_what_it_was(self, server: Server) -> None:
        """Either the old one is still read, or it is said that there is another one."""
        old, new = (random.Random(seed).randbytes(2 * MIB) for seed in (4, 5))
        url = self.put(server, "replaced", old)
        with connected(server, "replaced") as (store, _), RemoteReader(url, server.storage_options) as reader:
            assert reader.read_at(0, 1000) == old[:1000]
            self.put(server, "replaced", new)
            if store.properties.pinned and self.refuses_other_versions:
                with pytest.raises(ObjectChangedError, match="was replaced"):
                    reader.read_at(1000, MIB)
            else:
                assert reader.read_at(1000, MIB) in (old[1000 : 1000 + MIB], new[1000 : 1000 + MIB])
        with RemoteReader(url, server.storage_options) as reader:
            assert reader.read_at(0, 2 * MIB) == new

    def test_names_are_only_names(self, server: Server) -> None:
        for name in ("a b+c&d=1", "ö-ü", "100%", "[x]"):
            url = self.put(server, name, name.encode())
            with RemoteReader(url, server.storage_options) as reader:
                assert reader.read_at(0, reader.size) == name.encode()


class WritableStore(ReadableStore):
    """A store that archives can be written to."""

    listings_tell_versions = True
    """False where a listing says less of an object than asking for it does."""
    refuses_taken_names = True
    """False for emulators, and for stores that have no such word."""

    def put(self, server: Server, name: str, data: bytes) -> str:
        return written(server, name, data, replace=True)

    @pytest.mark.parametrize("size", [1, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 21 * MIB])
    def test_parts_come_back_as_one_object(self, server: Server, size: int) -> None:
        data = random.Random(size).randbytes(size)
        url = f"{server.url}/parts-{size}"
        new = NewObject(url, server.storage_options)
        try:
            view = memoryview(data)
            while len(view):
                count = random.Random(len(view)).randrange(1, 3 * MIB)
                new.write(view[:count])
                view = view[count:]
            assert new.tell() == size
            reader = new.complete()
            assert reader.read_at(0, size) == data
            new.publish(replace=True)
        finally:
            new.abort()
        with RemoteReader(url, server.storage_options) as reader:
            assert reader.read_at(0, reader.size) == data

    def test_nothing_is_there_before_it_is_published(self, server: Server) -> None:
        with connected(server, "deep/folder/new.arz") as (store, key):
            new = NewObject(f"{server.url}/deep/folder/new.arz", server.storage_options)
            new.write(b"x" * 1000)
            new.complete()
            listed = [name for name, _ in store.names(key.rpartition("/")[0])]
            assert len(listed) == 1 and listed[0].startswith(TEMPORARY_PREFIX) and not listed[0].endswith(".arz")
            new.publish()
            assert [name for name, _ in store.names(key.rpartition("/")[0])] == ["new.arz"]
            store.remove(key)
            store.remove(key)

    def test_a_name_that_is_taken_is_refused_and_nothing_left_behind(self, server: Server) -> None:
        url = written(server, "taken/it.arz", b"first")
        with pytest.raises(StorageError, match="exists already") as caught:
            written(server, "taken/it.arz", b"second")
        assert caught.value.errno == errno.EEXIST
        with connected(server, "taken/it.arz") as (store, key):
            assert [name for name, _ in store.names(key.rpartition("/")[0])] == ["it.arz"]
        with RemoteReader(url, server.storage_options) as reader:
            assert reader.read_at(0, reader.size) == b"first"
        written(server, "taken/it.arz", b"third", replace=True)
        with RemoteReader(url, server.storage_options) as reader:
            assert reader.read_at(0, reader.size) == b"third"

    @pytest.mark.parametrize("when", ["at once", "within a part", "with parts", "complete"])
    def test_what_is_given_up_leaves_nothing(self, server: Server, when: str) -> None:
        new = NewObject(f"{server.url}/given-up/it.arz", server.storage_options)
        if when != "at once":
            new.write(bytes(9 * MIB if when == "with parts" else 1000))
        if when == "complete":
            new.complete()
        new.abort()
        with connected(server, "given-up/it.arz") as (store, key):
            assert list(store.names(key.rpartition("/")[0])) == []

    @pytest.mark.parametrize("sent", [0, 20 * MIB, 21 * MIB])
    def test_another_process_goes_on_with_what_was_sent_and_sends_the_rest(self, server: Server, sent: int) -> None:
        """21 MiB are all: the object is complete then, and only has no name."""
        data, url = random.Random(8).randbytes(21 * MIB), f"{server.url}/resumed-{sent}/it.arz"
        earlier = _parked(server, url, data[:sent], complete=sent == len(data))
        new = NewObject(url, server.storage_options, resume=earlier)
        try:
            new.write(data)
            assert new.complete().read_at(0, len(data)) == data
            new.publish()
        finally:
            new.abort()
        if new._store.properties.resumable:
            assert new.bytes_found in {0: [0], 20 * MIB: [8 * MIB, 16 * MIB], 21 * MIB: [21 * MIB]}[sent]
            assert new.resumed or not sent
        else:
            assert not new.resumed and new.bytes_found == 0
        with connected(server, url.removeprefix(f"{server.url}/")) as (store, key):
            assert [name for name, _ in store.names(key.rpartition("/")[0])] == ["it.arz"]
            assert not [name for name in store.unfinished(key.rpartition("/")[0]) if name.startswith(TEMPORARY_PREFIX)]

    @pytest.mark.parametrize("complete", [False, True])
    def test_what_another_process_sent_and_is_not_the_same_is_not_believed(
        self, server: Server, complete: bool
    ) -> None:
        data, url = bytearray(random.Random(9).randbytes(21 * MIB)), f"{server.url}/other-{complete}/it.arz"
        earlier = _parked(server, url, bytes(data[: 21 * MIB if complete else 20 * MIB]), complete=complete)
        data[9 * MIB] ^= 1
        new = NewObject(url, server.storage_options, resume=earlier)
        try:
            new.write(data)
            assert new.complete().read_at(0, len(data)) == data
        except StaleUploadError:
            assert new.resumed
        else:  # one by one, where parts can be told from each other
            assert new.bytes_found in (0, 8 * MIB, 13 * MIB)
        finally:
            new.abort()
        with connected(server, url.removeprefix(f"{server.url}/")) as (store, key):
            assert list(store.names(key.rpartition("/")[0])) == []

    @pytest.mark.parametrize("length", [5 * MIB, 8 * MIB])
    def test_what_another_process_sent_and_is_longer_is_not_believed(self, server: Server, length: int) -> None:
        """To its end, or to the end of a part, they are the same."""
        data, url = random.Random(10).randbytes(20 * MIB), f"{server.url}/longer-{length}/it.arz"
        earlier = _parked(server, url, data, complete=False)
        new = NewObject(url, server.storage_options, resume=earlier)
        try:
            new.write(data[:length])
            assert new.complete().read_at(0, length) == data[:length]
        except StaleUploadError:
            assert new.resumed
        finally:
            new.abort()
        with connected(server, url.removeprefix(f"{server.url}/")) as (store, key):
            assert list(store.names(key.rpartition("/")[0])) == []

    def test_listings_say_what_is_in_a_folder_and_below_it(self, server: Server) -> None:
        for name in ("listed/a", "listed/b/c", "listed/b/d e/f", "listed-not/g"):
            written(server, name, name.encode(), replace=True)
        with connected(server, "listed") as (store, key):
            assert [(name, version.size) for name, version in store.names(key)] == [("a", 8)]
            found = dict(store.names(key, deep=True))
            assert {name: version.size for name, version in found.items()} == {"a": 8, "b/c": 10, "b/d e/f": 14}
            if self.listings_tell_versions:
                assert found["b/c"] == store.head(f"{key}/b/c")
            assert list(store.names(f"{key}/nothing", deep=True)) == []

    def test_of_many_that_publish_one_name_at_once_one_does(self, server: Server) -> None:
        if not self.refuses_taken_names:
            return
        waiting = []
        for number in range(4):
            new = NewObject(f"{server.url}/race/it.arz", server.storage_options)
            new.write(bytes([number]) * 1000)
            new.complete()
            waiting.append(new)
        barrier, outcomes = threading.Barrier(len(waiting)), {}

        def publish(number: int, new: NewObject) -> None:
            barrier.wait()
            try:
                new.publish()
                outcomes[number] = 0
            except StorageError as error:
                outcomes[number] = error.errno or -1
                new.abort()

        threads = [threading.Thread(target=publish, args=item) for item in enumerate(waiting)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [number for number, outcome in outcomes.items() if outcome == 0]
        assert len(winners) == 1 and set(outcomes.values()) <= {0, errno.EEXIST}
        with connected(server, "race/it.arz") as (store, key):
            assert [name for name, _ in store.names(key.rpartition("/")[0])] == ["it.arz"]
            store.remove(key)

    def test_what_is_published_already_may_be_published_again(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The answer to the commit is lost on its way; the next try finds the name taken, by us."""
        new = NewObject(f"{server.url}/lost/it.arz", server.storage_options)
        new.write(b"x" * 1000)
        new.complete()
        commit, tries = new._store.commit, []

        def losing(*arguments: object, **keywords: object) -> None:
            tries.append(0)
            commit(*arguments, **keywords)  # type: ignore[arg-type]
            if len(tries) == 1:
                raise ConnectionResetError("lost")

        monkeypatch.setattr(new._store, "commit", losing)
        monkeypatch.setattr(Patience, "wait", lambda *_: 0.0)
        new.publish()
        assert len(tries) == 2
        with connected(server, "lost/it.arz") as (store, key):
            assert [name for name, _ in store.names(key.rpartition("/")[0])] == ["it.arz"]
            store.remove(key)
