"""Distillation terms: their base class, their registry, and how they are built."""

from typing import Optional

import torch
from detectron2.utils.registry import Registry
from torch import nn

from kd_search.outputs import Knowledge, Layout


class DistillationTerm(nn.Module):
    """Compares what student and teacher know of a batch.

    Only :meth:`forward` has to be written; see docs/adding_a_term.md.
    """

    #: Fields of :class:`Knowledge` that a teacher must fill; empty where no teacher has to run.
    teacher_fields: frozenset[str] = frozenset()
    #: Fields of which the loss needs the people of all ranks (``JOINABLE_FIELDS``). Where there are
    #: any, :meth:`forward` gets the joint batch, and these fields only.
    joint_fields: frozenset[str] = frozenset()
    #: Whether :meth:`forward` reads ``student.agreement``, regions beside prototypes; a teacher
    #: must then fill ``features``.
    needs_agreement: bool = False
    #: Length of the embeddings of given boxes that it asks a live teacher for between steps; 0 for
    #: none. Such a teacher need not run in a step.
    teacher_embedding_dim: int = 0
    #: Whether it needs the prototypes themselves, or weights that come from them.
    needs_prototypes: bool = False
    #: Whether it reads ``student.agreement.anchor_weights``; the student is then a dense detector.
    needs_anchor_weights: bool = False
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

    def connect(self, student: Layout, teacher: Optional[Layout]) -> None:
        """Called once, before the first batch: make adapters, refuse networks that do not fit.

        Args:
            student: layout of the student.
            teacher: layout of the teacher, in the student's terms; ``None`` where none runs.

        Raises:
            ValueError: one line that says what does not fit and which key to change.
        """

    def forward(self, student: Knowledge, teacher: Optional[Knowledge]) -> dict[str, torch.Tensor]:
        """Losses by name, each a scalar with a graph.

        Args:
            student: of this batch, with gradient.
            teacher: of the same batch and regions, without; ``None`` where no teacher runs.
        """
        raise NotImplementedError


def end_of_schedule(value: float) -> Optional[float]:
    """What a config key of the end of :meth:`DistillationTerm.scheduled` says; -1 is a constant."""
    return None if value == -1 else value


DISTILLATION_TERM_REGISTRY = Registry("DISTILLATION_TERM")
DISTILLATION_TERM_REGISTRY.__doc__ = """
Distillation terms: modules that compare what student and teacher know.

A registered class is a :class:`DistillationTerm`, called as ``cls(cfg)``. It has

* ``teacher_fields``: a frozenset of names of fields of :class:`kd_search.outputs.Knowledge`
  that a teacher must fill; empty where no teacher has to run;
* ``teacher_embedding_dim``: length of the embeddings that it asks a live teacher for between steps;
  0 for none;
* ``connect(student, teacher)``: called once with the two networks' ``Layout``;
* ``needs_agreement``: whether it reads ``student.agreement``, regions beside prototypes;
* ``hard_loss_factors``: factors on the student's own losses, by name;
* ``forward(student, teacher)``: takes the student's ``Knowledge`` and the teacher's (``None`` when
  no term asks for any), and returns ``{"loss_...": scalar}``.

Trainable parts and buffers of a term are saved in checkpoints under ``terms``, apart from the
student's weights. Terms know nothing of each other: any subset is one list in
``DISTILLATION.TERMS``.
"""


def build_terms(cfg) -> nn.ModuleDict:
    """Build every term named in ``DISTILLATION.TERMS``, in order.

    Raises:
        ValueError: for an unknown or repeated name.
    """
    terms = nn.ModuleDict()
    known = sorted(name for name, _ in DISTILLATION_TERM_REGISTRY)
    for name in cfg.DISTILLATION.TERMS:
        if name not in known:
            raise ValueError(f"DISTILLATION.TERMS: {name!r} is none of {known}")
        if name in terms:
            raise ValueError(f"DISTILLATION.TERMS names {name!r} twice")
        terms[name] = DISTILLATION_TERM_REGISTRY.get(name)(cfg)
    return terms
