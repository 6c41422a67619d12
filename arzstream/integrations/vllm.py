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
import glob
import os
import time
from collections.abc import Iterator
from typing import Any

from arzstream.errors import UnsupportedError
from arzstream.integrations.optional import require
from arzstream.integrations.serving import ServingOptions, weights_of

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
            self._given = given
            self.counter_before_loading_weights: float = 0.0

        def options(self, model: str) -> ServingOptions:
            """What the user says about the archive; ``model`` is the folder in which it may lie."""
            if "uri" in self._given:
                return ServingOptions.from_mapping(self._given)
            found = sorted(glob.glob(os.path.join(glob.escape(model), "*.arz")))
            if len(found) != 1:
                raise UnsupportedError(
                    f"{model}: holds {len(found)} archives (*.arz); name one: "
                    '--model-loader-extra-config \'{"uri": "s3://models/llama.arz"}\''
                )
            return ServingOptions.from_mapping({**self._given, "uri": found[0]})

        def download_model(self, model_config: Any) -> None:
            """Nothing is downloaded ahead: weights are read as they are needed. Raises what opening raises."""
            self.options(model_config.model).open().close()

        def get_all_weights(self, model_config: Any, model: Any) -> Iterator[tuple[str, Any]]:
            self._model = model_config.model
            yield from super().get_all_weights(model_config, model)

        def _get_weights_iterator(self, source: Any) -> Iterator[tuple[str, Any]]:
            if source.model_or_path != self._model:  # a second model that the first one needs
                yield from super()._get_weights_iterator(source)
                return
            unused = getattr(source, "is_unused_weight", None)
            experts = getattr(self, "local_expert_ids", None)

            def skip(name: str) -> bool:
                return (unused is not None and unused(name)) or _elsewhere(name, experts)

            if self.counter_before_loading_weights == 0.0:  # vLLM reports the time since
                self.counter_before_loading_weights = time.perf_counter()
            ignored = self.load_config.ignore_patterns or ()
            weights = weights_of(
                self.options(source.model_or_path),
                groups=_groups(),
                skip=skip,
                only=source.allow_patterns_overrides,
                ignored=[ignored] if isinstance(ignored, str) else ignored,
                progress=bool(self.load_config.use_tqdm_on_load) and _is_first(),
            )
            for name, tensor in weights:
                yield source.prefix + name, tensor

    return ArzModelLoader


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
