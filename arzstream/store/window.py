"""Fetching ahead: ranges that will be read are put together to requests, which a few threads make, in bounded memory.

What will be read is announced, in the order in which it will be read. Neighbouring ranges become one request. Whoever
reads waits for the request that has its bytes, and that one goes first; a request is let go of when all that was
announced of it has been read. Announcing is a hint: what was not announced, or was let go of, is read all the same, by
whoever reads it.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import threading
from collections.abc import Callable, Iterable

import numpy as np

from arzstream.kernels.memory import Results

__all__ = ["Announced", "Window"]

REQUEST_BYTES = 8 << 20
"""A request brings at most so much: large enough to be worth its latency, small enough for several at once."""
GAP_BYTES = 256 << 10
"""Bytes that nobody wants are read, too, if they are at most so many and save a request."""
AT_FIRST = 2
"""So many requests are made at once in the beginning, and one more for each that was answered: what is read first does
not share the way with all the rest."""
HELD_AT_FIRST, EAGER = 3, 4
"""In the beginning as many bytes are held as so many requests bring, and one more for each so many that were read: a
model's first layers are there before much else has come."""
IDLE_BYTES = 2 * REQUEST_BYTES
"""How much memory of requests that were read is kept for the next ones. malloc would keep twice as much for each of the
threads, and fresh pages for each request cost a tenth of what receiving it does."""
LINGER_SECONDS = 0.002
"""A request that may still grow waits so long for its neighbours, if nobody waits for it."""


@dataclasses.dataclass(eq=False)
class _Request:
    start: int
    end: int
    number: int
    left: int = 0
    """Announced bytes that were not read yet."""
    owners: set[int] = dataclasses.field(default_factory=set)
    data: np.ndarray | None = None
    error: BaseException | None = None
    begun: bool = False
    done: bool = False
    wanted: int = 0
    """Threads that wait for it."""


class Announced:
    """What one reader has announced."""

    def __init__(self, window: Window, owner: int) -> None:
        self._window, self._owner = window, owner

    def add(self, ranges: Iterable[tuple[int, int]]) -> None:
        """(offset, length) of what will be read, in that order."""
        self._window._add(self._owner, ranges)

    def release(self) -> None:
        """Nothing more of it will be read."""
        self._window._release(self._owner)


