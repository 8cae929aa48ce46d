"""The re-ID protocol as it is defined, query by query and pair by pair. Slow and obvious.

Written from the text of the protocol (``evaluate_reid`` states it), in float64.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass
class ReIDEntry:
    """A query, or an entry of the gallery."""

    embedding: np.ndarray  # (D,) float64
    person_id: int  # of the gallery: -1 a distractor, -2 junk
    camera_id: int = -1
    frame_id: int = -1
    item: int = -1


@dataclass
class ReIDAnswer:
    ap: float
    num_gt: int
    first_hit_rank: int  # 0: none
    ranking: list  # (similarity, right, place in the gallery), best first


def search_one_reid_query(
    query, gallery, *, metric="cosine", ap_rule="market", junk="camera", junk_frames=0
):
    """Rank ``gallery``, a list of :class:`ReIDEntry`, for one query."""
    ranking = []
    for place, entry in enumerate(gallery):
        same_person = query.person_id >= 0 and entry.person_id == query.person_id
        if entry.person_id == -2 or (query.item >= 0 and entry.item == query.item):
            continue
        if same_person and _is_junk(query, entry, junk, junk_frames):
            continue
        similarity = _similarity(query.embedding, entry.embedding, metric)
        ranking.append((similarity, same_person, place))
    # Of equally similar entries the wrong ones come first.
    ranking.sort(key=lambda found: (-found[0], found[1]))

    num_gt = sum(right for _, right, _ in ranking)
    hits, ap, first_hit_rank = 0, 0.0, 0
    for rank, (_, right, _) in enumerate(ranking, 1):
        if not right:
            continue
        above = hits / (rank - 1) if rank > 1 else 1.0
        hits += 1
        precision = hits / rank
        ap += ((precision + above) / 2 if ap_rule == "market" else precision) / num_gt
        first_hit_rank = first_hit_rank or rank
    return ReIDAnswer(ap, num_gt, first_hit_rank, ranking)


def _is_junk(query, entry, junk, junk_frames):
    if junk == "none" or query.camera_id < 0 or query.camera_id != entry.camera_id:
        return False
    if junk == "camera":
        return True
    known = query.frame_id >= 0 and entry.frame_id >= 0
    return known and abs(query.frame_id - entry.frame_id) <= junk_frames


def _similarity(a, b, metric):
    if metric == "euclidean":
        return -math.sqrt(((a - b) ** 2).sum())
    lengths = math.sqrt(a @ a) * math.sqrt(b @ b)
    return float(a @ b) / lengths if lengths > 0 else 0.0
