"""Ways to show a parser a file: whole, cut, or growing."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from arzstream.formats.base import Layout, pieces, problem_of
from arzstream.formats.detect import parser_for


def _reader(data: bytes) -> Callable[[int, int], bytes]:
    def read(offset: int, length: int) -> bytes:
        assert offset >= 0 and length >= 0
        assert length <= (64 << 20) + 8, f"a read of {length} bytes was asked for"
        return data[offset : offset + length]

    return read


@pytest.fixture
def reader() -> Callable[[bytes], Callable[[int, int], bytes]]:
    return _reader


@pytest.fixture
def whole() -> Callable[..., Layout]:
    """The definite layout of a file, checked for what every layout promises."""

    def parse(data: bytes, name: str = "model.pt") -> Layout:
        layout = parser_for(name).update(_reader(data), len(data), True)
        assert problem_of(layout, len(data)) == ""
        assert layout.complete and layout.size == len(data)
        position = 0
        for piece in pieces(layout, len(data)):
            assert piece.offset == position
            position += piece.nbytes
        assert position == len(data)
        return layout

    return parse


@pytest.fixture
def grow() -> Callable[..., list[Layout]]:
    """The layouts that one parser gives while a file grows through ``frontiers`` (every byte by default)."""

    def parse(data: bytes, name: str = "model.pt", frontiers: Iterable[int] | None = None) -> list[Layout]:
        parser = parser_for(name)
        found = []
        for frontier in range(len(data) + 1) if frontiers is None else frontiers:
            layout = parser.update(_reader(data[:frontier]), frontier, False)
            assert problem_of(layout) == ""
            found.append(layout)
        return found

    return parse
