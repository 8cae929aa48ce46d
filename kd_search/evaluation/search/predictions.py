"""Detections and embeddings of a test set, and the file that keeps them.

With the file, evaluation can be repeated without the model. It is an ``.npz`` archive
(:mod:`..archives`) with these entries, for G images, N detections, Q queries, and embeddings of
length D:

==================  ===========  ==================================================================
entry               shape        meaning
==================  ===========  ==================================================================
image_ids           (G,)         int64, or unicode text where the data set's ids are text
offsets             (G + 1,)     int64; detections offsets[i]:offsets[i + 1] belong to image i
boxes               (N, 4)       float32; absolute pixels of the original image, XYXY
scores              (N,)         float32
embeddings          (N, D)       float32 (float16 is accepted too); unit length
query_ids           (Q,)         int64
query_embeddings    (Q, D)       as embeddings
gt_offsets          (G + 1,)     optional, version 2: as offsets, for the annotated boxes where they
                                 were embedded in the same pass
gt_boxes            (M, 4)       with gt_offsets: as boxes
gt_embeddings       (M, D)       with gt_offsets: as embeddings
metadata            (B,)         what the writer adds: "dataset", "use_gt_boxes"
==================  ===========  ==================================================================

A file without ``gt_*`` has version 1, which older readers accept.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

import numpy as np

from kd_search.evaluation.archives import load_archive, save_archive
from kd_search.evaluation.flat_arrays import (
    AnyPath,
    check_floats,
    check_integers,
    check_offsets,
    check_unit_rows,
)
from kd_search.utils.schema import Schema, check_schema

ImageId = Union[int, str]
#: Name of the file in the output folder of an evaluation.
DETECTIONS_FILE = "person_search_detections.npz"
FORMAT = "kd_search.detections"
VERSIONS = (1, 2)
_ARRAYS = (
    *("image_ids", "offsets", "boxes", "scores", "embeddings"),
    *("query_ids", "query_embeddings"),
)
_GT_ARRAYS = ("gt_offsets", "gt_boxes", "gt_embeddings")


@dataclass
class DetectionSet:
    """Detections of G images, image after image, and the embeddings of Q queries.

    Boxes are absolute pixels, XYXY, in the original image. Annotated boxes that were embedded in
    the same pass are a second set of rows, ``gt_*``, either all or none of them.
    Raises ValueError, naming the array, where a shape, type or value is wrong.
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

    def __post_init__(self) -> None:
        self.image_ids = list(self.image_ids)
        self._check_rows("")
        self.scores = check_floats("scores", self.scores, (len(self.boxes),))
        self.query_embeddings = check_unit_rows("query_embeddings", self.query_embeddings, None)
        self.query_ids = check_integers("query_ids", self.query_ids, (len(self.query_embeddings),))
        if len(set(self.image_ids)) != len(self.image_ids):
            raise ValueError("image_ids holds an id twice")
        if len(np.unique(self.query_ids)) != len(self.query_ids):
            raise ValueError("query_ids holds an id twice")
        missing = [name for name in _GT_ARRAYS if getattr(self, name) is None]
        if not missing:
            self._check_rows("gt_")
        elif len(missing) < len(_GT_ARRAYS):
            raise ValueError(f"{missing[0]} is missing, but other gt_* arrays are given")

    def _check_rows(self, prefix: str) -> None:
        boxes = check_floats(f"{prefix}boxes", getattr(self, f"{prefix}boxes"), (None, 4))
        setattr(self, f"{prefix}boxes", boxes)
        name, shape = f"{prefix}offsets", (len(self.image_ids) + 1,)
        setattr(self, name, check_offsets(name, getattr(self, name), len(boxes), shape))
        name = f"{prefix}embeddings"
        setattr(self, name, check_unit_rows(name, getattr(self, name), len(boxes)))

    @property
    def has_gt_boxes(self) -> bool:
        """Whether there are embeddings of the annotated boxes as well."""
        return self.gt_boxes is not None

    def on_gt_boxes(self) -> "DetectionSet":
        """Return the set with the annotated boxes, of score 1, in place of the detected ones."""
        if self.gt_offsets is None or self.gt_boxes is None or self.gt_embeddings is None:
            raise ValueError("gt_boxes were not embedded")
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
    """Detections in one image, and the embeddings of the queries in it, if any."""

    image_id: ImageId
    boxes: np.ndarray  # (n, 4) float32
    scores: np.ndarray  # (n,) float32
    embeddings: np.ndarray  # (n, D) float32
    query_ids: list[int]
    query_embeddings: np.ndarray  # (q, D) float32, in the order of query_ids
    gt_boxes: Optional[np.ndarray] = None  # (m, 4) float32, annotated boxes that were embedded too
    gt_embeddings: Optional[np.ndarray] = None  # (m, D) float32


