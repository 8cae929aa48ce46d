"""Frozen teachers: built from their own config and weights, run beside the student."""

from typing import Any, Optional

import torch
from detectron2.config import CfgNode
from torch import nn

from kd_search.checkpoint import load_trained
from kd_search.config.files import read_network_config
from kd_search.distillation.alignment import TeacherOutputAligner
from kd_search.distillation.protocols import (
    Batch,
    EmbeddingTeacher,
    RegionTeacher,
    Teacher,
    check_protocol,
)
from kd_search.modeling import build_distillable
from kd_search.outputs import REGION_PARTS, ModelOutputs, ModelSpec, Part, names_of

_KEY = "DISTILLATION.TEACHER.CONFIG_FILE"


class FrozenTeacher:
    """A network that is not trained.

    It is not an ``nn.Module``, so that it stays out of the ``state_dict``, optimizer and DDP
    buckets of the module that holds it. The owner moves ``model`` in its ``.to(device)``.
    """

    def __init__(
        self,
        model: nn.Module,
        parts: frozenset[Part] = frozenset(),
        aligner: Optional[TeacherOutputAligner] = None,
        *,
        batch_statistics: bool = False,
    ):
        """
        Args:
            model: a :class:`~kd_search.distillation.protocols.Teacher`; for parts of regions, a
                ``RegionTeacher``.
            parts: that it outputs in a step.
            aligner: to the classes and scales of its student; ``None`` if they are the same.
            batch_statistics: normalise by the statistics of the batch, as VKD (ECCV 2020) does.

        Raises:
            ValueError: the network lacks a method or a part.
        """
        check_protocol(model, Teacher, "a teacher", _KEY)
        #: What is fixed about the network.
        self.spec: ModelSpec = model.spec()  # type: ignore[operator]  # checked above
        missing = frozenset(parts) - self.spec.parts
        if missing:
            raise ValueError(
                f"{_KEY}: the terms require {names_of(missing)} of the teacher, and "
                f"{type(model).__name__} outputs {names_of(self.spec.parts)}: use another "
                "teacher, or remove terms from DISTILLATION.TERMS"
            )
        if parts & REGION_PARTS:
            check_protocol(model, RegionTeacher, "a teacher of regions", _KEY)
        self.model: Any = model.eval().requires_grad_(False)
        if batch_statistics:
            use_batch_statistics(self.model)
        self.parts = frozenset(parts)
        self.aligner = aligner

    @torch.no_grad()
    def forward_teacher(self, batched_inputs: Batch) -> ModelOutputs:
        """Outputs of the student's batch before the student runs, not yet aligned."""
        outputs: ModelOutputs = self.model.forward_teacher(self.inputs(batched_inputs), self.parts)
        return outputs

    @torch.no_grad()
    def forward_regions(self, outputs: ModelOutputs, student: ModelOutputs) -> ModelOutputs:
        """``outputs`` of :meth:`forward_teacher` with the student's regions, aligned.

        They have no gradient; see :class:`TeacherOutputAligner`.
        """
        if hasattr(self.model, "forward_regions"):
            outputs = self.model.forward_regions(outputs, student, self.parts)
        return outputs if self.aligner is None else self.aligner.align(outputs)

    @torch.no_grad()
    def embed(self, batched_inputs: Batch, boxes: list[torch.Tensor]) -> torch.Tensor:
        """Embeddings of given boxes in the student's batch, by the network's ``embed``.

        Raises:
            ValueError: the network has no ``embed``.
        """
        check_protocol(self.model, EmbeddingTeacher, "a teacher of embeddings", _KEY)
        embeddings: torch.Tensor = self.model.embed(self.inputs(batched_inputs), boxes)
        return embeddings

    def inputs(self, batched_inputs: Batch) -> Batch:
        """The student's batch in the teacher's order of channels."""
        return batched_inputs if self.aligner is None else self.aligner.inputs(batched_inputs)


