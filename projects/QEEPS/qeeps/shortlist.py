"""Plain search whose best pictures a query-guided network searches again."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from kd_search.evaluation.search.evaluate import Evaluation
from kd_search.evaluation.search.predictions import DETECTIONS_FILE, load_detections
from kd_search.evaluation.search.test_set import PreparedSet
from qeeps.search import QUERIES_FOLDER, Found, GuidedSearch, evaluate_found


def shortlisted(
    plain: Found, guided: Found, pictures: np.ndarray, size: int, score_thresh: float
) -> Found:
    """What one query finds by a plain search with a shortlist.

    The pictures with the most similar plain detections are the shortlist. There, the query-guided
    detections take the place of the plain ones, and all of them are ranked above those of the other
    pictures, whose similarities are of another scale.

    Args:
        plain, guided: of one query; guided of the shortlist at least.
        pictures: (P,) that the query searches, ascending.
        size: of the shortlist; larger ones than P are all of them.
        score_thresh: plain detections with a lower score are not searched.
    """
    best = np.full(len(pictures), -np.inf)
    counts = (plain.scores >= score_thresh) & np.isin(plain.image_index, pictures)
    places = np.searchsorted(pictures, plain.image_index[counts])
    np.maximum.at(best, places, plain.similarities[counts])
    chosen = pictures[np.argsort(-best, kind="stable")[:size]]
    upper = np.isin(guided.image_index, chosen)
    lower = ~np.isin(plain.image_index, chosen)
    # -1..1 to 0..1 and to -1..0: the lowest of the shortlist is above the highest of the others.
    first = (1 + guided.similarities[upper].astype(np.float64)) / 2
    second = (plain.similarities[lower].astype(np.float64) - 1) / 2 - 1e-9
    return Found(
        np.concatenate([guided.image_index[upper], plain.image_index[lower]]),
        np.concatenate([guided.boxes[upper], plain.boxes[lower]]),
        np.concatenate([guided.scores[upper], plain.scores[lower]]),
        np.concatenate([first, np.maximum(second, -1)]),
    )


def evaluate_shortlists(
    cfg: CfgNode,
    network: Any,
    plain_folder: str,
    guided_folder: str,
    sizes: Sequence[int],
) -> dict[int, Evaluation]:
    """Search the test set of a config with shortlists of several sizes.

    Args:
        cfg: of the query-guided network.
        network: it, in evaluation mode.
        plain_folder: evaluation of a plain network, with its detections.
        guided_folder: for the evaluation of the query-guided network; where it has been evaluated
            there with these settings, nothing is searched again.
        sizes: of the shortlists; 0 is the plain search.

    Raises:
        FileNotFoundError: there are no detections of the plain network.
        ValueError: they are of another test set.
    """
    search = GuidedSearch(cfg, network, cfg.DATASETS.TEST[0])
    detections, _ = load_detections(os.path.join(plain_folder, DETECTIONS_FILE))
    prepared = PreparedSet(detections, search.dicts, {}, ())
    people = prepared.flatten(detections)
    guided = search.run_all(os.path.join(guided_folder, QUERIES_FOLDER))
    assert guided is not None and people.embeddings is not None  # one process; of people search
    results = {}
    cosines = prepared.queries.embeddings.astype(np.float64) @ people.embeddings.T
    thresh = search.protocol.score_thresh
    for size in sizes:
        found = []
        for query, own in enumerate(guided):
            plain = Found(people.image_index, people.boxes, people.scores, cosines[query])
            found.append(shortlisted(plain, own, search.pictures(query), size, thresh))
        results[size] = evaluate_found(found, search.annotations, search.gallery, search.protocol)
    return results
