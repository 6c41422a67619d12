"""The loop: change something that is known to be interesting, look at what comes of it, keep what is new."""

from __future__ import annotations

import dataclasses
import faulthandler
import functools
import gc
import os
import random
import resource
import signal
import time
import traceback
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from tools.fuzz import examine, structures
from tools.fuzz.mutations import mutate, mutate_text
from tools.fuzz.seeds import SOURCES, Files, Seed

__all__ = ["PARSERS", "Failure", "Outcome", "Target", "replay", "run"]

SECONDS = 1.0
"""Of processor time that an input may take."""
STUCK = 120
"""Seconds after which a process that does not even notice that dies with a traceback."""
MOST_MEMORY = 192 << 20
"""Bytes by which the process may grow for one input, and that Python may allocate for one: what following a pickle, the
costliest of all, may take is about 80 MB, and its names half as much."""
ADDRESS_SPACE = 3 << 30
"""Bytes beyond those of the start; an allocation on a number's word fails."""
KEPT = 300
"""Inputs that are kept to be changed further."""
LONGEST = 1 << 16
"""Bytes of an input that is kept, of those that are not long from the start."""
TRACED, ARCHIVED = 1000, 2500
"""Every so many inputs the allocations are traced, and a folder is archived and restored."""


class TooSlow(BaseException):
    """Not to be caught by what is tried."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A parser, and how to make inputs for it. ``edits`` are tried in a third of all cases."""

    name: str
    examine: Callable[[bytes, Files, random.Random], tuple[Any, ...]]
    edits: tuple[structures.Edit, ...] = ()
    tokens: tuple[bytes, ...] = ()


@dataclasses.dataclass(frozen=True)
class Failure:
    """An input that broke a promise; ``dice`` is the seed with which it was examined."""

    number: int
    dice: int
    path: bytes
    files: Files
    what: str


@dataclasses.dataclass
class Outcome:
    """What a run came to."""

    parser: str
    inputs: int = 0
    kinds: int = 0
    archived: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    memory: int = 0
    failures: list[Failure] = dataclasses.field(default_factory=list)


_JSON = (
    b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"', b'"weight_map"', b'"F32"', b'"F4"', b'"BF16"', b'"U8"',
    b"[0,0]", b",", b":", b"{", b"}", b"[", b"]", b'"w":', b'"\\u0000"', b'"a\\nb"', b'"../x"', b'"config"', b'"as_int"',
    b'"use_pickle": true', b'"saved_offsets"',
)  # fmt: skip
_PICKLE = (
    *(bytes((code,)) for code in b"(.012NKMJGXUTCBQRbclehjqrstu)}]ad"), *(bytes((code,)) for code in range(0x80, 0x99)),
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch.storage\nUntypedStorage\n", b"ccollections\nOrderedDict\n", b"cnumpy\ndtype\n", b"X\x07\0\0\0storage",
    b"X\x01\0\0\x000", b"q\0", b"h\0", b"h\1", b"K\x01", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"J\xff\xff\xff\xff",
    b"q\x200](h\x20h\x20e", b"X\x03\0\0\0\xed\xa0\x80", b"ctorch._utils\n_rebuild_sparse_tensor\n", b"cos\nsystem\n",
    b"cnumpy.core.multiarray\n_reconstruct\n", b"ctorch\nSize\n", b"G\x7f\xf8\0\0\0\0\0\0", b"\x80\x02", b"\x80\x05",
    b"ctorch._tensor\n_rebuild_from_type_v2\n", b"ctorch._utils\n_rebuild_wrapper_subclass\n",
)  # fmt: skip
_ZIP = (
    b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\7\x08", b"archive/data.pkl", b"/data/0", b".data/serialization_id",
    b"big", b"little", b"\1\0\x10\0" + b"\xff" * 16, b"FB\4\0ZZZZ",
)  # fmt: skip
_GGUF = (b"GGUF", b"GGUF\3\0\0\0", b"\x11general.alignment", b"\x09\0\0\0\x09\0\0\0", b"\x09\0\0\0\x08\0\0\0", b"\x04\0\0\0")
_NPY = (
    b"\x93NUMPY\1\0", b"'descr'", b"'<f4'", b"'|V9'", b"'fortran_order': True", b"'shape': ()", b"(1,)", b"[('a', '<f8')]",
    b"'>f4'", b"None", b"'<M8[ns]'", b"'|O'", b"2**9", b"{", b"}",
)  # fmt: skip
_ONNX = (b"\x08\x08", b"\x3a\x80\x01", b"\x2a\x04\x0a\x02", b"\x4a\x04", b"\x70\x01", b"location", b"../x", b"offset", b"length")
_FLAX = (b"\x81\xa1k", b"\xc7\x00\x01", b"\xc9\xff\xff\xff\xff\x01", b"\x93\x92\x02\x03\xa7float32", b"\xdf\xff\xff\xff\xff", b"\xdd\0\0\0\0")
_HDF5 = (
    b"\x89HDF\r\n\x1a\n", b"TREE", b"SNOD", b"HEAP", b"OHDR", b"OCHK", b"\x10\0\x10\0", b"\x11\0\x10\0", b"\xff" * 8,
    b"\x08\0\x18\0", b"\x10\x10\0", b"\0\0\0\0\0\0\0\0",
)  # fmt: skip
_MAGIC = (b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"BZh9", b"7z\xbc\xaf\x27\x1c", b"\x89PNG\r\n\x1a\n", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19")

_ZIPPED, _PICKLED = (structures.zip_edit,), (structures.pickle_edit,)
PARSERS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("pickle", examine.pickled, _PICKLED, _PICKLE),
        Target("torch-zip", examine.file, _ZIPPED, (*_PICKLE, *_ZIP)),
        Target("torch-legacy", examine.file, _PICKLED, _PICKLE),
        Target("torch-export", examine.file, _ZIPPED, (*_JSON, *_ZIP)),
        Target("distcp", examine.file, (*_PICKLED, *_ZIPPED), (*_PICKLE, *_ZIP)),
        Target("deepspeed", examine.file, _ZIPPED, (*_PICKLE, *_ZIP)),
        Target("hdf5", examine.file, (), _HDF5),
        Target("onnx", examine.file, (structures.protobuf_edit,), _ONNX),
        Target("flax", examine.file, (structures.flax_edit,), _FLAX),
        Target("gguf", examine.file, (), _GGUF),
        Target("npz", examine.file, _ZIPPED, (*_NPY, *_ZIP)),
        Target("npy", examine.file, (structures.npy_edit,), _NPY),
        Target("safetensors", examine.file, (structures.safetensors_edit,), _JSON),
        Target("sharded", examine.file, (structures.safetensors_edit,), _JSON),
        Target("rules", examine.checkpoint, (structures.json_edit,), _JSON),
        Target("unknown", functools.partial(examine.file, companions=True), (), (*_MAGIC, *_ZIP)),
    )
}
"""By name, those first of which most is to be feared."""


