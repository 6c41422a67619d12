"""What the command line says about bad input, each case with its exit status: ``python -m tools.measure.bad_input``.

Each run must end with the status expected, print exactly one line on standard error that names the file, and no
traceback. Archives that lie are forged: their checksums are right. The hostile ones run with little address space
(``RLIMIT_AS``).
"""

from __future__ import annotations

import dataclasses
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from arzstream.container.layout import FrameType
from arzstream.testing import forge, process, tensors
from tools.measure.checks import Checks

ADDRESS_SPACE = 2 << 30
"""Bytes that a hostile archive's reader may map, its libraries included."""
NO_OVERRIDE = "-dac_override,-dac_read_search"
ZEROS = 256 << 20
UNPRIVILEGED = ["setpriv", "--bounding-set", NO_OVERRIDE, "--inh-caps", NO_OVERRIDE] if os.geteuid() == 0 else []
"""Root may read everything; without these capabilities it may not."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A command, and how it must end. ``words`` are in its message; ``bounded`` limits its address space."""

    name: str
    arguments: Sequence[str | Path]
    status: int
    words: str
    prefix: Sequence[str] = ()
    bounded: bool = False
    gone: Path | None = None
    """What must not be there afterwards."""


def run(case: Case) -> tuple[bool, str]:
    """Whether the case ends as it must, and what it said."""
    prefix = [*case.prefix]
    if case.bounded:
        prefix = ["prlimit", f"--as={ADDRESS_SPACE}", *prefix]
    done = process.arzstream(*case.arguments, prefix=prefix, env={"OMP_NUM_THREADS": "1"})
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    said = lines[0] if lines else ""
    good = done.returncode == case.status and case.words.lower() in done.stderr.lower()
    good = good and len(lines) == (0 if case.status == 0 else 1) and "Traceback" not in done.stderr
    if case.gone is not None and (case.gone.exists() or process.leftovers(case.gone.parent, [])):
        return False, f"{said} — but something was left behind"
    if good:
        return True, said
    return False, f"status {done.returncode} instead of {case.status}: {' / '.join(lines[-3:]) or 'nothing said'}"


# ------------------------------------------------------------------------------------------------------- the archives


def good_archive(folder: Path) -> bytes:
    """A small archive whose largest tensor has several chunks."""
    rng, source = np.random.default_rng(0), folder / "source"
    source.mkdir()
    weights = [
        tensors.Tensor("big.weight", "BF16", (3000, 1024), tensors.gaussian((3000, 1024), "BF16", rng)),
        tensors.Tensor("small.weight", "F32", (64, 64), tensors.gaussian((64, 64), "F32", rng)),
    ]
    (source / "model.safetensors").write_bytes(tensors.safetensors_bytes(weights))
    (source / "config.json").write_text("{}\n")
    with open(source / "zeros.bin", "wb") as file:
        file.truncate(ZEROS)
    done = process.arzstream("pack", source, "-o", folder / "good.arz", "--quiet")
    if done.returncode:
        raise SystemExit(f"packing failed: {done.stderr}")
    return (folder / "good.arz").read_bytes()


def set_entry(row: int, **fields: int) -> Callable[[forge.Table], None]:
    """An edit of one chunk table entry."""

    def edit(table: forge.Table) -> None:
        for name, value in fields.items():
            table[name][row] = value

    return edit


def same_place(table: forge.Table) -> None:
    """Two chunks at one place."""
    table[1] = table[0]


