"""Draw the ranked results of a finished evaluation, for one model or several side by side.

    kd-search show output/student --output results.png
    kd-search show Teacher=output/teacher Student=output/student --output results.html --queries 8

The queries are chosen by a rule, from the worst to the best average precision of the last model
named; with --good from those whose searches work; or given by --query-ids.

Exit status: 0 drawn, 2 the input cannot be used.
"""

import argparse
import os
from collections.abc import Sequence
from functools import partial
from typing import Optional

from kd_search.cli._arguments import RUN_HELP, command_parser, exit_status, split_labels
from kd_search.utils.arguments import add_import_argument

_PICTURES = (".png", ".jpg", ".jpeg")
_PAGES = (".html", ".htm")


def get_parser() -> argparse.ArgumentParser:
    parser = command_parser("show", __doc__)
    parser.add_argument(
        "results",
        nargs="+",
        metavar="[LABEL=]RUN",
        help=f"{RUN_HELP}; or another folder with person_search_results.json",
    )
    parser.add_argument("--output", metavar="FILE", required=True, help=".html, .png or .jpg")
    parser.add_argument("--dataset", metavar="NAME", help="test set (default: as the results say)")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--queries", type=int, default=6, metavar="N", help="rows (default: 6)")
    chosen.add_argument("--query-ids", type=int, nargs="+", metavar="ID", help="these queries")
    parser.add_argument(
        "--good", action="store_true", help="queries of the best quarter with two right matches"
    )
    parser.add_argument(
        "--top-k", type=int, default=5, metavar="K", help="results per row, at most 10 (default: 5)"
    )
    add_import_argument(parser)
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = get_parser().parse_args(argv)
    return exit_status("show", partial(_draw, args))


def _draw(args: argparse.Namespace) -> None:
    suffix = os.path.splitext(args.output)[1].lower()
    if suffix not in _PICTURES + _PAGES:
        raise ValueError(f"{args.output}: the name must end in {', '.join(_PAGES + _PICTURES)}")
    if args.good and args.query_ids:
        raise ValueError("--good chooses queries: leave --query-ids out")
    if args.queries < 1 or args.top_k < 1:
        raise ValueError("--queries and --top-k must be 1 or more")
    from kd_search.cli._runs import evaluations
    from kd_search.data import get_person_search_dicts
    from kd_search.evaluation.search.compare_runs import load_results
    from kd_search.visualization import (
        CHOICE,
        GOOD_CHOICE,
        choose_good_queries,
        choose_queries,
        draw_search_results,
        write_picture,
        write_results_page,
    )

    files = evaluations(split_labels(args.results), args.dataset, args.imports)
    documents = {label: load_results(file) for label, file in files.items()}
    if suffix in _PICTURES and len(documents) > 1:
        raise ValueError(f"{args.output}: several models need an .html file")
    names = {args.dataset} if args.dataset else {d.get("dataset") for d in documents.values()}
    if len(names) > 1:
        raise ValueError(f"the results are of different data sets: {', '.join(map(str, names))}")
    (name,) = names
    if name is None:
        raise ValueError("the results do not name their data set: use --dataset")
    dicts, _ = get_person_search_dicts(name)
    # The last model is the one that the others are compared with.
    chooser = list(documents)[-1]
    query_ids, note = args.query_ids, "These queries were given."
    if args.good:
        found = documents[chooser]["queries"]
        query_ids, note = choose_good_queries(found, args.queries, args.top_k), GOOD_CHOICE
        if not query_ids:
            raise ValueError(f"{chooser}: no query has two right matches among {args.top_k}")
    elif not query_ids:
        query_ids, note = choose_queries(documents[chooser]["queries"], args.queries), CHOICE
    if suffix in _PICTURES:
        (document,) = documents.values()
        write_picture(
            args.output, draw_search_results(document["queries"], dicts, query_ids, args.top_k)
        )
    else:
        if len(documents) > 1 and not args.query_ids:
            note += f" The average precision is that of {chooser!r}."
        title = f"Person search on {name}"
        write_results_page(args.output, title, documents, dicts, query_ids, args.top_k, note=note)
    print(f"wrote {args.output}: {len(query_ids)} queries ({', '.join(map(str, query_ids))})")
