"""What is in an archive, as plain values: what ``ls --json`` prints and what ``ls`` draws."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from arzstream.archive.pairing import parameters_of
from arzstream.codec import registry
from arzstream.container.layout import MAJOR
from arzstream.container.records import FileRecord, Kind, Piece, ReferenceKind

if TYPE_CHECKING:
    from arzstream.archive.catalog import TensorPlace
    from arzstream.archive.reader import Archive
    from arzstream.container.directory import UnitEntry

__all__ = ["listing"]

KINDS = {Kind.REGULAR: "file", Kind.LINK: "link", Kind.DIRECTORY: "folder"}


def listing(archive: Archive, *, chunks: bool = False, layers: bool = False) -> dict[str, Any]:
    """Files, and tensors in layer order; with ``chunks`` where each chunk is, with ``layers`` the tensors by layer.

    All lengths are in bytes. ``stored`` of what shares its chunks with others is its share of them. ``parents`` of a
    tensor are places in the list of the archive's: what it may be coded against. ``parameter`` of what belongs to an
    optimiser's state is the name of the weight whose it is, where that is known. A tensor that lies in parts has
    ``parts``, each as a tensor with its ``offset``; its own ``file`` and ``unit`` are those of the first of them.
    """
    directory = archive.directory
    names, parameters = _names(archive), parameters_of(archive)
    tensors = [_tensor(archive, name, place, names, chunks) for name, place in archive.catalog.tensors.items()]
    for tensor in tensors:
        tensor["parameter"] = parameters.get(tensor["name"])
    owned: dict[str | None, int] = {}
    for place in archive.catalog.stored:
        owned[place.path] = owned.get(place.path, 0) + 1
    files = [_file(archive, path, record, owned.get(path, 0)) for path, record in archive.catalog.files.items()]
    # While it grows, files are missing whose tensors are there.
    nbytes = sum(file["bytes"] for file in files)
    if not archive.sealed:
        nbytes = sum(entry.unit.nbytes for entry in directory.units)
    found = {
        "archive": archive.name,
        "sealed": archive.sealed,
        "format": f"{MAJOR}.{directory.prologue.writer_minor}",
        "file_id": directory.prologue.file_id.hex(),
        "content": archive.content_digest(),
        "bytes": nbytes,
        "stored": directory.valid_end,
        "ratio": _ratio(directory.valid_end, nbytes),
        "dead": directory.dead[1] if archive.sealed else None,
        "parents": [{"hint": hint, "content": content} for hint, content in archive.parents()],
        "files": files,
        "tensors": tensors,
    }
    if layers:
        found["layers"] = _layers(archive, tensors)
    if chunks:
        found["contents"] = [
            {"unit": entry.number, "chunks": _chunks(archive, entry)}
            for entry in directory.units
            if all(member.name is None for member in entry.unit.members)
        ]
    return found


def _names(archive: Archive) -> dict[int, str]:
    """Unit → the name its first tensor is listed under."""
    names: dict[int, str] = {}
    for name, place in archive.catalog.tensors.items():
        for held, number in [(name, place.entry.number)] if not place.parts else _numbers(place):
            names.setdefault(number, held)
    return names


def _numbers(place: TensorPlace) -> list[tuple[str, int]]:
    return [(part.name, part.entry.number) for part in place.parts]


def _tensor(archive: Archive, name: str, place: TensorPlace, names: dict[int, str], chunks: bool) -> dict[str, Any]:
    tensor = _whole if place.parts else _stored_tensor
    return tensor(archive, name, place, names, chunks)


def _whole(archive: Archive, name: str, place: TensorPlace, names: dict[int, str], chunks: bool) -> dict[str, Any]:
    """A tensor in parts. Its codec is that of most of its bytes."""
    parts = [
        {**_stored_tensor(archive, part.name, part, names, chunks), "offset": list(part.part.offset)}
        for part in place.parts
    ]
    weights: dict[str, int] = {}
    for part in parts:
        weights[part["codec"]] = weights.get(part["codec"], 0) + part["bytes"]
    stored = sum(part["stored"] for part in parts)
    return {
        **parts[0],
        "name": name,
        "shape": list(place.shape),
        "codec": max(weights, key=lambda codec: weights[codec]),
        "dup_of": None,
        "bytes": place.nbytes,
        "stored": stored,
        "ratio": _ratio(stored, place.nbytes),
        "blake3": None,
        "parents": sorted({parent for part in parts for parent in part["parents"]}),
        "chunks": [],
        "offset": None,
        "parts": parts,
    }


def _stored_tensor(
    archive: Archive, name: str, place: TensorPlace, names: dict[int, str], chunks: bool
) -> dict[str, Any]:
    entry, source = place.entry, place.entry.unit.duplicate_of
    stored = 0 if source is not None else _share(entry, place.nbytes)
    found: dict[str, Any] = {
        "name": name,
        "dtype": place.dtype,
        "shape": list(place.shape),
        "layer": archive.catalog.layer(place),
        "file": place.path,
        "codec": _codec(archive, entry),
        "dup_of": None if source is None else names.get(source, f"unit {source}"),
        "bytes": place.nbytes,
        "stored": stored,
        "ratio": _ratio(stored, place.nbytes),
        "unit": entry.number,
        "shares": len(entry.unit.members) > 1,
        "blake3": None if place.digest is None else place.digest.hex(),
        "parents": [ref.source for ref in entry.unit.refs if ref.kind in ReferenceKind.OF_PARENTS],
    }
    if chunks:
        found["chunks"] = _chunks(archive, entry)
    return found


def _codec(archive: Archive, entry: UnitEntry) -> str:
    """The codec of most of a unit's bytes, or where else they are."""
    if not entry.unit.has_chunks:
        return "dup" if entry.unit.inherited is None else "unchanged"
    weights: dict[int, int] = {}
    for row in archive.directory.chunk_table(entry.number):
        codec = int(row["codec"])
        weights[codec] = weights.get(codec, 0) + int(row["decoded"])
    return registry.name_of(max(weights, key=lambda codec: weights[codec])) if weights else "raw"


