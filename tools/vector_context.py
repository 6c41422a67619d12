"""Codec 5, float_ctx: a second encoder for the vectors, and the vectors of it, good and bad."""

# ruff: noqa: E501  (one vector a line)
from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from vector_assembler import FIELDS, FLOAT_CTX, ITEM, raw_stream
from vector_bad import bad, on_first, patched, put, with_chunk
from vector_good import coded, noise, vector, weights

RAW, NONE, CODED = range(3)


class Bits:
    """Bits, the lowest of each byte first."""

    def __init__(self) -> None:
        self.digits: list[int] = []

    def number(self, value: int, bits: int) -> None:
        self.digits += [value >> j & 1 for j in range(bits)]

    def rice(self, u: int, k: int, plain: int, long_form: bool = False) -> None:
        q = u >> k
        if q >= 12 or long_form:
            self.digits += [1] * 12
            self.number(u, plain)
        else:
            self.digits += [1] * q + [0]
            self.number(u, k)

    def signed(self, d: int, k: int, plain: int, long_form: bool = False) -> None:
        self.rice(2 * d - 1 if d > 0 else -2 * d, k, plain, long_form)

    def scales(self, scales: Sequence[int], centre: int, k: int) -> None:
        self.number(centre, 8)
        self.number(k, 3)
        for x in scales:
            self.signed(x - centre, k, 9)

    def table(self, table: Sequence[int], top: int, step: int, base: int, long_form: bool = False) -> None:
        used = [y for y in range(2, 256) if table[y]]
        if not any(table):
            return self.number(0, 8)
        low, high = (used[0], used[-1]) if used else (2, 2)
        self.number(low, 8)
        self.number(high, 8)
        self.rice(table[0], 0, 13, long_form)
        self.rice(table[1], 0, 13, long_form)
        for y in range(low, high + 1):
            guess = table[y - step] if y - step >= low else 0
            if top and ((y - 2) // step + base) % 2**top == 0:
                guess = min(4095, 2 * guess)
            self.signed(table[y] - guess, guess.bit_length() // 2, 13, long_form)

    def bytes(self) -> bytes:
        padded = self.digits + [0] * (-len(self.digits) % 8)
        return bytes(sum(padded[i + j] << j for j in range(8)) for i in range(0, len(padded), 8))


@dataclasses.dataclass
class FloatCtx:
    """The parts of a payload of codec 5, to be bent before :meth:`payload` joins them."""

    mode: int
    dropped: int
    top: int
    log_segment: int
    log_classes: int
    sides: int
    base: int
    row: int
    model: bytes
    raws: list[bytes]
    symbols: list[bytes]
    escapes: list[bytes]
    escape_counts: list[int]
    padding: bytes | None = None
    model_size: int | None = None
    tail: bytes = b""

    def payload(self) -> bytes:
        size = len(self.model) if self.model_size is None else self.model_size
        head = struct.pack(
            "<6BhII", self.mode, self.dropped, self.top, self.log_segment, self.log_classes, self.sides, self.base,
            self.row, size,
        )  # fmt: skip
        head += self.model + (bytes(-len(self.model) % 8) if self.padding is None else self.padding)
        sizes = b"".join(struct.pack("<II", len(s), n) for s, n in zip(self.symbols, self.escape_counts, strict=True))
        return head + sizes + b"".join([*self.raws, *self.symbols, *self.escapes]) + self.tail


def encode_symbols(symbols: Sequence[int], classes: Sequence[int], tables: Sequence[Sequence[int]]) -> bytes:
    """32-lane rANS with a table for each class: the decoder of the registry, run backwards."""
    state, words = [65536] * 32, []
    for i in reversed(range(len(symbols))):
        x, y, table = state[i % 32], symbols[i], tables[classes[i]]
        if x >= table[y] << 20:
            words.append(x & 0xFFFF)
            x >>= 16
        state[i % 32] = (x // table[y] << 12) + x % table[y] + sum(table[:y])
    return struct.pack("<32I", *state) + struct.pack(f"<{len(words)}H", *reversed(words))


def frequencies(symbols: Sequence[int]) -> list[int]:
    counts = [symbols.count(y) for y in range(256)]
    if not symbols:
        return counts
    table = [max(1, n * 3800 // len(symbols)) if n else 0 for n in counts]
    largest = max(range(256), key=lambda y: table[y])
    table[largest] += 4096 - sum(table)
    if table[largest] > 4095:
        table[largest], table[1 if largest != 1 else 0] = 4095, 1
    return table


def float_ctx(
    data: bytes,
    dtype: str,
    *,
    mode: int = RAW,
    dropped: int = 0,
    top: int = 2,
    log_segment: int = 10,
    log_classes: int = 0,
    row: int = 16,
    rows: Sequence[int] = (),
    cols: Sequence[int] = (),
    base: int | None = None,
    centre: int = 3,
    k: int = 1,
    long_form: bool = False,
    spare: Sequence[int] = (),
    bend: Callable[[list[int]], None] = lambda symbols: None,
) -> FloatCtx:
    """Code ``data``. ``bend`` changes the symbols of a segment; ``spare`` classes keep no table."""
    size, e_bits, m_bits = FIELDS[dtype]
    values = [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)]
    low_bits, mag_bits = m_bits - dropped - top, e_bits + top
    step, classes = 2 if mode == CODED else 1, 1 << log_classes
    magnitudes = [v >> (dropped + low_bits) & ((1 << mag_bits) - 1) for v in values]
    signs = [v >> (e_bits + m_bits) for v in values]
    rests = [v >> dropped & ((1 << low_bits) - 1) for v in values]
    if mode == RAW:
        rests = [r | s << low_bits for r, s in zip(rests, signs, strict=True)]
    scales = [(rows[i // row] if rows else 0) + (cols[i % row] if cols else 0) for i in range(len(values))]
    if base is None:
        base = max(magnitudes) + 1 - 254 // step
    symbols, class_of, escaped = [], [], []
    for magnitude, sign, scale in zip(magnitudes, signs, scales, strict=True):
        place = (magnitude - base - (scale // classes << top)) % (1 << mag_bits)
        coded_sign = sign if mode == CODED else 0
        if magnitude == 0 and coded_sign == 0:
            y = 1
        elif place < 254 // step:
            y = 2 + place * step + coded_sign
        else:
            y = 0
        symbols.append(y)
        class_of.append(scale % classes)
        escaped.append(struct.pack("<H", coded_sign << mag_bits | magnitude) if y == 0 else b"")
    bend(symbols)
    tables = [frequencies([y for y, c in zip(symbols, class_of, strict=True) if c == k]) for k in range(classes)]
    tables = [[0] * 256 if k in spare else table for k, table in enumerate(tables)]
    bits = Bits()
    for side in (rows, cols):
        if side:
            bits.scales(side, centre, k)
    for table in tables:
        bits.table(table, top, step, base, long_form)
    parts = FloatCtx(
        mode,
        dropped,
        top,
        log_segment,
        log_classes,
        bool(rows) | bool(cols) << 1,
        base,
        row,
        bits.bytes(),
        [],
        [],
        [],
        [],
    )
    for first in range(0, len(values), 1 << log_segment):
        here = slice(first, first + (1 << log_segment))
        parts.raws.append(raw_stream(rests[here], low_bits + (mode == RAW)))
        if spare:
            parts.symbols.append(struct.pack("<32I", *[65536] * 32))
        else:
            parts.symbols.append(encode_symbols(symbols[here], class_of[here], tables))
        parts.escapes.append(b"".join(escaped[here]))
        parts.escape_counts.append(len(parts.escapes[-1]) // 2)
    return parts


def floats(cases: list[tuple[str, bytes, dict[str, Any]]]) -> tuple[bytes, dict[str, Any]]:
    """One float_ctx tensor a case: (dtype, data, arguments of float_ctx)."""
    return coded(FLOAT_CTX, [(dtype, data, float_ctx(data, dtype, **f).payload()) for dtype, data, f in cases])


def positive(dtype: str, data: bytes) -> bytes:
    size = FIELDS[dtype][0]
    return bytes(b & 0x7F if i % size == size - 1 else b for i, b in enumerate(data))


def narrow(n: int, zeros: int, seed: int = 1) -> bytes:
    """F32 with so many low bits that are zero."""
    data = weights("F32", n, seed)
    values = [int.from_bytes(data[i : i + 4], "little") >> zeros << zeros for i in range(0, len(data), 4)]
    return b"".join(v.to_bytes(4, "little") for v in values)


def top_of(dtype: str) -> int:
    return min(2, FIELDS[dtype][2])


ROWS, COLS = [3, 5, 0, 9, 4], [7, 2, 1, 0, 3, 3, 4, 8, 1, 0, 2, 6, 5, 4, 3, 11]


@vector("good-ctx-types", "float_ctx for every dtype that it applies to, signs raw; 45 elements, 90 halves.")
def _() -> tuple[bytes, dict[str, Any]]:
    return floats([(dtype, weights(dtype, 45, i), {"top": top_of(dtype)}) for i, dtype in enumerate(FIELDS)])


@vector("good-ctx-signs", "float_ctx, sign modes none and coded, for every dtype.")
def _() -> tuple[bytes, dict[str, Any]]:
    cases: list[tuple[str, bytes, dict[str, Any]]] = []
    for i, dtype in enumerate(FIELDS):
        cases.append((dtype, positive(dtype, weights(dtype, 45, i)), {"mode": NONE, "top": top_of(dtype)}))
        cases.append((dtype, weights(dtype, 45, i), {"mode": CODED, "top": top_of(dtype)}))
    return floats(cases)


@vector("good-ctx-tops", "float_ctx with 0 to 7 mantissa bits of BF16 in the symbol, 4 of F64, all of each fp8 type.")
def _() -> tuple[bytes, dict[str, Any]]:
    cases: list[tuple[str, bytes, dict[str, Any]]] = [("BF16", weights("BF16", 50, t), {"top": t}) for t in range(8)]
    cases += [("F64", weights("F64", 20), {"top": 4})]
    cases += [(d, bytes(range(256)), {"top": FIELDS[d][2], "mode": m}) for d in FIELDS if ITEM[d] == 1 for m in (0, 2)]
    return floats(cases)


@vector("good-ctx-dropped", "float_ctx with D = 16, 13, 1 and 23: narrower floats in F32.")
def _() -> tuple[bytes, dict[str, Any]]:
    return floats([("F32", narrow(60, d), {"dropped": d, "top": min(2, 23 - d)}) for d in (16, 13, 1, 23)])


@vector(
    "good-ctx-scales",
    "float_ctx, scales of rows, of columns, of both, in 1, 2, 4 and 8 classes; the last row is short.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    sides: list[dict[str, Any]] = [{"rows": ROWS}, {"cols": COLS}, {"rows": ROWS, "cols": COLS}]
    return floats(
        [
            ("BF16", weights("BF16", 75, 4 * j + c), {"log_classes": c, "mode": (RAW, CODED)[c % 2], **side})
            for j, side in enumerate(sides) for c in range(4)
        ]
    )  # fmt: skip


@vector("good-ctx-long-row", "float_ctx with rows longer than the chunk: one row, and as many columns as elements.")
def _() -> tuple[bytes, dict[str, Any]]:
    return floats([("F16", weights("F16", 16), {"row": 2**32 - 1, "rows": [9], "cols": COLS, "log_classes": 2})])


@vector("good-ctx-large-scales", "float_ctx with scales that add up to 255, written plainly after twelve ones.")
def _() -> tuple[bytes, dict[str, Any]]:
    rows, cols = [0, 155, 70, 1, 155], [100, *range(15)]
    return floats([("BF16", weights("BF16", 75), {"rows": rows, "cols": cols, "k": 0, "centre": 0, "log_classes": 3})])


@vector("good-ctx-segments", "float_ctx, segments of 2^10 elements: two of them and one of 13; and two of 2^10 alone.")
def _() -> tuple[bytes, dict[str, Any]]:
    many = [i * 7 % 11 for i in range(130)]
    return floats(
        [
            ("F8_E4M3", weights("F8_E4M3", 2061), {"rows": many[:129], "cols": COLS, "log_classes": 1}),
            ("BF16", weights("BF16", 2048), {"rows": many[:128], "cols": COLS, "log_classes": 2, "mode": CODED}),
        ]
    )


@vector("good-ctx-escapes", "float_ctx: magnitudes below and above the window, all escapes, and none.")
def _() -> tuple[bytes, dict[str, Any]]:
    wide = b"".join(struct.pack("<H", i * 769 % 65536) for i in range(90))
    return floats(
        [
            ("BF16", wide, {"mode": RAW}),
            ("F16", wide, {"mode": CODED}),
            ("BF16", wide, {"mode": RAW, "base": 300}),
            ("BF16", b"\x80\x3f" * 20, {"mode": RAW, "base": 600}),
            ("BF16", b"\x80\x3f" * 20, {"mode": RAW}),
        ]
    )


@vector("good-ctx-window", "float_ctx with a window that begins below 0 or ends beyond the largest magnitude.")
def _() -> tuple[bytes, dict[str, Any]]:
    data = b"".join(struct.pack("<H", 0x7FFF - i * 5) for i in range(20)) + bytes(range(40))
    return floats([("BF16", data, {"base": base}) for base in (-1, -32768, 32767, 1000)])


@vector(
    "good-ctx-values", "float_ctx: NaN payloads, both zeros, infinities, subnormals of every dtype, in all sign modes."
)
def _() -> tuple[bytes, dict[str, Any]]:
    cases: list[tuple[str, bytes, dict[str, Any]]] = []
    for i, dtype in enumerate(FIELDS):
        size, e_bits, m_bits = FIELDS[dtype]
        top, sign = ((1 << e_bits) - 1) << m_bits, 1 << (e_bits + m_bits)
        values = [0, 1, (1 << m_bits) - 1, top, top | 1, top | 1 << (m_bits - 1), top - 1, 0, 2 << m_bits, 0]
        if i % 3 != NONE:
            values += [v | sign for v in values]
        data = b"".join(v.to_bytes(size, "little") for v in values)
        cases.append((dtype, data, {"mode": i % 3, "top": top_of(dtype)}))
    return floats(cases)


@vector("good-ctx-long-numbers", "float_ctx with every number of its tables in the form after twelve ones.")
def _() -> tuple[bytes, dict[str, Any]]:
    return floats([("BF16", weights("BF16", 75), {"long_form": True, "rows": ROWS, "log_classes": 2})])


@vector(
    "good-ctx-f64", "float_ctx of F64 and C128: 600 exponents, most of them escaped; one exponent; several segments."
)
def _() -> tuple[bytes, dict[str, Any]]:
    wide = b"".join(struct.pack("<Q", (i * 7 % 600 + 700) << 52 | (i % 2) << 63 | i) for i in range(84))
    return floats(
        [
            ("F64", wide, {"mode": RAW}),
            ("C128", wide, {"mode": CODED}),
            ("F64", weights("F64", 9, spread=0), {"top": 0}),
            ("F64", weights("F64", 1030), {"top": 3, "rows": [i * 5 % 7 for i in range(65)], "log_classes": 2}),
        ]
    )


# ---- bad: BF16 of 75 elements with scales of rows and columns in four classes, bent

DATA = weights("BF16", 75)
SETTING: dict[str, Any] = {"rows": ROWS, "cols": COLS, "log_classes": 2}


def ctx(change: Callable[[FloatCtx], Any], data: bytes = DATA, dtype: str = "BF16", **f: Any) -> bytes:
    parts = float_ctx(data, dtype, **{**SETTING, **f})
    instead = change(parts)
    return with_chunk(dtype, data, FLOAT_CTX, instead if isinstance(instead, bytes) else parts.payload())


def model_of(write: Callable[[Bits], None], row_scales: Sequence[int] = ROWS) -> Callable[[FloatCtx], None]:
    """Another model stream: the same scales of rows, and what ``write`` puts after them."""

    def change(parts: FloatCtx) -> None:
        bits = Bits()
        bits.scales(row_scales, 3, 1)
        write(bits)
        parts.model = bits.bytes()

    return change


def one_table(low: int, high: int, zeros: Sequence[int], numbers: Sequence[int]) -> Callable[[Bits], None]:
    """A table as it stands: lo, hi, two frequencies, and differences from guesses, all in their long form."""

    def write(bits: Bits) -> None:
        bits.number(low, 8)
        bits.number(high, 8)
        for u in zeros:
            bits.rice(u, 0, 13, long_form=True)
        for d in numbers:
            bits.signed(d, 0, 13, long_form=True)

    return write


def escape_more(parts: FloatCtx) -> None:
    parts.escape_counts[0] += 1
    parts.escapes[0] += b"\1\0"


ONE = {"cols": (), "log_classes": 0}
LONE = {"rows": (), "cols": (), "log_classes": 0}
WIDE = b"".join(struct.pack("<H", i * 769 % 65536) for i in range(75))
CASES: list[tuple[str, str, Callable[[FloatCtx], Any], dict[str, Any]]] = [
    ("mode", "float_ctx of sign mode 3.", put(mode=3), {}),
    ("dropped", "float_ctx with D + T greater than M.", put(dropped=6), {}),
    ("top", "float_ctx of BF16 with T = 8, which is more than M.", put(top=8), {}),
    ("top-wide", "float_ctx of F64 with E + T = 16.", put(top=5), {"data": weights("F64", 75), "dtype": "F64"}),
    ("segment-9", "float_ctx with segments of 2^9.", put(log_segment=9), {}),
    ("segment-25", "float_ctx with segments of 2^25.", put(log_segment=25), {}),
    ("classes", "float_ctx with 16 classes.", put(log_classes=4), {}),
    ("sides", "float_ctx with bit 2 of its sides set.", put(sides=7), {}),
    ("row", "float_ctx with rows of 15.", put(row=15), LONE),
    ("header-cut", "float_ctx with a payload of 15 bytes.", lambda p: p.payload()[:15], {}),
    ("empty", "float_ctx with an empty payload.", lambda p: b"", {}),
    ("model-long", "float_ctx with a model stream that is longer than the payload.", put(model_size=1 << 31), {}),
    ("model-cut", "float_ctx with a model stream without its last byte.", lambda p: put(model=p.model[:-1])(p), {}),
    ("model-more", "float_ctx with a byte more in its model stream.", lambda p: put(model=p.model + b"\0")(p), {}),
    ("model-empty", "float_ctx with an empty model stream.", put(model=b""), {}),
    ("scales-sum", "float_ctx with scales that add up to 256.", lambda p: None, {"rows": [0, 156, 1, 1, 1], "cols": [100] * 16}),
    ("scale-low", "float_ctx with a scale of -1.", lambda p: None, {"rows": [-1, 1, 1, 1, 1]}),
    ("scale-high", "float_ctx with a scale of 256.", lambda p: None, {"rows": [256, 0, 0, 0, 0], "cols": ()}),
    ("lo-1", "float_ctx with a table whose lo is 1.", model_of(one_table(1, 3, (1000, 3096), (0, 0, 0))), ONE),
    ("hi-low", "float_ctx with a table whose hi is below its lo.", model_of(one_table(200, 199, (1000, 3096), ())), ONE),
    ("table-sum", "float_ctx with frequencies that add up to 4097.", model_of(one_table(2, 3, (1, 1000), (96, 3000 - 96))), ONE),
    ("table-4096", "float_ctx with a frequency of 4096.", model_of(one_table(2, 2, (0, 0), (4096,))), ONE),
    ("table-negative", "float_ctx with a frequency of -1.", model_of(one_table(2, 3, (1000, 3000), (97, -98))), ONE),
    ("table-none", "float_ctx with an element whose class has no table.", lambda p: None, {**LONE, "spare": (0,)}),
    ("padding", "float_ctx with padding that is not zero.", lambda p: put(padding=b"\1" * (-len(p.model) % 8))(p), {"k": 2}),
    ("symbol-length", "float_ctx with a symbol stream of odd length.", on_first("symbols", lambda s: s + b"\0"), {}),
    ("symbol-states", "float_ctx with a symbol stream that ends in its states.", on_first("symbols", lambda s: s[:126]), {}),
    ("state-start", "float_ctx with a first state of 65535.", on_first("symbols", lambda s: patched(s, 0, struct.pack("<I", 65535))), {}),
    ("state-end", "float_ctx with a last state of 65537.", on_first("symbols", lambda s: patched(s, 124, struct.pack("<I", 65537))), {"data": DATA[:30], "rows": ROWS[:1], "cols": COLS[:15]}),
    ("words-left", "float_ctx with a word left over.", on_first("symbols", lambda s: s + b"\0\0"), {}),
    ("words-missing", "float_ctx with a word too few.", on_first("symbols", lambda s: s[:-2]), {}),
    ("escape-count", "float_ctx with an escape more than the symbols have.", escape_more, {"data": WIDE}),
    ("escape-none", "float_ctx with escapes among its symbols and an empty escape stream.", put(escapes=[b""], escape_counts=[0]), {"data": WIDE}),
    ("escape-count-high", "float_ctx with 2^32 - 1 escapes.", put(escape_counts=[0xFFFFFFFF]), {}),
    ("escape-high", "float_ctx with an escape of 2^(E+T).", on_first("escapes", lambda s: b"\0\4" + s[2:]), {"data": WIDE}),
    ("escape-high-coded", "float_ctx, sign mode coded, with an escape of 2^(E+T+1).", on_first("escapes", lambda s: b"\0\x08" + s[2:]), {"data": WIDE, "mode": CODED}),
    ("raw-short", "float_ctx with a raw stream that is too short.", on_first("raws", lambda s: s[:-1]), {}),
    ("tail", "float_ctx with a byte after the last stream.", put(tail=b"\0"), {}),
    ("bit-plane", "float_ctx with an unused bit of a bit plane set.", on_first("raws", lambda s: s[:-1] + bytes([s[-1] | 0x80])), {}),
]  # fmt: skip

for _name, _about, _change, _f in CASES:
    bad(f"ctx-{_name}", _about, partial(ctx, _change, **_f))

bad(
    "ctx-dtype",
    "float_ctx in a chunk of integers.",
    lambda: with_chunk("I16", DATA, FLOAT_CTX, float_ctx(DATA, "BF16").payload()),
)
bad("ctx-noise", "float_ctx with a payload of noise.", lambda: with_chunk("BF16", DATA, FLOAT_CTX, noise(300)))
