"""The kernels as the codecs see them: arguments are checked here, and the backend is picked here.

``ARZ_KERNELS`` is ``auto`` (default: native where it was built), ``native`` (an error where it was not) or ``numpy``.
Buffers are one-dimensional and contiguous; results go to memory that the caller owns wherever their size is known.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arzstream.errors import ArzError, CorruptError, UnsupportedError
from arzstream.kernels.arithmetic import exact
from arzstream.kernels.memory import PAYLOADS

__all__ = [
    "SLOTS",
    "WITH_GATHERS",
    "UnknownBackendError",
    "backend",
    "check",
    "cpu_features",
    "float_fast_decode",
    "float_fast_encode",
    "histogram",
    "itemsize_of",
    "kernels",
    "lookups",
    "merge_planes",
    "native_error",
    "rans_decode",
    "rans_encode",
    "raw_size",
    "sample_exponents",
    "set_backend",
    "set_lookups",
    "split_planes",
]

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]
Palettes = tuple[U8, U8, U8]

SLOTS = 1 << 12
"""What the frequencies of a table sum to."""
LANES = 32
"""Streams that one segment has interleaved; it has a multiple of so many symbols, but the last one."""
STATE_BYTES = 4 * LANES
SCRATCH_BYTES = 2 << 20

_CAUSES = {
    1: "a symbol stream does not end as it must",
    2: "the number of escaped exponents is wrong",
    3: "bits that must be zero are not",
    4: "a stream does not fit",
    5: "scales or frequency tables do not decode",
    6: "a stream of raw bits does not end as it must",
}
_backend: Any = None
_native_error: str | None = None
_local = threading.local()
WITH_GATHERS = ("avx2", "avx512")
"""Instruction sets that can fetch table entries in two ways."""
_lookups: dict[str, str] = {}
"""By instruction set; see :func:`lookups`."""


class UnknownBackendError(ArzError):
    """``ARZ_KERNELS`` is nothing that it may be: a usage error."""

    exit_code = 2


def _load_native() -> Any:
    """The native module, or None; then ``_native_error`` says why."""
    global _native_error
    if sys.byteorder != "little":
        _native_error = "the native kernels are for little-endian machines"
        return None
    try:
        native = importlib.import_module("arzstream.kernels._native")
        _native_error = None if exact(native) else "built with options that change floating-point results; reinstall"
        return native if _native_error is None else None
    except ImportError as error:
        built = not isinstance(error, ModuleNotFoundError) or error.name != "arzstream.kernels._native"
        _native_error = f"cannot be loaded: {error}" if built else "not built; install a C++17 compiler and reinstall"
        return None


def set_backend(choice: str) -> None:
    """Pick ``auto``, ``native``, ``numpy``, or one instruction set of the native kernels (``portable``, ``avx2``, …).

    For tests and measurements; the public way is the environment variable ``ARZ_KERNELS``. Raises
    UnknownBackendError, and UnsupportedError for native kernels that are not there.
    """
    global _backend
    if choice == "numpy":
        from arzstream.kernels import numpy_backend

        _backend = numpy_backend
        return
    native = _load_native()
    if native is None:
        if choice != "auto":
            raise UnsupportedError(f"the native kernels are wanted (ARZ_KERNELS={choice}) but {_native_error}")
        set_backend("numpy")
        return
    names = native.isas()
    wanted = names[-1] if choice in ("auto", "native") else choice
    if wanted not in names:
        known = ", ".join(("auto", "native", "numpy", *names))
        raise UnknownBackendError(f"ARZ_KERNELS={choice} is none of {known}; set another")
    native.set_isa(wanted)
    _backend = native
    if wanted in WITH_GATHERS:
        set_lookups(_lookups.get(wanted) or _faster_lookups())


def set_lookups(how: str) -> None:
    """Have the native kernels fetch entries of tables by ``"gather"`` instructions or by ``"loads"``. For tests and
    measurements: whenever a backend is set, what is faster here is chosen."""
    native = kernels()
    native.set_gathers(how == "gather")
    _lookups[native.isa()] = how


def lookups() -> str:
    """How the instruction set in use fetches entries: ``"gather"`` or ``"loads"``; empty where there is no choice."""
    return _lookups.get(kernels().isa(), "") if backend() == "native" else ""


def _faster_lookups() -> str:
    """Measured on 2^14 symbols, which takes a tenth of a millisecond: it depends on the processor and its microcode."""
    values = np.arange(16, dtype=np.uint8)
    symbols = (np.arange(1 << 14, dtype=np.uint32) * np.uint32(2654435761) >> np.uint32(28)).astype(np.uint8)
    freqs = np.full(16, SLOTS // 16, np.uint16)
    streams, lengths = rans_encode(symbols, len(symbols), values, freqs)
    out = np.empty_like(symbols)
    best: dict[str, int] = {}
    for how in ("loads", "gather") * 4:
        _backend.set_gathers(how == "gather")
        began = time.perf_counter_ns()
        rans_decode(streams, lengths, len(symbols), values, freqs, out)
        best[how] = min(best.get(how, 1 << 62), time.perf_counter_ns() - began)
    return min(best, key=best.__getitem__)


def kernels() -> Any:
    """The backend in use: the native module or its NumPy counterpart."""
    if _backend is None:
        set_backend(os.environ.get("ARZ_KERNELS") or "auto")
    return _backend


def backend() -> str:
    """``"native"`` or ``"numpy"``."""
    return "numpy" if kernels().__name__.endswith("numpy_backend") else "native"


def native_error() -> str | None:
    """Why the native kernels cannot be used, or None if they can."""
    _load_native()
    return _native_error


def cpu_features() -> list[str]:
    """Instruction sets of this machine that the native kernels can use, best last; empty without them."""
    native = _load_native()
    return list(native.isas()) if native else []


def check(status: int) -> None:
    """Raise CorruptError for a status other than 0."""
    if status:
        raise CorruptError(f"{_CAUSES.get(status, 'a stream is malformed')}; the chunk is damaged")


def split_planes(data: memoryview, stride: int) -> U8:
    """Byte planes of ``data``, one after the other. Raises ValueError unless ``stride`` divides the length."""
    source = np.frombuffer(data, np.uint8)
    if stride < 1 or len(source) % stride:
        raise ValueError(f"{len(source)} bytes do not make {stride} planes")
    planes = np.empty(len(source), np.uint8)
    kernels().split_planes(source, stride, planes)
    return planes


def merge_planes(planes: U8, stride: int, out: memoryview) -> None:
    """Undo :func:`split_planes` into ``out``, of the same length."""
    target = np.frombuffer(out, np.uint8)
    if stride < 1 or len(target) % stride or len(planes) != len(target):
        raise ValueError(f"{len(planes)} bytes of {stride} planes do not make {len(target)} bytes")
    kernels().merge_planes(planes, stride, target)


def histogram(symbols: U8 | U16, size: int = 256) -> U32:
    """How often each symbol below ``size`` occurs in an array of uint8 (size 256) or uint16."""
    counts = np.empty(size, np.uint32)
    kernels().histogram(symbols, counts)
    return counts


def itemsize_of(float_bits: tuple[int, int]) -> int:
    """Bytes of an element with a sign and so many bits of exponent and mantissa."""
    return (1 + sum(float_bits)) // 8


def raw_size(count: int, mantissa_bits: int, log_segment: int) -> int:
    """Bytes of the raw streams of ``count`` elements."""
    whole, planes = divmod(mantissa_bits + 1, 8)
    full, rest = divmod(count, 1 << log_segment)
    return count * whole + planes * (full * (1 << log_segment) // 8 + -(-rest // 8))


def rans_encode(symbols: U8, per_segment: int, values: U8, freqs: U16) -> tuple[U8, U32]:
    """(streams of all segments, bytes of each).

    ``freqs[k]``, 12-bit frequencies that sum to 4096, belongs to the symbol ``values[k]``. Raises ValueError if a
    symbol has none.
    """
    segments = -(-len(symbols) // per_segment)
    out = np.empty(2 * len(symbols) + STATE_BYTES * segments + 64, np.uint8)
    stream_bytes = np.empty(segments, np.uint32)
    start = kernels().rans_encode(symbols, per_segment, values, freqs, out, stream_bytes)
    return out[start:], stream_bytes


def rans_decode(streams: U8, stream_bytes: U32, per_segment: int, values: U8, freqs: U16, symbols: U8) -> None:
    """Undo :func:`rans_encode` into ``symbols``. Raises CorruptError."""
    if len(stream_bytes) != -(-len(symbols) // per_segment):
        raise ValueError(f"{len(stream_bytes)} streams for {len(symbols)} symbols")
    check(kernels().rans_decode(streams, stream_bytes, per_segment, values, freqs, symbols))


def _scratch(nbytes: int) -> U8:
    """Memory of this thread's, up to SCRATCH_BYTES of it always the same: fresh pages cost as much as coding."""
    if nbytes > SCRATCH_BYTES:
        return np.empty(nbytes, np.uint8)
    if not hasattr(_local, "scratch"):
        _local.scratch = np.empty(SCRATCH_BYTES, np.uint8)
    return _local.scratch  # type: ignore[no-any-return]


