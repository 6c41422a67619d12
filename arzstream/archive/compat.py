"""The interface of ``safetensors.safe_open`` over an archive."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

from arzstream.archive.reader import Archive
from arzstream.archive.reader import open as open_archive
from arzstream.archive.tensors import TensorSlice

__all__ = ["safe_open"]

_FRAMEWORKS = {"pt": "pt", "torch": "pt", "pytorch": "pt", "np": "np", "numpy": "np"}


class safe_open:
    """Opens an archive as ``safetensors.safe_open`` opens a file: same arguments, same methods.

    ``framework`` is ``"pt"`` or ``"np"``; ``device`` is where torch tensors are put after decoding.
    """

    def __init__(self, filename: str | os.PathLike[str], framework: str = "pt", device: Any = "cpu") -> None:
        if framework not in _FRAMEWORKS:
            raise ValueError(f"framework {framework!r} is not supported; use 'pt' or 'np'")
        self._framework, self._device = _FRAMEWORKS[framework], f"cuda:{device}" if isinstance(device, int) else device
        self._archive: Archive = open_archive(filename)

    def keys(self) -> list[str]:
        """Names of the tensors, sorted."""
        return sorted(self._archive.keys())

    def offset_keys(self) -> list[str]:
        """Names in the order in which the tensors are stored."""
        return self._archive.keys()

    def metadata(self) -> dict[str, str] | None:
        """The ``__metadata__`` of the safetensors file, or None."""
        return self._archive.metadata() or None

    def get_tensor(self, name: str) -> Any:
        if self._framework == "np":
            return self._archive.numpy(name)
        tensor = self._archive.get_tensor(name)
        return tensor if str(self._device) == "cpu" else tensor.to(self._device)

    def get_tensors(self) -> dict[str, Any]:
        """All tensors, by name."""
        return {
            name: value if self._framework == "np" or str(self._device) == "cpu" else value.to(self._device)
            for name, value in self._archive.stream(framework=self._framework)
        }

    def get_slice(self, name: str) -> TensorSlice:
        place = self._archive.catalog.find(name)
        return TensorSlice(self._archive.decoder, place, framework=self._framework, device=self._device)

    def __enter__(self) -> safe_open:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._archive.close()
