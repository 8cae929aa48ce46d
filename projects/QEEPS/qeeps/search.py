"""Evaluation of query-guided networks: every query runs with every picture of its gallery."""

import hashlib
import json
import logging
import os
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Optional

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from kd_search.config import ConfigError
from kd_search.data import get_person_search_dicts
from kd_search.data.person_search.mapper import PersonSearchDatasetMapper
from kd_search.evaluation import PersonSearchEvaluator
from kd_search.evaluation.archives import load_archive, save_archive
from kd_search.evaluation.flat_arrays import Detections, Queries
from kd_search.evaluation.search.evaluate import (
    NUM_MATCHES,
    Evaluation,
    summarise_search,
    write_evaluation,
)
from kd_search.evaluation.search.galleries import (
    Gallery,
    GalleryProtocol,
    galleries_from_metadata,
    headline_gallery,
)
from kd_search.evaluation.search.protocol import Protocol
from kd_search.evaluation.search.ranking import RankingResult, rank_gallery
from kd_search.evaluation.search.test_set import Annotations, flatten_annotations
from kd_search.utils.inference import Progress, evaluating

logger = logging.getLogger(__name__)

#: Folder of the files of single queries, inside the evaluation's.
QUERIES_FOLDER = "query_guided"
_FORMAT = ("kd_search.query_guided", (1,))
_ARRAYS = ("image_index", "boxes", "scores", "similarities")


@dataclass
class Found:
    """What one query found: n detections in its gallery."""

    image_index: np.ndarray  # (n,) int64 picture in the test set
    boxes: np.ndarray  # (n, 4) float32 XYXY, pixels of the original picture
    scores: np.ndarray  # (n,) float32 of the detector
    similarities: np.ndarray  # (n,) float64 in -1..1


def query_guided_search(
    cfg: CfgNode, network: Any, dataset_name: str, output_dir: Optional[str] = None
) -> "OrderedDict[str, dict[str, float]]":
    """Search a test set with a ``QueryGuidedRCNN``, and evaluate it.

    A collective call: each rank has its share of the queries. Protocol, matching and average
    precision are those of :class:`~kd_search.evaluation.PersonSearchEvaluator`, on the detections
    of each query. There are no metrics of detection, which a query changes. The cost is one forward
    for every query and picture.

    Args:
        cfg: ``TEST.PERSON_SEARCH``, without its table and other ``SIMILARITY``.
        network: a ``QueryGuidedRCNN``.
        dataset_name: registered test set.
        output_dir: for the results, as those of the plain evaluation; what a query found is
            written to ``query_guided/`` there at once, and read again by a later call with the same
            weights, config and data. ``None`` writes nothing.

    Returns:
        On the main process "person_search" and "open_set" as the plain evaluation; {} on others.

    Raises:
        ConfigError: the protocol is one of embeddings.
        ValueError: the set has no query.
    """
    search = GuidedSearch(cfg, network, dataset_name)
    found = search.run_all(os.path.join(output_dir, QUERIES_FOLDER) if output_dir else None)
    if found is None:
        return OrderedDict()
    evaluation = evaluate_found(found, search.annotations, search.gallery, search.protocol)
    if output_dir:
        write_evaluation(output_dir, dataset_name, evaluation)
    return evaluation.results


def evaluate_found(
    found: list[Found], annotations: Annotations, gallery: Gallery, protocol: Protocol
) -> Evaluation:
    """Rate what every query found, in the order of ``annotations``."""
    results = []
    rows: list[Detections] = []
    num_matches = max(NUM_MATCHES, protocol.top_k[-1])
    settings = protocol.ranking_settings(num_matches)
    count = 0
    for query, result in enumerate(found):
        # Two numbers of unit length, whose product with (1, 0) is the similarity.
        cosine = result.similarities.astype(np.float64)
        directions = np.stack([cosine, np.sqrt(np.maximum(1 - cosine**2, 0))], axis=1)
        detections = Detections(result.boxes, result.scores, result.image_index, directions)
        # Equal similarities keep the order of pictures, as in the plain evaluation.
        detections = detections.select(np.argsort(result.image_index, kind="stable"))
        one = slice(query, query + 1)
        (ranked,) = rank_gallery(
            detections,
            annotations.ground_truth,
            Queries(
                np.array([[1.0, 0.0]]),
                annotations.query_person_ids[one],
                annotations.query_image_index[one],
            ),
            [GalleryProtocol(gallery.of_query(query), "all", protocol.mode)],
            settings,
            image_cameras=annotations.image_cameras,
            searchable=annotations.in_gallery,
        )
        # Only the reported matches are kept, in one list of all queries.
        matches = np.flatnonzero(ranked.match_index[0] >= 0)
        rows.append(detections.select(ranked.match_index[0, matches]))
        ranked.match_index[0, matches] = count + np.arange(len(matches))
        ranked.hit_query = ranked.hit_query + query
        count += len(matches)
        results.append(ranked)
    shown = Detections(
        np.concatenate([part.boxes for part in rows]),
        np.concatenate([part.scores for part in rows]),
        np.concatenate([part.image_index for part in rows]),
    )
    return summarise_search(
        _join(results, gallery, protocol),
        shown,
        annotations,
        replace(protocol, gallery=gallery.name),
    )


