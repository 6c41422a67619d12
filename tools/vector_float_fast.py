"""Codec 4, float_fast: its vectors, good and bad. The encoder is that of the assembler."""

# ruff: noqa: E501  (one vector a line)
from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from vector_assembler import FIELDS, FLOAT_FAST, FloatFast, float_fast
from vector_bad import bad, on_first, patched, put, with_chunk
from vector_good import coded, noise, vector, weights

Cases = list[tuple[str, bytes, dict[str, Any]]]
DTYPES = [dtype for dtype, (_, e_bits, _) in FIELDS.items() if e_bits <= 8]
LANES = (32, 128)


def floats(cases: Cases) -> tuple[bytes, dict[str, Any]]:
    """One float_fast tensor a case: (dtype, data, arguments of float_fast)."""
    return coded(FLOAT_FAST, [(dtype, data, float_fast(data, dtype, **f).payload()) for dtype, data, f in cases])


def having(exponents: Sequence[int], dtype: str = "BF16") -> bytes:
    """Elements with these exponents, signs and mantissas of any kind."""
    size, e_bits, m_bits = FIELDS[dtype]
    random, out = noise(len(exponents) * size), b""
    for i, exponent in enumerate(exponents):
        value = int.from_bytes(random[i * size : (i + 1) * size], "little")
        out += (value & ~(((1 << e_bits) - 1) << m_bits) | exponent << m_bits).to_bytes(size, "little")
    return out


# ---- good


@vector("good-float-types-32", "float_fast, 32 lanes, for every dtype that it applies to; 45 elements, 90 halves.")
def _() -> tuple[bytes, dict[str, Any]]:
    return floats([(dtype, weights(dtype, 45, i), {}) for i, dtype in enumerate(DTYPES)])


@vector("good-float-types-128", "float_fast, 128 lanes, for every dtype that it applies to; 301 elements, 602 halves.")
def _() -> tuple[bytes, dict[str, Any]]:
    return floats([(dtype, weights(dtype, 301, i), {"lanes": 128}) for i, dtype in enumerate(DTYPES)])


@vector(
    "good-float-lengths",
    "float_fast of 1, 2, 7, 31, 32, 33, 63, 64, 65, 127, 128, 129 and 257 elements, BF16 and F16, 32 and 128 lanes.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    return floats(
        [
            (dtype, weights(dtype, n, n), {"lanes": lanes})
            for n in (1, 2, 7, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257) for dtype in ("BF16", "F16") for lanes in LANES
        ]
    )  # fmt: skip


@vector(
    "good-float-segments",
    "float_fast, segments of 2^10 elements: two of them and one of 13, two alone, one and one of a single element.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    return floats(
        [
            (dtype, weights(dtype, n, n), {"log_segment": 10, "lanes": lanes})
            for dtype, n in (("F8_E4M3", 2061), ("BF16", 2048), ("F16", 1025)) for lanes in LANES
        ]
    )  # fmt: skip


@vector("good-float-escapes-in-segments", "float_fast: three segments with 2, 0 and 3 escapes, some of them long.")
def _() -> tuple[bytes, dict[str, Any]]:
    exponents = [100] * 3000
    for i, e in ((0, 90), (1023, 91), (2048, 3), (2500, 90), (2999, 255)):
        exponents[i] = e
    return floats(
        [("BF16", having(exponents), {"log_segment": 10, "palette": [100], "seconds": [91, 90], "lanes": n}) for n in LANES]
    )  # fmt: skip


