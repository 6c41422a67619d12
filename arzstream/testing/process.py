"""The program as a process: start the daemon, wait for what it publishes, kill it, and look at what it leaves
behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

__all__ = ["Daemon", "StrPath", "arzstream", "command", "leftovers", "tree"]

StrPath = str | os.PathLike[str]


def command() -> list[str]:
    """How to run the program with this interpreter: the installed script where there is one, else ``-m arzstream``."""
    script = Path(sys.executable).with_name("arzstream")
    return [str(script)] if script.exists() else [sys.executable, "-m", "arzstream"]


def arzstream(
    *args: StrPath,
    timeout: float = 120,
    env: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run ``arzstream ARGS`` to its end; output is captured, bytes that are not UTF-8 come as surrogates."""
    argv = [*prefix, *command(), *[os.fspath(argument) for argument in args]]
    environment = {**os.environ, **(env or {})}
    return subprocess.run(
        argv, env=environment, timeout=timeout, capture_output=True, check=False, text=True, errors="surrogateescape"
    )


class Daemon:
    """``arzstream watch SOURCE DEST`` in its own process group. A context manager: on leaving, it is stopped.

    ``prefix`` runs it under another program, such as ``strace -f``. Its output goes to a file: a pipe nobody reads
    would stop it.
    """

    def __init__(
        self,
        source: StrPath,
        dest: StrPath,
        *options: str,
        prefix: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.source, self.dest = Path(source), Path(dest)
        self.argv = [*prefix, *command(), "watch", str(source), str(dest), *options]
        self._env = {**os.environ, **(env or {})}
        self._output = tempfile.TemporaryFile("w+b")  # noqa: SIM115  (lives as long as the object)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Daemon:
        self._process = subprocess.Popen(
            self.argv,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
        )
        return self

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def output(self) -> str:
        """Everything it has printed, over all its lives."""
        self._output.seek(0)
        text = self._output.read().decode(errors="replace")
        self._output.seek(0, os.SEEK_END)
        return text

    def signal(self, number: int) -> None:
        """Send a signal to the daemon and whatever it has started."""
        if self.running:
            os.killpg(self.pid, number)

    def wait(self, timeout: float = 60) -> int:
        assert self._process is not None, "not started"
        return self._process.wait(timeout)

    def kill(self) -> int:
        """``kill -9``; the exit status (negative: the signal)."""
        self.signal(signal.SIGKILL)
        return self.wait()

    def terminate(self, timeout: float = 60) -> int:
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def pause(self) -> None:
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def until(self, condition: Callable[[], bool], what: str, timeout: float = 60, poll: float = 0.005) -> float:
        """Wait for ``condition``; the time (seconds since 1970) at which it was seen to hold. TimeoutError, with what
        the daemon printed, if it does not come true, or the daemon dies first."""
        deadline = time.monotonic() + timeout
        while not condition():
            if not self.running and not condition():
                raise TimeoutError(f"the daemon ended before {what}:\n{self.output()[-4000:]}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {what} within {timeout} s:\n{self.output()[-4000:]}")
            time.sleep(poll)
        return time.time()

    def published(self, name: str, timeout: float = 60) -> float:
        """Wait until ``DEST/name`` is visible; when that was (seconds since 1970)."""
        return self.until((self.dest / name).exists, name, timeout)

    def __enter__(self) -> Daemon:
        return self if self._process is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.running:
            self.resume()
            try:
                self.terminate(30)
            except subprocess.TimeoutExpired:
                self.kill()
        self._output.close()


JOURNAL = ".arzstream"


def leftovers(dest: StrPath, archives: Sequence[str]) -> list[str]:
    """What lies in ``dest`` beside ``archives`` (relative names) and the journal: paths, sorted. In ``.arzstream``
    only a database, its log, a lock, a pid and a log file have a place."""
    root, found = Path(dest), []
    for path in sorted(p for p in root.rglob("*") if not p.is_dir()):
        name = path.relative_to(root)
        if name.parts[0] == JOURNAL:
            kept = len(name.parts) == 2 and any(
                word in name.name for word in ("journal", "lock", "status", "pid", ".log")
            )
            if kept and not name.name.startswith(".tmp"):
                continue
        elif str(name) in archives:
            continue
        found.append(str(name))
    return found


def tree(root: StrPath) -> dict[bytes, tuple[str, int, int, bytes]]:
    """Every path below ``root`` → (kind, permission bits, mtime in ns, content or link target). Kinds: file, link,
    folder."""
    found: dict[bytes, tuple[str, int, int, bytes]] = {}
    top = os.fsencode(root)

    def visit(folder: bytes) -> None:
        for entry in os.scandir(folder):
            info, name = entry.stat(follow_symlinks=False), os.path.relpath(entry.path, top)
            mode = info.st_mode & 0o7777
            if entry.is_symlink():
                found[name] = ("link", 0, 0, os.readlink(entry.path))
            elif entry.is_dir():
                found[name] = ("folder", mode, 0, b"")
                visit(entry.path)
            else:
                with open(entry.path, "rb") as file:
                    found[name] = ("file", mode, info.st_mtime_ns, file.read())

    visit(top)
    return found


def remove(path: StrPath) -> None:
    """Delete a file or folder if it is there, whatever its modes."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        os.unlink(path)
