"""Kernels whose floating-point results are not those of IEEE 754 are noticed, and not used."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from arzstream.kernels import api, arithmetic, numpy_optim

Predict = Callable[[float, float, float, float, float, float], float]


def fused_before(p: float, m: float, v: float, f: float, g: float, epsilon: float) -> float:
    """The first product is not rounded."""
    return float(Fraction(f) * Fraction(p) + Fraction(g * (m / (math.sqrt(v) + epsilon))))


def fused_after(p: float, m: float, v: float, f: float, g: float, epsilon: float) -> float:
    return float(Fraction(f * p) + Fraction(g) * Fraction(m / (math.sqrt(v) + epsilon)))


def reassociated(p: float, m: float, v: float, f: float, g: float, epsilon: float) -> float:
    return f * p + g * m / (math.sqrt(v) + epsilon)


def by_reciprocal(p: float, m: float, v: float, f: float, g: float, epsilon: float) -> float:
    return f * p + g * (m * (1 / (math.sqrt(v) + epsilon)))


def by_inverse_root(p: float, m: float, v: float, f: float, g: float, epsilon: float) -> float:
    return f * p + g * (m / ((v * (1 / math.sqrt(v)) if v else 0.0) + epsilon))


def wide(p: float, m: float, v: float, f: float, g: float, epsilon: float) -> float:
    """All of it exact but for the root and the quotient."""
    return float(np.float32(Fraction(f) * Fraction(p) + Fraction(g) * Fraction(m / (math.sqrt(v) + epsilon))))


class Native:
    """A module of kernels that predicts like this."""

    def __init__(self, predict: Predict) -> None:
        self._predict = predict

    def isas(self) -> list[str]:
        return ["one"]

    def set_isa(self, name: str) -> None:
        assert name == "one"

    def optim_predict(
        self, parent: np.ndarray, moment: np.ndarray, square: np.ndarray, factors: np.ndarray, out: np.ndarray
    ) -> None:
        p, m, v = (float(x.view("<f4")[0]) for x in (parent, moment, square))
        f, g, epsilon = factors.tolist()
        out.view("<f4")[:] = self._predict(p, m, v, f, g, epsilon)


class Reference(Native):
    optim_predict = staticmethod(numpy_optim.optim_predict)  # type: ignore[assignment]


def test_it_takes_what_calculates_as_the_specification_says() -> None:
    assert arithmetic.exact(Native(lambda p, m, v, f, g, epsilon: f * p + g * (m / (math.sqrt(v) + epsilon))))
    assert arithmetic.exact(Reference(wide))
    assert api.native_error() is None


@pytest.mark.parametrize("wrong", [fused_before, fused_after, reassociated, by_reciprocal, by_inverse_root, wide])
def test_it_notices(wrong: Predict) -> None:
    assert not arithmetic.exact(Native(wrong))


def test_kernels_that_calculate_otherwise_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.importlib, "import_module", lambda name: Native(fused_before))
    monkeypatch.setattr(api, "_backend", None)
    try:
        api.set_backend("auto")
        assert api.backend() == "numpy"
        assert "floating-point" in str(api.native_error()) and api.cpu_features() == []
    finally:
        monkeypatch.undo()
        api.set_backend("auto")
