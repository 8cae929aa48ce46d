#!/usr/bin/env python3
"""Score detections and embeddings from files, without a model.

    python tools/evaluate.py output/run/inference/prw_test/person_search_detections.npz
    python tools/evaluate.py theirs/ --dataset cuhk_sysu_test --output scored/
    python tools/evaluate.py theirs/ --json test.json --images photos/ --query-info query_info.txt

The input is the file of detections that an evaluation leaves (.npz), or a folder of plain arrays
(docs/evaluation.md): images.txt, image_index.npy, boxes.npy, scores.npy, embeddings.npy,
query_embeddings.npy. Nothing in the files is executed. All protocols of the set are rated in one
pass and printed as one table.

Exit status: 0 evaluated, 2 the input cannot be used.
"""

import argparse
import os
import sys
from typing import Any, Optional

from detectron2.data import DatasetCatalog, MetadataCatalog

import kd_search.data  # noqa: F401  registers the data sets
from kd_search.data.person_search.register import SplitFiles
from kd_search.evaluation import (
    CAMERAS,
    MODES,
    DetectionSet,
    Evaluation,
    Protocol,
    TableOptions,
    evaluate_detection_set,
    load_detections,
)
from kd_search.evaluation.search.evaluate import results_document, write_evaluation
from kd_search.evaluation.search.import_arrays import BOX_FORMATS, load_plain_arrays
from kd_search.evaluation.search.protocol import SIMILARITIES


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", metavar="INPUT", help="file of detections, or folder of arrays")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--dataset", metavar="NAME", help="registered test set; default: that of the .npz file"
    )
    source.add_argument("--json", metavar="FILE", help="COCO-JSON with person_id")
    parser.add_argument("--images", metavar="DIR", help="image folder of --json")
    parser.add_argument("--query-info", metavar="FILE", help="queries of --json, as PRW has them")
    parser.add_argument("--output", metavar="DIR", help="write results and tables there")
    arrays = parser.add_argument_group("folders of arrays")
    arrays.add_argument("--box-format", choices=BOX_FORMATS, default="xyxy")
    arrays.add_argument("--normalise", action="store_true", help="L2-normalise the embeddings")
    arrays.add_argument(
        "--gt-boxes", action="store_true", help="the boxes are the annotated ones: re-ID alone"
    )
    protocol = parser.add_argument_group("protocol")
    protocol.add_argument("--score-thresh", type=float, default=0.5, help="default: 0.5")
    protocol.add_argument("--det-score-thresh", type=float, default=0.5, help="default: 0.5")
    protocol.add_argument("--iou-thresh", type=float, default=0.5, help="default: 0.5")
    protocol.add_argument("--top-k", type=int, nargs="+", default=[1, 5, 10], metavar="K")
    protocol.add_argument("--gallery", default="auto", help="headline gallery (default: auto)")
    protocol.add_argument("--mode", choices=MODES, default="corrected", help="of the headline")
    protocol.add_argument(
        "--similarity", choices=SIMILARITIES, default="cosine", help="NAE, SeqNet: score_weighted"
    )
    table = parser.add_argument_group("table")
    table.add_argument("--no-table", action="store_true", help="the headline numbers alone")
    table.add_argument(
        "--gallery-sizes", type=int, nargs="+", default=[], metavar="N", help="-1: whole pool"
    )
    table.add_argument("--cameras", nargs="+", choices=CAMERAS, default=list(CAMERAS))
    table.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    table.add_argument("--no-cbgm", action="store_true", help="do not re-rank by context")
    table.add_argument("--cbgm-k1", type=int, default=10, help="CUHK-SYSU 10 (default), PRW 30")
    table.add_argument("--cbgm-k2", type=int, default=3, help="CUHK-SYSU 3 (default), PRW 4")
    table.add_argument("--bootstrap", type=int, default=1000, help="resamples (default: 1000)")
    return parser


def main(argv: Optional[list] = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.json and not args.images:
        parser.error("--json needs --images DIR")
    if (args.images or args.query_info) and not args.json:
        parser.error("--images and --query-info belong to --json")
    try:
        _evaluate(args)
    except (OSError, ValueError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    return 0


def evaluate_file(path: str, dataset: Optional[str] = None) -> dict[str, Any]:
    """Evaluate a file of detections of the set that it names, or of ``dataset``."""
    args = get_parser().parse_args(
        [path, "--no-table", *(["--dataset", dataset] if dataset else [])]
    )
    evaluation, name = _run(args)
    return results_document(name, evaluation)


def _evaluate(args: argparse.Namespace) -> None:
    evaluation, name = _run(args)
    print(f"{name}, gallery {evaluation.protocol.gallery}, mode {evaluation.protocol.mode}")
    for task, metrics in evaluation.results.items():
        numbers = ", ".join(
            f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}"
            for key, value in metrics.items()
            if value == value
        )
        print(f"  {task}: {numbers or 'nothing to rate'}")
    for metric, (low, high) in evaluation.intervals.items():
        print(f"  {metric}: 95 % interval {low:.2f} to {high:.2f}")
    if evaluation.table is not None:
        print(evaluation.table)
    if args.output:
        write_evaluation(args.output, name, evaluation)
        print(f"wrote {args.output}")


def _run(args: argparse.Namespace) -> tuple[Evaluation, str]:
    """Return the evaluation and the name of the set; errors name the input."""
    metadata: dict[str, Any] = {"use_gt_boxes": args.gt_boxes}
    detections = None
    if not os.path.isdir(args.input):
        detections, metadata = load_detections(args.input)
    name, dicts, lists = _annotations(args, metadata)
    if detections is None:
        detections = _arrays(args, dicts)
    protocol = Protocol(
        score_thresh=args.score_thresh,
        det_score_thresh=args.det_score_thresh,
        iou_thresh=args.iou_thresh,
        top_k=args.top_k,
        use_gt_boxes=bool(metadata.get("use_gt_boxes")),
        gallery=args.gallery,
        mode=args.mode,
        similarity=args.similarity,
    )
    table = None
    if not args.no_table:
        table = TableOptions(
            gallery_sizes=args.gallery_sizes,
            cameras=args.cameras,
            modes=args.modes,
            cbgm=not args.no_cbgm,
            cbgm_k1=args.cbgm_k1,
            cbgm_k2=args.cbgm_k2,
            bootstrap=args.bootstrap,
        )
    try:
        return evaluate_detection_set(
            detections, dicts, protocol, search_galleries=lists, table=table
        ), name
    except ValueError as error:
        raise ValueError(f"{args.input}: {error}") from None


def _arrays(args: argparse.Namespace, dicts: list[dict]) -> DetectionSet:
    return load_plain_arrays(
        args.input, dicts, box_format=args.box_format, normalise=args.normalise
    )


def _annotations(args: argparse.Namespace, metadata: dict) -> tuple[str, list[dict], Any]:
    if args.json:
        files = SplitFiles(args.json, args.images, args.query_info)
        return args.json, files.load().dicts, None
    name = args.dataset or metadata.get("dataset")
    if not isinstance(name, str):
        raise ValueError(f"{args.input}: has no name of a data set; use --dataset or --json")
    if name not in DatasetCatalog.list():
        known = ", ".join(sorted(n for n in DatasetCatalog.list() if _is_person_search(n)))
        raise ValueError(f"{name!r} is not a registered data set; there are: {known}")
    dicts = DatasetCatalog.get(name)
    return name, dicts, MetadataCatalog.get(name).get("search_galleries")


def _is_person_search(name: str) -> bool:
    return MetadataCatalog.get(name).get("evaluator_type") == "person_search"


if __name__ == "__main__":
    sys.exit(main())
