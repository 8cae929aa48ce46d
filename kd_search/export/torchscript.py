"""Export to a TorchScript file that is checked before it is written."""

import os
from collections.abc import Iterable
from typing import Any, Optional, Union

import detectron2
import torch
import torchvision
from detectron2.config import CfgNode
from torch import nn

import kd_search
from kd_search.export.exported_file import decode, encode, weights_sha256
from kd_search.export.parity import check_parity, probe_images
from kd_search.export.tracing import inference_model, trace_person_search
from kd_search.utils.files import atomic_write

#: Sizes of the images that check an export by default.
_PROBE_SIZES = ((128, 96), (97, 161), (160, 128))


def export_torchscript(
    model: nn.Module,
    path: Union[str, os.PathLike],
    *,
    cfg: CfgNode,
    sample_image: Optional[torch.Tensor] = None,
    check_images: Optional[Iterable[torch.Tensor]] = None,
    tolerance: float = 1e-5,
    source_sha256: str = "",
) -> dict[str, Any]:
    """Trace a network, reload it, compare it with the model, and then write it.

    Args:
        model: a PersonSearchRCNN, or a Distiller with one as its student. Not modified.
        path: of the file. An existing file is replaced atomically, or kept if the export fails.
        cfg: full config of the model, for the metadata.
        sample_image: (3, H, W) to trace with; ``None``: noise.
        check_images: (3, H, W) network inputs for :func:`check_parity`, preferably real ones of
            several sizes, one of them without people; ``None``: a few synthetic ones.
        tolerance: as :func:`check_parity`.
        source_sha256: SHA-256 of the checkpoint file, for the metadata.

    Returns:
        The report of :func:`check_parity`.

    Raises:
        ExportParityError: the results of the exported network differ. Nothing is written.
        ValueError: the model is not a person search network.
    """
    traced = trace_person_search(model, sample_image)
    content = encode(traced, describe(traced, model, cfg, source_sha256))
    exported = decode(content, str(path), inference_model(model).device)
    if check_images is None:
        check_images = probe_images(_PROBE_SIZES)
    report = check_parity(model, exported, check_images, tolerance)
    with atomic_write(path) as file:
        file.write(content)
    return report


def describe(
    traced: nn.Module, model: nn.Module, cfg: CfgNode, source_sha256: str = ""
) -> dict[str, Any]:
    """Return the metadata of an exported file, in plain JSON types.

    ``input_format`` is the channel order of the input, with values 0 to 255; the graph applies mean
    and standard deviation. ``min_size`` and ``max_size`` are the size of the shorter side in
    evaluation and the limit of the longer one. Detections below ``score_threshold`` are not
    returned; the search metric uses those above ``search_score_threshold``.
    """
    student = inference_model(model)
    return {
        "input_format": cfg.INPUT.FORMAT,
        **describe_search(student, cfg),
        "device": student.device.type,
        "weights_sha256": weights_sha256(traced),
        "source_sha256": source_sha256,
        "versions": package_versions(),
        "config": cfg.dump(),
    }


def describe_search(student: Any, cfg: CfgNode) -> dict[str, Any]:
    """Sizes and thresholds of a person search network, see :func:`describe`."""
    return {
        "min_size": cfg.INPUT.MIN_SIZE_TEST,
        "max_size": cfg.INPUT.MAX_SIZE_TEST,
        "embedding_dim": student.roi_heads.reid.head.embedding_dim,
        "score_threshold": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        "nms_threshold": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
        "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
        "search_score_threshold": cfg.TEST.PERSON_SEARCH.SCORE_THRESH,
    }


def package_versions() -> dict[str, str]:
    """Versions of the packages that an export depends on."""
    return {
        "kd_search": kd_search.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "detectron2": detectron2.__version__,
    }
