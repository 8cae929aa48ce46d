"""Keys of training and evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def add_training(cfg: CfgNode) -> None:
    """Add the keys of training and evaluation."""
    _add_training(cfg)
    _add_wandb(cfg)
    _add_test(cfg)
    _add_reid_test(cfg)


def _add_training(cfg: CfgNode) -> None:
    # "SGD", as in Detectron2 and every person search paper, or "ADAMW", which has better results
    # after the few iterations of the small CPU configs. (kd_search)
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Consecutive steps with a loss or gradient that is not finite before training stops with an
    # error. (kd_search)
    cfg.SOLVER.MAX_SKIPPED_STEPS = 3
    # With several ranks, compute losses that compare people with each other, or are means over
    # people, from the joint batch: the terms of DKD and VKD, the losses of ReIDNetwork, OIM, the
    # identity classifier and the ID table. The papers have one batch. False: from the batch of each
    # rank, as most code for several GPUs does. (kd_search)
    cfg.SOLVER.GATHER_OVER_RANKS = True
    # Checkpoints kept on disk in addition to the final one; older ones are removed. (kd_search)
    cfg.SOLVER.CHECKPOINTS_TO_KEEP = 3
    # Execute pickled weights (.pkl) from any source. Arrays-only pickles, such as Detectron2's
    # ImageNet weights, load without it; anything else is refused while this is False.
    cfg.MODEL.TRUST_PICKLE = False


def _add_wandb(cfg: CfgNode) -> None:
    CN = type(cfg)  # noqa: N806
    cfg.WANDB = CN()
    # Also write losses, statistics and results to Weights & Biases, which needs the package wandb.
    # A resumed training continues its run there. (kd_search)
    cfg.WANDB.ENABLED = False
    # Project that the run belongs to. (kd_search)
    cfg.WANDB.PROJECT = "kd_search"
    # User or team that owns the project; "" for the default of the account.
    cfg.WANDB.ENTITY = ""
    # Name of the run; "" for the last part of OUTPUT_DIR.
    cfg.WANDB.NAME = ""
    # "online"; "offline", which writes files to OUTPUT_DIR/wandb for a later `wandb sync`;
    # "disabled"; "" for what the environment variable WANDB_MODE says.
    cfg.WANDB.MODE = ""


def _add_test(cfg: CfgNode) -> None:
    CN = type(cfg)  # noqa: N806
    cfg.TEST.PERSON_SEARCH = CN()
    # Minimum score of gallery detections in the search metric: 0.5 (OIM and SeqNet protocol;
    # AlignPS and PSTR use 0.15 to 0.25, so their results are not comparable).
    cfg.TEST.PERSON_SEARCH.SCORE_THRESH = 0.5
    # Minimum score of detections in detection AP and recall: 0.5 (OIM protocol); SeqNet uses 0.01.
    cfg.TEST.PERSON_SEARCH.DET_SCORE_THRESH = 0.5
    # Minimum IoU of a correct detection; small boxes need less (docs/evaluation.md). (OIM protocol)
    cfg.TEST.PERSON_SEARCH.IOU_THRESH = 0.5
    # Ranks of the reported top-k accuracies.
    cfg.TEST.PERSON_SEARCH.TOP_K = [1, 5, 10]
    # Search among ground-truth boxes instead of detections, which measures re-ID alone.
    cfg.TEST.PERSON_SEARCH.USE_GT_BOXES = False
    # Write detections and embeddings to the folder of the results, so that evaluation can run
    # again without the model. (kd_search)
    cfg.TEST.PERSON_SEARCH.SAVE_FEATURES = True
    # Embed the ground-truth boxes in the same pass as the detections, so that the table of
    # protocols has rows for both. (kd_search)
    cfg.TEST.PERSON_SEARCH.EMBED_GT_BOXES = False
    # Gallery of the returned numbers: "all", a list of the set's protocol such as "G100", or
    # "auto", which is G100 where the set lists it (CUHK-SYSU as the field reports it), else "all".
    cfg.TEST.PERSON_SEARCH.GALLERY = "auto"
    # The returned numbers are those of this many queries, always the same, for networks that search
    # each picture again for each query; 0 for all. Plain networks return those of all queries and
    # pictures beside them, as "whole_gallery". (kd_search)
    cfg.TEST.PERSON_SEARCH.SAMPLE_QUERIES = 0
    # Gallery pictures of each of them, with the person in a quarter at most. (kd_search)
    cfg.TEST.PERSON_SEARCH.SAMPLE_PICTURES = 50
    # "cosine" (OIM), or "score_weighted": times the score of the detection (NAE, SeqNet).
    cfg.TEST.PERSON_SEARCH.SIMILARITY = "cosine"
    # Also evaluate all protocols of the set, in one table. (kd_search)
    cfg.TEST.PERSON_SEARCH.TABLE = True
    # Gallery sizes of the table, -1 for the whole pool; [] for all that the set's protocol lists
    # (CUHK-SYSU: 50, 100, 500, 1000, 2000, 4000) and the whole pool.
    cfg.TEST.PERSON_SEARCH.GALLERY_SIZES = []
    # Cameras of the table: "all", "cross_camera" (PRW's multi-view gallery), "junk_same_camera"
    # (PRW's own baseline); others than "all" need a set of several cameras.
    cfg.TEST.PERSON_SEARCH.CAMERAS = ["all", "cross_camera", "junk_same_camera"]
    # Modes of the table: "corrected", "compat" (the published evaluation code of the SeqNet family,
    # quirks included; docs/evaluation.md lists them).
    cfg.TEST.PERSON_SEARCH.MODES = ["corrected", "compat"]
    # Also re-rank by context bipartite graph matching. (SeqNet, section 3.4)
    cfg.TEST.PERSON_SEARCH.CBGM = True
    # Most similar detections whose images are re-ranked: CUHK-SYSU 10, PRW 30. (SeqNet)
    cfg.TEST.PERSON_SEARCH.CBGM_K1 = 10
    # People of the query's context, the query included: CUHK-SYSU 3, PRW 4. (SeqNet)
    cfg.TEST.PERSON_SEARCH.CBGM_K2 = 3
    # Resamples of the 95 % bootstrap intervals over queries; 0 for none. (kd_search)
    cfg.TEST.PERSON_SEARCH.BOOTSTRAP = 1000


def _add_reid_test(cfg: CfgNode) -> None:
    CN = type(cfg)  # noqa: N806
    cfg.TEST.REID = CN()
    # "cosine" (VKD, ECCV 2020) or "euclidean".
    cfg.TEST.REID.METRIC = "cosine"
    # Area under the curve of precision and recall: "market", the trapezoid of Market-1501's own
    # code, which VKD uses; "exact", the mean precision at the hits, as in most later re-ID code
    # (BoT, CVPRW 2019).
    cfg.TEST.REID.AP_RULE = "market"
    # Ranks of the reported top-k accuracies.
    cfg.TEST.REID.TOP_K = [1, 5, 10]
    # Write the embeddings to the folder of the results, for analyses without the model. (kd_search)
    cfg.TEST.REID.SAVE_EMBEDDINGS = True
