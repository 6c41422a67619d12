"""What loaders of inference servers have in common: their options, and an iterator over the weights of an archive.

Each layer is decoded as the server takes it. Tensors that the server does not want are neither read nor decoded. Ranks
on one host share one decode.
"""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from arzstream.archive.meter import Progress
from arzstream.archive.reader import Archive
from arzstream.archive.reader import open as open_archive
from arzstream.errors import UnsupportedError
from arzstream.integrations.model import ModelFolder, cores
from arzstream.integrations.shared import decoded_together, same_host

__all__ = ["ServingOptions", "archives_in", "options_of_draft", "weights_of"]

PREFETCH_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True)
class ServingOptions:
    """What a server's user says about the archive, as JSON where the server takes that."""

    uri: str
    """Path or URL of the archive."""
    storage_options: dict[str, Any] | None = None
    parents: str | list[str] | None = None
    """Where to look for what the archive was coded against, if not beside it."""
    subfolder: str = ""
    variant: str | None = None
    jobs: int | None = None
    """Threads that decode; by default one for each core, shared out among the ranks of the host."""
    prefetch_bytes: int = PREFETCH_BYTES
    """Decoded bytes that may be waiting for the server."""
    share: bool = True
    """Ranks on one host decode each tensor once, for all of them."""

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> ServingOptions:
        """Raises ValueError, which names them, for keys that are unknown, and for a missing ``uri``."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(given) - known)
        if unknown:
            raise ValueError(f"unknown options {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        if not isinstance(given.get("uri"), str):
            raise ValueError('give the archive: {"uri": "s3://models/llama.arz"}')
        return cls(**given)

    def open(self, ranks: int = 1, progress: Progress | bool = False) -> Archive:
        """The archive, to be read by ``ranks`` processes of this host at once."""
        jobs = self.jobs or max(1, cores() // ranks)
        return open_archive(self.uri, self.storage_options, self.parents, jobs=jobs, progress=progress)


def archives_in(folder: str) -> list[str]:
    """Paths of the archives in a folder."""
    return sorted(glob.glob(os.path.join(glob.escape(folder), "*.arz")))


def options_of_draft(given: Mapping[str, Any], folder: str) -> ServingOptions | None:
    """Options for a model that a server loads beside the main one, as a draft that speculates for it: the archive in
    its own ``folder``, as ``uri`` and what goes with it are the main model's. None if it has none; then its weights are
    what the server itself reads. Raises UnsupportedError if it has several."""
    found = archives_in(folder)
    if len(found) > 1:
        raise UnsupportedError(f"{folder}: holds {len(found)} archives (*.arz); keep the one of the draft model")
    of_both = {key: given[key] for key in ("parents", "jobs", "prefetch_bytes", "share") if key in given}
    return ServingOptions.from_mapping({**of_both, "uri": found[0]}) if found else None


def weights_of(
    options: ServingOptions,
    *,
    groups: Sequence[Any] = (),
    skip: Callable[[str], bool] = lambda name: False,
    only: Sequence[str] | None = None,
    ignored: Sequence[str] = (),
    progress: Progress | bool = False,
) -> Iterator[tuple[str, Any]]:
    """(name, torch tensor on the CPU) of every weight but those to ``skip``, in layer order.

    ``groups`` are ``torch.distributed`` groups that take CPU objects, all of whose ranks iterate at once; the first
    that is on one host shares what is decoded. ``only`` and ``ignored`` are globs over names of files. Whoever iterates
    takes all of them, or closes the iterator.
    """
    group = next((group for group in groups if options.share and same_host(group)), None)
    with options.open(1 if group is None else group.size(), progress) as archive:
        weights = ModelFolder(archive, options.subfolder, options.variant).weights(only, ignored)
        called = {theirs: ours for ours, theirs in weights.names.items() if not skip(ours)}
        if group is not None:
            archive.expect(called)
            taken = decoded_together(archive, called, group)
        else:
            taken = archive.stream(called, options.prefetch_bytes)
        for name, tensor in taken:
            yield called[name], tensor
