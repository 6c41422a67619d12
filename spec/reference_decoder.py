"""A decoder of ARZ-1 archives, written from spec/ARZ-1.md and spec/registry.md alone.

It shares no code with the package: it is the second opinion that the tests ask. It reads a whole archive from memory,
checks every rule of the text and decodes everything; it is slow, and meant to be read beside the text, whose section
numbers stand in the comments. Needs zstandard, xxhash and blake3.

    python spec/reference_decoder.py ARCHIVE              check everything
    python spec/reference_decoder.py ARCHIVE --list       and list files and tensors
    python spec/reference_decoder.py ARCHIVE --extract DIR  and write the files below DIR, which must not exist
    python spec/reference_decoder.py ARCHIVE --parent FILE  with an archive it was coded against; the oldest first
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import math
import os
import struct
import sys
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import blake3 as _blake3
import xxhash
import zstandard

__all__ = [
    "ArchiveError",
    "Corrupt",
    "Decoded",
    "File",
    "LimitExceeded",
    "Limits",
    "NotAnArchive",
    "Origin",
    "Tensor",
    "Unsupported",
    "decode",
]


class ArchiveError(Exception):
    """Why an archive was refused."""


class NotAnArchive(ArchiveError):
    """The bytes are no ARZ archive at all."""


class Corrupt(ArchiveError):
    """refuse: corrupt."""


class LimitExceeded(Corrupt):
    """The archive asks for more than :class:`Limits` allows."""


class Unsupported(ArchiveError):
    """refuse: unsupported."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Section 10. ``total`` bounds all decoded bytes; None: 64 times the archive, but at least 256 MiB."""

    units: int = 10**6
    members: int = 10**6
    files: int = 10**6
    chunks: int = 10**6
    name: int = 1024
    path: int = 4096
    dimensions: int = 32
    metadata: int = 64 << 20
    nesting: int = 8
    total: int | None = None


class Whole(NamedTuple):
    """A tensor that parts of it make up (section 5.1.2). ``folder``: that of its files, as bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes
    name: str
    folder: bytes


class Tensor(NamedTuple):
    """A named member. ``data``: its elements in row-major order, or None where its codec or parent is not known."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | None
    blake3: bytes | None  # None where its unit was not decoded and no INDEX lists it
    name: str
    layer: str


class Origin(NamedTuple):
    """A tensor that a child may refer to. ``span``: its bytes in the unit from its first element to its last."""

    dtype: str
    shape: list[int]
    strides: list[int] | None
    blake3: bytes
    span: bytes | None


class File(NamedTuple):
    """A file. ``content`` is the target of a link, empty for a directory, None where a codec is not known."""

    kind: int
    mode: int
    mtime: int
    content: bytes | None
    sha256: bytes
    format: str


@dataclasses.dataclass
class Decoded:
    """What an archive holds. ``members`` has every named tensor in order, ``tensors`` the first of each name."""

    growing: bool
    file_id: bytes
    members: list[Tensor]
    files: dict[bytes, File]
    unsupported: list[str]
    incomplete: list[int]
    content_digest: bytes | None
    root_digest: bytes | None
    valid_length: int
    origins: list[dict[str, Origin]] = dataclasses.field(default_factory=list)
    """What a child of this archive may refer to: by file, in order of path, and name."""
    wholes: list[Whole] = dataclasses.field(default_factory=list)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {tensor.name: tensor for tensor in reversed(self.members)}


# ---------------------------------------------------------------------------------------------- section 1: terms

MAGIC = bytes.fromhex("8941525A0D0A1A0A")
END_MAGIC = bytes.fromhex("0A1A0A0D5A524189")
SYNC = bytes.fromhex("F561727A66726D9C")
MAX_I64 = (1 << 63) - 1
NONE = 0xFFFFFFFF

TENSOR, FILE, MODEL, CHUNK, COMMIT, TABLE, INDEX, PARENT, VOLUME, PAD = 1, 2, 3, 4, 5, 6, 7, 8, 10, 0xC009
METADATA_TYPES = {TENSOR, FILE, COMMIT, INDEX, PARENT, VOLUME}
NUMBERED_TYPES = {TENSOR, FILE, MODEL, CHUNK, TABLE, PARENT, VOLUME}
KNOWN_TYPES = {*METADATA_TYPES, MODEL, CHUNK, TABLE, PAD}

RAW, CONST, ZSTD, FLOAT_FAST, FLOAT_CTX, QUANT_BLOCKS, DEQUANTISED, DELTA_CTX, OPTIM_CTX = 0, 1, 3, 4, 5, 6, 7, 8, 9
KNOWN_CODECS = {RAW, CONST, ZSTD, FLOAT_FAST, FLOAT_CTX, QUANT_BLOCKS, DEQUANTISED, DELTA_CTX, OPTIM_CTX}

ITEM_SIZE = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E4M3FNUZ": 1, "F8_E5M2": 1, "F8_E5M2FNUZ": 1,
    "F8_E8M0": 1, "U64": 8, "I64": 8, "U32": 4, "I32": 4, "U16": 2, "I16": 2, "U8": 1, "I8": 1, "BOOL": 1,
    "C64": 8, "C128": 16,
}  # fmt: skip
# bytes of an element (of a half, for complex numbers), exponent bits, mantissa bits: the dtypes of float_ctx
FLOAT_FIELDS = {
    "F64": (8, 11, 52), "C128": (8, 11, 52), "F32": (4, 8, 23), "C64": (4, 8, 23), "F16": (2, 5, 10),
    "BF16": (2, 8, 7), "F8_E4M3": (1, 4, 3), "F8_E4M3FNUZ": (1, 4, 3), "F8_E5M2": (1, 5, 2), "F8_E5M2FNUZ": (1, 5, 2),
}  # fmt: skip


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


_CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def xxh3(data: bytes | memoryview) -> int:
    return xxhash.xxh3_64_intdigest(data)


def blake3(*parts: bytes) -> bytes:
    return _blake3.blake3(b"".join(parts)).digest()


def align64(n: int) -> int:
    return (n + 63) & ~63


def need(condition: bool, message: str) -> None:
    """A rule whose breach makes the object corrupt."""
    if not condition:
        raise Corrupt(message)


def within(condition: bool, message: str) -> None:
    """A limit of section 10."""
    if not condition:
        raise LimitExceeded(message)


class Budget:
    """The decoded bytes that are still allowed; asked before anything is allocated."""

    def __init__(self, total: int) -> None:
        self.left = total

    def charge(self, n: int, what: str) -> None:
        within(n <= self.left, f"{what}: more than the allowed total of decoded bytes")
        self.left -= n


# -------------------------------------------------------------------------------- section 4.1: canonical metadata


class _MetadataReader:
    """MessagePack without floats and extensions. Shortest forms and key order show when the value is packed again."""

    def __init__(self, data: bytes, nesting: int) -> None:
        self.data, self.at, self.nesting = data, 0, nesting

    def take(self, n: int) -> bytes:
        need(n <= len(self.data) - self.at, "metadata ends too early")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, n: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(n), "big", signed=signed)

    def value(self, depth: int = 0) -> Any:
        tag = self.number(1)
        if tag <= 0x7F:
            return tag
        if tag >= 0xE0:
            return tag - 0x100
        if tag <= 0x8F:
            return self.map(tag & 15, depth + 1)
        if tag <= 0x9F:
            return self.array(tag & 15, depth + 1)
        if tag <= 0xBF:
            return self.string(tag & 31)
        if tag in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[tag]
        if 0xC4 <= tag <= 0xC6:
            return self.take(self.number(1 << (tag - 0xC4)))
        if 0xCC <= tag <= 0xCF:
            return self.number(1 << (tag - 0xCC))
        if 0xD0 <= tag <= 0xD3:
            return self.number(1 << (tag - 0xD0), signed=True)
        if 0xD9 <= tag <= 0xDB:
            return self.string(self.number(1 << (tag - 0xD9)))
        if tag in (0xDC, 0xDD):
            return self.array(self.number(2 << (tag - 0xDC)), depth + 1)
        if tag in (0xDE, 0xDF):
            return self.map(self.number(2 << (tag - 0xDE)), depth + 1)
        raise Corrupt(f"metadata holds a value of type {tag:#04x}, which is not allowed")

    def string(self, n: int) -> str:
        try:
            return self.take(n).decode("utf-8")
        except UnicodeDecodeError:
            raise Corrupt("metadata holds a string that is not UTF-8") from None

    def array(self, n: int, depth: int) -> list[Any]:
        need(depth <= self.nesting, "metadata is nested too deep")
        need(n <= len(self.data) - self.at, "metadata ends too early")
        return [self.value(depth) for _ in range(n)]

    def map(self, n: int, depth: int) -> dict[str, Any]:
        need(depth <= self.nesting, "metadata is nested too deep")
        need(2 * n <= len(self.data) - self.at, "metadata ends too early")
        result: dict[str, Any] = {}
        for _ in range(n):
            key = self.value(depth)
            need(isinstance(key, str), "metadata has a key that is not a string")
            result[key] = self.value(depth)  # a second one of the same key is lost, and missed when packed again
        return result


def _pack_length(n: int, short: tuple[int, int] | None, tags: tuple[tuple[int, int], ...]) -> bytes:
    """The shortest head for length ``n``: ``short`` is (tag, largest length) of the one-byte form."""
    if short is not None and n <= short[1]:
        return bytes([short[0] | n])
    for tag, size in tags:
        if n < 1 << (8 * size):
            return bytes([tag]) + n.to_bytes(size, "big")
    raise ValueError("too long for metadata")


def pack(value: Any) -> bytes:
    """The one canonical encoding of ``value``."""
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        if value >= 0:
            return _pack_length(value, (0, 0x7F), ((0xCC, 1), (0xCD, 2), (0xCE, 4), (0xCF, 8)))
        if value >= -32:
            return bytes([value + 0x100])
        for tag, size in ((0xD0, 1), (0xD1, 2), (0xD2, 4), (0xD3, 8)):
            if value >= -(1 << (8 * size - 1)):
                return bytes([tag]) + value.to_bytes(size, "big", signed=True)
    if isinstance(value, str):
        text = value.encode("utf-8")
        return _pack_length(len(text), (0xA0, 31), ((0xD9, 1), (0xDA, 2), (0xDB, 4))) + text
    if isinstance(value, bytes):
        return _pack_length(len(value), None, ((0xC4, 1), (0xC5, 2), (0xC6, 4))) + value
    if isinstance(value, (list, tuple)):
        return _pack_length(len(value), (0x90, 15), ((0xDC, 2), (0xDD, 4))) + b"".join(map(pack, value))
    if isinstance(value, dict):
        items = sorted(value.items(), key=lambda item: item[0].encode("utf-8"))
        head = _pack_length(len(items), (0x80, 15), ((0xDE, 2), (0xDF, 4)))
        return head + b"".join(pack(key) + pack(item) for key, item in items)
    raise TypeError(f"not a metadata value: {value!r}")


def unpack(data: bytes, limits: Limits) -> Any:
    reader = _MetadataReader(data, limits.nesting)
    value = reader.value()
    need(reader.at == len(data), "metadata goes on after its value")
    need(pack(value) == data, "metadata is not in canonical form")
    return value


# ------------------------------------------------------------------------------- the types of values, section 5


def brief(value: Any) -> str:
    return repr(value) if value is None or isinstance(value, int) else f"a {type(value).__name__}"


def integer(value: Any, low: int = 0, high: int = MAX_I64) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return value
    raise Corrupt(f"metadata has {brief(value)} where an integer from {low} to {high} must stand")


def text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise Corrupt(f"metadata has {brief(value)} where a string must stand")


def binary(value: Any, length: int | None = None) -> bytes:
    if isinstance(value, bytes):
        need(length is None or len(value) == length, f"a binary has {len(value)} bytes, not {length}")
        return value
    raise Corrupt(f"metadata has {brief(value)} where a binary must stand")


def array(value: Any, length: int | None = None) -> list[Any]:
    if isinstance(value, list):
        need(length is None or len(value) == length, f"an array has {len(value)} elements, not {length}")
        return value
    raise Corrupt(f"metadata has {brief(value)} where an array must stand")


def mapping(value: Any, keys: str) -> dict[str, Any]:
    if isinstance(value, dict):
        need(sorted(value) == sorted(keys.split()), f"the keys are {' '.join(value):.80}, not {keys}")
        return value
    raise Corrupt(f"metadata has {brief(value)} where a map must stand")


