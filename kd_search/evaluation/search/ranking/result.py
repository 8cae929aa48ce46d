"""What is found out about each query in one view of a test set."""

from dataclasses import dataclass

import numpy as np

from kd_search.evaluation.search.galleries import View


@dataclass
class ViewResult:
    """Per-query results of one view, in the order of the queries."""

    view: View
    searched_by: np.ndarray  # (Q,) bool; the others are not asked in this gallery
    ap: np.ndarray  # (Q,) float64; 0 where num_gt is 0
    num_gt: np.ndarray  # (Q,) int64
    num_found: np.ndarray  # (Q,) int64
    first_hit_rank: np.ndarray  # (Q,) int64; 0 where nothing was found
    num_images: np.ndarray  # (Q,) int64, images searched
    match_index: np.ndarray  # (Q, K) as indices into the given detections; -1 padding
    match_similarity: np.ndarray  # (Q, K); NaN padding
    match_correct: np.ndarray  # (Q, K) bool
    hit_query: np.ndarray  # (H,) query of each right detection, ascending
    hit_count: np.ndarray  # (H,) searched detections that are at least as similar, itself included

    @classmethod
    def empty(cls, view: View, num_queries: int, num_matches: int) -> "ViewResult":
        """Room for Q queries and K matches of each; nobody has found anything yet."""
        matches = (num_queries, num_matches)
        return cls(
            view,
            searched_by=view.gallery.searched_by(num_queries),
            ap=np.zeros(num_queries),
            num_gt=np.zeros(num_queries, np.int64),
            num_found=np.zeros(num_queries, np.int64),
            first_hit_rank=np.zeros(num_queries, np.int64),
            num_images=np.zeros(num_queries, np.int64),
            match_index=np.full(matches, -1, dtype=np.int64),
            match_similarity=np.full(matches, np.nan),
            match_correct=np.zeros(matches, dtype=bool),
            hit_query=np.zeros(0, np.int64),
            hit_count=np.zeros(0, np.int64),
        )
