"""How little is read from a large archive: ``python -m tools.measure.laziness``.

Two counts: ranges asked of a remote store (an fsspec file system that keeps a list), and what the kernel says this
process has read from a local file (``/proc/self/io``, Linux).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import fsspec

import arzstream
from arzstream.testing import process
from arzstream.testing.tensors import model as model_tensors
from arzstream.testing.tensors import safetensors_bytes
from tools.measure.checks import Checks

ROWS = slice(20, 30)
NEAR = 4096
"""Bytes that headers and padding of the chunks may add."""


class Counted(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """``counted:///path``: a local file as a remote object; every range asked for is in ``ranges``."""

    protocol = "counted"
    cachable = False
    ranges: ClassVar[list[tuple[int, int]]] = []

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": Path(path).stat().st_size, "type": "file"}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        size = Path(path).stat().st_size
        first, last = start or 0, size if end is None else end
        self.ranges.append((first, last))
        with open(path, "rb") as file:
            file.seek(first)
            return file.read(last - first)


def spent(since: int = 0) -> tuple[int, int]:
    """Reads and bytes since entry ``since`` of the list."""
    ranges = Counted.ranges[since:]
    return len(ranges), sum(last - first for first, last in ranges)


def kernel_read() -> int:
    """Bytes that this process has read so far, from whatever file."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    raise OSError("/proc/self/io has no rchar")


def build(base: Path, layers: int, width: int) -> Path:
    """A model in one file and its archive."""
    source = base / "model.safetensors"
    source.write_bytes(safetensors_bytes(model_tensors(layers=layers, width=width, vocabulary=32_000)))
    done = process.arzstream("pack", source, "-o", base / "model.arz", "--quiet", timeout=600)
    if done.returncode:
        raise SystemExit(done.stderr)
    return base / "model.arz"


def stored(archive: Path, name: str) -> tuple[int, list[int]]:
    """Rows of a tensor, and the stored lengths of its chunks in order, as ``arzstream ls --chunks`` says."""
    listing = json.loads(process.arzstream("ls", archive, "--chunks", "--json").stdout)
    for tensor in listing["tensors"]:
        if tensor["name"] == name:
            return tensor["shape"][0], [chunk["stored"] for chunk in tensor["chunks"]]
    raise LookupError(name)


def remote(archive: Path, name: str, check: Checks) -> None:
    """Reads and bytes over a store that has only ranges."""
    size = archive.stat().st_size
    rows, chunks = stored(archive, name)
    with arzstream.open(f"counted://{archive}") as opened:
        opened.keys(), opened.layers(), opened.files(), opened.metadata()
        reads, count = spent()
        index = count
        check(reads <= 2, f"opening and listing: {reads} reads, {count:,} of {size:,} bytes ({count / size:.3%})")
        mark = len(Counted.ranges)
        opened.get_tensor(name)
        reads, count = spent(mark)
        most = sum(chunks) + NEAR * len(chunks) + index
        check(
            count <= most,
            f"one tensor of {rows} rows: {reads} reads, {count:,} bytes; its {len(chunks)} chunks hold {sum(chunks):,}",
        )
    with arzstream.open(f"counted://{archive}") as opened:
        mark = len(Counted.ranges)
        opened.get_slice(name)[ROWS]
        reads, count = spent(mark)
        most = max(chunks) + NEAR + index
        check(count <= most, f"ten rows of it: {reads} reads, {count:,} bytes; the largest chunk holds {max(chunks):,}")


def local(archive: Path, name: str, check: Checks) -> None:
    """Bytes by the kernel's count, including everything Python itself reads meanwhile."""
    size, (_, chunks) = archive.stat().st_size, stored(archive, name)
    with arzstream.open(str(archive)) as warm:
        warm.get_slice(name)[0:1]
    before = kernel_read()
    with arzstream.open(str(archive)) as opened:
        opened.get_slice(name)[ROWS]
    count = kernel_read() - before
    most = max(chunks) + NEAR + 2 * (1 << 20)
    check(count <= most, f"open a local file and read ten rows: {count:,} of {size:,} bytes by the kernel's count")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=1024)
    args = parser.parse_args()
    fsspec.register_implementation("counted", Counted, clobber=True)
    check = Checks()
    with tempfile.TemporaryDirectory(prefix="arz-lazy-") as base:
        archive = build(Path(base), args.layers, args.width)
        name = "model.layers.1.mlp.up_proj.weight"
        print(f"archive of {archive.stat().st_size / 1e6:.0f} MB, tensor {name}")
        remote(archive, name, check)
        local(archive, name, check)
    return check.status()


if __name__ == "__main__":
    sys.exit(main())
