"""Cases for emulated/driver.cpp of codecs 8 and 9, made by the NumPy reference: what each kernel is given and gives."""

from __future__ import annotations

import random
import struct

import numpy as np

from arzstream.kernels import api, context, delta, optim

NONE = np.empty(0, np.uint8)
LOG_SEGMENT, ROW_LEN, CLASSES = 10, 40, 3
COUNTS = [1, 3, 7, 8, 9, 31, 33, 63, 65, 1023, 1024, 1025, 2049, 3000]


def packed(codec: int, numbers: list[int], arrays: list[np.ndarray]) -> bytes:
    """A case as the driver reads it."""
    parts = [struct.pack(f"<3I{len(numbers)}i", codec, len(numbers), len(arrays), *numbers)]
    for array in arrays:
        parts += [struct.pack("<I", array.nbytes), array.tobytes()]
    return b"".join(parts)


def damaged(payload: np.ndarray, source: random.Random) -> np.ndarray:
    """As it is, mostly; or with a bit flipped, or cut."""
    choice, bad = source.random(), payload.copy()
    if choice < 0.3:
        bad[source.randrange(len(bad))] ^= 1 << source.randrange(8)
    return bad[: source.randrange(len(bad))] if choice > 0.9 else bad


def scales(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Of rows and columns; one or the other may be missing."""
    rows, cols = (rng.integers(0, 20, n, np.uint8) for n in (-(-count // ROW_LEN), min(ROW_LEN, count)))
    return (rows if rng.random() < 0.8 else NONE), (cols if rng.random() < 0.8 else NONE)


def tables(
    symbols: np.ndarray, classes: np.ndarray, exists: np.ndarray, all_have: bool, even: bool = False
) -> np.ndarray:
    """Frequencies about as symbols occur; some that are rare have none, unless all must have one."""
    freqs = np.zeros((CLASSES, 256), np.int64)
    for k, table in enumerate(freqs):
        counts = np.bincount(symbols[classes == k], minlength=256) * exists
        table[...] = counts * 3500 // max(1, counts.sum()) + (exists if all_have else 0)
        place = int(table.argmax()) if table.any() else 1
        if even:
            table[...] &= ~1
        table[place] += 4096 - table.sum()
        if table[place] == 4096:
            table[[place, place ^ 2]] = 4095 - even, 1 + even
    return freqs.astype(np.uint16)


def delta_case(kind: delta.Elements, count: int, references: int, top: int, source: random.Random) -> bytes:
    rng = np.random.default_rng(source.getrandbits(32))
    made = [rng.integers(0, 256, count * kind.itemsize, np.uint8)]
    spread = source.choice([0.5, 20.0, 1e4])
    for _ in range(references):
        values = made[-1].view(f"<u{kind.itemsize}")
        moved = values + np.rint(rng.normal(0, spread, count)).astype(np.int64).astype(values.dtype)
        moved[rng.random(count) < 0.02] ^= values.dtype.type(1 << 8 * kind.itemsize - 1)
        made.append(moved.view(np.uint8))
    *known, data = made
    known.reverse()
    rows, cols = scales(count, rng)
    rule = delta.Rule(ROW_LEN, rows, cols, int(rng.integers(-100, 600)), source.choice([-3, 2]) * (references > 1))
    symbols, cells = delta.delta_cells(data, known, kind, top, rule)
    class_of = rng.integers(0, CLASSES, 1 << delta.cell_bits(references), np.uint8)
    exists = (np.arange(256) > 0) & (np.arange(256) < delta.symbol_limit(kind.itemsize, top))
    freqs = tables(symbols, class_of[cells], exists, False, even=source.random() < 0.5)
    coded = symbols.copy()
    found = delta.delta_classes(cells, coded, class_of, freqs, count)
    assert found is not None
    per_segment = source.choice([256, 1024])
    streams, symbol_bytes = context.rans_ctx_encode(coded, found[0], per_segment, freqs)
    octaves = np.maximum((coded.astype(np.int64) >> 1 >> top) - 1, 0)
    raw, raw_bytes = delta.delta_raw(data, known[0], coded, kind, top, per_segment, int(octaves.sum()))
    slots, halved = delta.rans_tables(freqs)
    payload, out = damaged(np.concatenate([streams, raw]), source), np.empty_like(data)
    status = api.kernels().delta_decode(
        payload, known, *kind.arguments, top, per_segment, *rule.arguments, class_of, slots, halved, 0, len(streams),
        symbol_bytes, raw_bytes, out,
    )  # fmt: skip
    numbers = [*kind.arguments, top, per_segment, ROW_LEN, rule.base, rule.step_base, references, halved, status]
    arrays = [
        *(data, *known, rows, cols, class_of, freqs, freqs.argmax(axis=1).astype(np.uint8), slots),
        *(delta.delta_fields(data, known[0], kind), symbols, cells, coded, *found),
        *(streams, symbol_bytes, raw, raw_bytes, payload, out),
    ]
    return packed(8, numbers, arrays)


def delta_cases(source: random.Random) -> list[bytes]:
    kinds = [
        *(delta.Elements(2, 8, 7), delta.Elements(2, 5, 10), delta.Elements(4, 8, 23), delta.Elements(1, 4, 3)),
        *(delta.Elements(1), delta.Elements(2), delta.Elements(4)),
    ]
    made = []
    for trial in range(84):
        kind, top = kinds[trial % 7], source.choice([0, 2, 3])
        while delta.symbol_limit(kind.itemsize, top) > 256:
            top -= 1
        made.append(delta_case(kind, COUNTS[trial // 7 % 14], 1 + trial % 3, top, source))
    return made


def special(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bytes of binary32 numbers, a few of them any pattern at all, or one that arithmetic treats in ways of its own."""
    bits = values.astype("<f4").view("<u4").copy()
    odd = np.array([0, 1 << 31, 1, 0x7FFFFF, 0x800000, 0x7F800000, 0xFF800000, 0x7FC00001, 0x7F7FFFFF], np.uint32)
    places = rng.random(len(bits))
    bits[places < 0.05] = rng.choice(odd, int((places < 0.05).sum()))
    bits[places > 0.97] = rng.integers(0, 1 << 32, int((places > 0.97).sum()), dtype=np.uint32)
    return bits.view(np.uint8)


def halves_of(data: np.ndarray, kind: int, rng: np.random.Generator) -> np.ndarray:
    """What most of ``data`` rounds to."""
    if kind == optim.NO_HALVES:
        return NONE
    if kind == optim.F16:
        with np.errstate(over="ignore"):
            halves = data.view("<f4").astype("<f2").view("<u2")
    else:
        halves = (data.view("<u4") + np.uint32(0x8000) >> np.uint32(16)).astype("<u2")
    wrong = rng.random(len(halves)) < 0.02
    halves[wrong] = rng.integers(0, 1 << 16, int(wrong.sum()))
    return halves.view(np.uint8)


def optim_case(kind: int, scaled: bool, count: int, source: random.Random) -> bytes:
    rng = np.random.default_rng(source.getrandbits(32))
    weights, noise = rng.normal(0, 0.02, count), rng.normal(0, source.choice([1e-7, 1e-4]), count)
    parent, data = special(weights, rng), special(weights * 0.999 + noise, rng)
    moment, square = special(noise * 3, rng), special(noise * noise, rng)
    if source.random() < 0.3:
        moment = square = NONE
    factors = (source.choice([0.999, -(2.0**60)]), source.choice([-1e-4, 2.0**-60]) if len(moment) else 0.0, 1e-8)
    if len(moment) and source.random() < 0.3:  # terms that nearly cancel, which shows how each is rounded
        moment, square, factors = parent, special(np.ones(count), rng), (0.7, -0.7, 1e-12)
    predicted = optim.optim_predict(parent, factors, moment, square)
    before = parent if scaled and source.random() < 0.7 else NONE
    rows, cols = scales(count, rng)
    expected = special(weights * weights, rng) if scaled else predicted
    base, raw = (
        int(rng.integers(-20, 40)) if scaled else int(rng.integers(400, 500)),
        17 if scaled else source.randrange(24),
    )
    halves = halves_of(data, kind, rng)
    rule = (expected, before, halves, scaled, raw, kind, base, ROW_LEN, rows, cols)
    symbols, cells = np.empty(count, np.uint8), np.empty(count, np.uint16)
    api.kernels().optim_count(data, *rule, symbols, cells, np.empty(256 * optim.CELLS, np.uint32))
    class_of = rng.integers(0, CLASSES, optim.CELLS, np.uint8)
    freqs = tables(symbols, class_of[cells], optim.symbol_exists(scaled, raw), True)
    streams, symbol_bytes = context.rans_ctx_encode(symbols, class_of[cells], 1 << LOG_SEGMENT, freqs)
    raw_bytes = np.empty(-(-count >> LOG_SEGMENT), np.uint32)
    room = np.empty(int(optim.raw_lengths(scaled, raw)[symbols].sum()) // 8 + len(raw_bytes), np.uint8)
    bits = room[: api.kernels().optim_raw(data, symbols, *rule, LOG_SEGMENT, room, raw_bytes)]
    payload, out = damaged(np.concatenate([streams, bits]), source), np.empty_like(data)
    status = api.kernels().optim_decode(
        payload, *rule, LOG_SEGMENT, class_of, freqs.reshape(-1), 0, len(streams), symbol_bytes, raw_bytes, out
    )
    arrays = [
        *(parent, moment, square, np.array(factors), predicted, data, expected, before, halves, rows, cols),
        *(optim.optim_ratios(data, expected), symbols, cells, class_of, class_of[cells], freqs),
        *(streams, symbol_bytes, bits, raw_bytes, payload, out),
    ]
    return packed(9, [int(scaled), raw, kind, base, ROW_LEN, LOG_SEGMENT, status], arrays)


def optim_cases(source: random.Random) -> list[bytes]:
    kinds = [(optim.NO_HALVES, False), (optim.BF16, False), (optim.F16, False), (optim.NO_HALVES, True)]
    return [optim_case(*kinds[trial % 4], COUNTS[trial // 4 % 14], source) for trial in range(112)]
