"""``arzstream rebase``"""

from __future__ import annotations

import os

import click

from arzstream.cli.failure import USAGE, UnwelcomeResult
from arzstream.cli.group import state
from arzstream.cli.options import (
    archive_argument,
    force_option,
    json_option,
    not_empty,
    parents_option,
    print_json,
    quiet_option,
)
from arzstream.cli.progress import progress_bar
from arzstream.cli.text import counted, duration, safe, size
from arzstream.store.address import shown

__all__ = ["command"]


@click.command()
@archive_argument
@click.option("--parent", metavar="ARCHIVE", help="Code against this archive from now on.")
@click.option("--alone", is_flag=True, help="Code it so that it stands alone.")
@click.option(
    "--output", "-o", metavar="ARCHIVE", callback=not_empty, help="The archive to write.  [default: its own place]"
)
@click.option(
    "--profile", type=click.Choice(["fast", "balanced", "max"]), default="balanced", show_default=True,
    help="How hard to try: fast, or small.",
)  # fmt: skip
@click.option("--jobs", "-j", type=click.IntRange(1, 1024), metavar="N", help="Threads.  [default: one per core]")
@click.option(
    "--max-chain", type=click.IntRange(0), default=8, show_default=True, metavar="N",
    help="A parent with N archives behind it is not used; this one then stands alone.",
)  # fmt: skip
@parents_option
@force_option
@json_option
@quiet_option
def command(
    archive: str,
    parent: str | None,
    alone: bool,
    output: str | None,
    profile: str,
    jobs: int | None,
    max_chain: int,
    parents: tuple[str, ...],
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Code an archive anew, against another parent or alone. It needs no source, and its old parents once more.

    What it holds stays the same, so archives that were coded against it need not change. The new archive takes the
    place of the old one only when it was read back, decoded, and found identical.

    \b
    arzstream rebase step-2010.arz --alone
    arzstream rebase step-2030.arz --parent step-2000.arz
    """
    if alone == (parent is not None):
        raise click.UsageError("give either --parent ARCHIVE or --alone")
    if "://" in archive and output is None:
        raise UnwelcomeResult(
            f"{shown(archive)}: archives are written to local files only; name one with --output", USAGE
        )

    from arzstream.archive.rebase import rebase

    state().archive = shown(archive)
    before = 0 if "://" in archive else _length(archive)
    with progress_bar(quiet) as progress:
        summary = rebase(
            archive, output, parent=parent, profile=profile, jobs=jobs, progress=progress, parents=parents,
            max_chain=max_chain, force=force,
        )  # fmt: skip
    if as_json:
        print_json(summary.as_dict())
    elif not quiet:
        behind = " and ".join(safe(hint) for hint, _ in summary.parents)
        now = f"coded against {behind}" if behind else "stands alone"
        was = f"{size(before)} → " if before else ""
        print(
            f"{safe(summary.archive)}: {now}; {was}{size(summary.bytes_out)}, {counted(summary.tensors, 'tensor')}, "
            f"{duration(summary.seconds)}"
        )


def _length(archive: str) -> int:
    try:
        return os.stat(archive).st_size
    except OSError:
        return 0  # opening it says what is wrong
