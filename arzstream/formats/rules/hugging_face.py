"""How transformers and accelerate save: ``save_pretrained``, ``Trainer``, ``save_state``."""

from __future__ import annotations

import re

from arzstream.formats.evidence import Finding, Folder, Strength, join, place_of, text
from arzstream.formats.grouping import SHARD, is_model_file, is_temporary

__all__ = ["accelerate", "sharded", "trainer"]

_RANK = re.compile(rb"(?:rng_state|random_states)_(\d+)\.(?:pth|pkl)")


def trainer(folder: Folder) -> Finding | None:
    """transformers' Trainer: ``trainer_state.json`` comes last from the first rank; other ranks may lag.

    It speaks for what lies beside it, but for the ranks' ``rng_state_N.pth``.
    """
    state = b"trainer_state.json"
    named = re.fullmatch(rb"checkpoint-\d+", folder.name) is not None
    ranks = folder.matching(r"rng_state_\d+\.pth")
    if state not in folder.files and not (named and b"training_args.bin" in folder.files):
        # Another rank's state may come before anything of the first.
        return Finding("weak", text(state), gives_up=True, doubt=True) if named and ranks else None
    if not isinstance(folder.json(state), dict):
        return Finding("good", text(state))
    if (missing := _missing_rank(folder, "rng_state_{}.pth", ranks)) is not None:
        return missing
    models = [p for p in folder.files if is_model_file(p) and not is_temporary(p) and b"/" not in p and p not in ranks]
    return folder.speaks(state, models, "weak" if ranks else "good")


def accelerate(folder: Folder) -> Finding | None:
    """accelerate's ``save_state``: model, ``optimizer.bin``, ``scheduler.bin``, then ``random_states_0.pkl``; other
    ranks and ``custom_checkpoint_0.pkl`` may follow, so that after it only quiet tells."""
    if b"trainer_state.json" in folder.files or b"training_args.bin" in folder.files:
        return None  # a Trainer's, which saves through accelerate
    ranks = folder.matching(r"random_states_\d+\.pkl")
    others = [path for path in folder.matching(r"(?:optimizer|scheduler|sampler)(?:_\d+)?\.bin") if b"/" not in path]
    parts = {place_of(path) for path in folder.matching(r"\.metadata")}
    fsdp = any(re.fullmatch(rb"(?:pytorch_model_fsdp|optimizer)(?:_\d+)?", part) for part in parts)
    if not (ranks or others or fsdp):
        return None
    state = b"random_states_0.pkl"
    if state not in folder.files:
        return Finding("weak", text(state), gives_up=True, doubt=True)
    if (missing := _missing_rank(folder, "random_states_{}.pkl", ranks)) is not None:
        return missing
    models = [path for path in folder.files if b"/" not in path and re.search(rb"\.(?:bin|safetensors)$", path)]
    return folder.speaks(state, models, "weak")


def _missing_rank(folder: Folder, name: str, ranks: list[bytes]) -> Finding | None:
    """Ranks count from 0 without gaps."""
    numbers = {int(match[1]) for path in ranks if (match := _RANK.fullmatch(path)) is not None}
    for number in range(min(max(numbers, default=-1), len(numbers) + 1)):
        if number not in numbers:
            return Finding("weak", name.format(number), gives_up=True, doubt=True)
    return None


def sharded(folder: Folder) -> Finding | None:
    """save_pretrained in shards: every shard that the others' names imply, and the index, which comes last."""
    sets: dict[tuple[bytes, bytes, bytes], set[bytes]] = {}
    for path in folder.files:
        match = SHARD.match(path)
        if match and not is_temporary(path):
            sets.setdefault((match["stem"], match["total"], match["suffix"]), set()).add(path)
    indexes = [path for path in folder.files if path.endswith(b".index.json")]
    if not sets and not indexes:
        return None
    for (stem, total, suffix), have in sets.items():
        for number in range(1, int(total) + 1):
            shard = b"%s-%05d-of-%s%s" % (stem, number, total, suffix)
            if shard not in have:
                return Finding("good", text(shard))
    strength: Strength = "good"
    for path in indexes:
        finding = _index(folder, path)
        if finding.waiting_for:
            return finding
        strength = "weak" if finding.strength == "weak" else strength
    covered = {shard for path in indexes for shard in _weight_files(folder, path)}
    for (stem, _, suffix), have in sets.items():
        if not covered.issuperset(have):
            return Finding("good", f"{text(stem + suffix)}.index.json", gives_up=True)
    return Finding(strength)


def _index(folder: Folder, path: bytes) -> Finding:
    """An index is satisfied if it parses and every file in its weight map is there and has the tensors it says."""
    weights = _weight_map(folder, path)
    if weights is None:
        return Finding("good", f"{text(path)} to be valid", gives_up=True)
    files = _weight_files(folder, path)
    if not any(file in folder.files for file in files) and any(map(is_model_file, folder.files)):
        return Finding("weak")  # all it lists is gone: left by an earlier save in shards
    tensors: dict[bytes, set[str]] = {}
    for file in files:
        facts = folder.files.get(file)
        if facts is None:
            return Finding("good", text(file))
        layout = facts.layout
        tensors[file] = {view.name for storage in layout.storages for view in storage.views} if layout else set()
    place = place_of(path)
    for name, shard in weights.items():
        file = join(place, shard)
        layout = folder.files[file].layout
        if layout is not None and layout.complete and layout.storages and name not in tensors[file]:
            return Finding("good", f"{text(file)} to hold {name[:80]!r}, as {text(path)} says", gives_up=True)
    return folder.speaks(path, files, "good")


def _weight_map(folder: Folder, path: bytes) -> dict[str, str] | None:
    parsed = folder.json(path)
    weights = parsed.get("weight_map") if isinstance(parsed, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(file, str) for file in weights.values()):
        return None
    return weights


def _weight_files(folder: Folder, path: bytes) -> list[bytes]:
    place = place_of(path)
    return [join(place, file) for file in dict.fromkeys((_weight_map(folder, path) or {}).values())]
