"""Which backend is used, and what the person is told."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from arzstream.errors import ArzError
from arzstream.kernels import api

SHOW = "from arzstream.kernels import api; print(api.backend())"


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_the_environment_picks_the_backend() -> None:
    assert run(SHOW, ARZ_KERNELS="numpy").stdout == "numpy\n"
    expected = "native\n" if api.native_error() is None else "numpy\n"
    assert run(SHOW, ARZ_KERNELS="auto").stdout == expected
    assert run(SHOW, ARZ_KERNELS="").stdout == expected


def test_native_that_is_missing_is_an_error_only_where_it_is_demanded() -> None:
    hide = "import sys; sys.modules['arzstream.kernels._native'] = None; "
    assert run(hide + SHOW, ARZ_KERNELS="auto").stdout == "numpy\n"
    demanded = run(hide + SHOW, ARZ_KERNELS="native")
    assert demanded.returncode == 1
    assert "the native kernels are wanted (ARZ_KERNELS=native) but" in demanded.stderr
    why = run(hide + "from arzstream.kernels import api; print(api.native_error())")
    assert why.stdout.strip() not in ("", "None")


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(ArzError, match=r"ARZ_KERNELS=fast .*; set another"):
        api.set_backend("fast")


def test_sizes_that_do_not_fit_are_refused() -> None:
    data = np.zeros(10, np.uint8)
    with pytest.raises(ValueError):
        api.split_planes(memoryview(data), 4)
    with pytest.raises(ValueError):
        api.merge_planes(data, 2, memoryview(bytearray(8)))
    one = np.ones(1, np.uint8)
    with pytest.raises(ValueError):
        api.float_fast_encode(data[:3], (8, 7), 10, 32, (one, one[:0], np.array([64, 64], np.uint8)), 1)
    with pytest.raises(ValueError):
        api.rans_decode(data, np.zeros(2, np.uint32), 64, one, np.ones(1, np.uint16), data)
