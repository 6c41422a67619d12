"""The kernels of differences to references: in bounds, strict about their arguments, exact at the ends of their ranges.

That every path gives the reference's bytes is shown with the codec, in tests/codec/test_delta_ctx.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from arzstream.errors import CorruptError
from arzstream.kernels import api, delta

PATHS = [*api.cpu_features(), "numpy"]
NONE = np.empty(0, np.uint8)


@pytest.mark.parametrize("path", api.cpu_features())
def test_nothing_outside_of_the_buffers_is_touched(path: str) -> None:
    script = Path(__file__).with_name("guarded_delta.py")
    done = subprocess.run([sys.executable, str(script), path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", PATHS)
def test_fields_are_sizes_in_units_of_the_parents_last_place(path: str) -> None:
    api.set_backend(path)
    sizes = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 1000, 32767], "<u2")
    parent = np.full(len(sizes), 0x3F80, "<u2")  # 1.0 in bf16: exponent 127
    for data in (parent + sizes, parent - sizes):
        fields = delta.delta_fields(data.view(np.uint8), parent.view(np.uint8), delta.Elements(2))
        lengths = [int(x).bit_length() for x in sizes]
        expected = [
            0 if not n else (1 + n) << 2 | (int(x) << 2 >> (n - 1)) & 3 for x, n in zip(sizes, lengths, strict=True)
        ]
        assert fields.tolist() == expected
    up = delta.delta_fields((parent + np.uint16(1)).view(np.uint8), parent.view(np.uint8), delta.Elements(2, 8, 7))
    assert set(up.tolist()) == {(127 + 1) << 2}


@pytest.mark.parametrize("path", PATHS)
def test_symbols_count_from_zero_away(path: str) -> None:
    """Direction, octave and two bits, of the change of a number and of its negative."""
    api.set_backend(path)
    sizes = np.array([0, 1, 2, 3, 4, 7, 8, 9, 10, 15, 16, 31, 32, 200], "<u2")
    tokens = [0, 1, 2, 3, 4, 7, 8, 8, 9, 11, 12, 15, 16, 26]
    cells = delta.Cells(16, NONE, NONE, 508, 127, 1)
    for sign in (0, 0x8000):
        parent = np.full(len(sizes), 0x3F80 | sign, "<u2")
        for lower, data in enumerate((parent + sizes, parent - sizes)):
            symbols, found, counts = delta.delta_count(
                data.view(np.uint8), parent.view(np.uint8), delta.Elements(2, 8, 7), 2, cells
            )
            assert symbols.tolist() == [2 * t + lower if t else 1 for t in tokens]
            assert not found.any() and counts.sum() == len(sizes)


@pytest.mark.parametrize("path", PATHS)
def test_classes_and_symbols_that_do_not_exist_are_refused(path: str) -> None:
    api.set_backend(path)
    cells = delta.Cells(16, NONE, NONE, 0, 0, 1)
    freqs = np.zeros((1, 256), np.uint16)
    freqs[0, 1:3] = 1, 4095
    groups, parent = np.zeros(64, np.uint8), np.zeros(8, np.uint8)

    def decode(groups: np.ndarray, freqs: np.ndarray) -> None:
        one = np.zeros(1, np.uint32)
        settings = (NONE, delta.Elements(1, 4, 3), 2, 10, cells, 0)
        delta.delta_decode(NONE, parent, *settings, groups, NONE, freqs, (0, 0), one, one, np.empty(8, np.uint8))

    with pytest.raises(CorruptError, match="class"):
        decode(groups + 1, freqs)
    for symbol in (0, delta.symbol_limit(1, 2)):
        bad = np.roll(freqs, symbol - 1)
        with pytest.raises(CorruptError, match="symbol"):
            decode(groups, bad)
