"""What a model found in a test set: the whole input of an evaluation besides the annotations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional, Union

import numpy as np

from kd_search.evaluation.flat_arrays import (
    check_floats,
    check_integers,
    check_unit_rows,
)

ImageId = Union[int, str]
GT_ARRAYS = ("gt_offsets", "gt_boxes", "gt_embeddings")


@dataclass
class DetectionSet:
    """Detections of G images, image after image, and the embeddings of Q queries.

    Boxes are absolute pixels, XYXY, in the original image. Where the annotated boxes were embedded
    in the same pass, they come as a second set of rows, ``gt_*``, of which all or none is there.
    Raises ValueError, naming the array, where something does not fit.
    """

    image_ids: list[ImageId]  # G, each once; all int or all str
    offsets: np.ndarray  # (G + 1,) int; rows offsets[i]:offsets[i + 1] belong to image i
    boxes: np.ndarray  # (N, 4) float32
    scores: np.ndarray  # (N,) float32
    embeddings: np.ndarray  # (N, D) float32, unit length
    query_ids: np.ndarray  # (Q,) int, each once
    query_embeddings: np.ndarray  # (Q, D) float32, unit length
    gt_offsets: Optional[np.ndarray] = None  # (G + 1,) int, as offsets
    gt_boxes: Optional[np.ndarray] = None  # (M, 4) float32
    gt_embeddings: Optional[np.ndarray] = None  # (M, D) float32, unit length

    def __post_init__(self):
        self.image_ids = list(self.image_ids)
        self.offsets, self.boxes, self.embeddings = self._check_rows("")
        self.scores = check_floats("scores", self.scores, (len(self.boxes),))
        self.query_embeddings = check_unit_rows("query_embeddings", self.query_embeddings, None)
        self.query_ids = check_integers("query_ids", self.query_ids, (len(self.query_embeddings),))
        if len(set(self.image_ids)) != len(self.image_ids):
            raise ValueError("image_ids holds an id twice")
        if len(np.unique(self.query_ids)) != len(self.query_ids):
            raise ValueError("query_ids holds an id twice")
        given = [getattr(self, name) is not None for name in GT_ARRAYS]
        if any(given) and not all(given):
            raise ValueError(
                f"{GT_ARRAYS[given.index(False)]} is missing, the other gt_* are there"
            )
        if all(given):
            self.gt_offsets, self.gt_boxes, self.gt_embeddings = self._check_rows("gt_")

    def _check_rows(self, prefix: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        boxes = check_floats(f"{prefix}boxes", getattr(self, f"{prefix}boxes"), (None, 4))
        count = len(boxes)
        name = f"{prefix}offsets"
        offsets = check_integers(name, getattr(self, name), (len(self.image_ids) + 1,))
        if offsets[0] != 0 or offsets[-1] != count or (np.diff(offsets) < 0).any():
            raise ValueError(f"{name} must ascend from 0 to {count}, the number of {prefix}boxes")
        name = f"{prefix}embeddings"
        return offsets, boxes, check_unit_rows(name, getattr(self, name), count)

    @property
    def has_gt_boxes(self) -> bool:
        """Whether the annotated boxes are there as well."""
        return self.gt_boxes is not None

    def on_gt_boxes(self) -> "DetectionSet":
        """The same set with the annotated boxes, of score 1, in place of the detected ones."""
        return DetectionSet(
            self.image_ids,
            self.gt_offsets,
            self.gt_boxes,
            np.ones(len(self.gt_boxes), np.float32),
            self.gt_embeddings,
            self.query_ids,
            self.query_embeddings,
        )

    @property
    def image_index(self) -> np.ndarray:
        """(N,) position in ``image_ids`` of the image of each detection."""
        return np.repeat(np.arange(len(self.image_ids)), np.diff(self.offsets))


@dataclass
class ImageDetections:
    """What a model found in one image, and the embeddings of the queries in it, if any."""

    image_id: ImageId
    boxes: np.ndarray  # (n, 4) float32
    scores: np.ndarray  # (n,) float32
    embeddings: np.ndarray  # (n, D) float32
    query_ids: list[int]
    query_embeddings: np.ndarray  # (q, D) float32, in the order of query_ids
    gt_boxes: Optional[np.ndarray] = None  # (m, 4) float32, annotated boxes that were embedded too
    gt_embeddings: Optional[np.ndarray] = None  # (m, D) float32


def collect(images: Sequence[ImageDetections]) -> DetectionSet:
    """Put images together, in the given order; an image that comes again is ignored.

    Samplers that pad the last batch of a rank hand out some images twice.
    """
    unique = {}
    for image in images:
        unique.setdefault(image.image_id, image)
    images = list(unique.values())
    given = {}
    if images and all(image.gt_boxes is not None for image in images):
        given = {
            "gt_offsets": _offsets([len(image.gt_boxes) for image in images]),
            "gt_boxes": _stack([image.gt_boxes for image in images], 4),
            "gt_embeddings": _stack([image.gt_embeddings for image in images]),
        }
    return DetectionSet(
        image_ids=[image.image_id for image in images],
        offsets=_offsets([len(image.boxes) for image in images]),
        boxes=_stack([image.boxes for image in images], 4),
        scores=np.concatenate([np.zeros(0, np.float32)] + [image.scores for image in images]),
        embeddings=_stack([image.embeddings for image in images]),
        query_ids=np.array([i for image in images for i in image.query_ids], dtype=np.int64),
        query_embeddings=_stack([image.query_embeddings for image in images]),
        **given,
    )


def _offsets(counts: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _stack(arrays: list[np.ndarray], columns: int = 0) -> np.ndarray:
    """Concatenate rows; an array without rows need not know its number of columns."""
    filled = [array for array in arrays if len(array)]
    return np.concatenate(filled) if filled else np.zeros((0, columns), np.float32)
