from __future__ import annotations

from collections.abc import Iterator

import pytest

from arzstream.kernels import api


@pytest.fixture(autouse=True)
def usual_backend() -> Iterator[None]:
    """Undo whatever backend a test picks."""
    yield
    api.set_backend("auto")
