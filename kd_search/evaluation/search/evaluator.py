"""Detectron2's evaluator interface to the person-search protocol."""

import itertools
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Optional

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from kd_search.evaluation.search.evaluate import (
    RESULTS_FILE,
    evaluate_detection_set,
    write_evaluation,
)
from kd_search.evaluation.search.predictions import (
    DETECTIONS_FILE,
    ImageDetections,
    collect,
    save_detections,
)
from kd_search.evaluation.search.protocol import Protocol, TableOptions
from kd_search.evaluation.search.sample import GallerySample
from kd_search.evaluation.search.test_set import flatten_annotations


class PersonSearchEvaluator(DatasetEvaluator):
    """Search mAP and top-k, detection AP and recall of a registered test set.

    ``process`` takes the dicts of the test loader (``image_id``, and ``query_ids`` where the image
    holds queries) and the model's outputs: ``instances`` with ``pred_boxes`` (original image,
    absolute pixels, XYXY), ``scores`` and unit ``pred_embeddings``, and ``query_embeddings`` in
    the order of ``query_ids``. Annotated boxes that were embedded too are in ``gt_instances``, with
    ``pred_boxes`` and ``pred_embeddings``. ``evaluate`` returns ``results`` of
    :func:`evaluate_detection_set` on the main process, {} on the others. Images may be distributed
    over the ranks in any way; an image on several ranks counts once.

    Files in ``output_dir``: ``person_search_results.json`` (protocol, metrics and the ranking of
    each query, see :func:`results_document` and :func:`rank_lists`), with ``table``
    ``person_search_table.csv`` and ``.json`` (every protocol, see :mod:`.protocol_table`), and with
    ``save_features`` ``person_search_detections.npz`` (see :mod:`.predictions`).
    """

    @configurable
    def __init__(
        self,
        *,
        dataset_name: str,
        output_dir: Optional[str] = None,
        score_thresh: float = 0.5,
        det_score_thresh: float = 0.5,
        iou_thresh: float = 0.5,
        top_k: Sequence[int] = (1, 5, 10),
        use_gt_boxes: bool = False,
        save_features: bool = True,
        gallery: str = "auto",
        similarity: str = "cosine",
        table: Optional[TableOptions] = None,
        sample: Optional[GallerySample] = None,
        distributed: bool = True,
    ):
        """
        Args:
            dataset_name: registered test set.
            output_dir: folder for the results, created if absent; None writes nothing.
            score_thresh, det_score_thresh, iou_thresh, top_k, gallery, similarity: see
                :class:`Protocol`.
            use_gt_boxes: the loader passes the annotated boxes to the model (``gallery_boxes``);
                detection is not rated then.
            save_features: also write the detections and embeddings.
            table: which protocols to put into a table; None makes none.
            sample: the results are those of this list, and "whole_gallery" has those of the
                protocol without it.
            distributed: gather from all ranks; False evaluates the images of this process.
        """
        self._dataset_name = dataset_name
        self._output_dir = output_dir
        self._protocol = Protocol(
            score_thresh,
            det_score_thresh,
            iou_thresh,
            top_k,
            use_gt_boxes,
            gallery,
            similarity=similarity,
        )
        self._table = table
        self._sample = sample
        self._save_features = save_features
        self._distributed = distributed
        self._images: list[ImageDetections] = []

    @classmethod
    def from_config(
        cls, cfg: CfgNode, dataset_name: str, output_dir: Optional[str] = None
    ) -> dict[str, Any]:
        node = cfg.TEST.PERSON_SEARCH
        table = None
        if node.TABLE:
            table = TableOptions(
                gallery_sizes=node.GALLERY_SIZES,
                cameras=node.CAMERAS,
                modes=node.MODES,
                cbgm=node.CBGM,
                cbgm_k1=node.CBGM_K1,
                cbgm_k2=node.CBGM_K2,
                bootstrap=node.BOOTSTRAP,
            )
        sample = None
        if node.SAMPLE_QUERIES:
            sample = GallerySample(node.SAMPLE_QUERIES, node.SAMPLE_PICTURES)
        return {
            "dataset_name": dataset_name,
            "output_dir": output_dir,
            "score_thresh": node.SCORE_THRESH,
            "det_score_thresh": node.DET_SCORE_THRESH,
            "iou_thresh": node.IOU_THRESH,
            "top_k": node.TOP_K,
            "use_gt_boxes": node.USE_GT_BOXES,
            "save_features": node.SAVE_FEATURES,
            "gallery": node.GALLERY,
            "similarity": node.SIMILARITY,
            "table": table,
            "sample": sample,
        }

    @property
    def protocol(self) -> Protocol:
        """What the headline numbers depend on besides the model."""
        return self._protocol

    @property
    def sample(self) -> Optional[GallerySample]:
        """The list that the results are of, if not that of the protocol."""
        return self._sample

    def reset(self) -> None:
        self._images = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep the outputs of a batch; see the class for their content."""
        for image, output in zip(inputs, outputs):
            # Numbers on annotated boxes and on detected boxes are not comparable.
            if self._protocol.use_gt_boxes != ("gallery_boxes" in image):
                have = "with" if "gallery_boxes" in image else "without"
                raise ValueError(
                    f"image {image['image_id']!r} comes {have} gallery_boxes, but use_gt_boxes is "
                    f"{self._protocol.use_gt_boxes}: the loader and the evaluator must agree"
                )
            instances = output["instances"]
            query_ids = [int(i) for i in image.get("query_ids", ())]
            query_embeddings = np.zeros((0, 0), np.float32)
            if query_ids and "query_embeddings" in output:
                query_embeddings = _to_array(output["query_embeddings"])
            if len(query_embeddings) != len(query_ids):
                raise ValueError(
                    f"image {image['image_id']!r} has {len(query_ids)} queries, but the model "
                    f"returned {len(query_embeddings)} query embeddings"
                )
            given = output.get("gt_instances")
            self._images.append(
                ImageDetections(
                    image_id=image["image_id"],
                    boxes=_to_array(instances.pred_boxes.tensor),
                    scores=_to_array(instances.scores),
                    embeddings=_to_array(instances.pred_embeddings),
                    query_ids=query_ids,
                    query_embeddings=query_embeddings,
                    gt_boxes=None if given is None else _to_array(given.pred_boxes.tensor),
                    gt_embeddings=None if given is None else _to_array(given.pred_embeddings),
                )
            )

    def evaluate(self) -> "dict[str, dict[str, float]]":
        images = self._images
        if self._distributed:
            comm.synchronize()
            images = list(itertools.chain(*comm.gather(images, dst=0)))
            if not comm.is_main_process():
                return {}
        try:
            return self._evaluate(images)
        except ValueError as error:
            raise ValueError(f"evaluation of {self._dataset_name!r}: {error}") from error

    def _evaluate(self, images: list[ImageDetections]) -> "OrderedDict[str, dict[str, float]]":
        logger = logging.getLogger(__name__)
        detections = collect(images)
        if self._output_dir:
            os.makedirs(self._output_dir, exist_ok=True)
            if self._save_features:
                save_detections(
                    os.path.join(self._output_dir, DETECTIONS_FILE),
                    detections,
                    dataset=self._dataset_name,
                    use_gt_boxes=self._protocol.use_gt_boxes,
                )
        dataset_dicts = DatasetCatalog.get(self._dataset_name)
        # The metadata are complete only after the set was read.
        lists = MetadataCatalog.get(self._dataset_name).get("search_galleries")
        protocol, sample = self._protocol, self._sample
        if sample is not None:
            whole = evaluate_detection_set(
                detections, dataset_dicts, protocol, search_galleries=lists
            )
            lists = sample.lists(flatten_annotations(dataset_dicts))
            protocol = replace(protocol, gallery=sample.name)
        evaluation = evaluate_detection_set(
            detections, dataset_dicts, protocol, search_galleries=lists, table=self._table
        )
        if sample is not None:
            evaluation.results["whole_gallery"] = whole.results["person_search"]
        if evaluation.table is not None:
            logger.info("protocols of %s:\n%s", self._dataset_name, evaluation.table)
        if self._output_dir:
            write_evaluation(self._output_dir, self._dataset_name, evaluation)
            path = os.path.join(self._output_dir, RESULTS_FILE)
            logger.info("per-query results are in %s", path)
        return evaluation.results


def _to_array(tensor: torch.Tensor) -> np.ndarray:
    # A copy: the tensor may be a view that keeps the whole batch alive.
    array: np.ndarray = tensor.detach().to("cpu", torch.float32).numpy().copy()
    return array
