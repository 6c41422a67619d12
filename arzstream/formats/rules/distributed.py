"""How jobs of many ranks save: torch.distributed.checkpoint, and Lightning on top of it."""

from __future__ import annotations

import re

from arzstream.formats.evidence import Finding, Folder, Strength, join, text

__all__ = ["distributed", "lightning"]

_PART = re.compile(rb"__\d+_\d+\.distcp")
_RANK = re.compile(rb"__(\d+)_\d+\.distcp")


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
