"""Damage a small archive in every possible way: all of it must be noticed, and what is intact must be recovered.

    python tools/flip_campaign.py                  every bit, every truncation, every frame dropped, doubled, swapped
    python tools/flip_campaign.py --one-bit        one bit of every byte: fast enough for the test suite

``verify`` must refuse each damaged archive. ``recover`` is run on one flip of every STRIDE-th byte: whatever tensors
it keeps must be bit for bit the original's, what it calls lost must be missing and the rest present, and damage to one
tensor's chunk must cost no other tensor. Exit status 1 if any of that fails once.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

import arzstream
from arzstream.archive.recover import recover
from arzstream.archive.verify import verify
from arzstream.container.layout import FrameType
from arzstream.errors import ArzError
from arzstream.testing import forge, tensors

Content = dict[str, bytes]
"""Tensors by name, as bytes."""


@dataclasses.dataclass
class Tally:
    """Counts, and the first few things that went wrong."""

    tried: int = 0
    missed: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.tried += other.tried
        self.missed += other.missed


def build(folder: Path, size: int) -> bytes:
    """An archive of about ``size`` bytes: a few tensors of several dtypes, a text file, a link."""
    source, elements = folder / "source", max(16, size // 24)
    rng = tensors.np.random.default_rng(1)
    source.mkdir()
    rows = max(4, elements // 16)
    weights = [
        tensors.Tensor("model.embed.weight", "F32", (rows, 4), tensors.gaussian((rows, 4), "F32", rng)),
        tensors.Tensor("model.layers.0.up.weight", "BF16", (rows, 32), tensors.gaussian((rows, 32), "BF16", rng)),
        tensors.Tensor("model.layers.1.up.weight", "BF16", (rows, 32), tensors.gaussian((rows, 32), "BF16", rng)),
        tensors.Tensor("model.norm.weight", "BF16", (8,), tensors.gaussian((8,), "BF16", rng)),
        tensors.Tensor("model.position_ids", "I64", (1, 8), bytes(64)),
    ]
    (source / "model.safetensors").write_bytes(tensors.safetensors_bytes(weights, {"format": "pt"}))
    (source / "config.json").write_text('{"layers": 2}\n' * 20)
    (source / "latest").symlink_to("model.safetensors")
    arzstream.pack(str(source), str(folder / "good.arz"), reproducible=True)
    return (folder / "good.arz").read_bytes()


def noticed(path: Path) -> bool:
    """Does ``verify`` refuse it?"""
    try:
        verify(str(path))
    except ArzError:
        return True
    return False


def read(path: Path) -> Content:
    """Every tensor of an archive."""
    with arzstream.open(str(path)) as archive:
        names = archive.keys()
        return {name: archive.numpy(name).tobytes() for name in names}


@dataclasses.dataclass
class Job:
    """A part of the work, for one process: the flips of bytes ``start`` to ``stop``."""

    data: bytes
    start: int
    stop: int
    bits: int
    folder: Path


def flip_range(job: Job) -> Tally:
    """Flip ``bits`` bits of each byte, one at a time."""
    tally, path, rng = Tally(), job.folder / f"flip-{job.start}.arz", random.Random(job.start)
    path.write_bytes(job.data)
    fd = os.open(path, os.O_RDWR)
    for at in range(job.start, job.stop):
        for bit in range(8) if job.bits == 8 else rng.sample(range(8), job.bits):
            os.pwrite(fd, bytes([job.data[at] ^ 1 << bit]), at)
            tally.tried += 1
            if not noticed(path):
                tally.missed.append(f"bit {bit} of byte {at} flipped")
        os.pwrite(fd, job.data[at : at + 1], at)
    os.close(fd)
    if noticed(path):
        tally.missed.append("the archive is refused although every flip was taken back")
    return tally


def flips(data: bytes, bits: int, jobs: int, folder: Path) -> Tally:
    """All flips, over ``jobs`` processes."""
    tally, step = Tally(), max(256, len(data) // (jobs * 8))
    parts = [Job(data, at, min(at + step, len(data)), bits, folder) for at in range(0, len(data), step)]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for part in pool.imap_unordered(flip_range, parts):
            tally.add(part)
    return tally


def truncations(data: bytes, folder: Path) -> Tally:
    """Every shorter file, longest first, and a few longer ones."""
    tally, path = Tally(), folder / "cut.arz"
    path.write_bytes(data)
    for length in range(len(data) - 1, -1, -1):
        os.truncate(path, length)
        tally.tried += 1
        if not noticed(path):
            tally.missed.append(f"cut to {length} bytes")
    for extra in (b"\0", bytes(64), bytes(128), data[-128:], data):
        path.write_bytes(data + extra)
        tally.tried += 1
        if not noticed(path):
            tally.missed.append(f"{len(extra)} bytes more at the end")
    return tally


def rearranged(data: bytes, other: bytes) -> Iterator[tuple[str, bytes]]:
    """Frames dropped, doubled, swapped, and taken from ``other``, an archive of the same content with another id."""
    frames, foreign = forge.frames(data), forge.frames(other)
    head, tail = data[:64], data[frames[-1].end :]
    pieces = [data[frame.offset : frame.end] for frame in frames]
    for i, piece in enumerate(pieces):
        before, after = b"".join(pieces[:i]), b"".join(pieces[i + 1 :])
        yield f"frame {i} dropped", head + before + after + tail
        yield f"frame {i} doubled", head + before + piece + piece + after + tail
        if i + 1 < len(pieces):
            yield (
                f"frames {i}, {i + 1} swapped",
                head + before + pieces[i + 1] + piece + b"".join(pieces[i + 2 :]) + tail,
            )
        spliced = other[foreign[i].offset : foreign[i].end]
        yield f"frame {i} from another archive", head + before + spliced + after + tail


def rearrangements(data: bytes, folder: Path) -> Tally:
    """Damage by whole frames."""
    tally, path = Tally(), folder / "frames.arz"
    arzstream.pack(str(folder / "source"), str(folder / "other.arz"))
    for what, damaged in rearranged(data, (folder / "other.arz").read_bytes()):
        path.write_bytes(damaged)
        tally.tried += 1
        if not noticed(path):
            tally.missed.append(what)
    return tally


def owners(data: bytes, names: Sequence[str]) -> list[tuple[int, int, set[str]]]:
    """(start, end, tensors that may be lost) of each frame; chunks cost their unit's tensors, the rest what recovery
    says."""
    _, found = forge.parse(data)
    members: dict[int, set[str]] = {}
    for frame in found:
        for number, unit in frame.units.items():
            members[number] = {member[0] for member in unit["members"]} & set(names)

    def held(frame: forge.Frame) -> set[str]:
        numbers = [frame.header.ordinal] if frame.kind == FrameType.CHUNK else list(frame.units)
        return set().union(*(members[number] for number in numbers))

    return [(frame.offset, frame.end, held(frame)) for frame in found]


def recovered(
    damaged: Path, target: Path, good: Content, may_lose: set[str], must_lose: set[str], unseen: Set[str] = frozenset()
) -> str:
    """What is wrong with recovery from ``damaged``; empty if nothing is. Tensors in ``unseen`` are nowhere named in
    it."""
    target.unlink(missing_ok=True)
    try:
        report = recover(str(damaged), str(target))
        kept = read(target) if target.exists() else {}
        if target.exists():
            verify(str(target), deep=True)
    except ArzError as error:
        return "" if may_lose == set(good) else f"recovery failed: {error}"
    lost = set(good) - set(kept)
    if any(good.get(name) != content for name, content in kept.items()):
        return "a recovered tensor is not what it was"
    if not lost <= may_lose:
        return f"lost {sorted(lost - may_lose)} without need"
    if not must_lose <= lost:
        return f"{sorted(must_lose - lost)} cannot be intact"
    if lost - unseen != set(report.lost_tensors) - unseen:
        return f"lost {sorted(lost)}, but says {sorted(report.lost_tensors)}"
    if lost and report.complete and report.indexed:
        return f"lost {sorted(lost)}, but says that nothing is lost"
    return ""


def recoveries(data: bytes, stride: int, folder: Path) -> Tally:
    """Recover from one flip of every ``stride``-th byte, and from cuts."""
    tally, rng, path, target = Tally(), random.Random(2), folder / "damaged.arz", folder / "recovered.arz"
    good = read(folder / "good.arz")
    frames, ranges = forge.frames(data), owners(data, list(good))
    kinds = {frame.offset: frame for frame in frames}
    for at in range(0, len(data), stride):
        changed = bytearray(data)
        changed[at] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        may, must = set(), set()  # type: tuple[set[str], set[str]]
        for start, end, names in ranges:
            if start <= at < end:
                frame, may = kinds[start], names
                stored = at < start + 128 + frame.header.stored
                must = names if frame.kind == FrameType.CHUNK and stored else set()
        tally.tried += 1
        problem = recovered(path, target, good, may, must)
        if problem:
            tally.missed.append(f"byte {at}: {problem}")
    for start, _, _ in ranges[1:]:
        path.write_bytes(data[: start + 7])
        behind = {name for at, _, owned in ranges if at >= start for name in owned}
        seen = {name for at, _, owned in ranges if at < start for name in owned}
        tally.tried += 1
        problem = recovered(path, target, good, behind, set(), set(good) - seen)
        if problem:
            tally.missed.append(f"cut at {start + 7}: {problem}")
    return tally


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=12_000, help="about how large an archive, bytes")
    parser.add_argument("--one-bit", action="store_true", help="flip one bit of each byte, not all eight")
    parser.add_argument("--stride", type=int, default=7, help="recover from damage to every STRIDEth byte")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args(argv)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    bad = 0
    with tempfile.TemporaryDirectory(prefix="arz-flip-", dir=memory) as name:
        folder = Path(name)
        data = build(folder, args.size)
        assert not noticed(folder / "good.arz"), "the undamaged archive is refused"
        print(f"archive of {len(data)} bytes in {len(forge.frames(data))} frames", flush=True)
        for what, measure in (
            ("bit flips noticed", lambda: flips(data, 1 if args.one_bit else 8, args.jobs, folder)),
            ("truncations and extensions noticed", lambda: truncations(data, folder)),
            ("frames dropped, doubled, swapped, spliced: noticed", lambda: rearrangements(data, folder)),
            ("recoveries exact, with the lost tensors named", lambda: recoveries(data, args.stride, folder)),
        ):
            began, tally = time.monotonic(), measure()
            bad += len(tally.missed)
            print(
                f"{tally.tried - len(tally.missed)} of {tally.tried} {what} ({time.monotonic() - began:.0f} s)",
                flush=True,
            )
            for problem in tally.missed[:10]:
                print(f"  MISSED: {problem}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
