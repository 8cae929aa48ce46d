"""Export to a file that gets its name only after it was compared with the model."""

import hashlib
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union

import torch
import torchvision  # noqa: F401  registers the operators of torch.export files
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn

from kd_search.export.exported_file import weights_sha256
from kd_search.export.gate import (
    HALF_TOLERANCE,
    TOLERANCE,
    Result,
    compare,
    run_program,
    run_reid,
    run_runtime,
    run_training_stack,
)
from kd_search.export.gate_pictures import GatePicture, write_gate_pictures
from kd_search.export.graph import (
    OPSET,
    Graph,
    check_opset,
    export_program,
    person_search_graph,
    pt2_content,
    reid_graph,
    to_onnx,
)
from kd_search.export.quantized import accuracy, agreement, check_calibration_pictures, quantised
from kd_search.export.query_guided import (
    gate_pairs,
    query_guided_graph,
    run_pairs,
    run_runtime_pairs,
)
from kd_search.export.torchscript import describe_search, package_versions
from kd_search.export.tracing import inference_model
from kd_search.modeling import ReIDNetwork
from kd_search.runtime.manifest import (
    FORMAT,
    FORMAT_VERSION,
    METADATA_KEY,
    inner_manifest,
    manifest_path,
)
from kd_search.utils.files import atomic_write, write_json
from kd_search.utils.inference import evaluating

#: Formats of :func:`export_model`.
FORMATS = ("onnx", "pt2")


