"""Plots of evaluations: gallery sizes, CMC, precision and recall, camera pairs, distances."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from kd_search.evaluation.search.calibration import Calibration
from kd_search.evaluation.search.plot_data import RECALL_LEVELS, CameraPairs, Distances

# Lines differ in colour (Okabe and Ito's, safe for colour-blind readers), dashes, markers.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#7A6A00", "#555555")
_DASHES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_INK, _GRID = "#1f2937", "#d9dde5"
_DPI = 150
# Nearer labels on the axis of gallery sizes would touch.
_LABEL_RATIO = 1.35


def draw_gallery_sizes(curves: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> np.ndarray:
    """mAP over the size of the gallery, a line per run, with 95 % intervals.

    Args:
        curves: label of the run to rows of a table of protocols that differ in the gallery.

    Returns:
        (H, W, 3) uint8 RGB, as all functions here.

    Raises:
        ValueError: no run has rows with numbers.
    """
    figure, axes = _figure(7.2, 4.6)
    sizes = set()
    for index, (label, rows) in enumerate(curves.items()):
        rows = sorted((r for r in rows if r["mAP"] is not None), key=lambda r: r["gallery_images"])
        if not rows:
            continue
        x = [row["gallery_images"] for row in rows]
        sizes.update(x)
        colour, style = _COLOURS[index % len(_COLOURS)], _style(index)
        axes.plot(x, [row["mAP"] for row in rows], color=colour, label=label, **style)
        if all(row["mAP_low"] is not None for row in rows):
            ends = [row["mAP_low"] for row in rows], [row["mAP_high"] for row in rows]
            axes.fill_between(x, *ends, color=colour, alpha=0.15, linewidth=0)
    if not sizes:
        raise ValueError("no gallery has a query with a match: there is nothing to draw")
    axes.set_xscale("log")
    ticks: list[int] = []
    for size in sorted(sizes):
        if not ticks or size >= _LABEL_RATIO * ticks[-1]:
            ticks.append(size)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
    axes.set_xlabel("gallery size (images per query, logarithmic)")
    axes.set_ylabel("mAP (%)")
    _finish(axes, f"{title}: mAP over gallery size", "shaded: 95 % bootstrap interval")
    return _render(figure)


def draw_cmc(curves: Mapping[str, np.ndarray], title: str) -> np.ndarray:
    """Share of the queries with a hit among the first k, a line per run.

    Args:
        curves: label to (K,) percent.
    """
    figure, axes = _figure(6.4, 4.6)
    for index, (label, values) in enumerate(curves.items()):
        ranks = np.arange(1, len(values) + 1)
        style = {
            **_style(index),
            "markevery": [k - 1 for k in (1, 5, 10, 20, 50) if k <= len(values)],
        }
        text = f"{label} (top-1 {values[0]:.1f} %)"
        axes.plot(ranks, values, color=_COLOURS[index % len(_COLOURS)], label=text, **style)
    longest = max(len(values) for values in curves.values())
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([k for k in (1, 2, 5, 10, 20, 50) if k <= longest]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rank, _: f"{rank:.0f}"))
    lowest = min(values.min() for values in curves.values())
    axes.set_ylim(max(0, np.floor((lowest - 3) / 10) * 10), 101)
    axes.set_xlabel("rank k (logarithmic)")
    axes.set_ylabel("queries with a hit among the first k (%)")
    _finish(axes, f"{title}: cumulative matching (CMC)", place="lower right")
    return _render(figure)


def draw_precision_recall(curves: Mapping[str, np.ndarray], title: str) -> np.ndarray:
    """Mean precision over recall, a line per run.

    Args:
        curves: label to (101,) percent at :data:`RECALL_LEVELS`.
    """
    figure, axes = _figure(6.4, 4.6)
    for index, (label, values) in enumerate(curves.items()):
        style = {**_style(index), "markevery": (5 + 3 * index, 25)}
        colour = _COLOURS[index % len(_COLOURS)]
        axes.plot(100 * RECALL_LEVELS, values, color=colour, label=label, **style)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 101)
    axes.set_xlabel("recall (%)")
    axes.set_ylabel("interpolated precision, mean over queries (%)")
    _finish(axes, f"{title}: precision and recall", place="best")
    return _render(figure)


def draw_camera_pairs(pairs: CameraPairs, title: str) -> np.ndarray:
    """Heat map of the mAP of each camera's queries in each camera's images."""
    count = len(pairs.cameras)
    figure, axes = _figure(2.8 + 0.75 * count, 2.2 + 0.68 * count)
    colours = colormaps["viridis"].with_extremes(bad="#eceef2")
    # Whole tens around the numbers: differences of cameras are small beside 0 to 100.
    known = pairs.mean_ap[~np.isnan(pairs.mean_ap)]
    low = 10 * np.floor(known.min(initial=100) / 10)
    high = max(10 * np.ceil(known.max(initial=0) / 10), low + 10)
    masked = np.ma.masked_invalid(pairs.mean_ap)
    picture = axes.imshow(masked, cmap=colours, vmin=low, vmax=high)
    for row in range(count):
        for column in range(count):
            value, number = pairs.mean_ap[row, column], pairs.num_queries[row, column]
            text = "–" if np.isnan(value) else f"{value:.1f}\n"
            # Viridis is dark up to about three fifths of its range.
            ink = "white" if value < low + 0.6 * (high - low) else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=10, color=ink)
            if number:
                axes.text(
                    column,
                    row + 0.22,
                    f"n = {number}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color=ink,
                )
    labels = [str(camera) for camera in pairs.cameras]
    axes.set_xticks(range(count), labels)
    axes.set_yticks(range(count), labels)
    axes.set_xlabel("camera of the gallery images", color=_INK)
    axes.set_ylabel("camera of the query", color=_INK)
    axes.tick_params(colors=_INK, length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"{title}: mAP by camera pair", color=_INK, fontsize=11, fontweight="bold")
    bar = figure.colorbar(picture, ax=axes, fraction=0.046, pad=0.04)
    bar.set_label("mAP (%)", color=_INK)
    bar.ax.tick_params(colors=_INK)
    return _render(figure)


def draw_distances(counts: Distances, title: str) -> np.ndarray:
    """Histograms of the cosine distances of same and of different people, each of area 1.

    Raises:
        ValueError: there is no pair of one of the two kinds.
    """
    if not counts.same.sum() or not counts.different.sum():
        raise ValueError("there are no pairs of the same, or of different, people to draw")
    figure, axes = _figure(6.8, 4.4)
    centres, width = (counts.edges[1:] + counts.edges[:-1]) / 2, np.diff(counts.edges)
    kinds = (
        ("same person", counts.same, _COLOURS[0], "-"),
        ("different people", counts.different, _COLOURS[1], "--"),
    )
    for label, number, colour, dash in kinds:
        density = number / number.sum() / width
        mean = (number * centres).sum() / number.sum()
        text = f"{label}: {number.sum():,} pairs, mean {mean:.2f}"
        axes.stairs(density, counts.edges, color=colour, linestyle=dash, linewidth=1.8, label=text)
        axes.stairs(density, counts.edges, fill=True, color=colour, alpha=0.2, linewidth=0)
    used = np.flatnonzero(counts.same + counts.different)
    axes.set_xlim(counts.edges[max(used[0] - 1, 0)], counts.edges[min(used[-1] + 2, len(width))])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("cosine distance of query and detection (1 − cos)")
    axes.set_ylabel("density")
    _finish(axes, f"{title}: distances, {counts.num_queries} queries", place="best")
    return _render(figure)


def draw_roc(curves: Mapping[str, Calibration], title: str) -> np.ndarray:
    """Share of true matches over the rate of false matches, a line per run.

    The points of the first calibration's thresholds are marked, with their intervals.
    """
    figure, axes = _figure(6.8, 4.6)
    for index, (label, run) in enumerate(curves.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        false, true = (np.array(run.roc[f"{kind}_match_rate"]) for kind in ("false", "true"))
        axes.plot(
            false, 100 * true, color=colour, label=label, linestyle=_style(index)["linestyle"]
        )
        for point in run.points:
            if point.true_match_rate is None:
                continue
            ends = point.true_match_interval or (point.true_match_rate,) * 2
            errors = [[point.true_match_rate - ends[0]], [ends[1] - point.true_match_rate]]
            errors = np.maximum(100 * np.array(errors), 0)
            where = point.false_match_rate, 100 * point.true_match_rate
            axes.errorbar(*where, errors, color=colour, marker="o", markersize=5, capsize=3)
            axes.annotate(
                f"{point.threshold:.2f}", where, (6, -10), textcoords="offset points", fontsize=8
            )
    axes.set_xscale("log")
    axes.set_ylim(0, 101)
    axes.set_xlabel("false matches: share of comparisons of different people (logarithmic)")
    axes.set_ylabel("true matches: share of comparisons\nof the same person (%)")
    note = "points: thresholds of similarity, 95 % intervals over people"
    _finish(axes, f"{title}: same or different people", note, place="upper left")
    return _render(figure)


def draw_open_set(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str) -> np.ndarray:
    """Share of missed people over the share of false alarms, a line per run.

    Args:
        curves: label to FPIR and FNIR, fractions, see ``RankingResult.open_set_curve``.
    """
    figure, axes = _figure(6.4, 4.6)
    for index, (label, (alarms, missed)) in enumerate(curves.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        style = {**_style(index), "marker": ""}
        axes.step(100 * alarms, 100 * missed, where="post", color=colour, label=label, **style)
    axes.set_xscale("log")
    axes.set_ylim(0, 101)
    axes.set_xlabel("FPIR: searches for absent people with a false alarm (%, logarithmic)")
    axes.set_ylabel("FNIR: people missed (%)")
    _finish(axes, f"{title}: open-set search", place="best")
    return _render(figure)


def _style(index: int) -> dict[str, Any]:
    return {
        "linestyle": _DASHES[index % len(_DASHES)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "markersize": 5,
        "linewidth": 1.8,
    }


def _figure(width: float, height: float):
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white", layout="constrained")
    return figure, figure.subplots()


def _finish(axes, title: str, note: str = "", place: str = "best") -> None:
    axes.set_title(title, color=_INK, fontsize=11, fontweight="bold", loc="left")
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#8b93a3")
    axes.tick_params(colors=_INK, labelsize=9)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    if axes.get_legend_handles_labels()[0]:
        legend = axes.legend(
            fontsize=9,
            labelcolor=_INK,
            loc=place,
            framealpha=0.9,
            edgecolor=_GRID,
            title=note or None,
        )
        legend.get_title().set_fontsize(8)
        legend.get_title().set_color(_INK)


def _render(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
