"""Distillation terms: base class, registry and construction."""

from collections.abc import Sequence
from typing import Any, Optional

import torch
from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import nn

from kd_search.distillation.protocols import Term, check_protocol
from kd_search.outputs import ModelOutputs, ModelSpec, Part

DISTILLATION_TERM_REGISTRY = Registry("DISTILLATION_TERM")
DISTILLATION_TERM_REGISTRY.__doc__ = """
Distillation terms: modules that compare the outputs of student and teacher.

A registered class has the attributes and methods of :class:`DistillationTerm`, usually by being a
subclass, and is called as ``cls(cfg)``. Parameters and buffers of a term are optimized with the
student and saved in checkpoints under ``terms``. Terms are independent of each other: any subset
is one list in ``DISTILLATION.TERMS``.
"""


class DistillationTerm(nn.Module):
    """A loss between the outputs of student and teacher; see docs/adding_a_method.md."""

    #: Parts of the student's outputs that :meth:`forward` reads.
    student_parts: frozenset[Part] = frozenset()
    #: Parts of the teacher's outputs that it reads. The teacher runs in every step if no companion
    #: provides them.
    teacher_parts: frozenset[Part] = frozenset()
    #: Parts of ``identities`` and ``crops`` with the people of all ranks. If there are any,
    #: :meth:`forward` gets the joint batch, with these parts only.
    joint_parts: frozenset[Part] = frozenset()
    #: Names from ``COMPANION_REGISTRY`` that must run beside the student.
    companions: Sequence[str] = ()
    #: Whether a teacher is built even if no step reads its outputs, for :meth:`hooks`.
    needs_teacher: bool = False
    #: Iteration / ``SOLVER.MAX_ITER``, set before every step by :meth:`Distiller.set_progress`.
    progress: float = 0.0

    @property
    def hard_loss_factors(self) -> dict[str, float]:
        """Factors that scale losses of the student, by name; read in every step.

        The factors may depend on :attr:`progress`, the names may not.
        """
        return {}

    def scheduled(self, start: float, end: Optional[float]) -> float:
        """Value in this step of a weight that changes linearly over training.

        Args:
            start: in iteration 0.
            end: after the last iteration; ``None`` for a constant.
        """
        return start if end is None else start + (end - start) * min(self.progress, 1.0)

    def setup(self, student: ModelSpec, teacher: ModelSpec) -> None:
        """Create adapters and check the networks; called once, before the first batch.

        Args:
            student: specification of the student.
            teacher: of the teacher, with the parts of companions; ``None`` if there is neither,
                which happens to terms without ``teacher_parts``.

        Raises:
            ValueError: the networks do not fit; one line that names the key to change.
        """

    def forward(self, student: ModelOutputs, teacher: ModelOutputs) -> dict[str, torch.Tensor]:
        """Losses by name, each a scalar with a graph.

        Args:
            student: of this batch, with gradient.
            teacher: of the same batch and regions, without gradient; ``None`` as in :meth:`setup`.
        """
        raise NotImplementedError

    def hooks(self, trainer: Any) -> list[Any]:
        """Hooks of the term; they run after the step and before its checkpoint is written.

        Args:
            trainer: a :class:`~kd_search.engine.PersonSearchTrainer` under construction.
        """
        return []


def end_of_schedule(value: float) -> Optional[float]:
    """The ``end`` of :meth:`DistillationTerm.scheduled` from a config key; -1 is a constant."""
    return None if value == -1 else value


def module_name(*features: str) -> str:
    """Name of a module for feature maps: ``nn.ModuleDict`` refuses names with a dot."""
    return "_".join(features).replace(".", "_")


def build_terms(cfg: CfgNode) -> nn.ModuleDict:
    """Build the terms of ``DISTILLATION.TERMS``, in order.

    Raises:
        ValueError: a name is unknown or repeated, or a class lacks a method of a term.
    """
    terms = nn.ModuleDict()
    known = sorted(name for name, _ in DISTILLATION_TERM_REGISTRY)
    for name in cfg.DISTILLATION.TERMS:
        if name not in known:
            raise ValueError(
                f"DISTILLATION.TERMS: {name!r} is none of {known}; a term of another package is "
                "registered by importing it (--import MODULE)"
            )
        if name in terms:
            raise ValueError(f"DISTILLATION.TERMS names {name!r} twice")
        terms[name] = DISTILLATION_TERM_REGISTRY.get(name)(cfg)
    check_terms(terms)
    return terms


def check_terms(terms: Any) -> None:
    """Raise ValueError if a module lacks a method or attribute of a term."""
    for term in terms.values():
        check_protocol(term, Term, "a term", "DISTILLATION.TERMS")
