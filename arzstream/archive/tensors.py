"""Tensors on demand: whole, or the rows and columns asked for, as NumPy arrays or torch tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from arzstream.archive.catalog import Catalog, TensorPlace
from arzstream.archive.decoding import Decoder, Task
from arzstream.archive.forecast import Forecast
from arzstream.errors import UnsupportedError

if TYPE_CHECKING:
    import torch

__all__ = ["LazyState", "Loaded", "TensorSlice", "gather", "load", "prepare", "span_bytes"]

Allocate = Callable[[int], np.ndarray]


@dataclasses.dataclass
class Loaded:
    """A tensor's bytes, or what is to be done to have them."""

    place: TensorPlace
    shape: tuple[int, ...]
    data: np.ndarray
    """uint8, one-dimensional: the elements of ``shape`` in row-major order, or the unit's span if the member has
    strides."""
    tasks: list[Task] = dataclasses.field(default_factory=list)
    """Run all of them, in any order and in any threads, then look at ``error``."""
    error: BaseException | None = None

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def numpy(self) -> np.ndarray:
        """As a NumPy array; bf16 as uint16, fp8 as uint8."""
        array = self.data.view(np.dtype(self.place.entry.unit.type.numpy))
        strides = self.place.strides
        if strides is None or not math.prod(self.shape):
            return array.reshape(self.shape)
        steps = tuple(s * array.itemsize for s in strides)
        return np.lib.stride_tricks.as_strided(array, self.shape, steps)

    def torch(self) -> torch.Tensor:
        """As a torch tensor that owns its memory."""
        import torch

        kind = getattr(torch, self.place.entry.unit.type.torch, None)
        if kind is None:
            raise UnsupportedError(
                f"tensor {self.place.name!r} is {self.place.dtype}, which this torch does not have; "
                "install a newer torch"
            )
        if not self.data.size:
            return torch.empty(self.shape, dtype=kind)
        flat = torch.from_numpy(self.data).view(kind)
        strides = self.place.strides
        return flat.reshape(self.shape) if strides is None else flat.as_strided(self.shape, strides)


def prepare(decoder: Decoder, place: TensorPlace, empty: Allocate | None = None) -> Loaded:
    """Memory for a whole tensor, and what there is to do until it is filled. ``empty(nbytes)`` gives other memory than
    the decoder's: uint8, one-dimensional, as long as :func:`span_bytes` says."""
    loaded = _whole(decoder, place, empty)
    loaded.tasks = decoder.counted(loaded.tasks, place.nbytes)
    return loaded


def span_bytes(place: TensorPlace) -> int:
    """How much memory :func:`prepare` asks for: the tensor's, and that of neighbours in its rows if it has some."""
    unit, (start, end) = place.entry.unit, (place.member.start, place.member.end)
    if place.parts:
        return math.prod(place.shape) * unit.type.itemsize
    if start >= end:
        return 0
    rows, cols = _rectangle(unit.shape, start, end)
    return (rows[1] - rows[0]) * (cols[1] - cols[0]) * unit.type.itemsize


def _whole(decoder: Decoder, place: TensorPlace, empty: Allocate | None = None) -> Loaded:
    if place.parts:
        return gather(decoder, place, (0,) * len(place.shape), place.shape, empty)
    return _elements(decoder, place, place.shape, place.member.start, place.member.end, empty=empty)


def load(decoder: Decoder, place: TensorPlace) -> Loaded:
    """Decode a whole tensor; a small one in the calling thread."""
    with Forecast(decoder) as forecast:
        forecast.tensor(place)
        loaded = prepare(decoder, place)
        decoder.run(loaded.tasks)
    return loaded


def gather(
    decoder: Decoder, place: TensorPlace, low: tuple[int, ...], high: tuple[int, ...], empty: Allocate | None = None
) -> Loaded:
    """From ``low`` up to ``high`` along each dimension of a tensor that lies in parts; the rows of the parts that are
    in it are decoded."""
    shape = tuple(h - l for l, h in zip(low, high, strict=True))
    loaded = Loaded(place, shape, (empty or decoder.results.empty)(math.prod(shape) * place.entry.unit.type.itemsize))
    for part in place.parts if loaded.data.size else ():
        offset = part.part.offset
        first = tuple(map(max, low, offset))
        last = tuple(min(h, o + n) for h, o, n in zip(high, offset, part.shape, strict=True))
        if all(f < l for f, l in zip(first, last, strict=True)):
            inside = tuple(slice(f - o, l - o) for f, l, o in zip(first, last, offset, strict=True))
            there = tuple(slice(f - o, l - o) for f, l, o in zip(first, last, low, strict=True))
            loaded.tasks += _block_of(decoder, part, inside, there, loaded)
    return loaded


