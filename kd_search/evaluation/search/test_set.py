"""A test set and the detections in it as flat arrays, matched by id."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from kd_search.evaluation.flat_arrays import Contexts, Detections, GroundTruth, Queries
from kd_search.evaluation.matching import iou_of_pairs
from kd_search.evaluation.search.galleries import (
    WHOLE,
    Gallery,
    GalleryProtocol,
    galleries_from_metadata,
)
from kd_search.evaluation.search.predictions import DetectionSet, ImageId
from kd_search.evaluation.search.ranking import RankingResult, RankingSettings, rank_gallery

DatasetDicts = Sequence[Mapping[str, Any]]
# Values of detectron2.structures.BoxMode: this module must not import Detectron2.
_XYXY_ABS, _XYWH_ABS = 0, 1
#: IoU above which non-maximum suppression drops a detection of a query's image, where SeqNet joins
#: the query's box and the detections (the authors' code).
CONTEXT_NMS_IOU = 0.5
# Pixels by which a query's box may differ from its annotated box: files round.
_SAME_BOX = 1.0


@dataclass
class Annotations:
    """Ground truth and queries of a test set; images are numbered as the dataset dicts are."""

    image_ids: list[ImageId]
    in_gallery: np.ndarray  # (G,) bool; an image outside of the gallery only holds queries
    ground_truth: GroundTruth  # of the gallery images, crowd boxes left out
    query_ids: np.ndarray  # (Q,) int
    query_boxes: np.ndarray  # (Q, 4), absolute pixels, XYXY
    query_person_ids: np.ndarray  # (Q,) int
    query_image_index: np.ndarray  # (Q,) int
    image_cameras: np.ndarray  # (G,) int, -1 where unknown


def flatten_annotations(dataset_dicts: DatasetDicts) -> Annotations:
    """Convert Detectron2 dataset dicts with ``person_id`` and ``queries`` to flat arrays.

    Raises:
        ValueError: an image id or a query id is repeated, or a box has another mode than XYXY_ABS
            or XYWH_ABS; the message names the image.
    """
    image_ids = [image["image_id"] for image in dataset_dicts]
    _check_unique("image_id", image_ids)
    queries = [(i, q) for i, image in enumerate(dataset_dicts) for q in image.get("queries", ())]
    query_ids = [query["query_id"] for _, query in queries]
    _check_unique("query_id", query_ids)
    in_gallery = [image.get("in_gallery", True) for image in dataset_dicts]
    people = [
        (i, annotation)
        for i, image in enumerate(dataset_dicts)
        if in_gallery[i]
        for annotation in image.get("annotations", ())
        if not annotation.get("iscrowd", 0)
    ]
    boxes = [_xyxy(annotation, image_ids[i]) for i, annotation in people]
    cameras = [image.get("camera_id") for image in dataset_dicts]
    return Annotations(
        image_ids=image_ids,
        in_gallery=np.array(in_gallery, bool),
        ground_truth=GroundTruth(
            boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
            person_ids=np.array([a.get("person_id", -1) for _, a in people], dtype=np.int64),
            image_index=np.array([i for i, _ in people], dtype=np.int64),
        ),
        query_ids=np.array(query_ids, dtype=np.int64),
        query_boxes=np.array([q["bbox"] for _, q in queries], dtype=np.float64).reshape(-1, 4),
        query_person_ids=np.array([q["person_id"] for _, q in queries], dtype=np.int64),
        query_image_index=np.array([i for i, _ in queries], dtype=np.int64),
        image_cameras=np.array([-1 if c is None else int(c) for c in cameras], dtype=np.int64),
    )


class PreparedSet:
    """A test set and the detections in it, in the order of the test set.

    Args:
        search_galleries: the lists of the set's protocol.
        names: the lists to read.

    Raises:
        ValueError: an image or query of the dataset is not in the detection set, or vice versa; the
            message has their number.
    """

    def __init__(
        self,
        detection_set: DetectionSet,
        dataset_dicts: DatasetDicts,
        search_galleries: Mapping[str, Any],
        names: Collection[str],
    ):
        self.annotations = flatten_annotations(dataset_dicts)
        self._position = _match_ids("image", detection_set.image_ids, self.annotations.image_ids)
        row = _match_ids(
            "query", detection_set.query_ids.tolist(), self.annotations.query_ids.tolist()
        )
        self.queries = Queries(
            embeddings=detection_set.query_embeddings[row],
            person_ids=self.annotations.query_person_ids,
            image_index=self.annotations.query_image_index,
        )
        self.galleries = galleries_from_metadata(
            search_galleries,
            self.annotations.query_ids,
            len(self.annotations.image_ids),
            [name for name in search_galleries if name in names],
        )

    def gallery(self, name: str) -> Gallery:
        """Return the gallery of this name."""
        if name == WHOLE:
            return Gallery()
        return next(gallery for gallery in self.galleries if gallery.name == name)

    def flatten(self, detections: DetectionSet, *, gallery_only: bool = False) -> Detections:
        """Sort detections by the images of the test set, so that ties do not depend on ranks."""
        image_index = np.argsort(self._position)[detections.image_index]
        order = np.argsort(image_index, kind="stable")
        if gallery_only or not self.galleries:
            # Only lists name other images.
            order = order[self.annotations.in_gallery[image_index[order]]]
        return Detections(
            boxes=detections.boxes[order],
            scores=detections.scores[order],
            image_index=image_index[order],
            embeddings=detections.embeddings[order],
        )

    def rank(
        self,
        detections: DetectionSet,
        protocols: Sequence[GalleryProtocol],
        settings: RankingSettings,
        *,
        searchable: Optional[np.ndarray] = None,
        contexts: Optional[Contexts] = None,
    ) -> list[RankingResult]:
        """Rank the gallery for all queries; ``searchable`` (G,) bool restricts the images."""
        return rank_gallery(
            self.flatten(detections),
            self.annotations.ground_truth,
            self.queries,
            protocols,
            settings,
            image_cameras=self.annotations.image_cameras,
            searchable=self.annotations.in_gallery if searchable is None else searchable,
            contexts=contexts,
        )

    def contexts(
        self, detections: DetectionSet, k2: int, score_thresh: float, *, given_boxes: bool
    ) -> Contexts:
        """Choose the contexts of the queries for re-ranking."""
        where = self.annotations.query_boxes, self._position[self.queries.image_index]
        if given_boxes:
            return contexts_of_given_boxes(detections, *where, self.annotations.query_ids, k2=k2)
        return contexts_of_detections(detections, *where, k2=k2, score_thresh=score_thresh)


def contexts_of_detections(
    detections: DetectionSet,
    query_boxes: np.ndarray,
    query_images: np.ndarray,
    *,
    k2: int,
    score_thresh: float,
) -> Contexts:
    """Choose the highest-scoring detections around each query.

    SeqNet joins the query's box (score 1) and the detections of its image by non-maximum
    suppression: the query comes first and suppresses what overlaps it. Boxes that the detector's
    own suppression dropped before are not restored.

    Args:
        detections: of the query images.
        query_boxes: (Q, 4) XYXY, absolute pixels.
        query_images: (Q,) position of the query's image in ``detections.image_ids``.
        k2: size of the context, the query included.
        score_thresh: detections with a lower score are no context.
    """
    rows = []
    for box, image in zip(query_boxes, query_images):
        start, stop = detections.offsets[image], detections.offsets[image + 1]
        candidates = np.arange(start, stop)[detections.scores[start:stop] >= score_thresh]
        candidates = candidates[np.argsort(-detections.scores[candidates], kind="stable")]
        chosen: list[int] = []
        while len(chosen) < k2 - 1:
            # The box that was kept last suppresses what overlaps it.
            overlap = iou_of_pairs(
                np.broadcast_to(box, (len(candidates), 4)), detections.boxes[candidates]
            )
            candidates = candidates[overlap <= CONTEXT_NMS_IOU]
            if not len(candidates):
                break
            chosen.append(candidates[0])
            box, candidates = detections.boxes[candidates[0]], candidates[1:]
        rows.append(np.array(chosen, np.int64))
    return _gather(rows, detections.embeddings)


def contexts_of_given_boxes(
    detections: DetectionSet,
    query_boxes: np.ndarray,
    query_images: np.ndarray,
    query_ids: np.ndarray,
    *,
    k2: int,
) -> Contexts:
    """Take the first annotated people around each query, where the boxes are annotated ones.

    Raises:
        ValueError: a query's box is not among the boxes of its image, so that it would count as its
            own neighbour; the message names the query.
    """
    rows = []
    for box, image, query in zip(query_boxes, query_images, query_ids):
        candidates = np.arange(detections.offsets[image], detections.offsets[image + 1])
        difference = np.abs(detections.boxes[candidates] - box).max(axis=1, initial=0)
        own = int(difference.argmin()) if len(candidates) else -1
        if own < 0 or difference[own] > _SAME_BOX:
            raise ValueError(
                f"query {query}: its box {np.round(box, 2).tolist()} is not among the "
                f"{len(candidates)} given boxes of image {detections.image_ids[image]!r}; "
                "context matching (CBGM) needs the query's own box there"
            )
        rows.append(np.delete(candidates, own)[: max(0, k2 - 1)])
    return _gather(rows, detections.embeddings)


def _gather(rows: Sequence[np.ndarray], embeddings: np.ndarray) -> Contexts:
    offsets = np.cumsum([0, *map(len, rows)])
    return Contexts(offsets, embeddings[np.concatenate([np.zeros(0, np.int64), *rows])])


def _match_ids(what: str, have: Sequence[ImageId], want: Sequence[ImageId]) -> np.ndarray:
    """Position in ``have`` of every entry of ``want``; both hold each id once."""
    position = {value: index for index, value in enumerate(have)}
    missing = [value for value in want if value not in position]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(want)} {what} ids of the dataset have no detections "
            f"(the first is {missing[0]!r}); was the whole test set run?"
        )
    if len(have) != len(want):
        unknown = sorted(set(have) - set(want), key=str)
        raise ValueError(
            f"{len(unknown)} {what} ids of the detections are not in the dataset "
            f"(the first is {unknown[0]!r}); is it another test set?"
        )
    return np.array([position[value] for value in want], dtype=np.int64)


def _xyxy(annotation: Mapping[str, Any], image_id: ImageId) -> list[float]:
    mode = annotation.get("bbox_mode", _XYXY_ABS)
    x, y, right, bottom = annotation["bbox"]
    if mode == _XYXY_ABS:
        return [x, y, right, bottom]
    if mode == _XYWH_ABS:
        return [x, y, x + right, y + bottom]
    raise ValueError(f"image {image_id!r}: bbox_mode {mode!r}; expected XYXY_ABS or XYWH_ABS")


def _check_unique(name: str, ids: Sequence[ImageId]) -> None:
    if len(set(ids)) != len(ids):
        repeated = next(i for place, i in enumerate(ids) if i in ids[:place])
        raise ValueError(f"the dataset has {name} {repeated!r} more than once")
