"""``arzstream unpack``"""

from __future__ import annotations

import fnmatch
import time

import click

from arzstream.cli.failure import USAGE, UnwelcomeResult
from arzstream.cli.group import state
from arzstream.cli.options import archive_argument, json_option, not_empty, parents_option, print_json, quiet_option
from arzstream.cli.progress import progress_bar
from arzstream.cli.text import counted, duration, safe, size
from arzstream.store.address import shown

__all__ = ["command"]


@click.command()
@archive_argument
@click.option(
    "--output", "-o", metavar="DIR", required=True, callback=not_empty,
    help="The folder to restore to; made if it is missing.",
)  # fmt: skip
@click.option("--only", metavar="GLOB", help="Restore only the files whose path matches; * matches / too.")
@parents_option
@json_option
@quiet_option
def command(archive: str, output: str, only: str | None, parents: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Restore the original files, byte for byte, with their modes and modification times.

    A file that exists already is never overwritten. Nothing is written outside DIR, whatever the archive says.

    \b
    arzstream unpack step-2000.arz -o restored
    arzstream unpack step-2000.arz -o restored --only '*.json'
    """
    from arzstream.archive.reader import open as open_archive
    from arzstream.archive.restore import unpack
    from arzstream.container.records import Kind

    state().archive = shown(archive)
    began = time.monotonic()
    with open_archive(archive, parents=parents) as opened:
        records = opened.catalog.files
        if only is not None and not any(fnmatch.fnmatchcase(path, only) for path in records):
            raise UnwelcomeResult(
                f"{opened.name}: no file matches {only!r}; arzstream ls lists all {len(records)}", USAGE
            )
        with progress_bar(quiet) as progress:
            paths = unpack(opened, output, only=only, progress=progress)
        nbytes = sum(records[path].size for path in paths)
        files = sum(records[path].kind == Kind.REGULAR for path in paths)
    seconds = time.monotonic() - began
    if as_json:
        print_json({"archive": shown(archive), "output": output, "files": paths, "bytes": nbytes, "seconds": seconds})
    elif not quiet:
        print(f"{safe(output)}: {counted(files, 'file')} restored, {size(nbytes)}, {duration(seconds)}")
