"""tools/check_imports.py reports what it should and nothing else, and the package passes it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
Check = Callable[[dict[str, str]], list[str]]


@pytest.fixture(scope="module")
def checker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_imports", REPOSITORY / "tools" / "check_imports.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def check(checker: ModuleType, tmp_path: Path) -> Check:
    """Lay out the given files below a folder and return the lines that the checker prints about them."""

    def lay_out(files: dict[str, str]) -> list[str]:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return list(checker.check(tmp_path))

    return lay_out


def test_this_repository_passes(checker: ModuleType) -> None:
    assert checker.check(REPOSITORY) == []


@pytest.mark.parametrize(
    ("path", "text", "says"),
    [
        ("kernels/api.py", "import arzstream.codec", "kernels may not import arzstream.codec"),
        ("codec/best.py", "from arzstream.container import frames", "codec may not import"),
        ("container/scan.py", "from arzstream.store.ranges import LocalReader", "container may not import"),
        ("container/scan.py", "from ..store import ranges", "container may not import"),
        ("container/scan.py", "from .. import formats", "container may not import arzstream.formats"),
        ("container/scan.py", "def f():\n    import arzstream.store", "container may not import"),
        ("container/scan.py", "import importlib\nimportlib.import_module('arzstream.store')", "container may not"),
        ("container/scan.py", "from arzstream import pack", "container may not import arzstream"),
        ("formats/zip.py", "import arzstream.container", "formats may not import"),
        ("formats/zip.py", "import arzstream.store", "formats may not import"),
        ("store/local.py", "import arzstream.container", "store may not import"),
        ("store/local.py", "import arzstream.formats", "store may not import"),
        ("archive/pack.py", "import arzstream.daemon", "archive may not import"),
        ("archive/pack.py", "import arzstream.testing", "archive may not import"),
        ("daemon/watch.py", "import arzstream.cli", "daemon may not import"),
        ("daemon/watch.py", "import arzstream.integrations", "daemon may not import"),
        ("integrations/vllm.py", "import arzstream.daemon", "integrations may not import"),
        ("cli/pack.py", "import arzstream.testing", "cli may not import"),
        ("errors.py", "import arzstream.limits", "errors may not import"),
        (
            "archive/pack.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from arzstream.cli import main",
            "archive may not import",
        ),
        ("archive/lazy.py", "import torch", "inside the function"),
        ("archive/lazy.py", "from torch import nn", "inside the function"),
        ("__init__.py", "import torch", "inside the function"),
        ("archive/lazy.py", "try:\n    import torch\nexcept ImportError:\n    pass", "inside the function"),
        ("archive/lazy.py", "class A:\n    import torch", "inside the function"),
        ("formats/zip.py", "import pickle", "runs the code"),
        ("formats/zip.py", "def f():\n    from pickle import Unpickler", "runs the code"),
        ("archive/utils.py", "", "no module is named utils"),
        ("magic/spell.py", "", "not in the table"),
    ],
)
def test_a_violation_is_reported_with_its_place(check: Check, path: str, text: str, says: str) -> None:
    problems = check({f"arzstream/{name}/__init__.py": "" for name in ("container", "formats", "store")})
    assert problems == []
    problems = check({f"arzstream/{path}": text})
    assert len(problems) == 1
    assert problems[0].startswith(f"arzstream/{path}:")
    assert says in problems[0]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("codec/best.py", "from arzstream.errors import CorruptError\nfrom ..kernels import api"),
        ("container/scan.py", "from .frames import Frame\nfrom arzstream.container.records import Unit"),
        ("archive/pack.py", "import arzstream.store.local, arzstream.container, arzstream.formats.detect"),
        ("cli/pack.py", "from arzstream import __version__\nimport arzstream.daemon"),
        ("archive/lazy.py", "def f():\n    import torch"),
        ("archive/lazy.py", "import typing\nif typing.TYPE_CHECKING:\n    import torch"),
        ("torch.py", "import torch"),
        ("testing/writers.py", "import torch\nimport arzstream.daemon"),
        ("integrations/transformers.py", "import torch\nimport transformers"),
        ("formats/zip.py", "import pickletools"),
        ("__main__.py", "from arzstream.cli import main"),
    ],
)
def test_what_is_allowed_is_not_reported(check: Check, path: str, text: str) -> None:
    assert check({f"arzstream/{path}": text}) == []


@pytest.mark.parametrize("text", ["import arzstream", "def f():\n    from arzstream.codec import best"])
def test_the_reference_decoder_shares_no_code(check: Check, text: str) -> None:
    assert "reference decoder" in check({"spec/reference_decoder.py": text})[0]


def test_the_command_fails_on_a_violation(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "tools" / "check_imports.py"), str(tmp_path)]
    (tmp_path / "arzstream").mkdir()
    assert subprocess.run(command, check=False).returncode == 0
    (tmp_path / "arzstream" / "errors.py").write_text("import pickle\n")
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.startswith("arzstream/errors.py:1: pickle")
