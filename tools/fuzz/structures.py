"""What is done to the parts that a format is made of, so that lengths, counts and directories around them still fit."""

from __future__ import annotations

import functools
import io
import pickletools
import random
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from tools.fuzz.mutations import NUMBERS, mutate, mutate_text, times

__all__ = [
    "Edit", "flax_edit", "json_edit", "members", "npy_edit", "pickle_edit", "protobuf_edit", "safetensors_edit",
    "zip_edit",
]  # fmt: skip

Edit = Callable[[bytes, random.Random, Sequence[bytes]], bytes]
"""``edit(data, dice, tokens)``: data of the same format with something else in it; raises ValueError where it can't."""


@functools.lru_cache(512)
def _operations(data: bytes) -> tuple[bytes, ...]:
    """The opcodes of a pickle with what belongs to them; what cannot be followed is the last."""
    places = []
    try:
        for _, _, at in pickletools.genops(data):
            places.append(at)
    except Exception:  # noqa: BLE001
        pass
    return tuple(data[a:b] for a, b in zip(places, [*places[1:], len(data)], strict=True))


def pickle_edit(data: bytes, dice: random.Random, tokens: Sequence[bytes]) -> bytes:
    """Opcodes dropped, doubled, swapped, replaced by others."""
    found = list(_operations(data)) or [data]
    for _ in range(dice.choice((1, 1, 2, 4))):
        at, other = dice.randrange(len(found)), dice.randrange(len(found))
        kind = dice.random()
        if kind < 0.2:
            found[at] = found[other]
        elif kind < 0.35:
            found[at], found[other] = found[other], found[at]
        elif kind < 0.45 and len(found) > 1:
            del found[at]
        elif kind < 0.6:
            begin = min(at, other)
            piece = found[begin : begin + dice.randint(1, 12)]
            found[other:other] = piece * times(dice)
        elif kind < 0.85:
            found[at] = mutate(found[at], dice, tokens, (), found[:1])
        else:
            found.insert(at, dice.choice(tokens) if tokens else b"")
    return b"".join(found)


def zip_edit(data: bytes, dice: random.Random, tokens: Sequence[bytes]) -> bytes:
    """Members of a zip file changed, renamed, dropped, doubled or swapped, in a zip file that fits them."""
    found = list(members(data))
    if not found:
        raise ValueError("it is no zip file")
    at, other = dice.randrange(len(found)), dice.randrange(len(found))
    name, content = found[at]
    kind = dice.random()
    if kind < 0.7:
        likely = [i for i, (name, _) in enumerate(found) if name.endswith((".pkl", ".json", ".npy", "byteorder"))]
        at = dice.choice(likely) if likely and dice.random() < 0.8 else at
        name, content = found[at]
        found[at] = name, _within(name, content, dice, tokens)
    elif kind < 0.75:
        found[at] = found[other][0], content
    elif kind < 0.8:
        found[at] = mutate_text(name.encode(), dice, tokens).decode("utf-8", "replace")[:2000], content
    elif kind < 0.85:
        del found[at]
    elif kind < 0.9:
        found[other:other] = [found[at]] * min(times(dice), 500)
    else:
        found[at], found[other] = (name, found[other][1]), (found[other][0], content)
    return _zipped(found, zipfile.ZIP_DEFLATED if dice.random() < 0.02 else zipfile.ZIP_STORED)


def _within(name: str, content: bytes, dice: random.Random, tokens: Sequence[bytes]) -> bytes:
    if name.endswith(".pkl"):
        return pickle_edit(content, dice, tokens)
    if name.endswith(".json"):
        return json_edit(content, dice, tokens)
    if name.endswith(".npy"):
        return npy_edit(content, dice, tokens)
    if name.endswith(".pt") and dice.random() < 0.8 and content[:2] == b"PK":
        return zip_edit(content, dice, tokens)
    return mutate(content, dice, tokens, (), ())


