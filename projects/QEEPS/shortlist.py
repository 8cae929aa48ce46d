#!/usr/bin/env python
"""Measure a plain search with a query-guided network on a shortlist, over the shortlist's size.

    python projects/QEEPS/shortlist.py --plain output/qeeps/ablation_generated/OIM/seed1 \\
        --query-guided output/qeeps/ablation_generated/QEEPS/seed1 --sizes 0 5 10 20 \\
        --results projects/QEEPS/results/shortlist_generated.json

Both are trainings of ablate.py that were evaluated on the same test set; several are pairs, in
their order. The plain network finds the pictures, and the query-guided one searches the best K of
them again. What it found when it was evaluated is used again. With other settings, such as
TEST.PERSON_SEARCH.SAMPLE_PICTURES 100, it searches those of the sample, and the plain network's
detections stay. The file has a row for each K, for the tables and figures of kd-search results.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any, Optional

import qeeps  # noqa: F401  registers keys and networks
from detectron2.utils.logger import setup_logger
from qeeps.shortlist import evaluate_shortlists

from kd_search.engine.finished_run import require_run
from kd_search.evaluation.search.compare_runs import INFERENCE_FOLDER
from kd_search.experiments import TableLayout, pack_queries
from kd_search.experiments.results_file import write_measured
from kd_search.experiments.run_facts import environment_of
from kd_search.experiments.run_folder import RESULT_FILE, load_trained_run, now, pick_metrics
from kd_search.experiments.study_options import recorded_command
from kd_search.experiments.table import markdown, summarise
from kd_search.utils.files import read_json

METRICS = ("mAP", "top1")


def parse_args(argv: Optional[list[str]] = None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--plain", nargs="+", required=True, metavar="RUN", help="trainings of the plain network")
    add("--query-guided", nargs="+", required=True, metavar="RUN", help="as many, query-guided")
    add("--sizes", nargs="+", type=int, default=[0, 5, 10, 20, 50], metavar="K")
    add("--results", type=Path, required=True, metavar="FILE", help="to write (JSON)")
    add("--opts", nargs="+", default=[], metavar="X", help="KEY VALUE ... of the evaluation")
    args = parser.parse_args(argv)
    args.script = os.path.abspath(sys.argv[0])
    args.given = list(sys.argv[1:] if argv is None else argv)
    if len(args.plain) != len(args.query_guided):
        parser.error("--plain and --query-guided must name as many trainings")
    if min(args.sizes) < 0:
        parser.error("--sizes must be 0 or more")
    if len(args.opts) % 2:
        parser.error("--opts must be pairs KEY VALUE")
    return args


def measure(args: argparse.Namespace, plain: str, guided: str) -> tuple[str, list[dict[str, Any]]]:
    """Test set, and records of one pair of trainings, one for each size.

    Raises:
        FileNotFoundError, ValueError: a training is not finished or was not evaluated.
    """
    started = now()
    # As the training evaluated it: a search with another config is another search.
    network, cfg = load_trained_run(require_run(guided).config_file, args.opts, Path(guided))
    name = cfg.DATASETS.TEST[0]
    by_plain, by_guided = (os.path.join(run, INFERENCE_FOLDER, name) for run in (plain, guided))
    found = evaluate_shortlists(cfg, network, by_plain, by_guided, args.sizes)
    facts = read_json(os.path.join(guided, RESULT_FILE), sealed=True)
    kept = ("params", "iterations", "config_sha256")
    environment = environment_of(cfg)
    return name, [
        {
            "row": str(size),
            "seed": facts["seed"],
            "metrics": pick_metrics(evaluation.results),
            "per_query": {"mAP": pack_queries(evaluation.rankings)},
            **{key: facts[key] for key in kept},
            "started": started,
            "opts": [str(x) for x in args.opts],
            **environment,
        }
        for size, evaluation in found.items()
    ]


def main(argv: Optional[list[str]] = None) -> int:
    args = parse_args(argv)
    # A search of hours tells how far it is.
    setup_logger(name="qeeps")
    try:
        pairs = [measure(args, *pair) for pair in zip(args.plain, args.query_guided)]
        names = {name for name, _ in pairs}
        if len(names) > 1:
            raise ValueError(f"the trainings are of several test sets: {', '.join(sorted(names))}")
    except (OSError, ValueError) as error:
        print(f"shortlist: {error}", file=sys.stderr)
        return 2
    runs = [record for _, records in pairs for record in records]
    rows = [str(size) for size in args.sizes]
    layout = TableLayout(METRICS, base=rows[0], stem="shortlist")
    results = {(run["row"], run["seed"]): run["metrics"] for run in runs}
    queries = {(run["row"], run["seed"]): run["per_query"] for run in runs}
    print(markdown(summarise(rows, results, {}, layout, {}, queries), layout))
    write_measured(args.results, recorded_command(args), names.pop(), layout, rows, runs)
    print(f"wrote {args.results}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