def _join(results: list[RankingResult], gallery: Gallery, protocol: Protocol) -> RankingResult:
    arrays = {
        name: np.concatenate([getattr(result, name) for result in results])
        for name, value in vars(results[0]).items()
        if isinstance(value, np.ndarray)
    }
    return RankingResult(
        **arrays,
        protocol=GalleryProtocol(gallery, "all", protocol.mode),
        num_detections=sum(result.num_detections for result in results),
    )


def _gallery(lists: Mapping[str, Any], annotations: Annotations, protocol: Protocol) -> Gallery:
    name = headline_gallery(protocol.gallery, list(lists))
    if name not in lists:
        return Gallery()
    (gallery,) = galleries_from_metadata(
        lists, annotations.query_ids, len(annotations.image_ids), [name]
    )
    return gallery


class GuidedSearch:
    """Runs the queries of a test set through their galleries."""

    def __init__(self, cfg: CfgNode, network: Any, dataset_name: str):
        """
        Args:
            cfg, network, dataset_name: as :func:`query_guided_search`, which has the errors.
        """
        node = cfg.TEST.PERSON_SEARCH
        if node.SIMILARITY != "cosine":
            raise ConfigError(
                f"TEST.PERSON_SEARCH.SIMILARITY {node.SIMILARITY!r} is for plain networks: a "
                "query-guided one ranks by MODEL.QUERY_GUIDED.SIMILARITY.RANK_BY"
            )
        evaluator = PersonSearchEvaluator(cfg, dataset_name)
        self.cfg, self.network, self.dataset_name = cfg, network, dataset_name
        self.protocol = evaluator.protocol
        self.dicts = get_person_search_dicts(dataset_name)[0]
        self.annotations = flatten_annotations(self.dicts)
        if not len(self.annotations.query_ids):
            raise ValueError(f"{dataset_name} has no query")
        lists = MetadataCatalog.get(dataset_name).get("search_galleries") or {}
        if evaluator.sample is not None:
            lists = evaluator.sample.lists(self.annotations)
            self.protocol = replace(self.protocol, gallery=evaluator.sample.name)
        self.gallery = _gallery(lists, self.annotations, self.protocol)
        self.num_workers = cfg.DATALOADER.NUM_WORKERS
        self.batch_size = cfg.MODEL.QUERY_GUIDED.TEST_BATCH
        self.mapper = PersonSearchDatasetMapper(cfg, False, with_gt_boxes=node.USE_GT_BOXES)

    def run_all(self, folder: Optional[str]) -> Optional[list[Found]]:
        """What every query found; ``None`` on other ranks than the main one. A collective call.

        Args:
            folder: for a file of each query, see :func:`query_guided_search`.
        """
        seal = _seal(self.cfg, self.network, self.dataset_name, self.annotations) if folder else ""
        count = len(self.annotations.query_ids)
        mine = range(comm.get_rank(), count, comm.get_world_size())
        found = dict(self.run(mine, folder, seal))
        comm.synchronize()
        gathered = comm.gather(found, dst=0)
        if not comm.is_main_process():
            return None
        joined = {query: result for part in gathered for query, result in part.items()}
        return [joined[query] for query in range(count)]

    def run(self, queries: range, folder: Optional[str], seal: str) -> Iterator[tuple[int, Found]]:
        """What each query found, read from its file where there is one."""
        if folder:
            os.makedirs(folder, exist_ok=True)
        left = []
        for query in queries:
            done = _load(self._file(folder, query), seal) if folder else None
            if done is None:
                left.append(query)
            else:
                yield query, done
        if len(left) < len(queries):
            logger.info("%d of %d queries are done already", len(queries) - len(left), len(queries))
        total = [batch for query in left for batch in self._batches(query)]
        progress = Progress(total, f"Searching with {len(left)} queries", logger)
        with evaluating(self.network):
            for query in left:
                found = self._one(query, progress)
                if folder:
                    arrays = {name: getattr(found, name) for name in _ARRAYS}
                    metadata = {"format": _FORMAT[0], "version": _FORMAT[1][0], "seal": seal}
                    save_archive(self._file(folder, query), arrays, **metadata)
                yield query, found

    def _file(self, folder: str, query: int) -> str:
        return os.path.join(folder, f"{self.annotations.query_ids[query]}.npz")

    def pictures(self, query: int) -> np.ndarray:
        """Pictures that a query searches, in the order of the set."""
        own = self.annotations.query_image_index[query]
        whole = np.flatnonzero(self.annotations.in_gallery)
        pictures = whole
        if self.gallery.has_lists:
            start, stop = self.gallery.offsets[query : query + 2]
            pictures = np.unique(self.gallery.images[start:stop])
            if self.gallery.complete:
                pictures = np.union1d(pictures, whole)
        kept: np.ndarray = pictures[pictures != own]
        return kept

    def _batches(self, query: int) -> list[list[int]]:
        """Pictures that a query searches, batches of one size in the order of the set."""
        by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
        for place in self.pictures(query).tolist():
            by_size[self.dicts[place]["height"], self.dicts[place]["width"]].append(place)
        return [
            places[i : i + self.batch_size]
            for places in by_size.values()
            for i in range(0, len(places), self.batch_size)
        ]

    @torch.no_grad()
    def _one(self, query: int, progress: Progress) -> Found:
        own = self.mapper(self.dicts[self.annotations.query_image_index[query]])
        box = own["query_boxes"][own["query_ids"].index(int(self.annotations.query_ids[query]))]
        prepared = self.network.prepare_query(own["image"], box)
        batches = self._batches(query)
        loader = DataLoader(
            _Pictures(self.dicts, self.mapper),
            batch_sampler=batches,
            num_workers=self.num_workers,
            collate_fn=trivial_batch_collator,
        )
        parts: dict[str, list[np.ndarray]] = {name: [] for name in _ARRAYS}
        for places, batch in zip(batches, loader):
            for place, output in zip(places, self.network.search(prepared, batch)):
                people = output["instances"]
                parts["image_index"].append(np.full(len(people), place, np.int64))
                parts["boxes"].append(people.pred_boxes.tensor.cpu().numpy())
                parts["scores"].append(people.scores.cpu().numpy())
                parts["similarities"].append(people.pred_similarities.cpu().numpy())
            progress.step(len(batch))
        none = {"image_index": np.zeros(0, np.int64), "boxes": np.zeros((0, 4), np.float32)}
        return Found(
            **{
                name: np.concatenate([none.get(name, np.zeros(0, np.float32)), *values])
                for name, values in parts.items()
            }
        )


