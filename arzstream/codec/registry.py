"""Codecs by number. The numbers are those of spec/registry.md and are never reused."""

from __future__ import annotations

from arzstream.codec.base import Codec
from arzstream.codec.const import Const
from arzstream.codec.delta_ctx import DeltaCtx
from arzstream.codec.dequantised import Dequantised
from arzstream.codec.float_ctx import FloatCtx
from arzstream.codec.float_fast import FloatFast
from arzstream.codec.quant_blocks import QuantBlocks
from arzstream.codec.raw import Raw
from arzstream.codec.zstd import Zstd
from arzstream.errors import UnsupportedError

__all__ = ["get", "name_of", "register"]

_codecs: dict[int, Codec] = {}


def register(codec: Codec) -> None:
    """Make ``codec`` known under its number. Raises ValueError if the number is taken."""
    if codec.id in _codecs:
        raise ValueError(f"codec number {codec.id} is taken by {_codecs[codec.id].name}")
    _codecs[codec.id] = codec


def get(codec_id: int) -> Codec:
    """The codec with this number. Raises UnsupportedError if there is none here."""
    try:
        return _codecs[codec_id]
    except KeyError:
        raise UnsupportedError(
            f"codec {codec_id} is not known to this version; install a newer arzstream to read it"
        ) from None


def name_of(codec_id: int) -> str:
    """Name for display; of an unknown codec its number."""
    codec = _codecs.get(codec_id)
    return codec.name if codec else f"codec-{codec_id}"


for _codec in (Raw(), Const(), Zstd(), FloatFast(), FloatCtx(), QuantBlocks(), Dequantised(), DeltaCtx()):
    register(_codec)
