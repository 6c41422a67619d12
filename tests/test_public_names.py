"""The names that other people's code relies on. A change here is a change for every user: say it in CHANGELOG.md."""

from __future__ import annotations

import subprocess
import sys

import arzstream

PUBLIC = [
    "Archive",
    "ArzError",
    "CorruptError",
    "LimitError",
    "Limits",
    "MissingParentError",
    "PackSummary",
    "RecoverReport",
    "SourceChangedError",
    "StorageError",
    "UnsupportedError",
    "VerifyReport",
    "__version__",
    "open",
    "pack",
    "recover",
    "safe_open",
    "torch",
    "transformers",
    "unpack",
    "verify",
]


def test_the_public_names_are_these() -> None:
    assert sorted(arzstream.__all__) == PUBLIC


def test_every_public_name_is_there_and_listed() -> None:
    for name in PUBLIC:
        assert getattr(arzstream, name) is not None, name
    assert set(PUBLIC) <= set(dir(arzstream))


def test_importing_the_package_imports_no_heavy_module() -> None:
    heavy = {"torch", "numpy", "safetensors", "transformers", "fsspec", "rich"}
    script = f"import sys, arzstream; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
