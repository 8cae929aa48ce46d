"""Keys of distillation that every method shares; methods register their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def add_distillation(cfg: CfgNode) -> None:
    """Add the keys of student and teacher."""
    CN = type(cfg)  # noqa: N806
    cfg.DISTILLATION = CN()
    # Meta-architecture of the student; MODEL.META_ARCHITECTURE is "Distiller". (kd_search)
    cfg.DISTILLATION.STUDENT_META_ARCH = "PersonSearchRCNN"
    # Names from DISTILLATION_TERM_REGISTRY; any subset, in any order. (kd_search)
    cfg.DISTILLATION.TERMS = []

    cfg.DISTILLATION.TEACHER = CN()
    # Config file of the frozen teacher; empty where no term needs one. (kd_search)
    cfg.DISTILLATION.TEACHER.CONFIG_FILE = ""
    # Weights of the teacher; empty takes MODEL.WEIGHTS of its config file. (kd_search)
    cfg.DISTILLATION.TEACHER.WEIGHTS = ""
    # "KEY VALUE" overrides of the teacher's config. (kd_search)
    cfg.DISTILLATION.TEACHER.OPTS = []
    # Pairs [class of the teacher, class of the student] where the two differ; several classes of
    # the teacher may become one, and those not named count as background. Empty: the same classes
    # in the same order. (kd_search)
    cfg.DISTILLATION.TEACHER.CLASS_MAP = []

    # Let the teacher normalise by the statistics of the batch, without keeping them, instead of its
    # running ones: what the code of VKD (ECCV 2020) does. Its weights stay frozen.
    cfg.DISTILLATION.TEACHER.BATCH_STATISTICS = False

    # What of the teacher the student starts with, after MODEL.WEIGHTS: prefixes of parameter names,
    # or [prefix of the student, prefix of the teacher]. (kd_search)
    cfg.DISTILLATION.INIT_FROM_TEACHER = []
    # Prefixes of the student's parameter names that start at random after MODEL.WEIGHTS: VKD (ECCV
    # 2020) draws the last block and the classifier of a trained student again. (kd_search)
    cfg.DISTILLATION.FRESH_LAYERS = []
