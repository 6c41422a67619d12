"""Checkpoint writers as they are met in the field, made slow enough to be watched.

Each writer does what one real library does to the file system, in the same order of system calls, and says when it did
what in an :class:`EventLog`, so that a test knows when the last byte was written. From another process::

    python -m arzstream.testing.writers sharded runs/step-1 --layers 8 --rate 50e6 --log events.jsonl
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, cast

from arzstream.testing.tensors import Tensor, model, optimizer, safetensors_header, tensor_bytes

__all__ = [
    "EventLog",
    "Pace",
    "SlowFile",
    "fill",
    "folder",
    "grow",
    "main",
    "renamed",
    "rewrite",
    "save_torch",
    "shards",
    "single",
]

StrPath = str | os.PathLike[str]


@dataclasses.dataclass
class Pace:
    """How slowly to write: at most ``rate`` bytes per second, in pieces of ``piece`` bytes, ``pause`` seconds after
    each tensor."""

    rate: float | None = None
    pause: float = 0.0
    piece: int = 1 << 20
    _due: float = dataclasses.field(default=0.0, repr=False)

    def spent(self, written: int) -> None:
        """Sleep until ``written`` more bytes are allowed. Time lost elsewhere is caught up for at most a tenth of a
        second."""
        if self.rate:
            now = time.monotonic()
            self._due = max(self._due, now - 0.1) + written / self.rate
            if self._due > now:
                time.sleep(self._due - now)

    def between(self) -> None:
        if self.pause:
            time.sleep(self.pause)


class EventLog:
    """What was done when: ``events`` is a list of (seconds since 1970, event, path); also one JSON array per line of
    ``path``."""

    def __init__(self, path: StrPath | None = None) -> None:
        self.events: list[tuple[float, str, str]] = []
        self._file = open(path, "a", buffering=1) if path is not None else None  # noqa: SIM115

    def __call__(self, event: str, path: StrPath = "") -> None:
        entry = (time.time(), event, os.fspath(path))
        self.events.append(entry)
        if self._file:
            self._file.write(json.dumps(entry) + "\n")

    def last(self, event: str = "last byte") -> float:
        """When ``event`` happened last; LookupError if it never did."""
        for when, what, _ in reversed(self.events):
            if what == event:
                return when
        raise LookupError(f"no event {event!r} so far")

    @classmethod
    def load(cls, path: StrPath) -> EventLog:
        """The log another process has written to ``path`` (so far; a torn last line is left out)."""
        log = cls()
        if os.path.exists(path):
            for line in Path(path).read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    when, event, name = json.loads(line)
                    log.events.append((when, event, name))
        return log


def _write_all(fd: int, data: bytes | memoryview, pace: Pace, offset: int | None = None) -> None:
    view = memoryview(data)
    while view:
        piece = view[: pace.piece]
        done = os.write(fd, piece) if offset is None else os.pwrite(fd, piece, offset)
        offset = None if offset is None else offset + done
        pace.spent(done)
        view = view[done:]


def grow(
    path: StrPath, tensors: Sequence[Tensor], *, pace: Pace, log: EventLog, metadata: dict[str, str] | None = None
) -> None:
    """safetensors up to 0.7: under the final name, header first, then tensor by tensor; the file grows."""
    header, ordered = safetensors_header(tensors, metadata)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        log("created", path)
        _write_all(fd, header, pace)
        for tensor in ordered:
            _write_all(fd, tensor.data, pace)
            log("tensor", tensor.name)
            pace.between()
        log("last byte", path)
    finally:
        os.close(fd)
    log("closed", path)


def fill(
    path: StrPath,
    tensors: Sequence[Tensor],
    *,
    pace: Pace,
    log: EventLog,
    order: str = "forward",
    mode: int = 0o644,
    metadata: dict[str, str] | None = None,
) -> None:
    """safetensors 0.8.0-rc.0: the final size first (a hole), then every tensor in place; ``order`` is ``forward``,
    ``reverse`` or ``shuffled`` (a writer with several threads)."""
    header, ordered = safetensors_header(tensors, metadata)
    offsets, at = [], len(header)
    for tensor in ordered:
        offsets.append(at)
        at += tensor.nbytes
    numbers = list(range(len(ordered)))
    if order == "reverse":
        numbers.reverse()
    elif order == "shuffled":
        random.Random(0).shuffle(numbers)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode)
    try:
        log("created", path)
        os.ftruncate(fd, at)
        _write_all(fd, header, pace, 0)
        for i in numbers:
            _write_all(fd, ordered[i].data, pace, offsets[i])
            log("tensor", ordered[i].name)
            pace.between()
        log("last byte", path)
    finally:
        os.close(fd)
    log("closed", path)


def renamed(
    path: StrPath, tensors: Sequence[Tensor], *, pace: Pace, log: EventLog, metadata: dict[str, str] | None = None
) -> None:
    """safetensors 0.8: preallocated under a temporary name with mode 0600, renamed when whole, never flushed to
    disk."""
    path = Path(path)
    temporary = path.with_name(f".tmp{random.Random(str(path)).randrange(16**6):06x}")
    fill(temporary, tensors, pace=pace, log=log, mode=0o600, metadata=metadata)
    os.rename(temporary, path)
    log("renamed", path)


class SlowFile(io.RawIOBase):
    """A file that takes its time: give it to ``torch.save``. Sequential, unbuffered."""

    def __init__(self, path: StrPath, pace: Pace, log: EventLog) -> None:
        self.path, self._pace, self._log = path, pace, log
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._at = 0
        log("created", path)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        _write_all(self._fd, view, self._pace)
        self._at += len(view)
        return len(view)

    def close(self) -> None:
        if not self.closed:
            self._log("last byte", self.path)
            os.close(self._fd)
            super().close()
            self._log("closed", self.path)


def save_torch(path: StrPath, tensors: Sequence[Tensor], *, pace: Pace, log: EventLog) -> None:
    """``torch.save`` of a dict of the tensors (and a few plain values) through a slow file."""
    import torch  # only this writer needs it

    types = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "I64": torch.int64, "BOOL": torch.bool}
    state: dict[str, Any] = {
        t.name: torch.frombuffer(bytearray(t.data), dtype=types[t.dtype]).reshape(t.shape)
        if t.data
        else torch.empty(t.shape, dtype=types[t.dtype])
        for t in tensors
    }
    state["epoch"], state["betas"] = 3, (0.9, 0.999)
    with SlowFile(path, pace, log) as file:
        torch.save(state, cast(IO[bytes], file))


Single = Callable[..., None]
STYLES: dict[str, Single] = {"grow": grow, "fill": fill, "renamed": renamed}


def single(path: StrPath, tensors: Sequence[Tensor], *, style: str = "grow", pace: Pace, log: EventLog) -> None:
    """One .safetensors file in one of :data:`STYLES`."""
    STYLES[style](path, tensors, pace=pace, log=log, metadata={"format": "pt"})


def _text(path: Path, content: str, log: EventLog) -> None:
    path.write_text(content)
    log("last byte", path)


def _config(tensors: Sequence[Tensor]) -> str:
    layers = {t.name.split(".")[2] for t in tensors if t.name.startswith(("model.layers.", "transformer.h."))}
    return json.dumps({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": len(layers)}, indent=2) + "\n"


def shards(
    path: StrPath,
    tensors: Sequence[Tensor],
    *,
    count: int = 3,
    style: str = "grow",
    pace: Pace,
    log: EventLog,
    index: bool = True,
) -> None:
    """transformers' ``save_pretrained``: config files, the shards, the index last (left out when ``index`` is
    false)."""
    root = Path(path)
    root.mkdir(parents=True, exist_ok=True)
    _text(root / "config.json", _config(tensors), log)
    _text(root / "generation_config.json", '{"_from_model_config": true}\n', log)
    total, parts, filled = tensor_bytes(tensors), [[] for _ in range(count)], 0  # type: tuple[int, list[list[Tensor]], int]
    for tensor in tensors:
        parts[min(filled * count // max(total, 1), count - 1)].append(tensor)
        filled += tensor.nbytes
    weight_map = {}
    for i, part in enumerate(parts, 1):
        name = f"model-{i:05}-of-{count:05}.safetensors"
        single(root / name, part, style=style, pace=pace, log=log)
        weight_map.update({tensor.name: name for tensor in part})
    if index:
        text = (
            json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"
        )
        _text(root / "model.safetensors.index.json", text, log)


def folder(
    path: StrPath, tensors: Sequence[Tensor], *, style: str = "grow", pace: Pace, log: EventLog, step: int = 1000
) -> None:
    """transformers' Trainer: weights, optimiser, scheduler, ``trainer_state.json`` last."""
    root = Path(path)
    root.mkdir(parents=True, exist_ok=True)
    _text(root / "config.json", _config(tensors), log)
    single(root / "model.safetensors", tensors, style=style, pace=pace, log=log)
    save_torch(root / "optimizer.pt", optimizer(tensors, seed=step), pace=pace, log=log)
    save_torch(root / "scheduler.pt", [], pace=pace, log=log)
    _text(root / "trainer_state.json", json.dumps({"global_step": step, "log_history": []}, indent=2) + "\n", log)


