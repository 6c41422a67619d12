"""Results and payloads belong to whoever holds a view of them, and come back when nobody does."""

from __future__ import annotations

import gc
import mmap
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from arzstream.kernels.memory import HUGE_BYTES, SLAB_BYTES, Payloads, Results, Scratch

pytestmark = pytest.mark.skipif(
    not hasattr(mmap, "MADV_HUGEPAGE"), reason="impossible here: the system has no huge pages to ask for"
)
LARGE = 3 * HUGE_BYTES + 12_345


def place(array: Any) -> int:
    return int(np.asarray(array).ctypes.data)


@pytest.mark.parametrize("nbytes", [0, 1, 4096, HUGE_BYTES - 1, HUGE_BYTES, HUGE_BYTES + 1, LARGE])
def test_a_result_has_the_length_asked_for_and_may_be_written(nbytes: int) -> None:
    array = Results().empty(nbytes)
    assert array.shape == (nbytes,) and array.dtype == np.uint8 and array.flags.c_contiguous
    array[:] = 7
    assert int(array.sum(dtype=np.int64)) == 7 * nbytes
    if nbytes >= HUGE_BYTES:
        assert place(array) % HUGE_BYTES == 0


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[100:200],
        lambda a: a[: HUGE_BYTES * 2].view(np.float32).reshape(4, -1)[1:],
        lambda a: torch.from_numpy(a)[5:9],
        lambda a: torch.from_numpy(a[: HUGE_BYTES * 2]).view(torch.bfloat16).reshape(8, -1).T,
        lambda a: memoryview(a)[10:],
    ],
)
def test_memory_comes_back_only_when_the_last_view_is_gone(view: Any) -> None:
    results = Results()
    array = results.empty(LARGE)
    first = place(array)
    held = view(array)
    del array
    other = results.empty(LARGE)
    assert place(other) != first, "somebody still looks at it"
    del held
    gc.collect()
    assert place(results.empty(LARGE)) == first


def test_memory_of_another_length_is_not_handed_out() -> None:
    results = Results()
    first = place(results.empty(LARGE))
    longer = results.empty(2 * LARGE)
    longer[:] = 1
    assert place(longer) != first and len(longer) == 2 * LARGE


def test_no_more_is_kept_than_allowed_and_nothing_after_the_end() -> None:
    results = Results(idle_bytes=10 * HUGE_BYTES)
    arrays = [results.empty(4 * HUGE_BYTES) for _ in range(5)]
    places = {place(array) for array in arrays}
    arrays.clear()
    again = [results.empty(4 * HUGE_BYTES) for _ in range(2)]
    assert {place(array) for array in again} <= places
    assert sum(map(len, results._idle.values())) == 0, "two of five were kept, and both are in use"
    results.close()
    again.clear()
    assert not results._idle


def test_many_threads_never_share_a_result() -> None:
    results = Results()

    def work(seed: int) -> None:
        for i in range(40):
            array = results.empty(HUGE_BYTES * (1 + (seed + i) % 3))
            array[:: 1 << 16] = seed
            assert (array[:: 1 << 16] == seed).all()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


RESIDENT = """
import sys
from arzstream.kernels.memory import HUGE_BYTES, Results
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
results, held = Results(), []
results.empty(100)
before = resident()
for _ in range(50):
    held.append(results.empty(HUGE_BYTES + HUGE_BYTES // 4))
    held[-1][:] = 1
print(resident() - before - sum(map(len, held)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="impossible here: memory is looked up in /proc")
def test_results_hold_no_more_memory_than_their_length() -> None:
    done = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4 << 20


def test_a_thread_gets_the_same_buffer_again_and_no_other_thread_does() -> None:
    scratch = Scratch()
    for nbytes in (10, 300_000, 5_000_000):
        first, second = scratch.get("a", nbytes), scratch.get("a", nbytes)
        assert place(first) == place(second) and len(second) == nbytes
        assert place(scratch.get("b", nbytes)) != place(first)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(lambda n=nbytes: place(scratch.get("a", n))).result() != place(first)  # type: ignore[misc]
    assert len(scratch.get("a", 20 << 20)) == 20 << 20
    assert sum(map(len, scratch._buffers.values())) <= 40 << 20


def test_payloads_follow_each_other_and_do_not_overlap() -> None:
    payloads, kept = Payloads(Results()), []
    for k in range(40):
        payloads.room(1 << 20)[:] = k
        kept.append(payloads.keep(300_000 + k))
    assert all((payload == k).all() and len(payload) == 300_000 + k for k, payload in enumerate(kept))
    assert len({place(payload) // 64 for payload in kept}) == 40 and all(place(payload) % 64 == 0 for payload in kept)


def test_what_was_not_kept_is_written_over() -> None:
    payloads = Payloads(Results())
    assert place(payloads.room(1000)) == place(payloads.room(2000))


def test_a_slab_is_used_again_when_its_last_payload_is_gone() -> None:
    payloads = Payloads(Results())
    room = SLAB_BYTES // 2 + 1  # so that each has a slab of its own
    payloads.room(room)
    first = payloads.keep(100)
    at = place(first)
    payloads.room(room), payloads.keep(room)
    payloads.room(room)
    assert place(payloads.keep(room)) != at, "somebody still looks at it"
    del first
    gc.collect()
    payloads.room(room)
    assert place(payloads.keep(room)) == at


def test_a_payload_may_be_longer_than_a_slab_and_memory_is_let_go_of_when_asked() -> None:
    results = Results()
    payloads = Payloads(results)
    payloads.room(3 * SLAB_BYTES)[:] = 5
    long = payloads.keep(2 * SLAB_BYTES + 1)
    assert (long == 5).all()
    del long
    payloads.room(2 * SLAB_BYTES)
    gc.collect()
    assert results._idle
    payloads.trim()
    assert not results._idle


def test_threads_write_to_slabs_of_their_own() -> None:
    payloads = Payloads(Results())

    def work(seed: int) -> list[tuple[int, np.ndarray]]:
        kept = []
        for i in range(60):
            payloads.room(200_000)[:] = (seed + i) % 251
            kept.append(((seed + i) % 251, payloads.keep(100_000 + i)))
        return kept

    with ThreadPoolExecutor(6) as pool:
        found = [pair for pairs in pool.map(work, range(6)) for pair in pairs]
    assert all((payload == value).all() for value, payload in found)
