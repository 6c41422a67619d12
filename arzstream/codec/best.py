"""Which codec a chunk is written with: the smallest, unless a faster one is nearly as small.

The choice depends on the bytes, the type and the profile only, never on the machine or the backend.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from arzstream.codec.base import ChunkContext
from arzstream.codec.delta_ctx import encode_delta, same
from arzstream.codec.delta_estimate import estimate_delta, fewest_bits
from arzstream.codec.dequantised import encode_dequantised
from arzstream.codec.float_ctx import EFFORTS, encode_ctx
from arzstream.codec.float_fast import encode_floats
from arzstream.codec.optim_ctx import encode_planned, plan_optim
from arzstream.codec.quant_blocks import encode_blocks
from arzstream.codec.registry import get
from arzstream.codec.roles import Role
from arzstream.codec.zstd import STRIDES, encode_planes

__all__ = ["OFTEN_USED", "PROFILES", "Profile", "encode_best", "encode_plainly"]


NEVER = 1 << 62


@dataclasses.dataclass(frozen=True)
class Profile:
    """What a profile is willing to spend."""

    levels: tuple[int, ...]
    """Zstandard levels for bytes as they stand; each plane takes the one that makes it smallest."""
    plane_levels: tuple[int, ...]
    """The same for byte planes. Level 1 mostly beats level 3 there: what shrinks is the distribution of the bytes, and
    the matches that a higher level finds are accidents that cost more than they save."""
    zstd_gain: float
    """How much smaller than other codecs zstd must be to be chosen: it decodes more slowly."""
    thorough: bool
    """Whether the sample that says if zstd can win is coded at all levels and strides, which takes milliseconds."""
    contexts: str = "balanced"
    """Which of :data:`arzstream.codec.float_ctx.EFFORTS` floats are coded with."""
    blocks_gain: float = 0.0
    """How much of integers ``quant_blocks`` must save to be chosen: as they stand they need no decoding at all."""
    simpler_below: int = 0
    """Elements below which ``float_fast`` is tried beside ``float_ctx``, whose tables and scales must pay."""
    fast_from: int = NEVER
    """Elements from which floats are coded with ``float_fast`` where it suits them. Smaller chunks are a small part of
    any model that takes time to load."""
    delta_gain: float = 0.0
    """How much smaller ``delta_ctx`` must be than what needs no reference, which also decodes faster and alone."""
    max_below: int = 0
    """Bytes below which a chunk is coded as by profile ``max``: it takes a millisecond or two, and a model's small
    tensors are a small part of it, unless it is small itself."""
    state_gain: float = 1 / 256
    """The same of ``optim_ctx``, which may need several tensors, and these others, to be decoded first."""
    least_from: int = NEVER
    """Elements from which ``float_ctx`` makes its least effort; it then decodes hardly faster, but encodes so."""

    @property
    def hurries(self) -> bool:
        """Whether speed counts for more than the last percent."""
        return self.fast_from < NEVER


PROFILES = {
    "fast": Profile(
        (1,),
        (1,),
        zstd_gain=0.01,
        thorough=False,
        blocks_gain=0.03,
        simpler_below=1 << 15,
        fast_from=1 << 17,
        delta_gain=0.1,
        least_from=1 << 20,
    ),
    "balanced": Profile(
        (3,), (1,), zstd_gain=0.01, thorough=False, contexts="balanced", simpler_below=1 << 15, max_below=1 << 17
    ),
    "max": Profile((12,), (1, 12), zstd_gain=0.0, thorough=True, contexts="max", simpler_below=NEVER, state_gain=0.0),
}

RAW, CONST, ZSTD, FLOAT_FAST, FLOAT_CTX, QUANT_BLOCKS, DEQUANTISED, DELTA_CTX, OPTIM_CTX = 0, 1, 3, 4, 5, 6, 7, 8, 9
OFTEN_USED = frozenset({RAW, CONST, ZSTD, FLOAT_FAST, FLOAT_CTX})
"""What most bytes of most checkpoints without a parent are coded with."""
PIECE, SAMPLE_MIN_PIECES, SAMPLE_PIECES = 2048, 16, 1 << 17
"""A sample is at least 16 pieces of 2 KiB, evenly spaced, and one for each 2^17 bytes of a large chunk."""
FAST_PIECE, FAST_GAIN = 512, 0.03
"""The same and ``zstd_gain`` where ``float_fast`` was chosen for its speed: zstd decodes ten times more slowly."""
FAST_TYPES = ("BF16", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ")
CLEARLY = 0.9
"""A payload below this share of what a sample says that other codecs take needs no comparison with them."""
NEARLY = 1.005
"""Samples are believed when they differ by more than this factor."""
LOW_BITS = 1 << 10
"""Elements that tell if the lowest bit of all is zero."""
NOISE = 0.999
"""A sample of which the fastest level leaves more than this share is noise."""
RAW_GAIN = 0.99
"""A sample that does not shrink below this share says: not worth trying."""


def _sample(data: memoryview, piece: int) -> memoryview:
    """Evenly spaced pieces of ``data``, aligned to 16 bytes; all of it where it is short."""
    pieces = max(SAMPLE_MIN_PIECES, len(data) // SAMPLE_PIECES)
    if len(data) < 2 * pieces * piece:
        return data
    step = (len(data) - piece) // (pieces - 1) & ~15
    return memoryview(b"".join(data[i * step : i * step + piece] for i in range(pieces)))


def _stored_planes(payload: bytes, stride: int) -> int:
    """Bit j set: plane j of this zstd payload did not shrink."""
    return sum((payload[4 + 4 * j + 3] >> 7) << j for j in range(stride))


def _strides(ctx: ChunkContext, length: int) -> list[int]:
    """Strides that may suit, likeliest first: one plane per byte of an element, bytes as they stand, and for bytes of
    unknown meaning the sizes of common elements."""
    size = ctx.dtype.itemsize // ctx.dtype.components
    wanted = (1, 2, 4) if ctx.dtype.name == "U8" else (size, 1) if size > 1 else (1,)
    return [s for s in wanted if s in STRIDES and length % s == 0]


def _try_zstd(data: memoryview, ctx: ChunkContext, profile: Profile, share: float, piece: int = PIECE) -> bytes | None:
    """Payload of codec 3, if a sample says that it can get below ``share`` of the data."""

    def levels(stride: int) -> tuple[int, ...]:
        return profile.levels if stride == 1 else profile.plane_levels

    sample = _sample(data, piece)
    whole = len(sample) == len(data)
    if profile.thorough and not whole and _is_noise(sample, ctx, len(data)):
        return None
    best, best_stride = None, 1
    for stride in _strides(ctx, len(data)):
        payload = encode_planes(sample, stride, levels(stride) if whole or profile.thorough else (1,))
        if best is None or len(payload) < len(best):
            best, best_stride = payload, stride
        # Floats whose planes do not compress well do not compress without planes either.
        if ctx.dtype.float_bits and not profile.thorough and len(best) >= share * len(sample):
            break
    if best is None or whole:
        return best
    if len(best) >= share * len(sample):
        return None
    # Planes that are noise in the sample are not tried again.
    return encode_planes(data, best_stride, levels(best_stride), _stored_planes(best, best_stride))


def _is_noise(sample: memoryview, ctx: ChunkContext, length: int) -> bool:
    """Whether the fastest level saves nothing at all, as in what is compressed or encrypted: no other will."""
    return all(len(encode_planes(sample, stride, (1,))) > NOISE * len(sample) for stride in _strides(ctx, length))


def _suits_float_fast(data: memoryview, ctx: ChunkContext) -> bool:
    """Whether ``float_fast`` comes close to what other programs' coders of bytes reach. Those see the top of mantissas
    in fp16 and fp32, where it shares a byte with the exponent or has one to itself, but not in bf16 and fp8; and they
    see low bits that are always zero, as in values that come from a narrower type."""
    if ctx.dtype.name not in FAST_TYPES:
        return False
    values = np.frombuffer(data, f"<u{ctx.dtype.itemsize}")
    return bool(np.bitwise_or.reduce(values[:: max(1, len(values) // LOW_BITS)]) & 1)


def _encode_floats(data: memoryview, ctx: ChunkContext, wish: Profile) -> tuple[int, bytes | memoryview | None]:
    """(codec number, payload) of the better of the codecs for floats."""
    assert ctx.dtype.float_bits is not None
    count = len(data) * 8 // (1 + sum(ctx.dtype.float_bits))
    if count >= wish.fast_from and _suits_float_fast(data, ctx):
        floats = encode_floats(data, ctx.dtype.float_bits)
        if floats is not None:
            return FLOAT_FAST, floats
    contexts = encode_ctx(data, ctx, EFFORTS["fast" if count >= wish.least_from else wish.contexts])
    if contexts is not None and count >= wish.simpler_below:
        return FLOAT_CTX, contexts
    floats = encode_floats(data, ctx.dtype.float_bits)
    if contexts is None or (floats is not None and len(floats) <= len(contexts)):
        return FLOAT_FAST, floats
    return FLOAT_CTX, contexts


def encode_best(data: memoryview, ctx: ChunkContext, profile: str = "balanced") -> tuple[int, bytes | memoryview]:
    """(codec number, payload) for ``data``, never longer than ``data``.

    ``profile`` is ``"fast"``, ``"balanced"`` or ``"max"``; another one raises ValueError.
    """
    if profile not in PROFILES:
        raise ValueError(f"no profile {profile!r}; there are {', '.join(PROFILES)}")
    wish = PROFILES[profile]
    if len(data) < wish.max_below:
        wish = PROFILES["max"]
    const = get(CONST).encode(data, ctx)
    if const is not None:
        return CONST, const
    if not ctx.references:
        return _encode_alone(data, ctx, wish)
    parents = dataclasses.replace(ctx, references=ctx.parents(), role=Role.OTHER, roles=())
    if ctx.role != Role.OTHER and not (parents.references and same(parents.references[0], data)):
        return _encode_state(data, ctx, parents, wish)
    given = encode_delta(data, parents)
    if given is None:
        return _encode_alone(data, ctx, wish)
    limit = len(given) / (1 - wish.delta_gain)
    if limit < CLEARLY * _alone_share(data, ctx) * len(data):
        return DELTA_CTX, given
    alone_id, alone = _encode_alone(data, ctx, wish)
    return (DELTA_CTX, given) if limit < len(alone) else (alone_id, alone)


def encode_plainly(data: memoryview) -> tuple[int, bytes]:
    """(codec number, payload) without any of our own codecs, should one of them be wrong."""
    packed = encode_planes(data, 1, (1,)) if len(data) else b""
    return (ZSTD, packed) if 0 < len(packed) < len(data) else (RAW, bytes(data))


def _encode_state(
    data: memoryview, ctx: ChunkContext, parents: ChunkContext, wish: Profile
) -> tuple[int, bytes | memoryview]:
    """The same for optimiser state: given what the rest of the checkpoint tells, or the parents alone, or nothing.
    Samples say what that takes; only what may be the smallest is coded in full."""
    gains = {OPTIM_CTX: max(wish.delta_gain, wish.state_gain), DELTA_CTX: wish.delta_gain}
    state, changes = plan_optim(data, ctx), None
    if parents.references and (state is None or fewest_bits(data, parents.references[0]) < state.bits):
        changes = estimate_delta(data, parents)
    estimates = {OPTIM_CTX: state.bits if state is not None else None, DELTA_CTX: changes}
    limits = {codec: bits / 8 / (1 - gains[codec]) for codec, bits in estimates.items() if bits is not None}
    least = min(limits.values(), default=NEVER)
    best: bytes | memoryview | None = None
    best_id, limit = RAW, float(NEVER)
    clearly = CLEARLY * _alone_share(data, ctx) * len(data)
    if least >= clearly:
        best_id, best = _encode_alone(data, ctx, wish)
        limit = len(best)
    # Changes without a model to share need one that is learned, which takes longer than all else.
    near = NEARLY if parents.models else 1.0
    for codec, expected in limits.items():
        if expected <= near * least and expected < limit:
            payload: bytes | None = None
            if codec == DELTA_CTX:
                payload = encode_delta(data, parents)
            elif state is not None:
                payload = encode_planned(data, state)
            if payload is not None and len(payload) / (1 - gains[codec]) < limit:
                best_id, best, limit = codec, payload, len(payload) / (1 - gains[codec])
    if least < clearly <= limit:  # samples do not see what headers and tables take
        alone_id, alone = _encode_alone(data, ctx, wish)
        if best is None or len(alone) <= limit:
            return alone_id, alone
    assert best is not None
    return best_id, best


def _alone_share(data: memoryview, ctx: ChunkContext) -> float:
    """What share of ``data`` would about be left without references, by a sample without rows."""
    some = _sample(data, PIECE)
    row = dataclasses.replace(
        ctx, rows=1, cols=len(some) // ctx.dtype.itemsize, references=(), role=Role.OTHER, roles=()
    )
    alone = _encode_alone(some, row, PROFILES["fast"])
    return len(alone[1]) / len(some)


def _encode_alone(data: memoryview, ctx: ChunkContext, wish: Profile) -> tuple[int, bytes | memoryview]:
    """The same without references, for what is not one value."""
    best: bytes | memoryview | None = None
    best_id, limit, piece = RAW, float(len(data)), PIECE
    if ctx.dtype.float_bits:
        float_id, floats = _encode_floats(data, ctx, wish)
        if floats is not None and len(floats) < len(data):
            hurried = float_id == FLOAT_FAST and wish.hurries
            piece = FAST_PIECE if hurried else PIECE
            best_id, best, limit = float_id, floats, len(floats) * (1 - (FAST_GAIN if hurried else wish.zstd_gain))
        codes = encode_dequantised(data, ctx, contexts=not wish.hurries)
        if codes is not None and len(codes) < limit:
            best_id, best, limit = DEQUANTISED, codes, len(codes) * (1 - wish.zstd_gain)
    else:
        blocks = encode_blocks(data, ctx, contexts=not wish.hurries)
        if blocks is not None and len(blocks) < (1 - wish.blocks_gain) * len(data):
            best_id, best, limit = QUANT_BLOCKS, blocks, len(blocks) * (1 - wish.zstd_gain)
    if len(data):
        packed = _try_zstd(data, ctx, wish, min(limit / len(data), RAW_GAIN), piece)
        if packed is not None and len(packed) < limit:
            best_id, best = ZSTD, packed
    return best_id, bytes(data) if best is None else best