class _Pictures(Dataset):
    def __init__(self, dicts: list[dict[str, Any]], mapper: PersonSearchDatasetMapper):
        self.dicts, self.mapper = dicts, mapper

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.mapper(self.dicts[place])


def _load(path: str, seal: str) -> Optional[Found]:
    """The file of a query, unless it is missing, damaged or of other weights, config or data."""
    if not os.path.isfile(path):
        return None
    try:
        arrays, metadata = load_archive(path, "a query's detections", _FORMAT, _ARRAYS)
    except ValueError as error:
        logger.warning("%s: the query is searched again", error)
        return None
    return Found(**arrays) if metadata.get("seal") == seal else None


def _seal(cfg: CfgNode, network: Any, dataset_name: str, annotations: Annotations) -> str:
    """SHA-256 of weights, config and data, which a saved query belongs to."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        array = value.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(array.view(torch.uint8).numpy().tobytes())
    for node in (cfg.MODEL, cfg.INPUT, cfg.TEST):
        settings = node.clone()
        settings.defrost()
        settings.pop("WEIGHTS", None)
        settings.pop("DEVICE", None)
        # Not YAML, which refers to a value that occurs twice: a config that was read again differs.
        digest.update(json.dumps(settings, sort_keys=True).encode())
    data = (dataset_name, annotations.image_ids, annotations.query_ids.tolist())
    digest.update(repr((*data, annotations.query_boxes.tolist())).encode())
    return digest.hexdigest()
