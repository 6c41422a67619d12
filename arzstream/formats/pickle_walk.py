"""Follows a pickle without running it.

A pickle is a program for a stack machine: it may import anything and call it. Here every import becomes an inert
:class:`Global`, every call an inert :class:`Call` that remembers its arguments, every external object a
:class:`Persistent`. Nothing is imported, called, hashed or compared, so there is nothing for a hostile pickle to
reach. Opcodes are those of protocols 2 to 5 (PEP 307, 3154, 574 and the comments of CPython's Lib/pickletools.py).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

from arzstream.formats.base import Malformed

__all__ = ["Blob", "Call", "Dict", "Global", "Machine", "Persistent", "Unknown", "work_allowed"]

MAX_WORK = 4_000_000
"""What a pickle may cost: one for each opcode, and one for each 20 bytes or so of memory that it takes beyond 16. A
tensor of a real checkpoint costs about 60, a parameter's state in Adam 170."""
BYTES_OF_WORK, MOST_TIMES = 256, 8
"""A large file may cost more: one for so many of its bytes, up to so many times as much in all."""
MAX_LONG_BYTES = 64
MAX_TEXT = 1024
"""Texts and bytes beyond this are no names; they are not copied."""


def work_allowed(nbytes: int) -> int:
    """What following a pickle may cost in a file of so many bytes."""
    return min(MAX_WORK + nbytes // BYTES_OF_WORK, MOST_TIMES * MAX_WORK)


class Unknown:
    """A value that is of no interest here."""

    __slots__ = ()


UNKNOWN = Unknown()


class Blob:
    """Bytes, or text in UTF-8, that stay where they are: ``nbytes`` of the pickle from ``start`` on."""

    __slots__ = ("nbytes", "start")

    def __init__(self, start: int, nbytes: int) -> None:
        self.start = start
        self.nbytes = nbytes


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
    """A dict as keys and values in turn, in order of insertion; keys are any nodes."""

    __slots__ = ("flat", "state")

    def __init__(self) -> None:
        self.flat: list[Any] = _NONE
        self.state: Any = None

    def __len__(self) -> int:
        return len(self.flat) // 2

    @property
    def pairs(self) -> Iterator[tuple[Any, Any]]:
        items = iter(self.flat)
        return zip(items, items, strict=True)


class Call(Dict):
    """What the pickle would make by calling ``function``, with what it would append, set and build into it."""

    __slots__ = ("args", "function", "items")

    def __init__(self, function: Any, args: Any) -> None:
        self.function = function
        self.args = args
        self.items: list[Any] = _NONE
        self.flat: list[Any] = _NONE
        self.state: Any = None


_NONE: list[Any] = []
"""In place of a list of its own where nothing was put in yet."""


class Machine:
    """Follows one pickle. Nodes are ``None``, bool, int, float, str, bytes, list, tuple and the classes of this module.

    After :meth:`run`, ``end`` is where the pickle stopped and ``work`` what it cost. ``persistent`` holds the ids met
    so far, also when :meth:`run` raised.
    """

    def __init__(self, data: bytes, start: int = 0, max_work: int = MAX_WORK) -> None:
        self.end = 0
        self.work = 0
        self.persistent: list[Any] = []
        self._data = data
        self._at = start
        self._max = self._left = max_work
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: list[Any] = []
        self._sparse: dict[int, Any] = {}

    def run(self) -> Any:
        """The root node. Raises :class:`Malformed` for what is no pickle, cannot be followed, or is too long."""
        try:
            return self._run()
        except (IndexError, KeyError, TypeError, ValueError, AttributeError, struct.error):
            raise Malformed(f"its pickle cannot be followed at byte {self._at}") from None
        finally:
            self.work = self._max - max(self._left, 0)

    def _run(self) -> Any:
        """The commonest opcodes are written out here; it would take twice as long to call something for each."""
        data, codes, costs, size = self._data, _OPCODES, _COSTS, len(self._data)
        stack, marks, memo = self._stack, self._marks, self._memo
        push, pop = stack.append, stack.pop
        at, left = self._at, self._left
        try:
            while at < size:
                code = data[at]
                left -= costs[code]
                if left < 0:
                    raise Malformed("its pickle is too long")
                at += 1
                if code == _LONG_BINGET:
                    index = int.from_bytes(data[at : at + 4], "little")
                    at += 4
                    push(memo[index] if index < len(memo) else self._sparse[index])
                elif code == _BINGET:
                    push(memo[data[at]] if data[at] < len(memo) else self._sparse[data[at]])
                    at += 1
                elif code == _LONG_BINPUT:
                    self._put(int.from_bytes(data[at : at + 4], "little"))
                    at += 4
                elif code == _BINPUT:
                    self._put(data[at])
                    at += 1
                elif code == _MEMOIZE:
                    self._put(len(memo) + len(self._sparse))
                elif code == _BININT1:
                    push(data[at])
                    at += 1
                elif code == _MARK:
                    marks.append(len(stack))
                elif code == _TUPLE:
                    mark = marks.pop()
                    items = tuple(stack[mark:])
                    del stack[mark:]
                    push(items)
                elif code == _NEWFALSE:
                    push(False)
                elif code == _STOP:
                    self.end = at
                    return pop()
                else:
                    self._at, self._left = at, left
                    codes[code](self)
                    at, left = self._at, self._left
        finally:
            self._at, self._left = at, left
        raise Malformed("its pickle is cut off")

    # Reading

    def _take(self, length: int) -> bytes:
        start = self._skip(length)
        return self._data[start : self._at]

    def _uint(self, width: int) -> int:
        return int.from_bytes(self._take(width), "little")

    def _line(self) -> str:
        stop = self._data.index(b"\n", self._at, self._at + MAX_TEXT)
        text = self._data[self._at : stop].decode("utf-8")
        self._left -= len(text) >> 3
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

    def _skip(self, length: int) -> int:
        """Step over ``length`` bytes; where they begin."""
        start = self._at
        if length > len(self._data) - start:
            raise Malformed("its pickle is cut off")
        self._at = start + length
        return start

    def _text(self, width: int) -> None:
        length = self._uint(width)
        start = self._skip(length)
        if length > MAX_TEXT:
            self._stack.append(Blob(start, length))
            return
        text = self._data[start : self._at].decode("utf-8", "surrogatepass")
        self._left -= length >> (4 if text.isascii() else 2)
        self._stack.append(text)

    def _bytes(self, width: int) -> None:
        length = self._uint(width)
        start = self._skip(length)
        if length > MAX_TEXT:
            self._stack.append(Blob(start, length))
            return
        self._left -= length >> 4
        self._stack.append(self._data[start : self._at])

    def _put(self, index: int) -> None:
        memo, value = self._memo, self._stack[-1]
        if index == len(memo):  # writers count
            memo.append(value)
        elif index < len(memo):
            memo[index] = value
        else:
            self._left -= 5
            self._sparse[index] = value

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
            made.flat = keywords.flat
        self._stack.append(made)

    def _build(self) -> None:
        state = self._pop()
        target = self._stack[-1]
        if isinstance(target, Dict):
            target.state = state

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Call):
            target.items = target.items or []
            target.items.extend(items)

    def _append(self) -> None:
        item = self._pop()
        self._extend([item])

    def _set_items(self, flat: list[Any]) -> None:
        target = self._stack[-1]
        if len(flat) % 2:
            raise ValueError
        if isinstance(target, Dict):
            target.flat = target.flat or []
            target.flat.extend(flat)

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _make_dict(self) -> None:
        flat = self._pop_mark()
        self._stack.append(Dict())
        self._set_items(flat)

    def _frame(self) -> None:
        self._take(8)  # frames only help readers that buffer; the opcodes go on inside

    def _ignore(self) -> None:
        pass


_BINGET, _LONG_BINGET, _BINPUT, _LONG_BINPUT, _MEMOIZE = ord("h"), ord("j"), ord("q"), ord("r"), 0x94
_BININT1, _MARK, _TUPLE, _NEWFALSE, _STOP = ord("K"), ord("("), ord("t"), 0x89, ord(".")

_OPCODES: dict[int, Callable[[Machine], Any]] = {
    0x80: lambda m: m._take(1),  # PROTO
    0x95: Machine._frame,
    ord("0"): Machine._pop,
    ord("1"): Machine._pop_mark,
    ord("2"): lambda m: m._stack.append(m._stack[-1]),  # DUP
    # constants
    ord("N"): lambda m: m._stack.append(None),
    0x88: lambda m: m._stack.append(True),
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

_COSTS = [1] * 256
"""Of each opcode, for :data:`MAX_WORK`: what else is allocated is charged where it is known."""
for _codes, _cost in (
    (b"(MJG\x85\x86", 3),
    (b"]lat}d\x87\x8f\x91\x95", 4),
    (b"QbsXUTCBR\x81\x8c\x8d\x8e\x96\x8a\x8b", 5),
    (b"c\x92\x93", 10),
):
    for _code in _codes:
        _COSTS[_code] = _cost