def collect(images: Sequence[ImageDetections]) -> DetectionSet:
    """Merge images in the given order; repeated images are ignored.

    Samplers that pad the last batch of a rank return some images twice.
    """
    unique: dict[ImageId, ImageDetections] = {}
    for image in images:
        unique.setdefault(image.image_id, image)
    images = list(unique.values())
    gt_boxes = [image.gt_boxes for image in images if image.gt_boxes is not None]
    given = {}
    if images and len(gt_boxes) == len(images):
        given = {
            "gt_offsets": _offsets(gt_boxes),
            "gt_boxes": _stack(gt_boxes, 4),
            "gt_embeddings": _stack(i.gt_embeddings for i in images if i.gt_embeddings is not None),
        }
    boxes = [image.boxes for image in images]
    return DetectionSet(
        image_ids=[image.image_id for image in images],
        offsets=_offsets(boxes),
        boxes=_stack(boxes, 4),
        scores=np.concatenate([np.zeros(0, np.float32)] + [image.scores for image in images]),
        embeddings=_stack(image.embeddings for image in images),
        query_ids=np.array([i for image in images for i in image.query_ids], dtype=np.int64),
        query_embeddings=_stack(image.query_embeddings for image in images),
        **given,
    )


class _Metadata(Schema):
    dataset: Optional[str] = None
    use_gt_boxes: Optional[bool] = None


def save_detections(path: AnyPath, detections: DetectionSet, **metadata: Any) -> None:
    """Write a detection set; the file is replaced atomically.

    Args:
        path: of the file; its folder must exist.
        metadata: JSON values to keep beside the arrays, such as ``dataset``.
    """
    names = (*_ARRAYS, *_GT_ARRAYS) if detections.has_gt_boxes else _ARRAYS
    arrays = {name: getattr(detections, name) for name in names}
    ids = detections.image_ids
    arrays["image_ids"] = np.array(ids) if ids else np.zeros(0, np.int64)
    kinds = {type(image_id) for image_id in ids}
    # numpy makes a Python object, which it would pickle, of an integer beyond 64 bits.
    if not (kinds <= {int} or kinds <= {str}) or arrays["image_ids"].dtype.kind not in "iU":
        raise ValueError(f"{path}: image ids must be all 64-bit int or all str")
    version = VERSIONS[detections.has_gt_boxes]
    save_archive(path, arrays, format=FORMAT, version=version, **metadata)


def load_detections(path: AnyPath) -> tuple[DetectionSet, dict[str, Any]]:
    """Read a file of :func:`save_detections`. Nothing in it is executed.

    Returns:
        The detection set and the metadata.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is truncated, of another format, or an entry is missing or does not fit; the
            message names the file and the entry.
    """
    arrays, metadata = load_archive(path, "detections", (FORMAT, VERSIONS), _ARRAYS, _GT_ARRAYS)
    check_schema(metadata, _Metadata, f"{path}: metadata")
    image_ids = arrays.pop("image_ids")
    if image_ids.ndim != 1 or image_ids.dtype.kind not in "iU":
        raise ValueError(f"{path}: image_ids must be a vector of integers or of text")
    try:
        return DetectionSet(image_ids.tolist(), **arrays), metadata
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _offsets(arrays: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype(np.int64)


def _stack(arrays: Iterable[np.ndarray], columns: int = 0) -> np.ndarray:
    """Concatenate rows; arrays without rows may have any number of columns."""
    filled = [array for array in arrays if len(array)]
    return np.concatenate(filled) if filled else np.zeros((0, columns), np.float32)
