"""Programs that read and write files. Theirs lie in memory where the system has such a folder."""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from arzstream.bench.contender import Contender
from arzstream.bench.sample import Sample

__all__ = ["BigSmall", "Lmzip", "scratch_folder"]

MEMORY = "/dev/shm"


def scratch_folder(nbytes: int) -> str | None:
    """A folder in memory if there is room for ``nbytes``, else None: the usual place for temporary files."""
    try:
        return MEMORY if shutil.disk_usage(MEMORY).free > 2 * nbytes else None
    except OSError:
        return None


class FileContender(Contender):
    """Codes files; the time includes reading and writing them."""

    def load(self, sample: Sample, threads: int) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="arz-bench-", dir=scratch_folder(3 * sample.nbytes))
        self.folder = Path(self._scratch.name)
        self.sources = self.files(sample)

    def files(self, sample: Sample) -> list[Path]:
        return list(sample.paths)

    def coded(self, number: int) -> Path:
        return self.folder / f"{number}.coded"

    def back(self, number: int) -> Path:
        return self.folder / f"{number}.back"

    def ready(self) -> None:
        for path in self.folder.iterdir():
            path.unlink()

    def sizes(self) -> int:
        return sum(self.coded(number).stat().st_size for number in range(len(self.sources)))

    def close(self) -> None:
        if hasattr(self, "_scratch"):
            self._scratch.cleanup()


class Lmzip(FileContender):
    """lmzip: ``lmz.compress`` and ``decompress`` of the files themselves, which it parses (safetensors, GGUF), at its
    default level (3 and 9, shared tables and larger chunks were no smaller on bf16); its own threads."""

    settings = "default level, files, own threads"

    def __init__(self) -> None:
        self._lmz: Any = importlib.import_module("lmz")

    def encode(self, threads: int) -> None:
        for number, source in enumerate(self.sources):
            self._lmz.compress(str(source), str(self.coded(number)), workers=threads)

    def decode(self, threads: int) -> None:
        for number in range(len(self.sources)):
            self._lmz.decompress(str(self.coded(number)), str(self.back(number)), workers=threads, overwrite=True)

    def wrong(self) -> str:
        self.stored = self.sizes()
        pairs = [(source, self.back(number)) for number, source in enumerate(self.sources)]
        bad = sum(_differ(source, back) for source, back in pairs)
        return f"{bad} of {len(pairs)} files come back with other bytes" if bad else ""


class BigSmall(FileContender):
    """bigsmall: ``compress`` and ``decompress`` of a safetensors file with the sample's tensors, default mode, decoded
    to arrays in memory. It codes in processes of its own; its check for updates is off."""

    settings = "balanced mode, safetensors file, own processes"

    def __init__(self) -> None:
        os.environ["BIGSMALL_DISABLE_VERSION_CHECK"] = "1"
        self._bigsmall: Any = importlib.import_module("bigsmall")
        self._decoded: dict[str, Any] = {}

    def files(self, sample: Sample) -> list[Path]:
        self._sample = sample
        same = all(path.suffix == ".safetensors" for path in sample.paths)
        return list(sample.paths) if same else [sample.tensors_file]

    def encode(self, threads: int) -> None:
        for number, source in enumerate(self.sources):
            self._bigsmall.compress(str(source), str(self.coded(number)), workers=threads, progress=False)

    def decode(self, threads: int) -> None:
        self._decoded = {}
        for number in range(len(self.sources)):
            self._decoded |= self._bigsmall.decompress(str(self.coded(number)), progress=False)

    def wrong(self) -> str:
        self.stored = self.sizes()
        expected: dict[str, bytes] = {}
        for source in self.sources:
            expected |= _tensors(source)
        bad = [name for name, data in expected.items()
               if name not in self._decoded or np.asarray(self._decoded[name]).tobytes() != data]  # fmt: skip
        return f"{len(bad)} of {len(expected)} tensors come back with other bytes" if bad else ""

    def close(self) -> None:
        super().close()
        self._decoded = {}


def _differ(one: Path, other: Path) -> bool:
    return not np.array_equal(np.fromfile(one, np.uint8), np.fromfile(other, np.uint8))


def _tensors(path: Path) -> dict[str, bytes]:
    """The bytes of every tensor of a valid safetensors file."""
    import json

    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    return {name: data[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]]
            for name, entry in header.items() if name != "__metadata__"}  # fmt: skip
