"""Parts of an upload: short enough to be held, long enough that 10,000 of them are an archive."""

from __future__ import annotations

import pytest

from arzstream.store.publishing import MOST_PART_BYTES, PART_BYTES, QUANTUM_BYTES, part_bytes, steady_bytes

GIB, TIB = 1 << 30, 1 << 40
MOST_PARTS = 10_000


@pytest.mark.parametrize("expected", [1, GIB, 70 * GIB, 71 * GIB, 492 * GIB, 5 * TIB])
def test_what_is_expected_fits_into_parts_of_one_length_with_some_left(expected: int) -> None:
    steady = steady_bytes(expected)
    lengths = [part_bytes(number, steady) for number in range(MOST_PARTS)]
    steadily = [length for length in lengths if length == steady]
    assert lengths[: len(steadily)] == steadily and expected <= sum(steadily)
    assert sum(lengths) >= min(2 * expected, 5 * TIB) and sum(lengths) >= TIB
    assert steady == PART_BYTES or steady < expected / 9000 + QUANTUM_BYTES
    assert all(length % QUANTUM_BYTES == 0 and length <= MOST_PART_BYTES for length in lengths)


def test_parts_of_8_mib_hold_70_gib() -> None:
    assert steady_bytes(70 * GIB) == PART_BYTES < steady_bytes(71 * GIB) == PART_BYTES + QUANTUM_BYTES


def test_what_nobody_knows_may_have_terabytes() -> None:
    lengths = [part_bytes(number) for number in range(MOST_PARTS)]
    assert lengths[:1000] == [PART_BYTES] * 1000 and lengths == sorted(lengths)
    assert sum(lengths) > 7 * TIB
    assert all(length % QUANTUM_BYTES == 0 and length <= MOST_PART_BYTES for length in lengths)
