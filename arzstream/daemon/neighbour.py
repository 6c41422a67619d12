"""Being a good neighbour: low CPU and I/O priority for the threads that work while a writer is at work.

On Linux priorities belong to threads, and a thread starts with its parent's. Who lowers a priority may need a
privilege to raise it again, so each phase gets threads of its own, started from one that was never lowered; and what
is still running of the earlier phase is raised where that is allowed. Where it is not, it is not lowered as far: on a
machine that is busy through and through, the last slice would take a minute at the lowest priority.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import threading
from collections.abc import Iterable

__all__ = ["lower_this_thread", "raise_threads"]

LOWEST, LOW = 19, 10
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_WHO_PROCESS, _CLASS_SHIFT, _BEST_EFFORT, _IDLE = 1, 13, 2, 3


def lower_this_thread(*, idle: bool = False) -> None:
    """Low (with ``idle``: the lowest) CPU priority and the idle I/O class for this thread, as far as possible."""
    if not sys.platform.startswith("linux"):
        return  # elsewhere priorities belong to the process, whose other threads must stay quick
    thread = threading.get_native_id()
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, LOWEST if idle or _may_raise() else LOW)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(thread, os.SCHED_IDLE if idle else os.SCHED_BATCH, os.sched_param(0))
    _io_class(thread, _IDLE, 0)


def raise_threads(threads: Iterable[int]) -> None:
    """Undo :func:`lower_this_thread` for threads, by native id, as far as possible; those that ended are skipped."""
    if not sys.platform.startswith("linux"):
        return
    for thread in threads:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, os.getpid()))
        with contextlib.suppress(OSError):
            os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
        _io_class(thread, _BEST_EFFORT, 4)


def _may_raise() -> bool:
    import resource

    limit = getattr(resource, "RLIMIT_NICE", None)
    return os.geteuid() == 0 or (limit is not None and resource.getrlimit(limit)[0] >= 20)


def _io_class(thread: int, kind: int, level: int) -> None:
    number = _IOPRIO_SET.get(platform.machine())
    if number is None:
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).syscall(number, _WHO_PROCESS, thread, kind << _CLASS_SHIFT | level)
