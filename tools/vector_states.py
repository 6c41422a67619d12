"""The vectors of growing archives, and those that a decoder has to call unsupported."""

from __future__ import annotations

from typing import Any

from vector_assembler import TENSOR, Assembler
from vector_good import done, noise, vector

__all__ = ["grow"]


# --------------------------------------------------------------------------------------------------- growing archives


def grow(layers: int = 2) -> Assembler:
    a = Assembler()
    for i in range(layers):
        a.raw("F16", noise(8, i), [[f"layers.{i}.w", [4]]], layer=f"layers.{i}")
        a.commit(layer=f"layers.{i}")
    return a


def growing(a: Assembler, tail: bytes = b"") -> tuple[bytes, dict[str, Any]]:
    return a.growing(tail), {**a.expected(growing=True), "valid_length": len(a.out)}


@vector("good-growing", "Growing: two layers are committed, no file yet.")
def _() -> tuple[bytes, dict[str, Any]]:
    return growing(grow())


@vector("good-growing-empty", "Growing: a prologue and nothing else.")
def _() -> tuple[bytes, dict[str, Any]]:
    return growing(Assembler())


@vector("good-growing-file", "Growing: one file is complete, a unit of the next is not.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = grow(1)
    a.file(b"layer0.bin", [0])
    half = a.tensor("U8", noise(4), [["half", [4]]], grid=[2, 1])
    a.chunk(half, 0)
    a.commit([])
    return growing(a)


@vector("good-growing-no-commit", "Growing: good frames but no COMMIT; nothing may be used.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    a.raw("U8", noise(3), [["w", [3]]])
    return bytes(a.out), {"tensors": [], "files": [], "valid_length": 64}


@vector("good-growing-garbage", "Growing: garbage of odd length after the last COMMIT.")
def _() -> tuple[bytes, dict[str, Any]]:
    return growing(grow(), noise(333))


@vector("good-growing-torn", "Growing: a TENSOR, a whole CHUNK and half of another after the last COMMIT.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = grow()
    expected = growing(a)[1]
    a.raw("F32", noise(400), [["torn", [100]]], grid=[50, 1])
    return bytes(a.out[:-100]), expected


@vector("good-growing-zeros", "Growing: the file was made longer before it was written; zeros follow the last COMMIT.")
def _() -> tuple[bytes, dict[str, Any]]:
    return growing(grow(), bytes(512))


@vector(
    "good-growing-behind-a-gap", "Growing: after a damaged frame stand good ones with a COMMIT; they are not reached."
)
def _() -> tuple[bytes, dict[str, Any]]:
    a = grow(1)
    expected = growing(a)[1]
    a.raw("U8", noise(3), [["behind", [3]]])
    gap = len(a.out)
    a.commit()
    a.pad(10)
    a.commit()
    a.out[gap + 20] ^= 1
    return bytes(a.out), expected


@vector("good-growing-recoded", "Growing: a chunk was coded again and committed; the new one counts.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = grow()
    a.recode(0, noise(8, 77))
    a.chunk(0, 0)
    a.commit()
    return growing(a)


@vector("good-growing-shared-unit", "Growing: two tensors in one unit, of which a COMMIT lists one digest.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = grow(1)
    a.raw("U8", noise(8), [["x", [3], 0, None], ["y", [5], 3, None]])
    a.commit()
    return growing(a)


@vector("good-growing-index", "Growing: TABLE and INDEX are there, the trailer is not.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = grow()
    a.file(b"w", [0, 1])
    a.commit()
    expected = growing(a)[1]
    return a.seal()[:-128], expected


@vector("good-growing-torn-trailer", "Growing: the trailer is there up to half of its end magic.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = grow()
    a.file(b"w", [0, 1])
    a.commit()
    expected = growing(a)[1]
    return a.seal()[:-4], expected


@vector("good-growing-unknown-after", "Growing: an unknown critical frame after the last COMMIT does not matter.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = grow()
    expected = growing(a)[1]
    a.frame(0x0042, b"from the future")
    return bytes(a.out), expected


# -------------------------------------------------------------------------------------------------------- unsupported


@vector("unsupported-major", "Major version 2.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler(major=2)
    a.commit()
    return a.seal(), {}


@vector("unsupported-major-crc", "Major version 2 with a prologue CRC that this version does not understand.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler(major=2, crc=b"else")
    a.commit()
    return a.seal(trailer={"crc": b"else"}), {}


@vector("unsupported-minimum-minor", "The minimum reader minor is 1.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler(minimum=1, minor=1)
    a.commit()
    return a.seal(), {}


@vector("unsupported-feature", "An incompatible feature that no reader of 1.0 knows, in prologue and trailer.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler(incompatible=1 << 40)
    a.commit()
    return a.seal(trailer={"incompatible": 1 << 40}), {}


@vector("unsupported-feature-growing", "An incompatible feature in the prologue of a growing file.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler(incompatible=2)
    a.commit()
    return a.growing(), {}


@vector("unsupported-critical-frame", "An unknown frame that is not ancillary, in a sealed file.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    a.frame(0x0042, b"from the future")
    a.commit()
    return a.seal(), {}


@vector("unsupported-critical-copyable", "Type 0x4001: unknown, safe to copy, but not ancillary.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    a.frame(0x4001, b"from the future")
    a.commit()
    return a.seal(), {}


@vector("unsupported-critical-growing", "An unknown critical frame in the valid prefix of a growing file.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = grow(1)
    a.frame(0x0042, b"from the future")
    a.commit()
    return a.growing(), {}


@vector("unsupported-metadata-codec", "A TENSOR whose metadata is stored with an unknown codec.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    a.frame(TENSOR, b"?", codec=17, ordinal=0)
    a.commit([])
    return a.seal(), {}


@vector("unsupported-index-codec", "The INDEX is stored with an unknown codec.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    a.commit()
    return a.seal(index_frame={"codec": 17}), {}


@vector("unsupported-dtype", "A tensor of a data type that the text does not name.")
def _() -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    a.file(b"w", [a.raw("U8", noise(4), [["w", [4]]], edit=lambda value: {**value, "dtype": "F4"})])
    a.units[0].value["dtype"] = "F4"
    a.commit()
    return a.seal(), {}


def unknown_codec(codec: int) -> tuple[bytes, dict[str, Any]]:
    a = Assembler()
    known = a.raw("U8", noise(4), [["known", [4]]])
    unknown = a.tensor("U8", noise(4, 2), [["unknown", [2, 2]]], grid=[1, 2])
    a.chunk(unknown, 0)
    a.chunk(unknown, 1, codec, b"whatever it means")
    tied = a.tensor("U8", noise(4, 2), [["tied", [4]]], refs=[[2, unknown, 0, 4]])
    a.file(b"known.bin", [known])
    a.file(b"unknown.bin", [known, unknown])
    a.file(b"tied.bin", [tied])
    a.commit()
    data, expected = done(a)
    return data, {**expected, "unreadable": ["tied", "tied.bin", "unknown", "unknown.bin"]}


@vector(
    "unsupported-chunk-codec",
    "A chunk with an unknown codec: opens and lists; its tensor, its duplicate and their files are unsupported.",
)
def _() -> tuple[bytes, dict[str, Any]]:
    return unknown_codec(17)


@vector("unsupported-chunk-codec-2", "A chunk with the reserved codec 2, likewise.")
def _() -> tuple[bytes, dict[str, Any]]:
    return unknown_codec(2)
