"""On a terminal: progress bars, weights and widths. In a pipe: none of them."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from arzstream.cli.text import cells
from arzstream.testing import process

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="impossible here: no pseudo-terminals")


def on_terminal(*arguments: str | Path, columns: int = 80, **environment: str) -> str:
    """What a terminal of that width receives."""
    import fcntl
    import pty
    import termios

    keep = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    argv = [*process.command(), *map(str, arguments)]
    environment = {**keep, "TERM": "xterm-256color", **environment}
    with subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as running:
        os.close(theirs)
        received = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while data := os.read(ours, 65536):
                received += data
        assert running.wait(60) == 0, received
    os.close(ours)
    return received.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [80, 120])
def test_listings_fit_the_terminal(archive: Path, columns: int) -> None:
    for options in ([], ["--layers"], ["--chunks"]):
        text = on_terminal("ls", archive, *options, columns=columns, NO_COLOR="1")
        table = text.split("\n\n", 1)[1]
        assert max(map(cells, table.splitlines())) <= columns


def test_titles_are_bold_unless_colours_are_unwelcome(archive: Path) -> None:
    assert "\x1b[1m" in on_terminal("ls", archive)
    for unwelcome in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in on_terminal("ls", archive, **unwelcome)
    assert "\x1b" not in process.arzstream("ls", archive).stdout


def test_a_progress_bar_is_drawn_and_goes(checkpoint: Path, tmp_path: Path) -> None:
    text = on_terminal("pack", checkpoint, "-o", tmp_path / "x.arz")
    assert "━" in text
    assert text.rstrip().split("\n")[-2].rpartition("\x1b[2K")[2].startswith(f"{tmp_path}/x.arz: ")
    for options in (["--deep"], []):
        assert "━" in on_terminal("verify", tmp_path / "x.arz", *options)
    assert "━" in on_terminal("unpack", tmp_path / "x.arz", "-o", tmp_path / "out")


def test_no_bar_where_none_is_wanted(checkpoint: Path, tmp_path: Path) -> None:
    for number, (options, environment) in enumerate(((["--quiet"], {}), ([], {"TERM": "dumb"}))):
        text = on_terminal("pack", checkpoint, "-o", tmp_path / f"{number}.arz", *options, **environment)
        assert "━" not in text and "\x1b" not in text
    done = process.arzstream("pack", checkpoint, "-o", tmp_path / "piped.arz")
    assert done.stderr == "" and "━" not in done.stdout


def test_an_archive_is_not_written_to_a_terminal(checkpoint: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    argv = [*process.command(), "pack", str(checkpoint), "-o", "-"]
    done = subprocess.run(argv, stdout=theirs, stderr=subprocess.PIPE, text=True, check=False)
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 2
    assert "send standard output to a file or a pipe" in done.stderr
