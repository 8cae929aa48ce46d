"""Inputs of the metrics: flat arrays over all images.

Images are numbered 0, 1, 2, ... by the caller, in the same way in all inputs. Boxes are absolute
pixels of the original image, XYXY with real-valued edges (width = x1 - x0).
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Optional, Union

import numpy as np

AnyPath = Union[str, "os.PathLike[str]"]
Shape = tuple[Optional[int], ...]  # None stands for any length
# Tolerance of the length of unit embeddings; half precision stays inside it.
UNIT_LENGTH_TOLERANCE = 1e-2


@dataclass
class Detections:
    """N detections of all gallery images, in any order; equal similarities keep this order.

    Raises ValueError, naming the array, where a shape or type is wrong or a number not finite.
    """

    boxes: np.ndarray  # (N, 4)
    scores: np.ndarray  # (N,) confidence
    image_index: np.ndarray  # (N,) int
    embeddings: Optional[np.ndarray] = None  # (N, D), unit length; not needed to rate detection

    def __post_init__(self) -> None:
        self.boxes = check_floats("boxes", self.boxes, (None, 4))
        self.scores = check_floats("scores", self.scores, (len(self.boxes),))
        self.image_index = _check_image_index(self.image_index, len(self.boxes))
        if self.embeddings is not None:
            self.embeddings = check_unit_rows("embeddings", self.embeddings, len(self.boxes))

    def __len__(self) -> int:
        return len(self.boxes)

    def select(self, rows: np.ndarray) -> "Detections":
        """Return the detections of these rows (mask or indices), in that order."""
        embeddings = None if self.embeddings is None else self.embeddings[rows]
        return Detections(self.boxes[rows], self.scores[rows], self.image_index[rows], embeddings)


@dataclass
class GroundTruth:
    """M annotated boxes of all gallery images, unlabelled people included."""

    boxes: np.ndarray  # (M, 4)
    person_ids: np.ndarray  # (M,) int, negative where the person is not labelled
    image_index: np.ndarray  # (M,) int

    def __post_init__(self) -> None:
        self.boxes = check_floats("boxes", self.boxes, (None, 4))
        self.person_ids = check_integers("person_ids", self.person_ids, (len(self.boxes),))
        self.image_index = _check_image_index(self.image_index, len(self.boxes))

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass
class Queries:
    """Q people to search for."""

    embeddings: np.ndarray  # (Q, D), unit length
    person_ids: np.ndarray  # (Q,) int; a negative id is in no gallery image
    image_index: np.ndarray  # (Q,) int, the query's own image; -1: none

    def __post_init__(self) -> None:
        self.embeddings = check_unit_rows("query embeddings", self.embeddings, None)
        count = (len(self.embeddings),)
        self.person_ids = check_integers("query person_ids", self.person_ids, count)
        self.image_index = check_integers("query image_index", self.image_index, count)

    def __len__(self) -> int:
        return len(self.embeddings)


@dataclass
class Contexts:
    """For each of Q queries, the embeddings of the people around it, without the query's own."""

    offsets: np.ndarray  # (Q + 1,) int64
    embeddings: np.ndarray  # (C, D), unit length


def check_floats(name: str, values: Any, shape: Shape) -> np.ndarray:
    """Return an array if it is real-valued, finite and of this shape."""
    array = _check_shape(name, values, shape)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} has type {array.dtype}; expected real numbers")
    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        raise ValueError(f"{name} has {bad} of {array.size} numbers that are not finite")
    return array


def check_integers(name: str, values: Any, shape: Shape) -> np.ndarray:
    """Return an array as int64 if it holds integers in this shape."""
    array = np.asarray(values)
    # numpy makes a float array of an empty list.
    if array.dtype.kind not in "iu" and array.size:
        raise ValueError(f"{name} has type {array.dtype}; expected integers")
    return _check_shape(name, array, shape).astype(np.int64, copy=False)


def check_unit_rows(name: str, values: Any, count: Optional[int]) -> np.ndarray:
    """Return an array (count, D) if each row has unit length or is zero.

    The metric takes the dot product as the cosine. A zero row (similarity 0 to everything) is what
    L2 normalisation makes of a zero vector.
    """
    array = check_floats(name, values, (count, None))
    length = np.sqrt(np.einsum("nd,nd->n", array, array, dtype=np.float64))
    bad = int(((np.abs(length - 1) > UNIT_LENGTH_TOLERANCE) & (length != 0)).sum())
    if bad:
        raise ValueError(
            f"{name} has {bad} of {len(array)} rows that are not of unit length; L2-normalise them"
        )
    return array


def check_offsets(name: str, values: Any, count: int, shape: Shape = (None,)) -> np.ndarray:
    """Return offsets as int64 if they ascend from 0 to ``count``."""
    offsets = check_integers(name, values, shape)
    ends = offsets[[0, -1]].tolist() if len(offsets) else None
    if ends != [0, count] or (np.diff(offsets) < 0).any():
        raise ValueError(f"{name} must ascend from 0 to {count}")
    return offsets


def check_top_k(top_k: Iterable[int]) -> list[int]:
    """Return ranks ascending, each once; raise ValueError unless there are some, from 1 on."""
    ranks = sorted({int(k) for k in top_k})
    if not ranks or ranks[0] < 1:
        raise ValueError(f"top_k must hold ranks from 1 on, not {ranks}")
    return ranks


def _check_image_index(values: Any, count: int) -> np.ndarray:
    array = check_integers("image_index", values, (count,))
    if count and array.min() < 0:
        raise ValueError(f"image_index has a negative entry, {array.min()}")
    return array


def _check_shape(name: str, values: Any, shape: Shape) -> np.ndarray:
    array = np.asarray(values)
    fits = array.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(array.shape, shape)
    )
    if not fits:
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"{name} has shape {array.shape}; expected ({wanted})")
    return array
