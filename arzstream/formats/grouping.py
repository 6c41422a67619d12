"""Which files make one checkpoint.

A *model file* is one that holds tensors, by its name (``model.safetensors``, ``optimizer.pt``, …). A *marker* is a
file that only the folder of a checkpoint has (``trainer_state.json``, ``.metadata``, ``*.index.json``, and
``config.json`` beside a model file). A *step folder* has a name that counts (``checkpoint-10``, ``step_500``,
``global_step20``, ``iter_0001000``).

1. A folder that directly holds a model file or a marker is one checkpoint, with everything beneath it. Of nested ones
   the outermost counts: ``unet/`` belongs to the pipeline around it, DeepSpeed's ``checkpoint-10/global_step10`` to
   ``checkpoint-10``.
2. But a step folder is never part of what lies outside it: ``exp7/checkpoint-10`` is a checkpoint of its own when
   ``exp7`` holds the final model. A step folder that has such folders only inside (``global_step20/rank_0``) is one
   checkpoint with all of them.
3. Model files stand side by side as checkpoints of their own in the watched folder itself, and wherever they count
   (``epoch=1-step=200.ckpt``, ``step_100.pt``); unless there is a marker or a shard (``…-00001-of-00003…``) among them.
   So does the file with the weights of an ONNX model beside it (``step_100.onnx.data``).
4. What belongs to none of these is no checkpoint: logs, plots, ``latest``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["INDEX", "SHARD", "group", "is_model_file", "is_temporary", "settled_name"]

SHARD = re.compile(rb"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(?P<suffix>\.[A-Za-z0-9.]+)$")
"""The name of one shard of a set, as Hugging Face libraries write it."""
INDEX = re.compile(rb"\.index(?:\.[^./]+)?\.json$")
"""How the name of a set's index ends; before ``.json`` may stand a variant (``model.safetensors.index.fp16.json``)."""

_MODEL_SUFFIXES = (
    b".safetensors .pt .pt2 .pth .ckpt .bin .distcp .gguf .npz .npy .onnx .h5 .keras .nemo .msgpack .pdparams"
    b" .params".split()
)
_EXTERNAL_DATA = re.compile(rb"(?<=\.onnx)[._]data(?:[._-]?\d+)?$", re.IGNORECASE)
"""What exporters call the file with an ONNX model's weights: torch ``m.onnx.data``, optimum ``m.onnx_data``."""
_MARKERS = {
    b"trainer_state.json",
    b".metadata",
    b"model_index.json",
    b"modules.json",
    b"adapter_config.json",
    b"commit_success.txt",
    b"_CHECKPOINT_METADATA",
}
_CONFIGS = {b"config.json", b"params.json", b"generation_config.json"}
_COUNTS = rb"(?:checkpoint|ckpt|global_?step|step|iter(?:ation)?|epoch)s?"
_STEP_FOLDER = re.compile(rb"^(?:.*[._-])?" + _COUNTS + rb"[._=-]?\d+(?:[._=-].*)?$|^\d+$", re.IGNORECASE)
_STEP_FILE = re.compile(rb"(?:^|[._=-])" + _COUNTS + rb"[._=-]?\d+", re.IGNORECASE)
_TEMPORARY = re.compile(
    rb"^\.tmp|^tmp-checkpoint|[._-]tmp$|\.temp$|\.part(?:ial)?$|\.incomplete$|\.orbax-checkpoint-tmp(?:-\d+)?$",
    re.IGNORECASE,
)


def is_temporary(path: bytes) -> bool:
    """Whether a writer will still rename this, by the name of the file or of a folder above it."""
    return any(_TEMPORARY.search(part) for part in path.split(b"/"))


def is_model_file(name: bytes) -> bool:
    """Whether a file of this name holds tensors; of a temporary name, whether it may once it is renamed."""
    name = name.rpartition(b"/")[2].lower()
    if _TEMPORARY.search(name):
        return name.startswith(b".tmp") or any(suffix + b"." in name for suffix in _MODEL_SUFFIXES)
    return name.endswith(tuple(_MODEL_SUFFIXES))


def settled_name(path: bytes) -> bytes:
    """The path inside a checkpoint with the numbers of steps taken out, which each save of a run has its own of."""
    *folders, name = path.split(b"/")
    if _STEP_FILE.search(name) and not SHARD.match(name):
        name = re.sub(rb"\d+", b"#", name)
    parts = [re.sub(rb"\d+", b"#", part) if _STEP_FOLDER.match(part) else part for part in folders]
    return b"/".join([*parts, name])


def group(paths: Iterable[bytes]) -> dict[bytes, list[bytes]]:
    """Files by checkpoint, both as paths relative to the watched folder, ``/`` between parts.

    The key is the checkpoint's folder (``b""`` for the watched folder itself) or, for a checkpoint of one file, that
    file. Files with temporary names are among a checkpoint's files, and a lone one is a checkpoint that is never
    complete, so that they can be coded before they are renamed; :func:`is_temporary` tells them. What lies in a
    folder with a temporary name is left out.
    """
    folders: dict[bytes, list[bytes]] = {}
    for path in paths:
        folder, _, name = path.rpartition(b"/")
        if not is_temporary(folder):
            folders.setdefault(folder, []).append(name)
    owners = _owners(folders)
    groups: dict[bytes, list[bytes]] = {}
    for folder, names in folders.items():
        owner, models = owners.get(folder), {name for name in names if is_model_file(name)}
        for name in sorted(names):
            path = folder + b"/" + name if folder else name
            if owner is not None:
                groups.setdefault(owner, []).append(path)
            elif name in models or _EXTERNAL_DATA.sub(b"", name) in models:
                groups.setdefault(path, []).append(path)
    return {root: sorted(groups[root]) for root in sorted(groups)}


def _owners(folders: dict[bytes, list[bytes]]) -> dict[bytes, bytes]:
    """The checkpoint folder that each folder belongs to; folders that belong to none are missing."""
    holding = {folder for folder, names in folders.items() if _is_checkpoint(folder, names)}
    roots = {_checkpoint_of(folder, holding) for folder in holding}
    owners: dict[bytes, bytes] = {}
    for folder in folders:
        innermost = next((above for above in reversed(_line_of(folder)) if above in roots), None)
        if innermost is not None:
            owners[folder] = innermost
    return owners


def _checkpoint_of(folder: bytes, holding: set[bytes]) -> bytes:
    """The root of the checkpoint that ``folder``, one of ``holding``, is part of."""
    line = _line_of(folder)
    steps = [above for above in line if _is_step(above)]
    if steps:
        return next((above for above in steps if above in holding), steps[-1])
    return next(above for above in line if above in holding)


def _line_of(folder: bytes) -> list[bytes]:
    """The watched folder, …, the folder above, the folder itself."""
    parts = folder.split(b"/") if folder else []
    return [b"/".join(parts[:i]) for i in range(len(parts) + 1)]


def _is_step(folder: bytes) -> bool:
    return _STEP_FOLDER.match(folder.rpartition(b"/")[2]) is not None


def _is_checkpoint(folder: bytes, names: list[bytes]) -> bool:
    """Whether files of these names, which ``folder`` directly holds, are together one checkpoint."""
    if any(name in _MARKERS or INDEX.search(name) for name in names):
        return True
    models = [name for name in names if is_model_file(name)]
    if any(SHARD.match(name) for name in models) or (models and any(name in _CONFIGS for name in names)):
        return True
    if not _is_step(folder):  # a stray temporary file does not make a folder a checkpoint
        models = [name for name in models if not is_temporary(name)]
    return bool(models) and bool(folder) and not any(_STEP_FILE.search(name) for name in models)
