"""The kernels of differences to references: in bounds, strict about their arguments, exact at the ends of their ranges.

That every path gives the reference's bytes is shown with the codec, in tests/codec/test_delta_ctx.py.
"""

from __future__ import annotations

import dataclasses
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
def test_fields_are_exponents_of_changes(path: str) -> None:
    """Of the numbers, not of their ordered integers; two bits of mantissa; nothing of what is no number."""
    api.set_backend(path)
    rng = np.random.default_rng(0)
    for dtype, kind in (("<f2", delta.Elements(2, 5, 10)), ("<f4", delta.Elements(4, 8, 23))):
        size = np.dtype(dtype).itemsize
        data, parent = (rng.integers(0, 256, 4099 * size, np.uint8) for _ in range(2))
        with np.errstate(all="ignore"):
            change = np.abs(data.view(dtype).astype("<f4") - parent.view(dtype).astype("<f4"))
        finite = np.isfinite(data.view(dtype)) & np.isfinite(parent.view(dtype)) & np.isfinite(change)
        fields = delta.delta_fields(data, parent, kind)
        assert np.array_equal(fields[finite], change.view("<u4")[finite] >> 21)
        assert fields.max() < 255 << 2
    sizes = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 1000, 32767], "<u2")
    parent = np.full(len(sizes), 20000, "<u2")
    fields = delta.delta_fields((parent + sizes).view(np.uint8), parent.view(np.uint8), delta.Elements(2))
    assert np.array_equal(fields, sizes.astype("<f4").view("<u4") >> 21)


@pytest.mark.parametrize("path", PATHS)
def test_symbols_count_along_the_way(path: str) -> None:
    """Direction, octave and two bits of the change: away from zero without a change before, else where that led."""
    api.set_backend(path)
    sizes = np.array([0, 1, 2, 3, 4, 7, 8, 9, 10, 15, 16, 31, 32, 200], "<u2")
    tokens = [0, 1, 2, 3, 4, 7, 8, 8, 9, 11, 12, 15, 16, 26]
    rule, kind = delta.Rule(16, NONE, NONE, 508, 3), delta.Elements(2, 8, 7)
    for sign in (0, 0x8000):
        parent = np.full(len(sizes), 0x3F80 | sign, "<u2")
        for against, data in enumerate((parent + sizes, parent - sizes)):
            alone = dataclasses.replace(rule, step_base=0)
            symbols, cells = delta.delta_cells(data.view(np.uint8), [parent.view(np.uint8)], kind, 2, alone)
            assert symbols.tolist() == [2 * t + against if t else 1 for t in tokens]
            assert not cells.any()
            for way, before in enumerate((parent - 1, parent + 1)):  # upwards in ordered integers, or down
                known = [parent.view(np.uint8), before.view(np.uint8)]
                symbols, cells = delta.delta_cells(data.view(np.uint8), known, kind, 2, rule)
                assert symbols.tolist() == [2 * t + (against ^ way) if t else 1 for t in tokens]
                assert set(cells.tolist()) == {(4 | way << 3) << 9}


@pytest.mark.parametrize("path", PATHS)
def test_cells_say_what_is_known(path: str) -> None:
    api.set_backend(path)
    parent = (np.array([100, 120, 127, 140], "<u2") << 7 | np.array([0, 0x7F, 0x20, 0x55], "<u2")).astype("<u2")
    rows, cols = np.array([3, 9], np.uint8), np.array([5, 1], np.uint8)
    rule = delta.Rule(2, rows, cols, 500, 1)
    third = (parent - np.array([0, 1, 0, 40], "<u2")).astype("<u2")
    known = [parent.view(np.uint8), parent.view(np.uint8), third.view(np.uint8)]
    _, cells = delta.delta_cells(known[0], known, delta.Elements(2, 8, 7), 2, rule)
    expected = [63, 500 + 3 + 1 - 480, 500 + 9 + 5 - 508, 0]
    assert (cells & 63).tolist() == expected
    assert (cells >> 6 & 7).tolist() == [0, 7, 2, 5]
    assert not (cells >> 9 & 15).any()
    assert (cells >> 13).tolist() == [0, 1, 0, 7]


@pytest.mark.parametrize("path", PATHS)
def test_symbols_without_a_frequency_are_exceptions(path: str) -> None:
    api.set_backend(path)
    freqs = np.zeros((2, 256), np.uint16)
    freqs[0, 3:5], freqs[1, 8:10] = (4000, 96), (1, 4095)
    cells = np.array([0, 1, 0, 1, 2], np.uint16)
    class_of, symbols = np.array([0, 1, 1], np.uint8), np.array([4, 9, 9, 3, 8], np.uint8)
    found = delta.delta_classes(cells, symbols, class_of, freqs, 2)
    assert found is not None and found[0].tolist() == [0, 1, 0, 1, 1] and found[1].tolist() == [2, 3]
    assert symbols.tolist() == [4, 9, 3, 9, 8]
    assert delta.delta_classes(cells, np.full(5, 7, np.uint8), class_of, freqs, 4) is None


@pytest.mark.parametrize("path", PATHS)
def test_slots_are_the_same_on_every_path_and_tables_must_sum_up(path: str) -> None:
    api.set_backend(path)
    freqs = np.zeros((2, 256), np.uint16)
    freqs[0, [1, 7, 255]], freqs[1, 2:4] = (1, 4000, 95), (4095, 1)
    entries, halved = delta.rans_tables(freqs)
    slots = entries.reshape(2, 4096)
    assert not halved
    assert np.array_equal(slots[0] >> 24, np.repeat([1, 7, 255], [1, 4000, 95]))
    assert np.array_equal(slots[0] & 0xFFF, np.repeat([1, 4000, 95], [1, 4000, 95]))
    assert slots[1, :4095].tolist() == [4095 | k << 12 | 2 << 24 for k in range(4095)]
    for bad in (freqs - (freqs == 95), np.zeros_like(freqs)):
        with pytest.raises(CorruptError, match="sum"):
            delta.rans_tables(bad)


@pytest.mark.parametrize("path", PATHS)
def test_even_tables_have_an_entry_for_two_slots(path: str) -> None:
    api.set_backend(path)
    freqs = np.zeros((2, 256), np.uint16)
    freqs[0, [1, 7, 255]], freqs[1, 2:4] = (2, 4000, 94), (4094, 2)
    entries, halved = delta.rans_tables(freqs)
    assert halved and len(entries) == 4096
    assert entries[:2].tolist() == [2 | 1 << 24, 4000 | 7 << 24]
    assert entries[2048:4095].tolist() == [4094 | 2 * k << 12 | 2 << 24 for k in range(2047)]
