"""Protocol Buffers' wire format, walked without a schema: https://protobuf.dev/programming-guides/encoding/."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from arzstream.formats.base import Malformed
from arzstream.formats.window import Window

__all__ = ["BYTES", "VARINT", "Field", "Message"]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_FIELDS = 1_000_000
"""Fields that are looked at in one file; the largest models have some hundred thousand."""


class Field(NamedTuple):
    """A field of a message: ``length`` bytes from ``start`` on; ``value`` is that of a number."""

    number: int
    kind: int
    start: int
    length: int
    value: int

    @property
    def end(self) -> int:
        return self.start + self.length


class Message:
    """Gives the fields of a message and of those inside it, and counts them all; ``window`` may be set anew."""

    def __init__(self) -> None:
        self.window = Window(lambda offset, length: b"", 0)
        """Where it is read from."""
        self.left = MAX_FIELDS
        """Fields that may still be looked at; of what has to be read again they may be given back."""

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """The fields in bytes [start, end). Raises :class:`Malformed` for what is no message,
        :class:`~arzstream.formats.window.TooShort` where the file is."""
        window, at = self.window, start
        while at < end:
            self.left -= 1
            if self.left < 0:
                raise Malformed(f"it has more than {MAX_FIELDS} fields")
            key, at = window.varint(at)
            number, kind, value = key >> 3, key & 7, 0
            begin = at
            if kind == VARINT:
                value, at = window.varint(at)
            elif kind in (FIXED32, FIXED64):
                at += 4 if kind == FIXED32 else 8
            elif kind == BYTES:
                length, begin = window.varint(at)
                at = window.end(begin, length)
            else:
                raise Malformed("it has a field of an unknown kind")
            if not number or at > end:
                raise Malformed("a field in it goes beyond its message")
            yield Field(number, kind, begin, at - begin, value)

    def text(self, field: Field) -> str:
        """What a field holds as text. Raises :class:`Malformed` if it is none or too long."""
        try:
            return self.window.bytes(field.start, field.length).decode("utf-8")
        except UnicodeDecodeError:
            raise Malformed("a text in it is not UTF-8") from None

    def numbers(self, field: Field) -> Iterator[int]:
        """The numbers of a repeated field, packed or not."""
        if field.kind == VARINT:
            yield field.value
            return
        at = field.start
        while at < field.end:
            self.left -= 1
            if self.left < 0:
                raise Malformed(f"it has more than {MAX_FIELDS} fields")
            value, at = self.window.varint(at)
            if at > field.end:
                raise Malformed("a number in it goes beyond its field")
            yield value
