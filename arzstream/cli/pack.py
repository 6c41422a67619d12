"""``arzstream pack``"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from arzstream.cli.options import force_option, json_option, not_empty, parents_option, print_json, quiet_option
from arzstream.cli.progress import progress_bar
from arzstream.cli.text import counted, duration, percent, safe, size
from arzstream.store.address import is_url, shown

if TYPE_CHECKING:
    from arzstream.archive.summary import PackSummary

__all__ = ["command"]

NOTES_SHOWN = 20


@click.command()
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, callback=not_empty)
@click.option(
    "--output",
    "-o",
    metavar="ARCHIVE",
    required=True,
    callback=not_empty,
    help="The archive to write, a path or a URL; - is standard output, and what is said goes to standard error.",
)
@click.option(
    "--profile", type=click.Choice(["fast", "balanced", "max"]), default="balanced", show_default=True,
    help="How hard to try: fast, or small.",
)  # fmt: skip
@click.option("--jobs", "-j", type=click.IntRange(1, 1024), metavar="N", help="Threads.  [default: one per core]")
@click.option(
    "--tensor-parallel", type=click.IntRange(1, 1 << 16), default=1, metavar="N",
    help="Cut matrices so that each of N ranks reads its own rows or columns, and little else.",
)  # fmt: skip
@click.option(
    "--parent", metavar="ARCHIVE",
    help="Code against this archive: the checkpoint before, or the model this one was made from.",
)  # fmt: skip
@click.option(
    "--max-chain", type=click.IntRange(0), default=8, show_default=True, metavar="N",
    help="A parent with N archives behind it is not used; this one then stands alone.",
)  # fmt: skip
@parents_option
@click.option("--reproducible", is_flag=True, help="The same input and options give the same bytes.")
@force_option
@json_option
@quiet_option
def command(
    sources: tuple[str, ...],
    output: str,
    profile: str,
    jobs: int | None,
    tensor_parallel: int,
    parent: str | None,
    max_chain: int,
    parents: tuple[str, ...],
    reproducible: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Pack files, checkpoint folders, or URLs of either, into one archive.

    The archive appears under its name only when everything in it was read back, decoded, and found identical.
    Each SOURCE stays as it is. With --parent, the archive can be read only where the parent is, too: beside it, or
    where --parents says.

    \b
    arzstream pack runs/exp7/step-2000 -o step-2000.arz
    arzstream pack runs/exp7/step-2010 -o step-2010.arz --parent step-2000.arz
    arzstream pack runs/exp7/step-2020 -o s3://models/exp7/step-2020.arz
    arzstream pack model.safetensors -o - | ssh host 'cat > model.arz'
    """
    to_output = output == "-"
    if to_output and sys.stdout.isatty():
        raise click.UsageError("an archive is not for reading on a terminal; send standard output to a file or a pipe")

    from arzstream.archive.pack import pack

    with progress_bar(quiet) as progress:
        summary = pack(
            sources, output, profile=profile, jobs=jobs, progress=progress, reproducible=reproducible,
            tensor_parallel=tensor_parallel, force=force, parent=parent, parents=parents, max_chain=max_chain,
        )  # fmt: skip
    stream = sys.stderr if to_output else sys.stdout
    if as_json:
        print_json(summary.as_dict(), stream)
    elif not quiet:
        for line in _lines(summary, "standard output" if to_output else _shown(output)):
            print(line, file=stream)
        if parent is not None:
            print(f"  {_lineage(summary, parent, max_chain)}", file=stream)


def _shown(output: str) -> str:
    return shown(output) if is_url(output) else os.path.normpath(output)


def _lineage(summary: PackSummary, parent: str, max_chain: int) -> str:
    if summary.parents:
        return f"coded against {' and '.join(safe(hint) for hint, _ in summary.parents)}, which it needs from now on"
    why = f"has no tensor like one of these, or {counted(max_chain, 'archive')} behind it"
    return f"stands alone: {safe(shown(parent))} {why}"


def _lines(summary: PackSummary, name: str) -> list[str]:
    ratio = percent(summary.ratio) if summary.bytes_in else "nothing in it"
    lines = [
        f"{safe(name)}: {size(summary.bytes_in)} → {size(summary.bytes_out)} ({ratio}), "
        f"{counted(summary.tensors, 'tensor')}, {counted(summary.files, 'file')}, {duration(summary.seconds)}"
    ]
    notes = sorted(summary.opaque.items())
    lines += [f"  {safe(path)}: {safe(why)}; kept byte for byte" for path, why in notes[:NOTES_SHOWN]]
    more = len(notes) - NOTES_SHOWN
    if more > 0:
        lines.append(f"  and {counted(more, 'file')} more like these; arzstream ls says which and why")
    return lines