@vector(
    "good-float-palettes",
    "float_fast with 1, 2, 14 and 15 exponents in the palette and 0, 1, 14 and 15 in the second one.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    data = having([120 - i * i // 90 for i in range(63)])
    cases: Cases = []
    for first in (1, 2, 14, 15):
        palette = list(range(120, 120 - first, -1))
        for second in (0, 1, 14, 15):
            seconds = list(range(palette[-1] - second, palette[-1]))
            cases.append(("BF16", data, {"palette": palette, "seconds": seconds, "lanes": LANES[second % 2]}))
    return floats(cases)


@vector("good-float-padding", "float_fast with 0 to 7 bytes of padding.")
def _() -> tuple[bytes, dict[str, Any]]:
    data = having([100 + i % 3 for i in range(20)])
    return floats([("BF16", data, {"palette": [100], "seconds": list(range(101, 101 + q))}) for q in range(8)])


@vector(
    "good-float-one-symbol",
    "float_fast with a frequency of 128, so that symbol streams are states alone: of a palette of 1, of the third of 4, of the escape.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    data = having([100] * 1100)
    cases: Cases = []
    for lanes in LANES:
        cases.append(("BF16", data, {"palette": [100], "lanes": lanes, "log_segment": 10}))
        cases.append(("BF16", data, {"palette": [1, 2, 100, 3], "lanes": lanes, "log_segment": 10}))
        cases.append(("BF16", data[:182], {"palette": [1, 2], "seconds": [3, 100], "lanes": lanes}))
    return floats(cases)


@vector(
    "good-float-escapes",
    "float_fast with 0 to 5 escapes that are short, long, or mixed; and with nothing but escapes, short, long and mixed.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    cases: Cases = []
    for n in range(6):
        for kinds in ([90], [91], [90, 91]):
            exponents = [100] * 40
            for k in range(n):
                exponents[7 * k] = kinds[k % len(kinds)]
            cases.append(("BF16", having(exponents), {"palette": [100], "seconds": [80, 90]}))
    all_of_f16 = having([i * 7 % 32 for i in range(83)], "F16")
    for seconds in ([], list(range(15)), list(range(16, 31))):
        cases.append(("F16", all_of_f16, {"palette": [31], "seconds": seconds, "lanes": 128}))
        cases.append(("F16", having([5] * 50, "F16"), {"palette": [31], "seconds": seconds}))
    return floats(cases)


@vector("good-float-wide", "float_fast of all 256 exponents of BF16 and of F32, most of them escaped.")
def _() -> tuple[bytes, dict[str, Any]]:
    exponents = [i * 37 % 256 for i in range(300)]
    wide = {"palette": list(range(255, 240, -1)), "seconds": list(range(15))}
    return floats([(dtype, having(exponents, dtype), {**wide, "lanes": n}) for dtype in ("BF16", "F32") for n in LANES])


@vector(
    "good-float-values",
    "float_fast: all 256 patterns of each fp8 type; NaN payloads, -0, infinities, subnormals of the others.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    cases: Cases = []
    for i, dtype in enumerate(DTYPES):
        size, e_bits, m_bits = FIELDS[dtype]
        if size == 1:
            cases += [(dtype, bytes(range(256)), {"lanes": lanes}) for lanes in LANES]
            continue
        top, sign = ((1 << e_bits) - 1) << m_bits, 1 << (e_bits + m_bits)
        values = [0, 1, (1 << m_bits) - 1, top, top | 1, top | 1 << (m_bits - 1), top - 1, 2 << m_bits]
        data = b"".join((v | s).to_bytes(size, "little") for s in (0, sign) for v in values)
        cases.append((dtype, data, {"lanes": LANES[i % 2]}))
        cases.append((dtype, data, {"palette": [1], "seconds": []}))
    return floats(cases)


@vector(
    "good-float-no-frequency",
    "float_fast with a frequency of 0 for the first, the last, all but one of the palette, and for the escape.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    data = having([100 + i % 2 for i in range(200)])
    tables: list[tuple[list[int], list[int]]] = [
        ([7, 100, 101], [0, 70, 58, 0]),
        ([100, 101, 7], [58, 70, 0, 0]),
        ([7, 100, 8, 101, 9], [0, 1, 0, 127, 0, 0]),
        ([*range(7), 100], [0] * 7 + [64, 64]),
    ]
    return floats([("BF16", data, {"palette": p, "frequencies": f, "lanes": n}) for p, f in tables for n in LANES])


@vector(
    "good-float-unfit-frequencies",
    "float_fast with frequencies that fit the data badly, so that nearly every symbol takes a byte, up to its eighth part.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    cases: Cases = []
    for lanes in LANES:
        data = having([100 + (i % 29 == 0) for i in range(1500)])
        cases.append(("BF16", data, {"palette": [100, 101], "frequencies": [1, 126, 1], "lanes": lanes}))
        cases.append(("BF16", data, {"palette": [101, 99], "frequencies": [3, 124, 1], "lanes": lanes}))
        even = having([90 + i * 11 % 16 for i in range(1500)])
        cases.append(("BF16", even, {"palette": list(range(90, 105)), "frequencies": [8] * 16, "lanes": lanes}))
    return floats(cases)


def escape_each_third(symbols: list[int]) -> None:
    symbols[::3] = [2] * len(symbols[::3])


@vector(
    "good-float-needless-escapes",
    "float_fast as no writer makes it: escapes of exponents in the palette, and bytes for those in the second palette.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    data = having([100 + i % 3 for i in range(50)])
    parts = float_fast(data, "BF16", palette=[100, 101], seconds=[102, 103], bend=escape_each_third)
    longer = float_fast(data, "BF16", palette=[100, 101], seconds=[103])
    longer.seconds.append(102)
    assert parts.long_counts[0] and longer.long_counts[0] == longer.escape_counts[0]
    return coded(FLOAT_FAST, [("BF16", data, parts.payload()), ("BF16", data, longer.payload())])


# ---- bad: mostly such that a decoder which forgets the rule would make the right elements of it

DATA, HALF = weights("BF16", 141), weights("F16", 141)
TWO_SEGMENTS = having([100 if i % 200 else 90 for i in range(2048)])
BENT: dict[str, dict[str, Any]] = {
    "BF16": {"palette": [128, 127, 126], "seconds": [125, 124]},
    "F16": {"palette": [16, 15, 14], "seconds": [13, 12]},
}
IN_TWO = {"data": TWO_SEGMENTS, "log_segment": 10, "palette": [100]}
SURE = {"data": having([100 + i % 7 for i in range(90)]), "palette": list(range(100, 107)), "seconds": []}
"""No exponent is escaped."""


def fast(change: Callable[[FloatFast], Any], data: bytes = DATA, dtype: str = "BF16", **f: Any) -> bytes:
    """A chunk of float_fast, bent by ``change``, which may return bytes to use instead."""
    parts = float_fast(data, dtype, **{**BENT.get(dtype, {}), **f})
    instead = change(parts)
    return with_chunk(dtype, data, FLOAT_FAST, instead if isinstance(instead, bytes) else parts.payload())


def as_it_is(parts: FloatFast) -> None:
    """What is wrong is in the arguments."""


def last_byte_lost(parts: FloatFast) -> None:
    """For a reader that goes on with zeros it is still there."""
    assert parts.symbols[0][-1] == 0
    parts.symbols[0] = parts.symbols[0][:-1]


def one_byte(lanes: int) -> dict[str, Any]:
    """Arguments under which a stream has one byte, 0: the last lane takes it between two symbols."""
    exponents = [100] * (lanes - 1) + [101] + [100] * lanes
    return {"data": having(exponents), "palette": [100, 101], "frequencies": [64, 1, 63], "lanes": lanes}


def low_state(lane: int, lanes: int) -> Callable[[FloatFast], None]:
    """Symbol 1 from state 65 leaves 1, which with the byte 0 becomes the final state: a second way to write it."""

    def change(parts: FloatFast) -> None:
        assert parts.frequencies == [64, 64, 0]
        parts.symbols = [struct.pack(f"<{lanes}H", *[576] * lane, 65, *[256] * (lanes - lane - 1)) + b"\0"]

    return change


def one_escape_more(parts: FloatFast) -> None:
    """The unused nibble is taken for one."""
    assert parts.escape_counts[0] % 2
    parts.escape_counts[0] += 1


def one_escape_less(parts: FloatFast) -> None:
    """The last nibble, which is 0, is taken for unused."""
    assert parts.escape_counts[0] % 2 == 0 and parts.escapes[0][parts.escape_counts[0] // 2 - 1] < 16
    parts.escape_counts[0] -= 1


def escapes_in_the_first(parts: FloatFast) -> None:
    """All escapes are said to be of the first of two segments."""
    assert parts.escape_counts[0] % 2 == 0
    parts.escape_counts = [sum(parts.escape_counts), 0]


def long_ones_in_the_second(parts: FloatFast) -> None:
    counts = parts.long_counts
    counts[0], counts[1] = counts[0] - 1, counts[1] + 1


def sizes_moved(parts: FloatFast) -> None:
    parts.symbol_sizes = [len(parts.symbols[0]) - 1, len(parts.symbols[1]) + 1]


def one_long_more(parts: FloatFast) -> None:
    parts.long_counts[0] += 1
    parts.escapes[0] += b"\x64"


def one_long_less(parts: FloatFast) -> None:
    parts.long_counts[0] -= 1
    parts.escapes[0] = parts.escapes[0][:-1]


CASES: list[tuple[str, str, Callable[[FloatFast], Any], dict[str, Any]]] = [
    ("empty", "float_fast with an empty payload.", lambda p: b"", {}),
    ("header-cut", "float_fast with a payload of three bytes.", lambda p: p.payload()[:3], {}),
    ("palette-cut", "float_fast with a payload that ends in its palette.", lambda p: p.payload()[:6], {}),
    ("frequencies-cut", "float_fast with a payload that ends in its frequencies.", lambda p: p.payload()[:11], {}),
    ("table-cut", "float_fast with a payload that ends in the numbers of its segment.", lambda p: p.payload()[:27], {}),
    ("lanes-16", "float_fast with 16 lanes.", as_it_is, {"lanes": 16}),
    ("lanes-64", "float_fast with 64 lanes.", as_it_is, {"lanes": 64}),
    ("lanes-256", "float_fast with 256 lanes.", as_it_is, {"lanes": 256}),
    ("segment-9", "float_fast with segments of 2^9.", as_it_is, {"log_segment": 9}),
    ("segment-25", "float_fast with segments of 2^25.", as_it_is, {"log_segment": 25}),
    ("palette-0", "float_fast with an empty palette.", as_it_is, {"palette": []}),
    ("palette-16", "float_fast with a palette of 16.", as_it_is, {"palette": list(range(128, 112, -1)), "seconds": []}),
    ("second-16", "float_fast with a second palette of 16.", as_it_is, {"seconds": list(range(125, 109, -1))}),
    ("palette-duplicate", "float_fast with an exponent twice in its palette.", as_it_is, {"palette": [128, 127, 126, 128]}),
    ("second-duplicate", "float_fast with an exponent twice in its second palette.", as_it_is, {"seconds": [125, 124, 125]}),
    ("both-palettes", "float_fast with an exponent in both palettes.", as_it_is, {"seconds": [125, 128]}),
    ("palette-high", "float_fast with an exponent of 2^E in its palette, which does not occur.", as_it_is, {"dtype": "F16", "data": HALF, "palette": [16, 15, 14, 32]}),
    ("second-high", "float_fast with an exponent of 2^E in its second palette, which does not occur.", as_it_is, {"dtype": "F16", "data": HALF, "seconds": [13, 12, 32]}),
    ("frequencies-127", "float_fast with frequencies that add up to 127.", as_it_is, {**SURE, "frequencies": [64, 31, 16, 8, 4, 2, 2, 0]}),
    ("frequencies-129", "float_fast with frequencies that add up to 129.", as_it_is, {**SURE, "frequencies": [64, 31, 16, 8, 4, 2, 2, 2]}),
    ("frequencies-384", "float_fast with frequencies that add up to 384, which is 128 in a byte.", as_it_is, {**SURE, "palette": list(range(100, 109)), "frequencies": [64, 32, 16, 8, 4, 2, 2, 255, 1, 0]}),
    ("frequencies-0", "float_fast with frequencies that are all 0.", put(frequencies=[0] * 4), {}),
    ("padding", "float_fast with padding that is not zero.", lambda p: put(padding=b"\0" * (-len(p.head()) % 8 - 1) + b"\1")(p), {}),
    ("symbol-none", "float_fast with a symbol stream of no bytes, although its one symbol would need none.", put(symbols=[b""]), {"data": having([100] * 40), "palette": [100]}),
    ("symbol-states-32", "float_fast, 32 lanes, with a symbol stream that ends in its states.", on_first("symbols", lambda s: s[:63]), {}),
    ("symbol-states-128", "float_fast, 128 lanes, with a symbol stream that ends in its states.", on_first("symbols", lambda s: s[:255]), {"lanes": 128}),
    ("symbol-sizes", "float_fast with the end of a segment's symbol stream said to be the beginning of the next one's.", sizes_moved, IN_TWO),
    ("symbol-size-high", "float_fast with a symbol stream of 2^32 - 1 bytes.", put(symbol_sizes=[0xFFFFFFFF]), {}),
    ("state-start", "float_fast with a first state of 255 in a lane without symbols.", on_first("symbols", lambda s: patched(s, 62, b"\xff\0")), {"data": DATA[:40]}),
    ("state-start-32", "float_fast, 32 lanes, with a first state of 65, from which a zero byte leads to the right symbol and the right end.", low_state(0, 32), {"data": having([100]), "palette": [9, 100], "frequencies": [64, 64, 0]}),
    ("state-start-128", "float_fast, 128 lanes, with such a state in the last lane.", low_state(127, 128), {"data": having([100] * 128), "palette": [9, 100], "frequencies": [64, 64, 0], "lanes": 128}),
    ("state-end", "float_fast whose first lane ends at 257.", as_it_is, {"ends": [257] + [256] * 31}),
    ("state-end-128", "float_fast, 128 lanes, whose last lane ends at 511.", as_it_is, {"ends": [256] * 127 + [511], "lanes": 128}),
    ("state-end-unused", "float_fast with a state of 257 in a lane without symbols.", as_it_is, {"ends": [256] * 127 + [257], "lanes": 128, "data": DATA[:250]}),
    ("bytes-left-32", "float_fast, 32 lanes, with a byte left over.", on_first("symbols", lambda s: s + b"\0"), {}),
    ("bytes-left-128", "float_fast, 128 lanes, with a byte left over.", on_first("symbols", lambda s: s + b"\0"), {"lanes": 128}),
    ("bytes-missing-32", "float_fast, 32 lanes, without the last byte, which is 0.", last_byte_lost, one_byte(32)),
    ("bytes-missing-128", "float_fast, 128 lanes, without the last byte, which is 0.", last_byte_lost, one_byte(128)),
    ("bytes-none", "float_fast with symbols that need bytes and a stream of states alone.", on_first("symbols", lambda s: s[:64]), {}),
    ("escape-nibble", "float_fast with an escape by nibble 0 and an empty second palette.", put(seconds=[]), {"data": having([100, 0, 100]), "palette": [100], "seconds": [0]}),
    ("escape-nibble-14", "float_fast with an escape by nibble 14 and a second palette of 14.", lambda p: p.seconds.pop() and None, {"data": having([100, 0, 100]), "palette": [100], "seconds": [*range(1, 15), 0]}),
    ("escape-unused", "float_fast with an odd number of escapes and an unused nibble of 1.", on_first("escapes", lambda s: bytes([s[0] | 0x10])), {"data": having([100, 90, 100]), "palette": [100], "seconds": [90, 91]}),
    ("escape-more", "float_fast with an escape more than the symbols have, the unused nibble.", one_escape_more, {"data": having([100, 90, 100]), "palette": [100], "seconds": [90]}),
    ("escape-less", "float_fast with an escape less than the symbols have, as if the last nibble were unused.", one_escape_less, {"data": having([100, 91, 90]), "palette": [100], "seconds": [90, 91]}),
    ("escape-none", "float_fast with escapes of exponent 0 among its symbols and an empty escape stream.", put(escapes=[b""], escape_counts=[0], long_counts=[0]), {"data": having([100, 0, 0]), "palette": [100]}),
    ("escape-count-high", "float_fast with 2^32 - 1 escapes.", put(escape_counts=[0xFFFFFFFF]), SURE),
    ("escape-segments", "float_fast with the escapes of its second segment said to be of the first.", escapes_in_the_first, {**IN_TWO, "seconds": [90]}),
    ("escape-stream-cut", "float_fast with a nibble too few.", on_first("escapes", lambda s: s[:-1]), {"data": having([100, 90, 100]), "palette": [100], "seconds": [90]}),
    ("long-more", "float_fast with a byte more than long escapes.", one_long_more, {}),
    ("long-less", "float_fast with a byte less than long escapes.", one_long_less, {}),
    ("long-alone", "float_fast with a long escape and no escapes.", one_long_more, SURE),
    ("long-count-high", "float_fast with 2^32 - 1 long escapes.", put(long_counts=[0xFFFFFFFF]), {}),
    ("long-segments", "float_fast with a long escape of its first segment said to be of the second.", long_ones_in_the_second, {**IN_TWO, "seconds": []}),
    ("long-high", "float_fast with a long escape of exponent 255, of which F16 has 5 bits.", on_first("escapes", lambda s: s[:-1] + b"\xff"), {"dtype": "F16", "data": HALF}),
    ("raw-short", "float_fast with a raw stream that is too short.", on_first("raws", lambda s: s[:-1]), {}),
    ("tail", "float_fast with a byte after the last stream.", put(tail=b"\0"), {}),
    ("bit-plane", "float_fast with an unused bit of the last bit plane set.", on_first("raws", lambda s: s[:-1] + bytes([s[-1] | 0x80])), {"dtype": "F16", "data": HALF}),
    ("bit-plane-first", "float_fast with an unused bit of the first bit plane set.", on_first("raws", lambda s: patched(s, 1, bytes([s[1] | 0x20]))), {"dtype": "F8_E5M2", "data": bytes(range(100, 113))}),
]  # fmt: skip

for _name, _about, _change, _f in CASES:
    bad(f"float-{_name}", _about, partial(fast, _change, **_f))


def into_sign(dtype: str, change: Callable[[FloatFast, int], None], **f: Any) -> bytes:
    """Coded as 1 with an exponent of 2^E, which is the sign for a reader that does not look."""
    size, e_bits, m_bits = FIELDS[dtype]
    rest = weights(dtype, 40)
    parts = float_fast((1).to_bytes(size, "little") + rest, dtype, **f)
    change(parts, 1 << e_bits)
    data = (1 | 1 << (e_bits + m_bits)).to_bytes(size, "little") + rest
    return with_chunk(dtype, data, FLOAT_FAST, parts.payload())


def palette_into_sign(parts: FloatFast, exponent: int) -> None:
    parts.palette[parts.palette.index(0)] = exponent


def second_into_sign(parts: FloatFast, exponent: int) -> None:
    parts.seconds[parts.seconds.index(0)] = exponent


def escape_into_sign(parts: FloatFast, exponent: int) -> None:
    at = (parts.escape_counts[0] + 1) // 2
    assert parts.escapes[0][at] == 0
    parts.escapes[0] = patched(parts.escapes[0], at, bytes([exponent]))


for _dtype, _kind, _change_sign, _g in (
    ("F16", "palette", palette_into_sign, {"palette": [16, 15, 0]}),
    ("F16", "second", second_into_sign, {"palette": [16, 15], "seconds": [14, 0]}),
    ("F16", "long", escape_into_sign, {"palette": [16, 15], "seconds": [14]}),
    ("F8_E4M3", "long", escape_into_sign, {"palette": [8, 7], "seconds": [6]}),
):
    bad(
        f"float-{_kind}-high-sign{'' if _dtype == 'F16' else '-fp8'}",
        f"float_fast of {_dtype} with an exponent of 2^E that would set the sign: {_kind}.",
        partial(into_sign, _dtype, _change_sign, **_g),
    )

for _dtype, _why in (
    ("I16", "integers"),
    ("F8_E8M0", "F8_E8M0, which has no sign and no mantissa"),
):
    bad(
        f"float-dtype-{_dtype.lower().replace('_', '-')}",
        f"float_fast in a chunk of {_why}.",
        lambda dtype=_dtype: with_chunk(dtype, DATA, FLOAT_FAST, float_fast(DATA, "BF16").payload()),
    )

for _dtype in ("F64", "C128"):
    bad(
        f"float-dtype-{_dtype.lower()}",
        f"float_fast in a chunk of {_dtype}, all exponents below 256.",
        partial(fast, as_it_is, having([100 + i % 5 for i in range(44)], "F64"), _dtype),
    )

bad("float-noise", "float_fast with a payload of noise.", lambda: with_chunk("BF16", DATA, FLOAT_FAST, noise(300)))
bad(
    "float-noise-after-header",
    "float_fast with a right header and noise in its streams.",
    lambda: fast(lambda p: p.payload()[:28] + noise(len(p.payload()) - 28)),
)