def use_batch_statistics(model: nn.Module) -> None:
    """Make batch normalisation use the batch's statistics in evaluation mode.

    The running statistics do not change: a student may start with them.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats = False
            module.register_forward_pre_hook(_in_training_mode)


def _in_training_mode(norm: nn.Module, inputs: Any) -> None:
    # In evaluation mode torch would use the running statistics.
    norm.train()


def build_teacher(cfg: CfgNode, parts: frozenset[Part], student: ModelSpec) -> FrozenTeacher:
    """Build the teacher of ``DISTILLATION.TEACHER`` and load its weights.

    Args:
        cfg: the student's config.
        parts: that the terms require.
        student: specification of the student.

    Raises:
        ValueError: no config file is given, the network lacks a method or part, or its classes
            differ from the student's.
    """
    node = cfg.DISTILLATION.TEACHER
    if not node.CONFIG_FILE:
        if parts:
            what = f"the terms require {names_of(parts)} of a teacher"
        elif cfg.DISTILLATION.INIT_FROM_TEACHER:
            what = "DISTILLATION.INIT_FROM_TEACHER requires a teacher"
        else:
            what = "a term requires a teacher"
        raise ValueError(f"{_KEY} is empty, but {what}")
    teacher_cfg = read_teacher_config(cfg, node, "DISTILLATION.TEACHER")
    if Part.IDENTITY_LOGITS in parts:
        teacher_cfg.MODEL.OIM.NUM_IDS = teacher_cfg.MODEL.OIM.NUM_IDS or cfg.MODEL.OIM.NUM_IDS
    else:
        teacher_cfg.MODEL.OIM.ENABLED = False
    if teacher_cfg.MODEL.REID_NETWORK.NUM_IDS == 0:
        teacher_cfg.MODEL.REID_NETWORK.NUM_IDS = cfg.MODEL.REID_NETWORK.NUM_IDS
    model = build_distillable(teacher_cfg, f"{_KEY}: MODEL.META_ARCHITECTURE")
    teacher = FrozenTeacher(model, parts, batch_statistics=node.BATCH_STATISTICS)
    teacher.aligner = TeacherOutputAligner(student, teacher.spec, node.CLASS_MAP)
    load_teacher(model, cfg, node, teacher_cfg, "DISTILLATION.TEACHER")
    return teacher


def read_teacher_config(cfg: CfgNode, node: CfgNode, key: str) -> CfgNode:
    """The teacher's own config, on the student's device.

    Args:
        cfg: the student's config.
        node: with ``CONFIG_FILE`` and ``OPTS``.
        key: of the node, for errors.

    Raises:
        FileNotFoundError: there is no such file, and no shipped config of that name.
        ValueError: the file or ``OPTS`` has an unknown key or a value of another type.
    """
    teacher_cfg = read_network_config(node, key)
    teacher_cfg.MODEL.DEVICE = cfg.MODEL.DEVICE
    if teacher_cfg.MODEL.META_ARCHITECTURE == "Distiller":
        # A distilled network is a teacher without its own teacher.
        teacher_cfg.MODEL.META_ARCHITECTURE = teacher_cfg.DISTILLATION.STUDENT_META_ARCH
    return teacher_cfg


def load_teacher(
    model: nn.Module, cfg: CfgNode, node: CfgNode, teacher_cfg: CfgNode, key: str
) -> str:
    """Load a teacher's weights and move it to the student's device; returns the path.

    Raises:
        ValueError: no weights are given, or they do not fit its config.
    """
    weights: str = node.WEIGHTS or teacher_cfg.MODEL.WEIGHTS
    if not weights:
        raise ValueError(f"{key}.WEIGHTS is empty: set it to the weights of the teacher")
    load_trained(model, weights, trust_pickle=cfg.MODEL.TRUST_PICKLE)
    model.to(cfg.MODEL.DEVICE)
    return weights
