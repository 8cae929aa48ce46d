#!/usr/bin/env python
"""Evaluate trained runs with several numbers of frames of a tracklet at test.

    python projects/VKD/views.py --frames 1 2 4 8 --rows teacher all --seeds 1 2 3

Takes the options of ablate.py, which has trained the runs, and trains nothing. Each run is
evaluated with every number of frames (REID_DATA.TEST.FRAMES, the first of as many equal chunks of
a tracklet), once: known values are read from frames.json in the folder of the run. Writes
frames_STUDY.md, .json and .png under --output.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from tqdm import tqdm
from vkd_study import REPO, make_study, study_parser

from kd_search.experiments import (
    METRICS,
    Run,
    Study,
    build_run_config,
    evaluate_on,
    finished_study,
    load_trained_run,
    markdown_cell,
    markdown_table,
    spread,
    write_figure,
    write_text,
)
from kd_search.utils.files import write_json

FRAMES_FILE = "frames.json"

#: row to frames to seed to metrics.
Curves = Mapping[str, Mapping[int, Mapping[int, Mapping[str, float]]]]


def parse_args(argv: Optional[list[str]] = None) -> argparse.Namespace:
    parser = study_parser(__doc__)
    parser.add_argument("--frames", nargs="+", type=int, default=[1, 2, 4, 8], metavar="N")
    args = parser.parse_args(argv)
    if min(args.frames) < 1:
        parser.error("--frames must be at least 1")
    args.frames = sorted(set(args.frames))
    return args


def measure(study: Study, frames: list[int]) -> Curves:
    """Metrics of every finished run with every number of frames, see :data:`Curves`.

    Raises:
        ValueError: no run is finished.
    """
    finished = study.finished()
    if not finished:
        raise ValueError(f"{study.output} has no finished run: start ablate.py first")
    curves: dict[str, dict[int, dict[int, dict[str, float]]]] = {}
    todo = [(row, seed, n) for row, seed in finished for n in frames]
    for row, seed, n in tqdm(todo, desc="evaluations", disable=None):
        metrics = evaluate_run(study.runs[row, seed], n)
        curves.setdefault(row, {}).setdefault(n, {})[seed] = metrics
    return curves


def evaluate_run(run: Run, frames: int) -> dict[str, float]:
    """Metrics of a finished run with a number of frames; kept in its folder."""
    path = run.folder / FRAMES_FILE
    known = json.loads(path.read_text()) if path.is_file() else {}
    trained = run.weights.stat().st_mtime_ns
    if known.get("weights_modified") != trained:
        known = {"weights_modified": trained, "metrics": {}}
    if str(frames) not in known["metrics"]:
        opts = list(map(str, [*run.opts, "REID_DATA.TEST.FRAMES", frames]))
        model, _ = load_trained_run(run.config_file, opts, run.folder)
        # Beside the files of the run's own evaluation.
        folder = run.folder / f"frames_{frames}"
        cfg = build_run_config(run.config_file, opts, folder, eval_only=True)
        known["metrics"][str(frames)] = evaluate_on(cfg, model, cfg.DATASETS.TEST[:1])
        write_json(path, known)
    return known["metrics"][str(frames)]


def markdown(curves: Curves, frames: list[int]) -> str:
    """A table for each metric: rows down, frames across; mean and standard deviation."""
    return "\n".join(
        markdown_table(
            [f"{metric} by frames", *map(str, frames)],
            [
                [row, *(markdown_cell(value) for value in _spreads(by_frames, frames, metric))]
                for row, by_frames in curves.items()
            ],
        )
        for metric in _metrics(curves)
    )


def _metrics(curves: Curves) -> list[str]:
    found = next(iter(next(iter(next(iter(curves.values())).values())).values()))
    return [name for name in METRICS if name in found]


def _spreads(
    by_frames: Mapping[int, Mapping[int, Mapping[str, float]]], frames: list[int], metric: str
) -> list[dict[str, Any]]:
    return [spread([metrics[metric] for metrics in by_frames[n].values()]) for n in frames]


def draw(curves: Curves, frames: list[int], path: Path) -> None:
    """A panel for each metric that is a mean average precision, with a curve for each row."""
    metrics = [name for name in _metrics(curves) if name.endswith("mAP")]

    def plot(figure: Any) -> None:
        for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics):
            for row, by_frames in curves.items():
                values = _spreads(by_frames, frames, metric)
                means, stds = [v["mean"] for v in values], [v["std"] or 0.0 for v in values]
                axes.errorbar(frames, means, yerr=stds, marker="o", capsize=3, label=row)
            axes.set_xlabel("frames of a tracklet at test")
            axes.set_ylabel(f"{metric} (%)")
            axes.set_xticks(frames)
            axes.grid(color="#dddddd", linewidth=0.6)
            axes.legend(fontsize=8)

    write_figure(path, (4.5 * len(metrics), 3.6), plot)


def main(argv: Optional[list[str]] = None) -> int:
    args = parse_args(argv)
    os.chdir(REPO)
    try:
        study = finished_study(make_study, args)
        curves = measure(study, args.frames)
    except KeyboardInterrupt:
        print("\ninterrupted: run the same command to go on", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    stem = f"frames_{args.study}"
    dataset = study.cfg.DATASETS.TEST[0]
    write_json(study.output / f"{stem}.json", {"dataset": dataset, "curves": curves})
    text = f"on {dataset}\n\n{markdown(curves, args.frames)}"
    write_text(study.output / f"{stem}.md", text)
    draw(curves, args.frames, study.output / f"{stem}.png")
    print(text)
    print(f"in {study.output}: {stem}.md, {stem}.json, {stem}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
