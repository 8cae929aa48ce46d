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
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kd_search.cli._arguments import RUN_HELP, command_parser
from kd_search.utils.arguments import add_import_argument

if TYPE_CHECKING:
    from kd_search.evaluation.search.calibration import Calibration, OtherHalf


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
    try:
        _calibrate(args)
    except (OSError, ValueError) as error:
        print(f"calibrate: {error}", file=sys.stderr)
        return 2
    return 0


def _calibrate(args: argparse.Namespace) -> None:
    from kd_search.cli.evaluate import read_input
    from kd_search.evaluation import Protocol
    from kd_search.evaluation.search.calibration import (
        calibrate,
        check_on_other_half,
        detections_of_people,
    )
    from kd_search.evaluation.search.test_set import PreparedSet
    from kd_search.runtime.manifest import manifest_path, read_manifest, update_manifest
    from kd_search.utils.files import check_writable, write_json

    if args.output:
        check_writable(args.output, "--output")
    if args.model:
        read_manifest(manifest_path(args.model))  # before the work
    detections, dicts, name = read_input(args)
    protocol = Protocol(score_thresh=args.score_thresh, iou_thresh=args.iou_thresh)
    data = PreparedSet(detections, dicts, {}, ())
    people = detections_of_people(data, detections, protocol)
    options = {"resamples": args.resamples, "seed": args.seed}
    result = calibrate(*people, dataset=name, **options)
    print(describe(result))
    for half in range(args.halves):
        options["seed"] = args.seed + half
        for found in check_on_other_half(*people, **options):
            print(f"  half {half + 1}: {describe_half(found)}")
    document: dict[str, Any] = {**result.to_dict(), "score_thresh": args.score_thresh}
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


def describe(result: Calibration) -> str:
    """A calibration as lines of text."""
    lines = [
        f"{result.dataset}: {result.num_detections} detections of {result.num_people} people; "
        f"comparisons: {result.same:,} of the same, {result.different:,} of different people"
    ]
    for point in result.points:
        rate = f"1 false match in {round(1 / point.false_match_rate):,}"
        if point.threshold is None:
            lines.append(f"  {rate}: no threshold: {point.reason}")
            continue
        lines.append(
            f"  {rate}: similarity {point.threshold:.3f}{_interval(point.threshold_interval, 1)}, "
            f"keeps {100 * (point.true_match_rate or 0):.1f} % of the true matches"
            f"{_interval(point.true_match_interval, 100)}"
        )
    return "\n".join(lines)


def describe_half(found: OtherHalf) -> str:
    """What a threshold of half of the people does on the others, as a line of text."""
    low, high = (1e4 * end for end in found.realised_interval)
    kept = "holds" if low <= 1e4 * found.false_match_rate <= high else "does not hold"
    return (
        f"{1e4 * found.false_match_rate:g} in 10,000 at {found.threshold:.3f}: on the others "
        f"{1e4 * found.realised:.1f} ({low:.1f} to {high:.1f}), {kept}"
    )


def _interval(ends: tuple[float, float] | None, factor: float) -> str:
    if ends is None:
        return ""
    digits = 3 if factor == 1 else 1
    return f" ({factor * ends[0]:.{digits}f} to {factor * ends[1]:.{digits}f})"
