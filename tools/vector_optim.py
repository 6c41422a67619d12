"""Codec 9, optim_ctx: a second encoder for the vectors, and the vectors of it, good and bad."""

# ruff: noqa: E501  (one vector a line)
from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from vector_assembler import Assembler
from vector_bad import bad, on_first, patched, put
from vector_context import Bits, encode_symbols, frequencies
from vector_good import done, noise, vector, weights

OPTIM_CTX = 9
NEAR, SCALED, HALVES = range(3)
NAMES = ("parent", "half", "moment", "square")
ABSENT = 255


@dataclasses.dataclass
class OptimCtx:
    """The parts of a payload of codec 9, to be bent before :meth:`payload` joins them."""

    mode: int
    raw: int
    log_segment: int
    sides: int
    kind: int
    classes: int
    numbers: list[int]
    base: int
    row: int
    factors: list[float]
    scales: bytes
    model: bytes
    symbols: list[bytes]
    raws: list[bytes]
    padding: bytes | None = None
    scales_size: int | None = None
    model_size: int | None = None
    tail: bytes = b""

    def payload(self) -> bytes:
        sizes = (
            len(self.scales) if self.scales_size is None else self.scales_size,
            len(self.model) if self.model_size is None else self.model_size,
        )
        head = struct.pack(
            "<6B4BhIII3d",
            self.mode,
            self.raw,
            self.log_segment,
            self.sides,
            self.kind,
            self.classes,
            *self.numbers,
            self.base,
            self.row,
            *sizes,
            *self.factors,
        )
        head += self.scales + self.model
        head += bytes(-len(head) % 8) if self.padding is None else self.padding
        table = b"".join(struct.pack("<II", len(s), len(r)) for s, r in zip(self.symbols, self.raws, strict=True))
        return head + table + b"".join([*self.symbols, *self.raws]) + self.tail


def words(data: bytes, size: int = 4) -> list[int]:
    return [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)]


def number(bits: int) -> float:
    exponent = bits >> 23 & 255
    return float(struct.unpack("<f", struct.pack("<I", bits))[0]) if 0 < exponent < 255 else 0.0


def in_order(bits: int) -> int:
    """As a signed integer in the order of the floats."""
    return bits if bits < 1 << 31 else (bits ^ 0x7FFFFFFF) - (1 << 32)


def step(p: int, m: int, v: int, f: float, g: float, epsilon: float) -> int:
    x = f * number(p)
    if epsilon:
        x = x + g * (number(m) / (math.sqrt(0.0 if v >> 31 else number(v)) + epsilon))
    if abs(x) >= 2.0**127:
        return p
    return int(struct.unpack("<I", struct.pack("<f", x))[0]) if abs(x) >= 2.0**-126 else 0


def token(part: int) -> tuple[int, int]:
    """(symbol, raw bits behind the low ones)."""
    size = abs(part)
    octave = max(0, size.bit_length() - 3)
    return (2 * (4 * octave + (size >> octave)) + (part < 0) if size else 1), octave


