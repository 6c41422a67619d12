"""The model of codec 8: from what is known of an element to the table that its change is coded with.

A decision tree over small integers gives each cell (expected size of the change, the parent's mantissa, the changes
before) a class, and each class has a table. Integer thresholds give the same class on every machine, and the tree folds
into one look-up. A model is what a MODEL frame holds, or stands in a chunk that has its own.
"""

from __future__ import annotations

import dataclasses
import functools
import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from arzstream.errors import CorruptError
from arzstream.kernels import context, delta

__all__ = ["INPUTS", "MAX_CLASSES", "Leaf", "Model", "Node", "Split", "nearest", "parse_model", "shape_of"]

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]

_HEADER = struct.Struct("<BBBbHH")
INPUTS = (6, 3, 3, 1, 3)
"""Bits of what a tree asks for: expected size of the change, the parent's mantissa; size of the change before, whether
it led towards zero; size of the one before that. In a cell the lowest first."""
_KNOWN = (0, 2, 4, 5)
"""How many of these are known, by the number of references."""
_INPUT_BITS = 3
MAX_CLASSES = 64
MAX_TOP = 4


@dataclasses.dataclass(frozen=True)
class Leaf:
    label: int


@dataclasses.dataclass(frozen=True)
class Split:
    """Cells whose input number ``feature`` is above ``threshold`` belong to ``above``."""

    feature: int
    threshold: int
    below: Node
    above: Node


Node = Leaf | Split


def shape_of(references: int) -> tuple[int, ...]:
    """The inputs of a cell as an array has them, the last first: sizes of the dimensions."""
    return tuple(1 << bits for bits in reversed(INPUTS[: _KNOWN[references]]))


@dataclasses.dataclass(frozen=True)
class Model:
    """``origin``: where among expected sizes a change of one unit in the last place is, for encoders. ``class_of``: of
    each cell. ``freqs``: shape (classes, 256), uint16. ``stored``: as bytes."""

    references: int
    top: int
    origin: int
    class_of: U8
    freqs: U16
    stored: bytes

    @classmethod
    def of(cls, references: int, top: int, origin: int, tree: Node, freqs: U16) -> Model:
        bits = _TreeWriter(len(freqs))
        bits.put(tree)
        grown = bits.finish()
        empty = (np.empty(0, np.uint8), 0, 0)
        tables = context.ctx_model_encode(empty, empty, freqs, top, 2, 1)
        head = _HEADER.pack(references, top, len(freqs), origin, len(grown), 0)
        return cls(references, top, origin, unfold(tree, references), freqs, head + grown + tables)

    @functools.cached_property
    def slots(self) -> delta.Slots:
        """What symbols are looked up in."""
        return delta.rans_tables(self.freqs)

    def suits(self, kind: delta.Elements, references: int) -> bool:
        """Can elements with so many references be coded with it?"""
        return self.references <= references and self._symbols <= delta.symbol_limit(kind.itemsize, self.top) <= 256

    @functools.cached_property
    def _symbols(self) -> int:
        """The highest symbol of any class, and one more."""
        return int(np.flatnonzero(self.freqs.any(axis=0))[-1]) + 1


def unfold(tree: Node, references: int) -> U8:
    """The class of each cell."""
    shape = shape_of(references)
    classes = np.zeros(shape, np.uint8)
    todo: list[tuple[Node, tuple[slice, ...]]] = [(tree, tuple(slice(0, n) for n in shape))]
    while todo:
        node, box = todo.pop()
        if isinstance(node, Leaf):
            classes[box] = node.label
            continue
        axis = len(shape) - 1 - node.feature
        middle = node.threshold + 1
        below, above = slice(box[axis].start, middle), slice(middle, box[axis].stop)
        todo.append((node.below, (*box[:axis], below, *box[axis + 1 :])))
        todo.append((node.above, (*box[:axis], above, *box[axis + 1 :])))
    return classes.reshape(-1)


