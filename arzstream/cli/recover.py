"""``arzstream recover``"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from arzstream.cli.failure import UnwelcomeResult
from arzstream.cli.group import state
from arzstream.cli.options import force_option, json_option, not_empty, parents_option, print_json, quiet_option
from arzstream.cli.progress import progress_bar
from arzstream.cli.text import counted, safe
from arzstream.store.address import shown

if TYPE_CHECKING:
    from arzstream.archive.recover import RecoverReport

__all__ = ["command"]


@click.command()
@click.argument("damaged", metavar="DAMAGED")
@click.option(
    "--output",
    "-o",
    metavar="ARCHIVE",
    required=True,
    callback=not_empty,
    help="The archive to write what is intact to.",
)
@force_option
@parents_option
@json_option
@quiet_option
def command(damaged: str, output: str, force: bool, parents: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Save what is intact in a damaged or unfinished archive, and list by name what was saved and what is lost.

    DAMAGED stays as it is. Tensors whose file is damaged elsewhere are saved in a file called recovered.safetensors.
    Ends with 1 if anything is lost, or if the index is, because then there may have been more.

    \b
    arzstream recover damaged.arz -o rescued.arz
    """
    from arzstream.archive.recover import recover

    now = state()
    now.archive, now.advice = shown(damaged), "nothing can be saved; restore it from a copy"
    with progress_bar(quiet) as progress:
        report = recover(damaged, output, force=force, progress=progress, parents=parents)
    if as_json:
        print_json(report.as_dict())
    elif not quiet:
        for line in _lines(report):
            print(line)
    if not report.complete or not report.indexed:
        raise UnwelcomeResult(f"{shown(damaged)}: {_lost(report)}; {output} holds the rest")


def _lost(report: RecoverReport) -> str:
    tensors, files = len(report.lost_tensors), len(report.lost_files)
    kinds = [counted(tensors, "tensor")] * bool(tensors) + [counted(files, "file")] * bool(files)
    text = f"{' and '.join(kinds)} lost" if kinds else "nothing lost"
    return text if report.indexed else f"{text} that is known of (its index is lost, too)"


def _lines(report: RecoverReport) -> Iterator[str]:
    saved = f"{counted(len(report.tensors), 'tensor')} and {counted(len(report.files), 'file')} saved"
    places = f"{counted(report.damaged_places, 'damaged place')} in {safe(report.archive)}"
    yield f"{safe(report.output)}: {saved}; {_lost(report)}; {places}"
    for title, names in (
        ("lost tensors", report.lost_tensors), ("lost files", report.lost_files), ("saved files", report.files),
        ("saved tensors that cannot be checked without the archive they were coded against", report.unchecked),
        ("why they cannot be", report.parent_problems),
    ):  # fmt: skip
        if names:
            yield f"{title}:"
            yield from (f"  {safe(name)}" for name in names)
