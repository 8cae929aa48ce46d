"""Detectron2's evaluator interface to the re-ID protocol."""

import itertools
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Optional

from detectron2.config import configurable
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from kd_search.evaluation.reid.arrays import JunkRule
from kd_search.evaluation.reid.embeddings import save_reid_embeddings
from kd_search.evaluation.reid.entries import (
    Entry,
    entries_of,
    put_together,
)
from kd_search.evaluation.reid.protocol import (
    ReIDProtocol,
    evaluate_reid_embeddings,
    reid_document,
)
from kd_search.utils.files import write_json

#: Names of the files that an evaluation leaves in its output folder.
RESULTS_FILE = "reid_results.json"
EMBEDDINGS_FILE = "reid_embeddings.npz"


class ReIDEvaluator(DatasetEvaluator):
    """mAP and CMC of a registered set of crops or tracklets.

    ``process`` takes the dicts of the test loader and the network's outputs, see
    :func:`entries_of`: ``sample_id``, ``person_id`` (-1: a distractor), ``camera_id`` (-1 unknown),
    ``role``, ``views`` and, where they are known, ``frame_id`` and ``file_names`` of the first,
    ``embedding`` (D,) of the second. ``evaluate`` returns on the main process what
    :func:`evaluate_reid_embeddings` finds, and {} on the others. The ranks may share the samples
    in any way.

    The metadata of the set say which entries of a query's own identity are left out: ``junk_rule``
    ("camera", "frames" or "none"; :class:`JunkRule`) with ``junk_frames``; and with
    ``append_queries`` the queries are in the gallery, too.

    In ``output_dir`` it leaves ``reid_results.json`` (protocol, metrics, and AP and best matches of
    each query, see :func:`rank_entries`) and with ``save_embeddings`` ``reid_embeddings.npz`` (see
    :mod:`.reid_embeddings`).
    """

    @configurable
    def __init__(
        self,
        *,
        dataset_name: str,
        output_dir: Optional[str] = None,
        settings: Sequence[str] = ("video-to-video",),
        metric: str = "cosine",
        ap_rule: str = "market",
        top_k: Sequence[int] = (1, 5, 10),
        save_embeddings: bool = True,
        distributed: bool = True,
    ):
        """
        Args:
            dataset_name: registered test set.
            output_dir: folder for the results, made if absent; None writes nothing.
            settings: what is searched for, and among what; the first gives the headline numbers.
            metric: "cosine" or "euclidean".
            ap_rule: "market" or "exact", see :func:`evaluate_reid`.
            top_k: ranks of the reported accuracies.
            save_embeddings: also write the embeddings.
            distributed: gather from all ranks; False evaluates what this process saw.
        """
        self._dataset_name = dataset_name
        self._output_dir = output_dir
        self._protocol = ReIDProtocol(settings, metric, ap_rule, top_k=top_k)
        self._save_embeddings = save_embeddings
        self._distributed = distributed
        self._entries: list[Entry] = []

    @classmethod
    def from_config(cls, cfg, dataset_name: str, output_dir: Optional[str] = None) -> dict:
        node = cfg.TEST.REID
        return {
            "dataset_name": dataset_name,
            "output_dir": output_dir,
            "settings": cfg.REID_DATA.TEST.SETTINGS,
            "metric": node.METRIC,
            "ap_rule": node.AP_RULE,
            "top_k": node.TOP_K,
            "save_embeddings": node.SAVE_EMBEDDINGS,
        }

    def reset(self) -> None:
        self._entries = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Keep the outputs of a batch; see the class for what they hold."""
        for sample, output in zip(inputs, outputs):
            self._entries += entries_of(sample, output)

    def evaluate(self) -> dict:
        entries = self._entries
        if self._distributed:
            comm.synchronize()
            entries = list(itertools.chain(*comm.gather(entries, dst=0)))
            if not comm.is_main_process():
                return {}
        try:
            return self._evaluate(entries)
        except ValueError as error:
            raise ValueError(f"evaluation of {self._dataset_name!r}: {error}") from error

    def _evaluate(self, entries: list[Entry]) -> "OrderedDict[str, dict[str, float]]":
        samples = DatasetCatalog.get(self._dataset_name)
        # Only known once the set was read.
        metadata = MetadataCatalog.get(self._dataset_name)
        append_queries = bool(metadata.get("append_queries", False))
        embeddings = put_together(entries, samples, append_queries=append_queries)
        if self._output_dir:
            os.makedirs(self._output_dir, exist_ok=True)
            if self._save_embeddings:
                path = os.path.join(self._output_dir, EMBEDDINGS_FILE)
                save_reid_embeddings(path, embeddings, dataset=self._dataset_name)
        self._protocol.junk = JunkRule(
            metadata.get("junk_rule", "camera"), metadata.get("junk_frames", 0)
        )
        evaluation = evaluate_reid_embeddings(embeddings, self._protocol)
        if self._output_dir:
            path = os.path.join(self._output_dir, RESULTS_FILE)
            write_json(path, reid_document(self._dataset_name, evaluation))
            logging.getLogger(__name__).info("per-query results are in %s", path)
        return evaluation.results