@functools.lru_cache(256)
def members(data: bytes) -> tuple[tuple[str, bytes], ...]:
    """Names and contents in a zip file; none if it cannot be read."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            return tuple((info.filename, file.read(info)) for info in file.infolist())
    except Exception:  # noqa: BLE001  what zipfile cannot read is changed as bytes
        return ()


def _zipped(members: list[tuple[str, bytes]], method: int) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(out, "w", method) as file:
            for name, content in members:
                file.writestr(zipfile.ZipInfo(name or "x"), content, method)
    return out.getvalue()


def json_edit(data: bytes, dice: random.Random, tokens: Sequence[bytes]) -> bytes:
    return mutate_text(data, dice, tokens)


def safetensors_edit(data: bytes, dice: random.Random, tokens: Sequence[bytes]) -> bytes:
    """Another header, of the length that is said before it."""
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= len(data):
        raise ValueError("it has no header")
    header = mutate_text(data[8 : 8 + length], dice, tokens)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def npy_edit(data: bytes, dice: random.Random, tokens: Sequence[bytes]) -> bytes:
    """Another header, of the length that is said before it."""
    width = 2 if data[6:7] == b"\1" else 4
    end = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    header = mutate_text(data[8 + width : end], dice, tokens)
    return data[:8] + (len(header) & ((1 << 8 * width) - 1)).to_bytes(width, "little") + header + data[end:]


# Protocol buffers


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("no number")
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
        shift += 7


def _written(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


@functools.lru_cache(1024)
def _fields(data: bytes) -> tuple[tuple[int, bytes], ...]:
    """(key, what follows it; of a length-delimited field its content) of a message; ValueError if it is none."""
    found, at = [], 0
    while at < len(data):
        key, at = _varint(data, at)
        begin = at
        if not key >> 3:
            raise ValueError("field 0")
        if key & 7 == 0:
            _, at = _varint(data, at)
        elif key & 7 == 2:
            length, begin = _varint(data, at)
            at = begin + length
        elif key & 7 in (1, 5):
            at += 8 if key & 7 == 1 else 4
        else:
            raise ValueError("a wire type that is not used")
        if at > len(data):
            raise ValueError("cut off")
        found.append((key, data[begin:at]))
    return tuple(found)


def protobuf_edit(data: bytes, dice: random.Random, tokens: Sequence[bytes]) -> bytes:
    """A field somewhere in a message changed, doubled, dropped, swapped, or wrapped; lengths around it fit."""
    fields = list(_fields(data))
    if not fields:
        raise ValueError("an empty message")
    at, other = dice.randrange(len(fields)), dice.randrange(len(fields))
    key, content = fields[at]
    kind = dice.random()
    if kind < 0.75:
        fields[at] = key, _field(key, content, dice, tokens)
    elif kind < 0.8:
        fields[at] = dice.choice((key ^ 8, key ^ dice.randrange(8), 8 * dice.randint(1, 30) + 2)), content
    elif kind < 0.85:
        fields[other:other] = [fields[at]] * times(dice)
    elif kind < 0.9:
        del fields[at]
    elif kind < 0.95:
        fields[at], fields[other] = fields[other], fields[at]
    else:
        fields[at] = key, _written(key) + _written(len(content)) + content
    return b"".join(
        _written(key) + (_written(len(content)) if key & 7 == 2 else b"") + content for key, content in fields
    )


def _field(key: int, content: bytes, dice: random.Random, tokens: Sequence[bytes]) -> bytes:
    if key & 7 == 0:
        return _written(dice.choice(NUMBERS)) if dice.random() < 0.8 else b"\xff" * dice.randint(1, 12)
    if key & 7 == 2 and dice.random() < 0.85:
        try:
            return protobuf_edit(content, dice, tokens)
        except ValueError:
            pass
    return mutate(content, dice, tokens, (), ())


# msgpack


def flax_edit(data: bytes, dice: random.Random, tokens: Sequence[bytes]) -> bytes:
    """Something in the tree replaced, arrays included."""
    try:
        tree = msgpack.unpackb(data, strict_map_key=False, raw=True)
        return bytes(msgpack.packb(_grown(tree, dice, tokens), unicode_errors="surrogatepass"))
    except ValueError:
        raise
    except Exception as error:  # noqa: BLE001  keys that cannot be hashed, numbers that are too large, too much depth
        raise ValueError(str(error)) from None


def _grown(node: Any, dice: random.Random, tokens: Sequence[bytes]) -> Any:
    if isinstance(node, dict) and node and dice.random() < 0.95:
        key = dice.choice(list(node))
        made = dict(node)
        if dice.random() < 0.15:
            made[_atom(dice)] = made.pop(key)
        else:
            made[key] = _grown(node[key], dice, tokens)
        return made
    if isinstance(node, list) and node and dice.random() < 0.9:
        at = dice.randrange(len(node))
        return [*node[:at], _grown(node[at], dice, tokens), *node[at + 1 :]]
    if isinstance(node, msgpack.ExtType) and dice.random() < 0.9:
        content = flax_edit(node.data, dice, tokens) if dice.random() < 0.8 else mutate(node.data, dice, tokens, (), ())
        return msgpack.ExtType(node.code if dice.random() < 0.9 else dice.randrange(128), content)
    if isinstance(node, bytes) and dice.random() < 0.7:
        return mutate(node, dice, tokens, (), ())
    return dice.choice(({}, [], [node], {b"k": node}, {b"k": node, b"l": node}, _atom(dice)))


def _atom(dice: random.Random) -> Any:
    return dice.choice((dice.choice(NUMBERS), -1, None, True, 0.5, "", "float32", "bfloat16", b"\xff\xff", "x" * 1100))
