"""Networks whose convolutions compute with 8-bit integers, by static quantisation.

Everything else stays in single precision: boxes, scores and the selection of people are decided by
small differences, and region pooling is not a large part of the time.
"""

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances

from kd_search.data.person_search.mapper import absolute_boxes
from kd_search.evaluation.search.evaluator import PersonSearchEvaluator
from kd_search.export.gate import Result, overlap
from kd_search.export.parity import ExportParityError
from kd_search.runtime import PersonSearcher
from kd_search.runtime.pictures import network_input, read_picture

#: Least share of people that both networks find (overlap of 0.5), and least mean cosine of the
#: embeddings of given boxes. Rounding to 8 bits changes results far beyond the limits of a float
#: network, which therefore cannot tell it from an error. These limits find errors of the
#: quantisation as such; what rounding costs, the evaluation says.
LEAST_PEOPLE, LEAST_COSINE = 0.9, 0.95
_SAME_PERSON = 0.5


def quantised(content: bytes, manifest: dict[str, Any], pictures: Sequence[str]) -> bytes:
    """An ONNX file with convolutions in 8-bit integers.

    Weights have one scale by output channel; activations one by map, from the smallest to the
    largest value that occurs on the calibration pictures.

    Args:
        content: of the ONNX file of a person search network.
        manifest: of the network.
        pictures: files, of the kind that the network will see; not those of a test set.

    Raises:
        ImageError: a picture cannot be read.
    """
    import onnxruntime
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    options = onnxruntime.SessionOptions()
    # Merges normalisation into the convolutions, with standard operators alone.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        merged, made = Path(folder, "merged.onnx"), Path(folder, "int8.onnx")
        options.optimized_model_filepath = str(merged)
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                self._inputs = _inputs(session, manifest, pictures)

            def get_next(self) -> Any:
                return next(self._inputs, None)

        disabled = logging.root.manager.disable
        # It advises to merge operations, which is done, in the log of the whole program.
        logging.disable(logging.WARNING)
        try:
            quantize_static(
                merged,
                made,
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        finally:
            logging.disable(disabled)
        return _standard_domains_only(made.read_bytes())


def _standard_domains_only(content: bytes) -> bytes:
    """Without the declarations of domains that onnxruntime adds and no operator is of."""
    import onnx

    model = onnx.load_from_string(content)
    used = [entry for entry in model.opset_import if entry.domain == ""]
    del model.opset_import[:]
    model.opset_import.extend(used)
    return model.SerializeToString()


def _inputs(
    session: Any, manifest: dict[str, Any], pictures: Sequence[str]
) -> Iterator[dict[str, np.ndarray]]:
    """Inputs of the graph; people that are found are also given as boxes."""
    for picture in pictures:
        image, size = network_input(read_picture(picture, manifest["max_pixels"]), manifest)
        inputs = {"image": image, "size": np.array(size, np.int64)}
        none = np.zeros((0, 4), np.float32)
        boxes, valid = session.run(["boxes", "valid"], {**inputs, "query_boxes": none})
        yield {**inputs, "query_boxes": boxes[valid]}


def agreement(expected: Sequence[Result], found: Sequence[Result]) -> dict[str, float]:
    """Compare the results of a quantised network with those of the network, over all pictures.

    Returns:
        ``people``: how many the network finds; ``people_of_both``: share of the people of either
        that the other one finds too; ``mean_cosine`` and ``least_cosine`` of the embeddings of
        given boxes.

    Raises:
        ExportParityError: they differ more than rounding to 8 bits explains.
    """
    total = shared = 0
    cosines = [np.zeros(0)]
    for ours, theirs in zip(expected, found):
        overlaps = overlap(ours.boxes, theirs.boxes) >= _SAME_PERSON
        total += len(ours.scores) + len(theirs.scores)
        shared += int(overlaps.any(axis=1).sum()) + int(overlaps.any(axis=0).sum())
        cosines.append((ours.query_embeddings * theirs.query_embeddings).sum(axis=1))
    similar = np.concatenate(cosines).astype(np.float64)
    share = shared / total if total else 1.0
    mean = float(similar.mean()) if similar.size else 1.0
    # Not "<", which NaN would pass.
    if not (share >= LEAST_PEOPLE and mean >= LEAST_COSINE):
        raise ExportParityError(
            f"the int8 network differs from the network: {share:.3f} of the people are found by "
            f"both ({LEAST_PEOPLE} are required), the mean cosine of embeddings is {mean:.3f} "
            f"({LEAST_COSINE} is required)"
        )
    return {
        "people": sum(len(result.scores) for result in expected),
        "people_of_both": share,
        "mean_cosine": mean,
        "least_cosine": float(similar.min()) if similar.size else 1.0,
    }


def check_calibration_pictures(pictures: Sequence[str], cfg: CfgNode) -> str:
    """Name of the test set that both networks will be evaluated on.

    Raises:
        ValueError: there are no pictures, there is no test set, or some are pictures of it.
    """
    if not pictures:
        raise ValueError("--int8: there are no calibration pictures")
    if not cfg.DATASETS.TEST or cfg.DATASETS.TEST[0] not in DatasetCatalog.list():
        raise ValueError(
            f"--int8 evaluates both networks on DATASETS.TEST, and {list(cfg.DATASETS.TEST)} is "
            "no registered test set"
        )
    name: str = cfg.DATASETS.TEST[0]
    tested = {os.path.realpath(record["file_name"]) for record in DatasetCatalog.get(name)}
    for picture in pictures:
        if os.path.realpath(picture) in tested:
            raise ValueError(
                f"--calibration-pictures: {picture} is a picture of the test set {name}"
            )
    return name


def accuracy(path: Path, cfg: CfgNode, dataset: str) -> dict[str, float]:
    """``mAP`` and ``top1`` in percent of an exported person search network on a test set.

    Raises:
        ValueError: the set has no queries, or cannot be evaluated.
    """
    searcher = PersonSearcher.load(path, torch.get_num_threads())
    settings = PersonSearchEvaluator.from_config(cfg, dataset)
    settings |= {"table": None, "use_gt_boxes": False, "distributed": False}
    evaluator = PersonSearchEvaluator(**settings)
    for record in DatasetCatalog.get(dataset):
        people = searcher.detect(record["file_name"])
        instances = Instances((record["height"], record["width"]))
        instances.pred_boxes = Boxes(torch.from_numpy(people.boxes))
        instances.scores = torch.from_numpy(people.scores)
        instances.pred_embeddings = torch.from_numpy(people.embeddings)
        queries = record.get("queries", [])
        given = searcher.embed(record["file_name"], absolute_boxes(queries))
        evaluator.process(
            [{"image_id": record["image_id"], "query_ids": [q["query_id"] for q in queries]}],
            [{"instances": instances, "query_embeddings": torch.from_numpy(given)}],
        )
    found = evaluator.evaluate()["person_search"]
    return {key: float(found[key]) for key in ("mAP", "top1")}