def _block_of(
    decoder: Decoder, part: TensorPlace, inside: tuple[slice, ...], there: tuple[slice, ...], whole: Loaded
) -> list[Task]:
    """What puts the block ``inside`` of a part to where it belongs in ``whole``, in place of ``there``."""
    rows, inner = inside[0], math.prod(part.shape[1:])
    shape, start = (rows.stop - rows.start, *part.shape[1:]), part.member.start
    row_bytes = inner * part.entry.unit.type.itemsize
    if part.strides is None and _all_of(inside[1:], part.shape[1:]) and _all_of(there[1:], whole.shape[1:]):
        # Whole rows of both: they need not be copied.
        into = whole.data[there[0].start * row_bytes : there[0].stop * row_bytes]
        found = _elements(decoder, part, shape, start + rows.start * inner, start + rows.stop * inner, into)
        if found.data is into:
            return found.tasks

    def copy() -> None:
        if part.strides is None:
            block = _elements(decoder, part, shape, start + rows.start * inner, start + rows.stop * inner)
            index = (slice(None), *inside[1:])
        else:
            block, index = _whole(decoder, part), inside
        for task in block.tasks:
            task()
        whole.numpy()[there] = block.numpy()[index]

    return [copy]


def _all_of(block: tuple[slice, ...], shape: tuple[int, ...]) -> bool:
    return all((b.start, b.stop) == (0, n) for b, n in zip(block, shape, strict=True))


def _elements(
    decoder: Decoder,
    place: TensorPlace,
    shape: tuple[int, ...],
    start: int,
    end: int,
    into: np.ndarray | None = None,
    empty: Allocate | None = None,
) -> Loaded:
    """Elements [start, end) of the unit, as a tensor of ``shape``; in ``into``, if they can be decoded there."""
    unit = place.entry.unit
    if start >= end:
        return Loaded(place, shape, np.empty(0, np.uint8))
    rows, cols = _rectangle(unit.shape, start, end)
    itemsize = unit.type.itemsize
    height, width = rows[1] - rows[0], (cols[1] - cols[0]) * itemsize
    exact = height * width == (end - start) * itemsize
    out = into if into is not None and exact else (empty or decoder.results.empty)(height * width)
    tasks = list(decoder.tasks(place.entry.number, rows, cols, out.reshape(height, width)))
    if exact:
        return Loaded(place, shape, out, tasks)
    skip = (start - rows[0] * unit.shape[1] - cols[0]) * itemsize
    return Loaded(place, shape, out[skip : skip + (end - start) * itemsize], tasks)


