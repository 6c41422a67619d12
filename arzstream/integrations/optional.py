"""Libraries that are not needed unless somebody uses them, imported in one place."""

from __future__ import annotations

import importlib
from typing import Any

from arzstream.errors import UnsupportedError

__all__ = ["require"]

_INSTALL = {
    "accelerate": "pip install 'arzstream[accelerate]'",
    "diffusers": "pip install 'arzstream[diffusers]'",
    "transformers": "pip install 'arzstream[transformers]'",
    "sglang": "install it as https://docs.sglang.ai says",
    "tensorrt_llm": "install it as https://nvidia.github.io/TensorRT-LLM says",
    "vllm": "install it as https://docs.vllm.ai says",
}


def require(module: str) -> Any:
    """The module of this name. Raises UnsupportedError, which says how to install it, if its library is missing."""
    library = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != library:
            raise
        if error.name != library:
            raise UnsupportedError(
                f"the installed {library} has no {error.name}; this version is not supported, install a newer one"
            ) from error
        raise UnsupportedError(
            f"{library} is not installed; {_INSTALL.get(library, f'pip install {library}')}"
        ) from error