def sample_exponents(data: U8, float_bits: tuple[int, int], run: int, step: int) -> U32:
    """How often each exponent, of up to 8 bits, occurs in ``run`` elements out of every ``step``."""
    counts = np.empty(256, np.uint32)
    kernels().sample_exponents(data, itemsize_of(float_bits), *float_bits, run, step, counts)
    return counts


def float_fast_encode(
    data: U8,
    float_bits: tuple[int, int],
    log_segment: int,
    lanes: int,
    palettes: Palettes,
    max_escapes: int,
    reserve: int = 0,
) -> tuple[U32, U8] | None:
    """(table of the segments, shape (segments, 3); raw, symbol and escape streams) of codec ``float_fast``, or None if
    more than ``max_escapes`` exponents are not in the palette.

    ``palettes``: exponents with symbols of their own, those in second place, frequencies of the former and an escape.
    ``reserve``: bytes that are left before the streams, for the caller to fill.
    """
    count, odd = divmod(len(data), itemsize_of(float_bits))
    if odd:
        raise ValueError(f"{len(data)} bytes are no whole number of elements")
    max_escapes = min(max_escapes, count)
    segments = -(-count >> log_segment)
    table = np.empty(3 * segments, np.uint32)
    states = 2 * lanes * segments
    room = raw_size(count, float_bits[1], log_segment) + count + states + 2 * max_escapes + 64
    out = PAYLOADS.room(reserve + room)
    scratch = _scratch(min(count, 1 << log_segment) + 2 * lanes + 64 + 3 * max_escapes + segments)
    arguments = (itemsize_of(float_bits), *float_bits, log_segment, lanes, *palettes, max_escapes)
    written = kernels().float_fast_encode(data, *arguments, out[reserve:], scratch, table)
    return (table.reshape(-1, 3), PAYLOADS.keep(reserve + written)) if written <= room else None


def float_fast_decode(
    payload: U8,
    float_bits: tuple[int, int],
    log_segment: int,
    lanes: int,
    palettes: Palettes,
    places: tuple[int, int, int],
    table: U32,
    out: U8,
) -> None:
    """Decode a chunk of codec ``float_fast`` into ``out``. The arguments are those of :func:`float_fast_encode`.

    ``places`` are the offsets of the raw, symbol and escape streams. Raises CorruptError.
    """
    arguments = (itemsize_of(float_bits), *float_bits, log_segment, lanes, *palettes, *places)
    check(kernels().float_fast_decode(payload, *arguments, table.reshape(-1), out))