def rewrite(path: StrPath, offset: int, data: bytes, log: EventLog) -> None:
    """Write over bytes that were written before, in place, without changing the size."""
    fd = os.open(path, os.O_WRONLY)
    try:
        _write_all(fd, data, Pace(), offset)
        log("last byte", path)
    finally:
        os.close(fd)
    log("rewritten", path)


def truncate(path: StrPath, size: int, log: EventLog) -> None:
    """Cut a file short, as a writer that starts over does."""
    os.truncate(path, size)
    log("truncated", path)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m arzstream.testing.writers", description=__doc__.split("\n")[0])
    parser.add_argument(
        "what", choices=[*STYLES, "torch", "sharded", "trainer"], help="a file style, or a folder of files"
    )
    parser.add_argument("path", help="the file or folder to write")
    parser.add_argument("--style", choices=[*STYLES], default="grow", help="how the files of a folder are written")
    parser.add_argument("--family", choices=["llama", "gpt2"], default="llama")
    parser.add_argument("--dtype", choices=["BF16", "F16", "F32"], default="BF16")
    for name, default in (("layers", 4), ("width", 128), ("vocabulary", 512), ("shards", 3), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rate", type=float, help="bytes per second")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds after each tensor")
    parser.add_argument("--piece", type=int, default=1 << 20, help="bytes per write")
    parser.add_argument("--log", help="append events to this file, one JSON array a line")
    args = parser.parse_args(argv)
    tensors = model(
        args.family, layers=args.layers, width=args.width, vocabulary=args.vocabulary, dtype=args.dtype, seed=args.seed
    )
    pace, log = Pace(args.rate, args.pause, args.piece), EventLog(args.log)
    if args.what == "sharded":
        shards(args.path, tensors, count=args.shards, style=args.style, pace=pace, log=log)
    elif args.what == "trainer":
        folder(args.path, tensors, style=args.style, pace=pace, log=log)
    elif args.what == "torch":
        save_torch(args.path, tensors, pace=pace, log=log)
    else:
        single(args.path, tensors, style=args.what, pace=pace, log=log)
    log("done", args.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
