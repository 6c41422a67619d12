"""What the metadata frames say, as Python objects: units, files, commits, parents, volumes; ARZ-1 sections 5 and 6.

``from_map`` checks every rule of the specification that one record alone can break; what relates records to each other
is checked by :mod:`arzstream.container.state`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from arzstream.codec.dtypes import DType, dtype
from arzstream.codec.parts import Part, whole_name
from arzstream.errors import CorruptError, LimitError
from arzstream.kernels.digests import blake3
from arzstream.limits import DEFAULT_LIMITS, Limits

__all__ = [
    "Commit",
    "FileRecord",
    "Kind",
    "Member",
    "Parent",
    "Part",
    "Piece",
    "Reference",
    "ReferenceKind",
    "Tile",
    "Unit",
    "Volume",
    "check_path",
    "committed_digests",
    "units_of_frame",
]

MAX_BYTES = 2**63 - 1
EMPTY_SHA256 = bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")


class Kind:
    """``kind`` of a FILE."""

    REGULAR, LINK, DIRECTORY, WITHDRAWN = range(4)


def _fields(value: Any, keys: tuple[str, ...], what: str) -> list[Any]:
    if not isinstance(value, dict) or set(value) != set(keys):
        raise CorruptError(f"a {what} does not have the keys it should have")
    return [value[key] for key in keys]


def _natural(value: Any, what: str, *, least: int = 0, most: int = MAX_BYTES) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise CorruptError(f"{what} is not an integer from {least} to {most}")
    return value


def _array(value: Any, what: str, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise CorruptError(f"{what} is not an array{'' if length is None else f' of {length}'}")
    return value


def _typed(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        raise CorruptError(f"{what} is not a {kind.__name__}")
    return value


def _digest(value: Any, what: str) -> bytes:
    if not isinstance(value, bytes) or len(value) != 32:
        raise CorruptError(f"{what} is not 32 bytes long")
    return value


def _shape(value: Any, what: str, limits: Limits) -> tuple[int, ...]:
    shape = tuple(_natural(item, what) for item in _array(value, what))
    if len(shape) > limits.dimensions:
        raise LimitError(f"{what} has {len(shape)} dimensions; at most {limits.dimensions} are read")
    if math.prod(item for item in shape if item) > MAX_BYTES:
        raise CorruptError(f"{what} is too large to be true")
    return shape


@dataclasses.dataclass(frozen=True)
class Member:
    """A tensor inside a unit: ``start`` and ``strides`` count elements of the unit; ``strides`` None is row-major.
    ``part``: it is a block of a larger tensor."""

    name: str | None
    shape: tuple[int, ...]
    start: int = 0
    strides: tuple[int, ...] | None = None
    part: Part | None = None

    @property
    def whole(self) -> str | None:
        """The name of the tensor that this is, or is a part of."""
        if self.name is None or self.part is None:
            return self.name
        return whole_name(self.name, self.part.offset, self.shape)

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def is_empty_part(self) -> bool:
        """Whether it is a block without elements of a larger tensor."""
        return self.part is not None and 0 in self.shape

    @property
    def end(self) -> int:
        """One past the last element of the unit that the member touches."""
        if self.elements == 0:
            return self.start
        if self.strides is None:
            return self.start + self.elements
        return self.start + 1 + sum((d - 1) * s for d, s in zip(self.shape, self.strides, strict=True))

    def to_list(self) -> list[Any]:
        return [self.name, list(self.shape), self.start, None if self.strides is None else list(self.strides)]

    @classmethod
    def from_list(cls, value: Any, limits: Limits, part: Part | None = None) -> Member:
        name, shape, start, strides = _array(value, "a member", 4)
        if name is not None and len(_typed(name, str, "a tensor's name").encode()) > limits.name_bytes:
            raise LimitError(f"a tensor's name is longer than {limits.name_bytes} bytes")
        dims = _shape(shape, "a tensor's shape", limits)
        steps = (
            None if strides is None else tuple(_natural(s, "a stride") for s in _array(strides, "strides", len(dims)))
        )
        return cls(name, dims, _natural(start, "a member's start"), steps, part)


class ReferenceKind:
    """``kind`` of a reference: a unit, or a parent's tensors, to code against; the unit that this one duplicates; the
    parent's tensors whose bytes these are; a unit, transposed, to code against."""

    UNIT, PARENT, DUPLICATE, INHERITED, TRANSPOSED = range(5)
    OF_PARENTS = frozenset({PARENT, INHERITED})


