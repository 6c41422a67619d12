"""How DeepSpeed saves: files of every rank in a folder, and beside it ``latest``, before the last barrier."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from arzstream.formats.evidence import Finding, Folder, join, place_of, text
from arzstream.formats.grouping import settled_name
from arzstream.formats.pickle_data import pairs
from arzstream.formats.rules.stated import count, stated

__all__ = ["deepspeed"]

_MODEL = re.compile(rb"(?:zero_pp_rank_(?P<dp>\d+)_)?mp_rank_(?P<mp>\d+)_model_states\.pt")
_OPTIMIZER = re.compile(rb"(?P<bf16>bf16_)?zero_pp_rank_(?P<dp>\d+)_mp_rank_(?P<mp>\d+)_optim_states\.pt")
LATEST = b"latest"
NAME_BYTES = 4096
"""What a file that names a folder is read of."""


class _World(NamedTuple):
    """Data and model parallel ranks; whether ZeRO is used; whether each machine keeps its own ranks' files."""

    data: int
    model: int
    zero: bool
    apart: bool


def deepspeed(folder: Folder) -> Finding | None:
    """DeepSpeed: the first rank writes ``latest`` when it is done, before the barrier at the end, so the files of all
    ranks must be there: as many as the model's states say (``dp_world_size``, ``mp_world_size``), which are read
    without unpickling, or at least without gaps. Ranks of another machine, where each keeps its own
    (``use_node_local_storage``), are waited for once: the checkpoints before tell that they do not come."""
    places = folder.by_place(r"(?:bf16_)?(?:zero_pp_rank_\d+_)?mp_rank_\d+_(?:model|optim)_states\.pt")
    if not places:
        return None
    place = min(places)
    files = places[place]
    models = [match for path in files if (match := _MODEL.fullmatch(_name(path)))]
    optimizers = [match for path in files if (match := _OPTIMIZER.fullmatch(_name(path)))]
    if not models:
        return Finding("weak", text(join(place, b"mp_rank_00_model_states.pt")), gives_up=True)
    world = _world(folder, place, models[0], optimizers)
    sure = world is not None and not world.apart
    before = folder.past.names if world is not None and world.apart else frozenset()
    for name in _expected(models, optimizers, world):
        path = join(place, name)
        if path not in folder.files and (not before or settled_name(path) in before):
            return Finding("good", text(path), gives_up=not sure, doubt=not sure)
    return _latest(folder, place, files, known=sure, elsewhere=bool(before))


def _expected(models: list[re.Match[bytes]], optimizers: list[re.Match[bytes]], world: _World | None) -> list[bytes]:
    """Names of all files that there must be, on all machines."""
    data = {int(match["dp"]) for match in [*models, *optimizers] if match["dp"] is not None}
    model = {int(match["mp"]) for match in [*models, *optimizers]}
    dp, mp, zero, _ = world or (max(data, default=-1) + 1, max(model) + 1, bool(optimizers), False)
    if max(dp, 1) * max(mp, 1) > 1 << 16:
        return []
    names = []
    third = models[0]["dp"] is not None  # the weights are partitioned, too
    bf16 = b"bf16_" if optimizers and optimizers[0]["bf16"] else b""
    for m in range(mp):
        if not third:
            names.append(b"mp_rank_%02d_model_states.pt" % m)
        for d in range(dp):
            if third:
                names.append(b"zero_pp_rank_%d_mp_rank_%02d_model_states.pt" % (d, m))
            if optimizers:
                names.append(b"%szero_pp_rank_%d_mp_rank_%02d_optim_states.pt" % (bf16, d, m))
            elif zero:
                names.append(b"zero_pp_rank_%d_mp_rank_%02d_optim_states.pt" % (d, m))
    return names


def _world(folder: Folder, place: bytes, model: re.Match[bytes], optimizers: list[re.Match[bytes]]) -> _World | None:
    """What a model's states and their ``ds_config`` say; None if they do not, or not yet. MiCS shards over some ranks
    (``partition_count`` of an optimiser's states), of which the first ones write: the others hold the same."""
    state = stated(folder, join(place, model.string))
    dp, mp = count(state.get("dp_world_size")), count(state.get("mp_world_size", 1))
    if dp is None or mp is None:
        return None
    if model["dp"] is not None and optimizers:
        optimizer = stated(folder, join(place, optimizers[0].string)).get("optimizer_state_dict")
        partitions = count(dict(_named(optimizer)).get("partition_count"))
        dp = partitions if partitions is not None and dp % partitions == 0 else dp
    zero = "optimizer" in state and state["optimizer"] is None and state.get("param_shapes", True) is not None
    saving = dict(_named(dict(_named(state.get("ds_config"))).get("checkpoint")))
    return _World(dp, mp, zero, saving.get("use_node_local_storage") is True)


def _named(node: Any) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in pairs(node) if isinstance(key, str)]


def _latest(folder: Folder, place: bytes, files: list[bytes], *, known: bool, elsewhere: bool) -> Finding:
    """``latest`` lies in the folder around the tag's. If it names this tag, it speaks for the first rank's files; if
    it names another and is newer than all of them, this tag was finished before. ``elsewhere``: it may be on the first
    rank's machine alone."""
    above, _, tag = place.rpartition(b"/")
    if place:
        path = join(above, LATEST)
        raw = folder.read(path, 0, min(folder.files[path].size, NAME_BYTES)) if path in folder.files else None
        latest = None if raw is None else (raw, folder.files[path].changed)
    else:
        tag, latest = folder.name, folder.beside(LATEST)
    if latest is None and elsewhere:
        return Finding("weak")
    first = [path for path in files if re.search(rb"(?:^|/)(?:bf16_)?(?:zero_pp_rank_0_)?mp_rank_00_", path)]
    spoken_for = first if latest is not None and latest[0].strip() == tag else files
    if latest is None or not latest[0].strip() or latest[1] < folder.newest(spoken_for):
        return Finding("weak", f"{text(LATEST)} to name {text(tag)}", gives_up=True, doubt=True)
    return Finding("good" if known else "weak")


def _name(path: bytes) -> bytes:
    return path[len(place_of(path)) + 1 if b"/" in path else 0 :]
