"""What a chunk of optimiser state is expected to be: which of the relations that names suggest hold, by what they save.

All in integers and single operations of IEEE 754, so that every machine decides alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from arzstream.codec import optim_fit
from arzstream.codec.base import ChunkContext
from arzstream.codec.cell_classes import sampled_bits
from arzstream.codec.roles import Role
from arzstream.codec.scales import COLUMN_SAMPLE, log2_eighths, rice_parameters
from arzstream.kernels import api, context, delta, optim

__all__ = ["NOTHING", "Choice", "Factors", "Plan", "expectation", "plan", "with_rice"]

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
I64 = NDArray[np.int64]
Factors = tuple[float, float, float]

NOTHING = 255
"""In place of a reference's number."""
PARENT, HALF, MOMENT, SQUARE = range(4)
ORDER = (Role.PARENT, Role.HALF, Role.MOMENT, Role.SQUARE)
"""References in the order in which a payload counts them."""
NONE = np.empty(0, np.uint8)
NO_FACTORS: Factors = (0.0, 0.0, 0.0)
UNCHANGED: Factors = (1.0, 0.0, 0.0)
_FIELD = context.Cut(9, 2, 0, 2, context.SIGN_NONE)
"""Of sizes of differences as the kernels give them: exponent and two bits of mantissa."""
_HALVES = {"BF16": optim.BF16, "F16": optim.F16}
SAMPLE, FIT_SAMPLE = 1 << 15, 1 << 12
"""Elements that it is chosen by, and by which factors are found, about."""
MIDDLE = 28
"""Where in the 64 cells of scales the mean element is put."""
MAX_SCALE = 127
DAMP = 12
"""Scales of rows and columns are at most so many octaves below their mean."""
SCALED_RAW = 17
"""Raw bits of a magnitude in units of a root: six bits of its mantissa are coded."""
FEWEST, KEPT = 20, 5
"""One in so many differences is smaller than what raw bits leave so many bits of."""
ROUNDED = 0.5
"""Halves of which fewer are what elements round to are none."""
SLACK = 256
"""One part in so many is not worth another reference: whoever reads the tensor has to decode that, too, and what it was
coded against in turn."""
SCALES_SLACK = 1024
"""The same for scales, which have to be measured."""
NEVER = 1 << 62
CLEARLY = 256 // 16
"""What a step must save to be looked up, in 1/256 bit."""


class _Held(NamedTuple):
    """Bytes of the references, in their order, none where there is none; the dtype of the halves; their numbers."""

    data: list[U8]
    kind: int
    numbers: tuple[int, ...]

    def rows(self, row_len: int, rows: NDArray[np.intp]) -> _Held:
        return self._replace(data=[_rows(x, row_len * (2 if i == HALF else 4), rows) for i, x in enumerate(self.data)])

    def only(self, *wanted: int) -> _Held:
        data = [x if i in wanted else NONE for i, x in enumerate(self.data)]
        numbers = tuple(n if i in wanted else NOTHING for i, n in enumerate(self.numbers))
        return _Held(data, self.kind if HALF in wanted and len(data[HALF]) else optim.NO_HALVES, numbers)


@dataclasses.dataclass(frozen=True)
class Choice:
    """What elements are expected to be, from which references, with which factors."""

    to: optim.Expectation
    numbers: tuple[int, ...]
    factors: Factors


def expectation(held: Sequence[U8], scaled: bool, factors: Factors, kind: int) -> optim.Expectation:
    """What is expected of elements given the references (in their order), scales apart."""
    parent, halves, moment, square = held
    if scaled:
        return optim.Expectation(square, 1, scaled=True, before=parent, raw=SCALED_RAW)
    if not len(parent):
        return optim.Expectation(optim.widened(halves, kind), 1, halves=halves, kind=kind)
    near = parent
    if factors != UNCHANGED:
        near = optim.optim_predict(parent, factors, moment, square)
    return optim.Expectation(near, 1, halves=halves, kind=kind)


