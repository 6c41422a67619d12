"""``arzstream diff``"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from arzstream.cli.group import state
from arzstream.cli.options import json_option, parents_option, print_json, quiet_option
from arzstream.cli.progress import progress_bar
from arzstream.cli.table import Column, Row, room, table
from arzstream.cli.text import counted, percent, safe, shape, size
from arzstream.store.address import shown

if TYPE_CHECKING:
    from arzstream.archive.difference import Difference, TensorDifference

__all__ = ["command"]


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--all", "everything", is_flag=True, help="List unchanged tensors, too.")
@parents_option
@json_option
@quiet_option
def command(a: str, b: str, everything: bool, parents: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Say which tensors and files changed from archive A to archive B, and by how much.

    CHANGED is the share of elements that are not what they were. RELATIVE is the root mean square of the change ÷ that
    of the values in A, LARGEST the largest change of a value. One archive may be coded against the other, or not.
    They may be of different formats; where all names of one have a prefix (model., module.), they are matched
    without it.

    \b
    arzstream diff step-2000.arz step-2010.arz
    """
    from arzstream.archive.difference import diff

    now = state()
    now.archive, now.other = shown(b), shown(a)
    with progress_bar(quiet) as progress:
        found = diff(a, b, parents=parents, progress=progress)
    if as_json:
        print_json(found.as_dict())
    elif not quiet:
        for line in _lines(found, everything, room()):
            print(line)


def _lines(found: Difference, everything: bool, width: int | None) -> Iterator[str]:
    counts = dict.fromkeys(("unchanged", "changed", "another", "added", "removed"), 0)
    for tensor in found.tensors:
        counts[tensor.what] += 1
    said = [counted(len(found.tensors), "tensor"), *(f"{n:,} {_WORDS[what]}" for what, n in counts.items() if n)]
    yield f"{safe(found.a)} → {safe(found.b)}: {', '.join(said)}"
    listed = [tensor for tensor in found.tensors if everything or tensor.what != "unchanged"]
    if listed:
        yield ""
        yield from table(_COLUMNS, [_row(tensor) for tensor in listed], width)
    if found.files:
        yield ""
        yield from (f"{what} file: {safe(path)}" for path, what in found.files.items())


_WORDS = {what: what for what in ("unchanged", "changed", "added", "removed")} | {"another": "of another type or shape"}
_COLUMNS = (
    Column("TENSOR", give=True), Column("DTYPE"), Column("SHAPE", give=True), Column("SIZE", right=True),
    Column("CHANGED", right=True), Column("RELATIVE", right=True), Column("LARGEST", right=True),
)  # fmt: skip


def _row(tensor: TensorDifference) -> Row:
    changed = _WORDS[tensor.what] if tensor.changed is None else percent(tensor.changed)
    relative, largest = ("" if value is None else f"{value:.2g}" for value in (tensor.relative, tensor.largest))
    return Row((safe(tensor.name), tensor.dtype, shape(tensor.shape), size(tensor.bytes), changed, relative, largest))