@dataclasses.dataclass
class _Kept:
    path: bytes
    files: Files
    hot: dict[bytes, list[int]]


def run(
    parser: str, inputs: int, seed: int = 0, seconds: float = 1e9, *,
    failures: int = 20, said: Callable[[Outcome], None] = lambda _: None,
) -> Outcome:  # fmt: skip
    """Try ``inputs`` inputs, or as many as ``seconds`` allow; stop after so many ``failures``. ``said`` is called now and
    then. The same arguments give the same inputs, unless time cuts them short."""
    return _Campaign(PARSERS[parser], seed).run(inputs, seconds, failures, said)


class _Campaign:
    def __init__(self, target: Target, seed: int) -> None:
        self._target, self._dice = target, random.Random(f"{target.name} {seed}")
        self._kept: list[_Kept] = []
        self._known: set[Any] = set()
        self._outcome = Outcome(target.name)
        self._source = [_whole(seed) for seed in SOURCES[target.name]()]
        self._longest = max(LONGEST, 2 * max(len(data) for _, files in self._source for data in files.values()))
        self._donors = [data for _, files in self._source for data in files.values()]
        self._stacks: set[str] = set()

    def run(self, inputs: int, seconds: float, failures: int, said: Callable[[Outcome], None]) -> Outcome:
        begin = time.monotonic()
        with _limits():
            for path, files in self._source:
                self._try(path, files)
                hot = {name: self._hot(path, files, name) for name in files} if path else {}
                self._kept.append(_Kept(path, files, hot))
            first = len(self._kept)
            while self._outcome.inputs < inputs and len(self._outcome.failures) < failures:
                if self._outcome.inputs % 1024 == 0:
                    faulthandler.dump_traceback_later(STUCK, exit=True)
                    self._outcome.seconds = time.monotonic() - begin
                    said(self._outcome)
                    if self._outcome.seconds > seconds:
                        break
                    gc.collect()
                chosen = self._kept[self._dice.randrange(first if self._dice.random() < 0.3 else len(self._kept))]
                self._next(chosen, first)
            faulthandler.cancel_dump_traceback_later()
        self._outcome.seconds = time.monotonic() - begin
        self._outcome.kinds = len(self._known)
        return self._outcome

    def _next(self, chosen: _Kept, first: int) -> None:
        path, files = self._changed(chosen)
        kind = self._try(path, files)
        if kind is None or kind in self._known:
            return
        self._known.add(kind)
        if max(map(len, files.values()), default=0) <= self._longest:
            kept = _Kept(path, files, chosen.hot)
            if len(self._kept) < KEPT:
                self._kept.append(kept)
            else:
                self._kept[self._dice.randrange(first, KEPT)] = kept

    def _changed(self, kept: _Kept) -> Seed:
        dice, files = self._dice, dict(kept.files)
        names = list(files)
        name = kept.path if kept.path and (len(names) == 1 or dice.random() < 0.55) else dice.choice(names or [b"x"])
        data, edits = files.get(name, b""), self._target.edits
        if not kept.path and dice.random() < 0.4:
            files.pop(name, None)
            if dice.random() < 0.7:
                made = mutate_text(name, dice, names).replace(b"\0", b"")[:250]
                files[made or b"x"] = data
            return kept.path, files
        if len(names) > 1 and name != kept.path and dice.random() < 0.1:
            del files[name]
            return kept.path, files
        files[name] = data = self._mutated(data, edits, kept.hot.get(name, ()))
        return kept.path, files

    def _mutated(self, data: bytes, edits: Sequence[structures.Edit], hot: Sequence[int]) -> bytes:
        dice, tokens = self._dice, self._target.tokens
        if edits and dice.random() < 0.4:
            try:
                return dice.choice(edits)(data, dice, tokens)
            except ValueError:
                pass
        return mutate(data, dice, tokens, hot, self._donors)

    def _try(self, path: bytes, files: Files) -> Any:
        """Examine an input. What it came to, None if it broke a promise."""
        number, dice = self._outcome.inputs, self._dice.getrandbits(32)
        self._outcome.inputs += 1
        traced = number % TRACED == TRACED - 1
        try:
            kind, spent, memory = _examined(self._target, path, files, dice, traced)
            if self._target.name != "pickle" and number % ARCHIVED == ARCHIVED - 1 and _can_be_stored(files):
                examine.archive(files, path)
                self._outcome.archived += 1
        except (Exception, TooSlow) as error:  # noqa: BLE001  whatever it is, it is what is looked for
            self._failed(Failure(number, dice, path, files, _told(error)))
            return None
        self._outcome.slowest = max(self._outcome.slowest, spent)
        self._outcome.memory = max(self._outcome.memory, memory)
        return kind

    def _failed(self, failure: Failure) -> None:
        """The first of each kind."""
        place = failure.what.rpartition("\n")[0] or failure.what[:40]
        if place not in self._stacks:
            self._stacks.add(place)
            self._outcome.failures.append(failure)

    def _hot(self, path: bytes, files: Files, name: bytes) -> list[int]:
        """Where in a file a change changes what is said of the one at ``path``."""
        data = files[name]
        found, dice = [], random.Random(1)
        places = range(len(data)) if len(data) <= 1500 else sorted(dice.sample(range(len(data)), 1500))
        if self._target.name in ("unknown", "pickle"):
            return [*range(min(len(data), 1500))]
        first = _quietly(self._target, path, files)
        for at in places:
            changed = bytearray(data)
            changed[at] ^= 0x55
            if _quietly(self._target, path, {**files, name: bytes(changed)}) != first:
                found.append(at)
        return found


