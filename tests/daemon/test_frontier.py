"""The frontier never passes what a forward writer has written, and reaches the end when it is done."""

from __future__ import annotations

import os

import pytest

from arzstream.daemon.frontier import PAGE, Frontier

SIZE = 3 << 20


@pytest.fixture
def file(tmp_path):
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def _look(frontier, fd):
    return frontier.update(os.fstat(fd))


def test_an_appender_is_believed_up_to_its_last_byte(file):
    frontier = Frontier(file)
    assert _look(frontier, file) == 0
    for written in range(0, SIZE, 100_003):
        os.pwrite(file, bytes(100_003), written)  # zeros are as good as anything when a file grows
        assert _look(frontier, file) == written + 100_003


def test_a_hole_ends_what_is_believed(file):
    os.ftruncate(file, SIZE)
    frontier = Frontier(file)
    assert _look(frontier, file) == 0
    data = os.urandom(SIZE)
    for end in (10_000, 1_000_000, 1_000_001, 2_500_000):
        os.pwrite(file, data[:end], 0)
        assert end - 3 * PAGE <= _look(frontier, file) <= end
    os.pwrite(file, data, 0)
    assert _look(frontier, file) == SIZE


def test_data_beyond_a_hole_is_not_believed(file):
    os.ftruncate(file, SIZE)
    frontier = Frontier(file)
    os.pwrite(file, os.urandom(1 << 20), 2 << 20)
    assert _look(frontier, file) == 0
    os.pwrite(file, os.urandom(1 << 20), 0)
    assert 0 < _look(frontier, file) <= 1 << 20
    os.pwrite(file, os.urandom(1 << 20), 1 << 20)
    assert _look(frontier, file) == SIZE


@pytest.mark.parametrize("holes", [True, False])
def test_space_that_was_allocated_in_advance_is_not_believed(file, monkeypatch, holes):
    if not holes:
        monkeypatch.delattr(os, "SEEK_HOLE")
    os.posix_fallocate(file, 0, SIZE)
    frontier = Frontier(file)
    assert _look(frontier, file) <= PAGE
    data = os.urandom(SIZE)
    for end in (10_000, 700_001, 1_500_000, 2_999_999):
        os.pwrite(file, data[:end], 0)
        got = _look(frontier, file)
        assert got <= end and got >= end - SIZE // 32
    os.pwrite(file, data, 0)
    assert _look(frontier, file) == SIZE


def test_zeros_in_the_middle_do_not_hold_up_what_follows(file, monkeypatch):
    monkeypatch.delattr(os, "SEEK_HOLE")
    os.posix_fallocate(file, 0, SIZE)
    frontier = Frontier(file)
    os.pwrite(file, os.urandom(1 << 20), 0)
    os.pwrite(file, bytes(1 << 20), 1 << 20)  # a tensor of zeros
    assert _look(frontier, file) <= 1 << 20
    os.pwrite(file, os.urandom(1 << 19), 2 << 20)
    assert _look(frontier, file) > 2 << 20


def test_a_file_that_is_cut_is_believed_less(file):
    os.pwrite(file, os.urandom(SIZE), 0)
    frontier = Frontier(file)
    assert _look(frontier, file) == SIZE
    os.ftruncate(file, 1000)
    assert _look(frontier, file) == 1000


def test_where_the_system_does_not_tell_holes_zeros_do(file, monkeypatch):
    monkeypatch.delattr(os, "SEEK_HOLE")
    os.ftruncate(file, SIZE)
    frontier = Frontier(file)
    assert _look(frontier, file) <= PAGE
    os.pwrite(file, os.urandom(1_000_000), 0)
    assert 0 < _look(frontier, file) <= 1_000_000


def test_empty_and_tiny_files(file):
    frontier = Frontier(file)
    assert _look(frontier, file) == 0
    os.pwrite(file, b"{}", 0)
    assert _look(frontier, file) == 2
    assert Frontier(file).update(os.fstat(file)) == 2
