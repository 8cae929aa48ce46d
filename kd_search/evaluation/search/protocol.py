"""Settings of an evaluation, and the gallery protocols that they select."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kd_search.evaluation.flat_arrays import check_top_k
from kd_search.evaluation.search.galleries import (
    CAMERAS,
    MODES,
    WHOLE,
    Gallery,
    GalleryProtocol,
    check_choice,
    complete_gallery,
    gallery_size,
    names_by_size,
)
from kd_search.evaluation.search.ranking import RankingSettings

#: Cosine, or cosine times the score of the detection (NAE, SeqNet).
SIMILARITIES = ("cosine", "score_weighted")
# The gallery that papers report for CUHK-SYSU.
_USUAL_GALLERY = "G100"
_WHOLE_SIZE = -1


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


def headline_gallery(name: str, listed: Sequence[str]) -> str:
    """Resolve ``Protocol.gallery`` for a set with these lists.

    Raises:
        ValueError: the set has no such gallery.
    """
    if name == "auto":
        if len(listed) == 1:
            return listed[0]
        return _USUAL_GALLERY if _USUAL_GALLERY in listed else WHOLE
    if name != WHOLE and name not in listed:
        raise ValueError(f"gallery {name!r} is not one of the set's: {', '.join([WHOLE, *listed])}")
    return name


def listed_names(names: Sequence[str], sizes: Sequence[int]) -> list[str]:
    """Select the lists that a table of these sizes needs, of all that a protocol has.

    Raises:
        ValueError: a size is not among them.
    """
    sized = names_by_size(names)
    if not len(sizes) or not sized:
        return list(names)
    missing = [size for size in sizes if size != _WHOLE_SIZE and size not in sized]
    if missing:
        have = ", ".join(map(str, sized))
        raise ValueError(
            f"gallery size {missing[0]}: the protocol lists {have}; -1 is the whole pool"
        )
    wanted = {sized[size] for size in sizes if size != _WHOLE_SIZE}
    if _WHOLE_SIZE in sizes:
        wanted.add(next(iter(sized.values())))  # compat mode takes the positives from the smallest
    return [name for name in names if name in wanted or gallery_size(name) is None]


def table_protocols(
    galleries: Sequence[Gallery], options: TableOptions, cameras: np.ndarray
) -> tuple[list[GalleryProtocol], list[str]]:
    """Make the gallery protocols of a table, and notes about rows that the set cannot give.

    Args:
        galleries: the lists of the protocol, if any.
        cameras: (G,) camera of each image, -1 unknown.
    """
    notes = []
    wanted = list(options.cameras)
    known = np.unique(cameras[cameras >= 0])
    if len(known) < 2 and wanted != ["all"]:
        notes.append(
            f"the images are of {len(known)} known cameras: no rows for "
            f"{', '.join(c for c in wanted if c != 'all')}"
        )
        wanted = ["all"]
    elif wanted != ["all"] and (cameras < 0).any():
        notes.append(
            f"{int((cameras < 0).sum())} images of unknown camera are in no cross-camera gallery"
        )
    protocols = [
        GalleryProtocol(gallery, camera, mode, reranked)
        for mode in options.modes
        for gallery in _table_galleries(galleries, options.gallery_sizes, mode)
        for camera in wanted
        for reranked in ((False, True) if options.cbgm else (False,))
    ]
    return protocols, notes


def _table_galleries(
    galleries: Sequence[Gallery], sizes: Sequence[int], mode: str
) -> list[Gallery]:
    """Sizes ascending, other lists of all queries, the whole pool, the lists of subsets."""
    full = {g.name: g for g in galleries if g.queries is None}
    sized = [(size, full[name]) for size, name in names_by_size(full).items()]
    other = [g for name, g in full.items() if gallery_size(name) is None]
    whole = [complete_gallery(sized[0][1]) if mode == "compat" and sized else Gallery()]
    if len(sizes) and sized:
        whole = whole if _WHOLE_SIZE in sizes else []
        sized = [(size, gallery) for size, gallery in sized if size in sizes]
    subsets = [g for g in galleries if g.queries is not None]
    return [*(gallery for _, gallery in sized), *other, *whole, *subsets]
