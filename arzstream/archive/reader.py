"""Reading an archive lazily: opening decodes nothing, and a tensor costs only its own chunks."""

from __future__ import annotations

import fnmatch
import io
import os
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from arzstream.archive.again import directory_of
from arzstream.archive.ancestry import Ancestry, SearchPath
from arzstream.archive.catalog import Catalog
from arzstream.archive.decoding import Decoder
from arzstream.archive.files import open_archived, piece_starts, read_range
from arzstream.archive.follow import commits
from arzstream.archive.meter import Bar, Meter, Progress
from arzstream.archive.streaming import decoded_ahead
from arzstream.archive.tensors import LazyState, Loaded, TensorSlice, load
from arzstream.archive.volumes import Joined, join_volumes
from arzstream.container.directory import Directory, directory_of_replay
from arzstream.container.records import FileRecord, Kind
from arzstream.limits import DEFAULT_LIMITS, Limits
from arzstream.store.ranges import RangeReader, open_reader

if TYPE_CHECKING:
    import torch

__all__ = ["Archive", "open"]


def open(
    path: str | os.PathLike[str],
    storage_options: dict[str, Any] | None = None,
    parents: SearchPath = None,
    *,
    limits: Limits = DEFAULT_LIMITS,
    jobs: int | None = None,
    progress: Progress | bool = False,
) -> Archive:
    """Open an archive at a local path or any fsspec URL, in at most two reads.

    A set is opened with its volumes, which lie beside it. ``parents`` is where to look for archives that this one was
    coded against, if they do not lie beside it: a folder, the URL of one, an archive, or several of these. A parent is
    opened when a tensor that needs it is decoded. ``jobs`` threads decode (default: one per core).
    ``progress(done, total, "loading")`` is told the bytes of tensors as they are decoded, from the threads that do
    that, never from two at once; True draws a bar on standard error. What it raises stops loading, and is raised where
    the tensors are read; so does closing the archive, in another thread, with StorageError.
    Raises CorruptError, UnsupportedError, LimitError or StorageError.
    """
    reader = open_reader(path, storage_options)
    try:
        ancestry = Ancestry(parents, storage_options, limits)
        archive = Archive(reader, limits=limits, jobs=jobs, ancestry=ancestry, place=os.fspath(path), progress=progress)
        if archive.directory.volumes:
            archive.join(os.fspath(path), storage_options)
        return archive
    except BaseException:
        reader.close()
        raise


