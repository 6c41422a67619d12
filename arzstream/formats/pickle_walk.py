"""Follows a pickle without running it.

A pickle is a program for a stack machine: it may import anything and call it. Here every import becomes an inert
:class:`Global`, every call an inert :class:`Call` that remembers its arguments, every external object a
:class:`Persistent`. Nothing is imported, called, hashed or compared, so there is nothing for a hostile pickle to
reach. Opcodes are those of protocols 2 to 5 (PEP 307, 3154, 574 and the comments of CPython's Lib/pickletools.py).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from arzstream.formats.base import Malformed

__all__ = ["Call", "Dict", "Global", "Machine", "Persistent", "Unknown"]

MAX_OPCODES = 4_000_000
MAX_LONG_BYTES = 64


class Unknown:
    """A value that is of no interest here."""

    __slots__ = ()


UNKNOWN = Unknown()


class Global:
    """What the pickle would import."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name


class Persistent:
    """An object that lives outside the pickle, by its id."""

    __slots__ = ("pid",)

    def __init__(self, pid: Any) -> None:
        self.pid = pid


class Dict:
    """A dict as pairs in order of insertion; keys are any nodes."""

    __slots__ = ("pairs", "state")

    def __init__(self) -> None:
        self.pairs: list[tuple[Any, Any]] = []
        self.state: Any = None


class Call:
    """What the pickle would make by calling ``function``, with what it would append, set and build into it."""

    __slots__ = ("args", "function", "items", "pairs", "state")

    def __init__(self, function: Any, args: Any) -> None:
        self.function = function
        self.args = args
        self.items: list[Any] = []
        self.pairs: list[tuple[Any, Any]] = []
        self.state: Any = None


