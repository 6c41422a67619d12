"""What must hold of any input, and is checked of each."""

from __future__ import annotations

import os
import random
import re
import tempfile
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import arzstream
from arzstream.cli.listing import listing
from arzstream.formats.base import Layout, Malformed, Parser, ReadAt, pieces, problem_of
from arzstream.formats.beside import NOTHING, Beside
from arzstream.formats.checkpoint import FileFacts, Past, assess, common, group
from arzstream.formats.companions import Companions
from arzstream.formats.dcp_metadata import read_metadata
from arzstream.formats.detect import parser_for
from arzstream.formats.torch_pickle import read_contents
from tools.fuzz.seeds import Files

__all__ = ["Broken", "archive", "checkpoint", "file", "pickled"]

MOST_READS = 50_000
"""Reads of one call, of files as small as these."""
LONGEST_READ = (64 << 20) + 8
LONGEST_NOTE = 700
TELLING = (
    b".safetensors", b".pt", b".pth", b".ckpt", b".pt2", b".gguf", b".distcp", b".npy", b".npz", b".onnx", b".msgpack",
)  # fmt: skip
"""Names of which it must be said why a file is opaque."""


class Broken(Exception):
    """A promise that was not kept."""


class Unreadable(OSError):
    """What a disk does at times."""


def promise(kept: bool, what: str) -> None:
    if not kept:
        raise Broken(what)


class Reader:
    """``data[:frontier]`` as a file; the read after ``good`` others fails."""

    def __init__(self, data: bytes, frontier: int, good: int = MOST_READS) -> None:
        self._data, self._frontier, self._left, self._fails = data, frontier, good, good < MOST_READS

    def __call__(self, offset: int, length: int) -> bytes:
        self._left -= 1
        if self._left < 0:
            if self._fails:
                raise Unreadable
            raise Broken(f"more than {MOST_READS} reads")
        if offset < 0 or not 0 <= length <= LONGEST_READ:
            raise Broken(f"a read of {length} bytes at {offset}")
        return self._data[offset : min(offset + length, self._frontier)]