def export_model(
    model: nn.Module,
    path: Union[str, os.PathLike],
    *,
    cfg: CfgNode,
    format: str = "onnx",
    opset: int = OPSET,
    half_weights: bool = False,
    int8: Optional[Sequence[str]] = None,
    query_guided: bool = False,
    check_pictures: Sequence[str] = (),
    source_sha256: str = "",
) -> dict[str, Any]:
    """Export a person search or re-ID network and its manifest ``<path>.json``.

    The file is compared with the model on made pictures (see
    :func:`~kd_search.export.gate_pictures.write_gate_pictures`) and on ``check_pictures``, from the
    bytes of the files: an ONNX file in a process of the runtime, which imports neither torch nor
    Detectron2.

    Args:
        model: a PersonSearchRCNN or a ReIDNetwork, or a Distiller with one as its student. Not
            modified.
        path: of the file. Existing files are replaced atomically, or kept if the export fails.
        cfg: full config of the model.
        format: "onnx", or "pt2" for ``torch.export``.
        opset: of ONNX.
        half_weights: store the weights of an ONNX file in half precision. The gate then bounds how
            much their rounding changes the results.
        int8: calibration pictures; the convolutions of an ONNX file then compute with 8-bit
            integers. The network before it was quantised passes the comparison, and both are
            evaluated on the first test set of ``cfg``; the manifest has the results.
        query_guided: export the search by a query of a network that has one, with two pictures as
            inputs; "onnx" only, without int8. See :mod:`.query_guided`.
        check_pictures: further picture files to compare on, such as some of a test set.
        source_sha256: SHA-256 of the checkpoint file, for the manifest.

    Returns:
        The manifest.

    Raises:
        ExportParityError: the results of the exported network differ. Nothing is written.
        ValueError: the network or the opset cannot be exported.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r} is none of {', '.join(FORMATS)}")
    check_opset(opset)
    if int8 is not None and (half_weights or format != "onnx"):
        raise ValueError("int8 is for the format onnx, without half_weights")
    if query_guided and (int8 is not None or format != "onnx"):
        raise ValueError("a query-guided search is exported to the format onnx, without int8")
    network: Any = getattr(getattr(model, "module", model), "student", model)
    is_reid = isinstance(network, ReIDNetwork)
    dataset = "" if int8 is None else check_calibration_pictures(int8, cfg)
    if is_reid:
        if int8 is not None:
            raise ValueError("int8 is for person search networks")
        graph = reid_graph(network, cfg.REID_DATA.SIZE)
        manifest = _manifest(graph, cfg, source_sha256) | _reid_keys(network, cfg)
    else:
        network = inference_model(model)
        graph = query_guided_graph(network) if query_guided else person_search_graph(network)
        manifest = _manifest(graph, cfg, source_sha256) | _search_keys(network, graph, cfg)
        if query_guided:
            manifest["network"] = "query_guided"
    manifest |= {"file": os.path.basename(path), "file_format": format}
    with tempfile.TemporaryDirectory() as folder:
        pictures = write_gate_pictures(Path(folder), 0 if is_reid else cfg.INPUT.MIN_SIZE_TEST)
        pictures += [GatePicture(name, []) for name in check_pictures]
        expected: list[Result]
        found: Sequence[Optional[Result]]
        if is_reid:
            with evaluating(network):
                expected = run_reid(lambda x: network.embed(x[:, None]), cfg, pictures)
        elif query_guided:
            pairs = gate_pairs(pictures)
            pictures = [pair.picture for pair in pairs]
            expected = run_pairs(network, cfg, pairs)
        else:
            expected = run_training_stack(network, cfg, pictures)
        if format == "onnx":
            manifest |= {"opset": opset, "weights_type": "float16" if half_weights else "float32"}
            content = to_onnx(graph, opset, half_weights)
            trial = Path(folder, "trial.onnx")
            write_files(trial, with_metadata(content, manifest), manifest)
            found = (
                run_runtime_pairs(trial, pairs) if query_guided else run_runtime(trial, pictures)
            )
        else:
            manifest |= {"least_side": graph.least_side}
            program = export_program(graph)
            # Compared as it is read from a file, and saved again with the result.
            loaded = torch.export.load(io.BytesIO(pt2_content(program, ""))).module()
            if is_reid:
                found = run_reid(loaded, cfg, pictures)
            else:
                found = run_program(loaded, cfg, pictures, graph.divisor, graph.least_side)
        compared = [row for row in zip(expected, found, pictures) if row[1] is not None]
        manifest["parity"] = compare(
            *map(list, zip(*compared)),
            score_threshold=manifest.get("score_threshold", 0.0),
            nms_threshold=manifest.get("nms_threshold", 0.0),
            tolerance=HALF_TOLERANCE if half_weights else TOLERANCE,
        )
        if int8 is not None:
            before = accuracy(trial, cfg, dataset)
            content = quantised(content, manifest, int8)
            manifest["weights_type"] = "int8"
            write_files(trial, with_metadata(content, manifest), manifest)
            manifest["int8"] = {
                "calibration_pictures": len(int8),
                "agreement": agreement(expected, run_runtime(trial, pictures)),
                "dataset": dataset,
                "float32": before,
                "int8": accuracy(trial, cfg, dataset),
            }
    if format == "onnx":
        content = with_metadata(content, manifest)
    else:
        content = pt2_content(program, inner_manifest(manifest))
    return write_files(path, content, manifest)


def _manifest(graph: Graph, cfg: CfgNode, source_sha256: str) -> dict[str, Any]:
    """What is known of any network before it is compared."""
    known = MetadataCatalog.get(name) if (name := _first_set(cfg)) else None
    config = shared_config(cfg).dump()
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "input_format": cfg.INPUT.FORMAT,
        "max_pixels": cfg.INPUT.MAX_IMAGE_PIXELS,
        "classes": list(getattr(known, "thing_classes", ["person"])),
        "training_sets": list(cfg.DATASETS.TRAIN),
        "weights_type": "float32",
        "weights_sha256": weights_sha256(graph.module),
        "source_sha256": source_sha256,
        "config": config,
        "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
        "versions": package_versions(),
        "parity": None,
        # Set by the calibration of similarities.
        "calibration": None,
    }


def shared_config(cfg: CfgNode) -> CfgNode:
    """A config for others: of absolute paths, which are of this machine, the last part alone."""

    def shared(value: Any) -> Any:
        if isinstance(value, dict):
            return type(value)({key: shared(inner) for key, inner in value.items()})
        if isinstance(value, (list, tuple)):
            changed = type(value)(shared(inner) for inner in value)
            # The same object where nothing changes: YAML refers to one that occurs twice.
            return value if changed == value else changed
        return os.path.basename(value) if isinstance(value, str) and os.path.isabs(value) else value

    found: CfgNode = shared(cfg)
    return found


def _search_keys(network: Any, graph: Graph, cfg: CfgNode) -> dict[str, Any]:
    return {
        "network": "person_search",
        **describe_search(network, cfg),
        "size_divisibility": graph.divisor,
    }


def _reid_keys(network: ReIDNetwork, cfg: CfgNode) -> dict[str, Any]:
    return {
        "network": "reid",
        "embedding_dim": network.classifier.in_features,
        "crop_size": [int(side) for side in cfg.REID_DATA.SIZE],
    }


def _first_set(cfg: CfgNode) -> str:
    registered = MetadataCatalog.list()
    return next((name for name in cfg.DATASETS.TRAIN if name in registered), "")


def with_metadata(content: bytes, manifest: dict[str, Any]) -> bytes:
    """An ONNX file with a copy of its manifest."""
    import onnx

    entry = onnx.StringStringEntryProto(key=METADATA_KEY, value=inner_manifest(manifest))
    # Protocol buffers that follow each other are merged: what was compared stays as it is.
    return content + onnx.ModelProto(metadata_props=[entry]).SerializeToString()


def write_files(
    path: Union[str, os.PathLike], content: bytes, manifest: dict[str, Any]
) -> dict[str, Any]:
    """Write a file and its manifest, both or none; returns the manifest."""
    manifest = {
        **manifest,
        "file_sha256": hashlib.sha256(content).hexdigest(),
        "file_bytes": len(content),
    }
    with atomic_write(path) as file:
        file.write(content)
        write_json(manifest_path(path), manifest, sealed=True)
    return manifest
