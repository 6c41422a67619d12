"""An assembler of ARZ-1 archives, right ones and wrong ones, for ``tools/gen_vectors.py``.

It shares no code with the package or with the reference decoder. Every field of every structure can be set by hand, so
that an archive is wrong in one place and right everywhere else: checksums and chains are taken over what was written.
Nothing here depends on the version of a compressor: Zstandard frames are put together from raw and run-length blocks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote_from_bytes

import blake3 as _blake3
import google_crc32c
import msgpack
import xxhash

TENSOR, FILE, MODEL, CHUNK, COMMIT, TABLE, INDEX, PARENT, VOLUME, PAD = 1, 2, 3, 4, 5, 6, 7, 8, 10, 0xC009
NONE = 0xFFFFFFFF
RAW, CONST, ZSTD, FLOAT_FAST, FLOAT_CTX, QUANT_BLOCKS, DEQUANTISED = 0, 1, 3, 4, 5, 6, 7
ITEM = {
    **dict.fromkeys(("U8", "I8", "BOOL", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
    "C128": 16,
}
NO_SHA256 = hashlib.sha256(b"").digest()


def blake3(data: bytes) -> bytes:
    return _blake3.blake3(data).digest()


def crc32c(data: bytes) -> bytes:
    return struct.pack("<I", google_crc32c.value(data))


def xxh3(data: bytes) -> int:
    return xxhash.xxh3_64_intdigest(data)


def canonical(value: Any) -> bytes:
    """Canonical metadata, by the msgpack library, with the keys sorted before."""

    def ordered(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: ordered(item[key]) for key in sorted(item, key=lambda key: key.encode())}
        return [ordered(part) for part in item] if isinstance(item, (list, tuple)) else item

    return bytes(msgpack.packb(ordered(value), use_bin_type=True))


# ------------------------------------------------------------------------------------------------------ zstd payloads


def zstd_frame(data: bytes, *, size: int | None = None, state_size: bool = True, run: int = 0) -> bytes:
    """A Zstandard frame of one raw block, or with ``run`` of run-length blocks of that many bytes of data[0]."""
    size = (run or len(data)) if size is None else size
    if state_size:  # single segment, content size of 4 bytes
        head = b"\x28\xb5\x2f\xfd" + bytes([0b10100000]) + struct.pack("<I", size)
    else:  # a window of 1 KiB, no content size
        head = b"\x28\xb5\x2f\xfd" + bytes([0, 0])
    if not run:
        return head + struct.pack("<I", 1 | len(data) << 3)[:3] + data
    blocks = []
    while run:
        part = min(run, 1 << 17)
        run -= part
        blocks.append(struct.pack("<I", (run == 0) | 1 << 1 | part << 3)[:3] + data[:1])
    return head + b"".join(blocks)


def zstd_payload(
    planes: Sequence[tuple[bytes, bool]], *, stride: int | None = None, reserved: bytes = bytes(3)
) -> bytes:
    """A payload of codec 3 from (stored bytes, stored as is) of its planes."""
    words = b"".join(struct.pack("<I", len(stored) | as_is << 31) for stored, as_is in planes)
    return bytes([len(planes) if stride is None else stride]) + reserved + words + b"".join(s for s, _ in planes)


def zstd(data: bytes, stride: int = 1) -> bytes:
    """``data`` in planes: even ones as frames, odd ones as is; a plane of one repeated byte as a run."""
    planes = []
    for j in range(stride):
        plane = data[j::stride]
        if len(set(plane)) == 1 and len(plane) > 8:
            planes.append((zstd_frame(plane, run=len(plane)), False))
        else:
            planes.append((plane, True) if j % 2 or not plane else (zstd_frame(plane), False))
    return zstd_payload(planes)


# ------------------------------------------------------------------------------------------------------- float_fast

FIELDS = {
    "BF16": (2, 8, 7), "F16": (2, 5, 10), "F32": (4, 8, 23), "C64": (4, 8, 23), "F64": (8, 11, 52), "C128": (8, 11, 52),
    "F8_E4M3": (1, 4, 3), "F8_E4M3FNUZ": (1, 4, 3), "F8_E5M2": (1, 5, 2), "F8_E5M2FNUZ": (1, 5, 2),
}  # fmt: skip


@dataclasses.dataclass
class FloatFast:
    """The parts of a payload of codec 4, to be bent before :meth:`payload` joins them."""

    log_lanes: int
    log_segment: int
    palette: list[int]
    seconds: list[int]
    frequencies: list[int]
    raws: list[bytes]
    symbols: list[bytes]
    escapes: list[bytes]
    escape_counts: list[int]
    long_counts: list[int]
    padding: bytes | None = None
    palette_size: int | None = None
    second_size: int | None = None
    symbol_sizes: list[int] | None = None
    tail: bytes = b""

    def head(self) -> bytes:
        """All before the padding."""
        first = len(self.palette) if self.palette_size is None else self.palette_size
        second = len(self.seconds) if self.second_size is None else self.second_size
        sizes = bytes([self.log_lanes, self.log_segment, first, second])
        return sizes + bytes(self.palette) + bytes(self.seconds) + bytes(self.frequencies)

    def payload(self) -> bytes:
        head = self.head()
        head += bytes(-len(head) % 8) if self.padding is None else self.padding
        sizes = [len(stream) for stream in self.symbols] if self.symbol_sizes is None else self.symbol_sizes
        for row in zip(sizes, self.escape_counts, self.long_counts, strict=True):
            head += struct.pack("<3I", *row)
        return head + b"".join([*self.raws, *self.symbols, *self.escapes]) + self.tail


def frequencies_of(symbols: Sequence[int], alphabet: int) -> list[int]:
    """Frequencies that sum to 128, 0 where no symbol occurs."""
    counts = [symbols.count(symbol) for symbol in range(alphabet)]
    frequencies = [max(1, n * 128 // len(symbols)) if n else 0 for n in counts]
    frequencies[frequencies.index(max(frequencies))] += 128 - sum(frequencies)
    return frequencies


def encode_symbols(
    symbols: Sequence[int], frequencies: Sequence[int], lanes: int, ends: Sequence[int] | None = None
) -> bytes:
    """The symbol stream of codec 4: its decoder run backwards, from the states ``ends`` if they are given."""
    starts = [sum(frequencies[:y]) for y in range(len(frequencies))]
    state, taken = [256] * lanes if ends is None else [*ends], bytearray()
    for i in reversed(range(len(symbols))):
        x, y = state[i % lanes], symbols[i]
        if x >= frequencies[y] << 9:
            taken.append(x & 0xFF)
            x >>= 8
        state[i % lanes] = (x // frequencies[y] << 7) + x % frequencies[y] + starts[y]
    return struct.pack(f"<{lanes}H", *state) + taken[::-1]


def escape_stream(exponents: Sequence[int], seconds: Sequence[int]) -> tuple[bytes, int]:
    """Nibbles and bytes of escapes, and how many are long."""
    nibbles = [seconds.index(e) if e in seconds else 15 for e in exponents]
    long_ones = [e for e, nibble in zip(exponents, nibbles, strict=True) if nibble == 15]
    nibbles += [0] * (len(nibbles) % 2)
    packed = bytes(low | high << 4 for low, high in zip(nibbles[::2], nibbles[1::2], strict=True))
    return packed + bytes(long_ones), len(long_ones)


def raw_stream(rests: Sequence[int], bits: int) -> bytes:
    """``bits`` bits of each rest: whole bytes, then bit planes."""
    whole, planes = divmod(bits, 8)
    raw = b"".join((r & ((1 << 8 * whole) - 1)).to_bytes(whole, "little") for r in rests)
    for j in range(planes):
        plane = sum((r >> (8 * whole + j) & 1) << i for i, r in enumerate(rests))
        raw += plane.to_bytes((len(rests) + 7) // 8, "little")
    return raw


def float_fast(
    data: bytes,
    dtype: str,
    *,
    lanes: int = 32,
    log_segment: int = 20,
    palette: Sequence[int] | None = None,
    seconds: Sequence[int] | None = None,
    frequencies: Sequence[int] | None = None,
    ends: Sequence[int] | None = None,
    bend: Callable[[list[int]], None] = lambda symbols: None,
) -> FloatFast:
    """Code ``data``. Without palettes: the commonest exponents, five and then three.

    ``bend`` changes the symbols of a segment before they are coded; what it makes an escape is escaped.
    """
    size, e_bits, m_bits = FIELDS[dtype]
    values = [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)]
    exponents = [v >> m_bits & ((1 << e_bits) - 1) for v in values]
    rests = [v >> (e_bits + m_bits) << m_bits | v & ((1 << m_bits) - 1) for v in values]
    by_count = sorted(set(exponents), key=lambda e: (-exponents.count(e), e))
    palette = by_count[:5] if palette is None else palette
    seconds = [e for e in by_count if e not in palette][:3] if seconds is None else seconds
    symbols = [palette.index(e) if e in palette else len(palette) for e in exponents]
    parts = FloatFast(lanes.bit_length() - 1, log_segment, [*palette], [*seconds], [], [], [], [], [], [])
    pieces = [slice(first, first + (1 << log_segment)) for first in range(0, len(values), 1 << log_segment)]
    for here in pieces:
        bent = symbols[here]
        bend(bent)
        symbols[here] = bent
    parts.frequencies = [*(frequencies_of(symbols, len(palette) + 1) if frequencies is None else frequencies)]
    for here in pieces:
        parts.raws.append(raw_stream(rests[here], m_bits + 1))
        parts.symbols.append(encode_symbols(symbols[here], parts.frequencies, lanes, ends))
        escaped = [e for e, y in zip(exponents[here], symbols[here], strict=True) if y == len(palette)]
        stream, long_count = escape_stream(escaped, seconds)
        parts.escapes.append(stream)
        parts.escape_counts.append(len(escaped))
        parts.long_counts.append(long_count)
    return parts


# ---------------------------------------------------------------------------------------------------- the container


@dataclasses.dataclass
class Placed:
    """A frame that was written."""

    offset: int
    header: bytes
    type: int
    codec: int
    ordinal: int
    chunk: int
    stored: bytes
    decoded: bytes
    size: int

    @property
    def row(self) -> list[int]:
        """Offset, stored and decoded length, codec, XXH3 stored and decoded, as the header has them."""
        return [
            self.offset,
            *struct.unpack_from("<QQ", self.header, 40),
            self.codec,
            *struct.unpack_from("<QQ", self.header, 56),
        ]


def entry_of(p: Placed) -> bytes:
    """The TABLE entry of a CHUNK."""
    offset, stored, decoded, codec, xxh_stored, xxh_decoded = p.row
    return struct.pack("<QQQQQH6x", offset, stored, decoded, xxh_stored, xxh_decoded, codec)


@dataclasses.dataclass
class Unit:
    value: dict[str, Any]
    data: bytes
    frames: dict[int, Placed]
    digests: list[bytes]
    listed: bool = False
    tensor: Placed | None = None

    @property
    def committed(self) -> list[bytes]:
        """What a COMMIT lists, section 5.3."""
        inherited = any(ref[0] == 3 for ref in self.value["refs"])
        return self.digests if inherited or len(self.digests) == 1 else [blake3(b"".join(self.digests))]


def elements(data: bytes, item: int, shape: Sequence[int], start: int, strides: Sequence[int] | None) -> bytes:
    """The bytes of a member, row-major."""
    if strides is None:
        return data[start * item : (start + math.prod(shape)) * item]
    if not shape:
        return data[start * item : (start + 1) * item]
    return b"".join(elements(data, item, shape[1:], start + i * strides[0], strides[1:]) for i in range(shape[0]))


class Assembler:
    """Writes frames one after the other and keeps the books for COMMIT, INDEX and trailer."""

    def __init__(self, **prologue: Any) -> None:
        self.file_id: bytes = prologue.pop("file_id", bytes(range(0xA0, 0xB0)))
        self.prologue = self._prologue(**prologue)
        self.out = bytearray(self.prologue)
        self.sequence = 0
        self.chain = blake3(self.prologue)
        self.headers: list[bytes] = []
        self.previous = 0
        self.units: list[Unit] = []
        self.files: dict[int, tuple[dict[str, Any], Placed]] = {}
        self.models: list[Placed] = []
        self.parents: list[dict[str, Any]] = []
        self.volumes: list[dict[str, Any]] = []
        self.dead: list[Placed] = []
        self.placed: list[Placed] = []
        self.table_rows: list[tuple[int, bytes]] = []

    def _prologue(self, **f: Any) -> bytes:
        self.versions = struct.pack(
            "<HHHBB",
            f.get("major", 1),
            f.get("minimum", 0),
            f.get("minor", 0),
            f.get("log_frame", 30),
            f.get("log_chunk", 28),
        )
        self.flags = (f.get("incompatible", 0), f.get("compatible", 0))
        block = f.get("magic", bytes.fromhex("8941525a0d0a1a0a")) + self.versions + struct.pack("<QQ", *self.flags)
        block += self.file_id + bytes(f.get("reserved", bytes(12)))
        return bytes(block + f.get("crc", crc32c(block)))

    def frame(self, kind: int, stored: bytes, decoded: bytes | None = None, **f: Any) -> Placed:
        """Append a frame. Any field of the header can be given; ``padding`` and ``payload`` replace what follows it."""
        decoded = stored if decoded is None else decoded
        codec, ordinal, chunk = f.get("codec", RAW), f.get("ordinal", NONE), f.get("chunk", 0)
        block = f.get("sync", bytes.fromhex("f561727a66726d9c"))
        block += struct.pack("<HHI", kind, codec, f.get("reserved", 0))
        block += struct.pack("<Q8s", f.get("sequence", self.sequence), f.get("file_id", self.file_id[:8]))
        block += struct.pack("<II", ordinal, chunk)
        block += struct.pack("<QQ", f.get("stored_length", len(stored)), f.get("decoded_length", len(decoded)))
        block += struct.pack("<QQ", f.get("xxh_stored", xxh3(stored)), f.get("xxh_decoded", xxh3(decoded)))
        block += f.get("reserved_end", bytes(52))
        header = block + f.get("crc", crc32c(block))
        offset = len(self.out)
        padding = bytes(-(128 + len(stored)) % 64)
        self.out += header + f.get("payload", stored) + f.get("padding", padding)
        placed = Placed(offset, header, kind, codec, ordinal, chunk, stored, decoded, len(self.out) - offset)
        self.sequence += 1
        self.headers.append(header)
        self.placed.append(placed)
        return placed

    def metadata(self, kind: int, value: Any, *, compress: bool = False, **f: Any) -> Placed:
        """Append a metadata frame; ``raw`` gives its bytes instead of the canonical encoding of ``value``."""
        plain = f.pop("raw", None)
        plain = canonical(value) if plain is None else plain
        if compress:
            return self.frame(kind, zstd(plain), plain, codec=f.pop("codec", ZSTD), **f)
        return self.frame(kind, plain, **f)

    # ---------------------------------------------------------------------------------------------------- units

    def tensor(self, dtype: str, data: bytes, members: list[list[Any]], **f: Any) -> int:
        """Append a TENSOR. ``members``: [name, shape] or [name, shape, start, strides]. Other keys of 5.1 by name."""
        frame_fields = f.pop("frame", {})
        edit, announce = f.pop("edit", lambda value: value), f.pop("announce", True)
        members = [[*member, *[0, None][len(member) - 2 :]] for member in members]
        n = len(data) // ITEM.get(dtype, 1)
        shape = f.pop("shape", None)
        if shape is None:
            first = members[0][1]
            shape = [first[0], n // first[0] if first[0] else 0] if first and len(members) == 1 else [1, n]
        value = {
            "dtype": dtype, "grid": f.pop("grid", [max(1, shape[0]), max(1, shape[1])]), "layer": "",
            "members": members, "models": [], "part": None, "refs": [], "shape": shape, "source": [], **f,
        }  # fmt: skip
        number = len(self.units)
        digests = [blake3(elements(data, ITEM.get(dtype, 1), m[1], m[2], m[3])) for m in members]
        self.units.append(Unit(value, data, {}, digests))
        if announce:
            self.announce([number], edit=lambda maps: edit(maps[0]), **frame_fields)
        return number

    def announce(self, numbers: Sequence[int], *, edit: Callable[[list[Any]], Any] = list, **f: Any) -> None:
        """Append a TENSOR with the units of these numbers, made with ``announce=False``."""
        placed = self.metadata(
            TENSOR, edit([self.units[number].value for number in numbers]), **{"ordinal": numbers[0], **f}
        )
        for number in numbers:
            self.units[number].tensor = placed

    def tile(self, number: int, k: int) -> bytes:
        """The decoded bytes of chunk k."""
        unit = self.units[number]
        (rows, columns), (r, c), item = unit.value["shape"], unit.value["grid"], ITEM[unit.value["dtype"]]
        wide = -(-columns // c)
        top, left = k // wide * r, k % wide * c
        right = min(left + c, columns)
        lines = [(i * columns + left, i * columns + right) for i in range(top, min(top + r, rows))]
        return b"".join(unit.data[a * item : b * item] for a, b in lines)

    def chunk(self, number: int, k: int = 0, codec: int = RAW, stored: bytes | None = None, **f: Any) -> Placed:
        """Append chunk k of a unit; an earlier one is dead."""
        decoded = f.pop("decoded", None)
        decoded = self.tile(number, k) if decoded is None else decoded
        stored = decoded if stored is None else stored
        unit = self.units[number]
        placed = self.frame(CHUNK, stored, decoded, codec=codec, **{"ordinal": number, "chunk": k, **f})
        if k in unit.frames:
            self.dead.append(unit.frames[k])
        unit.frames[k], unit.listed = placed, False
        return placed

    def raw(self, dtype: str, data: bytes, members: list[list[Any]], **f: Any) -> int:
        """A unit with all its chunks, raw."""
        number = self.tensor(dtype, data, members, **f)
        (rows, columns), (r, c) = self.units[number].value["shape"], self.units[number].value["grid"]
        for k in range(-(-rows // r) * -(-columns // c)):
            self.chunk(number, k)
        return number

    def recode(self, number: int, data: bytes) -> None:
        """The source changed: the unit has other data now."""
        unit = self.units[number]
        unit.data, item = data, ITEM[unit.value["dtype"]]
        unit.digests = [blake3(elements(data, item, m[1], m[2], m[3])) for m in unit.value["members"]]

    # ---------------------------------------------------------------------------------------------------- files

    def file(self, path: bytes, recipe: Sequence[Any] = (), **f: Any) -> int:
        """Append a FILE with a recipe of units (whole), pieces and byte strings. Other keys of 5.2 by name."""
        frame_fields: dict[str, Any] = f.pop("frame", {})
        number: int = f.pop("number", len(self.files))
        edit = f.pop("edit", lambda value: value)
        pieces = [[p, 0, len(self.units[p].data)] if isinstance(p, int) else p for p in recipe]
        content = b"".join(p if isinstance(p, bytes) else self.units[p[0]].data[p[1] : p[1] + p[2]] for p in pieces)
        value = {
            "format": "opaque", "kind": 0, "metadata": {}, "mode": 0o644, "mtime": 1_700_000_000_000_000_000,
            "note": "", "path": path, "recipe": pieces, "sha256": hashlib.sha256(content).digest(),
            "size": len(content), "target": b"", **f,
        }  # fmt: skip
        placed = self.metadata(FILE, edit(value), **{"ordinal": number, **frame_fields})
        if number in self.files:
            self.dead.append(self.files[number][1])
        self.files[number] = (value, placed)
        return number

    def link(self, path: bytes, target: bytes, **f: Any) -> int:
        return self.file(path, kind=1, target=target, mode=0o777, format="", **f)

    def directory(self, path: bytes, **f: Any) -> int:
        return self.file(path, kind=2, **{"mode": 0o755, "format": "", **f})

    def withdraw(self, number: int) -> None:
        path = self.files[number][0]["path"]
        self.file(path, number=number, kind=3, format="", mode=0, mtime=0)

    # ---------------------------------------------------------------------------------------------------- the rest

    def model(self, data: bytes, **f: Any) -> Placed:
        self.models.append(self.frame(MODEL, data, ordinal=len(self.models), **f))
        return self.models[-1]

    def parent(self, digest: bytes, hint: str) -> None:
        self.parents.append({"digest": digest, "hint": hint})
        self.metadata(PARENT, self.parents[-1], ordinal=len(self.parents) - 1)

    def volume(self, name: bytes, *, length: int = 4096, root: bytes = bytes(32), content: bytes = bytes(32)) -> None:
        self.volumes.append({"content": content, "length": length, "name": name, "root": root})
        self.metadata(VOLUME, self.volumes[-1], ordinal=len(self.volumes) - 1)

    def pad(self, length: int, **f: Any) -> Placed:
        return self.frame(PAD, f.pop("stored", bytes(length)), **f)

    def link_chain(self) -> bytes:
        self.chain = blake3(self.chain + b"".join(self.headers))
        self.headers = []
        return self.chain

    def commit(self, units: Sequence[int] | None = None, *, layer: str = "", **f: Any) -> Placed:
        """Append a COMMIT that lists ``units``, by default those not listed since their last chunk."""
        edit, frame_fields = f.pop("edit", lambda value: value), f.pop("frame", {})
        numbers = [i for i, unit in enumerate(self.units) if not unit.listed] if units is None else units
        for number in numbers:
            self.units[number].listed = True
        value = {
            "chain": self.link_chain(), "layer": layer, "previous": self.previous,
            "units": [[number, self.units[number].committed] for number in numbers], **f,
        }  # fmt: skip
        self.previous = len(self.out)
        return self.metadata(COMMIT, edit(value), **frame_fields)

    def live_files(self) -> list[tuple[int, dict[str, Any]]]:
        live = [(number, value) for number, (value, _) in self.files.items() if value["kind"] != 3]
        return sorted(live, key=lambda entry: entry[1]["path"])

    def named_units(self) -> set[int]:
        return {p[0] for _, value in self.live_files() for p in value["recipe"] if not isinstance(p, bytes)}

    def live_units(self) -> set[int]:
        live = self.named_units()
        for number in sorted(live, reverse=True):
            live |= {ref[1] for ref in self.units[number].value["refs"] if ref[0] in (0, 2, 4)}
        return live

    def content(self) -> bytes:
        """The content digest, section 5.7."""
        tensors = [
            [member[0], unit.value["dtype"], member[1], digest]
            for number, unit in enumerate(self.units) if number in self.named_units()
            for member, digest in zip(unit.value["members"], unit.digests, strict=True) if member[0] is not None
        ]  # fmt: skip
        files = [[v["path"], v["kind"], v["size"], v["sha256"], v["target"]] for _, v in self.live_files()]
        body: dict[str, Any] = {"files": files, "tensors": sorted(tensors, key=canonical)}
        if self.volumes:
            body["volumes"] = sorted(volume["content"] for volume in self.volumes)
        return blake3(canonical(body))

    def seal(self, **f: Any) -> bytes:
        """Append TABLEs, INDEX and trailer and return the archive.

        ``order``: units in layer order. ``tables``: lists of units, one list a table. ``rows``: edits a table.
        ``before_index``: called between them. ``index``: edits the map. ``twice``: a second INDEX. ``trailer``: its
        fields. ``tail``: bytes after it.
        """
        live = self.live_units()
        order = f.get("order", sorted(live))
        groups = f.get("tables", [order] if any(self.units[i].frames for i in order) else [])
        places, tables = {}, []
        for number, group in enumerate(groups):
            rows: list[bytes] = []
            for i in group:
                if self.units[i].frames:
                    places[i] = [number, len(rows)]
                    chunks = sorted(self.units[i].frames.items())
                    rows += [entry_of(placed) for _, placed in chunks]
            plain = b"".join(f.get("rows", lambda rows: rows)(rows))
            fields = {"ordinal": number, **f.get("table_frame", {})}
            if f.get("compress"):
                tables.append(self.frame(TABLE, zstd(plain), plain, codec=ZSTD, **fields))
            else:
                tables.append(self.frame(TABLE, plain, **fields))
        f.get("before_index", lambda: None)()
        dead = [*self.dead, *(placed for value, placed in self.files.values() if value["kind"] == 3)]
        for i, unit in enumerate(self.units):
            if i not in live:
                dead += unit.frames.values()
        announced = {id(self.units[i].tensor) for i in live}
        dead += {id(u.tensor): u.tensor for u in self.units if u.tensor and id(u.tensor) not in announced}.values()
        chain = self.link_chain()
        value = {
            "chain": chain, "content": self.content(), "dead": [len(dead), sum(p.size for p in dead)],
            "files": [list(entry) for entry in self.live_files()], "models": [p.row for p in self.models],
            "parents": self.parents, "tables": [[p.offset, p.size, xxh3(p.stored)] for p in tables],
            "units": [
                [i, self.units[i].value, self.units[i].digests, *places.get(i, [0, 0]), len(self.units[i].frames),
                 sum(len(p.stored) for p in self.units[i].frames.values())] for i in order
            ],
            "volumes": self.volumes,
        }  # fmt: skip
        value = f.get("index", lambda value: value)(value)
        index = self.metadata(INDEX, value, compress=f.get("compress", False), **f.get("index_frame", {}))
        if f.get("twice"):
            index = self.metadata(INDEX, value)
        first = tables[0].offset if tables else index.offset
        self.out += self.trailer(index, first, **f.get("trailer", {})) + f.get("tail", b"")
        return bytes(self.out)

    def trailer(self, index: Placed, table: int, **f: Any) -> bytes:
        block = f.get("versions", self.versions)
        block += struct.pack("<QQ", f.get("incompatible", 0), f.get("compatible", 0)) + f.get("file_id", self.file_id)
        block += struct.pack(
            "<QQQQ", f.get("index_offset", index.offset), f.get("index_length", index.size),
            f.get("first_table", table), f.get("total", len(self.out) + 128),
        )  # fmt: skip
        block += f.get("root", blake3(index.header + index.stored)) + f.get("reserved", bytes(12))
        return bytes(block + f.get("crc", crc32c(block)) + f.get("end", bytes.fromhex("0a1a0a0d5a524189")))

    def growing(self, tail: bytes = b"") -> bytes:
        return bytes(self.out) + tail

    # -------------------------------------------------------------------------------------------------- expectations

    def expected(self, growing: bool = False) -> dict[str, Any]:
        """What a decoder has to find, from what was put in."""
        shown = [i for i, unit in enumerate(self.units) if unit.listed] if growing else sorted(self.named_units())
        tensors = [
            [member[0], self.units[i].value["dtype"], member[1], digest.hex()]
            for i in shown for member, digest in zip(self.units[i].value["members"], self.units[i].digests, strict=True)
            if member[0] is not None
        ]  # fmt: skip
        return {
            "tensors": sorted(tensors),
            "files": [described(value) for _, value in self.live_files()],
            **({} if growing else {"content": self.content().hex()}),
        }


def described(value: dict[str, Any]) -> dict[str, Any]:
    """A file as vectors.json describes it; bytes of path and target beyond ASCII are percent-encoded."""
    return {
        "path": quote_from_bytes(value["path"]), "kind": ("file", "link", "directory")[value["kind"]],
        "mode": value["mode"], "mtime": value["mtime"], "size": value["size"], "sha256": value["sha256"].hex(),
        **({"target": quote_from_bytes(value["target"])} if value["target"] else {}),
    }  # fmt: skip
