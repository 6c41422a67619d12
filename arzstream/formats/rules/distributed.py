"""How jobs of many ranks save: torch.distributed.checkpoint, and Lightning and Megatron on top of it."""

from __future__ import annotations

import re

from arzstream.formats.evidence import Finding, Folder, Strength, join, place_of, text

__all__ = ["distributed", "lightning", "megatron"]

_PART = re.compile(rb"__\d+_\d+\.distcp")
_RANK = re.compile(rb"__(\d+)_\d+\.distcp")
TRACKER = b"latest_checkpointed_iteration.txt"


def distributed(folder: Folder) -> Finding | None:
    """torch.distributed.checkpoint: ``.metadata`` comes last, by renaming; until then an old one may lie there.

    Without collectives each rank writes a ``__N.metadata`` of its own. What a ``.metadata`` lists must be there; where
    it is too large to be searched, quiet has to tell that.
    """
    parts = folder.by_place(r".*\.distcp")
    markers = folder.by_place(r"(?:__\d+)?\.metadata")
    if not parts and not markers:
        return None
    strength: Strength = "strong"
    for place in {**parts, **markers}:
        for marker, files in _spoken_for(parts.get(place, []), markers.get(place, []), place).items():
            if marker not in folder.files:
                return Finding("strong", text(marker))
            for name in sorted(_listed(folder, marker)):
                if join(place, name) not in folder.files:
                    return Finding("strong", text(join(place, name)))
            finding = folder.speaks(marker, files, "strong")
            if finding.waiting_for:
                return finding
            strength = "weak" if folder.is_large(marker) else strength
    return Finding(strength)


def _spoken_for(parts: list[bytes], markers: list[bytes], place: bytes) -> dict[bytes, list[bytes]]:
    """Each marker that is there or must come, with the files it speaks for."""
    own = {marker for marker in markers if not marker.endswith(b"/.metadata") and marker != b".metadata"}
    if not own:
        return {join(place, b".metadata"): parts}
    found: dict[bytes, list[bytes]] = {marker: [] for marker in own}
    for part in parts:
        named = _RANK.fullmatch(part[len(place) + 1 if place else 0 :])
        if named is not None:  # else it is no rank's, whatever it is
            found.setdefault(join(place, b"__%s.metadata" % named[1]), []).append(part)
    return found


def _listed(folder: Folder, marker: bytes) -> set[bytes]:
    """Names of the files that a ``.metadata`` refers to. It is a pickle, which is searched and never loaded."""
    found = folder.once("listed", marker, lambda: frozenset(_PART.findall(folder.read_small(marker) or b"")))
    return set(found or ())


def lightning(folder: Folder) -> Finding | None:
    """Lightning in shards: a folder called like a file, ``….ckpt``, and in it ``meta.pt`` after the ``.metadata``."""
    meta, marker = b"meta.pt", b".metadata"
    parts = folder.by_place(r".*\.distcp").get(b"", [])
    if meta not in folder.files and not (folder.name.endswith(b".ckpt") and (parts or marker in folder.files)):
        return None
    if marker not in folder.files and not parts:
        return None
    if meta not in folder.files:
        return Finding("strong", text(meta), gives_up=True, doubt=True)
    return folder.speaks(meta, [*parts, *([marker] if marker in folder.files else [])], "strong")


def megatron(folder: Folder) -> Finding | None:
    """Megatron: ``metadata.json`` after everything else of the checkpoint; without distributed checkpoints (a
    ``model_optim_rng.pt`` for each rank) the ``latest_checkpointed_iteration.txt`` beside it, after a barrier."""
    legacy = folder.matching(r"model_optim_rng\.pt|distrib_optim\.pt")
    if legacy:
        return _legacy(folder, legacy)
    for common in folder.matching(r"common\.pt"):
        place = place_of(common)
        parts = folder.by_place(r".*\.distcp").get(place, [])
        metadata = join(place, b".metadata")
        marker = join(place, b"metadata.json")
        known = parts or metadata in folder.files or marker in folder.files
        if not known and re.fullmatch(rb"iter_\d+", folder.name) is None:
            continue  # somebody else's common.pt
        if not folder.is_whole(marker):
            return Finding("strong", text(marker))
        return folder.speaks(marker, [common, *parts, *([metadata] if metadata in folder.files else [])], "strong")
    return None


def _legacy(folder: Folder, files: list[bytes]) -> Finding | None:
    named = re.fullmatch(rb"iter_(\d+)|release", folder.name)
    if named is None:
        return None
    ranks = {place_of(path) for path in files}
    numbers = sorted(tuple(map(int, re.findall(rb"\d+", rank.rpartition(b"/")[2]))) for rank in ranks)
    for missing in _gaps(numbers):
        name = "mp_rank_" + "_".join(f"{n:0{width}}" for n, width in zip(missing, (2, 3, 3), strict=False))
        return Finding("weak", name, gives_up=True, doubt=True)
    tracker = folder.beside(TRACKER)
    if tracker is None or tracker[1] < folder.newest(files):
        return Finding("weak", f"{text(TRACKER)} to be written", gives_up=True, doubt=True)
    return Finding("strong")


def _gaps(numbers: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """What is missing of a full grid of ranks: of tensor, pipeline and expert parallelism."""
    if not numbers or len({len(number) for number in numbers}) != 1 or len(numbers[0]) > 3:
        return []
    have, grid = set(numbers), [()]  # type: tuple[set[tuple[int, ...]], list[tuple[int, ...]]]
    for axis in range(len(numbers[0])):
        size = max(number[axis] for number in numbers) + 1
        if len(grid) * size > 1 << 16:
            return []
        grid = [(*known, n) for known in grid for n in range(size)]
    return [number for number in grid if number not in have]