class Window:
    """Requests that were made ahead. Thread-safe. Threads are started when something is announced."""

    def __init__(
        self,
        fetch: Callable[[int, memoryview], None],
        *,
        threads: int,
        most_bytes: int,
        request_bytes: int = REQUEST_BYTES,
        gap_bytes: int = GAP_BYTES,
    ) -> None:
        """``fetch(offset, buffer)`` fills a buffer; it is called by ``threads`` threads. At most about ``most_bytes``
        are held, and what a reader waits for."""
        self._fetch, self._count = fetch, threads
        self._most, self._request_bytes, self._gap = most_bytes, request_bytes, gap_bytes
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._starts: list[int] = []
        self._requests: list[_Request] = []
        """By where they start; they do not overlap."""
        self._waiting: collections.deque[_Request] = collections.deque()
        self._urgent: collections.deque[_Request] = collections.deque()
        """Those of them that someone waits for."""
        self._begun: list[_Request] = []
        self._last: _Request | None = None
        """The last one that was announced, while it may grow."""
        self._held = self._read = self._numbered = self._owners = self._newest = self._under_way = 0
        self._allowed = AT_FIRST
        self._memory = Results(IDLE_BYTES)
        self._closed = False

    def announce(self) -> Announced:
        """Begin to announce."""
        with self._changed:
            self._owners += 1
            return Announced(self, self._owners)

    def take(self, offset: int, out: memoryview) -> int:
        """Fill ``out`` from its beginning, as far as one request that was announced has it; returns how far.

        0 if it was not announced. Raises what fetching it raised.
        """
        with self._changed:
            request = self._at(offset)
            if request is None:
                return 0
            request.wanted += 1
            if not request.begun:
                self._last = None if self._last is request else self._last
                self._urgent.append(request)
                self._changed.notify_all()
            try:
                while not request.done and not self._closed:
                    self._changed.wait()
            finally:
                request.wanted -= 1
            if request.error is not None:
                self._drop(request)
                raise request.error
            data = request.data
            if data is None:
                return 0
        count = min(len(out), request.end - offset)
        out[:count] = data[offset - request.start : offset - request.start + count].data
        with self._changed:
            request.left -= count
            self._read += count
            self._newest = max(self._newest, request.number)
            if request.left <= 0:
                self._drop(request)
        return count

    def until(self, offset: int) -> int | None:
        """Where the next request after ``offset`` begins, if there is one."""
        with self._changed:
            place = bisect.bisect_right(self._starts, offset)
            return self._starts[place] if place < len(self._starts) else None

    def forget(self, start: int, end: int) -> None:
        """Let go of requests that brought any of these bytes, and of those that nobody waits for.

        Whoever has waited for one and is about to copy from it still does.
        """
        with self._changed:
            for request in [r for r in self._requests if r.start < end and start < r.end]:
                if request.done or not request.wanted:
                    self._drop(request)

    @property
    def started(self) -> bool:
        """Has anything been announced, so that there are threads?"""
        return bool(self._threads)

    def close(self, *, wait: bool = True) -> None:
        """End the threads; what they are fetching is dropped when it comes. ``wait`` until they have ended."""
        with self._changed:
            self._closed = True
            for request in list(self._requests):
                self._drop(request)
            self._changed.notify_all()
        self._memory.close()
        for thread in self._threads:
            if wait and thread is not threading.current_thread():
                thread.join()

    # -- announcing

    def _add(self, owner: int, ranges: Iterable[tuple[int, int]]) -> None:
        with self._changed:
            if self._closed:
                return
            for offset, length in ranges:
                self._add_range(owner, offset, offset + length)
            if self._waiting and not self._threads:
                self._start_threads()
            self._changed.notify_all()

    def _start_threads(self) -> None:
        """As many as may be had. With none what was announced is let go of: whoever reads it fetches it."""
        for number in range(self._count):
            thread = threading.Thread(target=self._work, name=f"arz-fetch-{number}", daemon=True)
            try:
                thread.start()
            except (RuntimeError, MemoryError):
                break
            self._threads.append(thread)
        if not self._threads:
            for request in list(self._waiting):
                self._drop(request)

    def _add_range(self, owner: int, start: int, end: int) -> None:
        while start < end:
            request = self._at(start)
            if request is not None:
                stop = min(end, request.end)
            else:
                after = bisect.bisect_right(self._starts, start)
                stop = min(end, self._starts[after] if after < len(self._starts) else end)
                request, stop = self._grown(start, stop)
            request.left += stop - start
            request.owners.add(owner)
            start = stop

    def _grown(self, start: int, stop: int) -> tuple[_Request, int]:
        """The last request with bytes from ``start`` on added, or a new one; and where they end."""
        last = self._last
        if (
            last is not None
            and not last.begun
            and last.end <= start <= last.end + self._gap
            and start - last.start < self._request_bytes
            and self._at(last.end) is None
            and (self._next(last.end) or stop) >= stop
        ):
            last.end = min(stop, last.start + self._request_bytes)
            return last, last.end
        stop = min(stop, start + self._request_bytes)
        self._numbered += 1
        request = self._last = _Request(start, stop, self._numbered)
        place = bisect.bisect_left(self._starts, start)
        self._starts.insert(place, start)
        self._requests.insert(place, request)
        self._waiting.append(request)
        return request, stop

    def _next(self, offset: int) -> int | None:
        place = bisect.bisect_left(self._starts, offset)
        return self._starts[place] if place < len(self._starts) else None

    def _at(self, offset: int) -> _Request | None:
        place = bisect.bisect_right(self._starts, offset) - 1
        if place < 0:
            return None
        request = self._requests[place]
        return request if offset < request.end else None

    def _release(self, owner: int) -> None:
        with self._changed:
            for request in [r for r in self._requests if owner in r.owners]:
                request.owners.discard(owner)
                if not request.owners and not request.wanted:
                    self._drop(request)
            self._changed.notify_all()

    def _drop(self, request: _Request) -> None:
        place = bisect.bisect_left(self._starts, request.start)
        if place < len(self._requests) and self._requests[place] is request:
            del self._starts[place], self._requests[place]
            if request.begun:
                self._held -= request.end - request.start
                self._begun.remove(request)
            else:
                self._waiting.remove(request)
                request.done = True
            if self._last is request:
                self._last = None
            self._changed.notify_all()

    # -- fetching

    def _work(self) -> None:
        while self._fetch_next():
            pass

    def _fetch_next(self) -> bool:
        """Make one request; False at the end. A function of its own, so that a thread that waits for the next one holds
        on to nothing that others have let go of."""
        with self._changed:
            request = self._next_request()
            if request is None:
                return False
            self._waiting.remove(request)
            self._begun.append(request)
            request.begun = True
            self._under_way += 1
            self._held += request.end - request.start
            if self._last is request:
                self._last = None
        data: np.ndarray | None = None
        error: BaseException | None = None
        try:
            data = self._memory.empty(request.end - request.start)
            self._fetch(request.start, data.data)
        except BaseException as failure:  # noqa: BLE001  (raised where it is read)
            error = failure
        with self._changed:
            self._under_way -= 1
            self._allowed = min(self._count, self._allowed + 1)
            request.data, request.error, request.done = (None if error else data), error, True
            self._changed.notify_all()
        return True

    def _next_request(self) -> _Request | None:
        """What to fetch next: what someone waits for, else the oldest that there is room for. None at the end."""
        lingered = False
        while not self._closed:
            while self._urgent:
                urgent = self._urgent.popleft()
                if not urgent.begun and not urgent.done:
                    return urgent
            if not self._waiting or self._under_way >= self._allowed:
                self._changed.wait()
                continue
            first = self._waiting[0]
            if first is self._last and not lingered:
                self._changed.wait(LINGER_SECONDS)
                lingered = True
                continue
            most = min(self._most, HELD_AT_FIRST * self._request_bytes + self._read // EAGER)
            if self._held + first.end - first.start <= most or not self._held:
                return first
            if not self._let_go_of_stale():
                self._changed.wait()
        return None

    def _let_go_of_stale(self) -> bool:
        """Let go of what was announced long before what is read now: it was not needed after all."""
        before = self._newest - 2 * self._count
        stale = next((r for r in self._begun if r.done and not r.wanted and r.number < before), None)
        if stale is None:
            return False
        self._drop(stale)
        return True
