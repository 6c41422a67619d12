"""diffusers: models and pipelines out of an archive, each weight decoded as it is put into its module."""

from __future__ import annotations

import os
import posixpath
from typing import Any

from arzstream.archive.ancestry import SearchPath
from arzstream.archive.meter import Progress
from arzstream.archive.reader import Archive
from arzstream.errors import UnsupportedError
from arzstream.integrations.model import ModelFolder, SliceMap, opened, refuse_quantised
from arzstream.integrations.optional import require

__all__ = ["from_pretrained", "model_from"]

Source = str | os.PathLike[str] | Archive


def from_pretrained(
    source: Source,
    *,
    pipeline_class: Any = None,
    dtype: Any = None,
    variant: str | None = None,
    storage_options: dict[str, Any] | None = None,
    parents: SearchPath = None,
    jobs: int | None = None,
    progress: Progress | bool = False,
    **kwargs: Any,
) -> Any:
    """The ``DiffusionPipeline`` in an archive of its folder, whose ``model_index.json`` lists its parts.

    ``dtype`` is what its models are cast to, but for modules that their library keeps in fp32; by default what each was
    saved in. A part given as keyword (``unet=…``, ``safety_checker=None``) replaces the archive's, which is then not
    read. Other arguments as in :func:`arzstream.open` and ``DiffusionPipeline.from_pretrained``. Raises
    UnsupportedError if a part is missing.
    """
    from arzstream.integrations.transformers import from_pretrained as transformers_model

    diffusers = require("diffusers")
    dtype = kwargs.pop("torch_dtype", None) if dtype is None else dtype
    with opened(source, storage_options, parents, jobs=jobs, progress=progress) as archive:
        if kwargs.get("quantization_config") is not None:
            raise UnsupportedError(
                f"{archive.name}: models are not quantised as they are loaded; leave out quantization_config"
            )
        home = ModelFolder(archive, sign="model_index.json")
        index = home.read_json("model_index.json")
        for part, described in index.items():
            if part.startswith("_") or part in kwargs or not isinstance(described, list) or described[0] is None:
                continue
            library, name = described
            folder = posixpath.join(home.path, part)
            chosen = _class(library, name)
            if isinstance(chosen, type) and issubclass(chosen, diffusers.ModelMixin):
                kwargs[part] = model_from(archive, folder, model_class=chosen, dtype=dtype, variant=variant)
            elif isinstance(chosen, type) and issubclass(chosen, require("transformers").PreTrainedModel):
                kwargs[part] = transformers_model(
                    archive, model_class=chosen, subfolder=folder, variant=variant, dtype=dtype
                )
        pipeline = pipeline_class or diffusers.DiffusionPipeline
        with home.companions() as files:
            return pipeline.from_pretrained(files, **kwargs)


def _class(library: Any, name: Any) -> Any:
    """What ``model_index.json`` calls a part: a class of a library, or of the module of a pipeline. None for others."""
    if not isinstance(library, str) or not isinstance(name, str):
        return None
    own = getattr(require("diffusers").pipelines, library, None)
    if own is None and library not in ("diffusers", "transformers"):
        return None
    return getattr(own or require(library), name, None)


def model_from(
    source: Source,
    subfolder: str = "",
    *,
    model_class: Any = None,
    dtype: Any = None,
    variant: str | None = None,
    storage_options: dict[str, Any] | None = None,
    parents: SearchPath = None,
    jobs: int | None = None,
    progress: Progress | bool = False,
) -> Any:
    """One diffusers model (a UNet, a transformer, a VAE), in eval mode. ``model_class``: by default what its
    ``config.json`` says. ``dtype`` as in :func:`from_pretrained`. Raises UnsupportedError if a weight is missing, or if
    the model is quantised."""
    diffusers, accelerate = require("diffusers"), require("accelerate")
    with opened(source, storage_options, parents, jobs=jobs, progress=progress) as archive:
        folder = ModelFolder(archive, subfolder, variant)
        config = folder.read_json("config.json")
        chosen = model_class or getattr(diffusers, str(config.get("_class_name")), None)
        if chosen is None:
            raise UnsupportedError(
                f"{archive.name}: this diffusers has no {config.get('_class_name')}; install a newer one, or give "
                "model_class="
            )
        refuse_quantised(config, archive.name, "unpack it, and load the folder with diffusers")
        weights = folder.weights()
        with accelerate.init_empty_weights(include_buffers=False):
            model = chosen.from_config(config)
        _fill(model, weights, archive, dtype)
        return model.eval()


def _fill(model: Any, weights: SliceMap, archive: Archive, dtype: Any) -> None:
    modeling = require("accelerate.utils.modeling")
    wanted = model.state_dict()
    names = dict(weights.names)
    if hasattr(model, "_fix_state_dict_keys_on_load"):  # today's names of what old models call otherwise
        model._fix_state_dict_keys_on_load(names)
    missing = [name for name in wanted if name not in names]
    if missing:
        raise UnsupportedError(f"{archive.name}: holds no weight for {missing[0]}; is it the archive of this model?")
    called = {names[name]: name for name in wanted}
    for theirs, tensor in archive.stream(called):
        kind = tensor.dtype
        if dtype is not None and tensor.is_floating_point():
            kind = _kept(model, called[theirs]) or dtype
        modeling.set_module_tensor_to_device(model, called[theirs], "cpu", value=tensor, dtype=kind)


def _kept(model: Any, name: str) -> Any:
    """The dtype that diffusers keeps a weight in whatever it casts the model to; None for most."""
    import torch

    listed = getattr(model, "_keep_in_fp32_modules", None) or ()
    listed = (listed,) if isinstance(listed, str) else listed
    return None if set(listed).isdisjoint(name.split(".")) else torch.float32
