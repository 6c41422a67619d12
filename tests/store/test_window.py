"""What was announced is fetched ahead, in few requests and bounded memory, and is what is read."""

from __future__ import annotations

import random
import threading
import time

import pytest

from arzstream.store.window import Window

DATA = random.Random(0).randbytes(100_000)


class Source:
    """Counts what is fetched, and waits or fails when it is told to."""

    def __init__(self) -> None:
        self.fetched: list[tuple[int, int]] = []
        self.open = threading.Event()
        self.open.set()
        self.failing: set[int] = set()

    def fetch(self, offset: int, out: memoryview) -> None:
        self.fetched.append((offset, len(out)))
        assert self.open.wait(10)
        if offset in self.failing:
            raise OSError("it failed")
        out[:] = DATA[offset : offset + len(out)]


@pytest.fixture
def source():
    return Source()


@pytest.fixture
def window(source):
    window = Window(source.fetch, threads=3, most_bytes=20_000, request_bytes=8_000, gap_bytes=100)
    yield window
    source.open.set()
    window.close()


def read(window: Window, offset: int, length: int) -> bytes:
    """As a reader does; what is not there is said to be missing."""
    out = bytearray(length)
    done = 0
    while done < length:
        got = window.take(offset + done, memoryview(out)[done:])
        assert got, f"nothing at {offset + done}"
        done += got
    return bytes(out)


def within(seconds: float, function):
    """``function()``, which must not take longer."""
    done: list[object] = []

    def call() -> None:
        try:
            done.append(function())
        except BaseException as error:
            done.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    assert done, "it hangs"
    if isinstance(done[0], BaseException):
        raise done[0]
    return done[0]


def test_neighbours_become_one_request_and_far_ones_do_not(window, source):
    source.open.clear()
    window.announce().add([(0, 1000), (1050, 1000), (2050, 500), (5000, 10), (20_000, 9_000)])
    source.open.set()
    assert read(window, 1050, 1000) == DATA[1050:2050]
    for offset, length in ((0, 1000), (2050, 500), (5000, 10), (20_000, 9_000)):
        assert read(window, offset, length) == DATA[offset : offset + length]
    assert sorted(source.fetched) == [(0, 2550), (5000, 10), (20_000, 8_000), (28_000, 1_000)]


def test_what_was_read_is_let_go_of_and_what_was_not_announced_is_not_there(window, source):
    announced = window.announce()
    announced.add([(0, 1000)])
    assert read(window, 0, 1000) == DATA[:1000]
    assert window.take(0, memoryview(bytearray(10))) == 0
    assert window.take(5000, memoryview(bytearray(10))) == 0
    announced.add([(0, 1000)])
    assert read(window, 0, 1000) == DATA[:1000]
    assert source.fetched == [(0, 1000), (0, 1000)]


def test_no_more_is_held_than_the_window_is_large_until_somebody_reads(window, source):
    window.announce().add([(at, 5_000) for at in range(0, 100_000, 5_000)])
    deadline = time.monotonic() + 5
    while len(source.fetched) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert sum(length for _, length in source.fetched) <= 20_000
    for at in range(0, 100_000, 5_000):
        assert read(window, at, 5_000) == DATA[at : at + 5_000]
    assert sum(length for _, length in source.fetched) == 100_000


