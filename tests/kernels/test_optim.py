"""The kernels of optimiser state: in bounds, strict about what symbols and classes there are.

That every path gives the reference's bytes is shown with the codec, in tests/codec/test_optim_ctx.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from arzstream.errors import CorruptError
from arzstream.kernels import api, optim

PATHS = [*api.cpu_features(), "numpy"]
NONE = np.empty(0, np.uint8)


@pytest.mark.parametrize("path", api.cpu_features())
def test_nothing_outside_of_the_buffers_is_touched(path: str) -> None:
    script = Path(__file__).with_name("guarded_optim.py")
    done = subprocess.run([sys.executable, str(script), path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", PATHS)
def test_numbers_that_machines_disagree_about_are_zero(path: str) -> None:
    """Subnormal, infinite and no numbers at all; a result that is too large leaves the parent as it is."""
    api.set_backend(path)
    parent = np.array([1, 0x7F800000, 0x7FC00000, 0x80000001, 0x3F800000, 0x7F000000], "<u4")
    found = optim.optim_predict(parent.view(np.uint8), (2.0, 0.0, 0.0), NONE, NONE).view("<u4")
    assert found.tolist() == [0, 0, 0, 0, 0x40000000, 0x7F000000]
    tiny = np.array([0x00800000, 0x80800000], "<u4")
    assert not optim.optim_predict(tiny.view(np.uint8), (0.5, 0.0, 0.0), NONE, NONE).any()
    one, nothing = np.full(3, 0x3F800000, "<u4"), np.array([0, 0xBF800000, 0x7F800000], "<u4")
    given = (one.view(np.uint8), (1.0, 1.0, 0.5), one.view(np.uint8), nothing.view(np.uint8))
    assert optim.optim_predict(*given).view("<f4").tolist() == [3.0, 3.0, 3.0]


@pytest.mark.parametrize("path", PATHS)
def test_symbols_are_tokens_of_the_part_above_the_raw_bits(path: str) -> None:
    api.set_backend(path)
    one = np.full(7, 0x3F800000, np.int64)
    differences = np.array([0, 15, 16, -1, -16, 16 * 9, -16 * 200])
    data = (one + differences).astype("<u4").view(np.uint8)
    to = optim.Expectation(one.astype("<u4").view(np.uint8), 7, base=508, raw=4)
    symbols, cells, counts = optim.optim_count(data, to)
    assert symbols.tolist() == [1, 1, 2, 3, 3, 16, 53] and not cells.any() and counts[0].sum() == 7


@pytest.mark.parametrize("path", PATHS)
def test_classes_and_symbols_that_do_not_exist_are_refused(path: str) -> None:
    api.set_backend(path)
    freqs = np.zeros((1, 256), np.uint16)
    freqs[0, :2] = 1, 4095

    def decode(classes: int, freqs: np.ndarray, scaled: bool) -> None:
        to = optim.Expectation(np.zeros(8, np.uint8), 8, raw=17, scaled=scaled)
        one, model = np.zeros(1, np.uint32), np.full(optim.CELLS, classes, np.uint8)
        optim.optim_decode(NONE, to, 10, model, freqs, (0, 0), one, one, np.empty(8, np.uint8))

    with pytest.raises(CorruptError, match="class"):
        decode(1, freqs, False)
    for symbol, scaled in ((8 * 14, False), (200, False), (8 * 14, True), (128, True), (128 + 8 * 14, True)):
        bad = freqs.copy()
        bad[0, 1], bad[0, symbol] = 4094, 1
        with pytest.raises(CorruptError, match="symbol"):
            decode(0, bad, scaled)
