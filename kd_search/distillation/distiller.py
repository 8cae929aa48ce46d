"""The meta-architecture that trains a student with distillation terms."""

from collections.abc import Sequence
from typing import Optional

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from kd_search.distillation.initialisation import init_from_teacher
from kd_search.distillation.teacher import Teacher, build_teacher
from kd_search.distillation.terms import build_terms
from kd_search.modeling import as_distillable


@META_ARCH_REGISTRY.register()
class Distiller(nn.Module):
    """A student, the terms that teach it and, where a term asks for one, a frozen teacher.

    In training the losses are the student's own and those of every term. In evaluation it is the
    student. Checkpoints store ``student`` as the model, so that the result loads into a plain
    config; the terms are stored apart.
    """

    @configurable
    def __init__(
        self,
        *,
        student: nn.Module,
        terms: nn.ModuleDict,
        teacher: Optional[Teacher] = None,
        init_layers: Sequence = (),
    ):
        """
        Args:
            student: a meta-architecture with ``forward_train(batch) -> (losses, Knowledge)`` and
                ``layout()``.
            terms: name to term, see ``DISTILLATION_TERM_REGISTRY``; they are connected here.
            teacher: runs in every step if any term has ``teacher_fields``.
            init_layers: what :meth:`init_from_teacher` copies.

        Raises:
            ValueError: student and teacher do not fit a term, or two terms share one loss.
        """
        super().__init__()
        self.student = student
        self.terms = terms
        # In a list: a module attribute would be registered and saved.
        self._teachers = [] if teacher is None else [teacher]
        self._init_layers = list(init_layers)
        self._observes = any(term.teacher_fields for term in terms.values())
        layouts = student.layout(), teacher.model.layout() if teacher else None
        for term in terms.values():
            term.connect(*layouts)
        self._hard_loss_factors = _merge_factors(terms)

    @classmethod
    def from_config(cls, cfg):
        student_cfg = cfg.clone()
        student_cfg.defrost()
        student_cfg.MODEL.META_ARCHITECTURE = cfg.DISTILLATION.STUDENT_META_ARCH
        student_cfg = as_distillable(student_cfg)
        student = META_ARCH_REGISTRY.get(student_cfg.MODEL.META_ARCHITECTURE)(student_cfg)
        if not hasattr(student, "forward_train"):
            raise ValueError(
                f"DISTILLATION.STUDENT_META_ARCH {cfg.DISTILLATION.STUDENT_META_ARCH!r} has no "
                "forward_train(): it cannot be a student"
            )
        terms = build_terms(cfg)
        fields = frozenset().union(*(term.teacher_fields for term in terms.values()))
        layers = cfg.DISTILLATION.INIT_FROM_TEACHER
        needed = bool(fields or layers)
        return {
            "student": student,
            "terms": terms,
            "teacher": build_teacher(cfg, fields, student.layout()) if needed else None,
            "init_layers": layers,
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
        for name, factor in self._hard_loss_factors.items():
            losses[name] = losses[name] * factor
        observed = self.teacher.observe(batched_inputs, knowledge) if self._observes else None
        for name, term in self.terms.items():
            for key, value in term(knowledge, observed).items():
                if key in losses:
                    raise ValueError(f"the term {name} names its loss {key!r}, which exists")
                losses[key] = value
        return losses

    def init_from_teacher(self) -> list[str]:
        """Copy ``DISTILLATION.INIT_FROM_TEACHER`` into the student; call it after loading weights.

        Returns:
            names of what was copied; see :func:`kd_search.distillation.init_from_teacher`.
        """
        if not self._init_layers:
            return []
        return init_from_teacher(self.student, self.teacher.model, self._init_layers)

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


def _merge_factors(terms: nn.ModuleDict) -> dict[str, float]:
    merged: dict[str, float] = {}
    owner: dict[str, str] = {}
    for name, term in terms.items():
        for loss, factor in term.hard_loss_factors.items():
            if loss in merged:
                raise ValueError(
                    f"DISTILLATION.TERMS: {owner[loss]} and {name} both take a share of the "
                    f"student's {loss}"
                )
            merged[loss], owner[loss] = factor, name
    return merged
