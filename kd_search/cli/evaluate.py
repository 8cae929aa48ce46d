"""Score a trained network, or detections and embeddings from files.

    kd-search evaluate output/run
    kd-search evaluate output/run --weights output/run/model_best.pth
    kd-search evaluate output/run/inference/prw_test/person_search_detections.npz
    kd-search evaluate theirs/ --dataset cuhk_sysu_test --output scored/
    kd-search evaluate theirs/ --json test.json --images photos/ --query-info query_info.txt

The input is the output folder of a training, the file of detections that an evaluation leaves
(.npz), or a folder of plain arrays (docs/evaluation.md): images.txt, image_index.npy, boxes.npy,
scores.npy, embeddings.npy, query_embeddings.npy. Nothing in the files is executed. All protocols of
the set are rated in one pass and printed as one table.

The network of a training runs where it has not been evaluated yet, and with --weights or overrides
KEY VALUE of its config; the results are in RUN/inference/SET. Otherwise its detections are scored.

Exit status: 0 evaluated, 2 the input cannot be used.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from kd_search.cli._arguments import (
    RUN_HELP,
    check_set_arguments,
    command_parser,
    exit_status,
    split_run,
)
from kd_search.utils.arguments import add_import_argument

if TYPE_CHECKING:
    from kd_search.engine.finished_run import FinishedRun
    from kd_search.evaluation import DetectionSet, Evaluation

# Those of kd_search.evaluation, which imports torch.
BOX_FORMATS = ("xyxy", "xywh")
CAMERAS = ("all", "cross_camera", "junk_same_camera")
MODES = ("corrected", "compat")
SIMILARITIES = ("cosine", "score_weighted")


def get_parser() -> argparse.ArgumentParser:
    parser = command_parser("evaluate", __doc__)
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUN | INPUT | KEY VALUE",
        help=f"{RUN_HELP}, then overrides of its config; or a file of detections, or a folder of "
        "arrays",
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="run the network of RUN with this checkpoint"
    )
    add_import_argument(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--dataset", metavar="NAME", help="test set; default: that of the run or the file"
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


def main(argv: Sequence[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_intermixed_args(argv)
    check_set_arguments(parser, args)
    args.input, args.opts = split_run(args.words)
    if args.input is None:
        parser.error(f"{' '.join(args.words)} is not an input and overrides KEY VALUE")
    return exit_status("evaluate", partial(_run_or_score, args, parser))


def _run_or_score(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    run = _find_run(args)
    if run is None or not _run_network(run, args, parser):
        _evaluate(args)


def evaluate_file(path: str, dataset: str | None = None) -> dict[str, Any]:
    """Evaluate a file of detections of the set that it names, or of ``dataset``."""
    from kd_search.evaluation.search.evaluate import results_document

    args = get_parser().parse_args(
        [path, "--no-table", *(["--dataset", dataset] if dataset else [])]
    )
    args.input = path
    evaluation, name = _run(args)
    return results_document(name, evaluation)


def read_input(args: argparse.Namespace) -> tuple[DetectionSet, list[dict], str]:
    """The detections, dataset dicts and name of the set that arguments name.

    Args:
        args: ``input``, a file of detections, a folder of arrays or a run that was evaluated;
            ``dataset`` or ``json`` and ``images``; ``imports``.

    Raises:
        FileNotFoundError, ValueError: the input cannot be used; one line.
    """
    args = argparse.Namespace(**{**vars(get_parser().parse_args(["."])), **vars(args)})
    args.opts = []
    run = _find_run(args)
    if run is not None:
        _find_detections(run, args)
    detections, metadata = _load(args)
    name, dicts, _ = _annotations(args, metadata)
    return detections or _load_arrays(args, dicts), dicts, name


def _find_run(args: argparse.Namespace) -> FinishedRun | None:
    """The training of the input, with its data sets registered; ``None`` for files of others."""
    from kd_search.cli._runs import open_run, register_data_of
    from kd_search.config import import_modules
    from kd_search.engine.finished_run import find_run

    import_modules(args.imports)
    if os.path.isdir(args.input) and find_run(args.input) is not None:
        return open_run(args.input, args.imports)
    register_data_of(args.input)
    if args.weights or args.opts:
        raise ValueError(
            f"{args.input} is not the output folder of a training, which --weights and overrides "
            "belong to"
        )
    return None


def _run_network(
    run: FinishedRun, args: argparse.Namespace, parser: argparse.ArgumentParser
) -> bool:
    """Evaluate the network of a training where that is wanted, or needed for its detections.

    Otherwise ``args.input`` becomes the file of detections to score.

    Returns:
        whether all was done that the arguments ask for.
    """
    from kd_search.engine import train_main
    from kd_search.engine.finished_run import detections_of

    dataset = args.dataset or run.dataset
    found = detections_of(run, dataset)
    if args.weights or args.opts or not found:
        sets = ["DATASETS.TEST", repr((dataset,))] if dataset else []
        train_main(
            args=argparse.Namespace(
                config_file=run.config_file,
                opts=[
                    *("OUTPUT_DIR", run.folder, "MODEL.WEIGHTS", args.weights or run.weights),
                    *sets,
                    *args.opts,
                ],
                imports=args.imports,
                paths_from=run.working_directory,
                eval_only=True,
                resume=False,
                num_gpus=1,
                num_machines=1,
                machine_rank=0,
                dist_url="auto",
            )
        )
        if not _scoring_options(args, parser):
            return True
    _find_detections(run, args)
    return False


def _find_detections(run: FinishedRun, args: argparse.Namespace) -> None:
    """Make the file of detections of a training, and of ``args.dataset``, the input."""
    from kd_search.cli._runs import register_data_of
    from kd_search.engine.finished_run import detections_of

    register_data_of(run.folder)
    found = detections_of(run, args.dataset or run.dataset)
    if len(found) != 1:
        each = ", ".join(found) or "none"
        raise ValueError(
            f"{args.input}: name one set with --dataset; there are detections of {each}"
        )
    ((_, args.input),) = found.items()


def _scoring_options(args: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    """Options that the evaluation of a network takes from its config instead."""
    kept = ("words", "weights", "imports", "dataset", "input", "opts")
    return [
        name
        for name, value in vars(args).items()
        if name not in kept and value != parser.get_default(name)
    ]


def _evaluate(args: argparse.Namespace) -> None:
    from kd_search.evaluation.search.evaluate import write_evaluation

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
    from kd_search.evaluation import Protocol, TableOptions, evaluate_detection_set

    detections, metadata = _load(args)
    name, dicts, lists = _annotations(args, metadata)
    detections = detections or _load_arrays(args, dicts)
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


def _load(args: argparse.Namespace) -> tuple[DetectionSet | None, dict[str, Any]]:
    """Detections of a file, or None for a folder of arrays; and what the file says about them."""
    from kd_search.evaluation import load_detections

    if os.path.isdir(args.input):
        return None, {"use_gt_boxes": args.gt_boxes}
    return load_detections(args.input)


def _load_arrays(args: argparse.Namespace, dicts: list[dict]) -> DetectionSet:
    from kd_search.evaluation.search.import_arrays import load_plain_arrays

    return load_plain_arrays(
        args.input, dicts, box_format=args.box_format, normalise=args.normalise
    )


def _annotations(args: argparse.Namespace, metadata: dict) -> tuple[str, list[dict], Any]:
    from detectron2.data import DatasetCatalog, MetadataCatalog

    import kd_search.data  # noqa: F401  registers the data sets
    from kd_search.data.catalog import is_person_search
    from kd_search.data.person_search.register import SplitFiles

    if args.json:
        files = SplitFiles(args.json, args.images, args.query_info)
        return args.json, files.load().dicts, None
    name = args.dataset or metadata.get("dataset")
    if not isinstance(name, str):
        raise ValueError(f"{args.input}: has no name of a data set; use --dataset or --json")
    if name not in DatasetCatalog.list():
        known = ", ".join(sorted(n for n in DatasetCatalog.list() if is_person_search(n)))
        raise ValueError(f"{name!r} is not a registered data set; there are: {known}")
    dicts = DatasetCatalog.get(name)
    return name, dicts, MetadataCatalog.get(name).get("search_galleries")
