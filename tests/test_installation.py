"""What the scripts installed is what the tests are about."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import arzstream
from arzstream.kernels import api


def test_the_native_kernels_were_built() -> None:
    script = "from arzstream.kernels import api; print(api.backend(), api.native_error() or '')"
    environment = {**os.environ, "ARZ_KERNELS": "auto"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["native"], "a C++17 compiler is needed to run the tests"


def test_the_backend_that_was_asked_for_is_in_use() -> None:
    asked = os.environ.get("ARZ_KERNELS", "auto")
    assert api.backend() == ("native" if asked == "auto" else asked)


def test_the_package_under_test_is_this_repository(repository: Path) -> None:
    assert Path(arzstream.__file__).resolve() == repository / "arzstream" / "__init__.py"


def test_the_version_is_stated_once() -> None:
    assert arzstream.__version__ == importlib.metadata.version("arzstream")