def with_rice(scales: U8) -> tuple[U8, int, int]:
    """Scales, or a map, and how the model stream writes them."""
    return (scales, *rice_parameters(scales)[:2]) if len(scales) else (scales, 0, 0)


def _rows(data: U8, row_bytes: int, rows: NDArray[np.intp]) -> U8:
    """Some rows; of nothing nothing."""
    if not len(data):
        return data
    whole = len(data) // row_bytes
    return data[: whole * row_bytes].reshape(whole, row_bytes)[rows].reshape(-1)


def _gather(ctx: ChunkContext) -> _Held:
    """The references that roles speak of. Only these are decoded."""
    numbers = tuple(ctx.roles.index(role) if role in ctx.roles else NOTHING for role in ORDER)
    data = [np.frombuffer(ctx.references[n], np.uint8) if n != NOTHING else NONE for n in numbers]
    kind = optim.NO_HALVES
    if len(data[HALF]):
        kind = _HALVES[ctx.half]
    return _Held(data, kind, numbers)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The likeliest way to expect elements, and what they take in it, about; made from a sample. :meth:`carried_out`
    looks at all of them."""

    bits: int
    way: _Way
    with_scales: bool
    raw: int
    held: _Held
    row_len: int
    columns: bool

    def carried_out(self, elements: U8) -> Choice:
        used, scaled, factors = self.way
        part = self.held.only(*used)
        to = expectation(part.data, scaled, factors, part.kind)
        to = dataclasses.replace(to, row_len=self.row_len)
        if self.with_scales:
            to = _scaled_to(elements, to, self.row_len, self.columns)
        return Choice(dataclasses.replace(to, raw=self.raw, base=_base(elements, to)), part.numbers, factors)


def plan(elements: U8, ctx: ChunkContext, row_len: int, columns: bool) -> Plan | None:
    """The likeliest way to expect ``elements``, rows of ``row_len`` (``columns`` says if these mean anything)."""
    held = _gather(ctx)
    count = len(elements) // 4
    whole, step = count // row_len, max(1, count // SAMPLE)
    rows = np.arange(0, whole, step if whole >= 4 * step else 1)
    some, of, times = elements, held, 1
    if len(rows) < whole:
        some, of, times = _rows(elements, 4 * row_len, rows), held.rows(row_len, rows), step
    trials: list[_Trial] = []
    for way in _ways(some, of, ctx.role, lambda: min((t.bits // times for t in trials), default=NEVER)):
        trials.append(_Trial.of(some, of, times, row_len, columns, way))
    if not trials:
        return None
    enough = min(trial.bits for trial in trials) * (SLACK + 1) // SLACK
    best = min((t for t in trials if t.bits <= enough), key=lambda trial: (len(trial.way[0]), trial.bits))
    least = best
    if best.to.kind or (best.bits - best.coded) * SCALES_SLACK > best.bits:
        plain = best.without_scales(some, times)
        least = plain if plain.bits <= best.bits * (SCALES_SLACK + 1) // SCALES_SLACK else best
    bits = least.bits * count // (len(some) // 4 * times)
    return Plan(bits, best.way, least is best, least.to.raw, held, row_len, columns)


_Way = tuple[tuple[int, ...], bool, Factors]
"""References, whether scaled, factors."""


class _Trial(NamedTuple):
    """What a way takes on a sample."""

    bits: int
    coded: int
    """Of these, those of elements and not of scales."""
    way: _Way
    to: optim.Expectation

    @classmethod
    def of(cls, some: U8, held: _Held, times: int, row_len: int, columns: bool, way: _Way) -> _Trial:
        used, scaled, factors = way
        part = held.only(*used)
        to = _scaled_to(some, expectation(part.data, scaled, factors, part.kind), row_len, columns)
        to = _with_raw(some, to)
        return cls(*_bits(some, to, times), way, to)

    def without_scales(self, some: U8, times: int) -> _Trial:
        to = dataclasses.replace(self.to, rows=NONE, cols=NONE)
        to = _with_raw(some, dataclasses.replace(to, base=_base(some, to)))
        return _Trial(*_bits(some, to, times), self.way, to)


def _ways(new: U8, held: _Held, role: Role, fewest: Callable[[], int]) -> Iterator[_Way]:
    """(references, scaled, factors) of what may be tried, the best factors of each kind. ``fewest``: bits of the best
    that was tried so far."""
    has = [bool(len(data)) for data in held.data]
    half: tuple[int, ...] = (HALF,) if has[HALF] and _round(new, held) else ()
    if role == Role.MOMENT and has[SQUARE]:
        yield (SQUARE,), True, NO_FACTORS
        if has[PARENT]:
            yield (PARENT, SQUARE), True, NO_FACTORS
    if half:
        yield half, False, NO_FACTORS
    if has[PARENT] and role == Role.SQUARE:
        # What is added is one-sided, so that the nearest factor need not be the best.
        x, p = optim_fit.numbers(_thin(new)), optim_fit.numbers(_thin(held.data[PARENT]))
        for factor in dict.fromkeys(optim_fit.decay(x, p) or [1.0]):
            yield (*half, PARENT), False, (factor, 0.0, 0.0)
    elif has[PARENT]:
        factors, bits = _best_factors(new, held, role, bool(half))
        if bits < fewest():
            yield (*half, PARENT, *((MOMENT, SQUARE) if factors[2] else ())), False, factors


def _thin(data: U8) -> U8:
    """Some elements, evenly spaced."""
    return np.ascontiguousarray(data.view("<u4")[:: max(1, len(data) // 4 // FIT_SAMPLE)]).view(np.uint8)


def _round(new: U8, held: _Held) -> bool:
    """Are the halves what elements round to?"""
    part = held.only(HALF)
    to = expectation(part.data, False, NO_FACTORS, part.kind)
    symbols = optim.optim_count(new, dataclasses.replace(to, row_len=max(1, len(new) // 4)))[0]
    return bool(np.count_nonzero(symbols) >= ROUNDED * len(symbols))


def _best_factors(new: U8, held: _Held, role: Role, half: bool) -> tuple[Factors, int]:
    """The factors with which the parent, and steps of Adam, come nearest; and bits that differences then take, their
    directions and octaves apart."""
    few, of = _thin(new), [_thin(data) if i != HALF else data for i, data in enumerate(held.data)]
    x, p = optim_fit.numbers(few), optim_fit.numbers(of[PARENT])
    found: list[Factors] = []
    if role == Role.MOMENT:
        found = [(factor, 0.0, 0.0) for factor in optim_fit.decay(x, p)]
    elif len(of[MOMENT]) and len(of[SQUARE]):
        step_of = optim_fit.step(optim_fit.numbers(of[MOMENT]), optim_fit.numbers(of[SQUARE]))
        found = [(*factors, optim_fit.EPSILON) for factors in optim_fit.step_factors(x, p, step_of)]
    most = 32 if not half else 16 if held.kind == optim.BF16 else 13
    best, least = UNCHANGED, optim_fit.log_cost(few, of[PARENT], most) - CLEARLY * len(x)
    for factors in found:
        steps = of[MOMENT : SQUARE + 1] if factors[2] else [NONE, NONE]
        cost = optim_fit.log_cost(few, optim.optim_predict(of[PARENT], factors, *steps), most)
        if cost < least:
            best, least = factors, cost
    return best, least * len(new) // len(few) >> 8


# ---- scales


def _scaled_to(elements: U8, to: optim.Expectation, row_len: int, columns: bool) -> optim.Expectation:
    """With scales of rows and columns."""
    if to.scaled:
        fields = optim.optim_ratios(elements, to.expected)
    else:
        fields = delta.delta_fields(elements, to.expected, delta.Elements(4, 8, 23))
    rows, cols = _measure(fields, row_len, columns, 0 if to.scaled else 1)
    to = dataclasses.replace(to, row_len=row_len, rows=rows, cols=cols)
    return dataclasses.replace(to, base=_base(elements, to))


def _base(elements: U8, to: optim.Expectation) -> int:
    """What puts the mean element in the middle."""
    scales = sum(int(side.sum(dtype=np.int64)) // len(side) for side in (to.rows, to.cols) if len(side))
    step = max(1, len(elements) // 4 // SAMPLE)
    q = to.expected.view("<u4")[::step].astype(np.int64)
    if to.scaled:
        size = elements.view("<u4")[::step].astype(np.int64) & 0x7FFFFFFF
        both = (size > 0) & (q > 0)
        if not both.any():
            return 0
        mean = int((size - (q >> 1))[both].sum()) // int(np.count_nonzero(both)) >> 20
        return min(max(mean - scales, -4096), 4095)
    mean = 4 * int(np.maximum(q >> 23 & 255, 1).sum()) // len(q)
    return min(max(MIDDLE + mean - scales, -4096), 4095)


def _logs(sums: NDArray[np.uint64]) -> I64:
    """log2 of each sum, damped, in 1/8 octave."""
    mean = int(sums.sum(dtype=np.float64)) // len(sums)
    return log2_eighths(np.maximum(sums, np.uint64(max(1, mean >> DAMP))))


def _measure(fields: U16, row_len: int, columns: bool, shift: int) -> tuple[U8, U8]:
    """Logarithms of the scales of rows, and of columns where these mean anything, from 0 on, in 2^shift eighths of an
    octave."""
    highest = int(fields.max()) >> _FIELD.top
    sums = context.row_sums(fields, _FIELD, row_len, highest)
    tail = len(fields) % row_len
    if tail:
        sums[-1] = int(sums[-1]) * row_len // tail
    logs = _logs(sums)
    rows = _bytes(logs, shift)
    whole = len(fields) // row_len
    if not columns or not whole:
        return rows, NONE
    adjust = np.maximum((logs - logs.max() << _FIELD.top) >> 3, -(1 << 14)).astype(np.int16)
    step = max(1, whole // COLUMN_SAMPLE)
    some = np.ascontiguousarray(fields[: whole * row_len].reshape(whole, row_len)[::step]).reshape(-1)
    sums = context.col_sums(some, _FIELD, row_len, highest, np.ascontiguousarray(adjust[:whole][::step]))
    return rows, _bytes(_logs(sums), shift)


def _bytes(logs: I64, shift: int) -> U8:
    scales: U8 = np.minimum(logs - logs.min() + (1 << shift >> 1) >> shift, MAX_SCALE).astype(np.uint8)
    return scales


# ---- costs


def _with_raw(elements: U8, to: optim.Expectation) -> optim.Expectation:
    """With as many raw bits as hardly any difference is small enough to miss."""
    if to.scaled:
        return to
    symbols = optim.optim_count(elements, dataclasses.replace(to, raw=0))[0]
    occurs = api.histogram(symbols)
    lengths = np.where(np.arange(256) > 0, optim.raw_lengths(False, 0), 0)
    counts = np.bincount(lengths, occurs)
    raw = int(np.searchsorted(np.cumsum(counts), len(symbols) // FEWEST, side="right")) + optim.TOP + 1 - KEPT
    return dataclasses.replace(to, raw=min(max(0, raw), optim.MAX_RAW))


def _bits(elements: U8, to: optim.Expectation, times: int) -> tuple[int, int]:
    """What so many times these elements take, about, with their scales and without; columns are as many."""
    symbols, cells, _ = optim.optim_count(elements, to)
    raw = api.histogram(symbols).astype(np.int64) @ optim.raw_lengths(to.scaled, to.raw)
    coded = bits = sampled_bits(symbols, cells, times) + times * int(raw)
    for side, repeated in ((to.rows, times), (to.cols, 1)):
        bits += repeated * rice_parameters(side)[2] if len(side) else 0
    return bits, coded
