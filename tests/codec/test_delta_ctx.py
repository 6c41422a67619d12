"""Codec delta_ctx: exact whatever the references are, the same on every path and in the reference decoder, close to
what the changes weigh, safe with hostile payloads."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arzstream.codec import delta_ctx
from arzstream.codec.base import ChunkContext
from arzstream.codec.best import DELTA_CTX, PROFILES, encode_best
from arzstream.codec.delta_ctx import DeltaCtx, encode_delta, look, origin_of, scales_of
from arzstream.codec.delta_learning import Changes, even_if_cheap, learn
from arzstream.codec.delta_model import Model
from arzstream.codec.dtypes import DTYPES, DType
from arzstream.errors import CorruptError
from arzstream.kernels import api

PATHS = [*api.cpu_features(), "numpy"]
CODEC = DeltaCtx()
SMALL = [d for d in DTYPES.values() if d.itemsize // d.components <= 4]


def _reference_decoder() -> Any:
    path = Path(__file__).resolve().parents[2] / "spec" / "reference_decoder.py"
    spec = importlib.util.spec_from_file_location("reference_decoder_of_delta", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


ORACLE = _reference_decoder()


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several segments in a few thousand elements."""
    for name, elements in (("PAIR", 2048), ("SPARSE", 1024), ("ALONE", 1025)):
        monkeypatch.setattr(delta_ctx, name, elements)


def decode(payload: bytes, length: int, ctx: ChunkContext) -> bytes:
    out = bytearray(length)
    CODEC.decode(memoryview(payload), memoryview(out), ctx)
    return bytes(out)


def check(data: bytes, ctx: ChunkContext, oracle: bool = True) -> bytes:
    """Encode and decode on every path; returns the payload, which is the same on all."""
    payloads = []
    for path in PATHS:
        api.set_backend(path)
        payloads.append(encode_delta(memoryview(data), ctx))
    payload = payloads[0]
    assert payload is not None and all(other == payload for other in payloads)
    for path in PATHS:
        api.set_backend(path)
        assert decode(payload, len(data), ctx) == data, path
    if oracle:
        references = [bytes(r) for r in ctx.references]
        assert ORACLE.decode_delta(payload, len(data), ctx.dtype.name, references, ctx.models) == data
    return payload


def context_of(dtype: str, rows: int, cols: int, *references: np.ndarray) -> ChunkContext:
    return ChunkContext(DTYPES[dtype], rows, cols, tuple(memoryview(r.tobytes()) for r in references))


def bf16(values: np.ndarray) -> np.ndarray:
    """Rounded to nearest, ties to even."""
    bits = values.astype("<f4").view("<u4")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def shared_model(data: bytes, ctx: ChunkContext, references: int, top: int = 3) -> Model:
    """A model learned from a chunk, as one that many share."""
    scales = scales_of(memoryview(data), ctx)
    origin = origin_of(ctx, scales)
    looked = look(memoryview(data), ctx, scales, references, top, origin)
    assert looked is not None
    return learn(Changes.of(references, [looked[:0:-1]]), top, origin)


def run(rows: int, cols: int, rate: float, steps: int = 3, spread: float = 0.7) -> list[np.ndarray]:
    """fp32 weights of a matrix at ``steps`` times, whose rows and columns move at rates of their own, with momentum."""
    rng = np.random.default_rng(rows * cols)
    scale = rate * np.exp(rng.normal(0, spread, (rows, 1)) + rng.normal(0, spread, cols))
    weights, speed = rng.standard_normal((rows, cols)) * 0.02, rng.standard_normal((rows, cols))
    made = []
    for _ in range(steps):
        made.append(weights.astype(np.float32))
        speed = 0.95 * speed + 0.3 * rng.standard_normal((rows, cols))
        weights = weights + scale * speed
    return made


@pytest.mark.parametrize("dtype", SMALL, ids=lambda d: d.name)
@pytest.mark.parametrize("count", [1, 31, 1024, 1025, 4200])
@pytest.mark.parametrize("references", [1, 2])
def test_every_type_with_references_of_nothing_in_common(
    dtype: DType, count: int, references: int, short_segments: None
) -> None:
    rng = np.random.default_rng(count)
    data, *others = (rng.integers(0, 256, count * dtype.itemsize, np.uint8) for _ in range(1 + references))
    check(data.tobytes(), context_of(dtype.name, 1, count, *others))


