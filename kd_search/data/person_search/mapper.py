"""Mapper from dataset dicts to inputs of the model: Detectron2's mapper, with identities."""

import copy
import logging
from typing import Any, Optional, Union

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances

from kd_search.data.io.image import read_image
from kd_search.data.records import is_crowd

logger = logging.getLogger(__name__)


class PersonSearchDatasetMapper:
    """Reads the image of a dataset dict and transforms it and its boxes, with their identities.

    The result holds ``image`` ((3, H, W) uint8 in ``image_format`` order) and, as in the dict,
    ``file_name``, ``image_id``, ``height``, ``width`` (of the original image), ``camera_id``,
    ``frame_id``. All boxes are XYXY in pixels of the transformed image:

    - with instances: ``instances`` with ``gt_boxes``, ``gt_classes`` and ``gt_person_ids`` (int64,
      row of the ID table or -1). Crowd boxes and boxes without area in the image are dropped.
    - at test: ``query_boxes`` ((Q, 4) float32) and ``query_ids`` where the image holds queries;
      ``gallery_boxes`` ((G, 4) float32, all boxes but crowds) if ``with_gt_boxes``;
      the same as ``annotated_boxes`` if ``with_annotated_boxes``;
    - if ``with_original``: ``original_image`` ((3, H', W') uint8, before any transform) and
      ``to_original`` ((2, 3) float32), which maps (x, y, 1) of ``image`` to pixels of it;
      ``instances`` also have ``gt_original_boxes`` ((N, 4) float32, pixels of the original) and
      ``gt_annotations`` (int64, place among the dict's annotations).

    Args:
        is_train: training (with instances, without queries) or test.
        augmentations: Detectron2 augmentations or transforms, applied in order.
        image_format: "BGR" or "RGB".
        max_image_pixels: larger images are refused, see :func:`read_image`.
        with_gt_boxes: add ``gallery_boxes``, which replace detection; test only.
        with_annotated_boxes: add ``annotated_boxes``, which are embedded in addition; test only.
        with_instances: add ``instances``; ``None`` means only in training.
        with_original: add the original image, for a teacher on crops of it.

    Raises:
        ImageError: the image cannot be read; the message names the file.
        SizeMismatchError: the size of the image differs from that in its dict (a ValueError).
    """

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        augmentations: list[Union[T.Augmentation, T.Transform]],
        image_format: str = "BGR",
        max_image_pixels: int = 50_000_000,
        with_gt_boxes: bool = False,
        with_instances: Optional[bool] = None,
        with_original: bool = False,
        with_annotated_boxes: bool = False,
    ) -> None:
        if is_train and with_gt_boxes:
            raise ValueError("with_gt_boxes is for test; in training boxes are in 'instances'")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.max_image_pixels = max_image_pixels
        self.with_gt_boxes = with_gt_boxes
        self.with_instances = is_train if with_instances is None else with_instances
        self.with_original = with_original
        self.with_annotated_boxes = with_annotated_boxes and not is_train
        mode = "training" if is_train else "test"
        logger.info("Augmentations used in %s: %s", mode, augmentations)

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        is_train: bool = True,
        with_gt_boxes: bool = False,
        with_instances: Optional[bool] = None,
    ) -> dict[str, Any]:
        augmentations = utils.build_augmentation(cfg, is_train)
        if is_train and cfg.INPUT.CROP.ENABLED:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "max_image_pixels": cfg.INPUT.MAX_IMAGE_PIXELS,
            "with_gt_boxes": with_gt_boxes,
            "with_instances": with_instances,
            # For the rows of the table with annotated boxes; in one pass with detection.
            "with_annotated_boxes": cfg.TEST.PERSON_SEARCH.EMBED_GT_BOXES and not with_gt_boxes,
            # At test for a network that embeds crops of it; a teacher of crops only trains.
            "with_original": cfg.INPUT.WITH_ORIGINAL_IMAGE
            and is_train != (cfg.MODEL.META_ARCHITECTURE == "TwoStepSearch"),
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        sample = copy.copy(dataset_dict)
        annotations = sample.pop("annotations", [])
        queries = sample.pop("queries", [])
        image = read_image(sample["file_name"], self.image_format, self.max_image_pixels)
        utils.check_image_size(sample, image)

        if self.with_original:
            sample["original_image"] = _as_tensor(image)
        aug_input = T.AugInput(image)
        transforms = self.augmentations(aug_input)
        image = aug_input.image
        size = image.shape[:2]
        sample["image"] = _as_tensor(image)
        if self.with_original:
            sample["to_original"] = _inverse_affine(transforms)

        places = [i for i, entry in enumerate(annotations) if not is_crowd(entry)]
        annotations = [annotations[i] for i in places]
        if self.with_instances:
            sample["instances"] = _instances(
                annotations, transforms, size, places if self.with_original else None
            )
        if not self.is_train:
            if queries:
                sample["query_boxes"] = _boxes(queries, transforms, size)
                sample["query_ids"] = [int(query["query_id"]) for query in queries]
            if self.with_gt_boxes:
                sample["gallery_boxes"] = _boxes(annotations, transforms, size)
            if self.with_annotated_boxes:
                sample["annotated_boxes"] = _boxes(annotations, transforms, size)
        return sample


def _as_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _inverse_affine(transforms: T.TransformList) -> torch.Tensor:
    """(2, 3) float32 map of (x, y, 1) in the transformed image to pixels of the original.

    Flips, crops and scales are affine: three points determine them.
    """
    origin, x_axis, y_axis = transforms.apply_coords(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    forward = np.column_stack([x_axis - origin, y_axis - origin, origin])
    inverse = np.linalg.inv(np.vstack([forward, [0.0, 0.0, 1.0]]))[:2]
    return torch.as_tensor(inverse, dtype=torch.float32)


def _instances(
    annotations: list[dict[str, Any]],
    transforms: Any,
    size: Any,
    places: Optional[list[int]] = None,
) -> Instances:
    instances = Instances(size)
    instances.gt_boxes = Boxes(_boxes(annotations, transforms, size))
    instances.gt_classes = _column(annotations, "category_id")
    instances.gt_person_ids = _column(annotations, "person_id")
    if places is not None:
        instances.gt_original_boxes = torch.as_tensor(absolute_boxes(annotations)).float()
        instances.gt_annotations = torch.tensor(places, dtype=torch.int64)
    return utils.filter_empty_instances(instances)


def _boxes(entries: list[dict[str, Any]], transforms: Any, size: Any) -> torch.Tensor:
    """(N, 4) float32 boxes of the entries, transformed and clipped to the transformed image."""
    if not entries:
        return torch.zeros(0, 4)
    height, width = size
    boxes = transforms.apply_box(absolute_boxes(entries)).clip(min=0)
    return torch.as_tensor(np.minimum(boxes, [width, height, width, height]), dtype=torch.float32)


def absolute_boxes(entries: list[dict[str, Any]]) -> np.ndarray:
    """(N, 4) float64 boxes of annotations or queries, pixels of the original image, XYXY."""
    boxes = [
        BoxMode.convert(e["bbox"], e.get("bbox_mode", BoxMode.XYXY_ABS), BoxMode.XYXY_ABS)
        for e in entries
    ]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _column(annotations: list[dict[str, Any]], key: str) -> torch.Tensor:
    return torch.tensor([int(entry[key]) for entry in annotations], dtype=torch.int64)
