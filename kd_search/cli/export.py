"""Export a trained network to one file that runs without Detectron2.

    kd-search export output/student --output student.onnx
    kd-search export --config-file CONFIG --weights model_final.pth --output student.onnx
    kd-search export output/student --output student.ts --format torchscript

Formats: onnx, which kd_search.runtime runs without torch; pt2, a program of torch.export; and
torchscript. ONNX and pt2 files have a manifest beside them, FILE.json. Of a distilled network the
student is exported. The file is written only if it gives what the network gives: on made pictures
of many kinds, and on some of the first test set.

--query-guided exports the search of a network that reads the picture of the query, such as QEEPS:
an ONNX file with two pictures as inputs, for kd-search search --rerank.

Exit status: 0 exported, 2 not exported.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kd_search.cli._arguments import add_network_arguments, command_parser, parse

if TYPE_CHECKING:
    from detectron2.config import CfgNode

_PROBE_SIZES = ((128, 96), (97, 161), (256, 320))
_DEFAULT_CHECK_IMAGES = 4


def get_parser() -> argparse.ArgumentParser:
    parser = command_parser("export", __doc__)
    add_network_arguments(parser)
    parser.add_argument("--output", metavar="FILE", required=True, help="file to write")
    parser.add_argument(
        "--format",
        choices=("onnx", "pt2", "torchscript"),
        help="default: by the ending of FILE, .onnx or .pt2, otherwise torchscript",
    )
    parser.add_argument("--opset", type=int, metavar="N", help="of ONNX, 18 or more (default: 18)")
    parser.add_argument(
        "--half-weights",
        action="store_true",
        help="ONNX: store weights in half precision, half the size; computed in single precision",
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="ONNX: convolutions in 8-bit integers; mAP and top-1 with and without are measured on "
        "the first DATASETS.TEST and written into the manifest",
    )
    parser.add_argument(
        "--calibration-pictures",
        metavar="FOLDER",
        help="for --int8: pictures that set its scales, not of the test set; a hundred suffice",
    )
    parser.add_argument(
        "--query-guided", action="store_true", help="ONNX: with the query's picture as an input"
    )
    parser.add_argument(
        "--device",
        default="cpu",
        help="torchscript: where the file will run (default: cpu)",
    )
    parser.add_argument(
        "--check-images",
        metavar="N",
        type=int,
        help=f"images of the first DATASETS.TEST to compare on (default: {_DEFAULT_CHECK_IMAGES}, "
        "or none if the data set is absent); synthetic images are always compared too",
    )
    parser.add_argument("--tolerance", type=float, help="torchscript (default: 1e-5, relative)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(get_parser(), argv)
    from kd_search.export import ExportParityError

    try:
        _export(args)
    except (OSError, ValueError, ExportParityError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    return 0


def _export(args: argparse.Namespace) -> None:
    from detectron2.modeling import build_model

    import kd_search.modeling  # noqa: F401  registers the networks
    from kd_search.checkpoint import load_trained
    from kd_search.cli._runs import network_config
    from kd_search.utils.files import file_sha256

    form = _form(args)
    # The network is built without its ID table, teachers and terms.
    fixed = ["MODEL.OIM.ENABLED", "False", "MODEL.OIM.NUM_IDS", "1", "MODEL.DEVICE", args.device]
    cfg, weights = network_config(args, fixed)
    if cfg.MODEL.DEVICE != args.device:
        raise ValueError(f"--device {args.device} cannot be used on this machine")
    model = build_model(cfg)
    load_trained(model, weights, trust_pickle=cfg.MODEL.TRUST_PICKLE)
    source = file_sha256(weights) if os.path.isfile(weights) else ""
    if form == "torchscript":
        _export_torchscript(args, cfg, model, source)
    else:
        _export_model(args, cfg, model, source, form)
    size = os.path.getsize(args.output) / 2**20
    print(f"wrote {args.output} ({size:.1f} MiB)")


def _form(args: argparse.Namespace) -> str:
    """The format, by option or ending; a ValueError for options of another format."""
    ending = os.path.splitext(args.output)[1].lower()
    form = args.format or {".onnx": "onnx", ".pt2": "pt2"}.get(ending, "torchscript")
    wrong = {
        "--opset": args.opset is not None and form != "onnx",
        "--half-weights": args.half_weights and form != "onnx",
        "--query-guided": args.query_guided and form != "onnx",
        "--int8": args.int8 and form != "onnx",
        "--device": args.device != "cpu" and form != "torchscript",
        "--tolerance": args.tolerance is not None and form != "torchscript",
    }
    for option, is_wrong in wrong.items():
        if is_wrong:
            raise ValueError(f"{option} is not for the format {form}")
    if args.int8 != bool(args.calibration_pictures):
        raise ValueError("--int8 and --calibration-pictures FOLDER belong together")
    if args.int8 and args.half_weights:
        raise ValueError("--int8 and --half-weights exclude each other")
    return form


def _export_torchscript(args: argparse.Namespace, cfg: CfgNode, model: Any, source: str) -> None:
    from kd_search.data import PersonSearchDatasetMapper
    from kd_search.export import export_torchscript, probe_images

    names = [f"synthetic {i}" for i in range(len(_PROBE_SIZES))]
    images = probe_images(_PROBE_SIZES)
    mapper = PersonSearchDatasetMapper(cfg, is_train=False)
    for record in _test_records(cfg, args.check_images):
        names.append(os.path.basename(record["file_name"]))
        images.append(mapper(record)["image"])
    report = export_torchscript(
        model,
        args.output,
        cfg=cfg,
        check_images=images,
        tolerance=1e-5 if args.tolerance is None else args.tolerance,
        source_sha256=source,
    )
    print(format_report(report, names))


def _export_model(
    args: argparse.Namespace, cfg: CfgNode, model: Any, source: str, form: str
) -> None:
    from kd_search.export import export_model
    from kd_search.export.graph import OPSET
    from kd_search.runtime.pictures import find_pictures

    calibration = find_pictures([args.calibration_pictures]) if args.int8 else None
    files = [record["file_name"] for record in _test_records(cfg, args.check_images)]
    manifest = export_model(
        model,
        args.output,
        cfg=cfg,
        format=form,
        opset=OPSET if args.opset is None else args.opset,
        half_weights=args.half_weights,
        int8=calibration,
        query_guided=args.query_guided,
        check_pictures=files,
        source_sha256=source,
    )
    print(format_parity(manifest["parity"]))
    if args.int8:
        print(format_int8(manifest["int8"]))


def _test_records(cfg: CfgNode, wanted: int | None) -> list[dict[str, Any]]:
    """Records of readable images spread over the first test set."""
    from detectron2.data import DatasetCatalog

    from kd_search.data.io.image import read_image

    count = _DEFAULT_CHECK_IMAGES if wanted is None else wanted
    if count <= 0:
        return []
    try:
        if not cfg.DATASETS.TEST:
            raise ValueError("DATASETS.TEST is empty")
        name = cfg.DATASETS.TEST[0]
        if name not in DatasetCatalog.list():
            raise ValueError(f"the data set {name!r} of DATASETS.TEST is not registered")
        dicts = DatasetCatalog.get(name)
        chosen = dicts[:: max(len(dicts) // count, 1)][:count]
        for record in chosen:
            read_image(record["file_name"], max_pixels=cfg.INPUT.MAX_IMAGE_PIXELS)
        return chosen
    except (OSError, ValueError) as error:
        if wanted is not None:
            raise
        print(f"compared on synthetic images only: {error}")
        return []


def format_parity(parity: dict[str, Any]) -> str:
    """Format ``parity`` of a manifest as a table."""
    fields = list(parity["max_difference"])
    lines = [f"{'picture':<24} {'people':>7}" + "".join(f" {f:>17}" for f in fields)]
    for row in parity["rows"]:
        values = "".join(f" {row[f]:>17.2e}" for f in fields)
        lines.append(f"{row['picture'][-24:]:<24} {row['people']:>7}{values}")
    values = "".join(f" {parity['max_difference'][f]:>17.2e}" for f in fields)
    lines.append(f"{'largest difference':<24} {parity['people']:>7}{values}")
    allowed = ", ".join(f"{name} {value:g}" for name, value in parity["tolerance"].items())
    lines.append(f"allowed: {allowed}")
    for case in parity["border_cases"]:
        lines.append(f"border case in {case['picture']}: {case['reason']}, {case['score']}")
    if not parity["people"]:
        lines.append("note: the network finds nobody in these pictures; detection was not compared")
    return "\n".join(lines)


def format_int8(found: dict[str, Any]) -> str:
    """Format ``int8`` of a manifest as lines of text."""
    agree = found["agreement"]
    lines = [
        f"int8, calibrated on {found['calibration_pictures']} pictures: "
        f"{100 * agree['people_of_both']:.1f} % of the people found by both, embeddings of given "
        f"boxes have a cosine of {agree['mean_cosine']:.4f} (least {agree['least_cosine']:.4f})"
    ]
    for kind in ("float32", "int8"):
        values = found[kind]
        lines.append(
            f"{kind:>8} on {found['dataset']}: mAP {values['mAP']:.2f}, top-1 {values['top1']:.2f}"
        )
    return "\n".join(lines)


def format_report(report: dict[str, Any], names: list[str]) -> str:
    """Format the report of ``check_parity`` as a table."""
    fields = list(report["max_difference"])
    lines = [f"{'image':<24} {'size':>10} {'people':>7}" + "".join(f" {f:>17}" for f in fields)]
    for name, row in zip(names, report["images"]):
        height, width = row["size"]
        values = "".join(f" {row[f]:>17.2e}" for f in fields)
        lines.append(f"{name[-24:]:<24} {f'{height}x{width}':>10} {row['detections']:>7}{values}")
    values = "".join(f" {report['max_difference'][f]:>17.2e}" for f in fields)
    lines.append(f"{'largest difference':<24} {'':>10} {'':>7}{values}")
    lines.append(f"all within {report['tolerance']:g}")
    if not report["zero_detections"]:
        lines.append("note: every image has detections, so an empty result was not compared")
    return "\n".join(lines)