def _whole(seed: Seed) -> Seed:
    path, files = seed
    return path, dict(files)


def _can_be_stored(files: Files) -> bool:
    """Are the paths some that a folder can have?"""
    for path in files:
        parts = path.split(b"/")
        if not all(parts) or any(part in (b".", b"..") or len(part) > 250 or b"\0" in part for part in parts):
            return False
        if any(b"/".join(parts[:n]) in files for n in range(1, len(parts))):
            return False
    return bool(files)


class _Whole(random.Random):
    """Reads a file once, when it is whole."""

    def random(self) -> float:
        return 0.99


def _quietly(target: Target, path: bytes, files: Files) -> Any:
    try:
        return target.examine(path, files, _Whole(0))
    except Exception as error:  # noqa: BLE001  the campaign will come to it
        return str(error)


def _examined(target: Target, path: bytes, files: Files, dice: int, traced: bool) -> tuple[Any, float, int]:
    """What an input came to, the seconds and the memory it took. Raises what it broke."""
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    if traced:
        tracemalloc.start()
    else:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
    memory = 0
    try:
        kind = target.examine(path, files, random.Random(dice))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        if traced:
            memory = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    spent = 0.0 if traced else time.process_time() - begin
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    if max(memory, 0 if traced else grown) > MOST_MEMORY:
        raise examine.Broken(f"it took {max(memory, grown) >> 20} MiB")
    return kind, spent, memory


def replay(target: str, path: bytes, files: Files, dice: int) -> None:
    """Examine one input again, in the same way. Raises what it breaks."""
    with _limits():
        _examined(PARSERS[target], path, files, dice, False)


def _told(error: BaseException) -> str:
    """One line a frame of ours, then the error."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/fuzz/campaign" not in f.filename]
    lines = [f"{os.path.basename(f.filename)}:{f.lineno} {f.name}" for f in frames[-6:]]
    return "\n".join([*lines, f"{type(error).__name__}: {str(error)[:500]}"])


class _limits:
    """The process within limits of its own."""

    def __enter__(self) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        self._space = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ADDRESS_SPACE, self._space[1]))
        self._handler = signal.signal(signal.SIGPROF, self._late)

    @staticmethod
    def _late(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"more than {SECONDS:g} s of processor time")

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, self._handler)
        resource.setrlimit(resource.RLIMIT_AS, self._space)
