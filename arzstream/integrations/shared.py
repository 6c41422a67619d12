"""One decode per host: the ranks of a job that run on one machine decode a share of the tensors each, for all of them.

Servers whose ranks are handed whole tensors, and narrow them, would otherwise decode everything once per rank. Batches
of tensors are decoded into memory that all ranks map (an anonymous ``memfd``, so no ``/dev/shm`` of the right size is
needed), the next one while the one before is being taken. Every rank learns when another one failed. The memory of a
batch is freed when no rank holds a tensor of it any more; none is written twice.
"""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, wait
from typing import Any

import numpy as np

from arzstream.archive.forecast import Forecast
from arzstream.archive.reader import Archive
from arzstream.archive.tensors import prepare, span_bytes
from arzstream.errors import StorageError

__all__ = ["decoded_together", "same_host"]

BATCH_BYTES = 64 << 20
"""Tensors are shared in batches of so many bytes; of two batches the memory is used at a time."""
ALIGNMENT = 64


def same_host(group: Any) -> bool:
    """Can all ranks of a ``torch.distributed`` group map each other's memory? To be called by all of them.

    The group's backend takes CPU objects, as gloo does.
    """
    if not all(_gathered(group, hasattr(os, "memfd_create"))):
        return False
    fd = os.memfd_create("arz-probe")
    try:
        token = os.urandom(16)
        os.write(fd, token)
        told = _gathered(group, (socket.gethostname(), os.getpid(), fd, token))
        alike = len({host for host, *_ in told}) == 1
        return all(_gathered(group, alike and all(_reads(*place) for _, *place in told)))
    finally:
        os.close(fd)


def _reads(pid: int, number: int, token: bytes) -> bool:
    """Is that descriptor of that process ours to open, and the one that is meant?"""
    try:
        fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR)
    except OSError:
        return False
    try:
        return os.pread(fd, len(token) + 1, 0) == token
    finally:
        os.close(fd)


def _gathered(group: Any, value: Any) -> list[Any]:
    """What each rank says, by rank."""
    import torch.distributed

    said: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(said, value, group=group)
    return said


def decoded_together(archive: Archive, names: Collection[str], group: Any) -> Iterator[tuple[str, Any]]:
    """The tensors ``names`` of an archive that every rank has open, as (name, torch tensor) in the archive's order.

    To be called by all ranks of ``group``, which is on one host (:func:`same_host`). They may want different tensors;
    one that a single rank wants is decoded by that rank alone. Every rank takes its tensors until the end, or closes
    the iterator. Raises what reading raises, and StorageError where another rank's reading did.
    """
    job = _Job(archive, names, group)
    coming = _Batch(job, 0)
    try:
        while coming.index < len(job.batches):
            batch, coming = coming, _Batch(job, coming.index + 1)
            yield from batch.finish()
    except GeneratorExit:  # the others still count on this rank's share
        while coming.index < len(job.batches):
            batch, coming = coming, _Batch(job, coming.index + 1)
            batch.finish()
        raise
    finally:
        coming.abandon()


class _Job:
    """What is decoded when and by whom; all ranks come to the same."""

    def __init__(self, archive: Archive, names: Collection[str], group: Any) -> None:
        import torch.distributed

        self.archive, self.group = archive, group
        self.rank, self.ranks = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
        self.wanted = set(names)
        users: dict[str, list[int]] = {}
        for rank, listed in enumerate(_gathered(group, sorted(self.wanted))):
            for name in listed:
                users.setdefault(name, []).append(rank)
        self.batches: list[dict[str, int]] = []
        """Name → who decodes it."""
        sizes = {name: span_bytes(place) for name, place in archive.catalog.tensors.items() if name in users}
        for number, batch in enumerate(_batches(sizes)):
            self.batches.append(_owners(batch, users, number))


def _owners(batch: dict[str, int], users: dict[str, list[int]], turn: int) -> dict[str, int]:
    """Who of its users decodes each tensor of a batch: neighbours go to the same rank, so that what it reads lies
    together. With each batch, the first share is another rank's."""
    total, at = max(1, sum(batch.values())), 0
    owners: dict[str, int] = {}
    for name, nbytes in batch.items():
        ranks = users[name]
        share = (2 * at + nbytes) * len(ranks) // (2 * total)  # by where its middle lies
        owners[name] = ranks[(min(share, len(ranks) - 1) + turn) % len(ranks)]
        at += nbytes
    return owners