def optim(
    data: bytes,
    references: dict[str, bytes],
    *,
    mode: int = NEAR,
    raw: int = 0,
    kind: int = 0,
    factors: Sequence[float] = (1.0, 0.0, 0.0),
    rows: Sequence[int] = (),
    cols: Sequence[int] = (),
    row: int = 25,
    base: int = 520,
    classes: int = 3,
    log_segment: int = 10,
    centre: int = 3,
    exceptions: Sequence[int] = (),
) -> OptimCtx:
    """Code ``data``. ``exceptions`` are coded so where they need not be; the class of cell c is c mod ``classes``."""
    values, n = words(data), len(data) // 4
    held = {name: words(r, 2 if name == "half" else 4) for name, r in references.items()}
    symbols, cells, raws = [], [], []
    for i, v in enumerate(values):
        scale = (rows[i // row] if rows else 0) + (cols[i % row] if cols else 0) + base
        given = {name: of[i] for name, of in held.items()}
        bits = Bits()
        if mode == SCALED:
            square, p = given["square"], given.get("parent", 0)
            q, size = (square // 2 + (scale << 20)) % 2**32, p % 2**31
            apart = (size - q + 2**31) % 2**32 - 2**31
            cells.append(64 * (max(0, min((apart >> 22) + 13, 15)) if size else 0) + (square >> 21) % 8)
            d = (v % 2**31 - q + 2**31) % 2**32 - 2**31
            y, octave = token(d >> raw)
            y |= (v >> 31 ^ p >> 31) << 7
            escaped = v == 0
        else:
            width, low, place = 32, 0, 0
            if kind:
                h = given["half"]
                wide = h << 16 if kind == 1 else (h >> 15 << 31) | ((h & 0x7FFF) << 13) + (112 << 23)
                width = 16 if kind == 1 else 13 if 0 < (h >> 10 & 31) < 31 else 32
                place = 15
            q = (
                wide
                if mode == HALVES
                else step(given["parent"], given.get("moment", 0), given.get("square", 0), *factors)
                if tuple(factors) != (1.0, 0.0, 0.0)
                else given["parent"]
            )
            c = in_order(q)
            if width < 32:
                low = in_order(wide) - (1 << width - 1)
                c = max(low, min(c, low + (1 << width) - 1))
                place = 15 * (c - low) >> width
            cells.append(64 * place + max(0, min(scale - 4 * max(q >> 23 & 255, 1), 63)))
            half = 1 << width - 1
            d = (in_order(v) - c + half) % (2 * half) - half
            escaped = (in_order(v) - low) % 2**32 >= 1 << width or i in exceptions
            y, octave = token(d >> raw)
        if escaped:
            y = 0
            bits.number(v, 32 if mode != SCALED else 0)
        else:
            bits.number(d, raw)
            bits.number(abs(d >> raw), octave)
        symbols.append(y)
        raws.append(bits.digits)
    class_of = [cell % classes for cell in cells]
    tables = [frequencies([y for y, c in zip(symbols, class_of, strict=True) if c == k]) for k in range(classes)]
    scales, model = Bits(), Bits()
    for side in (rows, cols):
        if side:
            scales.scales(side, centre, 1)
    entries = [cell % classes for cell in range(1024)]
    model.scales([(now - before + 128) % 256 for before, now in zip([0, *entries], entries, strict=False)], 128, 1)
    for table in tables:
        model.table(table, 2, 2, 1)
    names = [list(references).index(name) if name in references else ABSENT for name in NAMES]
    parts = OptimCtx(
        mode,
        raw,
        log_segment,
        bool(rows) | bool(cols) << 1,
        kind,
        classes,
        names,
        base,
        row,
        list(factors) if mode == NEAR else [0.0] * 3,
        scales.bytes(),
        model.bytes(),
        [],
        [],
    )
    for first in range(0, n, 1 << log_segment):
        here = slice(first, first + (1 << log_segment))
        parts.symbols.append(encode_symbols(symbols[here], class_of[here], tables))
        stream = Bits()
        stream.digits = [digit for digits in raws[here] for digit in digits]
        parts.raws.append(stream.bytes())
    return parts


# ---- tensors that belong together

COUNT = 75


def halved(data: bytes) -> bytes:
    """bfloat16, rounded to nearest, ties to even."""
    return b"".join(struct.pack("<H", v + 0x7FFF + (v >> 16 & 1) >> 16) for v in words(data))


def moved(data: bytes, bits: int, seed: int) -> bytes:
    """Numbers whose integers are up to 2^bits larger."""
    steps = words(noise(len(data), seed))
    return b"".join(struct.pack("<I", v + (s >> 32 - bits)) for v, s in zip(words(data), steps, strict=True))


def positive(data: bytes) -> bytes:
    return b"".join(struct.pack("<I", v & 0x7FFFFFFF) for v in words(data))


PARENT = weights("F32", COUNT, 3)
MOMENT, SQUARE = weights("F32", COUNT, 5), positive(weights("F32", COUNT, 7))
DATA = moved(PARENT, 18, 4)
ALL = {"parent": PARENT, "half": halved(DATA), "moment": MOMENT, "square": SQUARE}
STEP: dict[str, Any] = {"kind": 1, "factors": (0.999, -1e-4, 1e-8)}
ODD = struct.pack(
    "<12I",
    0,
    1 << 31,
    1,
    0x80000001,
    0x7FFFFF,
    0x800000,
    0x7F800000,
    0xFF800000,
    0x7FC00001,
    0xFFFFFFFF,
    0x7F7FFFFF,
    0x3F800000,
)
Case = tuple[bytes, dict[str, bytes], dict[str, Any]]


def some(*names: str) -> dict[str, bytes]:
    return {name: ALL[name] for name in names}


def archive(cases: Sequence[Case], parts_of: Callable[[OptimCtx], bytes] = OptimCtx.payload) -> Assembler:
    """One tensor a case, coded against others of the same archive."""
    a, units = Assembler(), []
    for k, (data, references, arguments) in enumerate(cases):
        count, refs = len(data) // 4, []
        for name, reference in references.items():
            dtype = "F32" if name != "half" else "F16" if arguments.get("kind") == 2 else "BF16"
            units.append(a.raw(dtype, reference, [[f"{k}.{name}", [count]]]))
            refs.append([0, units[-1], 0, count])
        unit = a.tensor("F32", data, [[f"{k}.w", [count]]], refs=refs)
        a.chunk(unit, 0, OPTIM_CTX, parts_of(optim(data, references, **arguments)))
        units.append(unit)
    a.file(b"all.bin", units)
    a.commit()
    return a


def good(cases: Sequence[Case]) -> tuple[bytes, dict[str, Any]]:
    return done(archive(cases))


@vector(
    "good-optim-near", "optim_ctx near a parent: as it is, times a factor, and with a step of Adam; R of 0, 5 and 24."
)
def _() -> tuple[bytes, dict[str, Any]]:
    alone, stepped = some("parent"), some("moment", "square", "parent")
    return good([
        (DATA, alone, {}), (DATA, alone, {"raw": 5}), (DATA, alone, {"raw": 24}),
        (DATA, alone, {"factors": (0.75, 0.0, 0.0)}), (DATA, stepped, {"factors": (0.999, -1e-4, 1e-8)}),
        (DATA, stepped, {"factors": (-(2.0**60), 2.0**60, 2.0**-60), "classes": 1}),
    ])  # fmt: skip


@vector(
    "good-optim-halves",
    "optim_ctx between what rounds to bfloat16 and binary16, with a parent, a step, and neither; exceptions.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    wide = b"".join(struct.pack("<H", i * 769 % 65536) for i in range(COUNT))
    return good([
        (DATA, ALL, STEP), (DATA, some("half", "parent"), {"kind": 1, "raw": 6}), (DATA, some("half"), {"mode": HALVES, "kind": 1, "raw": 9}),
        (DATA, some("half"), {"mode": HALVES, "kind": 1, "exceptions": [0, 74]}),
        (DATA, {"half": noise(2 * COUNT)}, {"mode": HALVES, "kind": 1}),
        (DATA, {"half": wide}, {"mode": HALVES, "kind": 2}), (DATA, {"half": wide, "parent": PARENT}, {"kind": 2, "raw": 3}),
    ])  # fmt: skip


@vector("good-optim-scaled", "optim_ctx scaled by squares, with what was before and without; zeros; R of 16 and 20.")
def _() -> tuple[bytes, dict[str, Any]]:
    zeros = bytes(40) + MOMENT[40:]
    scaled: dict[str, Any] = {"mode": SCALED, "raw": 17, "base": 500}
    return good([
        (MOMENT, some("square"), scaled), (MOMENT, some("square", "parent"), {**scaled, "raw": 16}),
        (zeros, some("parent", "square"), {**scaled, "raw": 20, "base": -4096}),
    ])  # fmt: skip


@vector(
    "good-optim-scales", "optim_ctx with scales of rows, of columns and of both, and 64 classes; the last row is short."
)
def _() -> tuple[bytes, dict[str, Any]]:
    rows, cols = [3, 5, 0, 9, 4], [7, 2, 1, 0, 3, 3, 4, 8, 1, 0, 2, 6, 5, 4, 3, 11]
    sides: list[dict[str, Any]] = [{"rows": rows}, {"cols": cols}, {"rows": rows, "cols": cols, "classes": 64}]
    near = [(DATA, ALL, {**STEP, "row": 16, "base": 480, **side}) for side in sides]
    return good(
        [
            *near,
            *((MOMENT, some("square"), {"mode": SCALED, "raw": 17, "row": 16, "base": 500, **side}) for side in sides),
        ]
    )


@vector(
    "good-optim-values",
    "optim_ctx: NaN payloads, both zeros, infinities and subnormals, in what is coded and in all references.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    n = len(ODD) // 4
    turned = {name: ODD[4 * k :] + ODD[: 4 * k] for k, name in enumerate(NAMES, 3) if name != "half"}
    half = b"".join(struct.pack("<H", v >> 16) for v in words(ODD))
    return good([
        (ODD, {**turned, "half": half}, {**STEP, "factors": (2.0, 1.0, 0.5)}), (ODD, turned, {"factors": (0.5, 1e-9, 1e-8)}),
        (ODD, {"parent": turned["parent"]}, {}), (ODD, {"square": turned["square"], "parent": turned["parent"]}, {"mode": SCALED, "raw": 16}),
        (ODD, {"half": half[2:] + half[:2]}, {"mode": HALVES, "kind": 2, "classes": n}),
    ])  # fmt: skip


@vector("good-optim-segments", "optim_ctx, segments of 2^10 elements: two of them and one of 13.")
def _() -> tuple[bytes, dict[str, Any]]:
    parent = weights("F32", 2061, 11)
    data = moved(parent, 12, 12)
    return good(
        [(data, {"parent": parent, "half": halved(data)}, {"kind": 1, "rows": [i * 7 % 11 for i in range(83)]})]
    )


@vector("good-optim-unused", "References that optim_ctx does not use, of other dtypes and lengths among them.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    more = a.raw("U8", noise(9), [["bytes", [9]]])
    parent = a.raw("F32", PARENT, [["before", [COUNT]]])
    unit = a.tensor("F32", DATA, [["w", [COUNT]]], refs=[[0, more, 2, 5], [0, parent, 0, COUNT]])
    parts = optim(DATA, some("parent"))
    parts.numbers[0] = 1
    a.chunk(unit, 0, OPTIM_CTX, parts.payload())
    a.file(b"all.bin", [more, parent, unit])
    a.commit()
    return done(a)


# ---- bad: 75 elements given all references, bent


def bent(change: Callable[[OptimCtx], Any], data: bytes = DATA, references: dict[str, bytes] = ALL, **f: Any) -> bytes:
    def payload(parts: OptimCtx) -> bytes:
        instead = change(parts)
        return instead if isinstance(instead, bytes) else parts.payload()

    return archive([(data, references, {**(STEP if references is ALL else {}), **f})], payload).seal()


def numbered(place: int, value: int) -> Callable[[OptimCtx], None]:
    def change(parts: OptimCtx) -> None:
        parts.numbers[place] = value

    return change


def factor(place: int, value: float) -> Callable[[OptimCtx], None]:
    def change(parts: OptimCtx) -> None:
        parts.factors[place] = value

    return change


def model_with(symbol: int, classes: int = 1, entry: int = 0) -> Callable[[OptimCtx], None]:
    """Another model stream: a map whose first entry is ``entry``, and tables in which ``symbol`` occurs."""

    def change(parts: OptimCtx) -> None:
        bits = Bits()
        bits.scales([128 + entry] + [128] * 1023, 128, 1)
        for _ in range(classes):
            bits.table([1, 4000] + [95 if y == symbol else 0 for y in range(2, 256)], 2, 2, 1)
        parts.model, parts.classes = bits.bytes(), classes

    return change


BOTH = {"references": some("parent", "half"), "kind": 1}
SQUARED: dict[str, Any] = {
    "references": some("square", "parent"),
    "data": MOMENT,
    "mode": SCALED,
    "raw": 17,
    "base": 500,
}
LONE: dict[str, Any] = {"references": some("half"), "mode": HALVES, "kind": 1}
CASES: list[tuple[str, str, Callable[[OptimCtx], Any], dict[str, Any]]] = [
    ("mode", "optim_ctx of mode 3.", put(mode=3), {}),
    ("raw", "optim_ctx with R = 25.", put(raw=25), {}),
    ("raw-scaled", "optim_ctx, scaled, with R = 15.", put(raw=15), SQUARED),
    ("segment-9", "optim_ctx with segments of 2^9.", put(log_segment=9), {}),
    ("segment-25", "optim_ctx with segments of 2^25.", put(log_segment=25), {}),
    ("sides", "optim_ctx with bit 2 of its sides set.", put(sides=7), {}),
    ("kind", "optim_ctx with H = 3.", put(kind=3), {}),
    ("kind-none", "optim_ctx with halves and H = 0.", put(kind=0), {}),
    ("kind-alone", "optim_ctx without halves and H = 1.", put(kind=1), {"references": some("parent")}),
    ("classes-0", "optim_ctx without classes.", put(classes=0), {}),
    ("classes-65", "optim_ctx with 65 classes.", put(classes=65), {}),
    ("base-low", "optim_ctx with a base of -4097.", put(base=-4097), {}),
    ("base-high", "optim_ctx with a base of 4096.", put(base=4096), {}),
    ("row", "optim_ctx with rows of 0.", put(row=0), {}),
    ("reference-none", "optim_ctx with a reference that the unit does not have.", numbered(0, 4), {}),
    ("reference-size", "optim_ctx whose parent has elements of two bytes.", numbered(0, 1), {}),
    ("halves-size", "optim_ctx whose halves have elements of four bytes.", numbered(1, 0), {}),
    ("near-alone", "optim_ctx near a parent that it does not have.", numbered(0, ABSENT), {}),
    ("moment-alone", "optim_ctx with a moment and no square.", numbered(3, ABSENT), {}),
    ("square-alone", "optim_ctx with a square and no moment.", numbered(2, ABSENT), {}),
    ("scaled-alone", "optim_ctx scaled by squares that it does not have.", numbered(3, ABSENT), SQUARED),
    ("scaled-moment", "optim_ctx, scaled, with a moment.", numbered(2, 0), SQUARED),
    ("scaled-factor", "optim_ctx, scaled, with a factor.", factor(0, 1.0), SQUARED),
    ("halves-alone", "optim_ctx near halves that it does not have.", lambda p: (put(kind=0)(p), numbered(1, ABSENT)(p))[0], LONE),
    ("halves-parent", "optim_ctx near halves, with a parent.", put(mode=2), BOTH),
    ("halves-factor", "optim_ctx near halves, with a factor.", factor(0, 1.0), LONE),
    ("factor-0", "optim_ctx with a factor of 0.", factor(0, 0.0), {}),
    ("factor-nan", "optim_ctx with a factor that is no number.", factor(0, math.nan), {}),
    ("factor-infinite", "optim_ctx with an infinite factor.", factor(1, math.inf), {}),
    ("factor-large", "optim_ctx with a factor of 2^61.", factor(1, 2.0**61), {}),
    ("factor-small", "optim_ctx with a factor of 2^-61.", factor(0, 2.0**-61), {}),
    ("factor-none", "optim_ctx without a step, with a factor for it.", factor(1, 1.0), {"references": some("parent")}),
    ("epsilon", "optim_ctx with a negative epsilon.", factor(2, -1e-8), {}),
    ("header-cut", "optim_ctx with a payload of 47 bytes.", lambda p: p.payload()[:47], {}),
    ("empty", "optim_ctx with an empty payload.", lambda p: b"", {}),
    ("scales-long", "optim_ctx with a scales' stream that is longer than the payload.", put(scales_size=1 << 31), {}),
    ("scales-cut", "optim_ctx with a scales' stream without its last byte.", lambda p: put(scales=p.scales[:-1])(p), {"rows": [1, 2, 3]}),
    ("scales-more", "optim_ctx with a byte more in its scales' stream.", lambda p: put(scales=p.scales + b"\0")(p), {"rows": [1, 2, 3]}),
    ("scales-sum", "optim_ctx with scales that add up to 256.", lambda p: None, {"rows": [0, 156, 1], "cols": [100] * 25}),
    ("model-long", "optim_ctx with a model stream that is longer than the payload.", put(model_size=1 << 31), {}),
    ("model-cut", "optim_ctx with a model stream without its last byte.", lambda p: put(model=p.model[:-1])(p), {}),
    ("model-more", "optim_ctx with a byte more in its model stream.", lambda p: put(model=p.model + b"\0")(p), {}),
    ("map", "optim_ctx with an entry of its map that is K.", model_with(2, 1, 1), {}),
    ("symbol", "optim_ctx with symbol 248.", model_with(248), {}),
    ("symbol-raw", "optim_ctx with R = 6 and symbol 200.", model_with(200), {"raw": 6}),
    ("symbol-128", "optim_ctx, scaled, with symbol 128.", model_with(128), SQUARED),
    ("symbol-scaled", "optim_ctx, scaled, with R = 17 and symbol 112.", model_with(112), SQUARED),
    ("padding", "optim_ctx with padding that is not zero.", lambda p: put(padding=b"\1" * (-(len(p.model) + len(p.scales)) % 8) or b"\1" * 8)(p), {}),
    ("state-start", "optim_ctx with a first state of 65535.", on_first("symbols", lambda s: patched(s, 0, struct.pack("<I", 65535))), {}),
    ("symbol-states", "optim_ctx with a symbol stream that ends in its states.", on_first("symbols", lambda s: s[:126]), {}),
    ("words-left", "optim_ctx with a word left over.", on_first("symbols", lambda s: s + b"\0\0"), {}),
    ("words-missing", "optim_ctx with a word too few.", on_first("symbols", lambda s: s[:-2]), {}),
    ("raw-short", "optim_ctx with a raw stream that is too short.", on_first("raws", lambda s: s[:-1]), {}),
    ("raw-long", "optim_ctx with a raw stream that is too long.", on_first("raws", lambda s: s + b"\0"), {}),
    ("tail", "optim_ctx with a byte after the last stream.", put(tail=b"\0"), {}),
]  # fmt: skip

for _name, _about, _change, _f in CASES:
    bad(f"optim-{_name}", _about, partial(bent, _change, **_f))


def in_chunk_of(dtype: str, data: bytes, refs: bool = True) -> bytes:
    a = Assembler()
    parent = a.raw("F32", PARENT, [["before", [COUNT]]])
    unit = a.tensor(dtype, data, [["w", [COUNT]]], refs=[[0, parent, 0, COUNT]] if refs else [])
    a.chunk(unit, 0, OPTIM_CTX, optim(DATA, some("parent")).payload())
    a.file(b"all.bin", [parent, unit])
    a.commit()
    return a.seal()


bad("optim-dtype", "optim_ctx in a chunk of integers.", partial(in_chunk_of, "I32", DATA))
bad("optim-alone", "optim_ctx in a unit without references.", partial(in_chunk_of, "F32", DATA, False))
bad("optim-noise", "optim_ctx with a payload of noise.", partial(bent, lambda p: noise(300)))


def longer(count: int) -> bytes:
    """A parent that has other elements than the unit."""
    a = Assembler()
    parent = a.raw("F32", PARENT + bytes(4), [["before", [COUNT + 1]]])
    unit = a.tensor("F32", DATA, [["w", [COUNT]]], refs=[[0, parent, 0, count]])
    a.chunk(unit, 0, OPTIM_CTX, optim(DATA, some("parent")).payload())
    a.file(b"all.bin", [parent, unit])
    a.commit()
    return a.seal()


bad("optim-longer", "optim_ctx whose parent has an element more than the unit.", partial(longer, COUNT + 1))
bad("optim-shorter", "optim_ctx whose parent has an element fewer than the unit.", partial(longer, COUNT - 1))
