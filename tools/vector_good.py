"""The sealed vectors that every decoder has to accept."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from blake3 import blake3
from vector_assembler import (
    CONST,
    FIELDS,
    FLOAT_FAST,
    ITEM,
    MODEL,
    ZSTD,
    Assembler,
    float_fast,
    zstd,
    zstd_payload,
)

VECTORS: dict[str, tuple[str, Callable[[], tuple[bytes, dict[str, Any]]]]] = {}
Maker = Callable[[], tuple[bytes, dict[str, Any]]]


def vector(name: str, about: str) -> Callable[[Maker], Maker]:
    def register(make: Maker) -> Maker:
        assert name not in VECTORS
        VECTORS[name] = (about, make)
        return make

    return register


def noise(n: int, seed: int = 1) -> bytes:
    """``n`` bytes that look random: a 64-bit linear congruential generator."""
    x, out = seed * 0x9E3779B97F4A7C15 % 2**64, bytearray()
    for _ in range(n):
        x = (x * 6364136223846793005 + 1442695040888963407) % 2**64
        out.append(x >> 56)
    return bytes(out)


def weights(dtype: str, n: int, seed: int = 1, spread: int = 6) -> bytes:
    """``n`` elements with exponents that thin out, as weights have them; complex numbers have 2 n of them."""
    size, e_bits, m_bits = FIELDS[dtype]
    n *= 2 if dtype in ("C64", "C128") else 1
    random, out = noise(n * (size + 1), seed), bytearray()
    top = (1 << e_bits) // 2
    for i in range(n):
        part = random[i * (size + 1) : (i + 1) * (size + 1)]
        exponent = max(0, top - min(spread, (part[0] & -part[0]).bit_length() - 1 if part[0] else 8))
        rest = int.from_bytes(part[1:], "little") & ((1 << (e_bits + m_bits + 1)) - 1)
        value = rest & ~(((1 << e_bits) - 1) << m_bits) | exponent << m_bits
        out += value.to_bytes(size, "little")
    return bytes(out)


def done(a: Assembler, **seal: Any) -> tuple[bytes, dict[str, Any]]:
    expected = a.expected()
    return a.seal(**seal), expected


def coded(codec: int, cases: list[tuple[str, bytes, bytes]]) -> tuple[bytes, dict[str, Any]]:
    """One tensor of one chunk a case: (dtype, data, payload)."""
    a, units = Assembler(), []
    for i, (dtype, data, payload) in enumerate(cases):
        unit = a.tensor(dtype, data, [[f"t{i}.{dtype}", [len(data) // ITEM[dtype]]]])
        a.chunk(unit, 0, codec, payload)
        units.append(unit)
    a.file(b"all.bin", units)
    a.commit()
    return done(a)


# ------------------------------------------------------------------------------------------------------------ codecs


@vector("good-empty", "No files and no tensors: prologue, COMMIT, INDEX, trailer.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    a.commit()
    return done(a)


@vector("good-raw", "One BF16 tensor of two dimensions, one chunk, codec raw, with literal bytes before and after.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    unit = a.raw("BF16", weights("BF16", 12), [["w", [3, 4]]], layer="layer 0")
    a.file(b"model.bin", [b"head", unit, b"tail"])
    a.commit(layer="layer 0")
    return done(a)


@vector("good-transposed", "A tensor coded against another one transposed, in chunks of rows and in one.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    data = weights("BF16", 12)
    turned = b"".join(data[2 * (4 * j + i) :][:2] for i in range(4) for j in range(3))
    first = a.raw("BF16", data, [["w", [3, 4]]], grid=[2, 4])
    rows = a.tensor("BF16", turned, [["t", [4, 3]]], grid=[3, 3], refs=[[4, first, 0, 12]])
    for k in range(2):
        a.chunk(rows, k, 8, b"\0")
    back = a.tensor("BF16", data, [["again", [3, 4]]], refs=[[4, rows, 0, 12]])
    a.chunk(back, 0, 8, b"\0")
    a.file(b"model.bin", [first, rows, back])
    a.commit()
    return done(a)


@vector("good-raw-dtypes", "A raw tensor of every data type.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    units = [a.raw(dtype, noise(3 * size, size), [[dtype, [3]]]) for dtype, size in sorted(ITEM.items())]
    a.file(b"all.bin", units)
    a.commit()
    return done(a)


@vector(
    "good-const", "Codec const: an F32 NaN with a payload, a U8, a BOOL of value 2, an F64 of -0, a C64 and a C128."
)
def _() -> tuple[bytes, dict[str, Any]]:
    a, units = Assembler(), []
    values = {
        "F32": "0100a07f", "U8": "07", "BOOL": "02", "F64": "0000000000000080", "C64": "0000803f000000c0",
        "C128": "000000000000f03f00000000000000c0", "F8_E8M0": "7f",
    }  # fmt: skip
    for dtype, value in values.items():
        unit = a.tensor(dtype, bytes.fromhex(value) * 10, [[dtype, [5, 2]]])
        a.chunk(unit, 0, CONST, bytes.fromhex(value))
        units.append(unit)
    a.file(b"all.bin", units)
    a.commit()
    return done(a)


@vector("good-zstd", "Codec 3 with strides 1, 2, 4, 8 and 16, planes as frames, as runs and as is.")
def _() -> tuple[bytes, dict[str, Any]]:
    a, units = Assembler(), []
    for dtype, stride in (("U8", 1), ("I16", 2), ("U32", 4), ("I64", 8), ("C128", 16)):
        data = b"".join(struct.pack("<I", i * i) + bytes(12) for i in range(16))
        unit = a.tensor(dtype, data, [[f"{dtype}.{stride}", [len(data) // ITEM[dtype]]]])
        a.chunk(unit, 0, ZSTD, zstd(data, stride))
        units.append(unit)
    a.file(b"all.bin", units)
    a.commit()
    return done(a)


@vector("good-zstd-other-stride", "Codec 3 with a stride that is not the size of an element, all planes as is.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    data = noise(24)
    unit = a.tensor("U16", data, [["w", [12]]])
    a.chunk(unit, 0, ZSTD, zstd_payload([(data[j::4], True) for j in range(4)]))
    a.file(b"w", [unit])
    a.commit()
    return done(a)


@vector("good-zstd-metadata", "TENSOR, FILE, COMMIT, TABLE and INDEX stored with codec 3.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    unit = a.raw("U8", noise(6), [["w", [6]]], frame={"compress": True})
    a.file(b"w", [unit], frame={"compress": True})
    a.commit(frame={"compress": True})
    return done(a, compress=True)


# ------------------------------------------------------------------------------------------------- units and members


@vector(
    "good-duplicate",
    "Tied tensors: a whole duplicate, one of the first elements only under another shape, and one of nothing.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    data = weights("BF16", 12)
    source = a.raw("BF16", data, [["embed", [3, 4]]])
    whole = a.tensor("BF16", data, [["head", [3, 4]]], refs=[[2, source, 0, 12]])
    part = a.tensor("BF16", data[:16], [["short", [2, 2, 2]]], refs=[[2, source, 0, 8]])
    none = a.tensor("BF16", b"", [["none", [0]]], refs=[[2, source, 0, 0]])
    a.file(b"tied.bin", [source, whole, part, [none, 0, 0]])
    a.commit()
    return done(a)


@vector(
    "good-duplicate-of-withdrawn",
    "A duplicate whose original belongs to a withdrawn file: the original is live, but no tensor.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    gone = a.file(b"gone.bin", [a.raw("U8", noise(8), [["gone", [8]]])])
    a.file(b"kept.bin", [a.tensor("U8", noise(8), [["kept", [8]]], refs=[[2, 0, 0, 8]])])
    a.commit()
    a.withdraw(gone)
    a.commit()
    return done(a)


@vector(
    "good-reference",
    "Units that refer to some and to all elements of another and have chunks of their own: no duplicates.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    old = a.raw("I16", noise(12), [["old", [6]]])
    new = a.raw("I16", noise(8, 2), [["new", [4]]], refs=[[0, old, 2, 4]])
    all_of_it = a.raw("I16", noise(12, 3), [["next", [6]]], refs=[[0, old, 0, 6]])
    a.file(b"new", [new, all_of_it])
    a.file(b"old", [old])
    a.commit()
    return done(a)


@vector(
    "good-empty-tensors",
    "Tensors without elements: shapes [0], [0, 5], [3, 0] and [2, 0, 4], named by recipes of length 0.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    shapes = ([0], [0, 5], [3, 0], [2, 0, 4])
    units = [a.tensor("F32", b"", [[f"t{i}", shape]], shape=[shape[0], 0]) for i, shape in enumerate(shapes)]
    a.file(b"empty.bin", [b"x", *([unit, 0, 0] for unit in units)])
    a.commit()
    return done(a)


@vector("good-scalar", "Tensors of no dimensions and of one element.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    units = [a.raw("F32", noise(4), [["scalar", []]]), a.raw("I64", noise(8), [["one", [1, 1, 1]]], shape=[1, 1])]
    a.file(b"scalars", units)
    a.commit()
    return done(a)


@vector("good-shared-unit", "Three small tensors in one unit, and a unit of literal bytes without a name.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    members = [["norm.weight", [4], 0, None], ["norm.bias", [4], 4, None], ["scale", [], 8, None]]
    unit = a.raw("F16", weights("F16", 9), members)
    text = b"literal bytes of several files"
    literals = a.tensor("U8", text, [[None, [len(text)]]], shape=[1, len(text)])
    a.chunk(literals, 0, ZSTD, zstd(text))
    a.file(b"small.bin", [unit, [literals, 0, 13]])
    a.file(b"other.txt", [[literals, 13, len(text) - 13]])
    a.commit()
    return done(a)


@vector(
    "good-views", "A storage shared by a matrix, its transpose, a column, an overlapping slice and a broadcast scalar."
)
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    members = [
        ["matrix", [3, 4], 0, None], ["transposed", [4, 3], 0, [1, 4]], ["column", [3], 2, [4]],
        ["slice", [2, 2], 5, [4, 1]], ["broadcast", [2, 3], 7, [0, 0]], ["empty", [0, 4], 0, [4, 1]],
    ]  # fmt: skip
    unit = a.raw("F32", noise(48), members, shape=[3, 4])
    a.file(b"views.pt", [unit])
    a.commit()
    return done(a)


@vector(
    "good-grid-columns",
    "A matrix of 5 x 7 in tiles of 2 x 3: nine chunks, clipped at both edges, codecs mixed, out of order.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    unit = a.tensor("BF16", weights("BF16", 35), [["w", [5, 7]]], grid=[2, 3])
    for k in (8, 0, 5, 1, 2, 3, 4, 6, 7):
        tile = a.tile(unit, k)
        if k % 3 == 0:
            a.chunk(unit, k, FLOAT_FAST, float_fast(tile, "BF16").payload())
        else:
            a.chunk(unit, k, ZSTD if k % 3 == 1 else 0, zstd(tile, 2) if k % 3 == 1 else tile)
    a.file(b"w", [unit])
    a.commit()
    return done(a)


@vector("good-grid-rows", "A tensor of three dimensions in chunks of two rows, and one whose rows are cut inside.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    units = [
        a.raw("U8", noise(30), [["rows", [5, 2, 3]]], grid=[2, 6]),
        a.raw("U8", noise(20, 2), [["inside", [2, 10]]], grid=[1, 4]),
        a.raw("U8", noise(20, 3), [["larger", [2, 10]]], grid=[1 << 40, 1 << 60]),
    ]
    a.file(b"w", units)
    a.commit()
    return done(a)


@vector("good-part", "A block of a larger tensor that several archives hold together.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    unit = a.raw("F32", noise(24), [["w", [2, 3]]], part=[[8, 3], [6, 0]], source=[[0, 100, 24], [None, 0, 0]])
    a.file(b"rank3.bin", [unit])
    a.commit()
    return done(a)


@vector(
    "good-parts",
    "A tensor in four parts, two in each of two files; one shares a unit, one is there twice.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    whole = [5, 4]
    units = [
        a.raw("U8", noise(6), [["w[0:3,0:2]", [3, 2]]], part=[whole, [0, 0]]),
        a.raw(
            "U8", noise(11, 2), [["v", [5], 0, None], ["w[0:3,2:4]", [3, 2], 5, None]],
            shape=[1, 11], part=[None, [whole, [0, 2]]],
        ),
        a.raw("U8", noise(4, 3), [["w[3:5,0:2]", [2, 2]]], part=[whole, [3, 0]]),
        a.raw("U8", noise(4, 4), [["w[3:5,2:4]", [2, 2]]], part=[whole, [3, 2]]),
        a.raw("U8", noise(4, 4), [["w[3:5,2:4]", [2, 2]]], part=[whole, [3, 2]]),
    ]  # fmt: skip
    a.file(b"ranks/0.bin", units[:2])
    a.file(b"ranks/1.bin", units[2:4])
    a.file(b"ranks/2.bin", units[4:])
    a.commit()
    left, right = noise(6), noise(11, 2)[5:]
    rows = [left[2 * i : 2 * i + 2] + right[2 * i : 2 * i + 2] for i in range(3)]
    rows += [noise(4, 3)[2 * i : 2 * i + 2] + noise(4, 4)[2 * i : 2 * i + 2] for i in range(2)]
    data, expected = done(a)
    return data, {**expected, "wholes": [["w", "U8", whole, blake3(b"".join(rows)).hexdigest()]]}


@vector(
    "good-parts-empty",
    "A tensor of three rows in parts of two, one and, twice, no row; and a part without elements that is alone.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    whole = [3, 2]
    units = [
        a.raw("I16", noise(8), [["w[0:2,0:2]", [2, 2]]], part=[whole, [0, 0]]),
        a.raw("I16", noise(4, 2), [["w[2:3,0:2]", [1, 2]]], part=[whole, [2, 0]]),
        a.raw("I16", b"", [["w[3:3,0:2]", [0, 2]]], part=[whole, [3, 0]]),
        a.raw("I16", b"", [["w[1:3,2:2]", [2, 0]]], part=[whole, [1, 2]]),
        a.raw("I16", b"", [["v[1:1]", [0]]], part=[[1], [1]]),
    ]
    a.file(b"ranks.bin", [*units[:2], b"x", *([unit, 0, 0] for unit in units[2:])])
    a.commit()
    data, expected = done(a)
    return data, {**expected, "wholes": [["w", "I16", whole, blake3(noise(8) + noise(4, 2)).hexdigest()]]}


@vector("good-names", "Names that are not ASCII, empty, 1024 bytes long, and the same in two files.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    names = ["層.0.重み", "", "n" * 1024, "same", "same", "\u202e\x1b[31m"]
    units = [a.raw("I8", noise(2, i), [[name, [2]]]) for i, name in enumerate(names)]
    a.file(b"a.bin", units[:4])
    a.file(b"b.bin", units[4:])
    a.commit()
    return done(a)


# ------------------------------------------------------------------------------------------------ files and frames


@vector(
    "good-files",
    "Files: inline, empty, in folders, odd modes, the first and the last time, metadata, a note.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    a.file(b"config.json", [b'{"a": 1}', b"", b"\n"], mode=0o600, mtime=-1)
    a.file(b"empty", mode=0, mtime=0)
    a.file(b"sub/dir/deep.txt", [b"deep"], mode=0o7777, mtime=2**63 - 1)
    a.file(b"sub/note", [b"?"], note="not a zip file", metadata={"format": "pt", "b": "é", "a": ""}, mtime=-(2**63))
    a.directory(b"sub", mode=0o500)
    a.directory(b"nothing here", mode=0o1777, mtime=5)
    a.commit()
    return done(a)


@vector("good-links", "Symbolic links: to a file, to nothing, out of the folder, of bytes that are not UTF-8.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    a.file(b"blobs/abc", [b"content"])
    a.link(b"model.bin", b"blobs/abc")
    a.link(b"dangling", b"not/there")
    a.link(b"outside", b"/etc/passwd")
    a.link(b"up", b"../../\xff\xfe")
    a.commit()
    return done(a)


@vector(
    "good-paths",
    "Paths that are not UTF-8, hold spaces, backslashes, a newline, dots, and sort by bytes; one of 4096 bytes.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    paths = [
        b"\xff\xfe",
        b"a b",
        b"a\\b",
        b"new\nline",
        b"...",
        b"..a",
        b".hidden",
        b"a/b",
        "é".encode(),
        b"a.b",
        b"C:",
    ]
    for path in [*paths, b"/".join([b"d" * 255] * 16)[:4096]]:
        a.file(path, [path[:3]])
    a.commit()
    return done(a)


@vector("good-recipe", "A file made of pieces of units out of order, one of them used twice, and of inline bytes.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    one, two = a.raw("U8", noise(10), [["one", [10]]]), a.raw("U16", noise(10, 2), [["two", [5]]])
    a.file(b"mixed", [[two, 3, 4], b"--", one, [two, 0, 3], [one, 9, 1], [two, 10, 0]])
    a.commit()
    return done(a)


@vector(
    "good-order",
    "The INDEX has the units in layer order, the frames in the order in which they landed; several COMMITs.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    units = []
    for name in ("head", "layers.1", "layers.0", "embed"):
        units.append(a.raw("F16", noise(8, len(name)), [[name, [4]]], layer=name))
        a.commit(layer=name)
    a.file(b"model.safetensors", [b"header", *units], format="safetensors", metadata={"format": "pt"})
    a.commit()
    return done(a, order=[3, 2, 1, 0])


@vector("good-tables", "Two TABLE frames, entries in another order than the units.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    units = [a.raw("U8", noise(6, i), [[f"t{i}", [2, 3]]], grid=[1, 2]) for i in range(4)]
    a.file(b"w", units)
    a.commit()
    return done(a, tables=[[3, 1], [0, 2]])


@vector(
    "good-interleaved", "Chunks of two units interleaved over several COMMITs; a unit is complete only at the last."
)
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    one = a.tensor("U8", noise(4), [["one", [4]]], grid=[2, 1])
    two = a.tensor("U8", noise(4, 2), [["two", [4]]], grid=[2, 1])
    a.chunk(two, 1)
    a.chunk(one, 0)
    a.commit([])
    a.chunk(one, 1)
    a.commit([one])
    a.chunk(two, 0)
    a.file(b"w", [one, two])
    a.commit([two])
    return done(a)


@vector(
    "good-recoded", "A chunk coded again because its source changed: the first CHUNK is dead, the unit is listed twice."
)
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    unit = a.raw("U8", b"0123456789", [["w", [10]]], grid=[5, 1])
    a.commit()
    a.recode(unit, b"01234abcde")
    a.chunk(unit, 1)
    a.file(b"w", [unit])
    a.commit()
    return done(a)


@vector(
    "good-tensors",
    "TENSORs with three units and with two: one duplicates another of its frame, one is dead beside a live one; and a "
    "TENSOR of two dead units.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    first = a.tensor("U8", noise(12), [["a", [3, 4]]], grid=[2, 4], announce=False)
    copy = a.tensor("U8", noise(12), [["b", [12]]], refs=[[2, first, 0, 12]], announce=False)
    gone = a.tensor("I16", noise(8, 2), [["gone", [4]]], announce=False)
    a.announce([first, copy, gone], compress=True)
    for unit, chunk in ((first, 0), (first, 1), (gone, 0)):
        a.chunk(unit, chunk)
    a.file(b"w.bin", [first, copy])
    a.commit()
    dead = [a.tensor("U8", noise(3, 4), [[name, [3]]], announce=False) for name in ("c", "d")]
    a.announce(dead)
    pair = [a.tensor("U8", noise(5, k), [[f"e{k}", [5]]], announce=False) for k in (5, 6)]
    a.announce(pair)
    for unit in pair:
        a.chunk(unit)
    a.file(b"v.bin", pair)
    a.commit([*pair])
    return done(a)


@vector("good-withdrawn", "A file that vanished before the seal: withdrawn, its unit and its frames dead.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    gone = a.file(b"tmp.bin", [a.raw("U8", noise(5), [["gone", [5]]])])
    a.file(b"kept.bin", [a.raw("U8", noise(5, 2), [["kept", [5]]])])
    a.commit()
    a.withdraw(gone)
    a.tensor("U8", noise(7), [["never finished", [7]]])
    a.commit([])
    return done(a)


@vector(
    "good-renamed",
    "A file renamed before the seal, and another one under its first name; the first FILE frame is dead.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    unit = a.raw("U8", noise(5), [["w", [5]]])
    number = a.file(b"model.bin", [unit])
    a.commit()
    a.file(b"old.bin", [unit], number=number)
    a.file(b"model.bin", [b"new"])
    a.commit()
    return done(a)


@vector("good-pad", "PAD frames: empty, of 1 byte, of 200 bytes; between a COMMIT and the INDEX too.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    a.pad(0)
    unit = a.raw("U8", noise(3), [["w", [3]]])
    a.pad(1)
    a.file(b"w", [unit])
    a.commit()
    a.pad(200)
    return done(a)


@vector(
    "good-ancillary", "Unknown ancillary frames, safe to copy or not, with an unknown codec and any ordinal: skipped."
)
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    a.frame(0x8077, b"private", codec=99, ordinal=5, chunk=7, decoded_length=2**62, xxh_decoded=1)
    unit = a.raw("U8", noise(3), [["w", [3]]])
    a.frame(0xC001, b"not an ancillary TENSOR", ordinal=0)
    a.frame(0x8009, b"not a PAD")
    a.file(b"w", [unit])
    a.commit()
    a.frame(0xFFFF, b"")
    return done(a)


@vector("good-model", "MODEL frames, raw and compressed, one of them named by a unit; the codec at hand ignores them.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    a.model(b"")
    a.model(b"tables of some codec")
    plain = b"z" * 100
    a.models.append(a.frame(MODEL, zstd(plain), plain, codec=ZSTD, ordinal=2))
    unit = a.raw("U8", noise(3), [["w", [3]]], models=[1, 1])
    a.file(b"w", [unit])
    a.commit()
    return done(a)


@vector("good-parent", "PARENT frames and a unit that refers to a parent by name but is stored raw.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    a.parent(noise(32), "../step-100.arz")
    a.parent(noise(32, 2), "")
    unit = a.raw("U8", noise(3), [["w", [3]]], refs=[[1, 1, 7, 3]])
    a.file(b"w", [unit])
    a.commit()
    return done(a)


def ancestor() -> Assembler:
    """What is inherited from: three files, of which two have a tensor `w`, and one has two of that name."""
    a = Assembler()
    w = a.raw("BF16", weights("BF16", 24), [["w", [6, 4]]], grid=[4, 4])
    tied = a.tensor("BF16", weights("BF16", 24), [["tied", [24]]], refs=[[2, w, 0, 24]])
    small = a.raw("BF16", noise(20), [["a", [3]], ["b", [5], 3], ["c", [2], 8]])
    view = a.raw("F32", noise(24), [["t", [3, 2], 0, [1, 3]]], shape=[6, 1])
    other = a.raw("BF16", weights("BF16", 24, 2), [["w", [6, 4]]])
    doubled = [a.raw("U8", noise(4, k), [["d", [4]]]) for k in (1, 2)]
    a.directory(b"folder")
    a.file(b"folder/model.bin", [w, tied, small, view])
    a.file(b"other.bin", [other])
    a.file(b"twice.bin", doubled)
    a.commit()
    return a


def heir() -> Assembler:
    """Inherits from :func:`ancestor`. Files there, by path: 0 folder, 1 folder/model.bin, 2 other.bin, 3 twice.bin."""
    a = Assembler()
    a.parent(ancestor().content(), "a name that it does not have.arz")
    data, small = weights("BF16", 24), noise(20)
    units = [
        a.tensor("BF16", data, [["w", [6, 4]]], grid=[1, 2], refs=[[3, 0, 1, 24]]),
        a.tensor("BF16", data, [["tied", [24]]], refs=[[3, 0, 1, 24]]),
        a.tensor("BF16", small[6:16] + small[:6], [["b", [5]], ["a", [3], 5]], refs=[[3, 0, 1, 8]]),
        a.tensor("F32", noise(24), [["t", [3, 2], 0, [1, 3]]], shape=[6, 1], refs=[[3, 0, 1, 6]]),
        a.tensor("BF16", weights("BF16", 24, 2), [["w", [6, 4]]], refs=[[3, 0, 2, 24]]),
        a.raw("BF16", noise(14), [["c", [7]]], refs=[[1, 0, 1, 7]]),
    ]
    a.file(b"model.bin", units[:4])
    a.file(b"other.bin", units[4:])
    a.commit()
    return a


@vector("good-inherited-parent", "Tensors in several files, some of one name, that others inherit; no parent itself.")
def _() -> tuple[bytes, dict[str, Any]]:
    return done(ancestor())


@vector(
    "good-inherited",
    "Inherited units: cut and grouped another way, tied, with strides, of either of two files that have the name.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    data, expected = done(heir())
    return data, {"parents": ["good-inherited-parent.arz"], **expected}


@vector("good-inherited-again", "An inherited unit whose parent has inherited it, and one that its parent has raw.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    a.parent(ancestor().content(), "")
    a.parent(heir().content(), "")
    small = noise(20)
    units = [
        a.tensor("BF16", small[6:16], [["b", [5]]], refs=[[3, 1, 0, 5]]),
        a.tensor("BF16", noise(14), [["c", [7]]], refs=[[3, 1, 1, 7]]),
    ]
    a.file(b"model.bin", units)
    a.commit()
    data, expected = done(a)
    return data, {"parents": ["good-inherited-parent.arz", "good-inherited.arz"], **expected}


@vector("unsupported-inherited", "A unit that is inherited from an archive that nobody has; another one is raw.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    a.parent(noise(32), "gone.arz")
    a.file(b"gone.bin", [a.tensor("U8", noise(8), [["gone", [8]]], refs=[[3, 0, 0, 8]])])
    a.file(b"here.bin", [a.raw("U8", noise(8, 2), [["here", [8]]])])
    a.commit()
    data, expected = done(a)
    return data, {**expected, "unreadable": ["gone", "gone.bin"]}


@vector("good-set", "VOLUME frames: a set of two other vectors, with a file and a tensor of its own.")
def _() -> tuple[bytes, dict[str, Any]]:
    a, volumes = Assembler(), ["good-duplicate", "good-reference"]
    for volume in volumes:
        data, found = VECTORS[volume][1]()
        a.volume(
            volume.encode() + b".arz", length=len(data), root=data[-56:-24], content=bytes.fromhex(found["content"])
        )
    a.file(b"own.bin", [a.raw("U8", noise(5), [["own", [5]]])])
    a.commit()
    data, expected = done(a)
    return data, {**expected, "volumes": [f"{volume}.arz" for volume in volumes]}


@vector("good-prologue", "Compatible features, a writer minor of 9 and the smallest limits that hold the frames.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler(minor=9, compatible=0xFF00, log_frame=10, log_chunk=2, file_id=bytes(16))
    unit = a.raw("U8", noise(8), [["w", [2, 4]]], grid=[1, 4])
    a.file(b"w", [unit])
    a.commit()
    return done(a, trailer={"compatible": 0x0100})


__all__ = ["VECTORS", "Maker", "coded", "done", "noise", "vector", "weights"]
