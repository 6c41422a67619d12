"""A large archive from end to end, beside the kernels alone: ``python -m tools.bench.whole_path``.

A gigabyte of bf16 tensors like a 7 B model's is packed; the file and its archive are then in the page cache. For one
core and for several a process of its own is kept on so many cores and times, round by round, every way to read and
write the archive, with the kernels, memcpy and plain reading and writing of the same file in between.

The kernels' rate is that of decoding every chunk with both XXH3 checks, from payloads in memory. It is compared with
``get_tensor`` of every tensor, all of them kept, under the same conditions for the result's memory: *fresh*, so that
both sides pay for the first touch of each page and both use huge pages; and *warm*, memory that was written before.
``get_tensor`` also reads the payloads from the page cache, which the kernels do not.

Peak memory is that of a process that gets every tensor and keeps it, less what it had before, less the tensors.
"""

from __future__ import annotations

import argparse
import functools
import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from arzstream.testing.tensors import Tensor, safetensors_header, to_bits
from tools.bench.shares import REST, charged
from tools.bench.weights import simulated

__all__ = ["measure"]

BLOCK_BYTES = 2 << 20
Call = Callable[[], Any]


def write_model(path: Path, nbytes: int) -> None:
    """A safetensors file of about ``nbytes``: layers of a 7 B model's shapes, the same values in every layer times a
    factor, so that no two tensors are equal and it takes seconds."""
    layer = list(simulated({"q_proj": (4096, 4096), "gate_proj": (5504, 4096), "norm": (4096, 1)}))
    one = sum(2 * values.size for _, values in layer)
    made = []
    for number in range(max(1, round(nbytes / one))):
        factor = np.float32(1 + 0.013 * number)
        for name, values in layer:
            bits = to_bits(values * factor, "BF16")
            shape = (4096,) if name == "norm" else values.shape
            made.append(Tensor(f"model.layers.{number}.{name}.weight", "BF16", shape, bits.tobytes()))
    header, ordered = safetensors_header(made)
    with path.open("wb") as file:
        file.write(header)
        for tensor in ordered:
            file.write(tensor.data)


def peak() -> int:
    """Bytes of memory this process has had at most. Linux hands ``ru_maxrss`` on to the program that a process runs,
    so that is no use here."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024


def read_all(archive: Path, threads: int) -> dict[str, int]:
    """In a process of its own: peak memory of getting every tensor."""
    import torch

    import arzstream

    torch.set_num_threads(1)
    torch.zeros(1)
    with arzstream.open(archive, jobs=threads) as opened:
        opened.get_tensor(opened.keys()[-1])
        before = peak()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    held = sum(t.numel() * t.element_size() for t in tensors.values())
    return {"bytes": held, "extra_bytes": peak() - before - held}


class Kernels:
    """Every chunk of an archive decoded by itself, with both checks."""

    def __init__(self, path: Path, threads: int) -> None:
        import arzstream
        from arzstream.archive.references import context
        from arzstream.container.layout import HEADER_BYTES

        self._tasks: list[list[tuple[int, bytes, int, int, Any, int]]] = []
        with arzstream.open(path) as archive, path.open("rb") as file:
            for entry in archive.directory.units:
                unit, at = [], 0
                for chunk, row in enumerate(archive.directory.chunk_table(entry.number)):
                    file.seek(int(row["offset"]) + HEADER_BYTES)
                    known = context(entry.unit, chunk)
                    digests = int(row["stored_xxh3"]), int(row["decoded_xxh3"])
                    unit.append((int(row["codec"]), file.read(int(row["stored"])), *digests, known, at))
                    at += int(row["decoded"])
                self._tasks.append(unit)
        self._sizes = [sum(self._length(task) for task in unit) for unit in self._tasks]
        self.nbytes = sum(self._sizes)
        self._warm = [np.full(nbytes, 1, np.uint8) for nbytes in self._sizes]
        self._pool = ThreadPoolExecutor(threads)

    def warm(self) -> None:
        """Into memory that was written before."""
        self._run(self._warm)

    def fresh(self) -> None:
        """Into new memory, got as the archive's reader gets it."""
        from arzstream.kernels.memory import Results

        results = Results(idle_bytes=0)
        self._run([results.empty(nbytes) for nbytes in self._sizes])

    def _run(self, outs: list[np.ndarray]) -> None:
        pairs = [(task, out) for unit, out in zip(self._tasks, outs, strict=True) for task in unit]
        list(self._pool.map(self._one, pairs))

    @staticmethod
    def _length(task: tuple[int, bytes, int, int, Any, int]) -> int:
        known = task[4]
        return int(known.rows * known.cols * known.dtype.itemsize)

    @classmethod
    def _one(cls, pair: tuple[tuple[int, bytes, int, int, Any, int], np.ndarray]) -> None:
        from arzstream.codec import registry
        from arzstream.kernels.digests import xxh3_64

        (codec, payload, stored, decoded, known, at), whole = pair
        out = whole[at : at + cls._length(pair[0])].data
        assert xxh3_64(payload) == stored
        registry.get(codec).decode(memoryview(payload), out, known)
        assert xxh3_64(out) == decoded