@pytest.mark.parametrize("name", ["BF16", "F16", "U16", "I16"])
def test_all_65536_patterns_after_each_other(name: str) -> None:
    """NaN payloads, infinities, subnormals and both zeros among them; changes of every size, the largest included."""
    rng = np.random.default_rng(0)
    values = np.arange(65536, dtype="<u2")
    check(rng.permutation(values).tobytes(), context_of(name, 256, 256, values), oracle=False)
    check((values ^ 0x8000).tobytes(), context_of(name, 64, 1024, values, rng.permutation(values)), oracle=False)
    check((values + 1).tobytes(), context_of(name, 64, 1024, values, values - 1), oracle=False)


@pytest.mark.parametrize("name", ["F32", "I32"])
def test_changes_of_half_of_all_numbers_in_four_bytes(name: str) -> None:
    rng = np.random.default_rng(0)
    parent = rng.integers(0, 1 << 32, 5000, np.uint64).astype("<u4")
    for change in (1 << 31, (1 << 31) - 1, (1 << 31) + 1, (1 << 32) - 1):
        data = (parent + np.uint32(change)).astype("<u4")
        check(data.tobytes(), context_of(name, 1, 5000, parent, data), oracle=False)
        check((parent ^ np.uint32(change)).tobytes(), context_of(name, 1, 5000, parent), oracle=False)


@given(
    st.integers(1, 70), st.integers(1, 70), st.sampled_from(["BF16", "F32", "F16", "I8"]), st.integers(1, 2), st.data()
)
def test_changes_of_any_size_in_any_shape(
    rows: int, cols: int, name: str, references: int, data: st.DataObject
) -> None:
    kind = {"BF16": "<u2", "F32": "<u4", "F16": "<u2", "I8": "u1"}[name]
    rng = np.random.default_rng(rows * cols)
    bits = data.draw(st.integers(0, 8 * np.dtype(kind).itemsize - 1))
    share = data.draw(st.sampled_from([0.01, 0.3, 1.0]))
    made = [rng.integers(0, 1 << 8 * np.dtype(kind).itemsize, rows * cols, np.uint64).astype(kind)]
    for _ in range(references):
        change = rng.integers(0, 1 << bits, rows * cols, np.uint64) * (rng.random(rows * cols) < share)
        made.append((made[-1] + change.astype(kind)).astype(kind))
    check(made[-1].tobytes(), context_of(name, rows, cols, *made[-2::-1]), oracle=rows * cols < 500)


@pytest.mark.parametrize("references", [1, 2])
def test_a_run_is_decoded_by_the_reference_decoder(references: int, short_segments: None) -> None:
    made = [bf16(w) for w in run(80, 120, 1e-3)]
    payload = check(made[2].tobytes(), context_of("BF16", 80, 120, *made[1::-1][:references]))
    assert payload[0] == references


def test_what_did_not_change_takes_a_byte() -> None:
    data = bf16(run(30, 40, 1e-3)[0])
    assert check(data.tobytes(), context_of("BF16", 30, 40, data)) == b"\0"
    assert check(data.tobytes(), context_of("BF16", 30, 40, data, data + 1)) == b"\0"


def test_what_hardly_changed_takes_what_the_changes_weigh() -> None:
    """A hundredth and a thousandth of the weights, one unit up or down, anywhere."""
    rng = np.random.default_rng(1)
    parent = bf16(run(512, 1024, 1e-3)[0])
    for share in (0.01, 0.001):
        changed = rng.random(parent.shape) < share
        data = parent + np.where(changed, rng.choice([1, -1], parent.shape), 0).astype("<u2")
        payload = check(data.tobytes(), context_of("BF16", 512, 1024, parent), oracle=False)
        ideal = -share * math.log2(share) - (1 - share) * math.log2(1 - share) + share
        assert 8 * len(payload) / parent.size < 1.06 * ideal + 0.002


def test_scales_and_steps_pay() -> None:
    """Rows and columns that move differently, and momentum: below what the distribution of all changes gives."""
    made = [bf16(w) for w in run(400, 500, 2e-4)]
    of_one = check(made[2].tobytes(), context_of("BF16", 400, 500, made[1]), oracle=False)
    of_two = check(made[2].tobytes(), context_of("BF16", 400, 500, made[1], made[0]), oracle=False)
    signed = made[2].astype(np.int64) - made[1]
    counts = np.unique(np.where(made[1] >> 15, -signed, signed), return_counts=True)[1]
    entropy = float(-(counts / counts.sum()) @ np.log2(counts / counts.sum()))
    assert of_one[3] == 3 and of_one[0] == 1 and of_two[0] == 2  # both sides have scales
    assert 8 * len(of_one) / made[0].size < 0.9 * entropy
    assert len(of_two) < 0.97 * len(of_one)