class Machine:
    """Follows one pickle. Nodes are ``None``, bool, int, float, str, bytes, list, tuple and the classes of this module.

    After :meth:`run`, ``end`` is where the pickle stopped. ``persistent`` holds the ids met so far, also when
    :meth:`run` raised.
    """

    def __init__(self, data: bytes, max_opcodes: int = MAX_OPCODES) -> None:
        self.end = 0
        self.persistent: list[Any] = []
        self._data = data
        self._at = 0
        self._left = max_opcodes
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The root node. Raises :class:`Malformed` for what is no pickle, cannot be followed, or is too long."""
        data, codes, size = self._data, _OPCODES, len(self._data)
        try:
            while self._at < size:
                self._left -= 1
                if self._left < 0:
                    raise Malformed("its pickle is too long")
                code = data[self._at]
                self._at += 1
                if code == _STOP:
                    self.end = self._at
                    return self._stack.pop()
                codes[code](self)
        except (IndexError, KeyError, TypeError, ValueError, AttributeError, struct.error):
            raise Malformed(f"its pickle cannot be followed at byte {self._at}") from None
        raise Malformed("its pickle is cut off")

    # Reading

    def _take(self, length: int) -> bytes:
        start = self._at
        if length > len(self._data) - start:
            raise Malformed("its pickle is cut off")
        self._at = start + length
        return self._data[start : self._at]

    def _uint(self, width: int) -> int:
        return int.from_bytes(self._take(width), "little")

    def _line(self) -> str:
        stop = self._data.index(b"\n", self._at)
        text = self._data[self._at : stop].decode("utf-8")
        self._at = stop + 1
        return text

    # The stack

    def _pop_mark(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _pop(self) -> Any:
        if self._marks and self._marks[-1] >= len(self._stack):
            raise IndexError
        return self._stack.pop()

    # Opcodes with a body of their own

    def _long(self, width: int) -> None:
        raw = self._take(self._uint(width))
        self._stack.append(int.from_bytes(raw, "little", signed=True) if len(raw) <= MAX_LONG_BYTES else UNKNOWN)

    def _text(self, width: int) -> None:
        self._stack.append(self._take(self._uint(width)).decode("utf-8", "surrogatepass"))

    def _bytes(self, width: int) -> None:
        self._stack.append(self._take(self._uint(width)))

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _tuple(self, count: int) -> None:
        items = tuple(self._pop() for _ in range(count))[::-1]
        self._stack.append(items)

    def _global(self) -> None:
        module = self._line()
        self._stack.append(Global(module, self._line()))

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._stack.append(Global(module, name) if isinstance(name, str) and isinstance(module, str) else UNKNOWN)

    def _extension(self, width: int) -> None:
        self._take(width)
        self._stack.append(UNKNOWN)

    def _persistent_id(self) -> None:
        pid = self._pop()
        self.persistent.append(pid)
        self._stack.append(Persistent(pid))

    def _reduce(self) -> None:
        args, function = self._pop(), self._pop()
        self._stack.append(Call(function, args))

    def _new_object_ex(self) -> None:
        keywords, args, function = self._pop(), self._pop(), self._pop()
        made = Call(function, args)
        if isinstance(keywords, Dict):
            made.pairs.extend(keywords.pairs)
        self._stack.append(made)

    def _build(self) -> None:
        state = self._pop()
        target = self._stack[-1]
        if isinstance(target, (Call, Dict)):
            target.state = state

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Call):
            target.items.extend(items)

    def _append(self) -> None:
        item = self._pop()
        self._extend([item])

    def _set_items(self, flat: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, (Call, Dict)):
            target.pairs.extend(zip(flat[::2], flat[1::2], strict=True))

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _make_dict(self) -> None:
        made, flat = Dict(), self._pop_mark()
        made.pairs.extend(zip(flat[::2], flat[1::2], strict=True))
        self._stack.append(made)

    def _frame(self) -> None:
        self._take(8)  # frames only help readers that buffer; the opcodes go on inside

    def _ignore(self) -> None:
        pass


_STOP = ord(".")

_OPCODES: dict[int, Callable[[Machine], Any]] = {
    0x80: lambda m: m._take(1),  # PROTO
    0x95: Machine._frame,
    ord("("): lambda m: m._marks.append(len(m._stack)),
    ord("0"): Machine._pop,
    ord("1"): Machine._pop_mark,
    ord("2"): lambda m: m._stack.append(m._stack[-1]),  # DUP
    # constants
    ord("N"): lambda m: m._stack.append(None),
    0x88: lambda m: m._stack.append(True),
    0x89: lambda m: m._stack.append(False),
    ord("K"): lambda m: m._stack.append(m._uint(1)),  # BININT1
    ord("M"): lambda m: m._stack.append(m._uint(2)),  # BININT2
    ord("J"): lambda m: m._stack.append(struct.unpack("<i", m._take(4))[0]),  # BININT
    ord("G"): lambda m: m._stack.append(struct.unpack(">d", m._take(8))[0]),  # BINFLOAT
    0x8A: lambda m: m._long(1),
    0x8B: lambda m: m._long(4),
    # text and bytes
    0x8C: lambda m: m._text(1),  # SHORT_BINUNICODE
    ord("X"): lambda m: m._text(4),
    0x8D: lambda m: m._text(8),
    ord("U"): lambda m: m._bytes(1),  # SHORT_BINSTRING
    ord("T"): lambda m: m._bytes(4),
    ord("C"): lambda m: m._bytes(1),  # SHORT_BINBYTES
    ord("B"): lambda m: m._bytes(4),
    0x8E: lambda m: m._bytes(8),
    0x96: lambda m: m._bytes(8),  # BYTEARRAY8
    0x97: lambda m: m._stack.append(UNKNOWN),  # NEXT_BUFFER
    0x98: Machine._ignore,  # READONLY_BUFFER
    # containers
    ord(")"): lambda m: m._stack.append(()),
    0x85: lambda m: m._tuple(1),
    0x86: lambda m: m._tuple(2),
    0x87: lambda m: m._tuple(3),
    ord("t"): lambda m: m._stack.append(tuple(m._pop_mark())),
    ord("]"): lambda m: m._stack.append([]),
    ord("l"): lambda m: m._stack.append(m._pop_mark()),
    ord("a"): Machine._append,
    ord("e"): lambda m: m._extend(m._pop_mark()),  # APPENDS
    ord("}"): lambda m: m._stack.append(Dict()),
    ord("d"): Machine._make_dict,
    ord("s"): Machine._set_item,
    ord("u"): lambda m: m._set_items(m._pop_mark()),
    0x8F: lambda m: m._stack.append([]),  # EMPTY_SET: a list serves
    0x90: lambda m: m._extend(m._pop_mark()),  # ADDITEMS
    0x91: lambda m: m._stack.append(m._pop_mark()),  # FROZENSET
    # memo
    ord("q"): lambda m: m._put(m._uint(1)),
    ord("r"): lambda m: m._put(m._uint(4)),
    0x94: lambda m: m._put(len(m._memo)),  # MEMOIZE
    ord("h"): lambda m: m._stack.append(m._memo[m._uint(1)]),
    ord("j"): lambda m: m._stack.append(m._memo[m._uint(4)]),
    # what would import, call or build
    ord("c"): Machine._global,
    0x93: Machine._stack_global,
    0x82: lambda m: m._extension(1),
    0x83: lambda m: m._extension(2),
    0x84: lambda m: m._extension(4),
    ord("Q"): Machine._persistent_id,
    ord("R"): Machine._reduce,
    0x81: Machine._reduce,  # NEWOBJ
    0x92: Machine._new_object_ex,
    ord("b"): Machine._build,
}