class Folder:
    """The files of a checkpoint, as parsers see those beside their own."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def paths(self) -> Iterable[bytes]:
        return self._files

    def version(self, path: bytes) -> Hashable:
        return hash(self._files[path]) if path in self._files else None

    def size(self, path: bytes) -> int:
        return len(self._files.get(path, b""))

    def read(self, path: bytes, offset: int, length: int) -> bytes:
        promise(offset >= 0 and 0 <= length <= LONGEST_READ, f"a read of {length} bytes at {offset}")
        return self._files.get(path, b"")[offset : offset + length]

    def foretold(self, path: bytes) -> bytes | None:
        return self._files.get(path)


def file(path: bytes, files: Files, dice: random.Random, *, companions: bool = False) -> tuple[Any, ...]:
    """Read ``path`` as a whole file, or as one that grows, is overwritten, shrinks, or cannot be read for a while. What
    was found of it, roughly, so that one can tell whether it is something new. Raises :class:`Broken`, or whatever the
    parser raised."""
    data = files[path]
    beside = Folder(files) if len(files) > 1 else NOTHING
    parser = _parser(path, beside, companions)
    size, way = len(data), dice.random()
    if way < 0.4:
        _grow(parser, data, dice)
    elif way < 0.46:
        other = dice.choice(list(files.values())) if dice.random() < 0.3 else dice.randbytes(40) + data[40:]
        _early(parser, Reader(other, len(other)), len(other))
    elif way < 0.52:
        _fail(parser, data, dice)
    elif way < 0.56:
        have = dice.randrange(size + 1)
        short = parser.update(Reader(data, have), size, True)
        promise(short.complete and short.size == size and not problem_of(short, size), "a file that shrank")
    layout = parser.update(Reader(data, size), size, True)
    _definite(layout, path, size)
    if way < 0.5 and layout != (again := _parser(path, beside, companions).update(Reader(data, size), size, True)):
        raise Broken(f"what came before shows in the final layout: {layout} and not {again}")
    views = sum(len(storage.views) for storage in layout.storages)
    return layout.format, len(layout.storages) > 0, min(views, 9), _kind(layout.note)


def _parser(path: bytes, beside: Beside, companions: bool) -> Parser:
    return parser_for(path, beside=beside, companions=Companions() if companions else None)


_COUNTED = re.compile(r"'.*'|\d+")


def _kind(note: str) -> str:
    """A note without what it quotes and counts."""
    return _COUNTED.sub("", note[:120])


def _early(parser: Parser, read: ReadAt, frontier: int) -> None:
    layout = parser.update(read, frontier, False)
    problem = problem_of(layout)
    promise(not problem, f"before it was final: {problem}")
    promise(len(layout.note) <= LONGEST_NOTE and "\n" not in layout.note, "a long note")


def _grow(parser: Parser, data: bytes, dice: random.Random) -> None:
    places = sorted(dice.randrange(len(data) + 1) for _ in range(dice.randint(1, 3)))
    reserved = dice.random() < 0.2  # the file has its size from the start, and zeros where nothing was written
    for place in (*places, len(data)):
        if reserved:
            _early(parser, Reader(data[:place] + bytes(len(data) - place), len(data)), len(data))
        else:
            _early(parser, Reader(data, place), place)


def _fail(parser: Parser, data: bytes, dice: random.Random) -> None:
    """A read that fails is handed on, and does not confuse what comes after."""
    try:
        parser.update(Reader(data, len(data), dice.randrange(6)), len(data), dice.random() < 0.5)
    except Unreadable:
        pass


def _definite(layout: Layout, path: bytes, size: int) -> None:
    problem = problem_of(layout, size)
    promise(not problem, problem)
    promise(layout.complete and layout.size == size, "the final layout is not definite")
    position = 0
    for piece in pieces(layout, size):
        promise(piece.offset == position, "a hole or an overlap")
        position += piece.nbytes
    promise(position == size, "not every byte is in a piece")
    promise(len(layout.note) <= LONGEST_NOTE and layout.note.isprintable(), f"a note that is no line: {layout.note!r}")
    if layout.format == "opaque" and size and path.endswith(TELLING):
        promise(bool(layout.note), "it is not said why it is opaque")


def pickled(path: bytes, files: Files, dice: random.Random) -> tuple[Any, ...]:
    """Follow a pickle, and take it for a ``.metadata``."""
    data = files[path]
    contents = read_contents(data, must_end=dice.random() < 0.8)
    promise(len(str(contents.notes)) <= LONGEST_NOTE, "a long note")
    said = ""
    try:
        for items in read_metadata(data).values():
            end = 0
            for item in items:
                promise(item.offset >= end and item.length >= 0, "items overlap")
                end = item.end
    except Malformed as error:
        said = str(error)
    return min(len(contents.tensors), 9), min(len(contents.storages), 9), _kind(str(contents.notes)), _kind(said)


_NAMES = (b"", b"checkpoint-10", b"iter_0000010", b"global_step1", b"last.ckpt", b"step-1", b"release")
_layouts: dict[tuple[bytes, bytes], Layout] = {}


def checkpoint(path: bytes, files: Files, dice: random.Random) -> tuple[Any, ...]:
    """Ask whether these files are a complete checkpoint."""
    facts = {}
    for name, data in files.items():
        layout = _layouts.get((name, data))
        if layout is None:
            layout = parser_for(name, beside=Folder(files)).update(Reader(data, len(data)), len(data), False)
            if len(_layouts) > 5000:
                _layouts.clear()
            _layouts[name, data] = layout
        changed = 10**18 - dice.randrange(5) * 10**9
        since = dice.choice((0.0, 0.3, 7.0, 100.0))
        readable = layout if dice.random() < 0.97 else None
        facts[name] = FileFacts(len(data), readable, dice.random() < 0.9, since, changed)
    past = Past()
    if dice.random() < 0.2:
        past = Past(common([list(files)]), {name: (fact.size, fact.changed) for name, fact in facts.items()})
    latest = files.get(b"latest"), 10**18

    def read(path: bytes, offset: int, length: int) -> bytes:
        promise(offset >= 0 and 0 <= length <= LONGEST_READ, f"a read of {length} bytes at {offset}")
        return files[path][offset : offset + length]

    beside = lambda _: latest if latest[0] is not None else None  # noqa: E731
    verdict = assess(facts, files.get, dice.choice(_NAMES), past=past, beside=beside, read=read)
    promise(verdict.complete == (not verdict.waiting_for), "complete, and waiting for something")
    text = verdict.waiting_for
    promise(len(text) <= 5000 and "\n" not in text, f"no line for a person: {text[:300]!r}")
    group(files)
    return verdict.rule, verdict.strength, verdict.complete, _kind(text)[:20]


def archive(files: Files, path: bytes) -> None:
    """Pack, list, and restore a folder: the bytes come back, and ``ls`` says what the parser said."""
    with tempfile.TemporaryDirectory(prefix="arz-fuzz-") as place:
        source = os.fsencode(place) + b"/source"
        for name, data in files.items():
            target = source + b"/" + name
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "wb") as out:
                out.write(data)
        packed, restored = str(Path(place) / "a.arz"), str(Path(place) / "restored")
        arzstream.pack(os.fsdecode(source), packed, jobs=1)
        arzstream.unpack(packed, restored)
        for name, data in files.items():
            with open(os.fsencode(restored) + b"/" + name, "rb") as got:
                promise(got.read() == data, f"{name!r} did not come back")
        if path:
            with arzstream.open(packed) as opened:
                listed = {entry["path"].encode("utf-8", "surrogateescape"): entry for entry in listing(opened)["files"]}
            entry = listed[path]
            if entry["format"] == "opaque" and files[path] and path.endswith(TELLING):
                promise(bool(entry["note"]), "ls does not say why it is opaque")
