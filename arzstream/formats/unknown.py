"""Files of no known structure, when they are complete: where in them are arrays of floats, and what is compressed.

HDF5, TensorRT engines, ``.bin`` dumps and the like hold floats that lie side by side like everybody's. A file is looked
at in blocks; a block holds floats of a type, at a distance from where elements would begin if the first stood at the
beginning of the file, if exponents, counted apart from what stands beside them in their bytes, take fewer bits than
bytes do. Runs of such blocks become storages without names.
This is a guess about what compresses well: whatever it says, the bytes are kept.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from arzstream.codec.dtypes import DTYPES
from arzstream.formats.base import Layout, ReadAt, Storage, opaque

__all__ = ["UnknownContent", "called"]

U8 = NDArray[np.uint8]

BLOCK = 256 << 10
"""Bytes that are taken for of one kind."""
PIECE = 8192
"""Bytes of a block that are looked at, in its middle."""
COARSE = 256
"""Of a large file so many blocks are looked at, evenly spaced, and between two that differ those that lie there."""
LEAST = 128 << 10
"""Bytes of a file in which it is worth to look, and of a run of floats that is worth a unit of its own."""
PERIODIC = 0.1
"""Bits a byte that must be saved by telling the bytes of an element apart."""
NEAR = 0.05
"""Bits a byte that do not count, in a sample as small as this."""
LEAST_EXPONENTS, MOST_EXPONENTS, SPREAD = 0.5, 4.7, 0.95
"""Entropy of exponents in bits, and of the top bits of mantissas in each of their bits, of floats that were learned."""
ZERO = 0.25
"""Bits of entropy of a byte below which it tells nothing."""
RANDOM = 7.95
"""Bits of entropy of the bytes of a block from which on nothing is to be gained; chance takes 0.01 of the 8."""
MOSTLY = 0.9
"""Share of random blocks from which on a file counts as compressed."""
KINDS = ("BF16", "F16", "F32", "F64")

MAGICS = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"\x28\xb5\x2f\xfd", "Zstandard"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"\x04\x22\x4d\x18", "LZ4"),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip"),
    (b"\x02\x01\x21\x18", "Blosc"),
    (b"PK\x03\x04", "zip"),
    (b"Rar!\x1a\x07", "RAR"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"OggS", "Ogg"),
    (b"fLaC", "FLAC"),
    (b"\x1aE\xdf\xa3", "Matroska"),
    (b"\x89ARZ\r\n\x1a\n", "arzstream"),
    (b"Salted__", "encrypted (OpenSSL)"),
    (b"age-encryption.org/", "encrypted (age)"),
    (b"-----BEGIN PGP MESSAGE", "encrypted (PGP)"),
)


def called(start: bytes) -> str:
    """What kind of compressed or encrypted file begins like this; empty if none that is known."""
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WebP"
    if start[4:8] == b"ftyp":
        return "MPEG-4"
    return next((name for magic, name in MAGICS if start.startswith(magic)), "")


class _Label(NamedTuple):
    """What a block holds: floats of ``kind``, elements beginning ``phase`` bytes after a multiple of their size; bytes
    that are ``random``; bytes; or, with ``kind`` ``None``, anything."""

    kind: str | None
    phase: int = 0
    random: bool = False


_BYTES, _RANDOM, _ANYTHING = _Label(""), _Label("", 0, True), _Label(None)


@dataclass
class UnknownContent:
    """Looks at a complete file; asked again about the same bytes, as far as its beginning and its size tell, it
    remembers what it found."""

    _seen: bytes = b""
    _found: tuple[Storage, ...] = ()
    _random: bool = False

    def layout(self, read: ReadAt, size: int, note: str) -> Layout:
        """The layout of a file of ``size`` bytes; ``note`` is what is known of why it is opaque."""
        start = read(0, min(size, PIECE))
        seen = hashlib.blake2b(start, key=size.to_bytes(8, "little")).digest()
        if seen != self._seen:
            labels = _labels(read, size) if size >= LEAST else []
            self._seen = seen
            self._found = tuple(_storages(labels, size))
            self._random = bool(labels) and sum(label.random for label in labels) >= MOSTLY * len(labels)
        kind = called(start)
        if self._random and not note:
            note = f"compressed already ({kind})" if kind else "its bytes look compressed or encrypted"
            note += "; kept as it is"
        return Layout("opaque", self._found, size, True, note) if self._found else opaque(size, note)


def _labels(read: ReadAt, size: int) -> list[_Label]:
    """One for each block; a last one that is not whole is as the one before it."""

    @functools.cache
    def label(block: int) -> _Label:
        place = block * BLOCK + (min(BLOCK, size - block * BLOCK) - PIECE) // 2 & ~15
        data = read(place, PIECE)
        return _label(np.frombuffer(data, np.uint8, len(data) & ~15))

    blocks = max(1, size // BLOCK)
    step = max(1, blocks // COARSE)
    places = [*range(0, blocks, step), blocks - 1]
    found = []
    for here, there in itertools.pairwise(places):
        same = label(here) == label(there)
        found += [label(here)] * (there - here) if same else [label(block) for block in range(here, there)]
    return [*found, label(blocks - 1)]


def _storages(labels: list[_Label], size: int) -> list[Storage]:
    """Runs of blocks of one kind, cut so that elements are whole."""
    known = [label for label in labels if label.kind is not None]
    filled, last = [], known[0] if known else _BYTES
    for label in labels:
        last = last if label.kind is None else label
        filled.append(last)
    found = []
    begin = 0
    for label, run in itertools.groupby(filled):
        blocks = len(list(run))
        start, end = begin * BLOCK, (begin + blocks) * BLOCK
        begin += blocks
        if begin == len(filled):
            end = size
        if not label.kind:
            continue
        itemsize = DTYPES[label.kind].itemsize
        start += (label.phase - start) % itemsize
        end -= (end - label.phase) % itemsize
        if end - start >= LEAST:
            found.append(Storage(label.kind, start, end - start))
    return found


def _label(sample: U8) -> _Label:
    """What ``sample`` is, which begins at a multiple of 16."""
    counts = np.bincount(sample, minlength=256)
    bits = _entropy(counts)
    if bits >= RANDOM:
        return _RANDOM
    if counts.max(initial=0) >= len(sample) - 16:
        return _ANYTHING
    best, least = _BYTES, bits - PERIODIC
    for kind in KINDS:
        itemsize = DTYPES[kind].itemsize
        planes = [_entropy_of(sample[i::itemsize]) for i in range(itemsize)]
        # Sign and exponent vary least, but for bytes that are always zero.
        phase = (min(range(itemsize), key=lambda i: planes[i] if planes[i] > ZERO else 8.0) + 1) % itemsize
        values = sample[phase : len(sample) - (itemsize - phase) % itemsize].view(f"<u{itemsize}")
        taken = _float_bits(values, kind)
        apart = sum(planes) / itemsize
        if taken is not None and taken / itemsize < apart + NEAR and min(taken / itemsize, apart) < least:
            best, least = _Label(kind, phase), min(taken / itemsize, apart) - NEAR
    return best


def _float_bits(values: np.ndarray, kind: str) -> float | None:
    """Bits an element of floats takes, exponent, sign and top of the mantissa counted apart; None if they are not as
    those of floats are: exponents few, mantissas spread."""
    bits = DTYPES[kind].float_bits
    assert bits is not None
    exponents, mantissa = bits
    exponent = _entropy_of(values >> mantissa & ((1 << exponents) - 1), 1 << exponents)
    top = mantissa & 7 or 2  # what is in the byte with the end of the exponent; fp16 has the top two beside it
    spread = _entropy_of(values >> (mantissa - top) & ((1 << top) - 1), 1 << top)
    if not LEAST_EXPONENTS < exponent < MOST_EXPONENTS or spread < SPREAD * top:
        return None
    total = exponent + spread + _entropy_of(values >> (exponents + mantissa), 2)
    return total + sum(_entropy_of(values >> shift & 0xFF) for shift in range(mantissa - top - 8, -1, -8))


def _entropy_of(values: np.ndarray, count: int = 256) -> float:
    return _entropy(np.bincount(values.astype(np.int64, copy=False), minlength=count))


def _entropy(counts: np.ndarray) -> float:
    """Bits a symbol, with the correction of Miller and Madow for what a small sample does not show."""
    seen = counts[counts > 0]
    total = int(seen.sum())
    if not total:
        return 0.0
    shares = seen / total
    return float(-(shares * np.log2(shares)).sum() + (len(seen) - 1) / (2 * total * np.log(2)))
