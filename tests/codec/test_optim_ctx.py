"""Codec optim_ctx: exact whatever the references are, the same on every path and in the reference decoder, as small as
what they tell allows, no larger than without them where they tell nothing, safe with hostile payloads."""

from __future__ import annotations

import dataclasses
import importlib.util
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arzstream.codec import optim_choice, optim_ctx, optim_fit
from arzstream.codec.base import ChunkContext
from arzstream.codec.best import OPTIM_CTX, PROFILES, encode_best
from arzstream.codec.delta_ctx import encode_delta
from arzstream.codec.dtypes import DTYPES
from arzstream.codec.optim_choice import NOTHING, Choice
from arzstream.codec.optim_ctx import OptimCtx, encode_optim, encode_planned, plan_optim
from arzstream.codec.roles import Role
from arzstream.errors import CorruptError
from arzstream.kernels import api, optim

PATHS = [*api.cpu_features(), "numpy"]
CODEC = OptimCtx()
NONE = np.empty(0, np.uint8)
HEADER = 48


def _reference_decoder() -> Any:
    path = Path(__file__).resolve().parents[2] / "spec" / "reference_decoder.py"
    spec = importlib.util.spec_from_file_location("reference_decoder_of_optim", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


ORACLE = _reference_decoder()


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several segments in a few thousand elements."""
    monkeypatch.setattr(optim_ctx, "LOG_SEGMENT", 10)


def decode(payload: bytes, length: int, ctx: ChunkContext) -> bytes:
    out = bytearray(length)
    CODEC.decode(memoryview(payload), memoryview(out), ctx)
    return bytes(out)


def bf16(values: np.ndarray) -> np.ndarray:
    """Rounded to nearest, ties to even."""
    bits = values.astype("<f4").view("<u4")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def context_of(role: Role, shape: tuple[int, int], halves: str = "", /, **references: np.ndarray) -> ChunkContext:
    """``references`` by the names of their roles, in lower case."""
    roles = tuple(Role[name.upper()] for name in references)
    tiles = tuple(memoryview(r.tobytes()) for r in references.values())
    return ChunkContext(DTYPES["F32"], *shape, tiles, role=role, roles=roles, half=halves)


def check(data: np.ndarray, ctx: ChunkContext, oracle: bool = True) -> bytes:
    """Encode and decode on every path; returns the payload, which is the same on all."""
    plain, payloads = data.tobytes(), []
    for path in PATHS:
        api.set_backend(path)
        payloads.append(encode_optim(memoryview(plain), ctx))
    payload = payloads[0]
    assert payload is not None and all(other == payload for other in payloads)
    read(payload, plain, ctx, oracle)
    return payload


def read(payload: bytes, plain: bytes, ctx: ChunkContext, oracle: bool = True) -> None:
    """Every path, and the reference decoder, gives the elements back."""
    for path in PATHS:
        api.set_backend(path)
        assert decode(payload, len(plain), ctx) == plain, path
    if oracle:
        assert ORACLE.decode_optim(payload, len(plain), "F32", [bytes(r) for r in ctx.references]) == plain


class Run:
    """A matrix in training: Adam on noise, with rows and columns that are learned at speeds of their own."""

    def __init__(self, rows: int, cols: int, rate: float, seen: float = 1.0) -> None:
        rng = np.random.default_rng(rows)
        self.weights = (rng.standard_normal((rows, cols)) * 0.02).astype(np.float32)
        self.moment, self.square = np.zeros((2, rows, cols), np.float32)
        self.rate, self.rng, self.seen = rate, rng, seen
        self.scale = 1e-3 * np.exp(rng.normal(0, 0.7, (rows, 1)) + rng.normal(0, 0.7, cols))
        self.drift = rng.standard_normal((rows, cols))

    def train(self, steps: int) -> Run:
        """A copy, so many steps later."""
        new = object.__new__(Run)
        new.__dict__ = {**self.__dict__}
        for _ in range(steps):
            new.drift = 0.9 * new.drift + 0.3 * self.rng.standard_normal(self.drift.shape)
            rows = self.rng.random((len(self.drift), 1)) < self.seen
            gradient = (self.scale * new.drift * rows).astype(np.float32)
            new.moment = np.float32(0.9) * new.moment + np.float32(0.1) * gradient
            new.square = np.float32(0.95) * new.square + np.float32(0.05) * gradient * gradient
            step = new.moment / (np.sqrt(new.square) + np.float32(1e-8))
            new.weights = new.weights * np.float32(1 - 1e-5) - np.float32(self.rate) * step
        return new


def master(before: Run, now: Run) -> ChunkContext:
    shape = now.weights.shape
    return context_of(
        Role.MASTER, (shape[0], shape[1]), "BF16", parent=before.weights, half=bf16(now.weights), moment=now.moment,
        square=now.square,
    )  # fmt: skip


# ---- exact


def special(count: int, seed: int) -> np.ndarray:
    """Any patterns at all, and many of those that arithmetic treats in ways of its own."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 1 << 32, count, dtype=np.uint32)
    odd = np.array([0, 1 << 31, 1, 0x7FFFFF, 0x800000, 0x7F800000, 0xFF800000, 0x7FC00001, 0x7F7FFFFF], np.uint32)
    places = rng.random(count) < 0.3
    values[places] = rng.choice(odd, int(places.sum()))
    return values


@pytest.mark.parametrize("count", [1, 31, 1025, 4200])
@pytest.mark.parametrize("half", ["", "BF16", "F16"])
def test_references_of_nothing_in_common(count: int, half: str, short_segments: None) -> None:
    parent, moment, square, data = (special(count, seed) for seed in range(4))
    halves = {"half": (special(count, 5) >> 16).astype("<u2")} if half else {}
    check(data, context_of(Role.MASTER, (1, count), half, parent=parent, moment=moment, square=square, **halves))
    check(data, context_of(Role.SQUARE, (1, count), parent=parent))
    check(data, context_of(Role.MOMENT, (1, count), parent=parent, square=square))
    check(data, context_of(Role.MOMENT, (1, count), square=square))


@pytest.mark.parametrize("kind", ["BF16", "F16"])
def test_every_half_and_both_ends_of_what_rounds_to_it(kind: str) -> None:
    """Mode 2, and mode 0 with a parent on either side: ties, subnormals, infinities and NaN among them."""
    halves = np.arange(65536, dtype="<u2")
    width = 16 if kind == "BF16" else 13
    wide = (
        optim.widened(halves.view(np.uint8), optim.BF16 if kind == "BF16" else optim.F16).view("<u4").astype(np.int64)
    )
    rng = np.random.default_rng(0)
    for offset in (0, -(1 << width - 1), (1 << width - 1) - 1, 1 << width - 1, rng.integers(-9000, 9000, 65536)):
        data = (wide + offset).astype(np.uint32)
        for parent in (None, rng.permutation(data), data ^ np.uint32(1 << 14)):
            given = {} if parent is None else {"parent": parent}
            ctx = context_of(Role.MASTER, (64, 1024), kind, **given, half=halves)
            numbers = (NOTHING if parent is None else 0, len(given), NOTHING, NOTHING)
            factors = (0.0, 0.0, 0.0) if parent is None else (1.0, 0.0, 0.0)
            of = [NONE if parent is None else parent.view(np.uint8), halves.view(np.uint8), NONE, NONE]
            to = optim_choice.expectation(of, False, factors, optim.BF16 if kind == "BF16" else optim.F16)
            for raw in (0, 7):
                choice = Choice(dataclasses.replace(to, row_len=1024, base=400, raw=raw), numbers, factors)
                payload = optim_ctx._encode(data.view(np.uint8), choice)
                read(payload, data.tobytes(), ctx, oracle=False)


def test_predictions_are_the_same_number_on_every_path_and_in_the_reference() -> None:
    """All kinds of operands, and factors that make results overflow, vanish and cancel."""
    parent, moment, square = (special(20000, seed) for seed in range(3))
    square[::2] = parent[::2]
    for factors in ((1.0, 1.0, 1e-8), (0.999, -3e-4, 1e-8), (2.0**60, -(2.0**60), 2.0**-60), (1.1, 2.0**-40, 3.0)):
        found = []
        for path in PATHS:
            api.set_backend(path)
            given = (x.view(np.uint8) for x in (parent, moment, square))
            p, m, v = given
            found.append(optim.optim_predict(p, factors, m, v).view("<u4"))
        assert all(np.array_equal(found[0], other) for other in found)
        some = range(0, 20000, 7)
        expected = [ORACLE.stepped(int(parent[i]), int(moment[i]), int(square[i]), *factors) for i in some]
        assert found[0][::7].tolist() == expected


@pytest.mark.parametrize("rate", [1e-3, 1e-5])
@pytest.mark.parametrize("rows", [24, 31])
def test_a_checkpoint_in_training(rate: float, rows: int, short_segments: None) -> None:
    before = Run(rows, 100, rate).train(20)
    now = before.train(10)
    check(now.weights, master(before, now))
    check(now.square, context_of(Role.SQUARE, (rows, 100), parent=before.square))
    check(now.moment, context_of(Role.MOMENT, (rows, 100), parent=before.moment, square=now.square))


# ---- small


def share(data: np.ndarray, ctx: ChunkContext) -> float:
    payload = check(data, ctx, oracle=False)
    return len(payload) / data.nbytes


def test_a_master_weight_takes_what_its_half_does_not_say() -> None:
    now = Run(500, 400, 1e-4).train(5)
    shape = (500, 400)
    assert 0.5 <= share(now.weights, context_of(Role.MASTER, shape, "BF16", half=bf16(now.weights))) < 0.502
    half = now.weights.astype("<f2")
    assert share(now.weights, context_of(Role.MASTER, shape, "F16", half=half)) < 13 / 32 + 0.04


def test_a_step_of_adam_is_recognised() -> None:
    """Rows that saw no gradient moved as the moments say, to the last few bits; and a tenth of them is enough."""
    before = Run(300, 200, 1e-5, seen=0.05).train(30)
    now = before.train(10)
    ctx = master(before, now)
    without = dataclasses.replace(ctx, references=ctx.references[:2], roles=ctx.roles[:2])
    assert share(now.weights, ctx) < 0.9 * share(now.weights, without)


def test_what_fades_is_recognised() -> None:
    """Squares of rows that saw no gradient are the old ones times a power of beta."""
    before = Run(300, 200, 1e-5, seen=0.05).train(30)
    now = before.train(10)
    payload = check(now.square, context_of(Role.SQUARE, (300, 200), parent=before.square), oracle=False)
    factor = struct.unpack_from("<d", payload, 24)[0]
    assert abs(factor - 0.95**10) < 1e-3


def test_a_first_moment_is_as_large_as_the_root_of_the_second() -> None:
    now = Run(500, 400, 1e-4).train(40)
    rng = np.random.default_rng(0)
    # Scales that rows and columns do not know.
    wild = np.exp(rng.normal(0, 3, now.moment.shape)).astype(np.float32)
    moment, square = now.moment * wild, now.square * wild * wild
    ctx = context_of(Role.MOMENT, (500, 400), square=square)
    alone = encode_best(memoryview(moment.tobytes()), ChunkContext(DTYPES["F32"], 500, 400))[1]
    assert share(moment, ctx) < len(alone) / moment.nbytes - 0.04


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_wrong_relations_cost_nothing(profile: str) -> None:
    """Never more than without them, whatever they are."""
    before, other = Run(200, 300, 1e-4).train(20), Run(201, 300, 1e-4).train(20)
    now, shape = before.train(10), (200, 300)
    strange = {
        "half": bf16(other.weights[:200]), "moment": -other.moment[:200], "square": other.square[:200][::-1].copy(),
    }  # fmt: skip
    for role, data in ((Role.MASTER, now.weights), (Role.MOMENT, now.moment), (Role.SQUARE, now.square)):
        parent = {"parent": other.square[:200] if role == Role.MASTER else other.weights[:200]}
        plain = memoryview(data.tobytes())
        alone = encode_best(plain, ChunkContext(DTYPES["F32"], *shape), profile)[1]
        for given in ({**parent, **strange}, strange):
            with_them = encode_best(plain, context_of(role, shape, "BF16", **given), profile)[1]
            assert len(with_them) <= len(alone)


def test_the_best_codec_is_found() -> None:
    before = Run(200, 300, 1e-4).train(20)
    now = before.train(10)
    codec, payload = encode_best(memoryview(now.weights.tobytes()), master(before, now))
    assert codec == OPTIM_CTX and len(payload) < 0.51 * now.weights.nbytes


@pytest.mark.parametrize("rows", [200, 640])
def test_a_plan_tells_what_its_payload_takes(rows: int) -> None:
    before = Run(rows, 256, 1e-4).train(20)
    now, shape = before.train(10), (rows, 256)
    for data, ctx in (
        (now.weights, master(before, now)),
        (now.square, context_of(Role.SQUARE, shape, parent=before.square)),
        (now.moment, context_of(Role.MOMENT, shape, parent=before.moment, square=now.square)),
    ):
        plain, found = memoryview(data.tobytes()), []
        for path in PATHS:
            api.set_backend(path)
            found.append(plan_optim(plain, ctx))
        plan = found[0]
        assert plan is not None and all((p.bits, p.way, p.raw) == (plan.bits, plan.way, plan.raw) for p in found)
        assert abs(plan.bits / 8 / len(encode_planned(plain, plan)) - 1) < 0.01


def test_samples_choose_as_coding_everything_would() -> None:
    """To 0.3 % of the smallest of what all codecs make of it."""
    before = Run(400, 256, 1e-4, seen=0.7).train(20)
    now, shape = before.train(10), (400, 256)
    jumped = before.moment + (1e-6 * before.rng.standard_normal(shape)).astype(np.float32)  # near its parent alone
    for data, ctx in (
        (now.weights, master(before, now)),
        (now.square, context_of(Role.SQUARE, shape, parent=before.square)),
        (now.moment, context_of(Role.MOMENT, shape, parent=before.moment, square=now.square)),
        (jumped, context_of(Role.MOMENT, shape, parent=before.moment, square=now.square[::-1].copy())),
    ):
        plain = memoryview(data.tobytes())
        parents = dataclasses.replace(ctx, references=ctx.parents(), role=Role.OTHER, roles=())
        alone = encode_best(plain, ChunkContext(DTYPES["F32"], *shape))[1]
        sizes = [len(found) for found in (encode_optim(plain, ctx), encode_delta(plain, parents), alone) if found]
        assert len(encode_best(plain, ctx)[1]) <= (1.003 + PROFILES["balanced"].state_gain) * min(sizes)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("shape", [(1, 3), (1, 64), (4, 16), (1, 300), (20, 30)])
def test_small_tensors_never_take_more_than_without_references(shape: tuple[int, int], profile: str) -> None:
    """Headers and tables take hundreds of bytes, which samples do not see."""
    before = Run(*shape, 1e-4).train(20)
    now = before.train(10)
    for data, ctx in (
        (now.weights, master(before, now)),
        (now.square, context_of(Role.SQUARE, shape, parent=before.square)),
        (now.moment, context_of(Role.MOMENT, shape, parent=before.moment, square=now.square)),
    ):
        plain = memoryview(data.tobytes())
        alone = encode_best(plain, ChunkContext(DTYPES["F32"], *shape), profile)[1]
        assert len(encode_best(plain, ctx, profile)[1]) <= len(alone) <= len(plain)


def test_an_unchanged_tensor_takes_a_byte() -> None:
    before = Run(200, 300, 1e-4).train(20)
    assert encode_best(memoryview(before.weights.tobytes()), master(before, before))[1] == b"\0"


def test_factors_are_found_in_any_scale() -> None:
    rng = np.random.default_rng(0)
    for scale in (1e-10, 1.0, 1e10):
        parent, step = rng.standard_normal(5000) * scale, rng.standard_normal(5000)
        new = (0.99 * parent - 1e-3 * scale * step).astype(np.float32).astype(np.float64)
        found = optim_fit.step_factors(new, parent, step)
        assert min(abs(f - 0.99) + abs(g / scale + 1e-3) for f, g in found) < 1e-6
    assert optim_fit.step_factors(parent, parent * 0, step * 0) == []
    assert optim_fit.decay(parent * 0, parent) == []


# ---- hostile


def test_every_flip_and_cut_is_refused_or_decodes_to_something(short_segments: None) -> None:
    before = Run(8, 40, 1e-4).train(5)
    now = before.train(3)
    for data, ctx in (
        (now.weights, master(before, now)),
        (now.moment, context_of(Role.MOMENT, (8, 40), parent=before.moment, square=now.square)),
    ):
        payload, refused = check(data, ctx), 0
        for path, step in ((PATHS[-2], 1), (PATHS[-1], 37)):
            api.set_backend(path)
            for bit in range(0, 8 * len(payload), step):
                bad = bytearray(payload)
                bad[bit // 8] ^= 1 << bit % 8
                try:
                    decode(bytes(bad), data.nbytes, ctx)
                except CorruptError:
                    refused += 1
            for length in range(0, len(payload), step):
                with pytest.raises(CorruptError):
                    decode(payload[:length], data.nbytes, ctx)
        assert refused > 0


@pytest.mark.parametrize(
    ("offset", "value", "what"),
    [
        (0, b"\x03", "header"), (1, b"\x19", "header"), (2, b"\x09", "header"), (3, b"\x04", "header"),
        (4, b"\x03", "header"), (4, b"\x00", "halves"), (5, b"\x00", "header"), (5, b"\x41", "header"),
        (6, b"\xff", "mode"), (6, b"\x09", "reference"), (7, b"\x00", "reference"), (8, b"\xff", "mode"),
        (9, b"\x01", "reference"), (12, bytes(4), "header"), (0, b"\x01", "mode"), (0, b"\x02", "mode"),
        (24, bytes(8), "factor"), (24, struct.pack("<d", float("nan")), "factor"),
        (24, struct.pack("<d", 2.0**61), "factor"), (32, struct.pack("<d", 2.0**-61), "factor"),
        (40, struct.pack("<d", -1.0), "factor"), (40, struct.pack("<d", float("inf")), "factor"),
    ],
)  # fmt: skip
def test_bad_headers_are_refused(offset: int, value: bytes, what: str) -> None:
    before = Run(30, 100, 1e-6, seen=0.2).train(20)
    now = before.train(10)
    ctx = master(before, now)
    payload = bytearray(check(now.weights, ctx))
    assert payload[0] == 0 and payload[4] == 1 and tuple(payload[6:10]) == (0, 1, 2, 3)
    payload[offset : offset + len(value)] = value
    for path in PATHS:
        api.set_backend(path)
        with pytest.raises(CorruptError, match=what):
            decode(bytes(payload), now.weights.nbytes, ctx)
    with pytest.raises(ORACLE.Corrupt):
        ORACLE.decode_optim(bytes(payload), now.weights.nbytes, "F32", [bytes(r) for r in ctx.references])


def test_only_fp32_is_coded() -> None:
    ctx = dataclasses.replace(context_of(Role.SQUARE, (1, 4), parent=np.zeros(4, np.float32)), dtype=DTYPES["I32"])
    assert encode_optim(memoryview(bytes(16)), ctx) is None
    with pytest.raises(CorruptError):
        decode(bytes(100), 16, ctx)
