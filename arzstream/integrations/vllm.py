"""vLLM: ``--load-format arz``.

    vllm serve DIR --load-format arz --model-loader-extra-config '{"uri": "s3://models/llama.arz"}'

``DIR`` is a local folder with configuration and tokenizer. Other keys of the option are those of
:class:`~arzstream.integrations.serving.ServingOptions`; without ``uri``, ``DIR`` holds one archive, ``*.arz``.
:func:`register` is found through the entry-point group ``vllm.general_plugins``.

Weights are decoded layer by layer as vLLM takes them. Experts of other ranks are not read. vLLM hands every rank whole
tensors, so the ranks of a host decode each tensor once, together. Making, quantising, checking and reloading models is
all vLLM's own.
"""

from __future__ import annotations

import copy
import dataclasses
import posixpath
import time
from collections.abc import Iterator
from typing import Any

from arzstream.errors import UnsupportedError
from arzstream.integrations.optional import require
from arzstream.integrations.serving import ServingOptions, archives_in, options_of_draft, weights_of

__all__ = ["LOAD_FORMAT", "register"]

LOAD_FORMAT = "arz"


def register() -> None:
    """Called by vLLM in each of its processes, perhaps more than once; starts nothing on a GPU."""
    loading = require("vllm.model_executor.model_loader")
    known = getattr(loading, "_LOAD_FORMAT_TO_MODEL_LOADER", {})
    if LOAD_FORMAT not in known:
        loading.register_model_loader(LOAD_FORMAT)(_loader_class())


def _loader_class() -> Any:
    loader = require("vllm.model_executor.model_loader.default_loader")

    class ArzModelLoader(loader.DefaultModelLoader):  # type: ignore[misc,name-defined]
        """vLLM's default loader with another source of weights."""

        def __init__(self, load_config: Any) -> None:
            given = load_config.model_loader_extra_config or {}
            if not isinstance(given, dict):
                raise ValueError(f"model_loader_extra_config must be an object, not {given!r}")
            # What the default loader checks, and reads a second model with, is not ours.
            own = copy.copy(load_config)
            own.load_format, own.model_loader_extra_config = "auto", {}
            super().__init__(own)
            self._asked, self._given, self._draft = load_config, given, False
            self._model: str | None = None
            self.counter_before_loading_weights: float = 0.0

        def load_model(self, vllm_config: Any, model_config: Any, *args: Any, **kwargs: Any) -> Any:
            self._draft = _is_draft(vllm_config, model_config, self._asked)
            return super().load_model(vllm_config, model_config, *args, **kwargs)

        def options(self, model: str) -> ServingOptions | None:
            """What the user says about the archive; ``model`` is the folder in which it may lie. None for a draft model
            without one."""
            if self._draft:
                return options_of_draft(self._given, model)
            if "uri" in self._given:
                return ServingOptions.from_mapping(self._given)
            found = archives_in(model)
            if len(found) != 1:
                raise UnsupportedError(
                    f"{model}: holds {len(found)} archives (*.arz); name one: "
                    '--model-loader-extra-config \'{"uri": "s3://models/llama.arz"}\''
                )
            return ServingOptions.from_mapping({**self._given, "uri": found[0]})

        def download_model(self, model_config: Any) -> None:
            """Nothing is downloaded ahead: weights are read as they are needed. Raises what opening raises."""
            options = self.options(model_config.model)
            if options is None:
                super().download_model(model_config)
            else:
                options.open().close()

        def get_all_weights(self, model_config: Any, model: Any) -> Iterator[tuple[str, Any]]:
            self._model = model_config.model
            yield from super().get_all_weights(model_config, model)

        def _get_weights_iterator(self, source: Any) -> Iterator[tuple[str, Any]]:
            options = self.options(source.model_or_path) if source.model_or_path == self._model else None
            if options is None:  # a draft, or a second model that the first one needs
                yield from super()._get_weights_iterator(source)
                return
            if getattr(source, "subfolder", None):
                options = dataclasses.replace(options, subfolder=posixpath.join(options.subfolder, source.subfolder))
            unused = getattr(source, "is_unused_weight", None)
            experts = getattr(self, "local_expert_ids", None)

            def skip(name: str) -> bool:
                return (unused is not None and unused(name)) or _elsewhere(name, experts)

            if self.counter_before_loading_weights == 0.0:  # vLLM reports the time since
                self.counter_before_loading_weights = time.perf_counter()
            ignored = self.load_config.ignore_patterns or ()
            weights = weights_of(
                options,
                groups=_groups(),
                skip=skip,
                only=source.allow_patterns_overrides,
                ignored=[ignored] if isinstance(ignored, str) else ignored,
                progress=bool(self.load_config.use_tqdm_on_load) and _is_first(),
            )
            for name, tensor in weights:
                yield source.prefix + name, tensor

    return ArzModelLoader


def _is_draft(vllm_config: Any, model_config: Any, load_config: Any) -> bool:
    """Is this another model than the one that ``load_config`` was given for? vLLM loads a draft with the main model's
    unless the user gave a ``draft_load_config``."""
    speculative = getattr(vllm_config, "speculative_config", None)
    target = getattr(speculative, "target_model_config", None)
    if target is None or model_config.model == target.model:  # the latter: the layers for it are in the main model
        return False
    return bool(getattr(speculative, "draft_load_config", None) != load_config)


def _elsewhere(name: str, local_expert_ids: set[int] | None) -> bool:
    """Is this the weight of an expert that another rank has?"""
    if local_expert_ids is None:
        return False
    skipped = require("vllm.model_executor.model_loader.ep_weight_filter").should_skip_weight
    return bool(skipped(name, local_expert_ids))


def _groups() -> list[Any]:
    """Groups of ranks that load together, the largest first."""
    state = require("vllm.distributed.parallel_state")
    found = [state.get_world_group()]
    if state.model_parallel_is_initialized():
        found.append(state.get_tp_group())
    return [group.cpu_group for group in found if group.world_size > 1]


def _is_first() -> bool:
    return bool(require("vllm.distributed.parallel_state").get_world_group().rank_in_group == 0)
