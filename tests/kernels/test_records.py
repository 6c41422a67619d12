"""The kernels of records and of scaled codes: native paths and the NumPy reference do the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arzstream.kernels import api, records
from arzstream.kernels.records import Rule, put_part, record_classes, scale_codes, take_part

PATHS = [*api.cpu_features(), "numpy"]


def on_all(call: Any) -> Any:
    """The result of ``call`` on every path, which must be one."""
    results = []
    for path in PATHS:
        api.set_backend(path)
        results.append(call())
    for other in results[1:]:
        assert np.array_equal(results[0], other)
    return results[0]


@given(st.integers(1, 70), st.integers(0, 300), st.data())
def test_parts_are_taken_and_put_back(record: int, count: int, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, record - 1))
    length = data.draw(st.integers(1, record - at))
    source = np.random.default_rng(count).integers(0, 256, record * count, np.uint8)
    part = on_all(lambda: take_part(source, record, at, length))
    assert np.array_equal(part, source.reshape(-1, record)[:, at : at + length].reshape(-1))

    def put() -> Any:
        out = np.zeros_like(source)
        put_part(part, record, at, length, out)
        return out

    back = on_all(put).reshape(-1, record)
    assert np.array_equal(take_part(back.reshape(-1), record, at, length), part)
    assert not back[:, :at].any() and not back[:, at + length :].any()


@st.composite
def rules(draw: st.DrawFn, record: int) -> Rule:
    field = st.none() | st.integers(0, record - 2) if record >= 2 else st.none()
    numerator = draw(field)
    return Rule(
        z_classes=draw(st.integers(1, 8)),
        e_classes=draw(st.integers(1, 8)),
        numerator=numerator,
        denominator=draw(field) if numerator is not None else None,
        scale=draw(field),
        columns=draw(st.booleans()),
        z_shift=draw(st.integers(0, 15)),
        e_shift=draw(st.integers(0, 15)),
        z_base=draw(st.integers(-(1 << 15), (1 << 15) - 1) | st.integers(-20, 20)),
        e_base=draw(st.integers(-(1 << 15), (1 << 15) - 1) | st.integers(-20, 20)),
    )


@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 350), st.data())
def test_classes(record: int, count: int, row: int, data: st.DataObject) -> None:
    rule = data.draw(rules(record))
    length = data.draw(st.integers(1, record))
    rng = np.random.default_rng(count)
    source = rng.integers(0, 256, record * count, np.uint8)
    cols = rng.integers(0, 256, min(row, count) * length if rule.columns else 0, np.uint8)
    classes = on_all(lambda: record_classes(source, record, row, length, rule, cols))
    assert len(classes) == count * length and classes.max() < rule.classes


def test_a_class_follows_from_ratio_scale_and_column() -> None:
    source = np.array([0, 0x20, 0, 0x30, 9, 0, 0xA4, 0, 0xB0, 9], np.uint8)  # the second one's signs do not count
    rule = Rule(100, 2, numerator=2, denominator=0, scale=0, columns=True, z_shift=8, e_shift=8, z_base=2)
    cols = np.array([0, 3], np.uint8)
    # z: 0x10 - 2 and 0x0c - 2; the scales' mean is 0x22, so that e is 2 and -2.
    assert record_classes(source, 5, 2, 1, rule, cols).tolist() == [2 * 14 + 1, 2 * 10 + 1]
    assert record_classes(source, 5, 2, 1, rule, cols[::-1].copy() * 0).tolist() == [2 * 14 + 1, 2 * 10]


def test_fields_outside_of_the_record_are_refused() -> None:
    for path in PATHS:
        api.set_backend(path)
        with pytest.raises(ValueError):
            record_classes(np.zeros(10, np.uint8), 5, 1, 1, Rule(2, numerator=4), np.empty(0, np.uint8))


@pytest.mark.parametrize("dtype", records.FLOAT_KINDS)
@pytest.mark.parametrize("minus_zero", [False, True])
def test_every_code_times_scales_of_every_size(dtype: str, minus_zero: bool) -> None:
    rng = np.random.default_rng(0)
    scales = np.ldexp(1 + rng.random(4000), rng.integers(-126, 128, 4000)).astype(np.float32)
    ties = (1 + rng.integers(0, 4096, 2000) / 4096).astype(np.float32) * np.float32(2.0) ** rng.integers(-30, 17, 2000)
    scales = np.concatenate([scales[np.isfinite(scales)], ties.astype(np.float32), [np.float32(0)]])
    codes = np.tile(np.arange(-128, 128).astype(np.int8), len(scales))
    size = 4 if dtype == "F32" else 2

    def run() -> Any:
        out = np.empty(size * len(codes), np.uint8)
        scale_codes(codes, 256, scales, minus_zero, dtype, out)
        return out

    found = on_all(run).view(f"<u{size}")
    with np.errstate(all="ignore"):
        product = torch.from_numpy(codes.astype(np.float32) * np.repeat(scales, 256))
    kind = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}[dtype]
    expected = product.to(kind).view(torch.uint8).numpy().view(f"<u{size}").copy()
    if minus_zero:
        expected[codes == -128] = 1 << (8 * size - 1)
    assert np.array_equal(found, expected)
