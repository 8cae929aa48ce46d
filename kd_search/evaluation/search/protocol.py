"""Settings of an evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass

from kd_search.evaluation.flat_arrays import check_top_k
from kd_search.evaluation.search.galleries import CAMERAS, MODES, check_choice
from kd_search.evaluation.search.ranking import RankingSettings

#: Cosine, or cosine times the score of the detection (NAE, SeqNet).
SIMILARITIES = ("cosine", "score_weighted")


@dataclass
class Protocol:
    """What the headline numbers depend on besides the model; reported beside them.

    Attributes:
        score_thresh: gallery detections with a lower score are not searched.
        det_score_thresh: detections with a lower score are not rated by detection AP and recall.
        iou_thresh: IoU of a right detection; small boxes need less.
        top_k: ranks of the reported accuracies.
        use_gt_boxes: the gallery boxes are the annotated ones: search measures the embeddings
            alone, and detection is not rated.
        gallery: name of a list of the set's protocol or "all"; "auto" is G100 where the set lists
            it, as papers report it, the only list where there is one, and "all" elsewhere.
        mode: one of :data:`MODES`.
        similarity: one of :data:`SIMILARITIES`.
    """

    score_thresh: float = 0.5
    det_score_thresh: float = 0.5
    iou_thresh: float = 0.5
    top_k: Sequence[int] = (1, 5, 10)
    use_gt_boxes: bool = False
    gallery: str = "auto"
    mode: str = "corrected"
    similarity: str = "cosine"

    def __post_init__(self) -> None:
        check_choice("similarity", self.similarity, SIMILARITIES)
        check_choice("mode", self.mode, MODES)
        self.top_k = check_top_k(self.top_k)

    def ranking_settings(self, num_matches: int = 0, k1: int = 1) -> RankingSettings:
        """Settings of :func:`rank_gallery` under this protocol."""
        weighted = self.similarity == "score_weighted"
        return RankingSettings(self.score_thresh, self.iou_thresh, num_matches, k1, weighted)


@dataclass
class TableOptions:
    """Which protocols a table covers.

    Attributes:
        gallery_sizes: as in the names of the protocol's lists (100 is "G100"), -1 for the whole
            pool; empty for all that the set has. A set without lists has the whole pool only.
        cameras: of :data:`CAMERAS`; others than "all" need a set of at least two cameras.
        modes: of :data:`MODES`.
        cbgm: also re-ranked by context.
        cbgm_k1, cbgm_k2: see :mod:`.ranking._reranking`.
        bootstrap: resamples of the intervals; 0 for none.
        seed: of the resamples.
    """

    gallery_sizes: Sequence[int] = ()
    cameras: Sequence[str] = CAMERAS
    modes: Sequence[str] = MODES
    cbgm: bool = True
    cbgm_k1: int = 10
    cbgm_k2: int = 3
    bootstrap: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, values, known in (
            ("cameras", self.cameras, CAMERAS),
            ("modes", self.modes, MODES),
        ):
            unknown = [value for value in values if value not in known]
            if unknown or not len(values):
                have = repr(unknown[0]) if unknown else "nothing"
                raise ValueError(f"{name} holds {have}; expected any of {', '.join(known)}")
        if self.cbgm and (self.cbgm_k1 < 1 or self.cbgm_k2 < 1):
            raise ValueError(f"cbgm_k1 {self.cbgm_k1} and cbgm_k2 {self.cbgm_k2} must be 1 or more")
        if self.bootstrap < 0:
            raise ValueError(f"bootstrap {self.bootstrap} must be 0 or more")
