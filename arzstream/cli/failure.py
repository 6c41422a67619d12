"""What a failure is to the person at the command line: one line that says what to do, and an exit code."""

from __future__ import annotations

import errno
import re

import click

from arzstream.cli.group import PROGRAM, State
from arzstream.errors import ArzError, CorruptError, LimitError, StorageError, UnsupportedError

__all__ = ["BAD_DATA", "INTERRUPTED", "STORAGE", "UNSUPPORTED", "USAGE", "UnwelcomeResult", "explain"]

BAD_DATA, USAGE, UNSUPPORTED, STORAGE, INTERRUPTED = 1, 2, 3, 4, 130


class UnwelcomeResult(Exception):
    """The verb did what it could and its result is bad news; the message says which."""

    def __init__(self, message: str, exit_code: int = BAD_DATA) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def explain(error: BaseException, state: State) -> tuple[str, int]:
    """(one line without the program's name, exit code); the line is empty where silence is right."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(error, click.Abort):
        return "interrupted", INTERRUPTED
    if isinstance(error, click.ClickException):
        return _usage(error, state.verb), USAGE
    if isinstance(error, BrokenPipeError) or (isinstance(error, StorageError) and error.errno == errno.EPIPE):
        return "", STORAGE  # whoever read our output has had enough of it
    if isinstance(error, ArzError):
        return _known(error, state), error.exit_code
    if isinstance(error, UnwelcomeResult):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        doing, what = ("use it", error.filename) if error.filename is not None else ("write", "standard output")
        return _known(StorageError.from_os_error(error, doing, what), state), STORAGE
    where = f"{state.archive}: " if state.archive else ""
    if isinstance(error, MemoryError):
        advice = "give --jobs 1, or end other programs" if state.verb == "pack" else "end other programs"
        return f"{where}there is not enough memory; {advice}", STORAGE
    if isinstance(error, ModuleNotFoundError) and not (error.name or PROGRAM).startswith(PROGRAM):
        return f"the Python module {error.name!r} is missing; arzstream doctor says what to install", UNSUPPORTED
    again = "report it" if state.debug else "run again with --debug and report it"
    return f"{where}internal error: {type(error).__name__}: {error}; {again}", BAD_DATA


def _usage(error: click.ClickException, verb: str) -> str:
    if isinstance(error, click.NoSuchOption):
        text = f"no such option: {error.option_name}"
        if error.possibilities:
            text += f"; did you mean {' or '.join(sorted(error.possibilities))}?"
    else:
        text = " ".join(error.format_message().split()).rstrip(".")
        text = text[:1].lower() + text[1:]
    where, seek = (f"{verb}: ", f"{PROGRAM} {verb} --help") if verb else ("", f"{PROGRAM} --help")
    return f"{where}{text}" if ";" in text else f"{where}{text}; see {seek}"


def _known(error: ArzError, state: State) -> str:
    """The error's own words, with the archive's name in front and what to do behind where they lack."""
    text = str(error)
    if isinstance(error, StorageError):
        # An archive that is being written has a temporary name; the user knows it by its own.
        text = re.sub(r"\.arz-tmp-(.*)-[0-9a-f]{12}", r"\1", text)
        advice = _STORAGE_ADVICE.get(error.errno or 0)
        return f"{text}; {advice}" if advice and ";" not in text else text
    if not isinstance(error, (CorruptError, UnsupportedError)) or not state.archive:
        return text
    local = "://" not in state.archive  # what is behind a URL has been named already, without its credentials
    if local and not text.startswith((state.archive, state.other or state.archive)):
        text = f"{state.archive}: {text}"
    if ";" in text.removeprefix(state.archive):
        return text
    if isinstance(error, LimitError):
        return f"{text}; do not trust it, or ask who made it"
    if isinstance(error, CorruptError):
        return f"{text}; {_advice(text, state)}"
    return f"{text}; arzstream doctor says what is here"


_STORAGE_ADVICE = {
    errno.ENOENT: "check the name",
    errno.EEXIST: "choose another name, or move what is there out of the way",
    errno.ENOTDIR: "check the name",
    errno.EISDIR: "name a file",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ESTALE: "try again",
    errno.ETIMEDOUT: "try again later",
    errno.ECONNREFUSED: "check the address, and whether the server runs",
}


def _advice(text: str, state: State) -> str:
    if text.endswith("not an arzstream archive"):
        return "name a file that arzstream pack or arzstream watch has made"
    return state.advice or "arzstream recover saves what is whole"
