"""``arzstream cat``"""

from __future__ import annotations

import difflib
import os
import posixpath
import sys
from typing import TYPE_CHECKING

import click

from arzstream.cli.failure import USAGE, UnwelcomeResult
from arzstream.cli.group import state
from arzstream.cli.options import archive_argument, parents_option
from arzstream.cli.text import safe
from arzstream.store.address import shown

if TYPE_CHECKING:
    from arzstream.archive.reader import Archive

__all__ = ["command"]

BLOCK_BYTES = 32 << 20
"""Larger than any chunk that is written, so that few are decoded twice."""
SHOWN = 3


@click.command(name="cat")
@archive_argument
@parents_option
@click.argument("member", metavar="MEMBER")
def command(archive: str, member: str, parents: tuple[str, ...]) -> None:
    """Write one original file, byte for byte, to standard output, decoding as it goes.

    MEMBER is a path as arzstream ls shows it.

    \b
    arzstream cat step-2000.arz config.json
    arzstream cat step-2000.arz model.safetensors | sha256sum
    """
    from arzstream.archive.reader import open as open_archive

    state().archive = shown(archive)
    with open_archive(archive, parents=parents) as opened:
        path = _find(opened, member)
        buffer = memoryview(bytearray(min(BLOCK_BYTES, max(1, opened.catalog.files[path].size))))
        with opened.open_file(path) as file:
            while got := file.readinto(buffer):
                _write(buffer[:got])
        sys.stdout.buffer.flush()


def _write(data: memoryview) -> None:
    """All of ``data``: without Python's buffer (PYTHONUNBUFFERED), one call may take less."""
    while data:
        data = data[sys.stdout.buffer.write(data) :]


def _find(archive: Archive, member: str) -> str:
    """The path of the regular file that ``member`` means, as it is or as ``ls`` shows it."""
    from arzstream.container.records import Kind

    files = archive.catalog.files
    path = member if member in files else next((path for path in files if safe(path) == member), None)
    if path is None:
        wrong = f"holds no file called {safe(member)}; {_hint(archive.files(), member)}"
    elif files[path].kind == Kind.DIRECTORY:
        wrong = f"{safe(path)} is a folder; name a file in it"
    elif files[path].kind == Kind.LINK:
        target = os.fsdecode(files[path].target)
        leads = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        wrong = f"{safe(path)} is a link; name what it leads to, {safe(leads)}"
    else:
        return path
    raise UnwelcomeResult(f"{archive.name}: {wrong}", USAGE)


def _hint(paths: list[str], member: str) -> str:
    """The paths that ``member`` may have meant: the same file name elsewhere, then similar ones."""
    name = posixpath.basename(member)
    same = [path for path in paths if posixpath.basename(path) == name]
    close = [*same, *(path for path in difflib.get_close_matches(member, paths, SHOWN) if path not in same)][:SHOWN]
    if close:
        return f"did you mean {' or '.join(map(safe, close))}?"
    return f"arzstream ls lists all {len(paths)}" if paths else "it has none yet, or lost them"