def test_it_does_not_apply_without_references_or_to_eight_bytes() -> None:
    assert encode_delta(memoryview(bytes(16)), ChunkContext(DTYPES["BF16"], 2, 4)) is None
    assert encode_delta(memoryview(b""), context_of("BF16", 0, 4, np.empty(0, "<u2"))) is None
    parent = np.arange(8.0)
    for name in ("F64", "I64", "C128"):
        assert encode_delta(memoryview(parent.tobytes()), context_of(name, 1, 8, parent)) is None
        with pytest.raises(CorruptError):
            decode(b"\0", 64, context_of(name, 1, 8, parent))


def test_missing_or_wrong_references_are_refused() -> None:
    made = [bf16(w) for w in run(80, 120, 1e-3)]
    payload = check(made[2].tobytes(), context_of("BF16", 80, 120, made[1], made[0]), oracle=False)
    assert payload[0] == 2
    for references in ([], [made[1]], [made[1][:20], made[0]], [made[1], made[0][:20]]):
        with pytest.raises(CorruptError, match="reference"):
            decode(payload, made[2].nbytes, context_of("BF16", 80, 120, *references))


@pytest.mark.parametrize("references", [1, 2])
def test_hostile_payloads_are_refused_or_decode_to_something_alike_everywhere(
    references: int, short_segments: None
) -> None:
    made = [bf16(w) for w in run(40, 200, 1e-3)]
    ctx = context_of("BF16", 40, 200, *made[1::-1][:references])
    payload = check(made[2].tobytes(), ctx, oracle=False)
    assert payload[0] == references
    rng = np.random.default_rng(2)
    cases = [payload[:k] for k in [*range(30), len(payload) // 2, len(payload) - 1]]
    cases.append(payload + b"\0")
    for at in [*range(24), *rng.integers(24, len(payload), 100).tolist()]:
        bad = bytearray(payload)
        bad[at] ^= 1 << int(rng.integers(8))
        cases.append(bytes(bad))
    for bad in cases:
        results = set()
        for path in PATHS:
            api.set_backend(path)
            try:
                results.add(decode(bad, made[2].nbytes, ctx))
            except CorruptError:
                results.add(None)
        assert len(results) == 1
        try:
            oracle = ORACLE.decode_delta(bad, made[2].nbytes, "BF16", [bytes(r) for r in ctx.references])
        except ORACLE.ArchiveError:
            oracle = None
        assert results == {oracle}


@pytest.mark.parametrize("profile", PROFILES)
def test_the_best_is_never_larger_than_without_references(profile: str) -> None:
    rng = np.random.default_rng(3)
    made = [bf16(w) for w in run(100, 120, 2e-4)]
    noise = rng.integers(0, 65536, made[0].shape).astype("<u2")
    for parent, expected in ((made[1], True), (noise, False), (made[2] ^ 1, True)):
        ctx = context_of("BF16", 100, 120, parent)
        codec, payload = encode_best(memoryview(made[2].tobytes()), ctx, profile)
        alone = encode_best(memoryview(made[2].tobytes()), ChunkContext(ctx.dtype, 100, 120), profile)[1]
        assert (codec == DELTA_CTX) == expected
        assert len(payload) <= len(alone)


@pytest.mark.parametrize("references", [1, 2, 3])
@pytest.mark.parametrize("name", ["BF16", "F32"])
def test_chunks_share_a_model_of_other_chunks(references: int, name: str, short_segments: None) -> None:
    """It takes no room in them, and what it has no frequency for is an exception."""
    made = [bf16(w) if name == "BF16" else w for w in run(320, 510, 1e-3, steps=4)]
    ctx = context_of(name, 320, 510, *made[2::-1][:references])
    model = shared_model(made[3].tobytes(), ctx, references, 3 if name == "BF16" else 2)
    other = [bf16(w) if name == "BF16" else w for w in run(60, 130, 1e-3, steps=4)]
    ctx = context_of(name, 60, 130, *other[2::-1][:references])
    odd = other[3].copy()
    odd.view("<u2").reshape(-1)[:: odd.size // 9] ^= 0x0300
    for data in (other[3], odd):
        alone = check(data.tobytes(), ctx)
        payload = check(data.tobytes(), dataclasses.replace(ctx, models=(model.stored,)))
        assert payload[0] == references and payload[1] == 1
        assert len(payload) < len(alone)
        exceptions = int.from_bytes(payload[12:16], "little")
        assert 0 < exceptions < 130


@pytest.mark.parametrize("top", [0, 1])
@pytest.mark.parametrize("name", ["BF16", "I16", "I8"])
def test_models_of_few_leading_bits_leave_many_raw_ones_to_each_element(name: str, top: int) -> None:
    """We write two or three bits; the format allows none, and then up to 15 raw bits to each of four neighbours."""
    rng, itemsize = np.random.default_rng(top), DTYPES[name].itemsize
    parent = rng.integers(0, 1 << 8 * itemsize, 3000, np.uint64).astype(f"<u{itemsize}")
    largest = 1 << 8 * itemsize - 1
    changes = np.where(rng.random(3000) < 0.5, largest, rng.integers(largest // 2, largest, 3000))
    data = (parent + changes.astype(f"<u{itemsize}")).tobytes()
    ctx = context_of(name, 30, 100, parent)
    model = shared_model(data, ctx, 1, top)
    assert check(data, dataclasses.replace(ctx, models=(model.stored,)))[1] == 1


def test_the_model_with_the_most_references_is_taken_and_a_bad_one_left() -> None:
    made = [bf16(w) for w in run(320, 510, 1e-3)]
    ctx = context_of("BF16", 320, 510, made[1], made[0])
    models = tuple(shared_model(made[2].tobytes(), ctx, references).stored for references in (1, 2))
    assert check(made[2].tobytes(), dataclasses.replace(ctx, models=models))[:2] == b"\2\2"
    assert check(made[2].tobytes(), dataclasses.replace(ctx, models=models[::-1]))[:2] == b"\2\1"
    noise = np.random.default_rng(0).integers(0, 65536, made[2].shape).astype("<u2")
    assert check(noise.tobytes(), dataclasses.replace(ctx, models=models))[1] == 0  # one of its own


def test_what_is_learned_is_what_decides() -> None:
    """Cells of which a bit of each input decides get classes of their own, and no more."""
    rng = np.random.default_rng(4)
    cells = rng.integers(0, 1 << 13, 200_000).astype(np.uint16)
    near = (cells & 63) > 20
    again = (cells >> 9 & 7) > 3
    likely = np.where(near, np.where(again, 40, 30), 10)
    symbols = (likely + rng.geometric(0.5, len(cells))).clip(2, 90).astype(np.uint8)
    model = learn(Changes.of(2, [(cells, symbols)]), 2, 0)
    assert len(model.freqs) == 3
    classes = model.class_of[cells]
    assert len({(int(k), int(y)) for k, y in zip(classes, likely, strict=True)}) == 3
    assert len(learn(Changes.of(2, [(cells, symbols)]), 2, 0, classes=2).freqs) == 2


def test_segments_come_in_pairs_of_one_length_and_none_is_empty() -> None:
    """As many as the header says; a number that would leave one without elements is refused."""
    new, old = (bf16(w) for w in run(400, 400, 1e-4, 2))
    ctx = context_of("BF16", 400, 400, old)
    payload = bytearray(check(new.tobytes(), ctx, oracle=False))
    assert payload[2] == 2
    few = context_of("BF16", 10, 10, old[:10, :10].copy())
    payload = bytearray(check(new[:10, :10].tobytes(), few))
    assert payload[2] == 1
    for segments in (0, 5, 255):
        payload[2] = segments
        with pytest.raises(CorruptError, match="segments"):
            decode(bytes(payload), 200, few)
        with pytest.raises(ORACLE.Corrupt, match="segments"):
            ORACLE.decode_delta(bytes(payload), 200, "BF16", [bytes(r) for r in few.references])


def test_tables_are_even_where_that_costs_next_to_nothing() -> None:
    """Not where nearly everything has one symbol: what is rare would have twice the frequency that it needs."""
    new, old = (bf16(w) for w in run(400, 400, 1e-4, 2))
    model = shared_model(new.tobytes(), context_of("BF16", 400, 400, old), 1)
    assert not (model.freqs & 1).any() and model.slots.halved
    counts = np.zeros((1, 256), np.int64)
    counts[0, [1, 2, 3]] = 1_000_000, 20, 20
    assert (even_if_cheap(counts) & 1).any()
    counts[0, 1:40] = 1000
    assert not (even_if_cheap(counts) & 1).any()


def test_learning_is_the_same_twice_and_whatever_the_order() -> None:
    made = [bf16(w) for w in run(100, 120, 1e-3)]
    ctx = context_of("BF16", 100, 120, made[1], made[0])
    data = memoryview(made[2].tobytes())
    looked = look(data, ctx, scales_of(data, ctx), 2, 3, 20)
    assert looked is not None
    _, symbols, cells = looked
    halves = [(cells[:6000], symbols[:6000]), (cells[6000:], symbols[6000:])]
    stored = {learn(Changes.of(2, parts), 3, 20).stored for parts in (halves, halves[::-1], [(cells, symbols)])}
    assert len(stored) == 1
