"""``arzstream ls``"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from arzstream.cli.group import state
from arzstream.cli.options import archive_argument, json_option, print_json
from arzstream.cli.table import Column, Row, room, table
from arzstream.cli.text import counted, percent, safe, shape, size
from arzstream.store.address import shown

__all__ = ["command"]


@click.command(name="ls")
@archive_argument
@click.option("--layers", is_flag=True, help="List layers instead of tensors, in the order in which a model uses them.")
@click.option("--chunks", is_flag=True, help="Under each tensor, where its chunks are and what they hold.")
@json_option
def command(archive: str, layers: bool, chunks: bool, as_json: bool) -> None:
    """List what is in an archive: its files, and its tensors in layer order. Nothing is decoded.

    RATIO is stored size ÷ original size. A tensor that equals an earlier one is stored once: its codec is dup; one that
    equals its parent's is not stored at all: it is unchanged.

    \b
    arzstream ls step-2000.arz
    arzstream ls s3://models/llama.arz --layers
    arzstream ls step-2000.arz --json | jq '.tensors[].name'
    """
    from arzstream.archive.reader import open as open_archive
    from arzstream.cli.listing import listing

    state().archive = shown(archive)
    with open_archive(archive) as opened:
        found = listing(opened, chunks=chunks, layers=layers)
    if as_json:
        print_json(found)
        return
    for line in _lines(found, room(), chunks):
        print(line)


def _lines(found: dict[str, Any], width: int | None, chunks: bool) -> Iterator[str]:
    yield from _head(found)
    if found["files"]:
        yield ""
        yield from table(_FILE_COLUMNS, [_file_row(file) for file in found["files"]], width)
    if "layers" in found:
        yield ""
        yield from table(_LAYER_COLUMNS, [_layer_row(layer) for layer in found["layers"]], width)
    elif found["tensors"]:
        yield ""
        yield from table(_TENSOR_COLUMNS, [_tensor_row(tensor) for tensor in found["tensors"]], width)
    if chunks:
        holders = [part for tensor in found["tensors"] for part in tensor.get("parts", [tensor])]
        rows = [row for holder in (*holders, *found["contents"]) for row in _chunk_rows(holder)]
        yield ""
        yield from table(_CHUNK_COLUMNS, rows, width)


def _head(found: dict[str, Any]) -> Iterator[str]:
    files = sum(file["kind"] == "file" for file in found["files"])
    ratio = f" ({percent(found['ratio'])})" if found["bytes"] else ""
    state = "sealed" if found["sealed"] else "growing"
    yield (
        f"{safe(found['archive'])}: {size(found['bytes'])} → {size(found['stored'])}{ratio}, "
        f"{counted(len(found['tensors']), 'tensor')}, {counted(files, 'file')}, {state}"
    )
    if found["content"]:
        yield f"content {found['content']}"
    for parent in found["parents"]:
        yield f"coded against {safe(parent['hint']) or 'an archive'}, content {parent['content']}"
    if not found["sealed"]:
        yield "It has no end: it is still being written, or it was cut short. What is listed can be read."
    if found["dead"]:
        yield f"{size(found['dead'])} of it are superseded: their source was rewritten after they were coded."


_FILE_COLUMNS = (
    Column("FILE", give=True), Column("FORMAT"), Column("TENSORS", right=True), Column("SIZE", right=True),
    Column("RATIO", right=True),
)  # fmt: skip


def _file_row(file: dict[str, Any]) -> Row:
    if file["kind"] != "file":
        arrow = f" → {safe(file['target'])}" if file["kind"] == "link" else "/"
        return Row((safe(file["path"]) + arrow, file["kind"], "", "", ""))
    notes = (safe(file["note"]),) if file["note"] else ()
    tensors = f"{file['tensors']:,}" if file["tensors"] else ""
    return Row((safe(file["path"]), file["format"], tensors, size(file["bytes"]), percent(file["ratio"])), notes)


_TENSOR_COLUMNS = (
    Column("TENSOR", give=True), Column("DTYPE"), Column("SHAPE", give=True), Column("CODEC"),
    Column("SIZE", right=True), Column("RATIO", right=True),
)  # fmt: skip


def _tensor_row(tensor: dict[str, Any]) -> Row:
    notes = (f"dup of {safe(tensor['dup_of'])}",) if tensor["dup_of"] is not None else ()
    if "parts" in tensor:
        notes = (_parts_note(tensor["parts"]),)
    values = tensor["dtype"], shape(tensor["shape"]), tensor["codec"], size(tensor["bytes"]), percent(tensor["ratio"])
    return Row((safe(tensor["name"]), *values), notes)


def _parts_note(parts: list[dict[str, Any]]) -> str:
    """Where the first few parts of a tensor begin, and in which files they came."""
    told = [f"{part['offset']} in {safe(part['file'])}" for part in parts[:_PARTS_SHOWN]]
    more = [f"{len(parts) - _PARTS_SHOWN:,} more"] if len(parts) > _PARTS_SHOWN else []
    return f"{len(parts):,} parts: {', '.join([*told, *more])}"


_PARTS_SHOWN = 4
_LAYER_COLUMNS = (
    Column("LAYER", give=True), Column("TENSORS", right=True), Column("SIZE", right=True), Column("RATIO", right=True),
)  # fmt: skip


def _layer_row(layer: dict[str, Any]) -> Row:
    name = safe(layer["layer"]) or "(none)"
    return Row((name, f"{len(layer['tensors']):,}", size(layer["bytes"]), percent(layer["ratio"])))


_CHUNK_COLUMNS = (
    Column("CHUNKS OF", give=True), Column("ROWS", right=True), Column("COLUMNS", right=True), Column("CODEC"),
    Column("AT BYTE", right=True), Column("STORED", right=True), Column("RATIO", right=True),
)  # fmt: skip


def _chunk_rows(holder: dict[str, Any]) -> Iterator[Row]:
    name = safe(holder["name"]) if "name" in holder else f"(file contents, unit {holder['unit']})"
    for chunk in holder["chunks"]:
        spans = (f"{start}:{stop}" for start, stop in (chunk["rows"], chunk["columns"]))
        yield Row((name, *spans, chunk["codec"], str(chunk["offset"]), size(chunk["stored"]), percent(chunk["ratio"])))
        name = ""
