"""The vectors that every decoder has to refuse.

Each is wrong in one place, and its checksums are right unless they are that place.
"""

# ruff: noqa: E501, PLW0108  (one vector a line; what makes it may be defined below it)

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from vector_assembler import (
    CHUNK,
    CONST,
    FILE,
    FLOAT_FAST,
    ITEM,
    MODEL,
    NONE,
    PARENT,
    RAW,
    TENSOR,
    VOLUME,
    ZSTD,
    Assembler,
    blake3,
    canonical,
    elements,
    zstd,
    zstd_frame,
    zstd_payload,
)
from vector_good import ancestor, noise

VECTORS: dict[str, tuple[str, str, Callable[[], bytes]]] = {}
CORRUPT, NOT_SEALED, NOT_AN_ARCHIVE = "corrupt", "not sealed", "not an archive"


def bad(name: str, about: str, make: Callable[[], bytes], report: str = CORRUPT) -> None:
    assert name not in VECTORS
    VECTORS[f"bad-{name}"] = (about, report, make)


def simple(*, members: Any = None, recipe: Any = None, commit: Any = None, seal: Any = None, **f: Any) -> bytes:
    """A U8 tensor of 2 x 4 in two chunks and a file made of it.

    ``tensor``, ``chunk``, ``file``: fields for the respective frames; ``between``: called before the COMMIT.
    """
    a = Assembler(**f.get("prologue", {}))
    unit = a.tensor(
        "U8", noise(8), members or [["w", [2, 4]]], **{"grid": [1, 4], "shape": [2, 4], **f.get("tensor", {})}
    )
    for k in range(2):
        a.chunk(unit, k, **(f.get("chunk", {}) if k == 0 else {}))
    a.file(b"w.bin", [b"head", unit] if recipe is None else recipe, **f.get("file", {}))
    f.get("between", lambda a: None)(a)
    a.commit(**(commit or {}))
    return a.seal(**(seal or {}))


def prefix(change: Callable[[Assembler], Any]) -> bytes:
    """What ``change`` writes after a good start, committed and sealed."""
    a = Assembler()
    a.raw("U8", noise(8), [["w", [2, 4]]], grid=[1, 4])
    a.file(b"w.bin", [0])
    change(a)
    a.commit()
    return a.seal()


