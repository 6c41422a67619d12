"""``arzstream verify``"""

from __future__ import annotations

import time

import click

from arzstream.cli.group import state
from arzstream.cli.options import archive_argument, json_option, not_empty, parents_option, print_json, quiet_option
from arzstream.cli.progress import progress_bar
from arzstream.cli.text import counted, duration, safe, size
from arzstream.store.address import shown

__all__ = ["command"]


@click.command()
@archive_argument
@click.option("--deep", is_flag=True, help="Decode everything; check each tensor's BLAKE3 and each file's SHA-256.")
@click.option(
    "--against", metavar="SOURCE", callback=not_empty, help="Compare every file with the original, byte for byte."
)
@parents_option
@json_option
@quiet_option
def command(
    archive: str, deep: bool, against: str | None, parents: tuple[str, ...], as_json: bool, quiet: bool
) -> None:
    """Check that an archive is whole: every header, every stored byte, and that the index tells the truth.

    Ends with 1 at the first thing that is wrong, and says what it is.

    \b
    arzstream verify step-2000.arz
    arzstream verify --deep step-2000.arz
    arzstream verify step-2000.arz --against runs/exp7/step-2000
    """
    from arzstream.archive.verify import verify

    now = state()
    now.archive = shown(archive)
    if against is not None:
        now.advice = "arzstream verify without --against tells whether it is the archive that changed"
    began = time.monotonic()
    with progress_bar(quiet) as progress:
        report = verify(archive, deep=deep, against=against, progress=progress, parents=parents)
    seconds = time.monotonic() - began
    if as_json:
        print_json({"good": True, **report.as_dict(), "seconds": seconds})
    elif not quiet:
        checked = ["every stored byte checked"]
        checked += ["everything decoded, BLAKE3 and SHA-256 right"] if deep else []
        checked += [f"identical to {safe(shown(against))}"] if against is not None else []
        files = f"{counted(report.files, 'file')} (links and folders too)"
        held = f"{size(report.bytes)}, {counted(report.tensors, 'tensor')}, {files}"
        print(f"{safe(report.archive)}: good; {', '.join(checked)}; {held}, {duration(seconds)}")
        for link in report.refused_links:
            print(f"  the link {safe(link)} leads outside, so that unpack refuses it; see unpack --only")
