"""The student as files that run elsewhere: exported, compared with the network, calibrated."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Optional

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from kd_search.data import build_person_search_test_loader
from kd_search.evaluation.search.compare_runs import INFERENCE_FOLDER
from kd_search.evaluation.search.predictions import DETECTIONS_FILE, load_detections
from kd_search.export import export_model, export_torchscript
from kd_search.pipeline.calibration import calibrate_set, calibration_document, describe
from kd_search.pipeline.measure import load_network
from kd_search.runtime.manifest import manifest_path, update_manifest
from kd_search.utils.files import file_sha256

#: Formats, and the ending of their files.
ENDINGS = {"onnx": ".onnx", "torchscript": ".ts"}
#: Of the export to ONNX and of its comparison: the extra "export" of this package.
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
#: Images of the test set that an export is checked with.
_CHECK_IMAGES = 4
#: Pairs of halves of the people that thresholds are checked on.
_HALVES = 3


def missing_packages() -> list[str]:
    """Packages of the export to ONNX that are not installed."""
    return [name for name in _PACKAGES if find_spec(name) is None]


def export_student(
    cfg: CfgNode, weights: Path, stem: Path, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Export a network as ONNX and TorchScript, each checked on images of its test set.

    A format that the network cannot be exported to, or that gives other results, is left out, with
    a line that says why. A file of an earlier network is removed then.

    Args:
        cfg: of the network, for evaluation.
        weights: of the network.
        stem: path of the files without their endings.
        say: prints a line.

    Returns:
        ``files``, the name of each format's file; ``left_out``, the reason of each other format;
        and ``torchscript``, the report of its check. That of ONNX is in its manifest.

    Raises:
        ValueError: no format is left.
    """
    model = load_network(cfg, weights)
    exporters = {"onnx": _export_onnx, "torchscript": _export_torchscript}
    record: dict[str, Any] = {"files": {}, "left_out": {}}
    for form, export in exporters.items():
        path = stem.with_name(stem.name + ENDINGS[form])
        try:
            report = export(model, cfg, weights, path)
        except (ValueError, RuntimeError) as error:  # torch's errors of exports, too
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            record["left_out"][form] = reason
            for old in (path, manifest_path(path)):
                old.unlink(missing_ok=True)
            say(f"no {path.name}: {reason}")
            continue
        record["files"][form] = path.name
        if form == "torchscript":
            record[form] = report
        say(f"{path.name}: largest difference from the network {_largest(report):.1e}")
    if not record["files"]:
        raise ValueError(
            f"the student cannot be exported: {'; '.join(record['left_out'].values())}"
        )
    return record


def calibrate_student(
    cfg: CfgNode, folder: Path, model: Optional[Path], say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Calibrate an evaluated network on its test set.

    The people are those that the results are reported on: a project has no others that training
    did not see. The document says so, and has the thresholds of halves of the people checked on the
    others.

    Args:
        cfg: of the network, for evaluation.
        folder: of its training.
        model: exported file with a manifest, which gets the calibration; ``None``: there is none.
        say: prints a line.

    Returns:
        Content of ``calibration.json``: of :func:`.calibration_document` and ``note``, or
        ``reason`` where the detections do not suffice.
    """
    dataset, protocol = cfg.DATASETS.TEST[0], cfg.TEST.PERSON_SEARCH
    detections, _ = load_detections(folder / INFERENCE_FOLDER / dataset / DETECTIONS_FILE)
    document: dict[str, Any]
    try:
        result, halves = calibrate_set(
            detections,
            DatasetCatalog.get(dataset),
            dataset,
            score_thresh=protocol.SCORE_THRESH,
            iou_thresh=protocol.IOU_THRESH,
            halves=_HALVES,
        )
    except ValueError as error:
        document = {"dataset": dataset, "reason": str(error)}
        say(f"not calibrated: {error}")
    else:
        note = "the people of the test set that the results are reported on"
        document = calibration_document(result, protocol.SCORE_THRESH, halves) | {"note": note}
        for line in describe(result, halves):
            say(line)
    if model is not None:
        known = None if "reason" in document else document
        update_manifest(manifest_path(model), calibration=known)
    return document


def _export_onnx(model: Any, cfg: CfgNode, weights: Path, path: Path) -> dict[str, Any]:
    if missing := missing_packages():
        raise ValueError(
            f"{', '.join(missing)} not installed: pip install {' '.join(_PACKAGES)} (the extra "
            "[export]), and run this again"
        )
    records = DatasetCatalog.get(cfg.DATASETS.TEST[0])
    chosen = records[:: max(len(records) // _CHECK_IMAGES, 1)][:_CHECK_IMAGES]
    # The runtime computes on the CPU, and is compared with that.
    model.to("cpu")
    manifest = export_model(
        model,
        path,
        cfg=cfg,
        check_pictures=[record["file_name"] for record in chosen],
        source_sha256=file_sha256(weights),
    )
    parity: dict[str, Any] = manifest["parity"]
    return parity


def _export_torchscript(model: Any, cfg: CfgNode, weights: Path, path: Path) -> dict[str, Any]:
    loader = build_person_search_test_loader(cfg, cfg.DATASETS.TEST[0])
    images = [batch[0]["image"] for batch, _ in zip(loader, range(_CHECK_IMAGES))]
    # A picture without people, and one of another size: the export must hold no fixed size.
    height, width = images[0].shape[1:]
    cut = images[0][:, : height * 4 // 5, : width * 4 // 5].contiguous()
    images += [torch.full_like(images[0], 114), cut]
    model.to(cfg.MODEL.DEVICE)
    return export_torchscript(
        model, path, cfg=cfg, check_images=images, source_sha256=file_sha256(weights)
    )


def _largest(report: dict[str, Any]) -> float:
    return max(report["max_difference"].values())
