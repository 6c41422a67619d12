"""transformers models out of an archive: model, configuration, tokenizer, processor.

The weights are handed over as slices that are decoded when transformers takes them, so a model is never in memory
twice, and a rank of a tensor-parallel job decodes its share of each tensor. Nothing of transformers is changed.
"""

from __future__ import annotations

import os
from typing import Any

from arzstream.archive.ancestry import SearchPath
from arzstream.archive.meter import Progress
from arzstream.archive.reader import Archive
from arzstream.errors import UnsupportedError
from arzstream.integrations.model import ModelFolder, SliceMap, cores, opened
from arzstream.integrations.optional import require

__all__ = ["config_from", "from_pretrained", "processor_from", "tokenizer_from"]

THREADS = 4
"""In so many threads transformers loads at most."""
Source = str | os.PathLike[str] | Archive


def from_pretrained(
    source: Source,
    *,
    model_class: Any = None,
    config: Any = None,
    subfolder: str = "",
    variant: str | None = None,
    storage_options: dict[str, Any] | None = None,
    parents: SearchPath = None,
    jobs: int | None = None,
    progress: Progress | bool = False,
    **kwargs: Any,
) -> Any:
    """The model in the archive ``source``: a path, a URL or an open archive. A ``PreTrainedModel`` in eval mode.

    ``model_class`` is a model class or an ``AutoModel…``; by default, what ``architectures`` in ``config.json`` says.
    ``config`` replaces the archive's. ``storage_options``, ``parents``, ``jobs`` and ``progress`` as in
    :func:`arzstream.open`; ``subfolder``, ``variant`` and everything else (``dtype``, ``device_map``,
    ``attn_implementation``, ``quantization_config``, ``distributed_config``, ``output_loading_info``, …) as in
    transformers' ``from_pretrained``. Raises UnsupportedError if transformers or a part of the model is missing, or if
    the archive has no weight that the model knows.
    """
    transformers = require("transformers")
    # transformers takes weights in threads of its own, each of which decodes what it takes.
    jobs = jobs or max(1, cores() - THREADS)
    with opened(source, storage_options, parents, jobs=jobs, progress=progress) as archive:
        folder = ModelFolder(archive, subfolder, variant)
        weights = folder.weights()
        trust = {key: kwargs[key] for key in ("trust_remote_code",) if key in kwargs}
        with folder.companions() as files:
            if config is None:
                config = _config(transformers, folder, files, **trust)
            chosen = _resolved(model_class, config, archive.name, files, **trust)
            if kwargs.get("generation_config") is None and "generation_config.json" in folder:
                kwargs["generation_config"] = transformers.GenerationConfig.from_pretrained(files)
        dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
        if dtype in (None, "auto"):
            dtype = _dtype(config, weights)
        archive.expect(weights.names.values())
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = chosen.from_pretrained(
            None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True, **kwargs
        )
        if len(info["unexpected_keys"]) >= len(weights):  # transformers has made all of them up
            raise UnsupportedError(
                f"{archive.name}: holds none of the weights of a {chosen.__name__}, but {next(iter(weights), 'none')}; "
                "pack the whole checkpoint"
            )
        model.config.name_or_path = model.name_or_path = archive.name
        return (model, info) if wants_info else model


def config_from(
    source: Source, *, subfolder: str = "", storage_options: dict[str, Any] | None = None, **kwargs: Any
) -> Any:
    """The ``PretrainedConfig`` in an archive. ``kwargs`` as in ``AutoConfig.from_pretrained``."""
    transformers = require("transformers")
    with opened(source, storage_options) as archive:
        folder = ModelFolder(archive, subfolder)
        with folder.companions() as files:
            return _config(transformers, folder, files, **kwargs)


def tokenizer_from(
    source: Source, *, subfolder: str = "", storage_options: dict[str, Any] | None = None, **kwargs: Any
) -> Any:
    """The tokenizer in an archive. ``kwargs`` as in ``AutoTokenizer.from_pretrained``."""
    return _auto("AutoTokenizer", source, subfolder, storage_options, kwargs)


def processor_from(
    source: Source, *, subfolder: str = "", storage_options: dict[str, Any] | None = None, **kwargs: Any
) -> Any:
    """The processor in an archive, for images or sound. ``kwargs`` as in ``AutoProcessor.from_pretrained``."""
    return _auto("AutoProcessor", source, subfolder, storage_options, kwargs)


def _auto(name: str, source: Source, subfolder: str, storage_options: dict[str, Any] | None, kwargs: Any) -> Any:
    auto = getattr(require("transformers"), name)
    with opened(source, storage_options) as archive:
        folder = ModelFolder(archive, subfolder)
        with folder.companions() as files:
            try:
                found = auto.from_pretrained(files, **kwargs)
            except (OSError, ValueError) as error:
                said = " ".join(str(error).replace(files, archive.name).split())
                raise UnsupportedError(f"{archive.name}: {name} finds nothing it can use: {said}") from error
    if hasattr(found, "name_or_path"):
        found.name_or_path = archive.name
    return found


def _config(transformers: Any, folder: ModelFolder, files: str, **kwargs: Any) -> Any:
    if "config.json" not in folder:
        folder.read_json("config.json")  # which says what is missing
    config = transformers.AutoConfig.from_pretrained(files, **kwargs)
    (config[0] if isinstance(config, tuple) else config).name_or_path = folder.archive.name
    return config


def _resolved(model_class: Any, config: Any, name: str, files: str, **trust: Any) -> Any:
    """The class of the model: ``model_class``, or what that makes of ``config``."""
    if model_class is not None and not hasattr(model_class, "_model_mapping"):
        return model_class
    architecture = next(iter(getattr(config, "architectures", None) or ()), None)
    remote = (getattr(config, "auto_map", None) or {}) if trust.get("trust_remote_code") else {}
    auto = getattr(model_class, "__name__", None) or next((key for key in remote if key.startswith("AutoModel")), None)
    if auto in remote:
        dynamic = require("transformers.dynamic_module_utils")
        return dynamic.get_class_from_dynamic_module(remote[auto], files)
    transformers = require("transformers")
    if model_class is not None:
        try:
            listed = model_class._model_mapping[type(config)]
        except KeyError:
            raise UnsupportedError(
                f"{name}: {model_class.__name__} has no model for a {type(config).__name__}; name another class"
            ) from None
        candidates = listed if isinstance(listed, (list, tuple)) else (listed,)
        return next((one for one in candidates if one.__name__ == architecture), candidates[0])
    if architecture is None:
        raise UnsupportedError(f"{name}: config.json names no architecture; give model_class=")
    found = getattr(transformers, architecture, None)
    if found is None:
        raise UnsupportedError(
            f"{name}: this transformers has no {architecture}; install a newer one, or give model_class="
        )
    return found


def _dtype(config: Any, weights: SliceMap) -> Any:
    """What ``dtype="auto"`` means: the configuration's, else that of the first weight that is a float."""
    import torch

    from arzstream.codec.dtypes import DTYPES

    if getattr(config, "dtype", None) is not None:
        return config.dtype
    for name in weights:
        kind = getattr(torch, DTYPES[weights[name].get_dtype()].torch, None)
        if kind is not None and kind.is_floating_point and kind.itemsize > 1:
            return kind
    return torch.get_default_dtype()
