"""Detectron2's evaluator interface to the re-ID protocol."""

import itertools
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Optional

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from kd_search.evaluation.reid.embeddings import Entry, merge_entries, save_reid_embeddings
from kd_search.evaluation.reid.metric import JunkRule
from kd_search.evaluation.reid.protocol import ReIDProtocol, evaluate_reid_embeddings, reid_document
from kd_search.utils.files import write_json

#: Names of the files in the output folder of an evaluation.
RESULTS_FILE = "reid_results.json"
EMBEDDINGS_FILE = "reid_embeddings.npz"


class ReIDEvaluator(DatasetEvaluator):
    """mAP and CMC of a registered set of crops or tracklets.

    ``process`` takes the dicts of the test loader and the network's outputs, see
    :func:`entries_of`: ``sample_id``, ``person_id`` (-1: a distractor), ``camera_id`` (-1 unknown),
    ``role``, ``views`` and, if known, ``frame_id`` and ``file_names`` of the first, ``embedding``
    (D,) of the second. ``evaluate`` returns ``results`` of :func:`evaluate_reid_embeddings` on the
    main process, {} on the others. Samples may be distributed over the ranks in any way.

    Metadata of the set: ``junk_rule`` ("camera", "frames" or "none") and ``junk_frames``, see
    :class:`JunkRule`; ``append_queries`` adds the queries to the gallery.

    Files in ``output_dir``: ``reid_results.json`` (protocol, metrics, and AP and best matches of
    each query, see :func:`rank_entries`) and with ``save_embeddings`` ``reid_embeddings.npz`` (see
    :mod:`.embeddings`).
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
            output_dir: folder for the results, created if absent; None writes nothing.
            settings, metric, ap_rule, top_k: see :class:`ReIDProtocol`.
            save_embeddings: also write the embeddings.
            distributed: gather from all ranks; False evaluates the samples of this process.
        """
        self._dataset_name = dataset_name
        self._output_dir = output_dir
        self._protocol = ReIDProtocol(settings, metric, ap_rule, top_k=top_k)
        self._save_embeddings = save_embeddings
        self._distributed = distributed
        self._entries: list[Entry] = []

    @classmethod
    def from_config(
        cls, cfg: CfgNode, dataset_name: str, output_dir: Optional[str] = None
    ) -> dict[str, Any]:
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

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep the outputs of a batch; see the class for their content."""
        for sample, output in zip(inputs, outputs):
            self._entries += entries_of(sample, output)

    def evaluate(self) -> "dict[str, dict[str, float]]":
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
        # The metadata are complete only after the set was read.
        metadata = MetadataCatalog.get(self._dataset_name)
        append_queries = bool(metadata.get("append_queries", False))
        embeddings = merge_entries(entries, samples, append_queries=append_queries)
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


def entries_of(sample: dict[str, Any], output: dict[str, torch.Tensor]) -> list[Entry]:
    """Make the entries of an element of the test loader; none for the role "train".

    An element without ``views`` is a video, and also an image if it has only one frame;
    ``frame_embedding`` of the output, if there is one, is then that of its first frame.

    Raises:
        ValueError: the output has no embedding; the message names the sample.
    """
    if sample["role"] == "train":
        return []
    if "embedding" not in output:
        raise ValueError(
            f"sample {sample['sample_id']}: the output of the network has no embedding"
        )
    views, names = sample.get("views"), sample.get("file_names")
    parts: list[tuple[Any, Any, torch.Tensor]] = [(views, names, output["embedding"])]
    if views is None:
        single = len(sample["frames"]) == 1
        parts = [(("image", "video") if single else ("video",), names, output["embedding"])]
        if "frame_embedding" in output and not single:
            parts.append((("image",), names and names[:1], output["frame_embedding"]))
    return [
        Entry(
            sample_id=int(sample["sample_id"]),
            person_id=int(sample["person_id"]),
            camera_id=int(sample["camera_id"]),
            frame_id=int(sample.get("frame_id", -1)),
            role=sample["role"],
            views=tuple(part_views),
            file_names=None if part_names is None else tuple(part_names),
            # A copy: the tensor may be a view that keeps the whole batch alive.
            embedding=embedding.detach().to("cpu", torch.float32).numpy().copy(),
        )
        for part_views, part_names, embedding in parts
    ]