def _batches(sizes: dict[str, int]) -> list[dict[str, int]]:
    batches: list[dict[str, int]] = []
    room = 0
    for name, nbytes in sizes.items():
        if not batches or nbytes > room:
            batches.append({})
            room = BATCH_BYTES
        batches[-1][name] = nbytes
        room -= nbytes
    return batches


class _Batch:
    """One batch, being decoded from the moment that this is made; all ranks make theirs, then finish them, in order."""

    def __init__(self, job: _Job, index: int) -> None:
        self._job, self.index, self._fd = job, index, -1
        self._futures: list[Future[None]] = []
        self._error: BaseException | None = None
        self._forecast = Forecast(job.archive.decoder)
        if index < len(job.batches):
            self._starts, self._size = _layout(job.archive, job.batches[index])
            self._fd = self._shared()
            try:
                self._start(np.frombuffer(mmap.mmap(self._fd, self._size), np.uint8))
            except Exception as error:  # noqa: BLE001  (told to the others, then raised)
                self._error = error

    def _shared(self) -> int:
        """A descriptor of memory that all ranks have; zeros. Collective."""
        fd, said = -1, None
        if self.index % self._job.ranks == self._job.rank:
            fd = os.memfd_create("arz-batch")
            os.ftruncate(fd, self._size)
            said = (os.getpid(), fd)
        pid, number = next(place for place in _gathered(self._job.group, said) if place is not None)
        if fd < 0:
            fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR)
        _gathered(self._job.group, None)  # the first one's descriptor is there until all have opened it
        return fd

    def _start(self, memory: np.ndarray) -> None:
        decoder, catalog = self._job.archive.decoder, self._job.archive.catalog
        for name, owner in self._job.batches[self.index].items():
            if owner == self._job.rank:
                self._forecast.tensor(catalog.tensors[name])
                loaded = prepare(decoder, catalog.tensors[name], self._part(memory, name))
                self._futures += [decoder.pool.submit(task) for task in loaded.tasks]

    def _part(self, memory: np.ndarray, name: str) -> Callable[[int], np.ndarray]:
        start = self._starts[name]
        return lambda nbytes: memory[start : start + nbytes]

    def finish(self) -> Iterator[tuple[str, Any]]:
        """Wait until all ranks have done their share. Collective; then an iterator over this rank's tensors."""
        for future in self._futures:
            try:
                future.result()
            except BaseException as error:  # noqa: BLE001  (told to the others, then raised)
                self._error = self._error or error
        said = None if self._error is None else f"rank {self._job.rank}: {self._error}"
        failed = [text for text in _gathered(self._job.group, said) if text is not None]
        if self._error is not None:
            raise self._error
        if failed:
            raise StorageError(f"{self._job.archive.name}: another process could not read its share; {failed[0]}")
        # Whoever writes into a tensor that it was given writes into a copy of its own.
        memory = np.frombuffer(mmap.mmap(self._fd, self._size, mmap.MAP_PRIVATE), np.uint8)
        self._close()
        return self._taken(memory)

    def _taken(self, memory: np.ndarray) -> Iterator[tuple[str, Any]]:
        decoder, catalog = self._job.archive.decoder, self._job.archive.catalog
        for name, owner in self._job.batches[self.index].items():
            if name not in self._job.wanted:
                continue
            place = catalog.tensors[name]
            if owner != self._job.rank:
                for task in decoder.counted([_nothing], place.nbytes):
                    task()
            yield name, prepare(decoder, place, self._part(memory, name)).torch()

    def abandon(self) -> None:
        """Nothing writes to the batch any more."""
        wait([future for future in self._futures if not future.cancel()])
        self._close()

    def _close(self) -> None:
        self._forecast.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _nothing() -> None:
    """What there is to do for a tensor that another rank decoded."""


def _layout(archive: Archive, names: Collection[str]) -> tuple[dict[str, int], int]:
    """Where each tensor begins in the memory of its batch, and how large that is."""
    starts: dict[str, int] = {}
    at = 0
    for name in names:
        starts[name] = at
        at += -(-span_bytes(archive.catalog.tensors[name]) // ALIGNMENT) * ALIGNMENT
    return starts, max(at, 1)
