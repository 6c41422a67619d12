"""Codecs by number. The numbers are those of spec/registry.md and are never reused.

A codec's module is imported when one of its chunks is looked at: a list of tensors needs the names alone.
"""

from __future__ import annotations

import importlib

from arzstream.codec.base import Codec
from arzstream.errors import UnsupportedError

__all__ = ["get", "name_of", "register"]

_OURS = {
    0: ("raw", "Raw"),
    1: ("const", "Const"),
    3: ("zstd", "Zstd"),
    4: ("float_fast", "FloatFast"),
    5: ("float_ctx", "FloatCtx"),
    6: ("quant_blocks", "QuantBlocks"),
    7: ("dequantised", "Dequantised"),
    8: ("delta_ctx", "DeltaCtx"),
    9: ("optim_ctx", "OptimCtx"),
}
"""Name of the codec, which is that of its module, and its class there."""

_codecs: dict[int, Codec] = {}


def register(codec: Codec) -> None:
    """Make ``codec`` known under its number. Raises ValueError if the number is taken."""
    if codec.id in _codecs or codec.id in _OURS:
        raise ValueError(f"codec number {codec.id} is taken by {name_of(codec.id)}")
    _codecs[codec.id] = codec


def get(codec_id: int) -> Codec:
    """The codec with this number. Raises UnsupportedError if there is none here."""
    codec = _codecs.get(codec_id)
    if codec is not None:
        return codec
    if codec_id not in _OURS:
        raise UnsupportedError(
            f"codec {codec_id} is not known to this version; install a newer arzstream to read it"
        ) from None
    name, of_class = _OURS[codec_id]
    made: Codec = getattr(importlib.import_module(f"arzstream.codec.{name}"), of_class)()
    return _codecs.setdefault(codec_id, made)


def name_of(codec_id: int) -> str:
    """Name for display; of an unknown codec its number."""
    if codec_id in _OURS:
        return _OURS[codec_id][0]
    codec = _codecs.get(codec_id)
    return codec.name if codec else f"codec-{codec_id}"