def with_chunk(dtype: str, data: bytes, codec: int, stored: bytes, **f: Any) -> bytes:
    """One tensor in one chunk of the given payload."""
    a = Assembler()
    unit = a.tensor(dtype, data, [["w", [len(data) // ITEM[dtype]]]])
    a.chunk(unit, 0, codec, stored, **f)
    a.file(b"w.bin", [unit])
    a.commit()
    return a.seal()


def patched(data: bytes, offset: int, new: bytes) -> bytes:
    at = offset if offset >= 0 else len(data) + offset
    return data[:at] + new + data[at + len(new) :]


def put(**fields: Any) -> Callable[[Any], None]:
    """A change of the parts of a payload: these fields have these values."""

    def change(parts: Any) -> None:
        for name, value in fields.items():
            setattr(parts, name, value)

    return change


def on_first(name: str, change: Callable[[bytes], bytes]) -> Callable[[Any], None]:
    """A change of the parts of a payload: of the first of the streams ``name``."""

    def apply(parts: Any) -> None:
        streams = getattr(parts, name)
        streams[0] = change(streams[0])

    return apply


# ------------------------------------------------------------------------------------------------ prologue and ends

bad(
    "magic",
    "The first byte lost its top bit: not an archive.",
    lambda: simple(prologue={"magic": bytes.fromhex("0941525a0d0a1a0a")}),
    NOT_AN_ARCHIVE,
)
bad(
    "text-mode",
    "CR LF in the magic became LF: not an archive.",
    lambda: simple().replace(b"\r\n\x1a\n", b"\n\x1a\n", 1),
    NOT_AN_ARCHIVE,
)
bad("nothing", "A file of no bytes.", lambda: b"", NOT_AN_ARCHIVE)
bad("short-prologue", "The first 63 bytes of a prologue.", lambda: simple()[:63], NOT_AN_ARCHIVE)
bad("prologue-crc", "The CRC of the prologue is wrong.", lambda: simple(prologue={"crc": b"\0\0\0\0"}))
bad(
    "prologue-flip",
    "A bit of the file id in the prologue is flipped.",
    lambda: patched(simple(), 33, bytes([simple()[33] ^ 4])),
)
bad(
    "prologue-reserved",
    "A reserved byte of the prologue is not zero.",
    lambda: simple(prologue={"reserved": bytes(11) + b"\1"}),
)
bad(
    "prologue-largest-frame-6",
    "The largest frame is 2^6 bytes, too small for a header.",
    lambda: simple(prologue={"log_frame": 6}),
)
bad("prologue-largest-frame-41", "The largest frame is 2^41 bytes.", lambda: simple(prologue={"log_frame": 41}))
bad("prologue-largest-chunk-29", "The largest chunk is 2^29 bytes.", lambda: simple(prologue={"log_chunk": 29}))
bad("truncated-trailer", "The last byte is missing.", lambda: simple()[:-1], NOT_SEALED)
bad("truncated-64", "The last 64 bytes are missing.", lambda: simple()[:-64], NOT_SEALED)
bad("truncated-index", "The file ends inside the INDEX.", lambda: simple()[:-300], NOT_SEALED)
bad(
    "truncated-commit",
    "The file ends inside the only COMMIT: nothing may be used.",
    lambda: simple()[:1100],
    NOT_SEALED,
)
bad("truncated-prologue", "The file ends after the prologue and one byte.", lambda: simple()[:65], NOT_SEALED)
bad("end-magic", "A bit of the end magic is flipped.", lambda: patched(simple(), -1, b"\x88"), NOT_SEALED)
bad("after-trailer-zeros", "64 zero bytes after the trailer.", lambda: simple(seal={"tail": bytes(64)}))
bad("after-trailer-byte", "One byte after the trailer.", lambda: simple(seal={"tail": b"\n"}))
bad("after-trailer-trailer", "The trailer stands twice.", lambda: simple() + simple()[-128:])
bad("after-trailer-archive", "Two archives one after the other.", lambda: simple() + simple())


def index_place(later: int) -> tuple[int, int]:
    """Offset and length of the INDEX of :func:`simple`, moved by ``later`` bytes."""
    data = simple()
    offset, length = struct.unpack_from("<QQ", data, len(data) - 128 + 40)
    return offset + later, length - later


TRAILERS: list[tuple[str, str, dict[str, Any]]] = [
    ("crc", "The CRC of the trailer is wrong.", {"crc": b"\0\0\0\0"}),
    ("reserved", "A reserved byte of the trailer is not zero.", {"reserved": b"\1" + bytes(11)}),
    ("file-id", "The trailer has another file id.", {"file_id": bytes(16)}),
    ("versions", "The trailer has another writer minor than the prologue.", {"versions": struct.pack("<HHHBB", 1, 0, 3, 30, 28)}),
    ("compatible", "The trailer has a compatible feature that the prologue does not state.", {"compatible": 4}),
    ("index-offset", "The INDEX is said to begin 64 bytes later than it does.", {"index_offset": index_place(64)[0], "index_length": index_place(64)[1]}),
    ("index-offset-high", "The offset of the INDEX is 2^63.", {"index_offset": 1 << 63}),
    ("index-length", "The length of the INDEX is 2^62.", {"index_length": 1 << 62}),
    ("index-length-0", "The length of the INDEX is 0.", {"index_length": 0}),
    ("first-table", "The offset of the first TABLE is that of the first frame.", {"first_table": 64}),
    ("total", "The total length is 64 too high.", {"total": len(simple()) + 64}),
    ("total-high", "The total length is 2^64 - 1.", {"total": (1 << 64) - 1}),
    ("root", "The root digest is wrong.", {"root": bytes(32)}),
]  # fmt: skip

for _name, _about, _fields in TRAILERS:
    bad(f"trailer-{_name}", _about, partial(simple, seal={"trailer": _fields}))

# ------------------------------------------------------------------------------------------------- header and padding

HEADERS: list[tuple[str, str, dict[str, Any]]] = [
    ("sync", "The sync word of a frame is wrong.", {"sync": bytes(8)}),
    ("crc", "The CRC of a header is wrong.", {"crc": b"\0\0\0\0"}),
    ("reserved", "Reserved bytes 12 to 15 of a header are not zero.", {"reserved": 1}),
    ("reserved-end", "The last reserved byte of a header is not zero.", {"reserved_end": bytes(51) + b"\1"}),
    ("sequence", "A sequence number is one too high.", {"sequence": 2}),
    ("file-id", "A frame has the id of another file.", {"file_id": bytes(8)}),
    ("ordinal", "A CHUNK of a unit that no TENSOR announced.", {"ordinal": 1}),
    ("ordinal-none", "A CHUNK without an ordinal.", {"ordinal": NONE}),
    ("chunk-number", "A chunk number beyond the grid.", {"chunk": 2}),
    ("stored-length", "A stored length beyond the file.", {"stored_length": 1 << 20}),
    ("stored-length-high", "A stored length of 2^64 - 1.", {"stored_length": (1 << 64) - 1}),
    ("stored-length-frame", "A stored length above the prologue's largest frame.", {"stored_length": (1 << 30) - 127}),
    ("decoded-length", "A decoded length that is not that of the tile.", {"decoded_length": 5}),
    ("decoded-length-high", "A decoded length of 2^63.", {"decoded_length": 1 << 63}),
    ("xxh-stored", "The XXH3 of the stored payload is wrong.", {"xxh_stored": 0}),
    ("xxh-decoded", "The XXH3 of the decoded payload is wrong.", {"xxh_decoded": 0}),
    ("payload", "A bit of a stored payload is flipped.", {"payload": bytes([noise(1)[0] ^ 1]) + noise(4)[1:]}),
    ("padding", "A byte of the padding is not zero.", {"padding": bytes(59) + b"\1"}),
    ("raw-length", "A raw payload shorter than its decoded length.", {"stored": b"abc"}),
]  # fmt: skip

for _name, _about, _fields in HEADERS:
    bad(f"frame-{_name}", _about, partial(simple, chunk=_fields))

bad("frame-commit-ordinal", "A COMMIT with an ordinal.", lambda: simple(commit={"frame": {"ordinal": 0}}))
bad("frame-metadata-chunk", "A TENSOR with a chunk number.", lambda: simple(tensor={"frame": {"chunk": 1}}))
bad(
    "frame-metadata-const",
    "A TENSOR whose metadata has codec const.",
    lambda: simple(tensor={"frame": {"codec": CONST}}),
)
bad(
    "frame-metadata-float",
    "An INDEX whose metadata has codec float_fast.",
    lambda: simple(seal={"index_frame": {"codec": FLOAT_FAST}}),
)
bad("frame-pad-data", "A PAD that holds something.", lambda: prefix(lambda a: a.pad(0, stored=b"hidden")))
bad("frame-pad-codec", "A PAD with codec 3.", lambda: prefix(lambda a: a.pad(8, codec=ZSTD)))
bad(
    "frame-ancillary-padding",
    "An unknown ancillary frame with something in its padding.",
    lambda: prefix(lambda a: a.frame(0x8077, b"x", padding=b"!" * 63)),
)
bad(
    "frame-ancillary-payload",
    "An unknown ancillary frame whose stored payload does not match its XXH3.",
    lambda: prefix(lambda a: a.frame(0x8077, b"x", xxh_stored=1)),
)
bad("frame-table-without-ordinal", "A TABLE without a number.", lambda: simple(seal={"table_frame": {"ordinal": NONE}}))
bad("frame-tensor-number", "The first TENSOR has number 1.", lambda: simple(tensor={"frame": {"ordinal": 1}}))
bad("frame-file-number", "The first FILE has number 1.", lambda: simple(file={"frame": {"ordinal": 1}}))


def frames_moved(change: Callable[[list[bytes]], list[bytes]]) -> bytes:
    """The frames of a good archive in another order, with a trailer that fits."""
    a = Assembler()
    a.raw("U8", noise(8), [["w", [2, 4]]], grid=[1, 4])
    a.file(b"w.bin", [0])
    a.commit()
    data = a.seal()
    index = a.placed[-1]
    frames = [data[p.offset : p.offset + p.size] for p in a.placed]
    moved = change(frames)
    a.out[64:] = b"".join(moved)
    place = 64 + sum(map(len, moved[: moved.index(frames[-1])]))
    table = place - len(frames[-2])
    return bytes(a.out) + a.trailer(index, table, index_offset=place, total=len(a.out) + 128)


bad(
    "frames-swapped",
    "The two CHUNK frames have changed places.",
    lambda: frames_moved(lambda f: [f[0], f[2], f[1], *f[3:]]),
)
bad("frame-doubled", "A CHUNK frame stands twice.", lambda: frames_moved(lambda f: [f[0], f[1], f[1], *f[2:]]))
bad("frame-dropped", "A CHUNK frame is missing.", lambda: frames_moved(lambda f: [f[0], *f[2:]]))
bad(
    "frame-replaced",
    "A CHUNK frame was replaced by zeros.",
    lambda: frames_moved(lambda f: [f[0], bytes(len(f[1])), *f[2:]]),
)
bad(
    "gap",
    "64 zero bytes between two frames belong to no frame.",
    lambda: frames_moved(lambda f: [f[0], bytes(64), *f[1:]]),
)
bad("frame-first-missing", "The first frame is missing.", lambda: frames_moved(lambda f: f[1:]))
bad("gap-before-trailer", "64 zero bytes between INDEX and trailer.", lambda: frames_moved(lambda f: [*f, bytes(64)]))

# ------------------------------------------------------------------------------------------------------------ metadata


def file_with(raw: bytes, value: dict[str, Any] | None = None) -> bytes:
    """A FILE frame of these bytes; ``value`` is what the INDEX says."""

    def change(a: Assembler) -> None:
        placed = a.metadata(FILE, None, raw=raw, ordinal=1)
        a.files[1] = (GOOD_FILE if value is None else value, placed)

    return prefix(change)


GOOD_FILE = {
    "format": "opaque", "kind": 0, "metadata": {}, "mode": 0o644, "mtime": 0, "note": "", "path": b"x", "recipe": [b"abc"],
    "sha256": bytes.fromhex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"), "size": 3, "target": b"",
}  # fmt: skip


def changed(in_index: bool = True, **f: Any) -> bytes:
    """A FILE frame with these values for some keys, and so in the INDEX unless told otherwise."""
    value = {**GOOD_FILE, **f}
    return file_with(canonical(value), value if in_index else None)


def replaced(old: bytes, new: bytes) -> bytes:
    raw = canonical(GOOD_FILE)
    assert raw.count(old) == 1
    return file_with(raw.replace(old, new))


def unsorted() -> bytes:
    items = sorted(GOOD_FILE.items())
    items[0], items[1] = items[1], items[0]
    return file_with(bytes([0x80 | len(items)]) + b"".join(canonical(k) + canonical(v) for k, v in items))


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth > 1 else []


bad("metadata-unsorted", "Metadata whose keys are not in order.", unsorted)
bad(
    "metadata-duplicate-key",
    "Metadata with a key twice.",
    lambda: replaced(b"\x8b\xa6format\xa6opaque", b"\x8c\xa6format\xa6opaque\xa6format\xa6opaque"),
)
bad(
    "metadata-long-integer",
    "Metadata with an integer of two bytes where one does.",
    lambda: replaced(b"\xa4size\x03", b"\xa4size\xcc\x03"),
)
bad(
    "metadata-signed-integer",
    "Metadata with a positive integer in a signed form.",
    lambda: replaced(b"\xa4mode\xcd\x01\xa4", b"\xa4mode\xd1\x01\xa4"),
)
bad(
    "metadata-long-string",
    "Metadata with a string whose length is not in its shortest form.",
    lambda: replaced(b"\xa4note\xa0", b"\xa4note\xd9\x00"),
)
bad(
    "metadata-long-binary",
    "Metadata with a binary whose length is not in its shortest form.",
    lambda: replaced(b"\xa4path\xc4\x01x", b"\xa4path\xc5\x00\x01x"),
)
bad(
    "metadata-long-array",
    "Metadata with an array whose length is not in its shortest form.",
    lambda: replaced(b"\xa6recipe\x91", b"\xa6recipe\xdc\x00\x01"),
)
bad(
    "metadata-long-map",
    "Metadata with a map whose length is not in its shortest form.",
    lambda: replaced(b"\xa8metadata\x80", b"\xa8metadata\xde\x00\x00"),
)
bad("metadata-float", "Metadata with a float.", lambda: changed(mtime=1.0))
bad(
    "metadata-float-mode",
    "Metadata with a float that is a whole number, in four bytes.",
    lambda: replaced(b"\xa4mode\xcd\x01\xa4", b"\xa4mode\xca\x43\xd2\x00\x00"),
)
bad(
    "metadata-extension", "Metadata with an extension type.", lambda: replaced(b"\xa4note\xa0", b"\xa4note\xd4\x05\x00")
)
bad(
    "metadata-reserved-byte",
    "Metadata with the byte C1, which MessagePack does not use.",
    lambda: replaced(b"\xa4note\xa0", b"\xa4note\xc1"),
)
bad(
    "metadata-not-utf8",
    "Metadata with a string that is not UTF-8.",
    lambda: replaced(b"\xa4note\xa0", b"\xa4note\xa2\xff\xfe"),
)
bad(
    "metadata-surrogate",
    "Metadata with a surrogate encoded in UTF-8.",
    lambda: replaced(b"\xa4note\xa0", b"\xa4note\xa3\xed\xa0\x80"),
)
bad(
    "metadata-integer-key",
    "Metadata with a key that is an integer.",
    lambda: replaced(b"\xa8metadata\x80", b"\xa8metadata\x81\x01\xa1a"),
)
bad("metadata-depth-9", "Metadata nested nine deep.", lambda: changed(False, recipe=nested(8)))
bad("metadata-depth-100000", "Metadata nested a hundred thousand deep, compressed.", lambda: deep_bomb())
bad("metadata-extra-key", "A FILE with a key more than the text lists.", lambda: changed(owner="root"))
bad(
    "metadata-missing-key",
    "A FILE without `note`.",
    lambda: file_with(canonical({k: v for k, v in GOOD_FILE.items() if k != "note"})),
)
bad("metadata-boolean", "A boolean where an integer belongs.", lambda: changed(kind=False))
bad("metadata-string-path", "A path that is a string instead of a binary.", lambda: changed(False, path="x"))
bad(
    "metadata-binary-name",
    "A member's name that is a binary instead of a string.",
    lambda: simple(members=[[b"w", [2, 4]]]),
)
bad("metadata-cut", "Metadata that ends in the middle of a value.", lambda: file_with(canonical(GOOD_FILE)[:-1]))
bad("metadata-tail", "A byte after the metadata's value.", lambda: file_with(canonical(GOOD_FILE) + b"\xc0"))
bad("metadata-empty", "A FILE without metadata.", lambda: file_with(b""))
bad("metadata-array", "A FILE that is an array.", lambda: file_with(canonical([GOOD_FILE])))
bad(
    "metadata-huge-array",
    "An array that claims 2^32 - 1 elements.",
    lambda: replaced(b"\xa6recipe\x91", b"\xa6recipe\xdd\xff\xff\xff\xff"),
)
bad(
    "metadata-huge-string",
    "A string that claims 2^32 - 1 bytes.",
    lambda: replaced(b"\xa4note\xa0", b"\xa4note\xdb\xff\xff\xff\xff"),
)
bad("metadata-bomb", "64 MiB and one byte of metadata in a few hundred bytes.", lambda: bomb((64 << 20) + 1, b"\x00"))
bad(
    "metadata-bomb-lie",
    "Metadata of 100 bytes whose Zstandard frame states 2^31 bytes.",
    lambda: prefix(bomb_that_lies),
)


def bomb(size: int, byte: bytes) -> bytes:
    """A FILE whose payload decodes to ``size`` times ``byte``."""
    stored = zstd_payload([(zstd_frame(byte, run=size), False)])
    return prefix(lambda a: a.frame(FILE, stored, codec=ZSTD, ordinal=1, decoded_length=size, xxh_decoded=0))


def bomb_that_lies(a: Assembler) -> None:
    plain = b"\xc0" * 100
    stored = zstd_payload([(zstd_frame(plain, size=1 << 31), False)])
    a.frame(FILE, stored, plain, codec=ZSTD, ordinal=1)


def deep_bomb() -> bytes:
    plain = b"\x91" * 100_000
    stored = zstd_payload([(zstd_frame(plain, run=len(plain)), False)])
    return prefix(lambda a: a.frame(FILE, stored, plain, codec=ZSTD, ordinal=1))


# ------------------------------------------------------------------------------------------------ units and members

H = 1 << 62


def hostile(members: Any, fields: dict[str, Any]) -> bytes:
    """Like :func:`simple`, but the assembler's books say a unit of 2 x 4 whatever the TENSOR and the INDEX say."""
    a = Assembler()
    wrong = {**fields}
    edit = wrong.pop("edit", lambda value: value)
    if members:
        wrong["members"] = members
    tensor = a.tensor(
        "U8", noise(8), [["w", [2, 4]]], shape=[2, 4], grid=[1, 4], edit=lambda value: edit({**value, **wrong})
    )
    a.chunk(tensor, 0)
    a.chunk(tensor, 1)
    a.file(b"w.bin", [tensor])
    unit = a.units[tensor]
    unit.value = edit({**unit.value, **wrong})
    unit.digests = [digest_of(member) for member in unit.value["members"]]
    a.commit()
    return a.seal(order=[0], tables=[[0]]) if not wrong.get("refs") else sealed_alone(a)


def digest_of(member: list[Any]) -> bytes:
    """What a careless reader would find."""
    _, shape, start, strides = member
    small = all(isinstance(d, int) and 0 <= d <= 8 for d in shape) and start < 8
    if not small or (strides and (len(strides) != len(shape) or not 0 <= min(strides) <= max(strides) < 8)):
        return blake3(noise(8))
    return blake3(elements(noise(8), 1, shape, start, strides))


def sealed_alone(a: Assembler) -> bytes:
    """Seal with the books telling nothing about references that lead nowhere."""
    refs, a.units[0].value["refs"] = a.units[0].value["refs"], []

    def index(value: dict[str, Any]) -> dict[str, Any]:
        a.units[0].value["refs"] = refs
        return value

    return a.seal(order=[0], index=index)


UNITS: list[tuple[str, str, dict[str, Any]]] = [
    ("shape-high", "A unit of 2^62 x 4 elements.", {"tensor": {"shape": [H, 4]}}),
    ("shape-overflow", "A unit whose elements overflow 64 bits to 8.", {"tensor": {"shape": [(1 << 63) // 8 + 1, 1 << 6]}}),
    ("shape-bytes", "A unit of 2^62 elements of 8 bytes.", {"tensor": {"shape": [H, 1], "edit": lambda v: {**v, "dtype": "F64"}}}),
    ("shape-chunks", "A unit of 2^40 chunks of one element.", {"tensor": {"shape": [1 << 40, 1], "grid": [1, 1]}}),
    ("shape-one", "A unit whose shape has one number.", {"tensor": {"shape": [8], "edit": lambda v: v, "grid": [1, 4]}}),
    ("shape-larger", "A unit larger than its chunks.", {"tensor": {"edit": lambda v: {**v, "shape": [3, 4]}}}),
    ("grid-zero", "A grid of no rows.", {"tensor": {"edit": lambda v: {**v, "grid": [0, 4]}}}),
    ("member-beyond", "A member that ends one element after its unit.", {"members": [["w", [2, 4], 0, None], ["v", [3], 6, None]]}),
    ("member-start-high", "A member that starts at element 2^63 - 1.", {"members": [["w", [2, 4], 0, None], ["v", [2], (1 << 63) - 1, None]]}),
    ("member-stride-beyond", "A member whose last stride leads out of the unit.", {"members": [["w", [2, 4], 0, None], ["v", [2, 2], 0, [1, 7]]]}),
    ("member-stride-overflow", "A member whose strides overflow 64 bits.", {"members": [["w", [2, 4], 0, None], ["v", [5, 2], 0, [H, 1]]]}),
    ("member-stride-negative", "A member with a negative stride.", {"members": [["w", [2, 4], 0, None], ["v", [2], 4, [-1]]]}),
    ("member-stride-count", "A member with fewer strides than dimensions.", {"members": [["w", [2, 4], 0, None], ["v", [2, 2], 0, [1]]]}),
    ("member-shape-high", "A member of shape [2^62, 2^62].", {"members": [["w", [2, 4], 0, None], ["v", [H, H], 0, None]]}),
    ("member-shape-negative", "A member with a dimension of -1.", {"members": [["w", [2, 4], 0, None], ["v", [-1], 0, None]]}),
    ("member-dimensions", "A member of 33 dimensions.", {"members": [["w", [2, 4], 0, None], ["v", [1] * 33, 0, None]]}),
    ("member-broadcast", "A member of 2^62 elements by a stride of 0.", {"members": [["w", [2, 4], 0, None], ["v", [H], 0, [0]]]}),
    ("member-name", "A name of 1025 bytes.", {"members": [["w" * 1025, [2, 4], 0, None]]}),
    ("members-none", "A unit without members.", {"tensor": {"edit": lambda v: {**v, "members": []}}}),
    ("model-unknown", "A unit that names a MODEL that is not there.", {"tensor": {"models": [0]}}),
    ("part-outside", "A part that ends outside the whole.", {"tensor": {"part": [[8, 4], [7, 0]]}}),
    ("part-negative", "A part at a negative offset.", {"tensor": {"part": [[8, 4], [-1, 0]]}}),
    ("part-dimensions", "A part whose offset has fewer dimensions than the whole.", {"tensor": {"part": [[8, 4], [0]]}}),
    ("ref-self", "A unit that refers to itself.", {"tensor": {"refs": [[0, 0, 0, 8]]}}),
    ("ref-later", "A unit that refers to a later one.", {"tensor": {"refs": [[0, 1, 0, 8]]}}),
    ("ref-kind", "A reference of kind 5.", {"tensor": {"refs": [[5, 0, 0, 8]]}}),
    ("ref-inherited", "A unit that inherits from a PARENT that is not there.", {"tensor": {"refs": [[3, 0, 0, 8]]}}),
    ("ref-parent", "A reference to a PARENT that is not there.", {"tensor": {"refs": [[1, 0, 0, 8]]}}),
]  # fmt: skip

for _name, _about, _f in UNITS:
    bad(f"unit-{_name}", _about, partial(hostile, _f.get("members"), _f.get("tensor", {})))


def duplicates(refs: list[list[list[int]]], dtype: str = "U8", source: str = "U8") -> bytes:
    a = Assembler()
    a.raw(source, noise(8), [["w", [8 // ITEM[source]]]])
    for i, ref in enumerate(refs):
        a.tensor(dtype, noise(8), [[f"d{i}", [8 // ITEM[dtype]]]], refs=ref)
    a.file(b"w.bin", list(range(len(refs) + 1)))
    a.commit()
    return a.seal()


bad("duplicate-chain", "A duplicate of a duplicate.", lambda: duplicates([[[2, 0, 0, 8]], [[2, 1, 0, 8]]]))
bad("duplicate-short", "A duplicate of a unit that is too short.", lambda: duplicates([[[2, 0, 0, 9]]]))
bad(
    "duplicate-dtype",
    "A duplicate of a unit of another dtype.",
    lambda: duplicates([[[2, 0, 0, 8]]], "U8", "I8"),
)
bad(
    "duplicate-start",
    "A duplicate of elements from 1 on.",
    lambda: duplicates([[[2, 0, 1, 7]]]),
)
bad(
    "duplicate-two",
    "A duplicate of two halves.",
    lambda: duplicates([[[2, 0, 0, 4], [2, 0, 4, 4]]]),
)
bad(
    "duplicate-and-context",
    "A duplicate that also has a unit to code against.",
    lambda: duplicates([[[2, 0, 0, 8], [0, 0, 0, 8]]]),
)
bad("transposed-start", "The transposed of a unit from its second element on.", lambda: referring([4, 0, 1, 7]))
bad("transposed-count", "The transposed of a part of a unit.", lambda: referring([4, 0, 0, 7]))
bad("duplicate-chunks", "A duplicate with a chunk of its own.", lambda: referring([2, 0, 0, 8]))
bad("duplicate-digest", "The BLAKE3 of a duplicate is not that of the bytes it stands for.", lambda: wrong_duplicate())


def wrong_duplicate() -> bytes:
    a = Assembler()
    a.raw("U8", noise(8), [["w", [8]]])
    a.tensor("U8", noise(8, 2), [["d", [8]]], refs=[[2, 0, 0, 8]])
    a.file(b"w.bin", [0])
    a.file(b"d.bin", [1])
    a.commit()
    return a.seal()


def inheriting(
    dtype: str = "BF16", data: bytes = noise(10), member: Any = ("c", [5]), chunk: bool = False, **f: Any
) -> bytes:
    """A unit that claims to be inherited from the vector good-inherited-parent, whose file 1 it names, and another."""
    a = Assembler()
    a.parent(ancestor().content(), "")
    refs = f.get("refs", [[3, 0, f.get("file", 1), len(data) // ITEM[dtype]]])
    unit = a.tensor(dtype, data, [list(member)], refs=refs, shape=[len(data) // ITEM[dtype], 1])
    if chunk:
        a.chunk(unit)
    a.file(b"w.bin", [unit])
    if "again" in f:
        a.file(b"v.bin", [a.tensor(dtype, data, [["v", member[1]]], refs=[[2, unit, 0, member[1][0]]])])
    a.commit()
    return a.seal(tables=[[unit]] if chunk else [])


GOOD_B = noise(20)[6:16]  # the tensor `b` of that file
for inherited_name, inherited_about, inherited_fields in [
    ("digest", "An inherited unit of which the parent has other bytes.", {"member": ("b", [5])}),
    ("name", "An inherited unit that the parent's file does not have.", {"data": GOOD_B, "member": ("x", [5])}),
    ("file", "An inherited unit of a file that the parent does not have.",
     {"data": GOOD_B, "member": ("b", [5]), "file": 9}),
    ("folder", "An inherited unit of what is a folder in the parent.",
     {"data": GOOD_B, "member": ("b", [5]), "file": 0}),
    ("dtype", "An inherited unit of another dtype than its parent's.",
     {"dtype": "F16", "data": GOOD_B, "member": ("b", [5])}),
    ("shape", "An inherited unit of other dimensions than its parent's.",
     {"data": GOOD_B, "member": ("b", [5, 1])}),
    ("rows", "An inherited unit of fewer rows than its parent's.", {"data": GOOD_B[:8], "member": ("b", [4])}),
    ("twice", "An inherited unit of whose name the parent's file has two tensors.",
     {"dtype": "U8", "data": noise(4), "member": ("d", [4]), "file": 3}),
    ("gap", "An inherited unit with an element that is in no tensor.",
     {"data": GOOD_B + bytes(2), "member": ("b", [5])}),
    ("chunk", "An inherited unit with a chunk of its own.", {"data": GOOD_B, "member": ("b", [5]), "chunk": True}),
    ("two", "An inherited unit that also has a parent to code against.",
     {"data": GOOD_B, "member": ("b", [5]), "refs": [[3, 0, 1, 5], [1, 0, 1, 5]]}),
    ("count", "An inherited unit with a reference that is longer than itself.",
     {"data": GOOD_B, "member": ("b", [5]), "refs": [[3, 0, 1, 6]]}),
    ("duplicate", "A duplicate of an inherited unit.", {"data": GOOD_B, "member": ("b", [5]), "again": True}),
]:  # fmt: skip
    bad(f"inherited-{inherited_name}", inherited_about, partial(inheriting, **inherited_fields))


def inherited_together() -> bytes:
    """A unit of two tensors of good-inherited-parent; its COMMIT lists the BLAKE3 of their digests."""
    a = Assembler()
    a.parent(ancestor().content(), "")
    members = [["b", [5], 0, None], ["b", [5], 5, None]]
    unit = a.tensor("BF16", GOOD_B * 2, members, refs=[[3, 0, 1, 10]])
    a.file(b"w.bin", [unit])
    a.commit(edit=lambda v: {**v, "units": [[unit, [blake3(b"".join(a.units[unit].digests))]]]})
    return a.seal(tables=[])


bad("inherited-digest-together", "A COMMIT with one digest for an inherited unit of two members.", inherited_together)


def missing(units: Any, number_of_chunks: int = 1, recipe: Any = (0,)) -> bytes:
    a = Assembler()
    a.tensor("U8", noise(8), [["w", [2, 4]]], grid=[1, 4])
    for k in range(number_of_chunks):
        a.chunk(0, k)
    a.file(b"w.bin", list(recipe))
    a.commit(units)
    return a.seal()


def second(**f: Any) -> Callable[[Assembler], None]:
    """Another TENSOR with ``frame`` fields."""

    def change(a: Assembler) -> None:
        a.raw("U8", noise(8, 2), [["v", [8]]], **f)

    return change


bad("chunk-missing", "A COMMIT lists a unit of which a chunk is missing.", lambda: missing(None))
bad("chunks-missing", "A COMMIT lists a unit without any chunk.", lambda: missing(None, 0))


def announced(edit: Callable[[list[Any]], Any], **f: Any) -> bytes:
    """Two units in one TENSOR, bent."""
    a = Assembler()
    units = [a.tensor("U8", noise(8, k), [[f"w{k}", [8]]], announce=False) for k in (1, 2)]
    a.announce(units, edit=edit, **f)
    for unit in units:
        a.chunk(unit)
    a.file(b"w.bin", units)
    a.commit()
    return a.seal()


bad("tensors-one", "A TENSOR with an array of one unit.", lambda: simple(tensor={"edit": lambda v: [v]}))
bad("tensors-none", "A TENSOR with an empty array.", lambda: prefix(lambda a: a.metadata(TENSOR, [], ordinal=1)))
bad("tensors-nested", "A TENSOR with an array in its array.", lambda: announced(lambda v: [[v[0]], v[1]]))
bad(
    "tensors-second",
    "A TENSOR whose second unit has no layer.",
    lambda: announced(lambda v: [v[0], {k: x for k, x in v[1].items() if k != "layer"}]),
)
bad(
    "tensors-first-number",
    "A TENSOR of two units that has the number of the second.",
    lambda: announced(list, ordinal=1),
)
bad(
    "tensors-refers-ahead",
    "A TENSOR whose first unit duplicates its second.",
    lambda: announced(lambda v: [{**v[0], "refs": [[2, 1, 0, 8]]}, v[1]]),
)
bad("unit-not-committed", "A sealed file whose live unit is listed by no COMMIT.", lambda: missing([], 2))
bad("tensor-twice", "Two TENSOR frames with one number.", lambda: prefix(second(frame={"ordinal": 0})))
bad("tensor-number-left-out", "The second TENSOR has number 2.", lambda: prefix(second(frame={"ordinal": 2})))
bad(
    "chunk-before-tensor",
    "A CHUNK before its TENSOR.",
    lambda: prefix(lambda a: a.frame(CHUNK, b"x" * 8, ordinal=1)),
)
bad(
    "chunk-of-empty",
    "A CHUNK of a unit that has no elements.",
    lambda: prefix(lambda a: (a.tensor("U8", b"", [["e", [0]]]), a.frame(CHUNK, b"", ordinal=1))),
)
bad("blake3", "The BLAKE3 of a member is wrong.", lambda: wrong_digest())


def wrong_digest() -> bytes:
    a = Assembler()
    a.raw("U8", noise(8), [["w", [8]]])
    a.units[0].digests = [bytes(32)]
    a.file(b"w.bin", [0])
    a.commit()
    return a.seal()


# -------------------------------------------------------------------------------------------------------------- files

FILES: list[tuple[str, str, dict[str, Any]]] = [
    ("path-empty", "An empty path.", {"path": b""}),
    ("path-absolute", "An absolute path.", {"path": b"/etc/passwd"}),
    ("path-parent", "A path that begins with `..`.", {"path": b"../x"}),
    ("path-parent-inside", "A path with `..` inside.", {"path": b"a/../../x"}),
    ("path-parent-end", "A path that ends in `..`.", {"path": b"a/.."}),
    ("path-dot", "A path with `.` as a component.", {"path": b"a/./x"}),
    ("path-double-slash", "A path with an empty component.", {"path": b"a//x"}),
    ("path-slash-end", "A path that ends in a slash.", {"path": b"a/"}),
    ("path-nul", "A path with a NUL byte.", {"path": b"a\0b"}),
    ("path-long", "A path of 4097 bytes.", {"path": b"a" * 4097}),
    ("path-twice", "Two files with one path.", {"path": b"w.bin"}),
    ("path-below-file", "A path below a file.", {"path": b"w.bin/x"}),
    ("kind", "A file of kind 4.", {"kind": 4}),
    ("mode", "A mode with a bit beyond 0o7777.", {"mode": 0o10644}),
    ("mtime", "A time beyond 64 bits with sign.", {"mtime": 1 << 63}),
    ("size", "A recipe whose pieces add up to less than the size.", {"size": 4}),
    ("size-high", "A size of 2^62 that the recipe does not give.", {"size": 1 << 62}),
    ("sha256", "A wrong SHA-256.", {"sha256": bytes(32)}),
    ("sha256-short", "A SHA-256 of 31 bytes.", {"sha256": bytes(31)}),
    ("target", "A regular file with a target.", {"target": b"y"}),
    ("metadata-value", "File metadata with an integer for a value.", {"metadata": {"a": 1}}),
    ("recipe-unit", "A recipe that names a unit that is not there.", {"in_index": False, "recipe": [[9, 0, 3]]}),
    ("recipe-beyond", "A piece that ends after its unit.", {"recipe": [[0, 6, 3]]}),
    ("recipe-offset-high", "A piece at offset 2^63 - 1.", {"recipe": [[0, (1 << 63) - 1, 3]]}),
    ("recipe-overflow", "Lengths of pieces that overflow 64 bits to the size.", {"recipe": [[0, 0, (1 << 63) - 1], [0, 0, (1 << 63) - 1], [0, 0, 5]]}),
    ("recipe-negative", "A piece of negative length.", {"recipe": [[0, 0, 8], [0, 0, -5]]}),
    ("recipe-piece", "A piece of two numbers.", {"recipe": [[0, 3]]}),
]  # fmt: skip

for _name, _about, _f in FILES:
    bad(f"file-{_name}", _about, partial(changed, **_f))

bad(
    "file-link-empty",
    "A link without a target.",
    lambda: changed(kind=1, recipe=[], size=0, sha256=blank(), target=b""),
)
bad(
    "file-link-nul",
    "A link whose target holds a NUL byte.",
    lambda: changed(kind=1, recipe=[], size=0, sha256=blank(), target=b"a\0"),
)
bad("file-link-content", "A link with content.", lambda: changed(kind=1, target=b"x"))
bad("file-directory-sha256", "A directory with the SHA-256 of something.", lambda: changed(kind=2, recipe=[], size=0))
bad(
    "file-withdrawn-mode",
    "A file that is withdrawn but keeps its mode.",
    lambda: changed(kind=3, format="", recipe=[], size=0, sha256=blank()),
)
bad(
    "file-through-link",
    "A file below a symbolic link.",
    lambda: prefix(lambda a: (a.link(b"sub", b"/tmp"), a.file(b"sub/evil", [b"x"]))),
)
bad(
    "file-through-link-deep",
    "A file two folders below a symbolic link, sorted apart from it.",
    lambda: prefix(lambda a: (a.link(b"a", b".."), a.file(b"a.b"), a.file(b"a/b/c"))),
)


def blank() -> bytes:
    return bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")


def expansion() -> bytes:
    """A const tensor of 16 MiB in a byte, named 2000 times by a file: 31 GiB."""
    a = Assembler()
    size = 1 << 24
    unit = a.tensor("U8", b"", [["zeros", [size]]], shape=[size, 1], grid=[size, 1])
    a.units[unit].frames[0] = a.frame(CHUNK, b"\0", bytes(size), ordinal=unit, codec=CONST)
    a.units[unit].digests = [blake3(bytes(size))]
    value = {**GOOD_FILE, "recipe": [[unit, 0, size]] * 2000, "size": 2000 * size}
    a.files[0] = (value, a.metadata(FILE, value, ordinal=0))
    a.commit()
    return a.growing()


# ------------------------------------------------------------------------------------------------- COMMIT, TABLE, INDEX

bad(
    "commit-chain",
    "The chain of a COMMIT is wrong.",
    lambda: simple(commit={"edit": lambda v: {**v, "chain": bytes(32)}}),
)
bad("commit-chain-second", "The chain of the second COMMIT leaves out the header of the first.", lambda: second_chain())
bad(
    "commit-previous",
    "A COMMIT that names a previous one although it is the first.",
    lambda: simple(commit={"previous": 64}),
)
bad(
    "commit-unit-unknown",
    "A COMMIT that lists a unit that is not there.",
    lambda: simple(commit={"edit": lambda v: {**v, "units": [*v["units"], [1, []]]}}),
)
bad(
    "commit-unit-twice",
    "A COMMIT that lists a unit twice.",
    lambda: simple(commit={"edit": lambda v: {**v, "units": v["units"] * 2}}),
)
bad(
    "commit-digests",
    "A COMMIT with two digests for one member.",
    lambda: simple(commit={"edit": lambda v: {**v, "units": [[0, [bytes(32)] * 2]]}}),
)
bad(
    "commit-digest-short",
    "A COMMIT with a digest of 31 bytes.",
    lambda: simple(commit={"edit": lambda v: {**v, "units": [[0, [bytes(31)]]]}}),
)
bad(
    "commit-digest-each",
    "A COMMIT that lists the BLAKE3 of each member of a unit of two.",
    lambda: shared(commit=lambda digests: digests),
)
bad(
    "commit-digest-order",
    "A COMMIT with the BLAKE3 of the digests of two members in the wrong order.",
    lambda: shared(commit=lambda digests: [blake3(digests[1] + digests[0])]),
)
bad(
    "index-digest-order",
    "The INDEX lists the right digests of two members in the wrong order.",
    lambda: shared(index=lambda digests: digests[::-1]),
)
bad(
    "index-digest-together",
    "The INDEX lists one digest for a unit of two members.",
    lambda: shared(index=lambda digests: [blake3(b"".join(digests))]),
)
bad("commit-none", "A sealed file without a COMMIT.", lambda: no_commit())
bad("commit-after-table", "A COMMIT after a TABLE.", lambda: commit_after_table())
bad(
    "uncommitted-file",
    "A FILE after the last COMMIT of a sealed file.",
    lambda: after_commit(lambda a: a.file(b"late", [b"x"])),
)
bad(
    "uncommitted-chunk",
    "A CHUNK after the last COMMIT of a sealed file.",
    lambda: after_commit(lambda a: a.chunk(0, 0)),
)
bad("pad-after-table", "A PAD between TABLE and INDEX.", lambda: pad_after_table())
bad(
    "growing-chain",
    "Growing: the chain of the last COMMIT is wrong.",
    lambda: growing_with(lambda a: a.commit(chain=bytes(32))),
)
bad(
    "growing-path",
    "Growing: a committed FILE whose path leads out.",
    lambda: growing_with(lambda a: (a.file(b"../x", [b"y"]), a.commit())),
)
bad("growing-frame-after-index", "Growing: a COMMIT after an INDEX.", lambda: growing_with(commit_after_index))
bad(
    "growing-chunk",
    "Growing: a committed chunk does not decode.",
    lambda: growing_with(lambda a: (a.chunk(0, 1, CONST, b"ab"), a.commit())),
)
bad(
    "growing-digest",
    "Growing: the BLAKE3 of a committed unit is wrong.",
    lambda: growing_with(
        lambda a: (
            a.raw("U8", b"x", [["x", [1]]]),
            a.commit(units=[], edit=lambda v: {**v, "units": [[1, [bytes(32)]]]}),
        )
    ),
)


def second_chain() -> bytes:
    a = Assembler()
    a.raw("U8", noise(8), [["w", [8]]])
    a.commit()
    a.headers.clear()
    a.file(b"w.bin", [0])
    a.commit()
    return a.seal()


def shared(**f: Callable[[list[bytes]], list[bytes]]) -> bytes:
    """Two tensors in one unit. ``commit``, ``index``: from their digests to what is listed for it there."""
    a = Assembler()
    a.file(b"w.bin", [a.raw("U8", noise(8), [["x", [3], 0, None], ["y", [5], 3, None]])])
    digests = a.units[0].digests
    a.commit(units=[], edit=lambda v: {**v, "units": [[0, f.get("commit", lambda _: a.units[0].committed)(digests)]]})
    listed = f.get("index", lambda digests: digests)(digests)
    return a.seal(index=lambda v: {**v, "units": [[*v["units"][0][:2], listed, *v["units"][0][3:]]]})


def no_commit() -> bytes:
    a = Assembler()
    a.file(b"w.bin", [b"x"])
    return a.seal()


def after_commit(change: Callable[[Assembler], Any]) -> bytes:
    a = Assembler()
    a.raw("U8", noise(8), [["w", [2, 4]]], grid=[1, 4])
    a.file(b"w.bin", [0])
    a.commit()
    change(a)
    return a.seal()


def growing_with(change: Callable[[Assembler], Any]) -> bytes:
    a = Assembler()
    a.raw("U8", noise(8), [["w", [2, 4]]], grid=[1, 4])
    a.commit()
    change(a)
    return a.growing()


def commit_after_index(a: Assembler) -> None:
    a.seal()
    del a.out[-128:]
    a.commit()


def pad_after_table() -> bytes:
    a = Assembler()
    a.raw("U8", noise(8), [["w", [8]]])
    a.file(b"w.bin", [0])
    a.commit()
    return a.seal(before_index=lambda: a.pad(0))


def commit_after_table() -> bytes:
    a = Assembler()
    a.raw("U8", noise(8), [["w", [8]]])
    a.file(b"w.bin", [0])
    a.commit()
    return a.seal(before_index=a.commit)


def index_with(**f: Any) -> Callable[[], bytes]:
    """``f``: for each key of the INDEX a function from its right value to a wrong one."""
    return lambda: simple(seal={"index": lambda v: {**v, **{key: change(v[key]) for key, change in f.items()}}})


def unit_with(place: int, change: Callable[[Any], Any]) -> Callable[[], bytes]:
    def units(value: list[list[Any]]) -> list[list[Any]]:
        entry = list(value[0])
        entry[place] = change(entry[place])
        return [entry, *value[1:]]

    return index_with(units=units)


bad("index-chain", "The chain in the INDEX is wrong.", index_with(chain=lambda _: bytes(32)))
bad("index-content", "The content digest is wrong.", index_with(content=lambda _: bytes(32)))
bad("index-dead", "The INDEX says one dead frame where there is none.", index_with(dead=lambda _: [1, 192]))
bad(
    "index-file-mode",
    "A file has another mode in the INDEX than in its FILE frame.",
    index_with(files=lambda v: [[0, {**v[0][1], "mode": 0o600}]]),
)
bad("index-file-missing", "A file is not in the INDEX.", index_with(files=lambda _: []))
bad("index-file-number", "A file has another number in the INDEX.", index_with(files=lambda v: [[1, v[0][1]]]))
bad(
    "index-file-path",
    "A path in the INDEX leads out, the one in the FILE frame does not.",
    index_with(files=lambda v: [[0, {**v[0][1], "path": b"../w"}]]),
)
bad(
    "index-table-offset",
    "The INDEX has another offset of a TABLE.",
    index_with(tables=lambda v: [[v[0][0] + 64, *v[0][1:]]]),
)
bad("index-table-missing", "The INDEX leaves out a TABLE.", index_with(tables=lambda _: []))
bad("index-table-hash", "The INDEX has another XXH3 of a TABLE.", index_with(tables=lambda v: [[*v[0][:2], 0]]))
bad("index-model", "The INDEX has a MODEL that is not there.", index_with(models=lambda _: [[64, 0, 0, 0, 0, 0]]))
bad(
    "index-parent",
    "The INDEX has a PARENT that is not there.",
    index_with(parents=lambda _: [{"digest": bytes(32), "hint": ""}]),
)
bad("index-volume", "The INDEX has a VOLUME that is not there.", index_with(volumes=lambda _: [volume_map(b"v.arz")]))
bad("index-unit-missing", "A live unit is not in the INDEX.", index_with(units=lambda _: []))
bad("index-unit-twice", "A unit stands twice in the INDEX.", index_with(units=lambda v: v * 2))
bad("index-unit-number", "The INDEX has a unit that is not there.", unit_with(0, lambda _: 1))
bad(
    "index-unit-shape",
    "A unit has another shape in the INDEX than in its TENSOR.",
    unit_with(1, lambda v: {**v, "shape": [1, 8], "grid": [1, 4]}),
)
bad(
    "index-unit-name",
    "A tensor has another name in the INDEX than in its TENSOR.",
    unit_with(1, lambda v: {**v, "members": [["x", *v["members"][0][1:]]]}),
)
bad("index-unit-digest", "The INDEX has another BLAKE3 than the COMMIT.", unit_with(2, lambda _: [bytes(32)]))
bad("index-unit-table", "The INDEX names table 1, which is not there.", unit_with(3, lambda _: 1))
bad("index-unit-first", "The INDEX names entries beyond the table.", unit_with(4, lambda _: 1))
bad("index-unit-entries", "The INDEX has one entry for a unit of two chunks.", unit_with(5, lambda _: 1))
bad("index-unit-entries-high", "The INDEX has 2^62 entries for a unit of two chunks.", unit_with(5, lambda _: H))
bad("index-unit-stored", "The INDEX has wrong stored bytes.", unit_with(6, lambda v: v + 1))
bad("index-extra-key", "The INDEX has a key more.", lambda: simple(seal={"index": lambda v: {**v, "zzz": None}}))
bad("index-twice", "Two INDEX frames.", lambda: simple(seal={"twice": True}))
bad(
    "index-missing", "The frame before the trailer is a COMMIT, and the trailer calls it the INDEX.", lambda: no_index()
)
bad("table-offset", "A TABLE entry has the offset of another frame.", lambda: table_with(0, struct.pack("<Q", 64)))
bad(
    "table-overlap", "Two TABLE entries name one CHUNK.", lambda: simple(seal={"rows": lambda rows: [rows[0], rows[0]]})
)
bad(
    "table-order",
    "The TABLE entries of a unit are in the wrong order.",
    lambda: simple(seal={"rows": lambda rows: rows[::-1]}),
)
bad(
    "table-stored-length", "A TABLE entry has another stored length.", lambda: table_with(8, struct.pack("<Q", 1 << 40))
)
bad(
    "table-decoded-length",
    "A TABLE entry has another decoded length.",
    lambda: table_with(16, struct.pack("<Q", 1 << 40)),
)
bad("table-xxh-stored", "A TABLE entry has another XXH3 of the stored payload.", lambda: table_with(24, bytes(8)))
bad("table-xxh-decoded", "A TABLE entry has another XXH3 of the decoded payload.", lambda: table_with(32, bytes(8)))
bad("table-codec", "A TABLE entry has another codec.", lambda: table_with(40, struct.pack("<H", CONST)))
bad("table-reserved", "A reserved byte of a TABLE entry is not zero.", lambda: table_with(47, b"\1"))
bad(
    "table-extra",
    "A TABLE has an entry that no unit uses.",
    lambda: simple(seal={"rows": lambda rows: [*rows, rows[0]]}),
)
bad("table-length", "A TABLE of 97 bytes.", lambda: simple(seal={"rows": lambda rows: [*rows, b"\0"]}))


def table_with(at: int, new: bytes) -> bytes:
    return simple(seal={"rows": lambda rows: [patched(rows[0], at, new), *rows[1:]]})


def no_index() -> bytes:
    a = Assembler()
    commit = a.commit()
    a.out += a.trailer(commit, commit.offset)
    return bytes(a.out)


# ------------------------------------------------------------------------------------------------------------- codecs

I16 = noise(32)


def zstd_chunk(stored: bytes) -> bytes:
    return with_chunk("I16", I16, ZSTD, stored)


def planes(*replace: tuple[bytes, bool], **f: Any) -> bytes:
    """A payload of stride 2 of which the first planes are replaced."""
    right = [(I16[::2], True), (I16[1::2], True)]
    return zstd_chunk(zstd_payload([*replace, *right[len(replace) :]], **f))


bad("const-short", "A const payload of less than an element.", lambda: with_chunk("I16", b"ab" * 4, CONST, b"a"))
bad("const-long", "A const payload of two elements.", lambda: with_chunk("I16", b"ab" * 4, CONST, b"abab"))
bad("const-empty", "A const payload of nothing.", lambda: with_chunk("I16", b"ab" * 4, CONST, b""))
bad("const-half", "A const payload of half a complex number.", lambda: with_chunk("C64", b"abcd" * 4, CONST, b"abcd"))
bad("raw-long", "A raw payload longer than its tile.", lambda: with_chunk("I16", I16, RAW, I16 + b"\0"))
bad("zstd-stride", "zstd with stride 3.", lambda: zstd_chunk(zstd_payload([(I16[:12], True)] * 2 + [(I16[:8], True)])))
bad("zstd-stride-0", "zstd with stride 0.", lambda: zstd_chunk(bytes(8)))
bad(
    "zstd-stride-odd-length",
    "zstd with a stride that does not divide the decoded length.",
    lambda: with_chunk("U8", b"abc", ZSTD, zstd_payload([(b"ac", True), (b"b", True)])),
)
bad("zstd-reserved", "zstd with a reserved byte that is not zero.", lambda: planes(reserved=b"\0\1\0"))
bad("zstd-short", "zstd with a payload that ends in its header.", lambda: zstd_chunk(b"\x02\0\0\0\x10\0\0\x80"))
bad("zstd-empty", "zstd with an empty payload.", lambda: zstd_chunk(b""))
bad("zstd-plane-length", "A zstd plane stored as is that is too short.", lambda: planes((I16[:15], True)))
bad(
    "zstd-plane-beyond",
    "A zstd plane that claims 2^31 - 1 bytes.",
    lambda: zstd_chunk(b"\2\0\0\0" + struct.pack("<II", 0xFFFFFFFF, 0x80000010) + I16),
)
bad("zstd-tail", "A byte after the last zstd plane.", lambda: zstd_chunk(zstd(I16, 2) + b"\0"))
bad(
    "zstd-no-content-size",
    "A Zstandard frame that does not state its content size.",
    lambda: planes((zstd_frame(I16[::2], state_size=False), False)),
)
bad(
    "zstd-content-size",
    "A Zstandard frame that states one byte more than the plane has.",
    lambda: planes((zstd_frame(I16[::2] + b"x"), False)),
)
bad(
    "zstd-content-size-lie",
    "A Zstandard frame that states the plane's length but holds more.",
    lambda: planes((zstd_frame(I16, size=16), False)),
)
bad(
    "zstd-content-size-less",
    "A Zstandard frame that states the plane's length but holds less.",
    lambda: planes((zstd_frame(I16[:8], size=16), False)),
)
bad(
    "zstd-two-frames",
    "A plane of two Zstandard frames.",
    lambda: planes((zstd_frame(I16[:16:2]) + zstd_frame(I16[16::2]), False)),
)
bad(
    "zstd-skippable",
    "A Zstandard frame after a skippable one.",
    lambda: planes((b"\x50\x2a\x4d\x18\x01\0\0\0x" + zstd_frame(I16[::2]), False)),
)
bad(
    "zstd-skippable-after",
    "A skippable frame after a Zstandard frame.",
    lambda: planes((zstd_frame(I16[::2]) + b"\x50\x2a\x4d\x18\0\0\0\0", False)),
)
bad(
    "zstd-dictionary",
    "A Zstandard frame that names a dictionary.",
    lambda: planes((b"\x28\xb5\x2f\xfd\xa1\x07\x10\0\0\0" + zstd_frame(I16[::2])[9:], False)),
)
bad("zstd-garbage", "A plane that is no Zstandard frame.", lambda: planes((noise(20), False)))
bad("zstd-cut", "A Zstandard frame that is cut off.", lambda: planes((zstd_frame(I16[::2])[:-1], False)))
bad(
    "zstd-bomb",
    "A chunk of 16 bytes whose Zstandard frame holds 64 MiB.",
    lambda: zstd_chunk(zstd_payload([(zstd_frame(b"\0", run=64 << 20), False), (I16[1::2], True)])),
)
bad("zstd-metadata-stride", "Metadata stored with codec 3 and stride 2.", lambda: metadata_stride())


def metadata_stride() -> bytes:
    value = {**GOOD_FILE, "note": "x"}
    plain = canonical(value)
    assert len(plain) % 2 == 0

    def change(a: Assembler) -> None:
        a.files[1] = (value, a.frame(FILE, zstd(plain, 2), plain, codec=ZSTD, ordinal=1))

    return prefix(change)


bad(
    "expansion",
    "Growing: a file of 31 GiB in a few kilobytes, by a const chunk of 16 MiB named 2000 times; to be refused where the archive is not trusted (64 times its size).",
    expansion,
)


# ------------------------------------------------------------------------- what a careless reader of the above would miss


def duplicate_with_place() -> bytes:
    def index(value: dict[str, Any]) -> dict[str, Any]:
        value["units"][1][4] = 1
        return value

    a = Assembler()
    a.raw("U8", noise(8), [["w", [8]]])
    a.tensor("U8", noise(8), [["d", [8]]], refs=[[2, 0, 0, 8]])
    a.file(b"w.bin", [0, 1])
    a.commit()
    return a.seal(index=index)


def only_a_pad() -> bytes:
    a = Assembler()
    a.pad(0)
    return a.seal()


def two_members(a: Assembler, part: Any = ((8,), (0,))) -> None:
    part = [list(item) if isinstance(item, tuple) else item for item in part]
    a.raw("U8", noise(8, 2), [["v", [8], 0, None], ["x", [8], 0, None]], shape=[1, 8], part=part)
    a.file(b"v.bin", [1])


def referring(ref: list[int], parent: bool = False) -> bytes:
    a = Assembler()
    if parent:
        a.parent(bytes(32), "")
    a.raw("U8", noise(8), [["w", [8]]])
    a.raw("U8", noise(8, 2), [["v", [8]]], refs=[ref])
    a.file(b"w.bin", [0, 1])
    a.commit()
    return a.seal()


def volume_map(name: bytes) -> dict[str, Any]:
    return {"content": bytes(32), "length": 4096, "name": name, "root": bytes(32)}


def set_of(*volumes: dict[str, Any], first: int = 0) -> bytes:
    a = Assembler()
    for number, value in enumerate(volumes):
        a.volumes.append(value)
        a.metadata(VOLUME, value, ordinal=first + number)
    a.file(b"w.bin", [a.raw("U8", noise(8), [["w", [8]]])])
    a.commit()
    return a.seal()


bad("volume-path", "A VOLUME whose name begins with `..`.", lambda: set_of(volume_map(b"../v.arz")))
bad("volume-absolute", "A VOLUME with an absolute name.", lambda: set_of(volume_map(b"/v.arz")))
bad("volume-twice", "Two VOLUMEs of one name.", lambda: set_of(volume_map(b"v.arz"), volume_map(b"v.arz")))
bad("volume-number", "The first VOLUME has number 1.", lambda: set_of(volume_map(b"v.arz"), first=1))
bad("volume-root", "A VOLUME with a root digest of 31 bytes.", lambda: set_of({**volume_map(b"v"), "root": bytes(31)}))
bad("volume-key", "A VOLUME with a key too many.", lambda: set_of({**volume_map(b"v.arz"), "more": 0}))


def first_parent_is_1() -> bytes:
    a = Assembler()
    a.parents.append({"digest": bytes(32), "hint": ""})
    a.metadata(PARENT, a.parents[0], ordinal=1)
    a.commit()
    return a.seal()


bad(
    "reference-beyond",
    "A unit with chunks of its own that refers to elements beyond the end of another.",
    partial(referring, [0, 0, 4, 5]),
)
bad(
    "reference-kind",
    "A reference of kind 2, although there is a PARENT of that number.",
    partial(referring, [2, 0, 0, 1], True),
)
bad(
    "reference-parent-count",
    "A reference to a parent that is shorter than the unit.",
    partial(referring, [1, 0, 0, 7], True),
)
bad("part-members", "A part with two members.", partial(prefix, two_members))
for _name, _about, _parts in [
    ("none", "A unit of two members whose parts are all nil.", [None, None]),
    ("short", "A unit of two members of which one part is listed.", [[[9], [0]]]),
    ("second", "A unit of two members of which the second part ends outside the whole.", [None, [[9], [2]]]),
]:
    bad(f"parts-{_name}", _about, partial(prefix, partial(two_members, part=_parts)))
bad(
    "model-number",
    "The first MODEL has number 1.",
    lambda: prefix(lambda a: a.models.append(a.frame(MODEL, b"", ordinal=1))),
)
bad("parent-number", "The first PARENT has number 1.", first_parent_is_1)
bad("table-number", "The first TABLE has number 1.", lambda: simple(seal={"table_frame": {"ordinal": 1}}))
bad(
    "frame-larger-than-stated",
    "An INDEX larger than the prologue's largest frame.",
    lambda: simple(prologue={"log_frame": 9}),
)
bad(
    "chunk-larger-than-stated",
    "A chunk larger than the prologue's largest chunk.",
    lambda: simple(prologue={"log_chunk": 1}),
)
bad(
    "frame-pad-xxh-decoded",
    "A PAD with a wrong XXH3 of the decoded payload.",
    lambda: prefix(lambda a: a.pad(8, xxh_decoded=1)),
)
bad(
    "frame-metadata-xxh-decoded",
    "A TENSOR with a wrong XXH3 of the decoded payload.",
    lambda: simple(tensor={"frame": {"xxh_decoded": 1}}),
)
bad("file-metadata-array", "File metadata that is an array.", lambda: changed(metadata=[]))
bad(
    "file-directory-recipe",
    "A directory with a recipe of nothing.",
    lambda: changed(kind=2, recipe=[b""], size=0, sha256=blank()),
)
bad("commit-none-at-all", "A sealed file of nothing but a PAD, an INDEX and a trailer.", only_a_pad)
bad(
    "index-duplicate-first",
    "A duplicate, which has no chunks, with a first entry of 1 in the INDEX.",
    duplicate_with_place,
)

__all__ = ["VECTORS"]
