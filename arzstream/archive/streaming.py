"""Tensors one after the other, decoded ahead of whoever takes them, in bounded memory."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future

from arzstream.archive.catalog import TensorPlace
from arzstream.archive.decoding import Decoder, Task
from arzstream.archive.forecast import Forecast
from arzstream.archive.tensors import Loaded, prepare
from arzstream.errors import StorageError

__all__ = ["decoded_ahead"]

BATCH_BYTES = 1 << 20
"""Small tensors go to another thread together, so that each costs its decoding and not a round trip as well."""


class _Ahead:
    """One tensor on its way."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.futures: list[Future[None]] = []


class _Batches:
    """Hands what there is to do to the pool, in batches; an error stays with the tensor that it belongs to."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._batch: list[tuple[_Ahead, Task]] = []
        self._bytes = 0.0

    def add(self, ahead: _Ahead) -> None:
        tasks, ahead.loaded.tasks = ahead.loaded.tasks, []
        for task in tasks:
            self._batch.append((ahead, task))
            self._bytes += ahead.loaded.nbytes / len(tasks)
            if self._bytes >= BATCH_BYTES:
                self.flush()

    def flush(self) -> None:
        if not self._batch:
            return
        future = self._decoder.pool.submit(_run, self._batch)
        for ahead in dict.fromkeys(ahead for ahead, _ in self._batch):
            ahead.futures.append(future)
        self._batch, self._bytes = [], 0.0

    def finish(self, ahead: _Ahead) -> Loaded:
        """Wait until the tensor is there."""
        if any(waiting is ahead for waiting, _ in self._batch):
            self.flush()
        for future in ahead.futures:
            try:
                future.result()
            except CancelledError:
                raise StorageError(f"{self._decoder.reader.name}: was closed; open it again") from None
        if ahead.loaded.error is not None:
            raise ahead.loaded.error
        return ahead.loaded


def _run(batch: list[tuple[_Ahead, Task]]) -> None:
    for ahead, task in batch:
        try:
            if ahead.loaded.error is None:
                task()
        except BaseException as error:  # noqa: BLE001  (raised where the tensor is taken)
            ahead.loaded.error = error


def decoded_ahead(
    decoder: Decoder, places: Iterable[tuple[str, TensorPlace]], prefetch_bytes: int
) -> Iterator[tuple[str, Loaded]]:
    """Each of ``places`` with its name, decoded; at most about ``prefetch_bytes`` of them are held here."""
    batches = _Batches(decoder)
    waiting: collections.deque[tuple[str, _Ahead]] = collections.deque()
    held = 0
    with Forecast(decoder) as forecast:
        try:
            for name, place in places:
                while waiting and held + place.nbytes > prefetch_bytes:
                    held -= waiting[0][1].loaded.nbytes
                    yield _taken(batches, waiting)
                forecast.tensor(place)
                ahead = _Ahead(prepare(decoder, place))
                held += ahead.loaded.nbytes
                batches.add(ahead)
                waiting.append((name, ahead))
            while waiting:
                yield _taken(batches, waiting)
        finally:  # nobody takes those that are left, so what is not begun need not be
            for _, ahead in waiting:
                ahead.loaded.error = ahead.loaded.error or GeneratorExit()


def _taken(batches: _Batches, waiting: collections.deque[tuple[str, _Ahead]]) -> tuple[str, Loaded]:
    name, ahead = waiting.popleft()
    return name, batches.finish(ahead)
