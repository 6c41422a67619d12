"""Codecs 6 and 7, quant_blocks and dequantised: a second encoder for the vectors, and the vectors, good and bad."""

# ruff: noqa: E501  (one vector a line)
from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from vector_assembler import DEQUANTISED, FIELDS, ITEM, QUANT_BLOCKS, Assembler
from vector_bad import bad, patched, with_chunk
from vector_context import Bits, encode_symbols, frequencies
from vector_good import done, noise, vector, weights

AS_IS, BYTES, PAIRS = range(3)
A, B, D, COLUMNS = 1, 2, 4, 8


@dataclasses.dataclass
class Part:
    """A part of a record as the registry describes it."""

    length: int
    kind: int = BYTES
    z_classes: int = 1
    e_classes: int = 1
    flags: int = 0
    shift: int = 0
    scale_shift: int = 0
    a: int = 0
    b: int = 0
    d: int = 0
    z_base: int = 0
    e_base: int = 0
    cols: Sequence[int] = ()
    spare: Sequence[int] = ()
    """Classes that keep no table."""

    def pack(self, model: int) -> bytes:
        return struct.pack(
            "<H6B3H2hI", self.length, self.kind, self.z_classes, self.e_classes, self.flags, self.shift,
            self.scale_shift, self.a, self.b, self.d, self.z_base, self.e_base, model,
        )  # fmt: skip


@dataclasses.dataclass
class Quant:
    """What a payload of codec 6 is joined from, to be bent first."""

    record: int
    log_segment: int
    row: int
    parts: list[Part]
    models: list[bytes]
    streams: list[list[bytes]]
    count: int | None = None
    model_sizes: dict[int, int] = dataclasses.field(default_factory=dict)
    padding: bytes | None = None
    tail: bytes = b""

    def payload(self) -> bytes:
        head = struct.pack(
            "<HBBI", self.record, self.log_segment, len(self.parts) if self.count is None else self.count, self.row
        )
        for i, part in enumerate(self.parts):
            head += part.pack(self.model_sizes.get(i, len(self.models[i])))
        head += b"".join(self.models)
        head += bytes(-len(head) % 8) if self.padding is None else self.padding
        coded = [
            s for part, streams in zip(self.parts, self.streams, strict=True) if part.kind != AS_IS for s in streams
        ]
        sizes = struct.pack(f"<{len(coded)}I", *map(len, coded))
        return head + sizes + b"".join(b"".join(streams) for streams in self.streams) + self.tail


def classes_of(part: Part, data: bytes, record: int, row: int) -> list[int]:
    def field(i: int, offset: int) -> int:
        return struct.unpack_from("<H", data, i * record + offset)[0] % 32768

    n, classes = len(data) // record, []
    for i in range(n):
        first = i - i % row
        here = range(first, min(n, first + row))
        z = e = 0
        if part.flags & A:
            z = (field(i, part.a) >> part.shift) - part.z_base
            if part.flags & B:
                z -= field(i, part.b) >> part.shift
            z = min(max(z, 0), part.z_classes - 1)
        if part.flags & D:
            e = sum(field(r, part.d) >> part.scale_shift for r in here) // len(here)
            e -= field(i, part.d) >> part.scale_shift
        for j in range(part.length):
            column = part.cols[i % row * part.length + j] if part.cols else 0
            classes.append(z * part.e_classes + min(max(e + column + part.e_base, 0), part.e_classes - 1))
    return classes


