"""A frozen teacher: built from its own config and weights, run beside the student."""

from collections.abc import Iterable
from typing import Optional

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from kd_search.checkpoint import load_trained
from kd_search.config import add_kd_search_config
from kd_search.distillation.alignment import Translation
from kd_search.modeling import as_distillable
from kd_search.outputs import (
    Knowledge,
    Layout,
)


class Teacher:
    """Owns a network that never trains.

    Not a module on purpose: held by a module in a plain attribute, it stays out of the student's
    ``state_dict``, its optimizer and its DDP buckets. Its owner forwards ``.to(device)``.
    """

    def __init__(
        self,
        model: nn.Module,
        fields: Iterable[str],
        translation: Optional[Translation] = None,
        *,
        batch_statistics: bool = False,
    ):
        """
        Args:
            model: a meta-architecture with ``observe(batch, fields)`` and, where regions are asked
                for, ``judge_regions(knowledge, student, fields)``.
            fields: names of the fields of :class:`Knowledge` that it is asked for.
            translation: between this teacher and its student; ``None`` where both speak alike.
            batch_statistics: normalise by those of the batch, as VKD (ECCV 2020) does.
        """
        self.model = model.eval().requires_grad_(False)
        if batch_statistics:
            use_batch_statistics(self.model)
        self.fields = frozenset(fields)
        self.translation = translation

    @torch.no_grad()
    def observe(self, batched_inputs: list[dict]) -> Knowledge:
        """What the teacher knows of the student's batch before the student does, in its own terms.

        It has no gradient. :meth:`judge` takes it.
        """
        return self.model.observe(self.inputs(batched_inputs), self.fields)

    @torch.no_grad()
    def judge(self, knowledge: Knowledge, student: Knowledge) -> Knowledge:
        """The teacher's knowledge of the student's batch and regions, without gradient.

        Args:
            knowledge: of :meth:`observe`, of this batch.
            student: of this batch.

        Returns:
            with the student's regions, classes and delta scales: see :class:`Translation`.
        """
        if hasattr(self.model, "judge_regions"):
            self.model.judge_regions(knowledge, student, self.fields)
        return knowledge if self.translation is None else self.translation.knowledge(knowledge)

    @torch.no_grad()
    def embed(self, batched_inputs: list[dict], boxes: list[torch.Tensor]) -> torch.Tensor:
        """Embeddings of given boxes in the student's batch, as the network's own ``embed``."""
        return self.model.embed(self.inputs(batched_inputs), boxes)

    def inputs(self, batched_inputs: list[dict]) -> list[dict]:
        """The student's batch as the teacher was trained to see it."""
        return (
            batched_inputs if self.translation is None else self.translation.inputs(batched_inputs)
        )


def use_batch_statistics(model: nn.Module) -> None:
    """Make batch normalisation use the batch in evaluation mode too, and remember nothing.

    The running statistics stay as they are: a student may start with them.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats = False
            module.register_forward_pre_hook(_in_training_mode)


def _in_training_mode(norm: nn.Module, inputs) -> None:
    # In evaluation mode torch would use the running statistics that are there.
    norm.train()


def build_teacher(cfg, fields: Iterable[str], student: Layout) -> Teacher:
    """Build the teacher of ``DISTILLATION.TEACHER`` and load its weights.

    Args:
        cfg: the student's config.
        fields: what the terms ask for.
        student: layout of the student.

    Raises:
        ValueError: if no config file is named, the network cannot teach, or its classes are others
            than the student's.
    """
    node = cfg.DISTILLATION.TEACHER
    fields = frozenset(fields)
    if not node.CONFIG_FILE:
        what = f"the terms ask a teacher for {sorted(fields)}" if fields else "the student starts"
        what += "" if fields else " with layers of a teacher (DISTILLATION.INIT_FROM_TEACHER)"
        raise ValueError(f"DISTILLATION.TEACHER.CONFIG_FILE is empty, but {what}")
    teacher_cfg = read_teacher_config(cfg, node)
    if "identity_logits" in fields:
        teacher_cfg.MODEL.OIM.NUM_IDS = teacher_cfg.MODEL.OIM.NUM_IDS or cfg.MODEL.OIM.NUM_IDS
    else:
        teacher_cfg.MODEL.OIM.ENABLED = False
    if teacher_cfg.MODEL.REID_NETWORK.NUM_IDS == 0:
        teacher_cfg.MODEL.REID_NETWORK.NUM_IDS = cfg.MODEL.REID_NETWORK.NUM_IDS
    model = build_network(teacher_cfg, node.CONFIG_FILE, "observe")
    translation = Translation(student, model.layout(), node.CLASS_MAP)
    load_teacher(model, cfg, node, teacher_cfg, "DISTILLATION.TEACHER")
    return Teacher(model, fields, translation, batch_statistics=node.BATCH_STATISTICS)


def read_teacher_config(cfg: CfgNode, node: CfgNode) -> CfgNode:
    """The teacher's own config, on the student's device.

    Args:
        cfg: the student's config.
        node: with ``CONFIG_FILE`` and ``OPTS``.
    """
    teacher_cfg = get_cfg()
    add_kd_search_config(teacher_cfg)
    teacher_cfg.merge_from_file(node.CONFIG_FILE)
    teacher_cfg.merge_from_list(list(node.OPTS))
    teacher_cfg.MODEL.DEVICE = cfg.MODEL.DEVICE
    if teacher_cfg.MODEL.META_ARCHITECTURE == "Distiller":
        # A network that was itself distilled teaches without its own teacher.
        teacher_cfg.MODEL.META_ARCHITECTURE = teacher_cfg.DISTILLATION.STUDENT_META_ARCH
    return as_distillable(teacher_cfg)


def build_network(teacher_cfg: CfgNode, config_file: str, method: str) -> nn.Module:
    """The network of a teacher's config.

    Raises:
        ValueError: it lacks the method that makes it a teacher.
    """
    name = teacher_cfg.MODEL.META_ARCHITECTURE
    model = META_ARCH_REGISTRY.get(name)(teacher_cfg)
    if not hasattr(model, method):
        raise ValueError(f"{name} of {config_file} has no {method}(): it cannot be a teacher")
    return model


def load_teacher(model: nn.Module, cfg, node, teacher_cfg: CfgNode, key: str) -> str:
    """Load a teacher's weights and put it on the student's device; returns the path.

    Raises:
        ValueError: no weights are named, or they are not of its config.
    """
    weights = node.WEIGHTS or teacher_cfg.MODEL.WEIGHTS
    if not weights:
        raise ValueError(f"{key}.WEIGHTS is empty: name the weights of the teacher")
    load_trained(model, weights, trust_pickle=cfg.MODEL.TRUST_PICKLE)
    model.to(cfg.MODEL.DEVICE)
    return weights
