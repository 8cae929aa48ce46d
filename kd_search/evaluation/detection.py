"""Choice of Detectron2's evaluator for a detection set."""

import os
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.utils import comm

from kd_search.data.catalog import is_person_search


def build_detection_evaluator(dataset_name: str, output_dir: str) -> DatasetEvaluator:
    """Build the evaluator of box AP: VOC's for ``evaluator_type`` "pascal_voc", otherwise COCO's.

    Sets without COCO-JSON are converted to it each time, as images or labels may have changed; so
    are person search sets, whose JSON Detectron2 does not support, without identities.

    Args:
        dataset_name: registered test set, already loaded.
        output_dir: folder for predictions and the converted annotations.

    Raises:
        ValueError: the metadata of the set lack ``thing_classes``.
    """
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("evaluator_type") == "pascal_voc":
        return PascalVOCDetectionEvaluator(dataset_name)
    if metadata.get("json_file") is not None and not is_person_search(dataset_name):
        return _coco_evaluator(dataset_name, output_dir)
    if metadata.get("thing_classes") is None:
        raise ValueError(
            f"data set {dataset_name!r} has no class names: set thing_classes of its metadata"
        )
    json_file = os.path.join(output_dir, f"{dataset_name}_coco_format.json")
    if comm.is_main_process():
        convert_to_coco_json(dataset_name, json_file, allow_cached=False)
    comm.synchronize()
    # COCOEvaluator would keep the file's name in the metadata of the set, for evaluations with
    # another output folder too. A temporary alias leaves the metadata unchanged.
    alias = f"{dataset_name} as COCO-JSON"
    classes = MetadataCatalog.get(dataset_name).thing_classes
    MetadataCatalog.get(alias).set(json_file=json_file, thing_classes=list(classes))
    try:
        return _coco_evaluator(alias, output_dir)
    finally:
        MetadataCatalog.remove(alias)


def has_fast_coco_eval() -> bool:
    """Whether Detectron2's compiled operators are there, not the substitute of a Python build."""
    spec = find_spec("detectron2._C")
    return spec is not None and str(spec.origin).endswith(tuple(EXTENSION_SUFFIXES))


def _coco_evaluator(dataset_name: str, output_dir: str) -> COCOEvaluator:
    return COCOEvaluator(
        dataset_name, ("bbox",), True, output_dir, use_fast_impl=has_fast_coco_eval()
    )
