"""Models larger than memory, with accelerate: each layer is decoded when the forward pass comes to it.

accelerate's hooks fetch a module's weights before its forward pass and drop them after it. They fetch them from a
mapping; here that is an archive, behind a cache of bounded size, so that what is used again soon is not decoded again.
"""

from __future__ import annotations

import collections
import os
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from arzstream.archive.ancestry import SearchPath
from arzstream.archive.reader import Archive
from arzstream.archive.reader import open as open_archive
from arzstream.archive.tensors import TensorSlice
from arzstream.codec.dtypes import DTYPES
from arzstream.errors import UnsupportedError
from arzstream.integrations.model import ModelFolder, SliceMap, refuse_quantised
from arzstream.integrations.optional import require

if TYPE_CHECKING:
    import torch

__all__ = ["WeightCache", "offloaded", "offloaded_from_pretrained"]

CACHE_BYTES = 1 << 30


class WeightCache(Mapping[str, "torch.Tensor"]):
    """Tensors of a model, decoded when they are asked for; those used last stay, up to ``cache_bytes``. Thread-safe.

    It holds no more than that. A tensor that is larger than all of it is handed out and not kept.
    """

    def __init__(
        self, weights: SliceMap, cache_bytes: int = CACHE_BYTES, *, aliases: Mapping[str, str] | None = None
    ) -> None:
        """``aliases``: other names of tensors → the names that ``weights`` has for them."""
        self._weights, self._most, self._aliases = weights, cache_bytes, dict(aliases or {})
        self._kept: collections.OrderedDict[str, torch.Tensor] = collections.OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self.decoded = 0
        """How many tensors were decoded so far."""

    def __getitem__(self, name: str) -> torch.Tensor:
        name = self._aliases.get(name, name)
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        part = self._weights[name]
        self._make_room(part.nbytes)
        tensor: torch.Tensor = part[...]
        with self._lock:
            self.decoded += 1
            if part.nbytes <= self._most and name not in self._kept:
                self._kept[name] = tensor
                self._bytes += part.nbytes
        self._make_room(0)
        return tensor

    def _make_room(self, nbytes: int) -> None:
        """Before a tensor is decoded, not after it: the memory is needed then."""
        with self._lock:
            while self._kept and self._bytes + nbytes > self._most:
                _, tensor = self._kept.popitem(last=False)
                self._bytes -= tensor.nbytes

    def __iter__(self) -> Iterator[str]:
        return iter([*self._weights, *self._aliases])

    def __len__(self) -> int:
        return len(self._weights) + len(self._aliases)

    def __contains__(self, name: object) -> bool:
        return name in self._weights or name in self._aliases


def offloaded(model: Any, weights: SliceMap, *, execution_device: Any = "cpu", cache_bytes: int = CACHE_BYTES) -> Any:
    """Let ``model``, whose parameters are on the meta device, take its weights from ``weights`` as it is used.

    ``model`` is a torch module made under ``accelerate.init_empty_weights``. Its non-persistent buffers have to have
    their values. Its parameters that are tied are decoded once. Returns ``model``, whose attribute ``arz_cache`` is
    the :class:`WeightCache`. Raises UnsupportedError if ``weights`` lack a parameter, or hold it in another shape or as
    codes (F8 or integers, where the parameter is a wider float) whose scale is elsewhere.
    """
    hooks = require("accelerate.hooks")
    wanted = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    persistent = set(model.state_dict())
    wanted += [name for name, _ in model.named_buffers(remove_duplicate=False) if name in persistent]
    aliases = _aliases(model, wanted, weights)
    missing = [name for name in wanted if name not in weights and name not in aliases]
    if missing:
        raise UnsupportedError(
            f"{weights.archive.name}: holds no weight for {missing[0]}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            + "; is it the archive of this model?"
        )
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for name in wanted:
        _check(name, tensors[name], weights[aliases.get(name, name)], weights.archive.name)
    cache = WeightCache(weights, cache_bytes, aliases=aliases)
    _load_buffers(model, cache, persistent)
    hooks.attach_align_device_hook(model, execution_device=execution_device, offload=True, weights_map=cache)
    model.arz_cache = cache
    return model


def _check(name: str, wanted: Any, part: TensorSlice, archive: str) -> None:
    """Do the elements of ``part`` mean what those of the model's tensor ``wanted`` do? accelerate casts them whatever
    they are. Raises UnsupportedError."""
    import torch

    kind = getattr(torch, DTYPES[part.get_dtype()].torch)
    shape, others = list(wanted.shape), part.get_shape()
    if shape != others or _meaning(kind) != _meaning(wanted.dtype):
        raise UnsupportedError(
            f"{archive}: {name} is {kind} {others} in the archive and {wanted.dtype} {shape} in the model; it has to "
            "be converted as it is loaded, as arzstream.transformers.from_pretrained does"
        )


