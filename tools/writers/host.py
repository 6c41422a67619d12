"""Runs processes of writers, forked from one that has their libraries imported: ``python -m tools.writers.host``.

Reads one JSON object a line: a phase to run. Answers with the processes of it, and again when each has ended.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tools.writers.context import Context, Writer

__all__ = ["find", "phases"]

FIRST_WAIT = 120.0


def find(name: str) -> Writer:
    """The writer called ``name``."""
    return {writer.name: writer for writer in everyone()}[name]


def everyone() -> list[Writer]:
    from tools.writers import ranks, single

    return [*single.WRITERS, *ranks.WRITERS]


def phases(case: str) -> list[str]:
    """The processes that a case consists of, one after the other."""
    return ["crash", "restart"] if case == "crash" else [case]


def act(writer: Writer, context: Context, phase: str) -> None:
    """One phase of a case."""
    if phase in ("ordinary", "lag"):
        writer.session(context, [10, 20, 30] if _names_are_free(writer) else [1, 2, 3])
    elif phase == "rotation":
        writer.session(context, [1, 2, 3, 4, 5], keep=2)
    elif phase == "crash":
        writer.session(context, [1, 2, 3])
    elif phase == "restart":
        context.salt += 1
        writer.session(context, [2, 3])
    elif phase == "lies":
        writer.session(context, [1])
        context.wait_archived(writer.path(1), 1)
        for target in (2, 3):
            writer.plant(context, 1, target)
        context.salt += 1
        writer.session(context, [2, 3])
    else:
        assert phase == "overwritten", phase
        for round_ in (1, 2, 3):
            writer.session(context, [1])
            if round_ < 3:
                context.wait_archived(writer.path(1), round_)
            context.salt += 1


def _names_are_free(writer: Writer) -> bool:
    """Whether the steps can be chosen, or count from one because the library counts them."""
    return type(writer).session is Writer.session


def child(writer: Writer, order: dict[str, Any], rank: int) -> None:
    """In the forked process: wait to be let go, act, leave."""
    context = Context(
        Path(order["root"]), Path(order["dest"]), Path(order["log"]),
        salt=order["salt"], rank=rank, ranks=writer.ranks, port=order["port"],
    )  # fmt: skip
    go, deadline = Path(order["go"]), time.monotonic() + FIRST_WAIT
    while not go.exists():
        if time.monotonic() > deadline:
            os._exit(9)
        time.sleep(0.01)
    status = 1
    try:
        writer.start(context)
        act(writer, context, order["phase"])
        status = 0
    except BaseException:  # noqa: BLE001  (whatever it is, the fork must not go on as its parent)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def fork(writer: Writer, order: dict[str, Any], rank: int) -> int:
    """Start one rank; its process id."""
    pid = os.fork()
    if not pid:
        os.setpgid(0, 0)
        os.dup2(2, 1)  # what the library prints is not for who reads the answers
        child(writer, order, rank)
    return pid


def main() -> int:
    import torch

    torch.set_num_threads(1)
    prepared: dict[str, Writer] = {}
    running: dict[int, str] = {}
    unread, open_input = b"", True
    while open_input or running:
        if open_input and select.select([0], [], [], 0.02)[0]:
            received = os.read(0, 1 << 16)
            open_input = bool(received)
            *lines, unread = (unread + received).split(b"\n")
            for line in lines:
                order = json.loads(line)
                name = order["writer"]
                if name not in prepared:
                    prepared[name] = find(name)
                    prepared[name].prepare()
                writer = prepared[name]
                pids = [fork(writer, order, rank) for rank in range(writer.ranks)]
                running.update(dict.fromkeys(pids, order["log"]))
                print(json.dumps({"log": order["log"], "pids": pids}), flush=True)
        elif not open_input:
            time.sleep(0.02)
        for pid in list(running):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                log = running.pop(pid)
                code = os.waitstatus_to_exitcode(status)
                left = log in running.values()
                print(json.dumps({"log": log, "ended": pid, "status": code, "left": left}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
