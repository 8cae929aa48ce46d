"""Config keys of distillation that all methods share; methods register their own."""

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
    # Config file of the frozen teacher, or name of a shipped one; empty if no term requires one.
    # (kd_search)
    cfg.DISTILLATION.TEACHER.CONFIG_FILE = ""
    # Weights of the teacher; empty: MODEL.WEIGHTS of its config file. (kd_search)
    cfg.DISTILLATION.TEACHER.WEIGHTS = ""
    # "KEY VALUE" overrides of the teacher's config. (kd_search)
    cfg.DISTILLATION.TEACHER.OPTS = []
    # Pairs [class of the teacher, class of the student]; several classes of the teacher may map to
    # one, and others count as background. Empty: the same classes in the same order. (kd_search)
    cfg.DISTILLATION.TEACHER.CLASS_MAP = []

    # Batch normalisation of the teacher by the statistics of the batch, instead of its running
    # statistics, which do not change: as in the code of VKD (ECCV 2020).
    cfg.DISTILLATION.TEACHER.BATCH_STATISTICS = False

    # Layers of the student that are copied from the teacher, after MODEL.WEIGHTS: prefixes of
    # parameter names, or [prefix of the student, prefix of the teacher]. (kd_search)
    cfg.DISTILLATION.INIT_FROM_TEACHER = []
    # Prefixes of the student's parameters that are reinitialised after MODEL.WEIGHTS: in VKD (ECCV
    # 2020) the last block and the classifier of a trained student. (kd_search)
    cfg.DISTILLATION.FRESH_LAYERS = []
