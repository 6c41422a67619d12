"""What changed between two archives: per tensor, how many elements and by how much."""

from __future__ import annotations

import collections
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from arzstream.archive.ancestry import SearchPath
from arzstream.archive.catalog import TensorPlace
from arzstream.archive.reader import Archive
from arzstream.archive.reader import open as open_archive
from arzstream.archive.tensors import gather, load
from arzstream.codec.dtypes import DType
from arzstream.container.records import FileRecord

__all__ = ["Difference", "TensorDifference", "diff"]

BLOCK_ELEMENTS = 1 << 20
MOST_TRIED = 16
"""Names by which a prefix is looked for."""
Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class TensorDifference:
    """``what`` is ``unchanged``, ``changed``, ``added``, ``removed``, or ``another`` for another dtype or shape."""

    name: str
    what: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    changed: float | None = None
    """The share of elements whose bits changed; None where they cannot be compared one by one."""
    relative: float | None = None
    """Root mean square of the change ÷ that of the first archive's values, finite pairs only; None if it has none, and
    where a float64 does not hold it."""
    largest: float | None = None
    """The largest change of a value, finite pairs only; None where a float64 does not hold it."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """Tensors in the order of the second archive, removed ones last; ``files`` maps paths to ``changed``, ``added`` or
    ``removed``, and leaves out those that are the same."""

    a: str
    b: str
    tensors: list[TensorDifference]
    files: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def diff(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    parents: SearchPath = None,
    progress: Progress | None = None,
    storage_options: dict[str, Any] | None = None,
) -> Difference:
    """Compare two archives, whether one was coded against the other or not. Tensors with equal digests are not decoded.

    Tensors are compared by name. Where the two have no name in common, but one has those of the other with a prefix
    (``model.``, ``state_dict.``, ``module.``), they are compared without it.

    Parents are looked for in ``parents``, and each archive counts as one place where the other's may be. Raises what
    opening and reading them raises.
    """
    named = [parents] if isinstance(parents, (str, os.PathLike)) else list(parents or ())
    with (
        open_archive(a, storage_options, [b, *named]) as first,
        open_archive(b, storage_options, [a, *named]) as second,
    ):
        held, found = _aligned(first.catalog.tensors, second.catalog.tensors), []
        total, done = sum(place.nbytes for place in second.catalog.tensors.values()), 0
        for name, place in second.catalog.tensors.items():
            found.append(_tensor(first, second, held.get(name), place))
            done += place.nbytes
            if progress is not None:
                progress(done, total, "comparing")
        gone = [(name, place) for name, place in held.items() if name not in second.catalog.tensors]
        found += [dataclasses.replace(_described(place, "removed"), name=name) for name, place in gone]
        return Difference(first.name, second.name, found, _files(first.catalog.files, second.catalog.files))


def _aligned(old: Mapping[str, TensorPlace], new: Mapping[str, TensorPlace]) -> dict[str, TensorPlace]:
    """``old``, under the names that its tensors have in ``new`` where all of these have, or lack, a prefix."""
    if old.keys() & new.keys() or not old or not new:
        return dict(old)
    for longer, shorter in ((new, old), (old, new)):
        likely: collections.Counter[str] = collections.Counter()
        for name in list(shorter)[:MOST_TRIED]:
            ending = "." + name
            likely.update(known[: -len(name)] for known in longer if known.endswith(ending))
        for prefix, _ in likely.most_common(1):
            if longer is new:
                return {prefix + name if prefix + name in new else name: place for name, place in old.items()}
            return {name.removeprefix(prefix): place for name, place in old.items()}
    return dict(old)


def _described(place: TensorPlace, what: str) -> TensorDifference:
    return TensorDifference(place.name, what, place.dtype, place.shape, place.nbytes)


def _tensor(first: Archive, second: Archive, old: TensorPlace | None, new: TensorPlace) -> TensorDifference:
    if old is None:
        return _described(new, "added")
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        return _described(new, "another")
    unchanged = dataclasses.replace(_described(new, "unchanged"), changed=0.0, relative=0.0, largest=0.0)
    if old.digest is not None and old.digest == new.digest:
        return unchanged
    kind = new.entry.unit.type
    count, elements, change, scale, largest, numbers = 0, 0, _Norm(), _Norm(), 0.0, False
    for x, y in zip(_blocks(first, old), _blocks(second, new), strict=True):
        count += int(np.count_nonzero((x != y).any(axis=1)))
        elements += len(x)
        before, after = _values(x, kind), _values(y, kind)
        if before is None or after is None:
            continue
        finite = np.isfinite(before) & np.isfinite(after)
        before, after = before[finite], after[finite]
        # Halves, whose differences do not overflow. A factor of two changes no digit.
        change.add(after / 2 - before / 2)
        scale.add(before / 2)
        with np.errstate(over="ignore"):
            largest, numbers = max(largest, float(np.abs(after - before).max(initial=0.0))), True
    if not count:  # in an archive without an index, the digest of a tensor that shares a unit is not known
        return unchanged
    return dataclasses.replace(
        _described(new, "changed"),
        changed=count / elements,
        relative=_finite(change.over(scale)) if numbers and scale.squares else None,
        largest=_finite(largest) if numbers else None,
    )


class _Norm:
    """The root of a sum of squares, some of which a float64 may not hold: of the values by a power of two near the
    largest (BLAS's nrm2)."""

    def __init__(self) -> None:
        self.unit, self.squares = 1.0, 0.0

    def add(self, values: np.ndarray) -> None:
        _, exponent = math.frexp(float(np.abs(values).max(initial=0.0)))
        unit = math.ldexp(1.0, exponent - 1)
        if not self.squares or unit > self.unit:
            self.squares *= (self.unit / unit) ** 2 if self.squares else 0.0
            self.unit = unit
        scaled = values / self.unit
        self.squares += float(scaled @ scaled)

    def over(self, other: _Norm) -> float:
        """The quotient; infinite where a float64 does not hold it."""
        return math.sqrt(self.squares / other.squares) * (self.unit / other.unit)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _blocks(archive: Archive, place: TensorPlace) -> Iterator[np.ndarray]:
    """The tensor's elements in row-major order as rows of bytes, so many at a time."""
    member, itemsize = place.member, place.entry.unit.type.itemsize
    if place.parts:
        yield from _blocks_of_parts(archive, place)
        return
    if member.strides is not None:
        array = load(archive.decoder, place).numpy()
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(-1, itemsize)
        yield from (data[start : start + BLOCK_ELEMENTS] for start in range(0, len(data), BLOCK_ELEMENTS))
        return
    for start in range(member.start, member.end, BLOCK_ELEMENTS):
        end = min(start + BLOCK_ELEMENTS, member.end)
        data = np.frombuffer(archive.decoder.unit_bytes(place.entry.number, start * itemsize, end * itemsize), np.uint8)
        yield data.reshape(-1, itemsize)


def _blocks_of_parts(archive: Archive, place: TensorPlace) -> Iterator[np.ndarray]:
    """The same of a tensor that lies in parts, some rows of it at a time."""
    shape, itemsize = place.shape, place.entry.unit.type.itemsize
    at_once = max(1, BLOCK_ELEMENTS // max(1, math.prod(shape[1:])))
    held = np.empty((0, itemsize), np.uint8)
    for row in range(0, shape[0], at_once):
        low, high = (row, *(0 for _ in shape[1:])), (min(row + at_once, shape[0]), *shape[1:])
        loaded = gather(archive.decoder, place, low, high)
        archive.decoder.run(loaded.tasks)
        held = np.concatenate([held, loaded.data.reshape(-1, itemsize)])
        whole = len(held) // BLOCK_ELEMENTS * BLOCK_ELEMENTS
        yield from (held[start : start + BLOCK_ELEMENTS] for start in range(0, whole, BLOCK_ELEMENTS))
        held = held[whole:]
    if len(held):
        yield held


def _values(rows: np.ndarray, kind: DType) -> np.ndarray | None:
    """The elements as float64, complex ones as two; None for a type that holds no numbers we know."""
    flat = np.ascontiguousarray(rows).reshape(-1)
    if kind.name == "BF16":
        return (flat.view("<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if kind.name.startswith("F8_"):
        return None
    if kind.components == 2:
        return flat.view(f"<f{kind.itemsize // 2}").astype(np.float64)
    return flat.view(np.dtype(kind.numpy)).astype(np.float64)


def _files(first: dict[str, FileRecord], second: dict[str, FileRecord]) -> dict[str, str]:
    found = {}
    for path in sorted(first.keys() | second.keys()):
        old, new = first.get(path), second.get(path)
        if old is None or new is None:
            found[path] = "added" if old is None else "removed"
        elif (old.kind, old.sha256, old.target) != (new.kind, new.sha256, new.target):
            found[path] = "changed"
    return found
