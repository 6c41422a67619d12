"""A part as a file: what clients ask of one."""

from __future__ import annotations

import asyncio
import io
import os
import random

import pytest

from arzstream.store.backends.sending import BLOCK_BYTES, Sent, SentBlocks

DATA = random.Random(0).randbytes(1000)


@pytest.fixture(params=[Sent, io.BytesIO])
def file(request: pytest.FixtureRequest) -> io.IOBase:
    """Ours, and the one of the standard library that it is to be like."""
    made: io.IOBase = request.param(memoryview(bytearray(DATA)))
    return made


def test_it_reads_like_any_other(file: io.RawIOBase) -> None:
    assert file.readable() and file.seekable() and not file.isatty()
    assert file.read(10) == DATA[:10] and file.tell() == 10
    assert file.read() == DATA[10:] and file.read() == file.read(5) == b"" and file.tell() == 1000
    assert file.seek(-3, os.SEEK_END) == 997 and file.read(100) == DATA[-3:]
    assert file.seek(5) == 5 and file.seek(5, os.SEEK_CUR) == 10 and file.read(0) == b""
    assert file.seek(2000) == 2000 and file.read(1) == b""
    file.seek(0)
    out = bytearray(600)
    assert file.readinto(out) == 600 and out == DATA[:600]
    assert file.readinto(out) == 400 and out[:400] == DATA[600:]
    assert file.readinto(out) == 0
    with pytest.raises(OSError):
        file.fileno()


def test_it_keeps_nothing_but_what_it_was_given() -> None:
    data = bytearray(b"abc")
    sent = Sent(memoryview(data))
    data[0] = ord("x")
    assert sent.read() == b"xbc"


def test_it_is_read_again_though_it_was_closed_and_lets_go_when_it_is_sent() -> None:
    data = bytearray(b"abc")
    with Sent(memoryview(data)) as sent:
        assert sent.read() == b"abc"
        sent.close()
        assert sent.seek(0) == 0 and sent.read() == b"abc"
    data.append(0)  # which is refused while anybody looks at it


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES, BLOCK_BYTES + 1])
def test_blocks_are_all_of_it_as_often_as_it_is_sent(size: int) -> None:
    data = random.Random(size).randbytes(size)
    blocks = SentBlocks(memoryview(data))

    async def sent() -> bytes:
        return b"".join([bytes(block) async for block in blocks])

    assert asyncio.run(sent()) == asyncio.run(sent()) == data