def test_what_is_held_grows_with_what_was_read(source):
    window = Window(source.fetch, threads=8, most_bytes=20_000, request_bytes=2_000, gap_bytes=0)
    window.announce().add([(0, 60_000)])
    held = []
    for start in range(0, 40_000, 2_000):
        deadline, most = time.monotonic() + 5, min(20_000, 6_000 + start // 4) // 2_000 * 2_000
        while sum(length for _, length in source.fetched) - start < most and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)
        held.append(sum(length for _, length in source.fetched) - start)
        assert read(window, start, 2_000) == DATA[start : start + 2_000]
    window.close()
    assert held == [min(20_000, 6_000 + start // 4) // 2_000 * 2_000 for start in range(0, 40_000, 2_000)]


def test_what_somebody_waits_for_goes_first_though_the_window_is_full(window, source):
    window.announce().add([(at, 5_000) for at in range(0, 100_000, 5_000)])
    assert read(window, 90_000, 1_000) == DATA[90_000:91_000]
    assert len(source.fetched) < 10


def test_what_turns_out_not_to_be_needed_does_not_block_what_is(window, source):
    """Most of what was announced is never read, as when it was decoded already for something else."""
    window.announce().add([(at, 1_000) for at in range(0, 100_000, 2_000)])
    for at in range(0, 72_000, 8_000):
        assert read(window, at, 1_000) == DATA[at : at + 1_000]
    deadline = time.monotonic() + 5
    while max(offset for offset, _ in source.fetched) < 76_000 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert max(offset for offset, _ in source.fetched) >= 76_000  # it goes on fetching ahead


def test_few_requests_are_made_at_once_in_the_beginning(source):
    window = Window(source.fetch, threads=6, most_bytes=90_000, request_bytes=5_000)
    source.open.clear()
    window.announce().add([(at, 5_000) for at in range(0, 90_000, 5_000)])
    time.sleep(0.2)
    assert len(source.fetched) == 2
    source.open.set()
    window.close()


def test_released_announcements_are_not_fetched(window, source):
    source.open.clear()
    announced, other = window.announce(), window.announce()
    announced.add([(at, 1_000) for at in range(0, 50_000, 2_000)])
    other.add([(0, 1_000)])
    announced.release()
    source.open.set()
    assert read(window, 0, 1_000) == DATA[:1_000]
    time.sleep(0.05)
    assert len(source.fetched) <= 3  # those that were under way
    assert window.take(40_000, memoryview(bytearray(10))) == 0


def test_a_failure_is_raised_where_it_is_read_and_only_there(window, source):
    source.failing.add(10_000)
    announced = window.announce()
    announced.add([(0, 1_000), (10_000, 1_000), (20_000, 1_000)])
    assert read(window, 0, 1_000) == DATA[:1_000]
    with pytest.raises(OSError, match="it failed"):
        read(window, 10_000, 1_000)
    assert read(window, 20_000, 1_000) == DATA[20_000:21_000]
    assert window.take(10_000, memoryview(bytearray(10))) == 0  # the next one asks anew


def test_forgotten_bytes_are_asked_for_again(window, source):
    announced = window.announce()
    announced.add([(0, 1_000)])
    read(window, 0, 10)
    window.forget(500, 501)
    assert window.take(20, memoryview(bytearray(10))) == 0


def test_forgotten_bytes_are_not_given_again_while_others_read_the_same_request(window, source):
    """Two threads have waited for one request, and what one of them got was damaged."""
    for _ in range(200):
        announced = window.announce()
        source.open.clear()
        announced.add([(0, 2_000)])
        found: list[int] = []

        def damaged(found: list[int] = found) -> None:
            window.take(0, memoryview(bytearray(10)))
            window.forget(0, 10)
            found.append(window.take(0, memoryview(bytearray(10))))

        threads = [threading.Thread(target=damaged)]
        threads += [threading.Thread(target=window.take, args=(1_000, memoryview(bytearray(10)))) for _ in range(3)]
        for thread in threads:
            thread.start()
        source.open.set()
        for thread in threads:
            thread.join()
        assert found == [0]
        announced.release()


def test_closing_ends_whoever_waits(source):
    window = Window(source.fetch, threads=2, most_bytes=20_000)
    source.open.clear()
    window.announce().add([(0, 1_000)])
    got = []
    reader = threading.Thread(target=lambda: got.append(window.take(0, memoryview(bytearray(10)))))
    reader.start()
    time.sleep(0.05)
    closer = threading.Thread(target=window.close)
    closer.start()
    reader.join(5)
    assert not reader.is_alive() and got == [0]
    source.open.set()
    closer.join(5)
    assert not closer.is_alive()


@pytest.mark.parametrize("seed", range(8))
def test_any_announcements_and_any_reads_give_the_right_bytes(source, seed):
    rng = random.Random(seed)
    window = Window(source.fetch, threads=3, most_bytes=10_000, request_bytes=3_000, gap_bytes=200)

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(60):
            announced = window.announce()
            places = [(rng.randrange(90_000), rng.randrange(1, 5_000)) for _ in range(rng.randrange(6))]
            announced.add(places)
            for offset, length in rng.sample(places, len(places)):
                out = bytearray(length)
                got = window.take(offset, memoryview(out))
                assert out[:got] == DATA[offset : offset + got]
            if rng.random() < 0.7:
                announced.release()

    failures: list[BaseException] = []

    def guarded(seed: int) -> None:
        try:
            work(seed)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(rng.randrange(10**6),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    window.close()
    assert not failures


def test_memory_that_cannot_be_had_is_a_failure_of_that_request_only(window, source, monkeypatch):
    def empty(nbytes: int):
        raise MemoryError

    announced = window.announce()
    with monkeypatch.context() as patched:
        patched.setattr(window._memory, "empty", empty)
        announced.add([(0, 1000)])
        with pytest.raises(MemoryError):
            within(5, lambda: read(window, 0, 1000))
    announced.add([(0, 1000)])
    assert within(5, lambda: read(window, 0, 1000)) == DATA[:1000]


@pytest.mark.parametrize("some", [0, 1])
def test_threads_that_cannot_be_had_are_done_without(source, monkeypatch, some):
    start, started = threading.Thread.start, 0

    def refused(thread: threading.Thread) -> None:
        nonlocal started
        if thread.name.startswith("arz-fetch"):
            if started == some:
                raise RuntimeError("can't start new thread")
            started += 1
        start(thread)

    window = Window(source.fetch, threads=3, most_bytes=20_000)
    announced = window.announce()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        announced.add([(0, 1000)])
    taken = within(5, lambda: window.take(0, memoryview(bytearray(1000))))
    assert taken == (1000 if some else 0)  # 0: whoever reads it fetches it
    announced.add([(5000, 1000)])  # by now there are some
    assert within(5, lambda: read(window, 5000, 1000)) == DATA[5000:6000]
    window.close()
