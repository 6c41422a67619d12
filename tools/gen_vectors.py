"""Make the test vectors of ARZ-1 in spec/vectors.

    python tools/gen_vectors.py            write all that an assembler makes, and vectors.json
    python tools/gen_vectors.py --written  and make those anew that the package itself writes
    python tools/gen_vectors.py --check    write nothing; exit 1 if a file differs from what would be written

``good-*`` have to be read, ``bad-*`` and ``unsupported-*`` to be refused as vectors.json says; spec/vectors/README.md
explains its fields. The bytes depend on nothing but these scripts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import vector_bad
import vector_context
import vector_float_fast
import vector_good
import vector_optim  # noqa: F401  (registers its vectors)
import vector_quant  # noqa: F401  (registers its vectors)
import vector_states
import vector_written

VECTORS = Path(__file__).resolve().parent.parent / "spec" / "vectors"


def assembled() -> tuple[dict[str, bytes], dict[str, Any]]:
    """All vectors but the written ones: bytes and description by file name."""
    files, about = {}, {}
    for name, (sentence, make) in vector_good.VECTORS.items():
        files[f"{name}.arz"], expected = make()
        if name.startswith("unsupported-"):
            expected = {"report": "unsupported", "opens": bool(expected), **expected}
        else:
            expected = {"state": "growing" if "valid_length" in expected else "sealed", **expected}
        about[f"{name}.arz"] = {"about": sentence, **expected}
    for name, (sentence, report, make_bad) in vector_bad.VECTORS.items():
        files[f"{name}.arz"] = make_bad()
        about[f"{name}.arz"] = {"about": sentence, "report": report}
        if name.startswith("bad-inherited-"):
            about[f"{name}.arz"]["parents"] = ["good-inherited-parent.arz"]
    for name in ("bad-expansion", "bad-unit-member-broadcast"):
        about[f"{name}.arz"]["expansion"] = 64
    for name in ("critical-frame", "critical-copyable", "metadata-codec"):
        about[f"unsupported-{name}.arz"]["seen"] = "scan"
    return files, about


def written(folder: Path, again: bool) -> dict[str, Any]:
    """Descriptions of the vectors that the package writes; makes those that are missing, or all."""
    known = json.loads((folder / "vectors.json").read_text()) if (folder / "vectors.json").exists() else {}
    about = {}
    for name, (sentence, _, _) in vector_written.VECTORS.items():
        file = f"{name}.arz"
        if again or file not in known or not (folder / file).exists():
            with tempfile.TemporaryDirectory() as scratch:
                expected = vector_written.write(name, Path(scratch) / "checkpoint", folder / file)
            (folder / file).chmod(0o644)
        else:
            expected = {key: known[file][key] for key in ("tensors", "files", "parents") if key in known[file]}
        about[file] = {"about": sentence, "state": "sealed", **expected}
    return about


def as_json(about: dict[str, Any]) -> str:
    """One line a key, so that a change is a small difference."""
    entries = []
    for name in sorted(about):
        fields = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in about[name].items())
        entries.append(f" {json.dumps(name)}: {{\n{fields}\n }}")
    return "{\n" + ",\n".join(entries) + "\n}\n"


def differences(folder: Path, files: dict[str, bytes], text: str) -> list[str]:
    wanted = {**files, "vectors.json": text.encode()}
    kept = {f"{name}.arz" for name in vector_written.VECTORS}
    present = {path.name for path in folder.iterdir()} - {"README.md"}
    found = [f"{name}: is not made by the generator" for name in sorted(present - set(wanted) - kept)]
    found += [f"{name}: is missing" for name in sorted((set(wanted) | kept) - present)]
    return found + [f"{n}: differs" for n in sorted(set(wanted) & present) if (folder / n).read_bytes() != wanted[n]]


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the test vectors of ARZ-1.")
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    parser.add_argument("--written", action="store_true", help="make the package's own vectors anew")
    options = parser.parse_args()
    files, about = assembled()
    if options.check:
        known = json.loads((VECTORS / "vectors.json").read_text())
        about |= {f"{name}.arz": known.get(f"{name}.arz") for name in vector_written.VECTORS}
        found = differences(VECTORS, files, as_json(about))
        print("\n".join(found) or f"{len(about)} vectors are as they should be")
        return 1 if found else 0
    VECTORS.mkdir(exist_ok=True)
    for path in VECTORS.glob("*.arz"):
        if path.name not in files and path.stem not in vector_written.VECTORS:
            path.unlink()
    for name, data in files.items():
        (VECTORS / name).write_bytes(data)
    about |= written(VECTORS, options.written)
    (VECTORS / "vectors.json").write_text(as_json(about))
    total = sum(path.stat().st_size for path in VECTORS.glob("*.arz"))
    print(f"{len(about)} vectors, {total} bytes, in {VECTORS}")
    return 0


__all__ = ["assembled", "vector_context", "vector_float_fast", "vector_states"]

if __name__ == "__main__":
    sys.exit(main())