class Reading:
    """``get_tensor`` of everything, all tensors kept."""

    def __init__(self, archive: Path, threads: int) -> None:
        import arzstream
        from arzstream.kernels.memory import Results

        self._open = functools.partial(arzstream.open, archive, jobs=threads)
        self._again = self._open()
        self._again.decoder.results = Results(idle_bytes=1 << 62)  # every result's memory comes back for the next round
        self.warm()

    def fresh(self) -> None:
        with self._open() as opened:
            for_now = [opened.get_tensor(name) for name in opened.keys()]  # noqa: SIM118
        assert for_now

    def warm(self) -> None:
        for_now = [self._again.get_tensor(name) for name in self._again.keys()]  # noqa: SIM118
        assert for_now

    def stream(self) -> None:
        """Each tensor is let go of before the next."""
        with self._open() as opened:
            for _ in opened.stream():
                pass


def timed(calls: dict[str, Call], nbytes: int, rounds: int, clean: Callable[[], None]) -> list[dict[str, float]]:
    """GB/s of each call by the clock, round by round, and as ``NAME_cpu`` GB for each second of processor time;
    ``clean`` is called after each."""
    found = []
    for _ in range(rounds):
        speeds = {}
        for name, call in calls.items():
            began, spent = time.perf_counter(), time.process_time()
            call()
            speeds[name] = nbytes / (time.perf_counter() - began) / 1e9
            speeds[f"{name}_cpu"] = nbytes / (time.process_time() - spent) / 1e9
            clean()
        found.append(speeds)
    return found


def rates(archive: Path, threads: int, rounds: int) -> dict[str, float]:
    """Medians: GB/s of ``get_tensor`` and of the kernels in fresh memory, their quotient, and the same in warm.

    ``share_cpu`` is the quotient of GB for each second of processor time, in warm memory: other programs on the machine
    do not disturb it, and it leaves out waiting for the last chunk of each tensor.
    """
    kernels, reading = Kernels(archive, threads), Reading(archive, threads)
    calls = {"kernels": kernels.fresh, "get_tensor": reading.fresh,
             "kernels_warm": kernels.warm, "get_tensor_warm": reading.warm}  # fmt: skip
    found = timed(calls, kernels.nbytes, rounds, lambda: None)
    medians = {name: statistics.median(one[name] for one in found) for name in calls}
    medians["share"] = statistics.median(one["get_tensor"] / one["kernels"] for one in found)
    medians["share_warm"] = statistics.median(one["get_tensor_warm"] / one["kernels_warm"] for one in found)
    medians["share_cpu"] = statistics.median(one["get_tensor_warm_cpu"] / one["kernels_warm_cpu"] for one in found)
    return medians


