"""Loss curves from the ``metrics.json`` files of Detectron2's JSONWriter."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Optional, Union

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

#: Iteration to its scalars, in order.
Metrics = dict[int, dict[str, float]]
Run = Union[str, "os.PathLike[str]", Mapping[int, Mapping[str, float]]]

#: Lines differ in colour (Okabe and Ito's, safe for colour-blind readers) and dashes.
_LIGHT = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#7A6A00", "#555555")
_DARK = ("#56B4E9", "#E69F00", "#2CC295", "#E58FC4", "#F0E442", "#BBBBBB")
_DASHES = ("-", "--", "-.", ":")


def read_metrics(path: Union[str, "os.PathLike[str]"]) -> Metrics:
    """Read a file with one JSON object per line, also after kills and resumes.

    A truncated line is left out, also where the next run continued in the middle of it. Within a
    run a scalar is logged at increasing iterations; where an iteration comes again, the run was
    resumed from a checkpoint, and the scalars from that iteration on are replaced.

    Returns:
        the scalars of each logged iteration, ascending; other values than numbers are left out.

    Raises:
        FileNotFoundError: there is no such file.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            lines = stream.read().splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such training log (metrics.json)") from None
    metrics: Metrics = {}
    last: dict[str, int] = {}
    for line in lines:
        row = _parse_line(line)
        if row is None:
            continue
        iteration = int(row.pop("iteration"))
        scalars = {name: float(value) for name, value in row.items() if _is_number(value)}
        # Per scalar: one write may hold rows in any order.
        if any(iteration <= last.get(name, -1) for name in scalars):
            metrics = {i: kept for i, kept in metrics.items() if i < iteration}
            last = {name: min(i, iteration - 1) for name, i in last.items()}
        last.update(dict.fromkeys(scalars, iteration))
        metrics.setdefault(iteration, {}).update(scalars)
    return dict(sorted(metrics.items()))


def loss_terms(runs: Mapping[str, Run]) -> list[str]:
    """Names of the losses that any of the runs logged: the total first, then by name."""
    names = {
        name
        for run in runs.values()
        for scalars in _metrics_of(run).values()
        for name in scalars
        if "loss" in name
    }
    return sorted(names, key=lambda name: (name != "total_loss", name))


def smooth(values: Sequence[float], window: int) -> np.ndarray:
    """Centred running mean over ``window`` points, over fewer at the ends; non-finite points do
    not count, and stay NaN where the window holds nothing else."""
    points = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(points)
    half = max(0, window // 2)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, points, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    low = np.maximum(np.arange(len(points)) - half, 0)
    high = np.minimum(np.arange(len(points)) + half + 1, len(points))
    number = counts[high] - counts[low]
    mean = (sums[high] - sums[low]) / np.maximum(number, 1)
    return np.where(number > 0, mean, np.nan)


def draw_loss_curves(
    runs: Mapping[str, Run],
    terms: Optional[Sequence[str]] = None,
    *,
    columns: int = 3,
    smoothing: float = 0.1,
    dark: bool = False,
    dpi: int = 150,
) -> np.ndarray:
    """Draw one panel per loss term with a line per run: faint as logged, strong smoothed.

    Args:
        runs: label to the path of its ``metrics.json``, or to what :func:`read_metrics` returns.
        terms: losses to draw; ``None`` draws all that :func:`loss_terms` finds.
        columns: panels beside each other.
        smoothing: window of the running mean, as a share of the points of a run.
        dark: light lines on a dark ground.
        dpi: pixels per inch; a panel is 4.4 x 2.9 inches.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        FileNotFoundError: a log does not exist.
        ValueError: there is nothing to draw.
    """
    logs = {label: _metrics_of(run) for label, run in runs.items()}
    terms = loss_terms(logs) if terms is None else list(terms)
    if not terms:
        raise ValueError(f"no losses in the training logs of {', '.join(runs) or 'no run'}")
    columns = min(columns, len(terms))
    rows = math.ceil(len(terms) / columns)
    paper, ink, grid = (
        ("#1b2130", "#d5dae3", "#39415a") if dark else ("white", "#1f2937", "#d9dde5")
    )
    figure = Figure(figsize=(4.4 * columns, 2.9 * rows), dpi=dpi, facecolor=paper)
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel, term in zip(panels.flat, terms):
        _draw_panel(panel, term, logs, smoothing, _DARK if dark else _LIGHT)
        panel.set_facecolor(paper)
        panel.tick_params(colors=ink, labelsize=9)
        panel.set_title(term, color=ink, fontsize=11, fontweight="bold", loc="left")
        panel.set_xlabel("iteration", color=ink, fontsize=9)
        panel.grid(color=grid, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(grid)
        if panel.get_lines():
            panel.legend(fontsize=9, frameon=False, labelcolor=ink)
    for panel in panels.flat[len(terms) :]:
        panel.set_visible(False)
    figure.tight_layout()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def _draw_panel(
    panel,
    term: str,
    logs: Mapping[str, Mapping[int, Mapping[str, float]]],
    smoothing: float,
    colours,
) -> None:
    top = 0.0
    for index, (label, log) in enumerate(logs.items()):
        points = [(i, s[term]) for i, s in log.items() if math.isfinite(s.get(term, math.nan))]
        if not points:
            continue
        iterations, values = zip(*points)
        style = {"color": colours[index % len(colours)], "label": label}
        dash = _DASHES[index % len(_DASHES)]
        mean = smooth(values, round(smoothing * len(values)))
        panel.plot(iterations, values, color=style["color"], alpha=0.25, linewidth=0.8)
        # A single point has no line.
        panel.plot(iterations, mean, dash, marker="o" if len(points) == 1 else "", **style)
        # The first steps of a fresh network would flatten the rest of the curve.
        top = max(top, float(np.quantile(values, 0.98)), float(np.nanmax(mean[len(mean) // 20 :])))
    if top > 0:
        panel.set_ylim(0, 1.08 * top)


def _metrics_of(run: Run) -> Mapping[int, Mapping[str, float]]:
    return run if isinstance(run, Mapping) else read_metrics(run)


def _parse_line(line: str) -> Optional[dict]:
    # A resumed run writes its first object behind the truncated one.
    for text in (line, line[max(line.rfind("{"), 0) :]):
        try:
            row = json.loads(text)
        except ValueError:
            continue
        if isinstance(row, dict) and _is_number(row.get("iteration")):
            return row
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
