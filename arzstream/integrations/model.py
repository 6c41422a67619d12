"""A model as Hugging Face's libraries save one: which files of an archive are its weights, and which come with them.

Weights are one file or shards with an index, safetensors or PyTorch's; the rest is configuration, tokenizer, code.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import posixpath
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from arzstream.archive.meter import Progress
from arzstream.archive.reader import Archive
from arzstream.archive.reader import open as open_archive
from arzstream.archive.tensors import TensorSlice
from arzstream.errors import CorruptError, UnsupportedError
from arzstream.store.beneath import Beneath

__all__ = ["ModelFolder", "SliceMap", "cores", "opened", "refuse_quantised"]

STEMS = ("model", "diffusion_pytorch_model", "pytorch_model", "consolidated")
"""What weight files are called, best first; each as ``stem[.variant].safetensors`` or ``.bin``, or with an index."""
ENDINGS = (".safetensors", ".bin", ".pth")
_TENSORS = frozenset({"safetensors", "torch-zip", "gguf"})
_NOT_COMPANIONS = (
    *ENDINGS,
    ".pt",
    ".ckpt",
    ".gguf",
    ".onnx",
    ".onnx_data",
    ".h5",
    ".msgpack",
    ".ot",
    ".npz",
    ".distcp",
)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def opened(
    source: str | os.PathLike[str] | Archive,
    storage_options: dict[str, Any] | None = None,
    parents: Any = None,
    *,
    jobs: int | None = None,
    progress: Progress | bool = False,
) -> Iterator[Archive]:
    """``source`` itself if it is an open archive, which then stays open; else the archive at that path or URL."""
    if isinstance(source, Archive):
        yield source
        return
    with open_archive(source, storage_options, parents, jobs=jobs, progress=progress) as archive:
        yield archive


def refuse_quantised(config: Any, archive: str, instead: str) -> None:
    """Raises UnsupportedError if a model's configuration, an object or what ``config.json`` says, has its weights
    quantised: they are codes then, and what they stand for is up to the library that made them."""
    quantised = _said(config, "quantization_config")
    if quantised is not None:
        method = _said(quantised, "quant_method") or "no method named"
        raise UnsupportedError(
            f"{archive}: its configuration says that its weights are quantised ({method}); {instead}"
        )


def _said(config: Any, key: str) -> Any:
    return config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)


class SliceMap(Mapping[str, TensorSlice]):
    """Weights by the names that the model gives them; each is decoded when it is indexed. Thread-safe."""

    def __init__(self, archive: Archive, names: Mapping[str, str]) -> None:
        """``names``: what the model calls a tensor → what the archive does."""
        self.archive, self.names = archive, dict(names)

    def __getitem__(self, name: str) -> TensorSlice:
        return self.archive.get_slice(self.names[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class ModelFolder:
    """A folder of an archive that holds a model. ``subfolder``: its path; ``variant`` as in ``model.fp16.safetensors``.

    Where there is no file ``config.json`` (``sign``) at the top and only one folder has one, that folder is meant.
    """

    def __init__(
        self, archive: Archive, subfolder: str = "", variant: str | None = None, *, sign: str = "config.json"
    ) -> None:
        self.archive, self.variant = archive, variant
        self._files = set(archive.files())
        self.path = subfolder.strip("/") or self._home(sign)

    def _home(self, sign: str) -> str:
        homes = [posixpath.dirname(path) for path in self._files if posixpath.basename(path) == sign]
        return homes[0] if len(homes) == 1 else ""

    def _join(self, name: str) -> str:
        return posixpath.join(self.path, name) if self.path else name

    def __contains__(self, name: str) -> bool:
        return self._join(name) in self._files

    def read_json(self, name: str) -> Any:
        """A JSON file of the folder. Raises UnsupportedError if it is not there, CorruptError if it is no JSON."""
        if name not in self:
            raise UnsupportedError(f"{self.archive.name}: holds no {self._join(name)}{self._hint()}")
        try:
            return json.loads(self.archive.read_file(self._join(name)))
        except ValueError as error:
            raise CorruptError(f"{self.archive.name}: {self._join(name)} is not JSON ({error})") from error

    def _hint(self) -> str:
        listed = sorted(name for name in self._files if posixpath.dirname(name) == self.path)[:8]
        return f"; it has {', '.join(listed)}" if listed else "; name the subfolder that the model is in"

    # -- weights

    def weight_files(self) -> list[str]:
        """Paths of the files that hold the weights. Raises UnsupportedError if there are none or a shard is missing."""
        dot = f".{self.variant}" if self.variant else ""
        for ending in ENDINGS:
            for stem in STEMS:
                if f"{stem}{dot}{ending}" in self:
                    return [self._join(f"{stem}{dot}{ending}")]
                index = f"{stem}{ending}.index{dot}.json"
                if index in self:
                    return self._shards(index)
        # A single archive of weights without a model around it, whatever its file is called.
        found = [path for path in sorted(self._files) if path.endswith(".safetensors") and not self.variant]
        found = [path for path in found if posixpath.dirname(path) == self.path]
        if found:
            self._refuse_twins(found)
            return found
        raise UnsupportedError(
            f"{self.archive.name}: holds no weights called {self._join(f'model{dot}.safetensors')} or "
            f"{self._join(f'pytorch_model{dot}.bin')}{self._hint()}"
        )

    def _shards(self, index: str) -> list[str]:
        listed = self.read_json(index)
        names = listed.get("weight_map") if isinstance(listed, dict) else None
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise CorruptError(f"{self.archive.name}: {self._join(index)} has no weight_map")
        shards = sorted(set(names.values()))
        for shard in shards:
            if shard not in self:
                raise UnsupportedError(
                    f"{self.archive.name}: {self._join(index)} names {shard}, which is not in the archive; pack the "
                    "whole checkpoint"
                )
        return [self._join(shard) for shard in shards]

    def weights(self, only: Sequence[str] | None = None, ignored: Sequence[str] = ()) -> SliceMap:
        """The weights, none of them decoded yet. Raises UnsupportedError if they cannot be told apart as tensors.

        ``only``: globs over the names of the files that are meant, instead of the usual ones; ``ignored``: over those
        that are not.
        """
        files = self.weight_files() if only is None else self._named(only)
        files = [path for path in files if not _matches(path[len(self.path) :].lstrip("/"), ignored)]
        for path in files:
            record = self.archive.catalog.files[path]
            if record.format not in _TENSORS or record.note:
                raise UnsupportedError(
                    f"{self.archive.name}: {path} is kept as bytes ({record.note or 'not a format with tensors'}); "
                    "unpack it"
                )
        wanted, names = set(files), {}
        for name, place in self.archive.catalog.tensors.items():
            if place.path in wanted and place.member.name is not None:
                names[place.member.name] = name
        return SliceMap(self.archive, names)

    def _refuse_twins(self, files: Sequence[str]) -> None:
        """Raises UnsupportedError if two of the files, which no index lists, hold a weight of one name."""
        where: dict[str, str] = {}
        for place in self.archive.catalog.tensors.values():
            path, name = place.path, place.member.name
            if path is None or name is None or path not in files or where.setdefault(name, path) == path:
                continue
            raise UnsupportedError(
                f"{self.archive.name}: {where[name]} and {path} both hold {name}; pack the folder without the one that "
                "is not meant"
            )

    def _named(self, patterns: Sequence[str]) -> list[str]:
        here = [path for path in sorted(self._files) if posixpath.dirname(path) == self.path]
        found = [path for path in here if _matches(posixpath.basename(path), patterns)]
        if not found:
            raise UnsupportedError(f"{self.archive.name}: holds no file like {' or '.join(patterns)}{self._hint()}")
        return found

    # -- what comes with them

    @contextlib.contextmanager
    def companions(self) -> Iterator[str]:
        """A temporary folder with the files beside the weights: configuration, tokenizer, code. Weights of any kind,
        and folders below that have their own, stay in the archive."""
        with tempfile.TemporaryDirectory(prefix="arz-") as folder:
            self.extract(folder)
            yield folder

    def extract(self, folder: str) -> None:
        """Write the files beside the weights into ``folder``."""
        prefix = f"{self.path}/" if self.path else ""
        with Beneath(folder) as beneath:
            for path in sorted(self._files):
                if not path.startswith(prefix) or not self._is_companion(path):
                    continue
                record = self.archive.catalog.files[path]
                inner = os.fsencode(path[len(prefix) :])
                fd = beneath.create(inner)
                with os.fdopen(os.dup(fd), "wb") as file:
                    file.write(self.archive.read_file(path))
                beneath.finish(fd, inner, mode=0o600, mtime_ns=record.mtime)

    def _is_companion(self, path: str) -> bool:
        return self.archive.catalog.files[path].format not in _TENSORS and not path.endswith(_NOT_COMPANIONS)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
