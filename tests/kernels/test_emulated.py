"""Kernels for processors that this machine is not: the AArch64 ones, run by an emulator on what the reference made."""

from __future__ import annotations

import platform
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from emulated_cases import delta_cases, optim_cases, packed

from arzstream.codec import float_fast
from arzstream.codec.float_fast import encode_floats
from arzstream.kernels import api, numpy_backend

SOURCES = Path(__file__).resolve().parents[2] / "arzstream" / "kernels" / "src"
DRIVER = Path(__file__).resolve().parent / "emulated"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
TYPES = [(2, 8, 7), (2, 5, 10), (4, 8, 23), (1, 4, 3), (1, 5, 2)]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the driver: natively on an AArch64 machine."""
    native = platform.machine() == "aarch64"
    compiler = "g++" if native else COMPILER
    missing = [name for name in (compiler, *([] if native else [EMULATOR])) if shutil.which(name) is None]
    if missing and not (shutil.which("apt-get") or native):
        pytest.skip(f"impossible here: no {' and no '.join(missing)}, and no apt-get to install them with")
    assert not missing, f"install {', '.join(missing)} (Debian: g++-aarch64-linux-gnu, qemu-user-static)"
    binary = tmp_path_factory.mktemp("emulated") / "driver"
    # As in CMakeLists.txt: contracted to multiply-and-add, predictions would be other numbers.
    flags = ["-O3", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
    flags += [f"-I{SOURCES}", f"-I{DRIVER}", "-DARZ_HAVE_NEON"]
    sources = [*DRIVER.glob("*.cpp"), *(SOURCES / f"{name}.cpp" for name in ("isa_portable", "isa_neon", "dispatch"))]
    objects = [binary.with_name(f"{source.stem}.o") for source in sources]
    commands = [[compiler, *flags, "-c", str(s), "-o", str(o)] for s, o in zip(sources, objects, strict=True)]
    started = [subprocess.Popen(command) for command in commands]
    assert sum(process.wait() for process in started) == 0
    subprocess.run([compiler, "-static", *map(str, objects), "-o", str(binary)], check=True)
    return [str(binary)] if native else [EMULATOR, str(binary)]


class Recorder:
    """The NumPy kernels, remembering the last encoding: its arguments and what came of it."""

    __name__ = "recorder.numpy_backend"

    def __getattr__(self, name: str) -> object:
        return getattr(numpy_backend, name)

    def float_fast_encode(self, *arguments: object) -> int:
        self.arguments = arguments
        self.written = numpy_backend.float_fast_encode(*arguments)  # type: ignore[arg-type]
        return self.written


def cases(source: random.Random) -> list[bytes]:
    made = []
    for trial in range(120):
        itemsize, exponent_bits, mantissa_bits = TYPES[trial % len(TYPES)]
        count = source.choice([1, 15, 31, 32, 33, 127, 128, 129, 1000, 4095, 6000, 20000])
        rng = np.random.default_rng(trial)
        spread = source.choice([0.0, 1.0, 2.0, 6.0])
        exponents = np.clip(rng.normal(1 << exponent_bits - 1, spread, count), 0, (1 << exponent_bits) - 1)
        values = rng.integers(0, 1 << 8 * itemsize, count, dtype=np.uint64) & np.uint64(
            ~(((1 << exponent_bits) - 1) << mantissa_bits) & ((1 << 8 * itemsize) - 1)
        )
        values |= exponents.astype(np.uint64) << np.uint64(mantissa_bits)
        made.append(one_case(values.astype(f"<u{itemsize}"), (exponent_bits, mantissa_bits), source))
    return made


def one_case(values: np.ndarray, bits: tuple[int, int], source: random.Random) -> bytes:
    """As emulated/float_fast.cpp reads it; sometimes with a flipped bit in the streams."""
    recorder = Recorder()
    api._backend = recorder
    assert encode_floats(values.view(np.uint8).data, bits, 1) is not None
    data, _, _, _, log_segment, lanes, firsts, seconds, freqs, max_escapes, out, _, table = recorder.arguments
    raw = api.raw_size(len(values), bits[1], log_segment)
    streams, status = out[: recorder.written].copy(), 0
    if source.random() < 0.4:
        streams[source.randrange(len(streams))] ^= 1 << source.randrange(8)
        status = decoded(streams, data, bits, log_segment, lanes, (firsts, seconds, freqs), raw, table)
    intact = int(np.array_equal(streams, out[: len(streams)]))
    numbers = [values.itemsize, *bits, log_segment, lanes, max_escapes, raw, intact, status]
    return packed(4, numbers, [data, streams, firsts, seconds, freqs, table.astype("<u4")])


def decoded(
    streams: np.ndarray,
    data: np.ndarray,
    bits: tuple[int, int],
    log_segment: int,
    lanes: int,
    palettes: api.Palettes,
    raw: int,
    table: np.ndarray,
) -> int:
    """The reference's status; where the flipped bit only changes elements, ``data`` becomes what it gives."""
    result = np.empty_like(data)
    places = (0, raw, raw + int(table[::3].sum()))
    itemsize = api.itemsize_of(bits)
    status = numpy_backend.float_fast_decode(
        streams, itemsize, *bits, log_segment, lanes, *palettes, *places, table, result
    )
    if status == 0:
        data[...] = result
    return status


@pytest.mark.parametrize("log_segment", [10, 20])
def test_aarch64_kernels_give_the_bytes_and_verdicts_of_the_reference(
    driver: list[str], log_segment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(float_fast, "LOG_SEGMENT", log_segment)
    try:
        made = cases(random.Random(log_segment))
    finally:
        api.set_backend("auto")
    check(driver, made, tmp_path / "cases")


@pytest.mark.parametrize("maker", [delta_cases, optim_cases])
def test_aarch64_kernels_of_references_give_the_bytes_and_verdicts_of_the_reference(
    driver: list[str], maker: Callable[[random.Random], list[bytes]], tmp_path: Path
) -> None:
    api.set_backend("numpy")
    try:
        made = maker(random.Random(1))
    finally:
        api.set_backend("auto")
    check(driver, made, tmp_path / "cases")


def check(driver: list[str], made: list[bytes], path: Path) -> None:
    path.write_bytes(b"".join(made))
    ended = subprocess.run([*driver, str(path)], check=False, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    passed = f"{len(made)} of {len(made)}"
    assert ended.stdout.splitlines() == [f"portable {passed}", f"neon {passed}"]