def extent(shape: list[int]) -> int:
    """Elements of ``shape``, at most 2^63 - 1."""
    if 0 in shape:
        return 0
    product = 1
    for size in shape:
        product *= size
        need(product <= MAX_I64, "a shape has too many elements")
    return product


# ------------------------------------------------------------------------------------------- codecs: registry.md


def decode_zstd_plane(stored: bytes, length: int) -> bytes:
    need(stored[:4] == b"\x28\xb5\x2f\xfd", "a zstd plane is not a Zstandard frame")
    try:
        parameters = zstandard.get_frame_parameters(stored)
        need(parameters.content_size == length, "a zstd plane states no content size, or another")
        need(parameters.dict_id == 0, "a zstd plane needs a dictionary")
        plane = zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Corrupt(f"a zstd plane does not decode: {error}") from None
    need(len(plane) == length, "a zstd plane has another length than it states")
    return plane


def decode_zstd(payload: bytes, length: int, only_stride: int | None = None) -> bytes:
    need(len(payload) >= 8, "a zstd payload is too short")
    stride = payload[0]
    need(stride in (1, 2, 4, 8, 16), f"a zstd payload has stride {stride}")
    need(only_stride in (None, stride), "zstd metadata has a stride")
    need(payload[1:4] == bytes(3), "reserved bytes of a zstd payload are not zero")
    need(length % stride == 0, "the decoded length is not a multiple of the zstd stride")
    at = 4 + 4 * stride
    need(len(payload) >= at, "a zstd payload is too short")
    out = bytearray(length)
    for plane, word in enumerate(struct.unpack_from(f"<{stride}I", payload, 4)):
        size, as_is = word & 0x7FFFFFFF, bool(word >> 31)
        need(size <= len(payload) - at, "a zstd plane goes beyond the payload")
        stored = payload[at : at + size]
        at += size
        if as_is:
            need(size == length // stride, "a zstd plane stored as is has another length")
            out[plane::stride] = stored
        else:
            need(length > 0, "an empty zstd plane is not stored as is")
            out[plane::stride] = decode_zstd_plane(stored, length // stride)
    need(at == len(payload), "a zstd payload goes on after its planes")
    return bytes(out)


def read_symbols(
    stream: bytes, classes: list[int], tables: list[list[int]], lanes: int, word: int, precision: int
) -> list[int]:
    """Interleaved rANS: a symbol for each of ``classes``, which name tables of frequencies that sum to 2^precision.

    States have twice the bits of a word.
    """
    low = 1 << word
    size = word // 8
    need(len(stream) >= 2 * size * lanes and len(stream) % size == 0, "a symbol stream has an impossible length")
    numbers = [int.from_bytes(stream[at : at + size], "little") for at in range(0, len(stream), size)]
    state = [numbers[2 * i] | numbers[2 * i + 1] << word for i in range(lanes)]
    words = numbers[2 * lanes :]
    need(min(state) >= low, "a state is too low at the start of a symbol stream")
    starts = [[sum(table[:y]) for y in range(len(table))] for table in tables]
    symbols_at = [[y for y, frequency in enumerate(table) for _ in range(frequency)] for table in tables]
    symbols, used = [], 0
    for i, k in enumerate(classes):
        need(sum(tables[k]) == 1 << precision, "a symbol of a class that has no table")
        x = state[i % lanes]
        slot = x % (1 << precision)
        y = symbols_at[k][slot]
        x = tables[k][y] * (x >> precision) + slot - starts[k][y]
        if x < low:
            need(used < len(words), "a symbol stream has too few words")
            x = x << word | words[used]
            used += 1
        state[i % lanes] = x
        symbols.append(y)
    need(used == len(words), "a symbol stream has words left")
    need(all(x == low for x in state), "a symbol stream does not end in the right state")
    return symbols


def read_rests(stream: bytes, count: int, whole: int, bits: int) -> list[int]:
    """Sign and mantissa of ``count`` elements: ``whole`` bytes each, then ``bits`` bit planes."""
    rests = [int.from_bytes(stream[i * whole : (i + 1) * whole], "little") for i in range(count)]
    plane_size = (count + 7) // 8
    for j in range(bits):
        at = count * whole + j * plane_size
        plane = int.from_bytes(stream[at : at + plane_size], "little")
        need(plane >> count == 0, "unused bits of a bit plane are not zero")
        for i in range(count):
            rests[i] |= (plane >> i & 1) << (8 * whole + j)
    return rests


def decode_float_fast(payload: bytes, length: int, dtype: str) -> bytes:
    need(dtype in FLOAT_FIELDS and FLOAT_FIELDS[dtype][1] <= 8, f"float_fast does not apply to {dtype}")
    size, exponent_bits, mantissa_bits = FLOAT_FIELDS[dtype]
    whole, bits = divmod(mantissa_bits + 1, 8)
    n = length // size
    need(len(payload) >= 4, "a float_fast payload is too short")
    log_lanes, log_segment, first_size, second_size = payload[:4]
    need(log_lanes in (5, 7), f"float_fast has 2^{log_lanes} lanes")
    need(10 <= log_segment <= 24, f"float_fast has segments of 2^{log_segment}")
    need(1 <= first_size <= 15, f"float_fast has a palette of {first_size}")
    need(second_size <= 15, f"float_fast has a second palette of {second_size}")

    frequencies_at = 4 + first_size + second_size
    head = frequencies_at + first_size + 1
    firsts = range(0, n, 1 << log_segment)
    counts = [min(1 << log_segment, n - first) for first in firsts]
    raw_at = head + -head % 8 + 12 * len(counts)
    need(len(payload) >= raw_at, "a float_fast payload is too short")
    palette, seconds = payload[4 : 4 + first_size], payload[4 + first_size : frequencies_at]
    frequencies = list(payload[frequencies_at:head])
    need(max(palette + seconds) < 1 << exponent_bits, "float_fast has an impossible exponent in a palette")
    need(len(set(palette + seconds)) == first_size + second_size, "float_fast has an exponent twice in its palettes")
    need(sum(frequencies) == 128, "the frequencies of float_fast do not add up to 128")
    need(not any(payload[head : head + -head % 8]), "padding of a float_fast payload is not zero")

    table = [struct.unpack_from("<3I", payload, raw_at - 12 * (len(counts) - i)) for i in range(len(counts))]
    raw_sizes = [count * whole + bits * ((count + 7) // 8) for count in counts]
    symbols_at = raw_at + sum(raw_sizes)
    escapes_at = symbols_at + sum(symbol_size for symbol_size, _, _ in table)
    end = escapes_at + sum((escapes + 1) // 2 + long_ones for _, escapes, long_ones in table)
    need(end == len(payload), "the streams of a float_fast payload do not fill it")

    out = bytearray()
    for count, raw_size, (symbol_size, escapes, long_ones) in zip(counts, raw_sizes, table, strict=True):
        stream = payload[symbols_at : symbols_at + symbol_size]
        symbols = read_symbols(stream, [0] * count, [frequencies], lanes=1 << log_lanes, word=8, precision=7)
        need(symbols.count(first_size) == escapes, "float_fast has another number of escapes than it says")
        escape_size = (escapes + 1) // 2 + long_ones
        escape_stream = payload[escapes_at : escapes_at + escape_size]
        escaped = iter(read_escapes(escape_stream, escapes, seconds, exponent_bits))
        rests = read_rests(payload[raw_at : raw_at + raw_size], count, whole, bits)
        for y, rest in zip(symbols, rests, strict=True):
            exponent = palette[y] if y < first_size else next(escaped)
            sign, mantissa = rest >> mantissa_bits, rest & ((1 << mantissa_bits) - 1)
            value = sign << (exponent_bits + mantissa_bits) | exponent << mantissa_bits | mantissa
            out += value.to_bytes(size, "little")
        raw_at, symbols_at, escapes_at = raw_at + raw_size, symbols_at + symbol_size, escapes_at + escape_size
    return bytes(out)


def read_escapes(stream: bytes, count: int, seconds: bytes, exponent_bits: int) -> list[int]:
    """The exponents of the ``count`` escapes of a segment: nibbles, then bytes."""
    packed, long_ones = stream[: (count + 1) // 2], stream[(count + 1) // 2 :]
    nibbles = [nibble for byte in packed for nibble in (byte & 15, byte >> 4)]
    need(not any(nibbles[count:]), "the unused nibble of an escape stream is not 0")
    nibbles = nibbles[:count]
    need(nibbles.count(15) == len(long_ones), "float_fast has another number of long escapes than it says")
    need(max(long_ones, default=0) < 1 << exponent_bits, "float_fast has an impossible escaped exponent")
    need(all(k < len(seconds) or k == 15 for k in nibbles), "an escape of float_fast is not in the second palette")
    following = iter(long_ones)
    return [next(following) if nibble == 15 else seconds[nibble] for nibble in nibbles]


class Bits:
    """A stream of bits, the lowest of each byte first; what float_ctx and others write with them."""

    def __init__(self, data: bytes) -> None:
        self.digits = [byte >> j & 1 for byte in data for j in range(8)]
        self.at = 0

    def number(self, bits: int) -> int:
        need(self.at + bits <= len(self.digits), "a stream of bits is too short")
        taken = self.digits[self.at : self.at + bits]
        self.at += bits
        return sum(bit << j for j, bit in enumerate(taken))

    def end(self) -> None:
        rest = self.digits[self.at :]
        need(len(rest) < 8 and not any(rest), "a stream of bits goes on after its end")

    def rice(self, k: int, plain: int) -> int:
        q = 0
        while q < 12 and self.number(1):
            q += 1
        return q << k | self.number(k) if q < 12 else self.number(plain)

    def signed_rice(self, k: int, plain: int) -> int:
        u = self.rice(k, plain)
        return (u + 1) // 2 if u % 2 else -(u // 2)

    def scales(self, count: int) -> list[int]:
        centre, k = self.number(8), self.number(3)
        scales = [centre + self.signed_rice(k, 9) for _ in range(count)]
        need(all(0 <= x <= 255 for x in scales), "float_ctx has a scale out of range")
        return scales

    def table(self, top: int, step: int, base: int) -> list[int]:
        """The frequencies of a class; all zero if it has no table."""
        table = [0] * 256
        low = self.number(8)
        if low == 0:
            return table
        high = self.number(8)
        need(2 <= low <= high, "float_ctx has a table of an impossible range")
        table[0], table[1] = self.rice(0, 13), self.rice(0, 13)
        for y in range(low, high + 1):
            guess = table[y - step] if y - step >= low else 0
            if top and ((y - 2) // step + base) % (1 << top) == 0:
                guess = min(2 * guess, 4095)
            table[y] = guess + self.signed_rice(guess.bit_length() // 2, 13)
            need(0 <= table[y] <= 4095, "float_ctx has a frequency out of range")
        need(max(table) <= 4095 and sum(table) == 4096, "the frequencies of float_ctx do not add up to 4096")
        return table


def decode_float_ctx(payload: bytes, length: int, dtype: str) -> bytes:
    need(dtype in FLOAT_FIELDS, f"float_ctx does not apply to {dtype}")
    size, exponent_bits, mantissa_bits = FLOAT_FIELDS[dtype]
    n = length // size
    need(n > 0, "float_ctx does not apply to no elements")
    need(len(payload) >= 16, "a float_ctx payload is too short")
    mode, dropped, top, log_segment, log_classes, sides, base, row, model_size = struct.unpack_from("<6BhII", payload)
    need(mode <= 2, f"float_ctx has no sign mode {mode}")
    need(dropped + top <= mantissa_bits and exponent_bits + top <= 15, "float_ctx has an impossible cut")
    need(10 <= log_segment <= 24, f"float_ctx has segments of 2^{log_segment}")
    need(log_classes <= 3 and sides <= 3, "float_ctx has an impossible header")
    need(row >= 16, f"float_ctx has rows of {row}")

    at = 16 + model_size
    need(len(payload) >= at, "the model stream of float_ctx is too long")
    bits = Bits(payload[16:at])
    rows = bits.scales((n + row - 1) // row) if sides & 1 else []
    cols = bits.scales(min(row, n)) if sides & 2 else []
    need(max(rows, default=0) + max(cols, default=0) <= 255, "float_ctx has scales that are too large")
    step, classes = 2 if mode == 2 else 1, 1 << log_classes
    tables = [bits.table(top, step, base) for _ in range(classes)]
    bits.end()
    need(payload[at : at + -at % 8] == bytes(-at % 8), "padding of a float_ctx payload is not zero")
    at += -at % 8

    low_bits, magnitude_bits = mantissa_bits - dropped - top, exponent_bits + top
    whole, planes = divmod(low_bits + (mode == 0), 8)
    firsts = range(0, n, 1 << log_segment)
    counts = [min(1 << log_segment, n - first) for first in firsts]
    need(len(payload) >= at + 8 * len(counts), "a float_ctx payload is too short")
    sizes = [struct.unpack_from("<II", payload, at + 8 * i) for i in range(len(counts))]
    raw_at = at + 8 * len(counts)
    raw_sizes = [count * whole + planes * ((count + 7) // 8) for count in counts]
    symbols_at = raw_at + sum(raw_sizes)
    escapes_at = symbols_at + sum(symbol_size for symbol_size, _ in sizes)
    end = escapes_at + 2 * sum(escapes for _, escapes in sizes)
    need(end == len(payload), "the streams of a float_ctx payload do not fill it")

    out = bytearray()
    for first, count, raw_size, (symbol_size, escapes) in zip(firsts, counts, raw_sizes, sizes, strict=True):
        elements = range(first, first + count)
        scales = [(rows[i // row] if rows else 0) + (cols[i % row] if cols else 0) for i in elements]
        stream = payload[symbols_at : symbols_at + symbol_size]
        classes_of = [scale % classes for scale in scales]
        symbols = read_symbols(stream, classes_of, tables, lanes=32, word=16, precision=12)
        rests = read_rests(payload[raw_at : raw_at + raw_size], count, whole, planes)
        need(symbols.count(0) == escapes, "float_ctx has another number of escapes than it says")
        escaped = iter(struct.unpack_from(f"<{escapes}H", payload, escapes_at))
        for y, scale, rest in zip(symbols, scales, rests, strict=True):
            if y >= 2:
                sign = (y - 2) % step
                magnitude = (base + (y - 2) // step + (scale // classes << top)) % (1 << magnitude_bits)
            else:
                sign, magnitude = divmod(next(escaped) if y == 0 else 0, 1 << magnitude_bits)
                need(sign < step, "float_ctx has an impossible escape")
            raw_sign, low = divmod(rest, 1 << low_bits)
            sign = raw_sign if mode == 0 else sign
            value = sign << (exponent_bits + mantissa_bits) | magnitude << (dropped + low_bits) | low << dropped
            out += value.to_bytes(size, "little")
        raw_at, symbols_at, escapes_at = raw_at + raw_size, symbols_at + symbol_size, escapes_at + 2 * escapes
    return bytes(out)


class Part(NamedTuple):
    """A part of a record of quant_blocks; ``at`` is its offset there."""

    at: int
    length: int
    kind: int
    z_classes: int
    e_classes: int
    flags: int
    shift: int
    scale_shift: int
    a: int
    b: int
    d: int
    z_base: int
    e_base: int
    model_size: int


def read_parts(payload: bytes, count: int, record: int) -> list[Part]:
    parts, at = [], 0
    for i in range(count):
        part = Part(at, *struct.unpack_from("<H6B3H2hI", payload, 8 + 22 * i))
        need(part.length >= 1 and part.kind <= 2 and part.flags <= 15, "quant_blocks has an impossible part")
        need(part.shift <= 15 and part.scale_shift <= 15, "quant_blocks shifts by too much")
        has_a, has_b, has_d, has_columns = (part.flags >> bit & 1 for bit in range(4))
        need(part.z_classes >= 1 and part.e_classes >= 1, "quant_blocks has a part without classes")
        need(part.z_classes * part.e_classes <= 64, "quant_blocks has a part with too many classes")
        need(part.z_classes == 1 or has_a, "quant_blocks has classes without a field")
        need(part.e_classes == 1 or has_d or has_columns, "quant_blocks has classes without a scale")
        need(has_a or not has_b, "quant_blocks has a field b without a field a")
        for has, field in ((has_a, part.a), (has_b, part.b), (has_d, part.d)):
            need(not has or field + 2 <= at, "quant_blocks has a field that is not in an earlier part")
        if part.kind == 0:
            plain = (part.z_classes, part.e_classes, part.flags, part.shift, part.scale_shift, part.model_size)
            need(plain == (1, 1, 0, 0, 0, 0), "quant_blocks has a rule for a part that is stored as is")
        parts.append(part)
        at += part.length
    need(at == record, "the parts of quant_blocks are no record")
    return parts


def classes_of(part: Part, records: list[bytearray], row: int, cols: list[int]) -> list[int]:
    """Classes of the bytes of a part, record after record; of ``records`` the earlier parts are there."""

    def field(record: bytearray, offset: int) -> int:
        return (record[offset] | record[offset + 1] << 8) & 0x7FFF

    classes = []
    for first in range(0, len(records), row):
        here = records[first : first + row]
        scales = [field(record, part.d) >> part.scale_shift if part.flags & 4 else 0 for record in here]
        mean = sum(scales) // len(here)
        for i, record in enumerate(here):
            z = field(record, part.a) >> part.shift if part.flags & 1 else part.z_base
            z -= field(record, part.b) >> part.shift if part.flags & 2 else 0
            z = max(0, min(z - part.z_base, part.z_classes - 1))
            for j in range(part.length):
                e = mean - scales[i] + part.e_base + (cols[i * part.length + j] if cols else 0)
                classes.append(z * part.e_classes + max(0, min(e, part.e_classes - 1)))
    return classes


def pair_table(table: list[int]) -> list[int]:
    """Frequencies of bytes from those of codes of four bits, which are symbols 2 to 17."""
    need(not any(table[:2]) and not any(table[18:]), "quant_blocks has a code of more than four bits")
    if not any(table):
        return table
    product = [table[2 + y % 16] * table[2 + y // 16] for y in range(256)]
    starts = [y + 15 * sum(product[:y]) // 65536 for y in range(257)]
    return [starts[y + 1] - starts[y] for y in range(256)]


def decode_quant_blocks(payload: bytes, length: int) -> bytes:
    need(len(payload) >= 8 and length > 0, "a quant_blocks payload is too short")
    record, log_segment, count, row = struct.unpack_from("<HBBI", payload)
    need(1 <= record <= 1024 and 1 <= count <= 64 and row >= 1, "quant_blocks has a bad header")
    need(10 <= log_segment <= 24, f"quant_blocks has segments of 2^{log_segment}")
    need(length % record == 0, "quant_blocks has no whole number of records")
    n = length // record
    need(len(payload) >= 8 + 22 * count, "a quant_blocks payload is too short")
    parts = read_parts(payload, count, record)

    at = 8 + 22 * count
    models = []
    for part in parts:
        models.append(payload[at : at + part.model_size])
        at += part.model_size
    need(len(payload) >= at + -at % 8, "the model streams of quant_blocks are too long")
    need(payload[at : at + -at % 8] == bytes(-at % 8), "padding of a quant_blocks payload is not zero")
    at += -at % 8
    counts = [[] if p.kind == 0 else segment_counts(n * p.length, log_segment) for p in parts]
    need(len(payload) >= at + 4 * sum(map(len, counts)), "a quant_blocks payload is too short")
    sizes = []
    for of_part in counts:
        sizes.append(struct.unpack_from(f"<{len(of_part)}I", payload, at))
        at += 4 * len(of_part)

    records = [bytearray(record) for _ in range(n)]
    for part, model, of_part, stream_sizes in zip(parts, models, counts, sizes, strict=True):
        if part.kind == 0:
            symbols = list(payload[at : at + n * part.length])
            at += n * part.length
            need(at <= len(payload), "a quant_blocks payload is too short")
        else:
            bits = Bits(model)
            cols = bits.scales(min(row, n) * part.length) if part.flags & 8 else []
            tables = [bits.table(0, 1, 0) for _ in range(part.z_classes * part.e_classes)]
            rest = bits.digits[bits.at :]
            need(len(rest) < 8 and not any(rest), "a model stream of quant_blocks goes on after its end")
            if part.kind == 2:
                tables = [pair_table(table) for table in tables]
            classes = classes_of(part, records, row, cols)
            symbols = []
            for symbol_count, size in zip(of_part, stream_sizes, strict=True):
                need(size <= len(payload) - at, "a quant_blocks payload is too short")
                here = classes[len(symbols) : len(symbols) + symbol_count]
                symbols += read_symbols(payload[at : at + size], here, tables, lanes=32, word=16, precision=12)
                at += size
        for i, bytes_of in enumerate(records):
            bytes_of[part.at : part.at + part.length] = bytes(symbols[i * part.length : (i + 1) * part.length])
    need(at == len(payload), "a quant_blocks payload goes on after its end")
    return b"".join(records)


def segment_counts(symbols: int, log_segment: int) -> list[int]:
    return [min(1 << log_segment, symbols - first) for first in range(0, symbols, 1 << log_segment)]


def rounded(value: Fraction, precision: int, smallest: int, largest: int) -> tuple[int, int] | None:
    """(integer, exponent of two) nearest to ``value``, ties to even, with ``precision`` bits but no exponent below
    ``smallest``; None if that is 2^``largest`` or more."""
    if value == 0:
        return 0, smallest
    exponent = max(smallest, value.numerator.bit_length() - value.denominator.bit_length() - precision - 1)
    while value / Fraction(2) ** exponent >= 2**precision:
        exponent += 1
    integer = round(value / Fraction(2) ** exponent)
    return None if integer * Fraction(2) ** exponent >= 2**largest else (integer, exponent)


def decode_dequantised(payload: bytes, length: int, dtype: str) -> bytes:
    need(dtype in ("BF16", "F16", "F32"), f"dequantised does not apply to {dtype}")
    size, exponent_bits, mantissa_bits = FLOAT_FIELDS[dtype]
    n = length // size
    need(n > 0 and len(payload) >= 20, "a dequantised payload is too short")
    flags, group, scales_size, codes_size, exceptions = struct.unpack_from("<5I", payload)
    need(flags <= 1 and group >= 1, "dequantised has a bad header")
    end = 20 + scales_size + codes_size + (4 + size) * exceptions
    need(end == len(payload), "the streams of a dequantised payload do not fill it")
    groups = (n + group - 1) // group
    scales = stored_or_coded(payload[20 : 20 + scales_size], 4 * groups)
    codes = stored_or_coded(payload[20 + scales_size : 20 + scales_size + codes_size], n)

    out = bytearray()
    bias = (1 << (exponent_bits - 1)) - 1
    exact: list[Fraction] = []
    for bits in struct.unpack(f"<{groups}I", scales):
        need(bits == 0 or 1 << 23 <= bits < 255 << 23, "dequantised has an impossible scale")
        integer = (bits & 0x7FFFFF) | 0x800000 if bits else 0
        exact.append(integer * Fraction(2) ** ((bits >> 23) - 150))
    for i, code in enumerate(struct.unpack(f"<{n}b", codes)):
        if flags and code == -128:
            out += (1 << (8 * size - 1)).to_bytes(size, "little")
            continue
        # To binary32 first, then to the type of the chunk.
        parts = rounded(abs(code) * exact[i // group], 24, -149, 128)
        if parts is not None:
            parts = rounded(parts[0] * Fraction(2) ** parts[1], mantissa_bits + 1, 1 - bias - mantissa_bits, bias + 1)
        if parts is None:
            value = ((1 << exponent_bits) - 1) << mantissa_bits
        else:
            integer, exponent = parts
            # The hidden bit, where there is one, adds one to the field of the exponent.
            value = integer + ((exponent + bias + mantissa_bits - 1) << mantissa_bits)
        out += (value | (code < 0) << (8 * size - 1)).to_bytes(size, "little")
    at = 20 + scales_size + codes_size
    places = struct.unpack_from(f"<{exceptions}I", payload, at)
    need(all(x < y for x, y in itertools.pairwise(places)), "the exceptions of dequantised are out of order")
    need(not places or places[-1] < n, "dequantised has an exception beyond its elements")
    at += 4 * exceptions
    for k, place in enumerate(places):
        out[place * size : (place + 1) * size] = payload[at + k * size : at + (k + 1) * size]
    return bytes(out)


def stored_or_coded(stream: bytes, length: int) -> bytes:
    if len(stream) == length:
        return stream
    need(0 < len(stream) < length, "a stream of dequantised has an impossible length")
    return decode_quant_blocks(stream, length)


def ordered(value: int, width: int, is_float: bool) -> int:
    """The integer of an element whose order is the numbers', modulo 2^width; doing it twice undoes it."""
    return value ^ ((1 << (width - 1)) - 1) if is_float and value >> (width - 1) else value


def read_map(bits: Bits, count: int, limit: int) -> list[int]:
    """A map of cells: each entry as its difference to the one before."""
    entries, entry = [], 0
    for move in bits.scales(count):
        entry = (entry + move - 128) % 256
        entries.append(entry)
    need(max(entries) < limit, "optim_ctx has an entry of a map that is out of range")
    return entries


DELTA_INPUT_BITS = (6, 3, 3, 1, 3)


class DeltaModel:
    """A model of codec 8: what elements have how many leading bits, which class they are in, its tables."""

    def __init__(self, data: bytes) -> None:
        need(len(data) >= 8, "a model of delta_ctx is too short")
        self.references, self.top, self.classes, _, tree_size, zero = struct.unpack_from("<4BHH", data)
        need(
            1 <= self.references <= 3 and self.top <= 4 and 1 <= self.classes <= 64, "a model has an impossible header"
        )
        need(zero == 0 and 8 + tree_size <= len(data), "a model has an impossible header")
        self.inputs = (0, 2, 4, 5)[self.references]
        bits = Bits(data[8 : 8 + tree_size])
        self.tree = self._node(bits, [(0, (1 << n) - 1) for n in DELTA_INPUT_BITS])
        bits.end()
        bits = Bits(data[8 + tree_size :])
        self.tables = [bits.table(self.top, 2, 1) for _ in range(self.classes)]
        bits.end()
        need(all(any(table) and not table[0] for table in self.tables), "a model has a table without a use")

    def _node(self, bits: Bits, ranges: list[tuple[int, int]]) -> int | tuple:
        """A class, or (input, threshold, node at most that, node above)."""
        if not bits.number(1):
            label = bits.number((self.classes - 1).bit_length())
            need(label < self.classes, "a tree has a class that does not exist")
            return label
        asked = bits.number(3)
        need(asked < self.inputs, "a tree asks for what is not known")
        threshold = bits.number(DELTA_INPUT_BITS[asked]) if asked != 3 else 0
        low, high = ranges[asked]
        need(low <= threshold < high, "a tree has a split that splits nothing")
        sides = []
        for part in ((low, threshold), (threshold + 1, high)):
            sides.append(self._node(bits, [*ranges[:asked], part, *ranges[asked + 1 :]]))
        return (asked, threshold, *sides)

    def class_of(self, inputs: list[int]) -> int:
        node = self.tree
        while isinstance(node, tuple):
            node = node[3] if inputs[node[0]] > node[1] else node[2]
        return node


def decode_delta(
    payload: bytes, length: int, dtype: str, references: Sequence[bytes], models: Sequence[bytes] = ()
) -> bytes:
    """Codec 8. ``references``: decoded bytes of the same tile of the unit's references; ``models``: of the unit."""
    is_float = dtype in FLOAT_FIELDS
    size, exponent_bits, mantissa_bits = FLOAT_FIELDS[dtype] if is_float else (ITEM_SIZE[dtype], 0, 0)
    need(size <= 4, f"delta_ctx does not apply to {dtype}")
    width, n = 8 * size, length // size
    need(n > 0, "delta_ctx does not apply to no elements")
    need(len(references) > 0 and len(references[0]) == length, "delta_ctx has no parent")
    if payload == b"\0":
        return references[0]
    need(len(payload) >= 24, "a delta_ctx payload is too short")
    used, number, segments, sides, base, step_base, zero = struct.unpack_from("<4BhbB", payload)
    row, exceptions, scales_size, model_size = struct.unpack_from("<IIII", payload, 8)
    need(1 <= used <= 3 and used <= len(references), "delta_ctx uses references that are not there")
    need(all(len(reference) == length for reference in references[:used]), "delta_ctx has a reference of another size")
    need(segments > 0, "delta_ctx has no segments")
    per_segment = 32 * ((n + 32 * segments - 1) // (32 * segments))
    need((segments - 1) * per_segment < n, "delta_ctx has segments of nothing")
    need(sides <= 3 and -4096 <= base <= 4095 and zero == 0 and row >= 1, "delta_ctx has an impossible header")
    need(used > 1 or step_base == 0, "delta_ctx has steps without a second reference")
    need(number <= len(models) and (number == 0 or model_size == 0), "delta_ctx has a model that does not exist")

    at = 24 + scales_size + model_size
    need(len(payload) >= at, "the models of delta_ctx are too long")
    bits = Bits(payload[24 : 24 + scales_size])
    rows = bits.scales((n + row - 1) // row) if sides & 1 else []
    cols = bits.scales(min(row, n)) if sides & 2 else []
    need(max(rows, default=0) + max(cols, default=0) <= 255, "delta_ctx has scales that are too large")
    bits.end()
    model = DeltaModel(models[number - 1] if number else payload[24 + scales_size : at])
    limit = (width - model.top + 1) << (model.top + 1)
    need(model.references == used and limit <= 256, "delta_ctx has a model for something else")
    need(not any(any(table[limit:]) for table in model.tables), "delta_ctx has a symbol that does not exist")
    need(payload[at : at + -at % 8] == bytes(-at % 8), "padding of a delta_ctx payload is not zero")
    at += -at % 8

    firsts = range(0, n, per_segment)
    need(len(payload) >= at + 8 * len(firsts), "a delta_ctx payload is too short")
    sizes = [struct.unpack_from("<II", payload, at + 8 * i) for i in range(len(firsts))]
    symbols_at = at + 8 * len(firsts)
    raw_at = symbols_at + sum(symbols_size for symbols_size, _ in sizes)
    patches_at = raw_at + sum(raw_size for _, raw_size in sizes)
    need(patches_at + (4 + size) * exceptions == len(payload), "the streams of delta_ctx do not fill it")

    def step(new: int, old: int) -> int:
        change = ordered(new, width, is_float) - ordered(old, width, is_float)
        return (change + (1 << (width - 1))) % (1 << width) - (1 << (width - 1))

    def size_of(change: int, expected: int) -> int:
        return max(1, min(abs(change).bit_length() - expected // 4 + step_base, 7)) if change else 0

    values = [[int.from_bytes(r[i * size : (i + 1) * size], "little") for i in range(n)] for r in references[:used]]
    out = bytearray()
    for first, (symbols_size, raw_size) in zip(firsts, sizes, strict=True):
        elements = range(first, min(n, first + per_segment))
        classes, downwards = [], []
        for i in elements:
            p = values[0][i]
            e = max(p >> mantissa_bits & ((1 << exponent_bits) - 1), 1)
            scale = (rows[i // row] if rows else 0) + (cols[i % row] if cols else 0) + base - 4 * e
            inputs = [max(0, min(scale, 63)), (p << 3 >> mantissa_bits) & 7 if is_float else 0]
            down = is_float and p >> (width - 1) == 1
            if used >= 2:
                u = step(p, values[1][i])
                inputs += [size_of(u, inputs[0]), int(u != 0 and (u < 0) != down)]
                down = u < 0 if u else down
            if used == 3:
                inputs.append(size_of(step(values[1][i], values[2][i]), inputs[0]))
            classes.append(model.class_of(inputs))
            downwards.append(down)
        stream = payload[symbols_at : symbols_at + symbols_size]
        symbols = read_symbols(stream, classes, model.tables, lanes=32, word=16, precision=12)
        raw = Bits(payload[raw_at : raw_at + raw_size])
        for i, y, down in zip(elements, symbols, downwards, strict=True):
            change = 0
            if y >= 2:
                token = y // 2
                r = max(0, (token >> model.top) - 1)
                change = ((token - (r << model.top)) << r) + raw.number(r)
                if (y % 2 == 1) != down:
                    change = -change
            v = ordered((ordered(values[0][i], width, is_float) + change) % (1 << width), width, is_float)
            out += v.to_bytes(size, "little")
        raw.end()
        symbols_at, raw_at = symbols_at + symbols_size, raw_at + raw_size
    places = struct.unpack_from(f"<{exceptions}I", payload, patches_at)
    need(
        all(a < b for a, b in zip((-1, *places), (*places, n), strict=False)),
        "exceptions of delta_ctx are out of order",
    )
    for k, place in enumerate(places):
        patch_at = patches_at + 4 * exceptions + k * size
        out[place * size : (place + 1) * size] = payload[patch_at : patch_at + size]
    return bytes(out)


def plain_number(bits: int) -> float:
    """The number that binary32 ``bits`` are; 0 for what is subnormal, infinite or not a number."""
    return float(struct.unpack("<f", bits.to_bytes(4, "little"))[0]) if 0 < (bits >> 23 & 255) < 255 else 0.0


def stepped(p: int, moment: int | None, square: int, f: float, g: float, epsilon: float) -> int:
    """The parent's number times f, and a step of Adam times g, as binary32."""
    x = f * plain_number(p)
    if moment is not None:
        v = 0.0 if square >> 31 else plain_number(square)
        x = x + g * (plain_number(moment) / (math.sqrt(v) + epsilon))
    if abs(x) >= 2.0**127:
        return p
    return int.from_bytes(struct.pack("<f", x), "little") if abs(x) >= 2.0**-126 else 0


class Near(NamedTuple):
    """Modes 0 and 2 of codec 9: what an element is expected to be."""

    centre: int
    low: int
    bits: int
    cell: int


def near(q: int, half: int | None, kind: int, scale: int) -> Near:
    signed = [ordered(q, 32, True), 0]
    bits, place = 32, 0
    if half is not None:
        h, bits, place = half << 16, 16, 15
        if kind == 2:
            h = (half >> 15 << 31) + ((half & 0x7FFF) << 13) + (112 << 23)
            bits = 13 if 0 < (half >> 10 & 31) < 31 else 32
        signed[1] = ordered(h, 32, True)
    centre, of_half = (x - (1 << 32) if x >> 31 else x for x in signed)
    low = 0
    if bits < 32:
        low = of_half - (1 << (bits - 1))
        centre = max(low, min(centre, low + (1 << bits) - 1))
        place = 15 * (centre - low) >> bits
    return Near(centre, low, bits, 64 * place + max(0, min(scale - 4 * max(q >> 23 & 255, 1), 63)))


def decode_optim(payload: bytes, length: int, dtype: str, references: Sequence[bytes]) -> bytes:
    """Codec 9. ``references``: decoded bytes of the same tile of the unit's references."""
    need(dtype == "F32" and length > 0, f"optim_ctx does not apply to {dtype}, or to no elements")
    need(len(payload) >= 48, "an optim_ctx payload is too short")
    mode, low_bits, log_segment, sides, kind, n_classes = payload[:6]
    base, row, scales_size, model_size, f, g, epsilon = struct.unpack_from("<hIII3d", payload, 10)
    n = length // 4
    need(mode <= 2 and (16 if mode == 1 else 0) <= low_bits <= 24, "optim_ctx has an impossible mode")
    need(10 <= log_segment <= 24 and sides <= 3 and kind <= 2, "optim_ctx has an impossible header")
    need(1 <= n_classes <= 64 and -4096 <= base <= 4095 and row >= 1, "optim_ctx has an impossible header")
    held: list[list[int] | None] = []
    for number, size in zip(payload[6:10], (4, 2, 4, 4), strict=True):
        if number == 255:
            held.append(None)
            continue
        need(number < len(references), "optim_ctx uses a reference that is not there")
        need(len(references[number]) == size * n, "optim_ctx uses a reference of another size")
        held.append([int.from_bytes(references[number][i * size :][:size], "little") for i in range(n)])
    parent, halves, moment, square = held
    has = [values is not None for values in held]
    need(has[1] == (kind > 0), "optim_ctx has halves of no kind")
    if mode == 1:
        need(has[1:] == [False, False, True], "optim_ctx has the wrong references")
    else:
        need(has[2] == has[3] and has[0] == (mode == 0), "optim_ctx has the wrong references")
        need(mode == 0 or (has[1] and not has[2]), "optim_ctx has the wrong references")
    for factor, used in ((f, mode == 0), (g, has[2]), (epsilon, has[2])):
        need(2.0**-60 <= abs(factor) <= 2.0**60 if used else factor == 0.0, "optim_ctx has an impossible factor")
    need(not has[2] or epsilon > 0, "optim_ctx has an impossible factor")

    at = 48 + scales_size + model_size
    need(len(payload) >= at, "the models of optim_ctx are too long")
    bits = Bits(payload[48 : 48 + scales_size])
    rows = bits.scales((n + row - 1) // row) if sides & 1 else []
    cols = bits.scales(min(row, n)) if sides & 2 else []
    need(max(rows, default=0) + max(cols, default=0) <= 255, "optim_ctx has scales that are too large")
    bits.end()
    bits = Bits(payload[48 + scales_size : at])
    classes = read_map(bits, 1024, n_classes)
    tables = [bits.table(2, 2, 1) for _ in range(n_classes)]
    bits.end()
    limit = 8 * (31 - low_bits)
    exists = [(y % 128 < limit and y != 128) if mode == 1 else y < limit for y in range(256)]
    need(not any(x and not e for t in tables for x, e in zip(t, exists, strict=True)), "optim_ctx has a false symbol")
    need(payload[at : at + -at % 8] == bytes(-at % 8), "padding of an optim_ctx payload is not zero")
    at += -at % 8
    firsts = range(0, n, 1 << log_segment)
    need(len(payload) >= at + 8 * len(firsts), "an optim_ctx payload is too short")
    sizes = [struct.unpack_from("<II", payload, at + 8 * i) for i in range(len(firsts))]
    symbols_at = at + 8 * len(firsts)
    raw_at = symbols_at + sum(symbols_size for symbols_size, _ in sizes)
    need(raw_at + sum(raw_size for _, raw_size in sizes) == len(payload), "the streams of optim_ctx do not fill it")

    scaled: list[tuple[int, int, int]] = []
    expected: list[Near] = []
    for i in range(n):
        scale = (rows[i // row] if rows else 0) + (cols[i % row] if cols else 0) + base
        p = parent[i] if parent is not None else 0
        if mode == 1:
            assert square is not None
            q = (square[i] // 2 + scale * 2**20) % 2**32
            t = (p % 2**31 - q + 2**31) % 2**32 - 2**31
            z = max(0, min(t // 2**22 + 13, 15)) if p % 2**31 else 0
            scaled.append((q, p >> 31, 64 * z + square[i] // 2**21 % 8))
            continue
        half = halves[i] if halves is not None else None
        if mode == 2:
            assert half is not None
            q = half << 16 if kind == 1 else (half >> 15 << 31) + ((half & 0x7FFF) << 13) + (112 << 23)
        elif moment is None and f == 1.0:
            q = p
        else:
            q = stepped(p, moment[i] if moment else None, square[i] if square else 0, f, g, epsilon)
        expected.append(near(q, half, kind, scale))

    out = bytearray()
    cells = [cell for _, _, cell in scaled] or [one.cell for one in expected]
    for first, (symbols_size, raw_size) in zip(firsts, sizes, strict=True):
        elements = range(first, min(n, first + (1 << log_segment)))
        stream = payload[symbols_at : symbols_at + symbols_size]
        classes_of = [classes[cells[i]] for i in elements]
        symbols = read_symbols(stream, classes_of, tables, lanes=32, word=16, precision=12)
        raw = Bits(payload[raw_at : raw_at + raw_size])
        for i, symbol in zip(elements, symbols, strict=True):
            if symbol == 0:
                out += (raw.number(32) if mode != 1 else 0).to_bytes(4, "little")
                continue
            y = symbol % 128 if mode == 1 else symbol
            below = raw.number(low_bits)
            r = max(0, y // 2 // 4 - 1)
            part = ((y // 2 - 4 * r) << r) + raw.number(r) if y > 1 else 0
            d = (-part if y % 2 else part) * 2**low_bits + below
            if mode == 1:
                q, sign, _ = scaled[i]
                v = (q + d) % 2**31 + ((sign ^ symbol >> 7) << 31)
            else:
                one = expected[i]
                o = one.low + (one.centre + d - one.low) % 2**one.bits
                v = ordered(o % 2**32, 32, True)
            out += v.to_bytes(4, "little")
        raw.end()
        symbols_at, raw_at = symbols_at + symbols_size, raw_at + raw_size
    return bytes(out)


def decode_elements(
    codec: int,
    payload: bytes,
    length: int,
    dtype: str,
    references: Sequence[bytes] = (),
    models: Sequence[bytes] = (),
) -> bytes:
    """The decoded bytes of a chunk. ``codec`` is a known one; ``length`` has been charged.

    ``references``: decoded bytes of the same tile of the unit's references; ``models``: the unit's.
    """
    if codec == RAW:
        need(len(payload) == length, "a raw payload has another length than its decoded bytes")
        return payload
    if codec == CONST:
        need(len(payload) == ITEM_SIZE[dtype], "a const payload is not one element")
        return payload * (length // len(payload))
    if codec == ZSTD:
        return decode_zstd(payload, length)
    if codec == FLOAT_CTX:
        return decode_float_ctx(payload, length, dtype)
    if codec == QUANT_BLOCKS:
        return decode_quant_blocks(payload, length)
    if codec == DEQUANTISED:
        return decode_dequantised(payload, length, dtype)
    if codec == DELTA_CTX:
        return decode_delta(payload, length, dtype, references, models)
    if codec == OPTIM_CTX:
        return decode_optim(payload, length, dtype, references)
    return decode_float_fast(payload, length, dtype)


def decode_plain(codec: int, payload: bytes, length: int) -> bytes:
    """Metadata, tables and models: codec 0, or 3 with stride 1."""
    need(codec in (RAW, ZSTD), f"codec {codec} is not allowed for metadata")
    if codec == ZSTD:
        return decode_zstd(payload, length, only_stride=1)
    need(len(payload) == length, "a raw payload has another length than its decoded bytes")
    return payload


# --------------------------------------------------------------------------- sections 3 and 7: prologue and trailer


class Prologue(NamedTuple):
    raw: bytes
    versions: bytes  # bytes 8 to 15
    max_stored: int
    max_chunk: int
    incompatible: int
    compatible: int
    file_id: bytes


def check_versions(block: bytes, minor_and_sizes: bool) -> None:
    """Bytes 8 to 15 of the prologue, which the trailer repeats; the major version alone, or the rest."""
    major, minimum, _, log_frame, log_chunk = struct.unpack("<HHHBB", block)
    if not minor_and_sizes:
        if major != 1:
            raise Unsupported(f"major version {major}: a newer reader is needed")
        return
    if minimum > 0:
        raise Unsupported(f"version 1.{minimum}: a newer reader is needed")
    need(7 <= log_frame <= 40, "the prologue has an impossible largest frame")
    need(log_chunk <= 28, "the prologue has an impossible largest chunk")


def read_prologue(data: bytes) -> Prologue:
    raw = data[:64]
    if len(raw) < 64 or raw[:8] != MAGIC:
        raise NotAnArchive("not an ARZ archive")
    check_versions(raw[8:16], False)
    need(crc32c(raw[:60]) == int.from_bytes(raw[60:], "little"), "the CRC of the prologue is wrong")
    check_versions(raw[8:16], True)
    incompatible, compatible = struct.unpack_from("<QQ", raw, 16)
    if incompatible:
        raise Unsupported(f"incompatible features {incompatible:#x}: a newer reader is needed")
    need(raw[48:60] == bytes(12), "reserved bytes of the prologue are not zero")
    max_stored, max_chunk = (1 << raw[14]) - 128, 1 << raw[15]
    return Prologue(raw, raw[8:16], max_stored, max_chunk, incompatible, compatible, raw[32:48])


class Trailer(NamedTuple):
    index_offset: int
    index_length: int
    first_table: int
    root: bytes


def read_trailer(data: bytes, prologue: Prologue) -> Trailer:
    need(len(data) >= 64 + 128 + 128, "the file is too short for its trailer")
    raw = data[-128:]
    check_versions(raw[:8], False)
    need(crc32c(raw[:116]) == int.from_bytes(raw[116:120], "little"), "the CRC of the trailer is wrong")
    check_versions(raw[:8], True)
    incompatible, compatible, file_id = struct.unpack_from("<QQ16s", raw, 8)
    if incompatible & ~prologue.incompatible:
        raise Unsupported(f"incompatible features {incompatible:#x}: a newer reader is needed")
    need(compatible & ~prologue.compatible == 0, "the trailer has a compatible feature that the prologue has not")
    need(raw[:8] == prologue.versions, "the versions in trailer and prologue differ")
    need(file_id == prologue.file_id, "the file ids of trailer and prologue differ")
    index_offset, index_length, first_table, total, root = struct.unpack_from("<QQQQ32s", raw, 40)
    need(total == len(data), f"the trailer says {total} bytes, the file has {len(data)}")
    need(raw[104:116] == bytes(12), "reserved bytes of the trailer are not zero")
    need(index_offset % 64 == 0 and index_offset >= 64, "the offset of the INDEX is impossible")
    need(index_length >= 128, "the length of the INDEX is impossible")
    need(index_offset + index_length == len(data) - 128, "the INDEX does not end where the trailer begins")
    return Trailer(index_offset, index_length, first_table, root)


# ------------------------------------------------------------------------------------------- section 4: frames


class Frame(NamedTuple):
    offset: int
    header: bytes
    type: int
    codec: int
    ordinal: int
    chunk: int
    payload: bytes
    decoded_length: int
    xxh_stored: int
    xxh_decoded: int
    size: int  # header, payload and padding
    value: Any  # metadata, or the bytes of a MODEL or TABLE
    unsupported: str  # why the file must be refused if this frame is in use


def read_frame(data: bytes, offset: int, sequence: int, prologue: Prologue, limits: Limits, budget: Budget) -> Frame:
    """The frame at ``offset``, if it is good."""
    where = f"frame {sequence} at {offset}"
    header = data[offset : offset + 128]
    need(len(header) == 128, f"{where}: the header is cut off")
    need(header[:8] == SYNC, f"{where}: no sync word")
    need(crc32c(header[:124]) == int.from_bytes(header[124:], "little"), f"{where}: the CRC of the header is wrong")
    kind, codec, reserved, number, file_id = struct.unpack_from("<HHIQ8s", header, 8)
    ordinal, chunk, stored, decoded, xxh_stored, xxh_decoded = struct.unpack_from("<IIQQQQ", header, 32)
    need(reserved == 0 and header[72:124] == bytes(52), f"{where}: reserved bytes are not zero")
    need(number == sequence, f"{where}: has sequence number {number}")
    need(file_id == prologue.file_id[:8], f"{where}: belongs to another file")
    need(stored <= prologue.max_stored, f"{where}: is larger than the prologue allows")
    size = align64(128 + stored)
    need(size <= len(data) - offset, f"{where}: goes beyond the file")
    payload = data[offset + 128 : offset + 128 + stored]
    need(xxh3(payload) == xxh_stored, f"{where}: the XXH3 of the stored payload is wrong")
    need(not any(data[offset + 128 + stored : offset + size]), f"{where}: the padding is not zero")

    value, unsupported = None, ""
    if kind in KNOWN_TYPES:
        need(decoded <= (prologue.max_chunk if kind == CHUNK else limits.metadata), f"{where}: decodes to too much")
        need(chunk == 0 or kind == CHUNK, f"{where}: has a chunk number")
        need((ordinal != NONE) == (kind in NUMBERED_TYPES), f"{where}: has an impossible ordinal")
        if kind != CHUNK and codec not in KNOWN_CODECS:
            unsupported = f"{where}: codec {codec} is not known"
        elif kind == PAD:
            need(codec == RAW and stored == decoded and not any(payload), f"{where}: a PAD that is not zeros")
            need(xxh_decoded == xxh_stored, f"{where}: the XXH3 of the decoded payload is wrong")
        elif kind != CHUNK:
            budget.charge(decoded, where)
            plain = decode_plain(codec, payload, decoded)
            need(xxh3(plain) == xxh_decoded, f"{where}: the XXH3 of the decoded payload is wrong")
            value = unpack(plain, limits) if kind in METADATA_TYPES else plain
    elif not kind & 0x8000:
        unsupported = f"{where}: type {kind:#06x} is not known"
    return Frame(
        offset, header, kind, codec, ordinal, chunk, payload, decoded, xxh_stored, xxh_decoded, size, value, unsupported
    )


# --------------------------------------------------------------------------------- sections 5 and 6: what frames say


@dataclasses.dataclass
class Unit:
    number: int
    raw: dict[str, Any]  # the map of 5.1, as the INDEX repeats it
    dtype: str
    rows: int
    columns: int
    grid: tuple[int, int]
    frame: Frame
    chunks: dict[int, Frame] = dataclasses.field(default_factory=dict)
    replaced: list[Frame] = dataclasses.field(default_factory=list)
    committed: list[bytes] | None = None  # the digests that the last COMMIT lists for it
    digests: list[bytes | None] = dataclasses.field(default_factory=list)  # one per member, None if not known
    stale: bool = False  # a chunk follows that COMMIT

    @property
    def elements(self) -> int:
        return self.rows * self.columns

    @property
    def size(self) -> int:
        return self.elements * ITEM_SIZE[self.dtype]

    @property
    def chunk_count(self) -> int:
        if not self.elements:
            return 0
        return -(-self.rows // self.grid[0]) * -(-self.columns // self.grid[1])

    def tile(self, k: int) -> tuple[int, int, int, int]:
        """First row, rows, first column, columns of chunk ``k``."""
        wide = -(-self.columns // self.grid[1])
        row, column = k // wide * self.grid[0], k % wide * self.grid[1]
        return row, min(self.grid[0], self.rows - row), column, min(self.grid[1], self.columns - column)


def read_shape(value: Any, limits: Limits) -> list[int]:
    within(len(array(value)) <= limits.dimensions, "a shape has too many dimensions")
    return [integer(size) for size in value]


def check_member(member: Any, unit_elements: int, limits: Limits) -> None:
    name, shape, start, strides = array(member, 4)
    if name is not None:
        within(len(text(name).encode("utf-8")) <= limits.name, "a name is too long")
    read_shape(shape, limits)
    integer(start)
    if strides is not None:
        for stride in array(strides, len(shape)):
            integer(stride)
    count = extent(shape)
    if count == 0:
        return
    last = count - 1 if strides is None else sum((d - 1) * s for d, s in zip(shape, strides, strict=True))
    need(start + last < unit_elements, f"member {name!r} goes beyond its unit")


def span_of(shape: list[int], strides: list[int] | None) -> int:
    """Elements of the unit from a member's first to its last."""
    count = extent(shape)
    if strides is None or count == 0:
        return count
    return 1 + sum((d - 1) * s for d, s in zip(shape, strides, strict=True))


def check_path(path: bytes, limits: Limits) -> None:
    """Section 8."""
    within(len(path) <= limits.path, "a path is too long")
    need(b"\0" not in path, f"path {path!r:.60} holds a NUL byte")
    need(all(part not in (b"", b".", b"..") for part in path.split(b"/")), f"path {path!r:.60} is not allowed")


class Scan:
    """What the frames of the valid prefix say, one after the other."""

    def __init__(self, prologue: Prologue, limits: Limits) -> None:
        self.limits = limits
        self.units: list[Unit] = []
        self.files: list[Frame] = []  # the last FILE frame of each number
        self.replaced_files: list[Frame] = []
        self.models: list[Frame] = []
        self.tables: list[Frame] = []
        self.parents: list[Frame] = []
        self.volumes: list[Frame] = []
        self.members = 0
        self.chain = blake3(prologue.raw)
        self.headers: list[bytes] = []  # since the last COMMIT, that one included
        self.last_commit = 0
        self.after_commit = ""  # a frame that only a COMMIT may follow up
        self.index: Frame | None = None

    def apply(self, frame: Frame) -> None:
        where = f"frame at {frame.offset}"
        if frame.unsupported:
            raise Unsupported(frame.unsupported)
        need(self.index is None, f"{where}: stands after the INDEX")
        need(not self.tables or frame.type in (TABLE, INDEX), f"{where}: stands between TABLE and INDEX")
        handler = {
            TENSOR: self.tensor, FILE: self.file, MODEL: self.model, CHUNK: self.chunk, COMMIT: self.commit,
            TABLE: self.table, INDEX: self.set_index, PARENT: self.parent, VOLUME: self.volume,
        }.get(frame.type)  # fmt: skip
        if frame.type in (TENSOR, FILE, MODEL, CHUNK, PARENT, VOLUME):
            self.after_commit = where
        if handler is not None:
            try:
                handler(frame)
            except Corrupt as error:
                raise type(error)(f"{where}: {error}") from None
        if frame.type == COMMIT:
            self.headers.clear()
        if frame.type != INDEX:
            self.headers.append(frame.header)

    def tensor(self, frame: Frame) -> None:
        need(frame.ordinal == len(self.units), f"TENSOR {frame.ordinal} is out of order")
        several = type(frame.value) is list
        need(not several or len(frame.value) >= 2, "a TENSOR with an array of fewer than two units")
        for value in frame.value if several else [frame.value]:
            self.unit(frame, value)

    def unit(self, frame: Frame, value: Any) -> None:
        number = len(self.units)
        within(number < self.limits.units, "too many units")
        raw = mapping(value, "dtype grid layer members models part refs shape source")
        text(raw["layer"])
        if text(raw["dtype"]) not in ITEM_SIZE:
            raise Unsupported(f"unit {number}: dtype {raw['dtype']!r:.40} is not known")
        rows, columns = (integer(v) for v in array(raw["shape"], 2))
        grid_rows, grid_columns = (integer(v, 1) for v in array(raw["grid"], 2))
        unit = Unit(number, raw, raw["dtype"], rows, columns, (grid_rows, grid_columns), frame)
        need(unit.size <= MAX_I64, "a unit has too many bytes")
        within(unit.chunk_count <= self.limits.chunks, "a unit has too many chunks")
        need(len(array(raw["members"])) >= 1, "a unit without members")
        self.members += len(raw["members"])
        within(self.members <= self.limits.members, "too many members")
        for member in raw["members"]:
            check_member(member, unit.elements, self.limits)
        for model in array(raw["models"]):
            need(integer(model) < len(self.models), f"model {model} does not stand before")
        if raw["part"] is not None:
            self.parts(raw["part"], raw["members"])
        for reference in array(raw["refs"]):
            self.reference(reference, unit)
        for source in array(raw["source"]):
            number, offset, length = array(source, 3)
            integer(0 if number is None else number)
            integer(offset)
            integer(length)
        self.units.append(unit)

    def parts(self, value: Any, members: list[Any]) -> None:
        parts = [value] if len(members) == 1 else array(value, len(members))
        need(any(part is not None for part in parts), "no part among the parts of a unit")
        for part, member in zip(parts, members, strict=True):
            if part is None:
                continue
            whole, offset = (read_shape(v, self.limits) for v in array(part, 2))
            shape = member[1]
            need(len(whole) == len(offset) == len(shape), "a part with another number of dimensions")
            inside = all(o + d <= w for o, d, w in zip(offset, shape, whole, strict=True))
            need(inside, "a part that is not inside the whole")

    def reference(self, reference: Any, unit: Unit) -> None:
        kind, source, start, count = (integer(v) for v in array(reference, 4))
        need(kind in (0, 1, 2, 3, 4), f"a reference of kind {kind}")
        if kind in (1, 3):
            need(source < len(self.parents), f"parent {source} does not stand before")
            need(count == unit.elements, "a reference to a parent of another length than the unit")
            need(kind == 1 or len(unit.raw["refs"]) == 1, "an inherited unit with other references")
            return
        need(source < unit.number, f"unit {unit.number} refers to unit {source}")
        need(start + count <= self.units[source].elements, "a reference goes beyond its unit")
        if kind == 4:
            elements = self.units[source].elements
            need(start == 0 and count == unit.elements == elements, "the transposed of a unit that is not as large")
        if kind == 2:
            need(len(unit.raw["refs"]) == 1, "a duplicate with other references")
            need(start == 0 and count == unit.elements, "a duplicate of some other elements")
            need(self.units[source].dtype == unit.dtype, "a duplicate of another dtype")
            need(self.has_chunks(self.units[source]), f"unit {unit.number} is a duplicate of what has no chunks")

    def file(self, frame: Frame) -> None:
        raw = check_file(frame.value, self.limits)
        for piece in raw["recipe"]:
            if type(piece) is list:
                unit, offset, length = piece
                need(unit < len(self.units), f"the recipe names unit {unit}, which does not stand before")
                need(offset + length <= self.units[unit].size, "the recipe goes beyond a unit")
        need(frame.ordinal <= len(self.files), f"FILE {frame.ordinal} is out of order")
        within(frame.ordinal < self.limits.files, "too many files")
        if frame.ordinal == len(self.files):
            self.files.append(frame)
        else:
            self.replaced_files.append(self.files[frame.ordinal])
            self.files[frame.ordinal] = frame

    def model(self, frame: Frame) -> None:
        need(frame.ordinal == len(self.models), f"MODEL {frame.ordinal} is out of order")
        self.models.append(frame)

    def parent(self, frame: Frame) -> None:
        need(frame.ordinal == len(self.parents), f"PARENT {frame.ordinal} is out of order")
        raw = mapping(frame.value, "digest hint")
        binary(raw["digest"], 32)
        text(raw["hint"])
        self.parents.append(frame)

    def volume(self, frame: Frame) -> None:
        need(frame.ordinal == len(self.volumes), f"VOLUME {frame.ordinal} is out of order")
        raw = mapping(frame.value, "content length name root")
        binary(raw["content"], 32)
        binary(raw["root"], 32)
        integer(raw["length"])
        check_path(binary(raw["name"]), self.limits)
        need(all(v.value["name"] != raw["name"] for v in self.volumes), "two volumes have the same name")
        self.volumes.append(frame)

    def chunk(self, frame: Frame) -> None:
        need(frame.ordinal < len(self.units), f"CHUNK of unit {frame.ordinal}, which does not stand before")
        unit = self.units[frame.ordinal]
        need(frame.chunk < unit.chunk_count, f"unit {unit.number} has no chunk {frame.chunk}")
        need(self.has_chunks(unit), f"unit {unit.number} is a duplicate or inherited, and has a chunk")
        _, rows, _, columns = unit.tile(frame.chunk)
        need(frame.decoded_length == rows * columns * ITEM_SIZE[unit.dtype], "a chunk has another size than its tile")
        if frame.chunk in unit.chunks:
            unit.replaced.append(unit.chunks[frame.chunk])
        unit.chunks[frame.chunk] = frame
        unit.stale = True

    def commit(self, frame: Frame) -> None:
        raw = mapping(frame.value, "chain layer previous units")
        text(raw["layer"])
        self.chain = blake3(self.chain, *self.headers)
        need(binary(raw["chain"], 32) == self.chain, "the chain of a COMMIT is wrong")
        need(integer(raw["previous"]) == self.last_commit, "a COMMIT names another one as the previous")
        last = -1
        for entry in array(raw["units"]):
            number, digests = array(entry, 2)
            need(last < integer(number) < len(self.units), f"a COMMIT lists unit {number} out of order")
            last, unit = number, self.units[number]
            array(digests, 1 if self.has_chunks(unit) or self.duplicate_of(unit) else len(unit.raw["members"]))
            complete = len(unit.chunks) == unit.chunk_count or not self.has_chunks(unit)
            need(complete, f"a COMMIT lists unit {number}, of which chunks are missing")
            unit.committed, unit.stale = [binary(digest, 32) for digest in digests], False
            count = len(unit.raw["members"])
            unit.digests = list(unit.committed) if len(digests) == count else [None] * count
        self.last_commit, self.after_commit = frame.offset, ""

    def table(self, frame: Frame) -> None:
        need(frame.ordinal == len(self.tables), f"TABLE {frame.ordinal} is out of order")
        need(len(frame.value) % 48 == 0, "a TABLE is not a whole number of entries")
        self.tables.append(frame)

    def set_index(self, frame: Frame) -> None:
        need(self.last_commit > 0, "there is no COMMIT before the INDEX")
        need(not self.after_commit, f"{self.after_commit} is not committed before the INDEX")
        self.index = frame

    def duplicate_of(self, unit: Unit) -> Unit | None:
        """Section 5.1: the unit whose bytes ``unit`` has, or None."""
        if not any(reference[0] == 2 for reference in unit.raw["refs"]):
            return None
        source: Unit = self.units[unit.raw["refs"][0][1]]
        return source

    def has_chunks(self, unit: Unit) -> bool:
        """Section 5.1: not so for duplicates and for inherited units."""
        return not any(reference[0] in (2, 3) for reference in unit.raw["refs"])

    def live_files(self) -> list[Frame]:
        live = sorted((f for f in self.files if f.value["kind"] != 3), key=lambda f: f.value["path"])
        kinds: dict[bytes, int] = {}
        for frame in live:
            path = frame.value["path"]
            need(path not in kinds, f"two files have the path {path!r:.60}")
            kinds[path] = frame.value["kind"]
        for path in kinds:
            parts = path.split(b"/")
            for depth in range(1, len(parts)):
                above = b"/".join(parts[:depth])
                need(kinds.get(above, 2) == 2, f"{above!r:.60} is a file or link, and above {path!r:.60}")
        return live

    def named_units(self, files: list[Frame]) -> set[int]:
        return {piece[0] for frame in files for piece in frame.value["recipe"] if type(piece) is list}

    def live_units(self, files: list[Frame]) -> list[Unit]:
        numbers = self.named_units(files)
        waiting = list(numbers)
        while waiting:
            for kind, source, _, _ in self.units[waiting.pop()].raw["refs"]:
                if kind in (0, 2, 4) and source not in numbers:
                    numbers.add(source)
                    waiting.append(source)
        return [self.units[number] for number in sorted(numbers)]

    def readable(self, unit: Unit) -> bool:
        source = self.duplicate_of(unit)
        itself = unit.committed is not None and not unit.stale
        return itself and (source is None or (source.committed is not None and not source.stale))


def check_file(value: Any, limits: Limits) -> dict[str, Any]:
    """The map of section 5.2; the pieces of the recipe are checked for type and sum, not against the units."""
    raw = mapping(value, "format kind metadata mode mtime note path recipe sha256 size target")
    kind = integer(raw["kind"], 0, 3)
    text(raw["format"])
    text(raw["note"])
    need(type(raw["metadata"]) is dict, "the metadata of a file is not a map")
    for item in raw["metadata"].values():
        text(item)
    integer(raw["mode"], 0, 0o7777)
    integer(raw["mtime"], -MAX_I64 - 1)
    check_path(binary(raw["path"]), limits)
    size, total = integer(raw["size"]), 0
    for piece in array(raw["recipe"]):
        if type(piece) is bytes:
            total += len(piece)
        else:
            _, _, length = (integer(v) for v in array(piece, 3))
            total += length
    need(total == size, f"the pieces of a recipe add up to {total} bytes, not {size}")
    binary(raw["sha256"], 32)
    target = binary(raw["target"])
    within(len(target) <= limits.path, "the target of a link is too long")
    need(bool(target) == (kind == 1), "a target where there is no link, or none where there is one")
    need(b"\0" not in target, "the target of a link holds a NUL byte")
    if kind != 0:
        need(not raw["recipe"], "a recipe for what is not a regular file")
        need(raw["sha256"] == hashlib.sha256().digest(), "the SHA-256 of what has no content is wrong")
    if kind == 3:
        empty = not (raw["format"] or raw["metadata"] or raw["mode"] or raw["mtime"] or raw["note"])
        need(empty, "the frame that withdraws a file is not empty")
    return raw


# --------------------------------------------------------------------------------- section 5.5 and 5.7: the INDEX


def content_digest(files: list[Frame], units: list[Unit], volumes: list[Frame]) -> bytes:
    tensors = []
    for unit in units:
        for (name, shape, _, _), digest in zip(unit.raw["members"], unit.digests, strict=True):
            if name is not None:
                tensors.append([name, unit.dtype, shape, digest])
    names = [[f.value[key] for key in ("path", "kind", "size", "sha256", "target")] for f in files]
    body = {"files": names, "tensors": sorted(tensors, key=pack)}
    if volumes:
        body["volumes"] = sorted(f.value["content"] for f in volumes)
    return blake3(pack(body))


def in_commit(scan: Scan, unit: Unit, digests: list[Any]) -> list[Any]:
    """Section 5.3: what a COMMIT lists for ``unit``, whose members have these digests."""
    inherited = not scan.has_chunks(unit) and scan.duplicate_of(unit) is None
    return digests if inherited or len(digests) == 1 else [blake3(*digests)]


def check_entries(scan: Scan, unit: Unit, place: list[Any]) -> set[tuple[int, int]]:
    """The entries of ``unit`` in its table. Returns which ones they are, as (table, entry)."""
    table, first, entries, stored = (integer(v) for v in place)
    need(stored == sum(len(f.payload) for f in unit.chunks.values()), "the INDEX has wrong stored bytes")
    need(entries == len(unit.chunks), f"the INDEX has {entries} chunks of unit {unit.number}")
    if entries == 0:
        need(table == first == 0, "the INDEX has a table for a unit without chunks")
        return set()
    need(table < len(scan.tables), f"the INDEX names table {table}")
    rows = scan.tables[table].value
    need(48 * (first + entries) <= len(rows), "the INDEX names entries beyond a table")
    for k in range(entries):
        frame = unit.chunks[k]
        entry = struct.pack(
            "<QQQQQH6x", frame.offset, len(frame.payload), frame.decoded_length, frame.xxh_stored, frame.xxh_decoded,
            frame.codec,
        )  # fmt: skip
        at = 48 * (first + k)
        need(rows[at : at + 48] == entry, f"the TABLE entry of chunk {k} of unit {unit.number} is wrong")
    return {(table, first + k) for k in range(entries)}


def check_index(scan: Scan, files: list[Frame], live: list[Unit]) -> tuple[list[Unit], bytes]:
    """The INDEX equals the scan. Returns the live units in layer order and the content digest."""
    frame = scan.index
    assert frame is not None
    raw = mapping(frame.value, "chain content dead files models parents tables units volumes")
    by_number = {unit.number: unit for unit in live}
    ordered: list[Unit] = []
    seen: list[list[Any]] = []
    used: set[tuple[int, int]] = set()
    for entry in array(raw["units"]):
        number = integer(array(entry, 7)[0])
        need(number in by_number, f"the INDEX lists unit {number}, which is not live")
        unit = by_number.pop(number)
        places = check_entries(scan, unit, entry[3:])
        need(not used & places, f"the INDEX gives entries of unit {number} to another as well")
        used |= places
        ordered.append(unit)
        unit.digests = [binary(digest, 32) for digest in array(entry[2], len(unit.raw["members"]))]
        need(in_commit(scan, unit, unit.digests) == unit.committed, f"the INDEX has other digests of unit {number}")
        seen.append([number, unit.raw, unit.digests, *entry[3:]])
    need(not by_number, f"the INDEX does not list units {sorted(by_number)!r:.60}")
    need(len(used) == sum(len(table.value) // 48 for table in scan.tables), "a TABLE has entries that no unit uses")

    dead = [*scan.replaced_files, *(f for f in scan.files if f.value["kind"] == 3)]
    alive = {unit.number for unit in live}
    for unit in scan.units:
        dead += unit.replaced
        if unit.number not in alive:
            dead += unit.chunks.values()
    announced = {scan.units[number].frame.offset for number in alive}
    dead += {u.frame.offset: u.frame for u in scan.units if u.frame.offset not in announced}.values()
    named = scan.named_units(files)
    content = content_digest(files, [unit for unit in live if unit.number in named], scan.volumes)
    expected = {
        "chain": blake3(scan.chain, *scan.headers),
        "content": content,
        "dead": [len(dead), sum(f.size for f in dead)],
        "files": [[f.ordinal, f.value] for f in files],
        "models": [
            [f.offset, len(f.payload), f.decoded_length, f.codec, f.xxh_stored, f.xxh_decoded] for f in scan.models
        ],
        "parents": [f.value for f in scan.parents],
        "tables": [[f.offset, f.size, f.xxh_stored] for f in scan.tables],
        "units": seen,
        "volumes": [f.value for f in scan.volumes],
    }
    for key, value in expected.items():
        need(pack(raw[key]) == pack(value), f"the INDEX and the frames disagree about {key!r}")
    return ordered, content


# --------------------------------------------------------------------------------------------- decoding everything


class Decoder:
    """Decodes the units of a scan, each once. ``parents``: by content digest."""

    def __init__(self, scan: Scan, budget: Budget, parents: dict[bytes, Decoded]) -> None:
        self.scan, self.budget, self.parents = scan, budget, parents
        self.done: dict[int, bytes | None] = {}
        self.unsupported: dict[int, str] = {}

    def unit(self, unit: Unit) -> bytes | None:
        """The decoded bytes, checked by member; None where a codec is not known."""
        if unit.number not in self.done:
            source = self.scan.duplicate_of(unit)
            if source is not None:
                data = self.unit(source)
            elif self.scan.has_chunks(unit):
                data = self.assemble(unit)
            else:
                data = self.reference(unit, unit.raw["refs"][0])
            if data is None:
                self.unsupported.setdefault(unit.number, f"unit {unit.number}: a codec or a parent is not known")
            elif source is not None:
                self.budget.charge(unit.size, f"unit {unit.number}")
                data = data[: unit.size]
            self.done[unit.number] = data
            if data is not None:
                unit.digests = [blake3(self.member(unit, member)) for member in unit.raw["members"]]
                same = in_commit(self.scan, unit, unit.digests) == unit.committed
                need(same, f"unit {unit.number}: a BLAKE3 is wrong")
        return self.done[unit.number]

    def reference(self, unit: Unit, reference: list[int]) -> bytes | None:
        """Section 5.1: what ``unit`` is coded against, or, for kind 3, what it is; None if that cannot be had."""
        kind, source, start, count = reference
        item = ITEM_SIZE[unit.dtype]
        if kind in (0, 4):
            other = self.scan.units[source]
            data, item = self.unit(other), ITEM_SIZE[other.dtype]
            if data is None or kind == 0:
                return None if data is None else data[start * item : (start + count) * item]
            places = (j * unit.rows + i for i in range(unit.rows) for j in range(unit.columns))
            return b"".join(data[place * item : (place + 1) * item] for place in places)
        digest = self.scan.parents[source].value["digest"]
        if digest not in self.parents:
            self.unsupported[unit.number] = f"unit {unit.number}: parent {digest.hex()} is not here"
            return None
        self.budget.charge(2 * unit.size, f"unit {unit.number}")
        origins = self.parents[digest].origins
        tensors = origins[start] if start < len(origins) else {}
        out, same = bytearray(unit.size), []
        for (name, shape, at, strides), blake in zip(unit.raw["members"], unit.digests, strict=True):
            origin = tensors.get(name) if name is not None else None
            if origin is None or (origin.dtype, origin.strides) != (unit.dtype, strides):
                continue
            rows = strides is None and len(shape) == len(origin.shape) > 0 and shape[1:] == origin.shape[1:]
            if shape != origin.shape and not rows:
                continue
            if kind == 3 and (shape != origin.shape or blake != origin.blake3):
                continue
            if origin.span is None:
                self.unsupported[unit.number] = f"unit {unit.number}: {name!r:.60} of its parent cannot be decoded"
                return None
            length = min(item * span_of(shape, strides), len(origin.span))
            out[at * item : at * item + length] = origin.span[:length]
            same.append((at * item, at * item + length))
        if kind == 3:
            reached = 0
            for low, high in sorted(same):
                if low <= reached:
                    reached = max(reached, high)
            need(reached >= unit.size, f"unit {unit.number} is not what its parent has")
        return bytes(out)

    def origins(self, files: list[Frame]) -> list[dict[str, Origin]]:
        """What a child may refer to. Names that a file has twice count as none."""
        found: list[dict[str, Origin]] = []
        for frame in files:
            tensors: dict[str, Origin] = {}
            twice = set()
            pieces = [piece[0] for piece in frame.value["recipe"] if type(piece) is list]
            for unit in (self.scan.units[number] for number in dict.fromkeys(pieces)):
                data, item = self.unit(unit), ITEM_SIZE[unit.dtype]
                for (name, shape, at, strides), digest in zip(unit.raw["members"], unit.digests, strict=True):
                    if name in tensors:
                        twice.add(name)
                    elif name is not None:
                        end = at + span_of(shape, strides)
                        span = None if data is None else data[at * item : end * item]
                        tensors[name] = Origin(unit.dtype, shape, strides, digest, span)
            found.append({name: origin for name, origin in tensors.items() if name not in twice})
        return found

    def assemble(self, unit: Unit) -> bytes | None:
        unknown = sorted({f.codec for f in unit.chunks.values()} - KNOWN_CODECS)
        if unknown:
            self.unsupported[unit.number] = f"unit {unit.number}: codec {unknown[0]} is not known"
            return None
        self.budget.charge(2 * unit.size, f"unit {unit.number}")
        out, item = bytearray(unit.size), ITEM_SIZE[unit.dtype]
        against: list[bytes] = []
        if any(frame.codec in (DELTA_CTX, OPTIM_CTX) for frame in unit.chunks.values()):
            for reference in unit.raw["refs"]:
                data = self.reference(unit, reference)
                if data is None:
                    return None
                # What has another number of elements may not be used: it is found too short.
                against.append(data if reference[3] == unit.elements else b"")
        models = [frame.value for frame in (self.scan.models[number] for number in unit.raw["models"])]
        for k, frame in unit.chunks.items():
            tiles = [self.tile(unit, k, data) for data in against]
            try:
                data = decode_elements(frame.codec, frame.payload, frame.decoded_length, unit.dtype, tiles, models)
            except Corrupt as error:
                raise Corrupt(f"chunk {k} of unit {unit.number}: {error}") from None
            need(len(data) == frame.decoded_length, f"chunk {k} of unit {unit.number}: decodes to another length")
            need(xxh3(data) == frame.xxh_decoded, f"chunk {k} of unit {unit.number}: the decoded XXH3 is wrong")
            row, rows, column, columns = unit.tile(k)
            if columns == unit.columns:
                out[row * columns * item : (row + rows) * columns * item] = data
                continue
            for i in range(rows):
                at = ((row + i) * unit.columns + column) * item
                out[at : at + columns * item] = data[i * columns * item : (i + 1) * columns * item]
        return bytes(out)

    def tile(self, unit: Unit, chunk: int, data: bytes) -> bytes:
        """Section 6: what of ``data``, which has as many elements as the unit, is where the chunk is."""
        row, rows, column, columns = unit.tile(chunk)
        item = len(data) // unit.elements
        starts = [(r * unit.columns + column) * item for r in range(row, row + rows)]
        return b"".join(data[at : at + columns * item] for at in starts)

    def member(self, unit: Unit, member: list[Any]) -> bytes:
        """The elements of a member in row-major order."""
        _, shape, start, strides = member
        data, item = self.done[unit.number], ITEM_SIZE[unit.dtype]
        assert data is not None
        count = extent(shape)
        cost = item if strides is None else item + 64  # a place takes that much here
        self.budget.charge(count * cost, f"a member of unit {unit.number}")
        if count == 0:
            return b""
        if strides is None:
            return data[start * item : (start + count) * item]
        places = [start]
        for size, stride in zip(shape, strides, strict=True):
            places = [place + i * stride for place in places for i in range(size)]
        return b"".join(data[place * item : (place + 1) * item] for place in places)

    def file(self, raw: dict[str, Any]) -> bytes | None:
        """The content of a regular file, checked by its SHA-256."""
        self.budget.charge(raw["size"], "a file")
        parts = []
        for piece in raw["recipe"]:
            if type(piece) is bytes:
                parts.append(piece)
                continue
            data = self.unit(self.scan.units[piece[0]])
            if data is None:
                return None
            parts.append(data[piece[1] : piece[1] + piece[2]])
        content = b"".join(parts)
        need(hashlib.sha256(content).digest() == raw["sha256"], f"{raw['path']!r:.60}: the SHA-256 is wrong")
        return content


def whole_tensors(decoder: Decoder, files: list[Frame], budget: Budget) -> list[Whole]:
    """Section 5.1.2: the tensors whose parts are all there, and readable."""
    parts: dict[tuple[bytes, str, str, tuple[int, ...]], dict[tuple[tuple[int, ...], tuple[int, ...]], bytes]] = {}
    seen: set[int] = set()
    for frame in sorted(files, key=lambda frame: frame.value["path"]):
        folder = frame.value["path"].rpartition(b"/")[0]
        for piece in frame.value["recipe"]:
            if type(piece) is bytes or piece[0] in seen:
                continue
            seen.add(piece[0])
            unit = decoder.scan.units[piece[0]]
            data, members = decoder.unit(unit), unit.raw["members"]
            of = unit.raw["part"] if len(members) > 1 else [unit.raw["part"]]
            for member, part in zip(members, of or [None] * len(members), strict=True):
                if data is None or part is None or member[0] is None:
                    continue
                box = tuple(part[1]), tuple(member[1])
                ending = ",".join(f"{o}:{o + n}" for o, n in zip(*box, strict=True))
                key = folder, member[0].removesuffix(f"[{ending}]"), unit.dtype, tuple(part[0])
                parts.setdefault(key, {}).setdefault(box, decoder.member(unit, member))
    found = []
    for (folder, name, dtype, shape), boxes in parts.items():
        item, elements = ITEM_SIZE[dtype], extent(list(shape))
        if not elements or sum(extent(list(size)) for _, size in boxes) != elements:
            continue
        budget.charge(elements * (item + 1), f"{name!r:.60}")
        out, times = bytearray(elements * item), bytearray(elements)
        for (offset, size), data in boxes.items():
            for i in range(extent(list(size))):
                at, step, rest = 0, 1, i
                for o, n, whole in zip(reversed(offset), reversed(size), reversed(shape), strict=True):
                    rest, place = divmod(rest, n)
                    at, step = at + (o + place) * step, step * whole
                times[at] |= 1
                out[at * item : (at + 1) * item] = data[i * item : (i + 1) * item]
        if all(times):  # and so, of as many elements, none twice
            found.append(Whole(dtype, shape, bytes(out), name, folder))
    return found


def scan_frames(
    data: bytes, trailer: Trailer | None, prologue: Prologue, limits: Limits, budget: Budget
) -> list[Frame]:
    """All frames of a sealed file, or those of a growing one up to its last good COMMIT."""
    if trailer is not None:
        data = data[:-128]
    frames: list[Frame] = []
    valid, at = 0, 64
    while at < len(data):
        try:
            frame = read_frame(data, at, len(frames), prologue, limits, budget)
        except LimitExceeded:
            raise
        except Corrupt:
            if trailer is not None:
                raise
            break
        frames.append(frame)
        at += frame.size
        if frame.type == COMMIT and not frame.unsupported:
            valid = len(frames)
        if frame.type == INDEX and trailer is None:
            after = data[at : at + 128]
            whole = after[120:] == END_MAGIC and crc32c(after[:116]) == int.from_bytes(after[116:120], "little")
            need(not whole, "the file goes on after its trailer")
    return frames if trailer is not None else frames[:valid]


def decode(data: bytes, limits: Limits = Limits(), parents: Iterable[Decoded] = ()) -> Decoded:
    """Check and decode a whole archive, sealed or growing. Raises NotAnArchive, Corrupt or Unsupported.

    Tensors whose codec is not known, or whose bytes are those of a parent that is not among ``parents``, have no data,
    and so have files made of them; ``Decoded.unsupported`` says why.
    """
    data = bytes(data)
    prologue = read_prologue(data)
    total = limits.total if limits.total is not None else max(256 << 20, 64 * len(data))
    budget = Budget(total)
    sealed = data[-8:] == END_MAGIC
    trailer = read_trailer(data, prologue) if sealed else None
    frames = scan_frames(data, trailer, prologue, limits, budget)
    scan = Scan(prologue, limits)
    for frame in frames:
        scan.apply(frame)
    files = scan.live_files()
    content = None
    if trailer is None:
        units = [unit for unit in scan.units if scan.readable(unit)]
    else:
        check_trailer(scan, trailer)
        live = scan.live_units(files)
        for unit in live:
            need(scan.readable(unit), f"unit {unit.number} is not complete")
        units, content = check_index(scan, files, live)

    known = {parent.content_digest: parent for parent in parents if parent.content_digest is not None}
    decoder = Decoder(scan, budget, known)
    members = []
    listed = scan.named_units(files) if sealed else {unit.number for unit in units}
    for unit in units:
        whole = decoder.unit(unit)
        for member, digest in zip(unit.raw["members"], unit.digests, strict=True):
            if member[0] is not None and unit.number in listed:
                elements = None if whole is None else decoder.member(unit, member)
                members.append(Tensor(unit.dtype, tuple(member[1]), elements, digest, member[0], unit.raw["layer"]))
    readable = {unit.number for unit in units}
    out: dict[bytes, File] = {}
    for frame in files:
        raw = frame.value
        if any(type(piece) is list and piece[0] not in readable for piece in raw["recipe"]):
            continue  # only in a growing file
        body = raw["target"] if raw["kind"] == 1 else decoder.file(raw)
        out[raw["path"]] = File(raw["kind"], raw["mode"], raw["mtime"], body, raw["sha256"], raw["format"])
    return Decoded(
        growing=not sealed,
        file_id=prologue.file_id,
        members=members,
        files=out,
        unsupported=[decoder.unsupported[number] for number in sorted(decoder.unsupported)],
        incomplete=[unit.number for unit in scan.units if not scan.readable(unit)],
        content_digest=content,
        root_digest=None if trailer is None else trailer.root,
        valid_length=len(data) if sealed else frames[-1].offset + frames[-1].size if frames else 64,
        origins=decoder.origins(files) if sealed else [],
        wholes=whole_tensors(decoder, files, budget) if sealed else [],
    )


def check_trailer(scan: Scan, trailer: Trailer) -> None:
    """Section 7: what the trailer says about the INDEX and the tables is so."""
    index = scan.index
    need(index is not None, "the last frame is not an INDEX")
    assert index is not None
    need(index.offset == trailer.index_offset, "the trailer has another offset of the INDEX")
    need(index.size == trailer.index_length, "the trailer has another length of the INDEX")
    first_table = scan.tables[0].offset if scan.tables else index.offset
    need(trailer.first_table == first_table, "the trailer has another offset of the first TABLE")
    need(trailer.root == blake3(index.header, index.payload), "the root digest is wrong")


# ------------------------------------------------------------------------------------------------- command line


def extract(decoded: Decoded, folder: str) -> None:
    """Write all files below ``folder``, which must be new, so that nothing in it can lead outside. Links come last."""
    os.mkdir(folder)
    root = os.fsencode(folder)
    directories = []
    for path, file in sorted(decoded.files.items(), key=lambda item: (item[1].kind == 1, item[0])):
        full = os.path.join(root, path)
        os.makedirs(full if file.kind == 2 else os.path.dirname(full), exist_ok=True)
        if file.kind == 2:
            directories.append((full, file))
        elif file.content is None:
            print(f"{os.fsdecode(path)}: not written, a codec or a parent is not known", file=sys.stderr)
        elif file.kind == 1:
            os.symlink(file.content, full)
        else:
            handle = os.open(full, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
            with os.fdopen(handle, "wb") as stream:
                stream.write(file.content)
            os.chmod(full, file.mode)
            os.utime(full, ns=(file.mtime, file.mtime))
    for full, file in reversed(directories):
        os.chmod(full, file.mode)
        os.utime(full, ns=(file.mtime, file.mtime))


def show(decoded: Decoded) -> None:
    for path, file in decoded.files.items():
        kind = ("file", "link", "directory")[file.kind]
        size = "?" if file.content is None else len(file.content)
        print(f"{kind:9} {file.mode:04o} {size:>12} {os.fsdecode(path)!r}")
    for tensor in decoded.members:
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        digest = (tensor.blake3 or b"").hex()[:16]
        print(f"tensor    {tensor.dtype:12} {shape:16} {digest:16} {tensor.name!r}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check and decode an ARZ-1 archive.")
    parser.add_argument("archive")
    parser.add_argument("--list", action="store_true", help="list files and tensors")
    parser.add_argument("--extract", metavar="DIR", help="write the files below DIR, which must not exist")
    parser.add_argument("--parent", action="append", default=[], metavar="FILE", help="what it was coded against")
    parser.add_argument("--total", type=int, metavar="BYTES", help="allow this many decoded bytes in all")
    options = parser.parse_args(arguments)
    try:
        parents: list[Decoded] = []
        for name in [*options.parent, options.archive]:
            with open(name, "rb") as stream:
                parents.append(decode(stream.read(), Limits(total=options.total), parents))
        decoded = parents[-1]
    except ArchiveError as error:
        print(f"{options.archive}: {type(error).__name__}: {error}", file=sys.stderr)
        return 3 if isinstance(error, Unsupported) else 1
    if options.list:
        show(decoded)
    if options.extract:
        extract(decoded, options.extract)
    digests = {
        "state": "growing" if decoded.growing else "sealed",
        "files": len(decoded.files),
        "tensors": len(decoded.members),
        "content": decoded.content_digest.hex() if decoded.content_digest else None,
        "root": decoded.root_digest.hex() if decoded.root_digest else None,
        "unsupported": decoded.unsupported,
    }
    print(json.dumps(digests))
    return 3 if decoded.unsupported else 0


if __name__ == "__main__":
    sys.exit(main())