def pair_frequencies(codes: Sequence[int]) -> list[int]:
    freqs, before = [], 0
    for y in range(256):
        after = before + codes[y % 16] * codes[y // 16]
        freqs.append(y + 1 + (after * 15 >> 16) - y - (before * 15 >> 16))
        before = after
    return freqs


def tables_of(part: Part, symbols: bytes, classes: Sequence[int]) -> tuple[list[list[int]], bytes]:
    """(tables of bytes, model stream)."""
    bits = Bits()
    if part.cols:
        bits.scales(part.cols, 3, 1)
    tables = []
    for k in range(part.z_classes * part.e_classes):
        here = [y for y, c in zip(symbols, classes, strict=True) if c == k]
        if k in part.spare:
            here = []
        if part.kind == PAIRS:
            codes = frequencies([2 + half for y in here for half in (y % 16, y // 16)])
            bits.table(codes, 0, 1, 0)
            tables.append(pair_frequencies(codes[2:18]) if any(codes) else [0] * 256)
        else:
            tables.append(frequencies(here))
            bits.table(tables[-1], 0, 1, 0)
    return tables, bits.bytes()


def quant(data: bytes, parts: Sequence[Part], row: int = 4, log_segment: int = 10) -> Quant:
    record = sum(part.length for part in parts)
    made = Quant(record, log_segment, row, list(parts), [], [])
    at = 0
    for part in parts:
        symbols = b"".join(data[i + at : i + at + part.length] for i in range(0, len(data), record))
        at += part.length
        if part.kind == AS_IS:
            made.models.append(b"")
            made.streams.append([symbols])
            continue
        classes = classes_of(part, data, record, row)
        tables, model = tables_of(part, symbols, classes)
        made.models.append(model)
        cuts = range(0, len(symbols), 1 << log_segment)
        if part.spare:
            made.streams.append([struct.pack("<32I", *[65536] * 32) for _ in cuts])
        else:
            ends = [slice(c, c + (1 << log_segment)) for c in cuts]
            made.streams.append([encode_symbols(list(symbols[c]), classes[c], tables) for c in ends])
    return made


def block_data(n: int, fields: int, codes: int, seed: int = 1) -> bytes:
    """``n`` blocks: half-precision numbers of about one size, then bytes that cluster around 0 and 255."""
    random, out = noise(n * (2 * fields + 2 * codes), seed), bytearray()
    for i in range(n):
        part = random[i * (2 * fields + 2 * codes) :]
        for j in range(fields):
            out += bytes((part[2 * j], 0x20 + 4 * j + part[2 * j + 1] % 7))
        for j in range(codes):
            high, low = part[2 * fields + 2 * j], part[2 * fields + 2 * j + 1]
            out.append((min(high, low) >> 2) * (1 if high & 1 else -1) % 256)
    return bytes(out)


def tensors(cases: list[tuple[str, int, bytes, bytes]]) -> tuple[bytes, dict[str, Any]]:
    """One tensor a case: (dtype, codec, data, payload)."""
    a, units = Assembler(), []
    for i, (dtype, codec, data, payload) in enumerate(cases):
        unit = a.tensor(dtype, data, [[f"t{i}.{dtype}", [len(data) // ITEM[dtype]]]])
        a.chunk(unit, 0, codec, payload)
        units.append(unit)
    a.file(b"all.bin", units)
    a.commit()
    return done(a)


def blocks(cases: list[tuple[str, bytes, Quant]]) -> tuple[bytes, dict[str, Any]]:
    return tensors([(dtype, QUANT_BLOCKS, data, parts.payload()) for dtype, data, parts in cases])


Q8 = block_data(10, 1, 8)
Q41 = block_data(10, 2, 6, 2)
COLS = [i * 7 % 11 for i in range(32)]
LOW = Part(1, AS_IS)
HIGH = Part(1)
BY_D = Part(8, e_classes=5, flags=D, scale_shift=8, e_base=2)
BY_D_AND_COLS = Part(8, e_classes=12, flags=D | COLUMNS, scale_shift=8, e_base=1, cols=COLS)
AFTER_D = Part(1, z_classes=6, flags=A, shift=8, z_base=33)
BY_RATIO = Part(6, PAIRS, z_classes=7, flags=A | B, shift=7, a=2, b=0, z_base=5)
BY_BOTH = Part(
    6, PAIRS, z_classes=4, e_classes=3, flags=A | B | D, shift=8, scale_shift=9, a=2, b=0, d=0, z_base=3, e_base=1
)


@vector(
    "good-quant-scale",
    "quant_blocks: blocks of a scale and int8 codes; codes under scale, under scale and column, plain.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    return blocks(
        [("U8", Q8, quant(Q8, [LOW, HIGH, codes])) for codes in (BY_D, BY_D_AND_COLS, Part(8), Part(8, AS_IS))]
    )


@vector(
    "good-quant-offset",
    "quant_blocks: blocks of scale, offset and pairs of codes, under their ratio, and under ratio and scale.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    head = [LOW, HIGH, LOW, AFTER_D]
    return blocks([("U8", Q41, quant(Q41, [*head, codes])) for codes in (BY_RATIO, BY_BOTH, Part(6, PAIRS))])


@vector(
    "good-quant-bytes",
    "quant_blocks with records of one byte: int8 with and without columns, pairs of codes, whole floats.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    data, wide = block_data(1, 0, 120, 3), weights("F32", 30)
    return blocks(
        [
            ("I8", data, quant(data, [Part(1)], 40)),
            ("I8", data, quant(data, [Part(1, e_classes=9, flags=COLUMNS, cols=COLS)], 32)),
            ("I32", data, quant(data, [Part(1, PAIRS)])),
            ("F32", wide, quant(wide, [Part(1), Part(1), Part(1), Part(1)])),
        ]
    )


@vector(
    "good-quant-rows",
    "quant_blocks with rows of one record, of all, of more than there are, and a last row that is shorter.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    cases = []
    for row in (1, 3, 10, 2**32 - 1):
        cols = [i % 13 for i in range(8 * min(row, 10))]
        cases.append(("U8", Q8, quant(Q8, [LOW, HIGH, dataclasses.replace(BY_D_AND_COLS, cols=cols)], row)))
    return blocks(cases)


@vector("good-quant-segments", "quant_blocks with parts of two segments and a few bytes, and of exactly one.")
def _() -> tuple[bytes, dict[str, Any]]:
    long, even = block_data(1, 0, 2061, 4), block_data(128, 0, 8, 5)
    cols = [i * 5 % 9 for i in range(64)]
    return blocks(
        [
            ("I8", long, quant(long, [Part(1, e_classes=4, flags=COLUMNS, cols=cols)], 64)),
            ("U8", even, quant(even, [Part(8, PAIRS)], 16)),
        ]
    )


@vector(
    "good-quant-classes",
    "quant_blocks with 64 classes, most of them without a table; and with one that is named 64 ways.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    many = Part(8, z_classes=8, e_classes=8, flags=A | D, shift=8, scale_shift=8, z_base=30, e_base=3)
    clamped = Part(8, z_classes=64, flags=A, shift=15, z_base=-32768)
    return blocks([("U8", Q8, quant(Q8, [LOW, HIGH, codes])) for codes in (many, clamped)])


# ---- codec 7


@dataclasses.dataclass
class Dequant:
    flags: int
    group: int
    scales: bytes
    codes: bytes
    exceptions: list[tuple[int, bytes]]
    count: int | None = None
    tail: bytes = b""

    def payload(self) -> bytes:
        count = len(self.exceptions) if self.count is None else self.count
        head = struct.pack("<5I", self.flags, self.group, len(self.scales), len(self.codes), count)
        places = b"".join(struct.pack("<I", place) for place, _ in self.exceptions)
        return head + self.scales + self.codes + places + b"".join(value for _, value in self.exceptions) + self.tail


def narrowed(bits: int, dtype: str) -> int:
    """binary32 to another type, ties to even, on integers alone."""
    if dtype == "F32":
        return bits
    sign, mag = bits >> 31, bits & 0x7FFFFFFF
    _, e_bits, m_bits = FIELDS[dtype]
    bias = (1 << (e_bits - 1)) - 1
    mantissa, exponent = (mag & 0x7FFFFF) | 0x800000, (mag >> 23) - 127
    drop = 23 - m_bits + max(0, 1 - bias - exponent)
    kept, rest = mantissa >> drop, mantissa & ((1 << drop) - 1)
    kept += 2 * rest > 1 << drop or (2 * rest == 1 << drop and kept % 2)
    top = ((1 << e_bits) - 1) << m_bits
    value = kept + (max(exponent + bias, 1) - 1 << m_bits) if mag else 0
    return sign << (e_bits + m_bits) | min(value, top)


def product(code: int, scale: float) -> int:
    """binary32 of their product: of 8 and 24 bits, exact as a double."""
    try:
        return struct.unpack("<I", struct.pack("<f", code * scale))[0]
    except OverflowError:
        return 0x7F800000 | (code < 0) << 31


def dequant(
    dtype: str, codes: Sequence[int], scales: Sequence[float], group: int, minus: bool = False
) -> tuple[bytes, Dequant]:
    """(elements, payload)."""
    size, out = ITEM[dtype], bytearray()
    for i, code in enumerate(codes):
        value = 1 << (8 * size - 1) if minus and code == -128 else narrowed(product(code, scales[i // group]), dtype)
        out += value.to_bytes(size, "little")
    return bytes(out), Dequant(
        minus, group, struct.pack(f"<{len(scales)}f", *scales), struct.pack(f"<{len(codes)}b", *codes), []
    )


def some_codes(n: int, seed: int = 1) -> list[int]:
    return [b - 256 if b > 127 else b for b in block_data(1, 0, n, seed)]


def single(x: float) -> float:
    return struct.unpack("<f", struct.pack("<f", x))[0]


SCALES = [single(x) for x in (0.0123, 0.007, 1.5, 3e-4)]


def scaled(cases: list[tuple[str, bytes, Dequant]]) -> tuple[bytes, dict[str, Any]]:
    return tensors([(dtype, DEQUANTISED, data, parts.payload()) for dtype, data, parts in cases])


@vector(
    "good-dequant-types",
    "dequantised for every dtype that it applies to: groups of 16, of all, the last one shorter, of more than all.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    cases = []
    for dtype in ("F32", "BF16", "F16"):
        for scales, group in ((SCALES, 16), (SCALES[:1], 61), (SCALES[:3], 30), (SCALES[:1], 2**32 - 1)):
            cases.append((dtype, *dequant(dtype, some_codes(61), scales, group)))
    return scaled(cases)


@vector(
    "good-dequant-rounding", "dequantised: every code times scales whose products are ties, subnormal, too large or 0."
)
def _() -> tuple[bytes, dict[str, Any]]:
    ties = [
        single(x)
        for x in (257 / 256, 2049 / 2048, 1.0, 2**-24 * 1.5, 2**-26, 2**-31, 515.75, 511.9, 2**-126, 3.3e36, 0.0)
    ]
    codes = list(range(-128, 128)) * len(ties)
    return scaled([(dtype, *dequant(dtype, codes, ties, 256)) for dtype in ("F32", "BF16", "F16")])


@vector("good-dequant-minus", "dequantised where code -128 is negative zero, and where it is a number.")
def _() -> tuple[bytes, dict[str, Any]]:
    codes = [-128, 0, 5, -128, -127, 127]
    return scaled(
        [(d, *dequant(d, codes, SCALES[:1], 6, minus)) for d in ("F32", "BF16", "F16") for minus in (True, False)]
    )


@vector(
    "good-dequant-exceptions",
    "dequantised with exceptions: the first element, the last, NaN payloads, infinities, subnormals.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    cases = []
    for dtype in ("F32", "BF16", "F16"):
        data, parts = dequant(dtype, some_codes(61), SCALES, 16)
        size, e_bits, m_bits = FIELDS[dtype]
        top = ((1 << e_bits) - 1) << m_bits
        values = {0: 1, 7: top, 8: top | 1, 9: top | 1 << (m_bits - 1), 60: 1 << (e_bits + m_bits)}
        for place, value in values.items():
            parts.exceptions.append((place, value.to_bytes(size, "little")))
            data = patched(data, place * size, parts.exceptions[-1][1])
        cases.append((dtype, data, parts))
    return scaled(cases)


@vector("good-dequant-coded", "dequantised whose scales and codes are payloads of quant_blocks.")
def _() -> tuple[bytes, dict[str, Any]]:
    codes = [c % 5 - 2 for c in some_codes(2000)]
    data, parts = dequant("BF16", codes, [single(0.01 + i % 3) for i in range(500)], 4)
    parts.codes = quant(parts.codes, [Part(1, e_classes=3, flags=COLUMNS, cols=COLS)], 32).payload()
    parts.scales = quant(parts.scales, [Part(1), Part(1), Part(1), Part(1)]).payload()
    return scaled([("BF16", data, parts)])


# ---- bad


def bent(change: Callable[[Quant], Any], data: bytes = Q8, parts: Sequence[Part] = (LOW, HIGH, BY_D_AND_COLS)) -> bytes:
    made = quant(data, [dataclasses.replace(part) for part in parts])
    instead = change(made)
    return with_chunk("U8", data, QUANT_BLOCKS, instead if isinstance(instead, bytes) else made.payload())


def put(**fields: Any) -> Callable[[Any], None]:
    def change(made: Any) -> None:
        for name, value in fields.items():
            setattr(made, name, value)

    return change


def part(i: int, **fields: Any) -> Callable[[Quant], None]:
    return lambda made: put(**fields)(made.parts[i])


def stream(i: int, change: Callable[[bytes], bytes]) -> Callable[[Quant], None]:
    def apply(made: Quant) -> None:
        made.streams[i][0] = change(made.streams[i][0])

    return apply


def model(i: int, change: Callable[[bytes], bytes]) -> Callable[[Quant], None]:
    def apply(made: Quant) -> None:
        made.models[i] = change(made.models[i])

    return apply


def wide_code(made: Quant) -> None:
    bits = Bits()
    bits.table([0] * 17 + [2000, 2096] + [0] * 237, 0, 1, 0)
    made.models[0] = bits.bytes()


PLAIN = {"parts": (LOW, HIGH, Part(8))}
NIBBLES = {"data": block_data(1, 0, 80, 3), "parts": (Part(1, PAIRS),)}
CASES: list[tuple[str, str, Callable[[Quant], Any], dict[str, Any]]] = [
    ("record-0", "quant_blocks with records of no bytes.", put(record=0), {}),
    ("record-other", "quant_blocks with records of 20 bytes, of parts that have 10.", put(record=20), {}),
    ("record-long", "quant_blocks with records of 1025 bytes.", put(record=1025), {"data": bytes(2050), "parts": (Part(1025, AS_IS),)}),
    ("record-odd", "quant_blocks with a chunk that is no whole number of records.", put(record=8), {"parts": (Part(8), Part(2))}),
    ("segment-9", "quant_blocks with segments of 2^9.", put(log_segment=9), {}),
    ("segment-25", "quant_blocks with segments of 2^25.", put(log_segment=25), {}),
    ("parts-0", "quant_blocks without parts.", put(count=0), {}),
    ("parts-65", "quant_blocks with 65 parts.", lambda m: None, {"data": bytes(65), "parts": [Part(1, AS_IS)] * 65}),
    ("parts-more", "quant_blocks with a part more than it has.", put(count=4), {}),
    ("row-0", "quant_blocks with rows of no records.", put(row=0), PLAIN),
    ("part-empty", "quant_blocks with a part of no bytes.", part(0, length=0), {}),
    ("part-long", "quant_blocks with a part that reaches beyond its record.", part(2, length=9), {}),
    ("kind", "quant_blocks with a part of kind 3.", part(2, kind=3), {}),
    ("flags", "quant_blocks with bit 4 of a part's flags set.", part(2, flags=28), {}),
    ("shift", "quant_blocks that shifts by 16.", part(2, shift=16), {}),
    ("scale-shift", "quant_blocks that shifts a scale by 16.", part(2, scale_shift=16), {}),
    ("z-0", "quant_blocks with no classes by field.", part(2, z_classes=0), {}),
    ("e-0", "quant_blocks with no classes by scale.", part(2, e_classes=0), {}),
    ("classes-65", "quant_blocks with 65 classes.", part(2, z_classes=13, e_classes=5, flags=A | D), {}),
    ("z-alone", "quant_blocks with classes by a field that is not there.", part(2, z_classes=2), {}),
    ("e-alone", "quant_blocks with classes by a scale that is not there.", part(2, flags=0), {}),
    ("b-alone", "quant_blocks with a field b without a field a.", part(2, flags=B | D | COLUMNS), {}),
    ("field-late", "quant_blocks with a field that is half in its own part.", part(2, d=1), {}),
    ("field-far", "quant_blocks with a field at 65535.", part(2, d=65535), {}),
    ("as-is-classes", "quant_blocks with classes for a part that is stored as is.", part(0, flags=COLUMNS, e_classes=2), {}),
    ("as-is-model", "quant_blocks with a model for a part that is stored as is.", model(0, lambda m: b"\0"), {}),
    ("header-cut", "quant_blocks with a payload of 7 bytes.", lambda m: m.payload()[:7], {}),
    ("parts-cut", "quant_blocks that ends in its parts.", lambda m: m.payload()[:60], {}),
    ("empty", "quant_blocks with an empty payload.", lambda m: b"", {}),
    ("model-cut", "quant_blocks with a model without its last byte.", model(2, lambda m: m[:-1]), {}),
    ("model-more", "quant_blocks with a byte more in a model.", model(2, lambda m: m + b"\0"), {}),
    ("model-long", "quant_blocks with a model that is longer than the payload.", put(model_sizes={2: 1 << 31}), {}),
    ("padding", "quant_blocks with padding that is not zero.", lambda m: put(padding=b"\1" * (-(74 + sum(map(len, m.models))) % 8))(m), PLAIN),
    ("table-none", "quant_blocks with a byte whose class has no table.", lambda m: None, {"parts": (LOW, HIGH, dataclasses.replace(BY_D, spare=(0, 1, 2, 3, 4)))}),
    ("table-none-one", "quant_blocks with a part without a table.", lambda m: None, {"parts": (LOW, HIGH, Part(8, spare=(0,)))}),
    ("code-wide", "quant_blocks with a frequency for a code of 16.", wide_code, NIBBLES),
    ("symbol-length", "quant_blocks with a symbol stream of odd length.", stream(2, lambda s: s + b"\0"), {}),
    ("symbol-states", "quant_blocks with a symbol stream that ends in its states.", stream(2, lambda s: s[:126]), PLAIN),
    ("state-start", "quant_blocks with a first state of 65535.", stream(1, lambda s: patched(s, 0, struct.pack("<I", 65535))), {}),
    ("state-end", "quant_blocks with a last state of 65537.", stream(1, lambda s: patched(s, 124, struct.pack("<I", 65537))), {}),
    ("words-left", "quant_blocks with a word left over.", stream(2, lambda s: s + b"\0\0"), {}),
    ("words-missing", "quant_blocks with a word too few.", stream(2, lambda s: s[:-2]), PLAIN),
    ("as-is-short", "quant_blocks with a byte too few in what is stored as is.", stream(1, lambda s: s[:-1]), {"parts": (Part(2), Part(8, AS_IS))}),
    ("tail", "quant_blocks with a byte after the last stream.", put(tail=b"\0"), {}),
]  # fmt: skip

for _name, _about, _change, _f in CASES:
    bad(f"quant-{_name}", _about, partial(bent, _change, **_f))
bad("quant-noise", "quant_blocks with a payload of noise.", lambda: with_chunk("U8", Q8, QUANT_BLOCKS, noise(300)))


def bent_floats(change: Callable[[Dequant], Any], dtype: str = "BF16") -> bytes:
    data, made = dequant(dtype, some_codes(61), SCALES, 16)
    made.exceptions = [(3, data[6:8]), (9, data[18:20])]
    instead = change(made)
    return with_chunk(dtype, data, DEQUANTISED, instead if isinstance(instead, bytes) else made.payload())


def scale_bits(bits: int) -> Callable[[Dequant], None]:
    return lambda made: put(scales=patched(made.scales, 4, struct.pack("<I", bits)))(made)


FLOAT_CASES: list[tuple[str, str, Callable[[Dequant], Any]]] = [
    ("flags", "dequantised with bit 1 of its flags set.", put(flags=2)),
    ("group-0", "dequantised with groups of no elements.", put(group=0)),
    ("group-other", "dequantised with groups of 15, and so with a scale too few.", put(group=15)),
    ("scale-negative", "dequantised with a negative scale.", scale_bits(0xBF800000)),
    ("scale-minus-zero", "dequantised with a scale of -0.", scale_bits(0x80000000)),
    ("scale-subnormal", "dequantised with a subnormal scale.", scale_bits(0x007FFFFF)),
    ("scale-infinite", "dequantised with an infinite scale.", scale_bits(0x7F800000)),
    ("scale-nan", "dequantised with a scale that is no number.", scale_bits(0x7FC00000)),
    ("scales-none", "dequantised without scales.", put(scales=b"")),
    ("scales-long", "dequantised with a scale too many.", lambda m: put(scales=m.scales + m.scales[:4])(m)),
    ("scales-coded", "dequantised with scales that are no payload of quant_blocks.", lambda m: put(scales=m.scales[:-1])(m)),
    ("codes-none", "dequantised without codes.", put(codes=b"")),
    ("codes-long", "dequantised with a code too many.", lambda m: put(codes=m.codes + b"\1")(m)),
    ("codes-coded", "dequantised with codes that are no payload of quant_blocks.", lambda m: put(codes=m.codes[:-1])(m)),
    ("exceptions-twice", "dequantised with an exception twice.", lambda m: put(exceptions=m.exceptions[:1] * 2)(m)),
    ("exceptions-order", "dequantised with exceptions in descending order.", lambda m: put(exceptions=m.exceptions[::-1])(m)),
    ("exceptions-far", "dequantised with an exception after the last element.", put(exceptions=[(61, b"\0\0")])),
    ("exceptions-count", "dequantised with 2^32 - 1 exceptions.", put(count=0xFFFFFFFF)),
    ("header-cut", "dequantised with a payload of 19 bytes.", lambda m: m.payload()[:19]),
    ("empty", "dequantised with an empty payload.", lambda m: b""),
    ("tail", "dequantised with a byte after its end.", put(tail=b"\0")),
]  # fmt: skip

for _name, _about, _bend in FLOAT_CASES:
    bad(f"dequant-{_name}", _about, partial(bent_floats, _bend))
for _dtype in ("I16", "F64"):
    bad(
        f"dequant-dtype-{_dtype.lower()}",
        f"dequantised in a chunk of {_dtype}.",
        partial(
            lambda d: with_chunk(d, bytes(64), DEQUANTISED, dequant("BF16", [0] * 32, SCALES[:1], 32)[1].payload()),
            _dtype,
        ),
    )
bad(
    "dequant-noise",
    "dequantised with a payload of noise.",
    lambda: with_chunk("BF16", bytes(200), DEQUANTISED, noise(300)),
)
