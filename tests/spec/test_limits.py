"""No vector makes a decoder take much memory or time, and the NumPy kernels judge them as the native ones do."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from oracle import ROOT

MEMORY = 3 << 29  # bytes of address space, the interpreter and its libraries included

BY_THE_PACKAGE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
sys.path.insert(0, "tests/spec")
from oracle import ABOUT, VECTORS
from arzstream.archive.verify import verify
from arzstream.errors import CorruptError, UnsupportedError
from arzstream.kernels import api
from arzstream.limits import Limits
assert api.backend() == "{backend}", api.backend()
for name, about in ABOUT.items():
    wanted = "good" if about.get("state") == "sealed" else about.get("report", "corrupt")
    try:
        found = "good" if verify(VECTORS / name, deep=True, limits=Limits(expansion=about.get("expansion"))) else ""
    except UnsupportedError:
        found = "unsupported"
    except CorruptError:
        found = wanted if wanted in ("not sealed", "not an archive") else "corrupt"
    assert found == wanted, f"{{name}}: {{found}}, not {{wanted}}"
"""

BY_THE_REFERENCE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
sys.path.insert(0, "tests/spec")
from oracle import ABOUT, VECTORS, reference
for name in ABOUT:
    try:
        reference.decode((VECTORS / name).read_bytes())
    except reference.ArchiveError:
        pass
"""


def run(script: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, cwd=ROOT, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("backend", ["native", "numpy"])
def test_package_judges_all_vectors_in_little_memory(backend: str) -> None:
    from arzstream.kernels import api

    if backend == "native" and api.backend() != "native":
        pytest.skip("impossible here: the native kernels were not built")
    run(BY_THE_PACKAGE.format(memory=MEMORY, backend=backend), ARZ_KERNELS=backend)


def test_reference_judges_all_vectors_in_little_memory() -> None:
    run(BY_THE_REFERENCE.format(memory=MEMORY))
