"""The meta-architecture that trains a student with distillation terms."""

from typing import Optional

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from kd_search.distillation.teacher import Teacher, build_teacher
from kd_search.distillation.terms import build_terms


@META_ARCH_REGISTRY.register()
class Distiller(nn.Module):
    """A student, the terms that teach it and, where a term asks for one, a frozen teacher.

    In training the losses are the student's own and those of every term. In evaluation it is the
    student. Checkpoints store ``student`` as the model, so that the result loads into a plain
    config; the terms are stored apart.
    """

    @configurable
    def __init__(
        self, *, student: nn.Module, terms: nn.ModuleDict, teacher: Optional[Teacher] = None
    ):
        """
        Args:
            student: a meta-architecture with ``forward_train(batch) -> (losses, Knowledge)``.
            terms: name to term, see ``DISTILLATION_TERM_REGISTRY``.
            teacher: runs in every step if any term has ``teacher_fields``.
        """
        super().__init__()
        self.student = student
        self.terms = terms
        # In a list: a module attribute would be registered and saved.
        self._teachers = [] if teacher is None else [teacher]

    @classmethod
    def from_config(cls, cfg):
        student_cfg = cfg.clone()
        student_cfg.defrost()
        student_cfg.MODEL.META_ARCHITECTURE = cfg.DISTILLATION.STUDENT_META_ARCH
        student = META_ARCH_REGISTRY.get(cfg.DISTILLATION.STUDENT_META_ARCH)(student_cfg)
        if not hasattr(student, "forward_train"):
            raise ValueError(
                f"DISTILLATION.STUDENT_META_ARCH {cfg.DISTILLATION.STUDENT_META_ARCH!r} has no "
                "forward_train(): it cannot be a student"
            )
        terms = build_terms(cfg)
        fields = frozenset().union(*(term.teacher_fields for term in terms.values()))
        return {
            "student": student,
            "terms": terms,
            "teacher": build_teacher(cfg, fields) if fields else None,
        }

    @property
    def teacher(self) -> Optional[Teacher]:
        return self._teachers[0] if self._teachers else None

    @property
    def device(self) -> torch.device:
        return self.student.device

    def forward(self, batched_inputs: list[dict]):
        """Losses in training; otherwise what the student returns."""
        if not self.training:
            return self.student(batched_inputs)
        losses, knowledge = self.student.forward_train(batched_inputs)
        observed = self.teacher.observe(batched_inputs, knowledge) if self.teacher else None
        for name, term in self.terms.items():
            for key, value in term(knowledge, observed).items():
                if key in losses:
                    raise ValueError(f"the term {name} names its loss {key!r}, which exists")
                losses[key] = value
        return losses

    def inference(self, *args, **kwargs):
        """As the student's."""
        return self.student.inference(*args, **kwargs)

    def embed(self, *args, **kwargs) -> torch.Tensor:
        """As the student's."""
        return self.student.embed(*args, **kwargs)

    def train(self, mode: bool = True) -> "Distiller":
        super().train(mode)
        for teacher in self._teachers:
            teacher.model.eval()
        return self

    def _apply(self, fn, *args, **kwargs):
        # .to(), .cuda(), .half(): the teacher is no submodule, so it is moved here.
        for teacher in self._teachers:
            teacher.model._apply(fn, *args, **kwargs)
        return super()._apply(fn, *args, **kwargs)
