"""How transformers and accelerate save: ``save_pretrained``, ``Trainer``, ``save_state``."""

from __future__ import annotations

import bisect
import re

from arzstream.formats.evidence import Finding, Folder, Strength, join, place_of, text
from arzstream.formats.grouping import INDEX, SHARD, is_model_file, is_temporary
from arzstream.formats.pickle_data import attributes
from arzstream.formats.rules.stated import count, stated

__all__ = ["accelerate", "sharded", "trainer"]

_RANK = re.compile(rb"(?:rng_state|random_states)_(\d+)\.(?:pth|pkl)")
_STATE, _ARGUMENTS = b"trainer_state.json", b"training_args.bin"
_BEGINNINGS = (b"config.json", b"adapter_config.json")
"""What the Trainer's first rank writes before the model."""
_OF_RANK = re.compile(rb"(^|/)shard-\d{5}-(?=[^/]*$)")
"""What torch.distributed.checkpoint's ``HuggingFaceStorageWriter`` puts before the names of a rank's own shards."""
_INDEXED = (b".safetensors", b".bin", b".h5", b".msgpack")
"""Of what kinds of shards Hugging Face libraries write an index; nobody does of others."""
AHEAD = 2_000_000_000
"""Nanoseconds by which another rank's clock or start may be ahead of the first one's."""


def trainer(folder: Folder) -> Finding | None:
    """transformers' Trainer: ``trainer_state.json`` comes last from the first rank, and speaks for what lies beside it;
    other ranks write a ``rng_state_N.pth`` each, as many as ``training_args.bin`` says there are processes, sooner or
    later than that."""
    named = re.fullmatch(rb"checkpoint-\d+", folder.name) is not None
    ranks = folder.matching(r"rng_state_\d+\.pth")
    if _STATE not in folder.files and not (named and _ARGUMENTS in folder.files):
        # Another rank's state may come before anything of the first.
        return Finding("weak", text(_STATE), gives_up=True, doubt=True) if named and ranks else None
    if not folder.is_whole(_STATE):
        return Finding("good", text(_STATE))
    processes = _processes(folder)
    lacking = _missing_rank(folder, "rng_state_{}.pth", ranks, processes) or _left_behind(folder, ranks)
    if lacking is not None:
        return lacking
    models = [p for p in folder.files if is_model_file(p) and not is_temporary(p) and b"/" not in p and p not in ranks]
    return folder.speaks(_STATE, models, "weak" if ranks and processes is None else "good")


def _processes(folder: Folder) -> int | None:
    """How many processes trained, as the pickled ``TrainingArguments`` say (``distributed_state.num_processes``)."""
    return count(attributes(stated(folder, _ARGUMENTS).get("distributed_state")).get("num_processes"))


def _left_behind(folder: Folder, ranks: list[bytes]) -> Finding | None:
    """All ranks begin a save together, so what another rank wrote long before the first one began is of an earlier save
    of this checkpoint, which did not come to its end."""
    first = [path for path in folder.files if path in _BEGINNINGS or (is_model_file(path) and path not in ranks)]
    began = min((folder.files[path].changed for path in first), default=0)
    for path in sorted(ranks):
        if folder.files[path].changed < began - AHEAD:
            return Finding("weak", f"{text(path)} to be written again", gives_up=True, doubt=True)
    return None


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


def _missing_rank(folder: Folder, name: str, ranks: list[bytes], known: int | None = None) -> Finding | None:
    """Ranks count from 0 without gaps. ``known``: how many there are, of which each has written if one has; but for
    those whose disk is another one, as the checkpoints before tell."""
    numbers = {int(match[1]) for path in ranks if (match := _RANK.fullmatch(path)) is not None}
    before = folder.past.names
    for number in range(min(max(numbers, default=-1), len(numbers) + 1)):
        if number not in numbers:
            return Finding("weak", name.format(number), gives_up=True, doubt=True)
    for number in range(len(numbers), known or 0) if numbers else ():
        if not before or name.format(number).encode() in before:
            return Finding("weak", name.format(number), gives_up=True, doubt=True)
    return None