@dataclasses.dataclass(frozen=True)
class Reference:
    """``count`` elements from ``start`` on of unit ``source`` (kinds 0, 2 and 4); or, of parent ``source``, the tensors
    of file ``start``, files counted by path, that are called as those of this unit of ``count`` elements (1 and 3)."""

    kind: int
    source: int
    start: int
    count: int


@dataclasses.dataclass(frozen=True)
class Tile:
    """Rows ``row0:row1`` and columns ``col0:col1`` of a unit: what one chunk holds."""

    row0: int
    row1: int
    col0: int
    col1: int

    @property
    def elements(self) -> int:
        return (self.row1 - self.row0) * (self.col1 - self.col0)


@dataclasses.dataclass(frozen=True)
class Unit:
    """A run of elements of one dtype, seen as a matrix of ``shape`` and cut by ``grid`` into chunks."""

    dtype: str
    shape: tuple[int, int]
    grid: tuple[int, int]
    members: tuple[Member, ...]
    layer: str = ""
    models: tuple[int, ...] = ()
    refs: tuple[Reference, ...] = ()
    source: tuple[tuple[int | None, int, int], ...] = ()

    @property
    def type(self) -> DType:
        return dtype(self.dtype)

    @property
    def elements(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        return self.elements * self.type.itemsize

    @property
    def gathered_bytes(self) -> int:
        """Bytes of the members with strides, written out row by row: any number, where a stride is 0."""
        return sum(m.elements for m in self.members if m.strides is not None) * self.type.itemsize

    @property
    def duplicate_of(self) -> int | None:
        """The unit whose bytes these are, if this one is a duplicate."""
        return next((ref.source for ref in self.refs if ref.kind == ReferenceKind.DUPLICATE), None)

    @property
    def inherited(self) -> Reference | None:
        """The reference to a parent whose bytes these are, if the unit has none of its own."""
        return next((ref for ref in self.refs if ref.kind == ReferenceKind.INHERITED), None)

    @property
    def has_chunks(self) -> bool:
        """False where the bytes are those of another unit or of a parent."""
        return self.duplicate_of is None and self.inherited is None

    @property
    def chunks_across(self) -> int:
        return -(-self.shape[1] // self.grid[1])

    @property
    def chunk_count(self) -> int:
        return 0 if self.elements == 0 else -(-self.shape[0] // self.grid[0]) * self.chunks_across

    def tile(self, chunk: int) -> Tile:
        row, column = divmod(chunk, self.chunks_across)
        (rows, columns), (r, c) = self.shape, self.grid
        return Tile(row * r, min(row * r + r, rows), column * c, min(column * c + c, columns))

    def chunks_of_rows(self, row0: int, row1: int) -> Iterator[int]:
        """Numbers of the chunks that hold rows ``row0:row1``."""
        if row0 >= row1 or not self.elements:
            return iter(())
        across = self.chunks_across
        return iter(range(row0 // self.grid[0] * across, (-(-row1 // self.grid[0])) * across))

    def to_map(self) -> dict[str, Any]:
        return {
            "dtype": self.dtype,
            "grid": list(self.grid),
            "layer": self.layer,
            "members": [member.to_list() for member in self.members],
            "models": list(self.models),
            "part": _parts_to_value([member.part for member in self.members]),
            "refs": [[ref.kind, ref.source, ref.start, ref.count] for ref in self.refs],
            "shape": list(self.shape),
            "source": [list(extent) for extent in self.source],
        }

    @classmethod
    def from_map(cls, value: Any, limits: Limits = DEFAULT_LIMITS) -> Unit:
        """Raises CorruptError, LimitError, or UnsupportedError for a dtype that is not known."""
        keys = ("dtype", "grid", "layer", "members", "models", "part", "refs", "shape", "source")
        kind, grid, layer, members, models, part, refs, shape, source = _fields(value, keys, "unit")
        if len(_array(members, "members")) > limits.members:
            raise LimitError(f"a unit has {len(members)} members; at most {limits.members} are read")
        unit = cls(
            dtype=_typed(kind, str, "a dtype"),
            shape=tuple(_natural(n, "a unit's shape") for n in _array(shape, "a unit's shape", 2)),  # type: ignore[arg-type]
            grid=tuple(_natural(n, "a unit's grid", least=1) for n in _array(grid, "a unit's grid", 2)),  # type: ignore[arg-type]
            members=tuple(
                Member.from_list(item, limits, own)
                for item, own in zip(members, _parts(part, len(members), limits), strict=True)
            ),
            layer=_typed(layer, str, "a layer"),
            models=tuple(_natural(n, "a model number") for n in _array(models, "models")),
            refs=tuple(_reference(item) for item in _array(refs, "references")),
            source=tuple(_extent(item) for item in _array(source, "a unit's source")),
        )
        unit._check(limits)
        return unit

    def _check(self, limits: Limits) -> None:
        if self.nbytes > MAX_BYTES:
            raise CorruptError("a unit is too large to be true")
        if self.chunk_count > limits.chunks_per_unit:
            raise LimitError(f"a unit has {self.chunk_count} chunks; at most {limits.chunks_per_unit} are read")
        rows, columns = min(self.grid[0], self.shape[0]), min(self.grid[1], self.shape[1])
        if rows * columns * self.type.itemsize > limits.chunk_bytes:
            raise LimitError(
                f"a chunk of {rows * columns * self.type.itemsize} bytes; at most {limits.chunk_bytes} are read"
            )
        if not self.members:
            raise CorruptError("a unit has no members")
        if any(member.end > self.elements for member in self.members):
            raise CorruptError("a tensor reaches beyond the unit that holds it")
        if self.duplicate_of is not None and [(r.start, r.count) for r in self.refs] != [(0, self.elements)]:
            raise CorruptError("a duplicate refers to something else than the beginning of another unit")
        if self.inherited is not None and len(self.refs) != 1:
            raise CorruptError("a unit that is its parent's has other references, too")
        if any(ref.count != self.elements for ref in self.refs if ref.kind in ReferenceKind.OF_PARENTS):
            raise CorruptError("a reference to a parent is not as long as the unit")
        if not all(_is_inside(member) for member in self.members):
            raise CorruptError("a part does not lie inside the tensor it is a part of")


def _is_inside(member: Member) -> bool:
    """Does a member that is a part lie inside the whole?"""
    part, shape = member.part, member.shape
    if part is None:
        return True
    return len(shape) == len(part.shape) and all(
        o + n <= g for o, n, g in zip(part.offset, shape, part.shape, strict=True)
    )


def units_of_frame(value: Any, limits: Limits = DEFAULT_LIMITS) -> list[Unit]:
    """The units that a TENSOR frame announces: a map is one, an array two or more."""
    if not isinstance(value, list):
        return [Unit.from_map(value, limits)]
    if len(value) < 2:
        raise CorruptError("a list of units has fewer than two")
    if len(value) > limits.units:
        raise LimitError(f"{len(value)} units; at most {limits.units} are read")
    return [Unit.from_map(item, limits) for item in value]


def _reference(value: Any) -> Reference:
    kind, source, start, count = (_natural(n, "a reference") for n in _array(value, "a reference", 4))
    if kind > ReferenceKind.TRANSPOSED:
        raise CorruptError("a reference is of an unknown kind")
    return Reference(kind, source, start, count)


def _parts(value: Any, members: int, limits: Limits) -> list[Part | None]:
    """What each of so many members is a part of: of one member its part, of several an array; nil if none is one."""
    if value is None:
        return [None] * members
    if members == 1:
        return [_part(value, limits)]
    parts = [None if item is None else _part(item, limits) for item in _array(value, "the parts of a unit", members)]
    if not any(parts):
        raise CorruptError("none of the parts of a unit is one")
    return parts


def _parts_to_value(parts: Sequence[Part | None]) -> Any:
    listed = [None if part is None else [list(part.shape), list(part.offset)] for part in parts]
    return listed[0] if len(listed) == 1 or not any(listed) else listed


def _part(value: Any, limits: Limits) -> Part:
    shape, offset = _array(value, "a part", 2)
    part = Part(_shape(shape, "a part's shape", limits), _shape(offset, "a part's offset", limits))
    if len(part.shape) != len(part.offset):
        raise CorruptError("a part's shape and offset differ in length")
    return part


def _extent(value: Any) -> tuple[int | None, int, int]:
    file, offset, length = _array(value, "a source extent", 3)
    return (
        None if file is None else _natural(file, "a file number"),
        _natural(offset, "a source offset"),
        _natural(length, "a source length"),
    )


@dataclasses.dataclass(frozen=True)
class Piece:
    """Bytes ``offset:offset + length`` of a decoded unit."""

    unit: int
    offset: int
    length: int


@dataclasses.dataclass(frozen=True)
class FileRecord:
    """An original file: what it was called and how to make its bytes again. ``mtime`` in nanoseconds, ``size`` in
    bytes."""

    path: bytes
    kind: int = Kind.REGULAR
    mode: int = 0o644
    mtime: int = 0
    size: int = 0
    sha256: bytes = EMPTY_SHA256
    recipe: tuple[bytes | Piece, ...] = ()
    target: bytes = b""
    format: str = "opaque"
    note: str = ""
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def withdrawn(cls, path: bytes) -> FileRecord:
        """The last record of a file whose source vanished: the path it had, and nothing else."""
        return cls(path, Kind.WITHDRAWN, mode=0, format="")

    def to_map(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "kind": self.kind,
            "metadata": dict(self.metadata),
            "mode": self.mode,
            "mtime": self.mtime,
            "note": self.note,
            "path": self.path,
            "recipe": [p if isinstance(p, bytes) else [p.unit, p.offset, p.length] for p in self.recipe],
            "sha256": self.sha256,
            "size": self.size,
            "target": self.target,
        }

    @classmethod
    def from_map(cls, value: Any, limits: Limits = DEFAULT_LIMITS) -> FileRecord:
        keys = ("format", "kind", "metadata", "mode", "mtime", "note", "path", "recipe", "sha256", "size", "target")
        form, kind, metadata, mode, mtime, note, path, recipe, sha256, size, target = _fields(value, keys, "file")
        _typed(metadata, dict, "a file's metadata")
        if not all(isinstance(item, str) for item in metadata.values()):
            raise CorruptError("a file's metadata is not text")
        record = cls(
            path=check_path(path, limits),
            kind=_natural(kind, "a file's kind", most=Kind.WITHDRAWN),
            mode=_natural(mode, "a file's mode", most=0o7777),
            mtime=_natural(mtime, "a file's time", least=-MAX_BYTES - 1),
            size=_natural(size, "a file's size"),
            sha256=_digest(sha256, "a file's SHA-256"),
            recipe=tuple(_piece(item) for item in _array(recipe, "a recipe")),
            target=_typed(target, bytes, "a link's target"),
            format=_typed(form, str, "a file's format"),
            note=_typed(note, str, "a file's note"),
            metadata=metadata,
        )
        if sum(len(p) if isinstance(p, bytes) else p.length for p in record.recipe) != record.size:
            raise CorruptError(f"the recipe of {show(record.path)} does not add up to its size")
        if (
            (record.kind == Kind.LINK) != bool(record.target)
            or b"\0" in record.target
            or (record.kind != Kind.REGULAR and (record.recipe or record.sha256 != EMPTY_SHA256))
        ):
            raise CorruptError(f"{show(record.path)} is not a proper file, link or folder")
        if record.kind == Kind.WITHDRAWN and record != cls.withdrawn(record.path):
            raise CorruptError(f"{show(record.path)} was withdrawn but something of it is left")
        return record


def _piece(value: Any) -> bytes | Piece:
    if isinstance(value, bytes):
        return value
    return Piece(*(_natural(n, "a piece of a recipe") for n in _array(value, "a piece of a recipe", 3)))


def show(path: bytes) -> str:
    """``path`` as text for messages."""
    return path.decode("utf-8", "backslashreplace")


def check_path(path: Any, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """Refuse anything that is not a plain relative path; ARZ-1 section 8."""
    _typed(path, bytes, "a path")
    if len(path) > limits.path_bytes:
        raise LimitError(f"a path is longer than {limits.path_bytes} bytes")
    if b"\0" in path or any(part in (b"", b".", b"..") for part in path.split(b"/")):
        raise CorruptError(f"the path {show(path)!r} leads outside the folder it is restored to")
    return bytes(path)


@dataclasses.dataclass(frozen=True)
class Commit:
    """Everything before it is durable; ``units`` are those completed since the previous one, each with its
    :func:`committed_digests`."""

    chain: bytes
    layer: str
    previous: int
    units: tuple[tuple[int, tuple[bytes, ...]], ...]

    def to_map(self) -> dict[str, Any]:
        return {
            "chain": self.chain,
            "layer": self.layer,
            "previous": self.previous,
            "units": [[number, list(digests)] for number, digests in self.units],
        }

    @classmethod
    def from_map(cls, value: Any) -> Commit:
        chain, layer, previous, units = _fields(value, ("chain", "layer", "previous", "units"), "commit")
        done = []
        for item in _array(units, "a commit's units"):
            number, digests = _array(item, "a committed unit", 2)
            done.append((_natural(number, "a unit number"), unit_digests(digests)))
        if any(a[0] >= b[0] for a, b in itertools.pairwise(done)):
            raise CorruptError("a commit's units are not in ascending order")
        return cls(
            _digest(chain, "a chain"), _typed(layer, str, "a layer"), _natural(previous, "an offset"), tuple(done)
        )


def committed_digests(unit: Unit, digests: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """What a COMMIT lists for a unit whose members have these BLAKE3 ``digests``: one for all of them, 32 bytes.

    Of an inherited unit it lists each, because they say which of the parent's bytes the unit's are.
    """
    if len(digests) == 1 or unit.inherited is not None:
        return digests
    return (blake3(b"".join(digests)),)


def unit_digests(value: Any) -> tuple[bytes, ...]:
    """An array of 32-byte digests."""
    return tuple(_digest(item, "a digest") for item in _array(value, "digests"))


@dataclasses.dataclass(frozen=True)
class Parent:
    """Another archive, by content digest; ``hint`` is where it was, and never trusted."""

    digest: bytes
    hint: str = ""

    def to_map(self) -> dict[str, Any]:
        return {"digest": self.digest, "hint": self.hint}

    @classmethod
    def from_map(cls, value: Any) -> Parent:
        digest, hint = _fields(value, ("digest", "hint"), "parent")
        return cls(_digest(digest, "a parent's digest"), _typed(hint, str, "a parent's hint"))


@dataclasses.dataclass(frozen=True)
class Volume:
    """An archive that a set is made of: its file ``name`` relative to the set's, length in bytes, and digests."""

    name: bytes
    length: int
    root: bytes
    content: bytes

    def to_map(self) -> dict[str, Any]:
        return {"content": self.content, "length": self.length, "name": self.name, "root": self.root}

    @classmethod
    def from_map(cls, value: Any, limits: Limits = DEFAULT_LIMITS) -> Volume:
        content, length, name, root = _fields(value, ("content", "length", "name", "root"), "volume")
        return cls(
            check_path(name, limits),
            _natural(length, "a volume's length"),
            _digest(root, "a volume's root digest"),
            _digest(content, "a volume's content digest"),
        )
