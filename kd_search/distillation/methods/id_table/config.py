"""Config keys of distillation by ID table (Munjal et al., BMVC 2019)."""

from __future__ import annotations

from detectron2.config import CfgNode

from kd_search.config import register_config


@register_config
def add_id_table_config(cfg: CfgNode) -> None:
    """Add ``DISTILLATION.ID_TABLE``."""
    CN = type(cfg)  # noqa: N806
    cfg.DISTILLATION.ID_TABLE = CN()
    # File of kd-search table with the teacher's table (Munjal et al., BMVC 2019).
    # (kd_search)
    cfg.DISTILLATION.ID_TABLE.PATH = ""
    # "frozen": rows do not change, our reading of BMVC 2019; "momentum": rows start at the
    # teacher's and follow OIM's update; "ema": the same with the slower EMA_MOMENTUM. The paper
    # does not state it.
    cfg.DISTILLATION.ID_TABLE.MODE = "frozen"
    # Share of the old row kept in mode "momentum": 0.5 (OIM, CVPR 2017).
    cfg.DISTILLATION.ID_TABLE.MOMENTUM = 0.5
    # Share of the old row kept in mode "ema". Not in the paper. (kd_search)
    cfg.DISTILLATION.ID_TABLE.EMA_MOMENTUM = 0.99
    # Circular queue of unlabelled people: "student" starts empty and is filled by the student,
    # "teacher" starts with the teacher's embeddings of unlabelled boxes, "off" is none. The paper
    # does not state it. (kd_search)
    cfg.DISTILLATION.ID_TABLE.QUEUE = "student"
    # Slots of that queue: 5000 (OIM, CVPR 2017), 500 for PRW.
    cfg.DISTILLATION.ID_TABLE.QUEUE_SIZE = 5000
    # Softmax temperature: 0.1 (OIM, CVPR 2017).
    cfg.DISTILLATION.ID_TABLE.TEMPERATURE = 0.1
    # Weight of the loss: 1.0, that of the loss it replaces.
    cfg.DISTILLATION.ID_TABLE.LOSS_WEIGHT = 1.0
    # Iterations between two recomputations of the rows (IDTableRefreshHook); 0 for none.
    # (kd_search)
    cfg.DISTILLATION.ID_TABLE.REFRESH_PERIOD = 0
    # Embeddings of the new rows. "teacher": means of those of DISTILLATION.TEACHER on the training
    # images with the student's augmentation. "blend": the rows of PATH with a share of the means of
    # the student's, without augmentation; not with MODE "frozen". The student's alone is
    # MODEL.OIM.REFRESH_PERIOD, for its own table. (kd_search)
    cfg.DISTILLATION.ID_TABLE.REFRESH_SOURCE = "teacher"
    # Source "teacher": average the means of all refreshes so far, each with other augmentations,
    # instead of using those of the last. (kd_search)
    cfg.DISTILLATION.ID_TABLE.REFRESH_AVERAGE = False
    # Source "blend": share s of the student between 0 and 1, in normalize((1 - s) teacher +
    # s student). (kd_search)
    cfg.DISTILLATION.ID_TABLE.REFRESH_STUDENT_SHARE = 0.5
