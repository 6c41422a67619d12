"""A picture of ratio against speed."""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Sequence
from typing import Any

from arzstream.bench.entropy import Bounds
from arzstream.bench.rounds import Result
from arzstream.errors import StorageError, UnsupportedError

__all__ = ["Panel", "need_matplotlib", "plot"]

OURS, THEIRS, LINE = "#c2410c", "#475569", "#94a3b8"
LABEL_POINTS = 8.5


def need_matplotlib() -> Any:
    """``matplotlib.figure``. Raises UnsupportedError if it is not there."""
    try:
        return importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise UnsupportedError(f"--plot needs matplotlib ({error}); pip install matplotlib") from None


@dataclasses.dataclass(frozen=True)
class Panel:
    """One file's results, memcpy's first."""

    title: str
    results: Sequence[Result]
    bounds: Bounds


def plot(path: str, panels: Sequence[Panel], title: str) -> None:
    """Write a PNG with a panel for each file: decoding speed of one core (logarithmic) against ratio.

    Raises UnsupportedError without matplotlib, StorageError if the file cannot be written.
    """
    across = 1 if len(panels) == 1 else 2
    down = -(-len(panels) // across)
    figure = need_matplotlib().Figure(figsize=(10 * across, 6 * down + 0.3), dpi=130 if across == 1 else 90)
    figure.set_layout_engine("constrained")
    figure.suptitle(title, fontsize=11)
    drawn = []
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(down, across, number + 1)
        drawn.append((axes, _draw(axes, panel)))
    figure.draw_without_rendering()  # settles where everything is
    figure.set_layout_engine("none")
    for axes, shown in drawn:
        _label(figure, axes, shown)
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise StorageError.from_os_error(error, "write the plot", os.fspath(path)) from error


def _draw(axes: Any, panel: Panel) -> list[tuple[Result, float, float]]:
    """Everything but the names; returns (result, GB/s, percent) of the points."""
    points = [(r, r.speed("decode_one"), r.ratio) for r in panel.results[1:]]
    shown = [(r, speed, 100 * ratio) for r, speed, ratio in points if speed and ratio]
    for result, speed, ratio in shown:
        ours = result.package == "arzstream"
        axes.plot(speed, ratio, "D" if ours else "o", color=OURS if ours else THEIRS, markersize=7, zorder=3)
    axes.set_xscale("log")
    copy = panel.results[0].speed("decode_one")
    if copy:
        axes.axvline(copy, color=LINE, linestyle="--", linewidth=1)
        axes.annotate(f"memcpy {copy:.1f}", (copy, 0.99), xycoords=("data", "axes fraction"), rotation=90, va="top",
                      ha="right", fontsize=7.5, color=THEIRS)  # fmt: skip
    bounds = panel.bounds
    for value, text in ((bounds.order0, "exponent entropy + raw bits"), (bounds.gaussian, "Gaussian limit")):
        if bounds.floats:
            axes.axhline(100 * value, color=LINE, linestyle=":", linewidth=1)
            axes.annotate(f"{text} {100 * value:.2f} %", (0.005, 100 * value), xycoords=("axes fraction", "data"),
                          va="bottom", fontsize=7.5, color=THEIRS)  # fmt: skip
    axes.margins(x=0.2, y=0.12)
    axes.set_xlabel("decoding, GB/s, one core (logarithmic)")
    axes.set_ylabel("compressed, % of the original (smaller is better)")
    axes.set_title(panel.title, fontsize=10.5)
    axes.grid(True, which="both", color="#e2e8f0", linewidth=0.6, zorder=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return shown


def _label(figure: Any, axes: Any, shown: Sequence[tuple[Result, float, float]]) -> None:
    """Names beside the points, moved up or down until none covers another, with a line to a point that is far."""
    scale = figure.dpi / 72
    height = LABEL_POINTS * 1.35 * scale
    taken: list[tuple[float, float, float, float]] = []
    spots = [(*axes.transData.transform((speed, ratio)), result) for result, speed, ratio in shown]
    for x, y, _ in spots:
        taken.append((x - 5 * scale, y - 4 * scale, x + 5 * scale, y + 4 * scale))
    for x, y, result in sorted(spots, key=lambda spot: -spot[1]):
        width = 0.58 * LABEL_POINTS * scale * len(result.name)
        for dx, dy in _offsets(height):
            left = x + 8 * scale if dx > 0 else x - 8 * scale - width
            box = (left, y + dy - height / 2, left + width, y + dy + height / 2)
            inside = axes.bbox.y0 < box[1] and box[3] < axes.bbox.y1 and axes.bbox.x0 < box[0] and box[2] < axes.bbox.x1
            if inside and not any(_overlap(box, other) for other in taken):
                break
        taken.append(box)
        offset = ((box[0] - x) / scale, (box[1] + height / 2 - y) / scale)
        far = abs(dy) > height
        axes.annotate(
            result.name, axes.transData.inverted().transform((x, y)), xytext=offset, textcoords="offset points",
            va="center", fontsize=LABEL_POINTS, color=OURS if result.package == "arzstream" else "#1e293b",
            arrowprops={"arrowstyle": "-", "color": LINE, "linewidth": 0.7} if far else None, zorder=4,
        )  # fmt: skip


def _offsets(height: float) -> list[tuple[int, float]]:
    """Where a label may go, the nearest first."""
    steps = [(side, sign * step * height / 2) for step in range(40) for sign in (1, -1) for side in (1, -1)]
    return sorted(steps, key=lambda place: abs(place[1]) + (0 if place[0] > 0 else height / 3))


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
