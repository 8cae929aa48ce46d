"""Test whether the difference between two evaluated runs could be chance.

    kd-search compare output/plain output/distilled
    kd-search compare A.npz B.npz --dataset prw_test

Compares the average precision of every query, run B minus run A: mean difference, its 95 %
bootstrap interval over the queries, and the p value of a paired permutation test. A run is the
output folder of a training, RUN, RUN/inference or RUN/inference/SET, a file
person_search_results.json, or a file of detections (.npz), which is evaluated. Runs of different
test sets, protocols or queries are refused.

Exit status: 0 compared, 2 the runs cannot be compared.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Optional

from kd_search.cli._arguments import command_parser
from kd_search.utils.arguments import add_import_argument


def get_parser() -> argparse.ArgumentParser:
    parser = command_parser("compare", __doc__)
    parser.add_argument("a", metavar="A", help="the baseline")
    parser.add_argument("b", metavar="B", help="the run to compare")
    parser.add_argument("--names", nargs=2, metavar="NAME", default=("A", "B"), help="of the runs")
    parser.add_argument("--resamples", type=int, default=10000, help="default: 10000")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples (default: 0)")
    add_import_argument(parser)
    parser.add_argument("--dataset", metavar="NAME", help="test set; default: that of the runs")
    parser.add_argument("--output", metavar="FILE", help="write the numbers there as JSON")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = get_parser().parse_args(argv)
    from kd_search.evaluation.search.compare_runs import compare_runs, verdict
    from kd_search.utils.files import write_json

    names = tuple(args.names)
    try:
        if args.resamples < 1:
            raise ValueError("--resamples must be 1 or more")
        runs = [_load(path, args) for path in (args.a, args.b)]
        result = compare_runs(
            *runs, resamples=args.resamples, seed=args.seed, names=(args.a, args.b)
        )
        if args.output:
            write_json(
                args.output, {"a": args.a, "b": args.b, "unit": "percent AP", **asdict(result)}
            )
    except (OSError, ValueError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    protocol = runs[0].get("protocol") or {}
    settings = ", ".join(f"{key} {value}" for key, value in protocol.items())
    print(f"{runs[0].get('dataset')}: {settings}")
    for name, path, mean in zip(names, (args.a, args.b), (result.mean_a, result.mean_b)):
        print(f"  {name}: mAP {mean:.2f}  ({path})")
    print(verdict(result, names))
    return 0


def _load(path: str, args: argparse.Namespace) -> dict[str, Any]:
    from kd_search.evaluation.search.compare_runs import load_results

    if not path.endswith(".npz"):
        return load_results(path, args.dataset)
    from kd_search.cli._runs import register_data_of
    from kd_search.cli.evaluate import evaluate_file

    register_data_of(path, args.imports)
    return evaluate_file(path, args.dataset)
