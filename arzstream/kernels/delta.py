"""The kernels of differences to references as the codecs see them: arguments are checked here. See ``api.py``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from arzstream.errors import CorruptError
from arzstream.kernels.api import SLOTS, check, kernels

__all__ = [
    "EARLIER_BITS",
    "MANTISSA_BITS",
    "MAX_REFERENCES",
    "SCALE_BITS",
    "STEP_BITS",
    "UNCHANGED",
    "Elements",
    "Rule",
    "Slots",
    "cell_bits",
    "delta_cells",
    "delta_classes",
    "delta_decode",
    "delta_fields",
    "delta_raw",
    "rans_tables",
    "symbol_limit",
]

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]

SCALE_BITS, MANTISSA_BITS, STEP_BITS, EARLIER_BITS = 6, 3, 4, 3
"""Bits of a cell, lowest first: expected size of the change, the parent's mantissa, the change before, the one before
that."""
MAX_REFERENCES = 3
UNCHANGED = 1
"""The symbol of what did not change."""


@dataclasses.dataclass(frozen=True)
class Elements:
    """What elements are: bytes, and bits of exponent and mantissa below a sign; of integers none."""

    itemsize: int
    exponent_bits: int = 0
    mantissa_bits: int = 0

    @property
    def arguments(self) -> tuple[int, int, int]:
        return self.itemsize, self.exponent_bits, self.mantissa_bits


@dataclasses.dataclass(frozen=True)
class Rule:
    """What cells are made with: rows of ``row_len``, logarithms of the scales of changes of rows and columns (empty
    where there are none), what is added to their sum, and what is added to the size of the changes before."""

    row_len: int
    rows: U8
    cols: U8
    base: int
    step_base: int

    @property
    def arguments(self) -> tuple[int, U8, U8, int, int]:
        return self.row_len, self.rows, self.cols, self.base, self.step_base


class Slots(NamedTuple):
    """What symbols are looked up in. ``halved``: an entry is for two slots."""

    entries: U32
    halved: bool


def symbol_limit(itemsize: int, top: int) -> int:
    """Symbols there are, for ``top`` bits below the leading one."""
    return (8 * itemsize - top + 1) << (top + 1)


def cell_bits(references: int) -> int:
    """Bits of a cell, with so many references."""
    return SCALE_BITS + MANTISSA_BITS + STEP_BITS * (references > 1) + EARLIER_BITS * (references > 2)


def delta_fields(data: U8, parent: U8, kind: Elements) -> U16:
    """Sizes of changes: the exponent and two bits of mantissa of their binary32; 0 of what is no number. Types whose
    bias is not half their exponents have all of them off by the same power of two."""
    fields = np.empty(len(data) // kind.itemsize, np.uint16)
    kernels().delta_fields(data, parent, *kind.arguments, fields)
    return fields


def delta_cells(data: U8, references: Sequence[U8], kind: Elements, top: int, rule: Rule) -> tuple[U8, U16]:
    """(symbols, cells) of all elements."""
    count = len(data) // kind.itemsize
    symbols, cells = np.empty(count, np.uint8), np.empty(count, np.uint16)
    kernels().delta_cells(data, list(references), *kind.arguments, top, *rule.arguments, symbols, cells)
    return symbols, cells


def delta_classes(cells: U16, symbols: U8, class_of: U8, freqs: U16, most: int) -> tuple[U8, U32] | None:
    """(classes of all elements, the numbers of those whose symbol has no frequency there), None if these are more than
    ``most``. Their symbols become the likeliest of their class, in place."""
    classes, exceptions = np.empty(len(cells), np.uint8), np.empty(most, np.uint32)
    stand_ins = freqs.argmax(axis=1).astype(np.uint8)
    found = kernels().delta_classes(cells, class_of, freqs.reshape(-1), stand_ins, symbols, classes, exceptions)
    return (classes, exceptions[:found]) if found <= most else None


def delta_raw(
    data: U8, parent: U8, symbols: U8, kind: Elements, top: int, per_segment: int, raw_bits: int
) -> tuple[U8, U32]:
    """(raw streams of all segments, bytes of each). ``raw_bits``: how many there are."""
    raw_bytes = np.empty(-(-len(symbols) // per_segment), np.uint32)
    # Room for a word more, which is how bits are written where there is.
    out = np.empty(raw_bits // 8 + len(raw_bytes) + 8, np.uint8)
    written = kernels().delta_raw(data, parent, symbols, *kind.arguments, top, per_segment, out, raw_bytes)
    return out[:written], raw_bytes


def rans_tables(freqs: U16) -> Slots:
    """What :func:`delta_decode` looks symbols up in; ``freqs``: shape (classes, 256). Raises CorruptError unless each
    class's sum to 4096, none as much.

    Where all are even there is an entry for two slots: half the memory, which a processor's cache then holds."""
    halved = not (freqs & 1).any()
    slots = np.empty((SLOTS >> halved) * len(freqs), np.uint32)
    if not kernels().rans_tables(np.ascontiguousarray(freqs).reshape(-1), halved, slots):
        raise CorruptError("a frequency table has a wrong sum; the chunk is damaged")
    return Slots(slots, halved)


def delta_decode(
    payload: U8,
    references: Sequence[U8],
    kind: Elements,
    top: int,
    per_segment: int,
    rule: Rule,
    class_of: U8,
    slots: Slots,
    places: tuple[int, int],
    symbol_bytes: U32,
    raw_bytes: U32,
    out: U8,
) -> None:
    """Decode the symbols and raw bits of a chunk of codec ``delta_ctx`` into ``out``.

    ``class_of``: of each cell. ``slots``: of :func:`rans_tables`, in which only symbols that exist have slots.
    ``places`` are the offsets of the symbol and raw streams. Raises CorruptError.
    """
    settings = (*kind.arguments, top, per_segment, *rule.arguments)
    streams = (*places, symbol_bytes, raw_bytes)
    check(kernels().delta_decode(payload, list(references), *settings, class_of, *slots, *streams, out))
