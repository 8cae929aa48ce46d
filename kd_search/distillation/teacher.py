"""A frozen teacher: built from its own config and weights, run beside the student."""

from collections.abc import Iterable

import torch
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from kd_search.checkpoint import load_trained
from kd_search.config import add_kd_search_config
from kd_search.structures import Knowledge


class Teacher:
    """Owns a network that never trains.

    Not a module on purpose: held by a module in a plain attribute, it stays out of the student's
    ``state_dict``, its optimizer and its DDP buckets. Its owner forwards ``.to(device)``.
    """

    def __init__(self, model: nn.Module, fields: Iterable[str]):
        """
        Args:
            model: a meta-architecture with ``observe(batch, student, fields)``.
            fields: names of the fields of :class:`Knowledge` that it is asked for.
        """
        self.model = model.eval().requires_grad_(False)
        self.fields = frozenset(fields)

    @torch.no_grad()
    def observe(self, batched_inputs: list[dict], student: Knowledge) -> Knowledge:
        """The teacher's knowledge of the student's batch and regions, without gradient."""
        return self.model.observe(batched_inputs, student, self.fields)


def build_teacher(cfg, fields: Iterable[str]) -> Teacher:
    """Build the teacher of ``DISTILLATION.TEACHER`` and load its weights.

    Args:
        cfg: the student's config.
        fields: what the terms ask for.

    Raises:
        ValueError: if no config file is named, or the network cannot teach.
    """
    node = cfg.DISTILLATION.TEACHER
    fields = frozenset(fields)
    if not node.CONFIG_FILE:
        raise ValueError(
            f"DISTILLATION.TEACHER.CONFIG_FILE is empty, but the terms ask a teacher for "
            f"{sorted(fields)}"
        )
    teacher_cfg = get_cfg()
    add_kd_search_config(teacher_cfg)
    teacher_cfg.merge_from_file(node.CONFIG_FILE)
    teacher_cfg.merge_from_list(list(node.OPTS))
    teacher_cfg.MODEL.DEVICE = cfg.MODEL.DEVICE
    if "identity_logits" in fields:
        teacher_cfg.MODEL.OIM.NUM_IDS = teacher_cfg.MODEL.OIM.NUM_IDS or cfg.MODEL.OIM.NUM_IDS
    else:
        teacher_cfg.MODEL.OIM.ENABLED = False
    name = teacher_cfg.MODEL.META_ARCHITECTURE
    if name == "Distiller":
        # A network that was itself distilled teaches without its own teacher.
        name = teacher_cfg.DISTILLATION.STUDENT_META_ARCH
    model = META_ARCH_REGISTRY.get(name)(teacher_cfg)
    if not hasattr(model, "observe"):
        raise ValueError(f"{name} of {node.CONFIG_FILE} has no observe(): it cannot be a teacher")
    weights = node.WEIGHTS or teacher_cfg.MODEL.WEIGHTS
    if not weights:
        raise ValueError("DISTILLATION.TEACHER.WEIGHTS is empty: name the weights of the teacher")
    load_trained(model, weights, trust_pickle=cfg.MODEL.TRUST_PICKLE)
    return Teacher(model.to(cfg.MODEL.DEVICE), fields)
