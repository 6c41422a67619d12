"""How Megatron-LM and Megatron-Bridge save: parts or a file of each rank, and then a word beside the folder."""

from __future__ import annotations

import re

from arzstream.formats.evidence import Finding, Folder, join, place_of, text

__all__ = ["megatron"]

TRACKER = b"latest_checkpointed_iteration.txt"
_METADATA = b"metadata.json"
_TRAIN_STATE, _RUN_CONFIG = b"train_state.pt", b"run_config.yaml"
"""Megatron-Bridge's own, before the tracker and after it."""
_TOKENIZER = b"tokenizer"


def megatron(folder: Folder) -> Finding | None:
    """Megatron: ``metadata.json`` after all parts, and, if it is a trainer that saves, a barrier later
    ``latest_checkpointed_iteration.txt`` beside the folder; without distributed checkpoints (a ``model_optim_rng.pt``
    for each rank) that alone. A core before 0.20 has a ``common.pt``; the formats ``torch_dcp`` and ``fsdp_dtensor``
    have neither that nor ``metadata.json``."""
    legacy = folder.matching(r"model_optim_rng\.pt|distrib_optim\.pt")
    if legacy:
        return _legacy(folder, legacy)
    saved = folder.by_place(r".*\.distcp|\.metadata|metadata\.json|common\.pt")
    places = _places(folder, saved)
    if places:
        place = min(places, key=lambda place: (place.count(b"/"), len(place)))  # others are parts of it
        marker = join(place, _METADATA)
        if not folder.is_whole(marker):
            return Finding("strong", text(marker))
        finding = folder.speaks(marker, [path for path in saved[place] if path != marker], "strong")
        if finding.waiting_for:
            return finding
    elif re.fullmatch(rb"iter_\d{7,}", folder.name) is None or not folder.by_place(r".*\.distcp|\.metadata").get(b""):
        return None
    return Finding("strong") if re.fullmatch(rb"iter_\d+|release", folder.name) is None else _trained(folder)


def _places(folder: Folder, saved: dict[bytes, list[bytes]]) -> set[bytes]:
    """The folders inside where ``metadata.json`` is, or must come; a ``common.pt`` may be somebody else's. ``saved``:
    by folder, what ``dist_checkpointing`` writes there."""
    numbered = re.fullmatch(rb"iter_\d+", folder.name) is not None
    commons = {place_of(path) for path in folder.matching(r"common\.pt")}
    places = {place for place in commons if numbered or len(saved[place]) > 1}
    for marker in folder.matching(r"metadata\.json"):
        if len(saved[place_of(marker)]) > 1 and "sharded_backend" in (folder.json(marker) or ()):
            places.add(place_of(marker))
    return places


def _trained(folder: Folder) -> Finding:
    """A trainer's folder, all of whose parts are there. In it Megatron-Bridge writes ``train_state.pt`` before the
    tracker and ``run_config.yaml`` after it, and both trainers, after all, may write a ``tokenizer``: whether they do
    is known from the checkpoints before; in the first one of a run, and in one that is written again over its old
    tokenizer, only quiet tells."""
    first = not folder.past.names
    tracker = folder.beside(TRACKER)
    before = folder.matching(r".*\.distcp|\.metadata|metadata\.json|common\.pt|train_state\.pt")
    if first if tracker is None else tracker[1] < folder.newest(before):  # a run has written one, if it ever does
        return Finding("weak", f"{text(TRACKER)} to be written", gives_up=True, doubt=True)
    if _TRAIN_STATE in folder.files and _RUN_CONFIG in folder.files:
        finding = folder.speaks(_RUN_CONFIG, [_TRAIN_STATE], "strong")
        if finding.waiting_for:
            return finding
    elif first and _TRAIN_STATE in folder.files:
        return Finding("weak", text(_RUN_CONFIG), gives_up=True, doubt=True)
    written = folder.past.written
    old = any(
        written.get(path) == (facts.size, facts.changed)
        for path, facts in folder.files.items()
        if place_of(path) == _TOKENIZER
    )
    return Finding("weak" if first or old else "strong")


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