def _meaning(kind: Any) -> Any:
    """The same for types between which a cast keeps what the elements stand for. A float of one byte is like no other:
    most have a scale beside them."""
    if kind.is_floating_point and kind.itemsize == 1:
        return kind
    return kind.is_floating_point, kind.is_complex


def _aliases(model: Any, wanted: list[str], weights: SliceMap) -> dict[str, str]:
    """Names that the archive lacks → what it calls the same tensor: one that is tied, or one whose prefix differs, as
    in the archive of a model without its head."""
    prefix = getattr(model, "base_model_prefix", "") or ""
    tied: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in weights:
            tied.setdefault(id(parameter), name)
    listed: dict[str, str] = dict(getattr(model, "all_tied_weights_keys", None) or {})
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, str] = {}
    for name in wanted:
        others = (
            tied.get(id(parameters.get(name))), listed.get(name),
            name.removeprefix(f"{prefix}."), f"{prefix}.{name}",
        )  # fmt: skip
        if name not in weights:
            same = next((other for other in others if other is not None and other in weights), None)
            if same is not None:
                found[name] = same
    for name in wanted:
        other = listed.get(name)
        if name not in weights and name not in found and other in found:
            found[name] = found[other]
    return found


def _load_buffers(model: Any, cache: WeightCache, persistent: set[str]) -> None:
    """Buffers are small and used by modules that no hook serves; they are loaded now."""
    for name, buffer in list(model.named_buffers()):
        if name in persistent:
            owner = model.get_submodule(name.rpartition(".")[0])
            owner.register_buffer(name.rpartition(".")[2], cache[name].to(buffer.dtype))


def offloaded_from_pretrained(
    source: str | os.PathLike[str] | Archive,
    *,
    model_class: Any = None,
    config: Any = None,
    dtype: Any = None,
    execution_device: Any = "cpu",
    cache_bytes: int = CACHE_BYTES,
    subfolder: str = "",
    variant: str | None = None,
    storage_options: dict[str, Any] | None = None,
    parents: SearchPath = None,
    jobs: int | None = None,
    **kwargs: Any,
) -> Any:
    """A transformers model whose weights stay in the archive ``source``; see :func:`offloaded`.

    Its attribute ``arz_archive`` is the open archive, which the model needs for as long as it is used. Arguments as in
    :func:`arzstream.transformers.from_pretrained`; ``kwargs`` go to the model's constructor. Raises UnsupportedError
    for a model that transformers converts while it loads it, as it does a quantised one.
    """
    accelerate, transformers = require("accelerate"), require("transformers")
    from arzstream.integrations.transformers import _config, _dtype, _resolved

    archive = source if isinstance(source, Archive) else open_archive(source, storage_options, parents, jobs=jobs)
    try:
        folder = ModelFolder(archive, subfolder, variant)
        weights = folder.weights()
        with folder.companions() as files:
            config = config if config is not None else _config(transformers, folder, files)
            refuse_quantised(config, archive.name, "load it with arzstream.transformers.from_pretrained")
            chosen = _resolved(model_class, config, archive.name, files)
            generation = (
                transformers.GenerationConfig.from_pretrained(files) if "generation_config.json" in folder else None
            )
        kind = _dtype(config, weights) if dtype in (None, "auto") else dtype
        with accelerate.init_empty_weights(include_buffers=False):
            model = chosen._from_config(config, dtype=kind, **kwargs)
        model.tie_weights()
        _keep_wide(model)
        model.eval()
        if generation is not None and model.can_generate():
            model.generation_config = generation
        model.arz_archive = archive
        return offloaded(model, weights, execution_device=execution_device, cache_bytes=cache_bytes)
    except BaseException:
        if archive is not source:
            archive.close()
        raise


def _keep_wide(model: Any) -> None:
    """Give what transformers keeps in fp32 whatever the ``dtype`` is its type back, as its own loading does."""
    plan = model._get_dtype_plan(model.config.dtype)
    if not plan:
        return
    listed, called, _ = require("transformers.core_model_loading").build_glob_alternation(list(plan))
    for name, tensor in model.state_dict(keep_vars=True).items():
        found = listed.search(name)
        if found is not None and tensor.is_floating_point():
            tensor.data = tensor.data.to(plan[called[found.lastgroup]])
