"""Where distillation terms are registered and built."""

from detectron2.utils.registry import Registry
from torch import nn

DISTILLATION_TERM_REGISTRY = Registry("DISTILLATION_TERM")
DISTILLATION_TERM_REGISTRY.__doc__ = """
Distillation terms: modules that compare what student and teacher know.

A registered class is a :class:`DistillationTerm`, called as ``cls(cfg)``. It has

* ``teacher_fields``: a frozenset of names of fields of :class:`kd_search.structures.Knowledge`
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
