"""Bars of means with the values that they are of."""

from collections.abc import Mapping, Sequence
from typing import Optional

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_BAR, _DOT, _REFERENCE = "#56B4E9", "#1f2937", "#D55E00"
_INK, _GRID = "#1f2937", "#d9dde5"


def draw_bars(
    values: Mapping[str, Sequence[float]],
    label: str,
    title: str,
    *,
    reference: Optional[tuple[str, float]] = None,
) -> np.ndarray:
    """A bar from 0 to the mean of each row, its sample standard deviation as a whisker, and a dot
    for each value.

    Args:
        values: by row, from top to bottom; at least one value each.
        label: of the axis.
        title: above.
        reference: name and value of a dashed line to compare with.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: there is no row, or one without values.
    """
    if not values or not all(len(row) for row in values.values()):
        raise ValueError("there is nothing to draw: no rows, or one without values")
    height = 1.5 + 0.4 * len(values)
    figure = Figure(figsize=(7.0, height), dpi=150, facecolor="white", layout="constrained")
    axes = figure.subplots()
    for y, row in enumerate(values.values()):
        mean = float(np.mean(row))
        std = float(np.std(row, ddof=1)) if len(row) > 1 else None
        axes.barh(y, mean, height=0.62, color=_BAR, edgecolor="none")
        axes.errorbar(mean, y, xerr=std, color=_INK, capsize=4, linewidth=1.2)
        axes.plot(row, [y] * len(row), "o", color=_DOT, markersize=3.5, linestyle="none")
        edge = max([mean + (std or 0.0), *row])
        axes.annotate(
            f"{mean:.1f}",
            (edge, y),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=_INK,
        )
    if reference is not None:
        name, value = reference
        axes.axvline(value, color=_REFERENCE, linestyle="--", label=f"{name}: {value:.1f}")
        axes.legend(
            fontsize=9, labelcolor=_INK, frameon=False, loc="lower right", bbox_to_anchor=(1, 1)
        )
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.margins(x=0.1)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{label}; dot: one seed, whisker: standard deviation", color=_INK, fontsize=9)
    axes.set_title(title, color=_INK, fontsize=11, fontweight="bold", loc="left", pad=22)
    axes.tick_params(colors=_INK, labelsize=9)
    axes.grid(axis="x", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#8b93a3")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
