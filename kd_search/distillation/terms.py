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
subclass, and is called as ``cls(cfg)``. Trainable parameters and buffers of a term are optimized
with the student and saved in checkpoints under ``terms``, apart from the student's weights. Terms
are independent of each other: any subset is one list in ``DISTILLATION.TERMS``.
"""


class DistillationTerm(nn.Module):
    """A loss between the outputs of student and teacher.

    A subclass writes :meth:`forward` and declares which parts it reads. See
    docs/adding_a_method.md.
    """

    #: Parts of the student's outputs that :meth:`forward` reads.
    student_parts: frozenset[Part] = frozenset()
    #: Parts of the teacher's outputs that it reads; a teacher runs in every step if any term has
    #: any that no companion provides.
    teacher_parts: frozenset[Part] = frozenset()
    #: Parts whose rows the loss needs of the people of all ranks: of ``identities`` and ``crops``.
    #: Where there are any, :meth:`forward` gets the joint batch, and these parts only.
    joint_parts: frozenset[Part] = frozenset()
    #: Names from ``COMPANION_REGISTRY``: what has to run beside the student.
    companions: Sequence[str] = ()
    #: Whether a teacher is built even if no step reads its outputs, for :meth:`hooks`.
    needs_teacher: bool = False
    #: Share of the training that is done, from 0 on: iteration / ``SOLVER.MAX_ITER``. Set before
    #: every step, see :meth:`Distiller.set_progress`.
    progress: float = 0.0

    @property
    def hard_loss_factors(self) -> dict[str, float]:
        """Factors on losses of the student's own, by name, where the term takes a share of them.

        They are read in every step, and may depend on :attr:`progress`; their names may not.
        """
        return {}

    def scheduled(self, start: float, end: Optional[float]) -> float:
        """Value in this step of a weight that moves linearly from start to end over training.

        Args:
            start: in iteration 0.
            end: after the last iteration; ``None`` for a constant.
        """
        return start if end is None else start + (end - start) * min(self.progress, 1.0)

    def setup(self, student: ModelSpec, teacher: ModelSpec) -> None:
        """Make adapters, and refuse networks that do not fit; called once, before the first batch.

        Args:
            student: specification of the student.
            teacher: that of the teacher, with what companions provide; ``None`` without either,
                which a term without ``teacher_parts`` has to expect.

        Raises:
            ValueError: one line that says what does not fit and which key to change.
        """

    def forward(self, student: ModelOutputs, teacher: ModelOutputs) -> dict[str, torch.Tensor]:
        """Losses by name, each a scalar with a graph.

        Args:
            student: of this batch, with gradient.
            teacher: of the same batch and regions, without; ``None`` as in :meth:`setup`.
        """
        raise NotImplementedError

    def hooks(self, trainer: Any) -> list[Any]:
        """Hooks of the term; they run after the step and before its checkpoint is written.

        Args:
            trainer: a :class:`~kd_search.engine.PersonSearchTrainer` that is being built.
        """
        return []


def end_of_schedule(value: float) -> Optional[float]:
    """The ``end`` of :meth:`DistillationTerm.scheduled` from a config key; -1 is a constant."""
    return None if value == -1 else value


def build_terms(cfg: CfgNode) -> nn.ModuleDict:
    """Build every term named in ``DISTILLATION.TERMS``, in order.

    Raises:
        ValueError: for an unknown or repeated name, or a class that is no term.
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
    """Check that every module is a term.

    Raises:
        ValueError: as :func:`check_protocol`.
    """
    for term in terms.values():
        check_protocol(term, Term, "a term", "DISTILLATION.TERMS")
