"""One run of the program: arguments in, exit code out, and every failure one line on standard error."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator

import click

from arzstream.cli.failure import explain
from arzstream.cli.group import PROGRAM, State, program
from arzstream.cli.text import safe
from arzstream.store.address import without_secrets

__all__ = ["run"]

COMPLETE_VARIABLE = "_ARZSTREAM_COMPLETE"
"""``eval "$(_ARZSTREAM_COMPLETE=bash_source arzstream)"`` lets the shell complete verbs and options."""


def run(arguments: list[str]) -> int:
    """Parse, call the verb, flush what it printed."""
    state = State()
    try:
        with _stopped_politely():
            _prepare_streams()
            code = _call(arguments, state)
            sys.stdout.flush()
            return code
    except BaseException as error:  # noqa: BLE001  (the one place where the program ends)
        return _fail(error, state)


def _call(arguments: list[str], state: State) -> int:
    if os.environ.get(COMPLETE_VARIABLE):
        from click.shell_completion import shell_complete

        return shell_complete(program, {}, PROGRAM, COMPLETE_VARIABLE, os.environ[COMPLETE_VARIABLE])
    if not arguments:
        with program.make_context(PROGRAM, ["--help"], resilient_parsing=True) as context:
            click.echo(program.get_help(context), err=True)
        return 2
    try:
        with program.make_context(PROGRAM, arguments, obj=state) as context:
            program.invoke(context)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    return 0


def _fail(error: BaseException, state: State) -> int:
    """Say what went wrong; the exit code."""
    message, code = explain(error, state)
    message = without_secrets(message)
    if state.debug and not isinstance(error, click.UsageError):
        import traceback

        print(without_secrets("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    with contextlib.suppress(OSError, ValueError):
        if message:
            print(f"{PROGRAM}: {safe(message)}", file=sys.stderr, flush=True)
    _drop_unwritten_output()
    return code


def _drop_unwritten_output() -> None:
    """What standard output does not take would fail once more, with a traceback, when Python exits."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)


def _prepare_streams() -> None:
    """Standard streams that are open, and that never fail to encode: an escape stands for what cannot be shown.

    Were descriptor 1 or 2 closed, the next file opened would get its number, and our messages. What takes the place of
    standard output can only be read, so that writing to it is an error like any other.
    """
    for name, number, flags in (("stdout", 1, os.O_RDONLY), ("stderr", 2, os.O_WRONLY)):
        if getattr(sys, name) is None:
            place = os.open(os.devnull, flags)
            if place != number:
                os.dup2(place, number)
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


@contextlib.contextmanager
def _stopped_politely() -> Iterator[None]:
    """SIGTERM and SIGHUP end a verb as Ctrl-C does: it removes its temporary files. ``watch`` has its own way."""
    previous: dict[int, object] = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # Ignored (nohup) stays ignored; a handler that someone who calls us has installed stays, too.
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                previous[number] = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number in previous:
            signal.signal(number, signal.SIG_DFL)


def _interrupt(number: int, frame: types.FrameType | None) -> None:
    raise KeyboardInterrupt