def index_units(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """An edit of every unit in the index."""

    def edit(index: dict[str, Any]) -> None:
        for unit in index["units"]:
            change(unit[1])

    return edit


def enormous(unit: dict[str, Any]) -> None:
    """2^60 elements, as the member says, too."""
    unit["shape"] = unit["grid"] = [1 << 30, 1 << 30]
    unit["members"][0][1] = [1 << 30, 1 << 30]


def overflowing(unit: dict[str, Any]) -> None:
    unit["shape"] = [1 << 62, 1 << 62]


def endless(index: dict[str, Any]) -> None:
    """Each file is more than 16 TiB of zeros: the largest unit, which costs a few bytes, again and again."""
    number, unit = max(((u[0], u[1]) for u in index["units"]), key=lambda item: math.prod(item[1]["shape"]))
    length = math.prod(unit["shape"])
    times = (16 << 40) // length + 1
    for _, record in index["files"]:
        record["recipe"] = [[number, 0, length]] * times
        record["size"] = length * times


def escaping(index: dict[str, Any]) -> None:
    for _, record in index["files"]:
        record["path"] = b"../" + record["path"]


def archives(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name → content of the archives that are not what they should be."""
    good = good_archive(folder)
    prologue, frames = forge.parse(good)
    tables = {id(frame): frame for frame in frames if frame.kind == FrameType.TABLE}
    assert tables, "no chunk table"
    yield "not-an-archive", b"These are notes, not weights.\n" * 100
    yield "empty", b""
    yield "cut-short", good[:20]
    yield "truncated", good[: len(good) // 2]
    yield "flipped", good[:5000] + bytes([good[5000] ^ 1]) + good[5001:]
    yield "longer", good + bytes(64)
    yield "text-mode", good.replace(b"\r\n", b"\n")
    yield "major-2", _version(good, major=2)
    yield "minor-9", forge.assemble(dataclasses.replace(prologue, minimum_minor=9), frames)
    yield "feature-40", forge.assemble(dataclasses.replace(prologue, incompatible=1 << 40), frames)
    unknown = [forge.recode(f, codec=9999) if f.kind == FrameType.CHUNK else f for f in frames]
    codec = {"codec": 9999}
    yield (
        "unknown-codec",
        forge.assemble(prologue, unknown, edit_table=lambda t: [set_entry(i, **codec)(t) for i in range(len(t))]),
    )
    yield "beyond-the-end", forge.assemble(prologue, frames, edit_table=set_entry(0, offset=1 << 40))
    yield "long-chunk", forge.assemble(prologue, frames, edit_table=set_entry(0, stored=1 << 45))
    yield "overlap", forge.assemble(prologue, frames, edit_table=same_place)
    yield "enormous", forge.assemble(prologue, frames, edit_index=index_units(enormous))
    yield "overflow", forge.assemble(prologue, frames, edit_index=index_units(overflowing))
    yield "huge-decode", forge.assemble(prologue, frames, edit_table=set_entry(0, decoded=1 << 50))
    yield "endless-file", forge.assemble(prologue, frames, edit_index=endless)
    yield "bomb", _bomb(good)
    yield "escape", forge.assemble(prologue, frames, edit_index=escaping)


def _version(good: bytes, major: int) -> bytes:
    """Another major version in prologue and trailer, as a writer of it would have it."""
    head = forge.reprologue(good, 8, major.to_bytes(2, "little"))
    tail = bytearray(head[-128:])
    tail[0:2] = major.to_bytes(2, "little")
    return head[:-128] + bytes(tail)


def _bomb(good: bytes) -> bytes:
    """An index that unpacks to a gigabyte."""
    import zstandard

    prologue, frames = forge.parse(good)
    payload = zstandard.compress(bytes(1 << 30))
    header = dataclasses.replace(frames[-1].header, codec=3, decoded=1 << 30)
    return forge.assemble(prologue, [*frames[:-1], forge.Frame(frames[-1].offset, header, payload)])


# ---------------------------------------------------------------------------------------------------------- the cases


def damaged(folder: Path) -> Iterator[Case]:
    """Archives that are damaged, forged, or too new."""
    paths = {}
    for name, content in archives(folder):
        paths[name] = folder / f"{name}.arz"
        paths[name].write_bytes(content)

    def case(name: str, verb: str, status: int, words: str, bounded: bool = False) -> Case:
        out = ["-o", folder / f"out-{name}"] if verb == "unpack" else []
        return Case(f"{name}: {verb}", [verb, paths[name], *out], status, words, bounded=bounded)

    for verb in ("ls", "verify"):
        yield case("not-an-archive", verb, 1, "not an arzstream archive")
        yield case("empty", verb, 1, "not an arzstream archive")
        yield case("cut-short", verb, 1, "truncated")
        yield case("major-2", verb, 3, "newer")
        yield case("minor-9", verb, 3, "newer")
        yield case("feature-40", verb, 3, "newer")
    for name in ("truncated", "flipped", "longer", "text-mode", "beyond-the-end", "long-chunk", "overlap", "escape"):
        yield case(name, "verify", 1, name)
    yield case("truncated", "unpack", 1, "truncated.arz")
    yield case("unknown-codec", "ls", 0, "")
    yield case("unknown-codec", "unpack", 3, "9999")
    yield case("escape", "unpack", 1, "escape")
    for name in ("enormous", "overflow", "huge-decode", "endless-file", "bomb", "long-chunk", "beyond-the-end"):
        yield case(name, "ls" if name in ("bomb", "overflow") else "verify", 1, name, bounded=True)
        yield case(name, "unpack", 1, name, bounded=True)


def surroundings(folder: Path) -> Iterator[Case]:
    """Good input, and a system that will not play."""
    good, source = folder / "good.arz", folder / "source"
    locked, shut = folder / "locked.arz", folder / "shut"
    shutil.copy(good, locked)
    locked.chmod(0)
    shut.mkdir(exist_ok=True)
    shut.chmod(0o555)
    yield Case("no permission to read", ["ls", locked], 4, "permission", UNPRIVILEGED)
    yield Case(
        "no permission to write",
        ["pack", source, "-o", shut / "x.arz"],
        4,
        "permission",
        UNPRIVILEGED,
        gone=shut / "x.arz",
    )
    secret = folder / "secret"
    shutil.copytree(source, secret)
    (secret / "model.safetensors").chmod(0)
    target = folder / "empty-1" / "x.arz"
    target.parent.mkdir()
    yield Case(
        "a source without permission", ["pack", secret, "-o", target], 4, "permission", UNPRIVILEGED, gone=target
    )
    yield Case("no such archive", ["ls", folder / "none.arz"], 4, "none.arz")
    yield Case("no such folder", ["pack", folder / "none", "-o", target], 4, "none", gone=target)
    yield Case("a file where a folder should be", ["pack", source, "-o", good / "x.arz"], 4, "good.arz")
    yield Case("a folder for an archive", ["ls", source], 4, "source")
    yield Case("an unknown option", ["ls", "--nonsense", good], 2, "nonsense")
    yield Case("an archive that is there", ["pack", source, "-o", good], 4, "--force")


def full_disk(folder: Path) -> Iterator[Case]:
    """A file system of one megabyte, in a mount namespace of its own."""
    disk = folder / "disk"
    disk.mkdir()
    inside = f'mount -t tmpfs -o size=1m none {disk} && "$@"; s=$?; ls -A {disk} | grep -v ^out$ >&2; exit $s'
    prefix = ["unshare", *(["-m"] if os.geteuid() == 0 else ["-rm"]), "sh", "-c", inside, "sh"]
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        print("  (no namespaces here: the full disk is left out)")
        return
    yield Case("a full disk: pack", ["pack", folder / "source", "-o", disk / "x.arz"], 4, "space", prefix)
    yield Case("a full disk: unpack", ["unpack", folder / "good.arz", "-o", disk / "out"], 4, "space", prefix)


def vanishing(folder: Path, check: Checks) -> None:
    """A source folder that is deleted, or cut short, while it is packed: an error, and no archive."""
    import arzstream

    for what in ("vanishes", "is cut short"):
        source, target = folder / "going", folder / "going-out" / "x.arz"
        shutil.copytree(folder / "source", source)
        for i in range(8):
            shutil.copy(source / "model.safetensors", source / f"model-{i}.safetensors")
        target.parent.mkdir()

        def interfere(*_: object, what: str = what, source: Path = source) -> None:
            if what == "vanishes":
                process.remove(source)
            elif (source / "model-7.safetensors").stat().st_size > 100:
                os.truncate(source / "model-7.safetensors", 100)

        try:
            arzstream.pack(str(source), str(target), progress=interfere, jobs=1)
            said, code = "nothing", 0
        except arzstream.ArzError as error:
            said, code = str(error), error.exit_code
        left = os.listdir(target.parent)
        said = said.replace(f"{folder}/", "")
        check(code in (1, 4) and not left and "\n" not in said, f"a folder that {what} while packing → {code}: {said}")
        process.remove(source)
        process.remove(target.parent)


def main() -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    check = Checks()
    with tempfile.TemporaryDirectory(prefix="arz-bad-") as name:
        folder = Path(name)
        for group in (damaged, surroundings, full_disk):
            for case in group(folder):
                good, said = run(case)
                check(good, f"{case.name} → {case.status}: {said.replace(name + '/', '')}")
        vanishing(folder, check)
        (folder / "shut").chmod(0o755)
    return check.status()


if __name__ == "__main__":
    sys.exit(main())