def sharded(folder: Folder) -> Finding | None:
    """save_pretrained in shards: every shard that the others' names imply, and the index, which comes last. Shards of
    ranks have none, and how many ranks there are is not told; each number must be some rank's."""
    sets: dict[tuple[bytes, bytes, bytes], dict[int, bytes]] = {}
    for path in folder.files:
        match = SHARD.match(path)
        if match and not is_temporary(path):
            stem = _OF_RANK.sub(rb"\1shard-*-", match["stem"])
            sets.setdefault((stem, match["total"], match["suffix"]), {})[int(match["number"])] = path
    indexes = [path for path in folder.files if INDEX.search(path)]
    if not sets and not indexes:
        return None
    for (stem, total, suffix), have in sets.items():
        for number in range(1, int(total) + 1):
            if number not in have:
                return Finding("good", text(b"%s-%05d-of-%s%s" % (stem, number, total, suffix)))
    strength: Strength = "good"
    for path in indexes:
        finding = _index(folder, path)
        if finding.waiting_for:
            return finding
        strength = "weak" if finding.strength == "weak" else strength
    covered = {shard for path in indexes for shard in _weights(folder, path) or ()}
    unknown = any(map(folder.is_large, indexes))
    for (stem, _, suffix), have in sets.items():
        if b"shard-*-" in stem:
            strength = "weak"
        elif suffix.endswith(_INDEXED) and not covered.issuperset(have.values()) and not unknown:
            return Finding("good", f"{text(stem + suffix)}.index.json", gives_up=True)
    return Finding(strength)


def _index(folder: Folder, path: bytes) -> Finding:
    """An index is satisfied if it parses and every file in its weight map is there and has the tensors it says. Of one
    that is too large to be parsed only the end is looked at, and quiet has to tell."""
    weights = _weights(folder, path)
    if weights is None and folder.is_large(path) and folder.is_whole(path):
        return folder.speaks(path, [file for file in folder.files if SHARD.match(file)], "weak")
    if weights is None:
        return Finding("good", f"{text(path)} to be valid", gives_up=True)
    files = list(weights)
    if not any(file in folder.files for file in files) and any(map(is_model_file, folder.files)):
        return Finding("weak")  # all it lists is gone: left by an earlier save in shards
    for file in files:
        if file not in folder.files:
            return Finding("good", text(file))
    for file, names in weights.items():
        layout = folder.files[file].layout
        if layout is None or not layout.complete or not layout.storages or layout.note:
            continue
        name = _lacking({view.name for storage in layout.storages for view in storage.views}, names)
        if name is not None:
            return Finding("good", f"{text(file)} to hold {name[:80]!r}, as {text(path)} says", gives_up=True)
    return folder.speaks(path, files, "good")


def _lacking(held: set[str], names: list[str]) -> str | None:
    """One of ``names`` that a file does not have which holds tensors of the names ``held``. What is stored as several
    tensors (``layer.weight.indices``, ``layer.weight.values`` of a sparse one) has one name in an index."""
    lacking = [name for name in names if name not in held]
    if not lacking:
        return None
    ordered = sorted(held)
    for name in lacking:
        after = bisect.bisect_left(ordered, name + ".")
        if after == len(ordered) or not ordered[after].startswith(name + "."):
            return name
    return None


def _weights(folder: Folder, path: bytes) -> dict[bytes, list[str]] | None:
    """The tensors of each file that an index lists, or None if it lists nothing that could be understood."""

    def by_file() -> dict[bytes, list[str]] | None:
        parsed = folder.json(path)
        weights = parsed.get("weight_map") if isinstance(parsed, dict) else None
        if not isinstance(weights, dict) or not all(isinstance(file, str) for file in weights.values()):
            return None
        found: dict[str, list[str]] = {}
        for name, file in weights.items():
            found.setdefault(file, []).append(name)
        place = place_of(path)
        return {join(place, file): names for file, names in found.items()}

    weights: dict[bytes, list[str]] | None = folder.once("weights", path, by_file)
    return weights
