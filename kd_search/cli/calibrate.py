"""Find the similarities above which two detections are the same person.

    kd-search calibrate output/run --output calibration.json --plot calibration.png
    kd-search calibrate output/run --dataset held_out --model student.onnx

Compares the detections of annotated people in pictures that training did not see, and finds the
thresholds that one in 100, 1,000 and 10,000 comparisons of different people reach, with intervals
over people, see docs/calibration.md. RUN is the output folder of a training whose network was
evaluated (kd-search evaluate), its file of detections, or a folder of arrays.

With --model, the calibration is written into the manifest of an exported network: searches with it
then say likely, unsure or unlikely.

Exit status: 0 calibrated, 2 the input cannot be used.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

from kd_search.cli._arguments import RUN_HELP, command_parser, exit_status
from kd_search.utils.arguments import add_import_argument


def get_parser() -> argparse.ArgumentParser:
    parser = command_parser("calibrate", __doc__)
    parser.add_argument("input", metavar="RUN | INPUT", help=f"{RUN_HELP}; or detections")
    add_import_argument(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--dataset", metavar="NAME", help="set of the run; default: the only one")
    source.add_argument("--json", metavar="FILE", help="COCO-JSON with person_id, of INPUT")
    parser.add_argument("--images", metavar="DIR", help="image folder of --json")
    parser.add_argument("--model", metavar="FILE", help="exported network to write it to")
    parser.add_argument("--output", metavar="FILE", help="write the calibration there as JSON")
    parser.add_argument("--plot", metavar="FILE", help="draw true over false matches (.png, .jpg)")
    parser.add_argument(
        "--halves",
        type=int,
        default=0,
        metavar="N",
        help="also check the thresholds of half of the people on the others, N times",
    )
    parser.add_argument("--score-thresh", type=float, default=0.5, help="default: 0.5")
    parser.add_argument("--iou-thresh", type=float, default=0.5, help="default: 0.5")
    parser.add_argument("--resamples", type=int, default=1000, help="of people (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples (default: 0)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    if bool(args.json) != bool(args.images):
        parser.error("--json and --images belong together")
    if args.resamples < 0 or args.halves < 0:
        parser.error("--resamples and --halves must be 0 or more")
    return exit_status("calibrate", partial(_calibrate, args))


def _calibrate(args: argparse.Namespace) -> None:
    from kd_search.cli.evaluate import read_input
    from kd_search.pipeline.calibration import calibrate_set, calibration_document, describe
    from kd_search.runtime.manifest import manifest_path, read_manifest, update_manifest
    from kd_search.utils.files import check_writable, write_json

    if args.output:
        check_writable(args.output, "--output")
    if args.model:
        read_manifest(manifest_path(args.model))  # before the work
    detections, dicts, name = read_input(args)
    result, halves = calibrate_set(
        detections,
        dicts,
        name,
        score_thresh=args.score_thresh,
        iou_thresh=args.iou_thresh,
        halves=args.halves,
        resamples=args.resamples,
        seed=args.seed,
    )
    print("\n".join(describe(result, halves)))
    document = calibration_document(result, args.score_thresh)
    if args.output:
        write_json(args.output, document, sealed=True)
        print(f"wrote {args.output}")
    if args.plot:
        from kd_search.visualization import write_picture
        from kd_search.visualization.search_plots import draw_roc

        write_picture(args.plot, draw_roc({name: result}, name))
        print(f"wrote {args.plot}")
    if args.model:
        update_manifest(manifest_path(args.model), calibration=document)
        print(f"wrote {manifest_path(args.model)}")
