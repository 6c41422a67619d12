"""SGLang: weights out of an archive.

    python -m sglang.launch_server --model-path DIR --model-loader-extra-config '{"uri": "s3://models/llama.arz"}'

``DIR`` has configuration and tokenizer. SGLang's load formats are a closed list, so the option decides: a ``uri`` there
means an archive. :func:`register` is found through the entry-point group ``sglang.srt.plugins`` and uses SGLang's own
registry of hooks. Other keys of the option: :class:`~arzstream.integrations.serving.ServingOptions`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from arzstream.integrations.optional import require
from arzstream.integrations.serving import ServingOptions, options_of_draft, weights_of

__all__ = ["register"]

TARGET = "sglang.srt.model_loader.loader.get_model_loader"


def register() -> None:
    """Called by SGLang in each of its processes, before it loads a model."""
    hooks = require("sglang.srt.plugins.hook_registry")
    hooks.HookRegistry.register(TARGET, _Hook(), hooks.HookType.AROUND)


class _Hook:
    """Stands around ``get_model_loader``. SGLang loads a draft model in the process of the main one, after it and with
    the same option, whose ``uri`` is the main model's."""

    def __init__(self) -> None:
        self._main: str | None = None

    def __call__(self, original: Any, load_config: Any, model_config: Any = None, **kwargs: Any) -> Any:
        path = getattr(model_config, "model_path", None)
        draft = bool(getattr(model_config, "is_draft_model", False))
        if not draft:
            self._main = path
        given = getattr(load_config, "model_loader_extra_config", None) or {}
        if isinstance(given, str):
            given = json.loads(given)
        if not isinstance(given, dict) or "uri" not in given:
            return original(load_config, model_config, **kwargs)
        options: ServingOptions | None = ServingOptions.from_mapping(given)
        if draft and path != self._main:  # otherwise the layers for it are in the main model
            options = options_of_draft(given, str(path))
        if options is None:
            own = copy.copy(load_config)
            own.model_loader_extra_config = {}
            return original(own, model_config, **kwargs)
        return _loader_class()(load_config, options)


def _loader_class() -> Any:
    loader = require("sglang.srt.model_loader.loader")

    class ArzModelLoader(loader.DefaultModelLoader):  # type: ignore[misc,name-defined]
        """SGLang's default loader with another source of weights; it makes, quantises and reloads models as ever."""

        def __init__(self, load_config: Any, options: ServingOptions) -> None:
            loader.BaseModelLoader.__init__(self, load_config)
            self._options = options

        def download_model(self, model_config: Any) -> None:
            """Nothing is downloaded ahead: weights are read as they are needed. Raises what opening raises."""
            self._options.open().close()

        def _get_weights_iterator(self, source: Any) -> Iterator[tuple[str, Any]]:
            if getattr(source, "model_config", None) is None:  # a second model that the first one needs
                yield from super()._get_weights_iterator(source)
                return
            state = require("sglang.srt.distributed")
            groups = [group for group in (state.get_world_group(), state.get_tp_group()) if group.world_size > 1]
            weights = weights_of(self._options, groups=[group.cpu_group for group in groups])
            if self.load_config.draft_model_idx is not None:
                yield from self._filter_mtp_weights(weights, source.prefix, self.load_config.draft_model_idx)
                return
            for name, tensor in weights:
                yield source.prefix + name, tensor

    return ArzModelLoader
