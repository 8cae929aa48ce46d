"""Export a trained network to one TorchScript file that runs without Detectron2.

    kd-search export output/student --output student.ts
    kd-search export --config-file CONFIG --weights model_final.pth --output student.ts
    kd-search export --config-file CONFIG --output student.ts MODEL.WEIGHTS last.pth

The network is traced, reloaded and compared with the model on real and synthetic images. The file
is written only if the results agree. Of a distilled network the student is exported.

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
    import torch
    from detectron2.config import CfgNode

_PROBE_SIZES = ((128, 96), (97, 161), (256, 320))
_DEFAULT_CHECK_IMAGES = 4


def get_parser() -> argparse.ArgumentParser:
    parser = command_parser("export", __doc__)
    add_network_arguments(parser)
    parser.add_argument("--output", metavar="FILE", required=True, help="file to write")
    parser.add_argument("--device", default="cpu", help="where the file will run (default: cpu)")
    parser.add_argument(
        "--check-images",
        metavar="N",
        type=int,
        help=f"images of the first DATASETS.TEST to compare on (default: {_DEFAULT_CHECK_IMAGES}, "
        "or none if the data set is absent); synthetic images are always compared too",
    )
    parser.add_argument("--tolerance", type=float, default=1e-5, help="default: 1e-5, relative")
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
    from kd_search.export import export_torchscript, probe_images
    from kd_search.utils.files import file_sha256

    # The network is built without its ID table, teachers and terms.
    fixed = ["MODEL.OIM.ENABLED", "False", "MODEL.OIM.NUM_IDS", "1", "MODEL.DEVICE", args.device]
    cfg, weights = network_config(args, fixed)
    if cfg.MODEL.DEVICE != args.device:
        raise ValueError(f"--device {args.device} cannot be used on this machine")
    model = build_model(cfg)
    load_trained(model, weights, trust_pickle=cfg.MODEL.TRUST_PICKLE, for_inference=True)
    names = [f"synthetic {i}" for i in range(len(_PROBE_SIZES))]
    images = probe_images(_PROBE_SIZES)
    for name, image in _dataset_images(cfg, args.check_images):
        names.append(name)
        images.append(image)
    report = export_torchscript(
        model,
        args.output,
        cfg=cfg,
        check_images=images,
        tolerance=args.tolerance,
        source_sha256=file_sha256(weights) if os.path.isfile(weights) else "",
    )
    print(format_report(report, names))
    size = os.path.getsize(args.output) / 2**20
    print(f"wrote {args.output} ({size:.1f} MiB)")


def _dataset_images(cfg: CfgNode, wanted: int | None) -> list[tuple[str, torch.Tensor]]:
    """Return (name, network input) of images spread over the first test set."""
    from detectron2.data import DatasetCatalog

    from kd_search.data import PersonSearchDatasetMapper

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
        mapper = PersonSearchDatasetMapper(cfg, is_train=False)
        chosen = dicts[:: max(len(dicts) // count, 1)][:count]
        return [(os.path.basename(d["file_name"]), mapper(d)["image"]) for d in chosen]
    except (OSError, ValueError) as error:
        if wanted is not None:
            raise
        print(f"compared on synthetic images only: {error}")
        return []


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
