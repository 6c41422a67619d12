"""What is done to bytes: flips, cuts, splices, telling numbers where numbers may be, and words of the format."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

__all__ = ["NUMBERS", "Donors", "mutate", "mutate_text", "times"]

Donors = Sequence[bytes]
"""What pieces may be taken from."""

NUMBERS = (
    0, 1, 2, 3, 7, 8, 16, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE,
    0xFFFFFFFF, 1 << 32, 1 << 40, 1 << 60, (1 << 62) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 8, (1 << 64) - 1,
)  # fmt: skip
"""Where lengths, offsets and counts go wrong."""

_DIGITS = re.compile(rb"-?\d+")
_WORDS = (
    b"0", b"-1", b"1", b"255", b"4294967296", b"9223372036854775807", b"9223372036854775808", b"1" * 30, b"9" * 5000,
    b"1e999", b"1.0", b"null", b"true", b"[]", b"{}", b'""', b"NaN", b'"\\ud800"', b"[" * 2000, b"\xff",
)  # fmt: skip
"""What may stand in a text for a number."""


def mutate(data: bytes, dice: random.Random, tokens: Sequence[bytes], hot: Sequence[int], donors: Donors) -> bytes:
    """``data`` after one to eight changes; ``hot``: offsets at which a change is likely to matter."""
    changed = bytearray(data)
    while True:
        change = _CHANGES[int(dice.random() * len(_CHANGES))]
        change(changed, dice, tokens, hot, donors)
        if dice.random() < 0.45:
            return bytes(changed)


def mutate_text(text: bytes, dice: random.Random, tokens: Sequence[bytes]) -> bytes:
    """A text in which numbers and words stand, after a change of one of them, or of bytes."""
    if dice.random() < 0.5:
        found = list(_DIGITS.finditer(text))
        if found:
            match = dice.choice(found)
            return text[: match.start()] + dice.choice(_WORDS) + text[match.end() :]
    return mutate(text, dice, (*tokens, *_WORDS), (), (text,))


def _place(data: bytearray, dice: random.Random, hot: Sequence[int]) -> int:
    if hot and dice.random() < 0.8:
        return min(hot[int(dice.random() * len(hot))], len(data))
    return int(dice.random() * (len(data) + 1))


def _flip(data: bytearray, dice: random.Random, tokens: Sequence[bytes], hot: Sequence[int], donors: Donors) -> None:
    at = _place(data, dice, hot)
    if at < len(data):
        data[at] ^= 1 << int(dice.random() * 8)


def _byte(data: bytearray, dice: random.Random, tokens: Sequence[bytes], hot: Sequence[int], donors: Donors) -> None:
    at = _place(data, dice, hot)
    if at < len(data):
        data[at] = int(dice.random() * 256)


def _number(data: bytearray, dice: random.Random, tokens: Sequence[bytes], hot: Sequence[int], donors: Donors) -> None:
    at, width = _place(data, dice, hot), 1 << int(dice.random() * 4)
    value = NUMBERS[int(dice.random() * len(NUMBERS))] if dice.random() < 0.7 else _near(data, at, dice)
    order = "little" if dice.random() < 0.75 else "big"
    data[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, order)  # type: ignore[arg-type]


def _near(data: bytearray, at: int, dice: random.Random) -> int:
    """A number that has to do with this file: a place in it, its size, or a little more or less than what is there."""
    kind = dice.random()
    if kind < 0.4:
        return int.from_bytes(data[at : at + 8], "little") + dice.choice((-8, -2, -1, 1, 2, 8))
    return (len(data) if kind < 0.6 else dice.randrange(len(data) + 1)) + dice.choice((-1, 0, 0, 0, 1))


def _cut(data: bytearray, dice: random.Random, tokens: Sequence[bytes], hot: Sequence[int], donors: Donors) -> None:
    if dice.random() < 0.4:
        del data[_place(data, dice, hot) :]


def _drop(data: bytearray, dice: random.Random, tokens: Sequence[bytes], hot: Sequence[int], donors: Donors) -> None:
    at = _place(data, dice, hot)
    del data[at : at + _length(dice)]


def _double(data: bytearray, dice: random.Random, tokens: Sequence[bytes], hot: Sequence[int], donors: Donors) -> None:
    at, length = _place(data, dice, hot), _length(dice)
    piece = data[at : at + length]
    data[at:at] = piece * (times(dice) if len(piece) < 400 else 1)


def _splice(data: bytearray, dice: random.Random, tokens: Sequence[bytes], hot: Sequence[int], donors: Donors) -> None:
    donor = dice.choice(donors) if donors and dice.random() < 0.6 else bytes(data)
    begin, length = dice.randrange(len(donor) + 1), _length(dice)
    at = _place(data, dice, hot)
    data[at : at + (length if dice.random() < 0.6 else 0)] = donor[begin : begin + length]


def _swap(data: bytearray, dice: random.Random, tokens: Sequence[bytes], hot: Sequence[int], donors: Donors) -> None:
    a, b, length = _place(data, dice, hot), _place(data, dice, hot), _length(dice)
    if a + length <= b and b + length <= len(data):
        data[a : a + length], data[b : b + length] = data[b : b + length], data[a : a + length]


def _token(data: bytearray, dice: random.Random, tokens: Sequence[bytes], hot: Sequence[int], donors: Donors) -> None:
    if tokens:
        at, token = _place(data, dice, hot), dice.choice(tokens)
        data[at : at + (len(token) if dice.random() < 0.6 else 0)] = token


def _length(dice: random.Random) -> int:
    return 1 << int(dice.random() * 8) if dice.random() < 0.5 else 1 + int(dice.random() * 40)


def times(dice: random.Random) -> int:
    """How often something is repeated: rarely so often that what takes time by the square of it shows."""
    return 5000 if dice.random() < 0.001 else dice.choice((1, 1, 1, 2, 50))


_Change = Callable[[bytearray, random.Random, Sequence[bytes], Sequence[int], Donors], None]
_CHANGES: tuple[_Change, ...] = (
    _flip, _flip, _byte, _number, _number, _number, _cut, _drop, _double, _splice, _swap, _token, _token,
)  # fmt: skip
