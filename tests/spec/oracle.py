"""The reference decoder, loaded from spec/, and what vectors.json says."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

ROOT = Path(__file__).resolve().parents[2]
VECTORS = ROOT / "spec" / "vectors"
ABOUT: dict[str, dict[str, Any]] = json.loads((VECTORS / "vectors.json").read_text())


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("reference_decoder", ROOT / "spec" / "reference_decoder.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


reference = _load()


def reported(report: str) -> list[str]:
    """Names of the vectors of which this is to be reported."""
    return [name for name, about in ABOUT.items() if about.get("report") == report]


def good() -> list[str]:
    return [name for name in ABOUT if name.startswith("good-")]


def described_file(path: bytes, kind: int, mode: int, mtime: int, content: bytes, sha256: bytes) -> dict[str, Any]:
    """A file in the words of vectors.json. ``content`` of a link is its target."""
    return {
        "path": quote_from_bytes(path),
        "kind": ("file", "link", "directory")[kind],
        "mode": mode,
        "mtime": mtime,
        "size": len(content) if kind == 0 else 0,
        "sha256": sha256.hex(),
        **({"target": quote_from_bytes(content)} if kind == 1 else {}),
    }