class _TreeWriter:
    def __init__(self, classes: int) -> None:
        self._label_bits, self._bits, self._at = (classes - 1).bit_length(), 0, 0

    def _put(self, value: int, bits: int) -> None:
        self._bits |= value << self._at
        self._at += bits

    def put(self, tree: Node) -> None:
        todo = [tree]
        while todo:
            node = todo.pop()
            if isinstance(node, Leaf):
                self._put(node.label << 1, 1 + self._label_bits)
                continue
            self._put(1 | node.feature << 1, 1 + _INPUT_BITS)
            if INPUTS[node.feature] > 1:
                self._put(node.threshold, INPUTS[node.feature])
            todo += [node.above, node.below]

    def finish(self) -> bytes:
        return self._bits.to_bytes(-(-self._at // 8), "little")


class _TreeReader:
    def __init__(self, data: bytes) -> None:
        self._bits: list[int] = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").tolist()
        self._at = 0

    def take(self, bits: int) -> int:
        end = self._at + bits
        _require(end <= len(self._bits), "a tree that ends early")
        value = 0
        for bit in reversed(self._bits[self._at : end]):
            value = value << 1 | bit
        self._at = end
        return value

    def clean_end(self) -> bool:
        return len(self._bits) - self._at < 8 and not any(self._bits[self._at :])


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise CorruptError(f"a model of delta_ctx has {what}; it is damaged")


def _read_classes(data: bytes, references: int, classes: int) -> U8:
    """The class of each cell, from a stored tree."""
    shape, known = shape_of(references), _KNOWN[references]
    bits, label_bits = _TreeReader(data), (classes - 1).bit_length()
    found = np.zeros(shape, np.uint8)
    todo: list[tuple[slice, ...]] = [tuple(slice(0, n) for n in shape)]
    while todo:
        box = todo.pop()
        if not bits.take(1):
            label = bits.take(label_bits)
            _require(label < classes, "a class that does not exist")
            found[box] = label
            continue
        feature = bits.take(_INPUT_BITS)
        _require(feature < known, "an input that does not exist")
        threshold = bits.take(INPUTS[feature]) if INPUTS[feature] > 1 else 0
        axis = len(shape) - 1 - feature
        side = box[axis]
        _require(side.start <= threshold < side.stop - 1, "a split that splits nothing")
        todo.append((*box[:axis], slice(threshold + 1, side.stop), *box[axis + 1 :]))
        todo.append((*box[:axis], slice(side.start, threshold + 1), *box[axis + 1 :]))
    _require(bits.clean_end(), "bits behind its tree")
    return found.reshape(-1)


@functools.lru_cache(maxsize=16)
def parse_model(data: bytes) -> Model:
    """The model in ``data``, a MODEL frame's payload or part of a chunk. Raises CorruptError."""
    _require(len(data) >= _HEADER.size, "a wrong length")
    references, top, classes, origin, tree_bytes, zero = _HEADER.unpack_from(data)
    _require(
        1 <= references <= delta.MAX_REFERENCES
        and top <= MAX_TOP
        and 1 <= classes <= MAX_CLASSES
        and zero == 0
        and _HEADER.size + tree_bytes <= len(data),
        "a bad header",
    )
    end = _HEADER.size + tree_bytes
    class_of = _read_classes(data[_HEADER.size : end], references, classes)
    _, _, freqs = context.ctx_model_decode(np.frombuffer(data, np.uint8, offset=end), 0, 0, classes, top, 2, 1)
    _require(not freqs[:, 0].any(), "a symbol that does not exist")
    _require(bool(freqs.any(axis=1).all()), "a class without a table")
    class_of.flags.writeable = freqs.flags.writeable = False
    return Model(references, top, origin, class_of, freqs, data)


def nearest(models: Sequence[bytes], kind: delta.Elements, references: int) -> tuple[int, Model] | None:
    """(number from 1 on, model) of those that suit ``kind``, the one that takes the most references."""
    found = None
    for number, data in enumerate(models, 1):
        model = parse_model(data)
        if model.suits(kind, references) and (found is None or model.references > found[1].references):
            found = number, model
    return found