class Copying:
    """memcpy, and plain reading and writing of a file, with so many threads."""

    def __init__(self, source: Path, archive: Path, folder: Path, threads: int) -> None:
        self._source, self._archive, self._folder, self._threads = source, archive, folder, threads
        self._pool = ThreadPoolExecutor(threads)
        self._from = np.fromfile(source, np.uint8)
        self._to = np.full(len(self._from), 1, np.uint8)

    def _blocks(self, nbytes: int, one: Callable[[int, int], Any]) -> None:
        starts = range(0, nbytes, BLOCK_BYTES)
        list(self._pool.map(lambda start: one(start, min(nbytes, start + BLOCK_BYTES)), starts))

    def memcpy(self) -> None:
        self._blocks(len(self._to), lambda start, end: np.copyto(self._to[start:end], self._from[start:end]))

    def read(self) -> None:
        """The archive, into a buffer per thread."""
        from arzstream.kernels.memory import Scratch

        scratch = Scratch()
        with self._archive.open("rb") as file:
            size = self._archive.stat().st_size
            self._blocks(size, lambda start, end: os.preadv(file.fileno(), [scratch.get("b", end - start)], start))

    def write(self) -> None:
        """The original, into a new file."""
        place = self._folder / "written"
        with place.open("wb") as file:
            file.truncate(len(self._from))
            self._blocks(len(self._from), lambda start, end: os.pwrite(file.fileno(), self._from[start:end], start))


def touch(nbytes: int, threads: int, *, huge: bool) -> None:
    """Write one byte to every small page of ``nbytes`` of new memory, in pieces of a tensor's size."""
    from arzstream.kernels.memory import Results

    def one(length: int) -> None:
        array = Results(idle_bytes=0).empty(length) if huge else np.frombuffer(mmap.mmap(-1, length), np.uint8)
        array[:: mmap.PAGESIZE] = 1

    piece = 32 << 20
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, [piece] * (nbytes // piece)))


class Whole:
    """What a user calls, on files."""

    def __init__(self, source: Path, archive: Path, folder: Path, threads: int, profile: str) -> None:
        self._source, self._archive, self._folder = source, archive, folder
        self._threads, self._profile = threads, profile

    def load_file(self) -> None:
        import arzstream.torch

        arzstream.torch.load_file(self._archive)

    def unpack(self) -> None:
        import arzstream

        with arzstream.open(self._archive, jobs=self._threads) as opened:
            arzstream.unpack(opened, self._folder / "unpacked")

    def pack(self) -> None:
        import arzstream

        arzstream.pack(self._source, self._folder / "packed.arz", profile=self._profile, jobs=self._threads)

    def verify(self) -> None:
        import arzstream

        arzstream.verify(self._archive)

    def verify_deep(self) -> None:
        import arzstream

        arzstream.verify(self._archive, deep=True)


def everything(source: Path, archive: Path, threads: int, rounds: int, profile: str) -> dict[str, Any]:
    """Medians in GB/s of the original for every way through, and where the processor time of each goes."""
    import torch

    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    with tempfile.TemporaryDirectory(prefix="arz-whole-path-", dir=archive.parent) as name:
        folder = Path(name)
        kernels, reading = Kernels(archive, threads), Reading(archive, threads)
        copying, whole = Copying(source, archive, folder, threads), Whole(source, archive, folder, threads, profile)
        user: dict[str, Call] = {
            "get_tensor": reading.fresh, "get_tensor, warm": reading.warm, "stream": reading.stream,
            "load_file": whole.load_file, "unpack": whole.unpack, "pack": whole.pack, "verify": whole.verify,
            "verify --deep": whole.verify_deep,
        }  # fmt: skip
        calls: dict[str, Call] = {
            "memcpy": copying.memcpy, "read the archive": copying.read, "write the original": copying.write,
            "touch new 4 KiB pages": lambda: touch(kernels.nbytes, threads, huge=False),
            "touch new 2 MiB pages": lambda: touch(kernels.nbytes, threads, huge=True),
            "kernels": kernels.fresh, "kernels, warm": kernels.warm, **user,
        }  # fmt: skip

        def clean() -> None:
            for made in folder.iterdir():
                shutil.rmtree(made) if made.is_dir() else made.unlink()

        timed(calls, 1, 1, clean)  # once beforehand
        found = timed(calls, kernels.nbytes, rounds, clean)
        shares = {}
        for what, call in user.items():
            with charged() as seconds:
                call()
            shares[what] = seconds
            clean()
    return {"speeds": {n: statistics.median(one[n] for one in found) for n in calls}, "seconds": shares,
            "bytes": kernels.nbytes}  # fmt: skip


def child(what: str, archive: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "tools.bench.whole_path", "--child", what, str(archive)]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(done))