def _rectangle(shape: tuple[int, int], start: int, end: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The rows and columns of a unit that hold elements [start, end): whole rows, or part of one."""
    columns = shape[1]
    row0, row1 = start // columns, -(-end // columns)
    if row1 - row0 == 1:
        return (row0, row1), (start - row0 * columns, end - row0 * columns)
    return (row0, row1), (0, columns)


class TensorSlice:
    """A tensor that decodes what it is indexed with; the interface of safetensors' ``get_slice``."""

    def __init__(self, decoder: Decoder, place: TensorPlace, *, framework: str = "pt", device: Any = "cpu") -> None:
        self._decoder, self._place, self._framework, self._device = decoder, place, framework, device

    def get_shape(self) -> list[int]:
        return list(self._place.shape)

    def get_dtype(self) -> str:
        """The dtype's safetensors name, for example ``"BF16"``."""
        return self._place.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self._place.shape

    @property
    def nbytes(self) -> int:
        return self._place.nbytes

    def __getitem__(self, index: Any) -> Any:
        """Rows, and columns where the archive is cut that way, are decoded alone; the rest of the index is applied to
        them."""
        keys = _expand(index, len(self._place.shape))
        if keys is None or self._place.strides is not None:
            return self._finish(load(self._decoder, self._place))[index]
        if all(key == slice(None) for key in keys):
            return self._finish(load(self._decoder, self._place))
        if self._place.parts:
            spans = [_span(key, length) for key, length in zip(keys, self._place.shape, strict=True)]
            low, high = tuple(span[0] for span, _ in spans), tuple(span[1] for span, _ in spans)
            box = gather(self._decoder, self._place, low, high)
            self._decoder.run(self._decoder.counted(box.tasks, box.nbytes))
            return self._finish(box)[tuple(inner for _, inner in spans)]
        rows, first = _span(keys[0], self._place.shape[0])
        if self._is_tiled():
            columns, second = _span(keys[1], self._place.shape[1])
            inner = (first, second, *keys[2:])
            return self._finish(self._block(rows, columns))[inner]
        inner = (first, *keys[1:])
        return self._finish(self._rows(*rows))[inner]

    def _is_tiled(self) -> bool:
        """Is the tensor cut into blocks of columns, so that some of them can be left out?"""
        unit, shape = self._place.entry.unit, self._place.shape
        return len(shape) > 1 and unit.chunks_across > 1 and unit.shape == (shape[0], math.prod(shape[1:]))

    def _rows(self, row0: int, row1: int) -> Loaded:
        start, inner = self._place.member.start, math.prod(self._place.shape[1:])
        shape = (row1 - row0, *self._place.shape[1:])
        first, last = start + row0 * inner, start + row1 * inner
        with Forecast(self._decoder) as forecast:
            forecast.elements(self._place, first, last)
            loaded = _elements(self._decoder, self._place, shape, first, last)
            self._decoder.run(self._decoder.counted(loaded.tasks, loaded.nbytes))
        return loaded

    def _block(self, rows: tuple[int, int], columns: tuple[int, int]) -> Loaded:
        deep, itemsize = math.prod(self._place.shape[2:]), self._place.entry.unit.type.itemsize
        cols = (columns[0] * deep, columns[1] * deep)
        shape = (rows[1] - rows[0], columns[1] - columns[0], *self._place.shape[2:])
        width = (cols[1] - cols[0]) * itemsize
        out = self._decoder.results.empty(shape[0] * width)
        with Forecast(self._decoder) as forecast:
            forecast.rectangle(self._place.entry.number, rows, cols)
            tasks = list(self._decoder.tasks(self._place.entry.number, rows, cols, out.reshape(shape[0], width)))
            self._decoder.run(self._decoder.counted(tasks, len(out)))
        return Loaded(self._place, shape, out)

    def _finish(self, loaded: Loaded) -> Any:
        if self._framework == "np":
            return loaded.numpy()
        tensor = loaded.torch()
        return tensor if str(self._device) == "cpu" else tensor.to(self._device)


def _expand(index: Any, dimensions: int) -> list[Any] | None:
    """``index`` as one slice or integer per dimension; None if it is of another kind (a mask, a list, None)."""
    keys = list(index) if isinstance(index, tuple) else [index]
    if keys.count(Ellipsis) > 1 or any(
        not (isinstance(k, (slice, int)) or k is Ellipsis) or isinstance(k, bool) for k in keys
    ):
        return None
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        keys[at : at + 1] = [slice(None)] * (dimensions - len(keys) + 1)
    keys += [slice(None)] * (dimensions - len(keys))
    return keys if len(keys) == dimensions and dimensions else None


def _span(key: Any, length: int) -> tuple[tuple[int, int], Any]:
    """The contiguous span that ``key`` needs of a dimension, and the index to apply to that span."""
    if isinstance(key, slice):
        start, stop, step = key.indices(length)
        if step < 0:
            raise ValueError("negative steps are not supported, as in torch; flip the result instead")
        return (start, max(start, stop)), slice(None, None, step)
    position = key + length if key < 0 else key
    if not 0 <= position < length:
        raise IndexError(f"index {key} is out of range for a dimension of {length}")
    return (position, position + 1), 0


class LazyState(Mapping[str, TensorSlice]):
    """A state dict whose tensors are decoded when they are indexed. Thread-safe."""

    def __init__(self, decoder: Decoder, catalog: Catalog, names: list[str]) -> None:
        self._decoder, self._catalog, self._names = decoder, catalog, dict.fromkeys(names)

    def __getitem__(self, name: str) -> TensorSlice:
        if name not in self._names:
            raise KeyError(name)
        return TensorSlice(self._decoder, self._catalog.find(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
