"""What archives lie in a destination, and which need which: read from the archives themselves."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Mapping

from arzstream.archive.references import Tensors
from arzstream.container.directory import open_directory
from arzstream.daemon.journal import FOLDER, Archive
from arzstream.daemon.runs import family, folder_of, signature
from arzstream.errors import ArzError
from arzstream.store.folders import is_archive_name
from arzstream.store.ranges import LocalReader

__all__ = ["Held", "Inventory", "take"]

Identity = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Held:
    """An archive. ``name`` is relative to the destination; ``content`` and ``parents`` are content digests."""

    name: str
    size: int
    bytes_in: int
    content: bytes
    parents: tuple[bytes, ...]
    run: str
    """The same text for all archives of one run, and no others: folder, name without numbers, tensors."""
    identity: Identity
    path: bytes = b""
    """Of the checkpoint; empty for archives that the journal does not know, which are nobody's to remove."""
    published: float = 0.0
    ours: bool = False

    @property
    def alone(self) -> bool:
        return not self.parents


@dataclasses.dataclass
class Inventory:
    """All archives by name, and those that cannot be read, with the reason."""

    held: dict[str, Held] = dataclasses.field(default_factory=dict)
    unreadable: dict[str, str] = dataclasses.field(default_factory=dict)
    unknown: dict[str, str] = dataclasses.field(default_factory=dict)
    """The same of destinations below: what such an archive needs may lie anywhere."""

    @functools.cached_property
    def providers(self) -> dict[bytes, list[Held]]:
        """Content → the archives that serve those that need it. One that needs what it holds itself does not."""
        found: dict[bytes, list[Held]] = {}
        for held in self.held.values():
            if held.content not in held.parents:
                found.setdefault(held.content, []).append(held)
        return found

    def needed_by(self, names: Iterable[str], extra: Iterable[bytes] = ()) -> dict[str, str]:
        """All archives that those called ``names`` need, directly or not: name → one that needs it. ``extra`` are
        contents that are needed by something else, which goes by the empty name."""
        todo = [(content, name) for name in names if name in self.held for content in self.held[name].parents]
        todo += [(content, "") for content in extra]
        found: dict[str, str] = {}
        while todo:
            content, user = todo.pop()
            for held in self.providers.get(content, ()):
                if held.name not in found:
                    found[held.name] = user
                    todo += [(parent, held.name) for parent in held.parents]
        return found

    def whole(self, held: Held) -> bool:
        """Is everything there that ``held`` needs?"""
        listed = [held, *(self.held[name] for name in self.needed_by([held.name]))]
        return all(content in self.providers for one in listed for content in one.parents)

    @functools.cached_property
    def depths(self) -> dict[str, int]:
        """Name → how many archives stand behind it, each coded against the next."""
        found: dict[str, int] = {}
        left = dict(self.held)
        while left:
            known = {
                name: 1 + max((found[other.name] for other in self._behind(held)), default=-1)
                for name, held in left.items()
                if all(other.name in found for other in self._behind(held))
            }
            if not known:  # they need each other: nobody wrote that
                known = dict.fromkeys(left, len(self.held))
            found.update(known)
            left = {name: held for name, held in left.items() if name not in known}
        return found

    def _behind(self, held: Held) -> list[Held]:
        return [other for content in held.parents for other in self.providers.get(content, ())]


def take(dest: str, journal: Mapping[str, Archive], before: Inventory | None = None) -> Inventory:
    """Look at every archive below ``dest``; those that are as they were ``before`` are not opened again. What lies in
    folders that are destinations of their own may need ours, and is never ours."""
    known = before.held if before is not None else {}
    inventory = Inventory()
    for name, nested in _names(dest):
        try:
            identity = identity_of(os.path.join(dest, name))
            earlier = known.get(name)
            held = earlier if earlier is not None and earlier.identity == identity else _look(dest, name, identity)
            inventory.held[name] = _with_journal(held, None if nested else journal.get(name))
        except FileNotFoundError:
            continue  # removed since the folder was read
        except (ArzError, OSError) as error:
            (inventory.unknown if nested else inventory.unreadable)[name] = " ".join(str(error).split())
    return inventory


def identity_of(place: str) -> Identity:
    """What changes when a file is written or replaced."""
    status = os.lstat(place)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _names(dest: str) -> Iterator[tuple[str, bool]]:
    """Archives below ``dest``, each with whether it lies in a folder that is a destination of its own."""
    nested: set[str] = set()
    for folder, folders, names in os.walk(dest):
        if folder != dest and (FOLDER in folders or os.path.dirname(folder) in nested):
            nested.add(folder)
        folders[:] = sorted(name for name in folders if name != FOLDER)
        for name in sorted(names):
            if is_archive_name(name) and os.path.isfile(os.path.join(folder, name)):
                yield os.path.relpath(os.path.join(folder, name), dest), folder in nested


def _look(dest: str, name: str, identity: Identity) -> Held:
    with LocalReader(os.path.join(dest, name)) as reader:
        directory = open_directory(reader)
        if not directory.sealed:
            raise ArzError(f"{name}: is not sealed")
    return Held(
        name, identity[2], sum(record.size for _, record in directory.files), directory.content or b"",
        tuple(parent.digest for parent in directory.parents), signature(Tensors(directory)), identity,
    )  # fmt: skip


def _with_journal(held: Held, archive: Archive | None) -> Held:
    tensors = held.run.rpartition("|")[2]
    if archive is None or (archive.content and archive.content != held.content.hex()):
        return dataclasses.replace(held, run=tensors, path=b"", published=0.0, ours=False)
    name, _ = family(archive.path)
    run = f"{os.fsdecode(folder_of(archive.path))}|{os.fsdecode(name)}|{tensors}"
    return dataclasses.replace(held, run=run, path=archive.path, published=archive.published, ours=True)
