"""One holder at a time, and none after a crash."""

from __future__ import annotations

import subprocess
import sys

from arzstream.store.lock import FileLock


def test_one_holder_at_a_time(tmp_path):
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire() and first.held
    assert not second.acquire() and not second.held
    first.release()
    assert second.acquire()
    second.release()


def test_the_lock_dies_with_its_process(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from arzstream.store.lock import FileLock\n"
        "lock = FileLock(sys.argv[1])\n"
        "assert lock.acquire()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "lock")], check=False)
    assert done.returncode == -9
    assert FileLock(tmp_path / "lock").acquire()