class Archive:
    """An open archive. Thread-safe; a context manager."""

    def __init__(
        self,
        reader: RangeReader,
        *,
        limits: Limits = DEFAULT_LIMITS,
        jobs: int | None = None,
        ancestry: Ancestry | None = None,
        place: str | None = None,
        progress: Progress | bool = False,
    ) -> None:
        self._progress: Progress | None = (Bar() if progress else None) if isinstance(progress, bool) else progress
        self._reader, self._limits, self._jobs = reader, limits, jobs
        self._ancestry = ancestry if ancestry is not None else Ancestry(limits=limits)
        self._place = place if place is not None else reader.name
        self._joined: Joined | None = None
        self._set_directory(directory_of(reader, limits))

    def _set_directory(self, directory: Directory) -> None:
        self.directory = directory
        self.catalog = Catalog(directory)
        home = self._joined.home if self._joined is not None else None
        self._decoder = Decoder(
            self._reader, directory, limits=self._limits, jobs=self._jobs, home=home,
            parents=self._ancestry.tensors_of(directory, self._place),
        )  # fmt: skip
        if self._progress is not None:
            total = sum(place.nbytes for place in self.catalog.tensors.values())
            self._decoder.meter = Meter(self._progress, total)

    def join(self, place: str, storage_options: dict[str, Any] | None = None) -> None:
        """Take in the volumes of a set, which is at ``place``. Raises StorageError if one is missing."""
        self._joined = join_volumes(place, self._reader, self.directory, self._limits, storage_options)
        self._set_directory(self._joined.directory)

    # -- what is there; nothing is decoded

    @property
    def name(self) -> str:
        """The path or URL it was opened from."""
        return self._reader.name

    @property
    def sealed(self) -> bool:
        """False while the archive is being written, or if its end is missing."""
        return self.directory.sealed

    @property
    def decoder(self) -> Decoder:
        return self._decoder

    def keys(self) -> list[str]:
        """Names of all tensors, in layer order."""
        return list(self.catalog.tensors)

    def files(self) -> list[str]:
        """Paths of the original regular files."""
        return [path for path, _ in self.catalog.regular_files()]

    def layers(self) -> dict[str, list[str]]:
        """Names of tensors by layer, in layer order."""
        return self.catalog.layers()

    def metadata(self, path: str | None = None) -> dict[str, str]:
        """The metadata of the file at ``path``, or of the first that has some (safetensors' ``__metadata__``)."""
        if path is not None:
            return dict(self._record(path).metadata)
        return next((dict(r.metadata) for _, r in self.catalog.regular_files() if r.metadata), {})

    def parents(self) -> list[tuple[str, str]]:
        """(hint, content digest in hexadecimal) of the archives that this one was coded against; none if it stands
        alone. The first is its parent, the second its parent's."""
        return [(parent.hint, parent.digest.hex()) for parent in self.directory.parents]

    def content_digest(self) -> str | None:
        """Identity of the checkpoint, hexadecimal; None while the archive grows."""
        return self.directory.content.hex() if self.directory.content is not None else None

    # -- tensors

    def get_tensor(self, name: str) -> torch.Tensor:
        """Decode one tensor. Raises KeyError, CorruptError, UnsupportedError."""
        return load(self._decoder, self.catalog.find(name)).torch()

    def numpy(self, name: str) -> np.ndarray:
        """Decode one tensor as a NumPy array; bf16 comes as uint16, fp8 as uint8."""
        return load(self._decoder, self.catalog.find(name)).numpy()

    def get_slice(self, name: str) -> TensorSlice:
        """A tensor that decodes only the rows it is indexed with; ``get_shape()`` and ``get_dtype()`` cost nothing."""
        return TensorSlice(self._decoder, self.catalog.find(name))

    def stream(
        self, only: str | Collection[str] | None = None, prefetch_bytes: int = 256 << 20, framework: str = "pt"
    ) -> Iterator[tuple[str, Any]]:
        """All tensors in layer order, or those that match the glob ``only`` or are in it, decoded ahead within
        ``prefetch_bytes``."""
        names = self._matching(only)
        self.expect(names)
        places = ((name, self.catalog.tensors[name]) for name in names)
        # No frame of ours keeps a tensor that was handed out, so that one let go of makes room for the next.
        finish = _numpy if framework == "np" else _torch
        return map(finish, decoded_ahead(self._decoder, places, prefetch_bytes))

    def state_dict(self, only: str | Collection[str] | None = None) -> LazyState:
        """A mapping from names to tensors that are decoded when indexed."""
        return LazyState(self._decoder, self.catalog, self._matching(only))

    def expect(self, names: Iterable[str]) -> None:
        """Progress counts from nothing again, up to the bytes of these tensors."""
        if self._decoder.meter is not None:
            self._decoder.meter.begin(sum(self.catalog.find(name).nbytes for name in names))

    def _matching(self, only: str | Collection[str] | None) -> list[str]:
        if only is None:
            return list(self.catalog.tensors)
        if isinstance(only, str):
            return [name for name in self.catalog.tensors if fnmatch.fnmatchcase(name, only)]
        wanted = set(only)
        if not wanted <= self.catalog.tensors.keys():
            raise KeyError(f"{self.name} holds no tensor called {min(wanted - self.catalog.tensors.keys())!r}")
        return [name for name in self.catalog.tensors if name in wanted]

    # -- files

    def read_file(self, path: str) -> bytes:
        """The content of an original file."""
        record = self._record(path)
        return bytes(read_range(self._decoder, record, piece_starts(record), 0, record.size))

    def open_file(self, path: str) -> io.BufferedReader:
        """An original file as a seekable stream, decoded as it is read; ``torch.load`` works on it."""
        return open_archived(self._decoder, self._record(path))

    def _record(self, path: str) -> FileRecord:
        record = self.catalog.files.get(path)
        if record is None or record.kind != Kind.REGULAR:
            raise KeyError(f"{self.name} holds no file called {path!r}")
        return record

    # -- growing

    def follow(self, timeout: float | None = 60.0) -> Iterator[tuple[str, list[str]]]:
        """Yield (layer, names) for each committed layer, those already there first, until the archive is sealed.

        The tensors yielded can be read at once. A layer comes again when more of it is committed. Raises StorageError
        if nothing is added for ``timeout`` seconds.
        """
        if self.sealed:
            yield from self.layers().items()
            return
        for found, replay in commits(self._reader, self._limits, timeout):
            self._set_directory(directory_of_replay(replay))
            by_unit: dict[int, list[tuple[str, str]]] = {}
            for name, place in self.catalog.tensors.items():
                by_unit.setdefault(place.entry.number, []).append((self.catalog.layer(place), name))
            for commit in found:
                by_layer: dict[str, list[str]] = {}
                for layer, name in (pair for number, _ in commit.units for pair in by_unit.get(number, ())):
                    by_layer.setdefault(layer, []).append(name)
                yield from by_layer.items()
        self._set_directory(directory_of(self._reader, self._limits))

    # -- end

    def close(self) -> None:
        self._decoder.close()
        if self._joined is not None:
            self._joined.close()
        self._ancestry.close()
        self._reader.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __contains__(self, name: object) -> bool:
        return name in self.catalog.tensors

    def __repr__(self) -> str:
        state = "" if self.sealed else ", growing"
        tensors, files = len(self.catalog.tensors), len(self.catalog.files)
        return f"<arzstream.Archive {self.name!r}: {tensors} tensors, {files} files{state}>"


def _numpy(item: tuple[str, Loaded]) -> tuple[str, np.ndarray]:
    return item[0], item[1].numpy()


def _torch(item: tuple[str, Loaded]) -> tuple[str, torch.Tensor]:
    return item[0], item[1].torch()