def measure(nbytes: int, profile: str, threads: int, rounds: int) -> dict[str, Any]:
    """Pack, then measure ``get_tensor`` and the kernels in processes of their own."""
    import arzstream

    with tempfile.TemporaryDirectory(prefix="arz-whole-path-") as folder:
        source, archive = Path(folder) / "model.safetensors", Path(folder) / "model.arz"
        write_model(source, nbytes)
        arzstream.pack(source, archive, profile=profile, jobs=threads)
        source.unlink()
        options = {"threads": threads, "rounds": rounds}
        found = child("memory", archive, options) | child("rates", archive, options)
    return {"profile": profile, "threads": threads, "archive": f"profile {profile}", **found}


def report(found: dict[int, dict[str, Any]]) -> None:
    """Print what :func:`everything` found, by number of threads."""
    print(f"{'GB/s of the original, median':30}" + "".join(f"{n:>4} core{'s' * (n > 1):1}" for n in found))
    for name in next(iter(found.values()))["speeds"]:
        print(f"{name:30}" + "".join(f"{one['speeds'][name]:10.2f}" for one in found.values()))
    for threads, one in found.items():
        kinds = list(next(iter(one["seconds"].values())))
        print(f"\nprocessor time, milliseconds per GB, {threads} core{'s' * (threads > 1)}")
        print(f"{'':18}" + "".join(f"{kind.split()[0]:>11}" for kind in kinds) + f"{'total':>9}")
        for name, seconds in one["seconds"].items():
            scale = 1e3 / (one["bytes"] / 1e9)
            row = "".join(f"{seconds[kind] * scale:11.0f}" for kind in kinds)
            print(f"{name:18}{row}{sum(seconds.values()) * scale:9.0f}")
    print(f"({REST}: whatever is none of the others; fresh pages are charged to whoever touches them first: compare "
          "get_tensor with get_tensor, warm)")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bytes", type=int, default=10**9)
    parser.add_argument("--profile", default="fast")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only-get-tensor", action="store_true", help="leave out all but the comparison with kernels")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, archive = options.child[0], Path(options.child[1])
        calls: dict[str, Callable[[], dict[str, Any]]] = {
            "memory": lambda: dict(read_all(archive, options.threads)),
            "rates": lambda: dict(rates(archive, options.threads, options.rounds)),
            "everything": lambda: everything(
                archive.with_suffix(".safetensors"), archive, options.threads, options.rounds, options.profile
            ),
        }
        print(json.dumps(calls[what]()))
        return
    found = measure(options.bytes, options.profile, options.threads, options.rounds)
    where = f"{options.threads} threads, profile {options.profile}"
    print(f"get_tensor of everything, {where}: {against_kernels(found, '')}, both into fresh memory; "
          f"{against_kernels(found, '_warm')}, both into warm ({found['share_cpu']:.0%} by processor time); "
          f"{found['extra_bytes'] / 2**20:.0f} MiB beyond {found['bytes'] / 1e6:.0f} MB of tensors")  # fmt: skip
    if not options.only_get_tensor:
        print()
        whole(options)


def against_kernels(found: dict[str, Any], memory: str) -> str:
    got, share, alone = (found[name + memory] for name in ("get_tensor", "share", "kernels"))
    return f"{got:.2f} GB/s, {share:.0%} of the kernels' {alone:.2f} GB/s"


def whole(options: argparse.Namespace) -> None:
    """Everything, on one core and on as many as asked for."""
    import arzstream

    with tempfile.TemporaryDirectory(prefix="arz-whole-path-") as folder:
        source, archive = Path(folder) / "model.safetensors", Path(folder) / "model.arz"
        write_model(source, options.bytes)
        arzstream.pack(source, archive, profile=options.profile, jobs=options.threads)
        asked = {"rounds": options.rounds, "profile": options.profile}
        report({n: child("everything", archive, {"threads": n, **asked}) for n in sorted({1, options.threads})})


if __name__ == "__main__":
    main()