def _chunks(archive: Archive, entry: UnitEntry) -> list[dict[str, Any]]:
    """Chunks of a unit; ``offset`` is where the frame begins, rows and columns are those of the unit's matrix."""
    found = []
    for number, row in enumerate(archive.directory.chunk_table(entry.number)):
        tile = entry.unit.tile(number)
        decoded, stored = int(row["decoded"]), int(row["stored"])
        found.append(
            {
                "chunk": number,
                "offset": int(row["offset"]),
                "codec": registry.name_of(int(row["codec"])),
                "rows": [tile.row0, tile.row1],
                "columns": [tile.col0, tile.col1],
                "bytes": decoded,
                "stored": stored,
                "ratio": _ratio(stored, decoded),
            }
        )
    return found


def _file(archive: Archive, path: str, record: FileRecord, tensors: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "path": path,
        "kind": KINDS[record.kind],
        "mode": f"{record.mode:04o}",
        "mtime_ns": record.mtime,
        "bytes": record.size,
    }
    if record.kind == Kind.LINK:
        found["target"] = os.fsdecode(record.target)
    if record.kind == Kind.REGULAR:
        stored = _stored(archive, record)
        found |= {
            "stored": stored,
            "ratio": _ratio(stored, record.size),
            "format": record.format,
            "note": record.note,
            "tensors": tensors,
            "sha256": record.sha256.hex(),
            "metadata": dict(record.metadata),
        }
    return found


def _stored(archive: Archive, record: FileRecord) -> int:
    by_number, total = archive.directory.by_number, 0
    for piece in record.recipe:
        total += _share(by_number[piece.unit], piece.length) if isinstance(piece, Piece) else len(piece)
    return total


def _share(entry: UnitEntry, nbytes: int) -> int:
    """The part of a unit's stored bytes that ``nbytes`` of its bytes make up."""
    whole = entry.unit.nbytes
    return round(entry.stored * min(nbytes, whole) / whole) if whole else 0


def _ratio(stored: int, nbytes: int) -> float | None:
    return stored / nbytes if nbytes else None


def _layers(archive: Archive, tensors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tensors of each layer, in layer order."""
    by_name = {tensor["name"]: tensor for tensor in tensors}
    found = []
    for layer, names in archive.layers().items():
        nbytes, stored = (sum(by_name[name][key] for name in names) for key in ("bytes", "stored"))
        ratio = _ratio(stored, nbytes)
        found.append({"layer": layer, "tensors": names, "bytes": nbytes, "stored": stored, "ratio": ratio})
    return found
