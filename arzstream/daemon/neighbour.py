"""Being a good neighbour: low CPU and I/O priority for the threads that work while a writer is at work.

On Linux priorities belong to threads, and a thread starts with its parent's. A lowered priority cannot be raised
again without privileges, so each phase gets threads of its own, started from a thread that was never lowered.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import threading

__all__ = ["lower_this_thread"]

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_IOPRIO_WHO_PROCESS, _IOPRIO_CLASS_SHIFT, _IOPRIO_IDLE = 1, 13, 3


def lower_this_thread(*, idle: bool = False) -> None:
    """Nice 19, batch (with ``idle``: idle) scheduling and the idle I/O class for this thread, as far as possible."""
    if not sys.platform.startswith("linux"):
        return  # elsewhere priorities belong to the process, whose other threads must stay quick
    thread = threading.get_native_id()
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, 19)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(thread, os.SCHED_IDLE if idle else os.SCHED_BATCH, os.sched_param(0))
    _idle_io(thread)


def _idle_io(thread: int) -> None:
    number = _IOPRIO_SET.get(platform.machine())
    if number is None:
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).syscall(number, _IOPRIO_WHO_PROCESS, thread, _IOPRIO_IDLE << _IOPRIO_CLASS_SHIFT)
