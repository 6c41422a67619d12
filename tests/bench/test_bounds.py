"""The bounds that the ratios stand beside, the store's rate, and the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arzstream.bench.entropy import Bounds, bounds, gaussian_bits
from arzstream.bench.loading import load_seconds, store_rate
from arzstream.bench.plot import Panel, plot
from arzstream.bench.rounds import Result
from arzstream.bench.sample import load
from arzstream.errors import StorageError
from arzstream.testing.tensors import Tensor, safetensors_bytes, to_bits


def test_the_gaussian_limit_is_the_entropy_of_gaussian_weights() -> None:
    """The plug-in entropy of many bf16 samples over a binade of σ, beside the formula."""
    rng = np.random.default_rng(0)
    found = []
    for scale in 2.0 ** np.arange(0, 1, 0.25):
        values = to_bits((rng.standard_normal(1 << 21) * scale).astype(np.float32), "BF16")
        shares = np.bincount(values, minlength=1 << 16) / len(values)
        shares = shares[shares > 0]
        found.append(-(shares * np.log2(shares)).sum())
    assert gaussian_bits(7) == pytest.approx(np.mean(found), abs=0.01)
    assert gaussian_bits(7) / 16 == pytest.approx(0.654, abs=0.0005)


def sample_of(tmp_path: Path, dtype: str, data: bytes, count: int) -> Bounds:
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_bytes([Tensor("w", dtype, (count,), data)]))
    return bounds([part for part in load([str(path)], 1 << 30, tmp_path).parts if part.name == "w"])


def test_order0_is_exponent_entropy_and_raw_bits(tmp_path: Path) -> None:
    """Four exponents, equally often, all mantissas: 2 + 8 of 16 bits."""
    values = (np.arange(1 << 16) % 4 + 100 << 7 | np.arange(1 << 16) // 4 % 128).astype("<u2")
    assert sample_of(tmp_path, "BF16", values.tobytes(), len(values)).order0 == pytest.approx(10 / 16)


def test_mantissa_bits_that_are_always_zero_do_not_count(tmp_path: Path) -> None:
    values = (np.random.default_rng(0).standard_normal(1 << 16).astype("<f4").view("<u4") & 0xFFFF0000).astype("<u4")
    found = sample_of(tmp_path, "F32", values.tobytes(), len(values))
    assert found.gaussian == pytest.approx(gaussian_bits(7) / 32)
    assert found.order0 < 0.34


def test_bytes_that_are_no_floats_count_eight_bits(tmp_path: Path) -> None:
    assert sample_of(tmp_path, "I8", bytes(1 << 17), 1 << 17) == Bounds(1.0, 1.0, 0)


@pytest.mark.parametrize("prefix", ["", "file://", "local://"])
def test_a_store_is_timed_by_path_and_by_url(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "object"
    path.write_bytes(bytes(20_000_000))
    rate = store_rate(prefix + str(path))
    assert rate.nbytes == 20_000_000
    assert rate.gb_per_s > 0


def test_an_empty_store_object_cannot_be_timed(tmp_path: Path) -> None:
    (tmp_path / "object").write_bytes(b"")
    with pytest.raises(StorageError, match="is empty"):
        store_rate(str(tmp_path / "object"))


def test_loading_takes_as_long_as_the_slower_of_transfer_and_decoding() -> None:
    assert load_seconds(10**9, 0.5, 1.0, 100.0) == pytest.approx((1.0, 0.5))
    assert load_seconds(10**9, 0.5, 10.0, 4.0) == pytest.approx((0.1, 0.25))


def result(name: str, package: str, speed: float, ratio: float) -> Result:
    return Result(name, package, "", "1", nbytes=1000, stored=int(1000 * ratio), rounds=1,
                  speeds={"decode_one": [speed]})  # fmt: skip


def test_the_plot_is_a_picture_also_where_points_coincide(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = [result("memcpy", "numpy", 10, 1), *[result(f"peer {k}", "p", 2, 0.66) for k in range(12)]]
    results.append(Result("failed", "p", "", None, state="failed"))
    plot(str(tmp_path / "x.png"), [Panel("a", results, Bounds(0.66, 0.65, 1))] * 3, "title")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(StorageError, match="cannot write the plot"):
        plot(str(tmp_path / "no" / "x.png"), [Panel("a", results, Bounds(0.66, 0.65, 1))], "title")
