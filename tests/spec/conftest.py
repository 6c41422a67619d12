"""Let the tests here import ``oracle``, which lies beside them."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from arzstream.kernels import api

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def usual_backend() -> Iterator[None]:
    """Undo whatever backend a test picks."""
    yield
    api.set_backend("auto")
