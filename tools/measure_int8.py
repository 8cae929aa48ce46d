#!/usr/bin/env python3
"""Measure what 8-bit integers cost trained networks: accuracy of the exported files, as a table.

    python tools/measure_int8.py output/student_seed1 output/student_seed2 --results int8.json

Exports each training's network as kd-search export --int8 does, which evaluates both files on the
test set; scales are set by pictures of its training set. --results is a file for the tables of
kd-search results; its note has the reason of each network that is refused.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Optional

from detectron2.data import DatasetCatalog

from kd_search.config import import_modules
from kd_search.engine.finished_run import require_run
from kd_search.experiments import TableLayout
from kd_search.experiments.results_file import read_study, write_measured
from kd_search.experiments.run_facts import environment_of
from kd_search.experiments.run_folder import RESULT_FILE, load_trained_run, now
from kd_search.experiments.study_options import recorded_command
from kd_search.experiments.table import markdown
from kd_search.export import ExportParityError, export_model
from kd_search.utils.arguments import add_import_argument
from kd_search.utils.files import read_json

KINDS = ("float32", "int8")
#: In percent: people of either network that the other one finds, too; of given boxes' embeddings.
FOUND, COSINE = "found by both", "mean cosine"
LAYOUT = TableLayout(("mAP", "top1", FOUND, COSINE), base=KINDS[0], stem="int8")


def parse_args(argv: Optional[list[str]] = None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="finished trainings, one for each seed")
    add("--pictures", type=int, default=30, metavar="N", help="of the training set")
    add("--results", type=Path, required=True, metavar="FILE", help="to write (JSON)")
    add_import_argument(parser)
    args = parser.parse_args(argv)
    args.script = os.path.abspath(sys.argv[0])
    args.given = list(sys.argv[1:] if argv is None else argv)
    if args.pictures < 1:
        parser.error("--pictures must be at least 1")
    return args


def measure(run: str, count: int) -> tuple[str, list[dict[str, Any]]]:
    """Test set, and a record of each kind of file, of a training.

    Raises:
        FileNotFoundError, ValueError: it is not finished, or cannot be exported.
    """
    started = now()
    network, cfg = load_trained_run(require_run(run).config_file, [], Path(run))
    facts = read_json(os.path.join(run, RESULT_FILE), sealed=True)
    environment = environment_of(cfg)
    files = [record["file_name"] for record in DatasetCatalog.get(cfg.DATASETS.TRAIN[0])]
    pictures = files[:: max(len(files) // count, 1)][:count]
    with tempfile.TemporaryDirectory() as folder:
        found = export_model(network, Path(folder, "int8.onnx"), cfg=cfg, int8=pictures)["int8"]
    agreement = found["agreement"]
    records = [
        {
            "row": kind,
            "metrics": dict(found[kind]),
            **{key: facts[key] for key in ("seed", "params", "iterations", "config_sha256")},
            "started": started,
            **environment,
        }
        for kind in KINDS
    ]
    records[1]["metrics"] |= {
        FOUND: 100 * agreement["people_of_both"],
        COSINE: 100 * agreement["mean_cosine"],
    }
    return found["dataset"], records


def main(argv: Optional[list[str]] = None) -> int:
    args = parse_args(argv)
    try:
        import_modules(args.imports)
        measured, refused = [], []
        for number, run in enumerate(args.runs, 1):
            try:
                measured.append(measure(run, args.pictures))
                print(f"[{number}/{len(args.runs)}] {run}", flush=True)
            except ExportParityError as error:
                refused.append(str(error))
                print(f"[{number}/{len(args.runs)}] {run} is refused: {error}", flush=True)
        if not measured:
            raise ValueError("all of them are refused")
        names = {name for name, _ in measured}
        if len(names) > 1:
            raise ValueError(f"the trainings are of several test sets: {', '.join(sorted(names))}")
        records = [record for _, both in measured for record in both]
        note = f"Refused: {len(refused)} of {len(args.runs)} ({'; '.join(refused)})"
        command = recorded_command(args)
        known = (LAYOUT, KINDS, records, note if refused else "")
        write_measured(args.results, command, names.pop(), *known)
    except (OSError, ValueError) as error:
        print(f"measure_int8: {error}", file=sys.stderr)
        return 2
    print(markdown(read_study(args.results).table(), LAYOUT))
    print(f"wrote {args.results}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
