"""TensorRT-LLM (its PyTorch backend): weights out of an archive.

    loader = HfCheckpointLoader(weight_loader=ArzWeightLoader("s3://models/llama.arz"))
    llm = LLM(model=DIR, checkpoint_loader=loader)

``DIR`` has configuration and tokenizer. TensorRT-LLM takes slices where it splits a tensor over ranks, so a rank reads
and decodes its own part of what it splits.
"""

from __future__ import annotations

from typing import Any

from arzstream.archive.reader import Archive
from arzstream.archive.tensors import TensorSlice
from arzstream.codec.dtypes import DTYPES
from arzstream.integrations.model import ModelFolder
from arzstream.integrations.optional import require
from arzstream.integrations.serving import ServingOptions

__all__ = ["ArzWeightLoader", "LazyWeight"]

_base = require("tensorrt_llm._torch.models.checkpoints.base_weight_loader")


class LazyWeight:
    """A tensor that is decoded when it is used: in part when it is indexed, as safetensors' slices are, and whole when
    anything else is done with it."""

    def __init__(self, part: TensorSlice) -> None:
        self._part = part
        self._whole: Any = None

    def get_shape(self) -> list[int]:
        return self._part.get_shape()

    def get_dtype(self) -> str:
        return self._part.get_dtype()

    @property
    def shape(self) -> Any:
        import torch

        return torch.Size(self._part.get_shape())

    @property
    def ndim(self) -> int:
        return len(self._part.get_shape())

    @property
    def dtype(self) -> Any:
        import torch

        return getattr(torch, DTYPES[self._part.get_dtype()].torch)

    @property
    def device(self) -> Any:
        import torch

        return torch.device("cpu")

    @property
    def nbytes(self) -> int:
        return self._part.nbytes

    def __len__(self) -> int:
        return self._part.get_shape()[0]

    def __getitem__(self, index: Any) -> Any:
        return self._part[index] if self._whole is None else self._whole[index]

    def tensor(self) -> Any:
        """All of it, decoded at most once."""
        if self._whole is None:
            self._whole = self._part[...]
        return self._whole

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.tensor(), name)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*_tensors(args), **_tensors(kwargs or {}))


def _tensors(value: Any) -> Any:
    if isinstance(value, LazyWeight):
        return value.tensor()
    if isinstance(value, (tuple, list)):
        return type(value)(_tensors(item) for item in value)
    if isinstance(value, dict):
        return {key: _tensors(item) for key, item in value.items()}
    return value


class ArzWeightLoader(_base.BaseWeightLoader):  # type: ignore[misc,name-defined]
    """A weight loader for ``HfCheckpointLoader``. ``uri`` is the archive's path or URL; ``options`` are those of
    :class:`~arzstream.integrations.serving.ServingOptions`. It can be pickled, as it travels to TensorRT-LLM's ranks.
    """

    def __init__(self, uri: str, **options: Any) -> None:
        self._options = ServingOptions.from_mapping({"uri": uri, **options})
        self._archive: Archive | None = None

    def load_weights(self, checkpoint_dir: str, mapping: Any, **_kwargs: Any) -> Any:
        """Names → :class:`LazyWeight`, of which TensorRT-LLM lets go as it consumes them."""
        self.cleanup()
        self._archive = self._options.open(getattr(mapping, "gpus_per_node", 1) or 1)
        weights = ModelFolder(self._archive, self._options.subfolder, self._options.variant).weights()
        lazy = {name: LazyWeight(part) for name, part in weights.items()}
        consumable = getattr(_base, "ConsumableWeightsDict", None)
        return lazy if consumable is None else consumable(lazy)

    def cleanup(self) -> None:
        archive, self._archive = self._archive, None
        if archive is not None:
            archive.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"_options": self._options, "_archive": None}
