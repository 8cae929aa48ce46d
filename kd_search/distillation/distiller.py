"""The meta-architecture that trains a student with distillation terms."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, Optional, cast

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from kd_search.config import ConfigError
from kd_search.distillation.companions import (
    COMPANION_REGISTRY,
    Companion,
    build_companions,
    check_companions,
    companions_of,
)
from kd_search.distillation.initialisation import copy_layers, init_from_teacher, reinitialize
from kd_search.distillation.joint_batch import JOINABLE_PARTS, join_outputs
from kd_search.distillation.protocols import Batch, CropStudent, Losses, Student, check_protocol
from kd_search.distillation.teacher import FrozenTeacher, build_teacher
from kd_search.distillation.terms import build_terms, check_terms
from kd_search.modeling import FeatureNetwork, build_distillable
from kd_search.outputs import (
    ANCHOR_PARTS,
    CROP_PARTS,
    IDENTITY_PARTS,
    REGION_PARTS,
    ModelOutputs,
    Part,
    names_of,
)

_STUDENT_KEY = "DISTILLATION.STUDENT_META_ARCH"
#: How to configure a student with a missing part.
_HINTS = (
    (ANCHOR_PARTS, "use MODEL.PROPOSAL_GENERATOR.NAME RPN, or a RetinaNet"),
    (REGION_PARTS, "use MODEL.ROI_HEADS.NAME StandardROIHeads or Res5ROIHeads"),
    (
        frozenset({Part.IDENTITY_LOGITS, Part.CROP_LOGITS}),
        "set MODEL.REID_HEAD.CLASSIFIER or MODEL.OIM.ENABLED to True",
    ),
    (IDENTITY_PARTS | CROP_PARTS, "use a network with a re-ID branch, such as PersonSearchRCNN"),
)


@META_ARCH_REGISTRY.register()
class Distiller(nn.Module):
    """A student with distillation terms and, where terms require them, teacher and companions.

    In training the losses are the student's own and those of every term. In evaluation it is the
    student. Checkpoints store ``student`` as the model, so that the result loads into a plain
    config; terms and companions have their own keys, the teacher has none.
    """

    @configurable
    def __init__(
        self,
        *,
        student: Any,
        terms: Any,
        teacher: Optional[FrozenTeacher] = None,
        companions: Optional[Mapping[str, Companion]] = None,
        init_layers: Sequence[Any] = (),
        fresh_layers: Sequence[str] = (),
        gather_over_ranks: bool = True,
    ):
        """
        Args:
            student: a :class:`~kd_search.distillation.protocols.Student`.
            terms: ``nn.ModuleDict``, name to term, see ``DISTILLATION_TERM_REGISTRY``; they are set
                up here.
            teacher: runs in every step if any term requires parts of it.
            companions: name to companion, see ``COMPANION_REGISTRY``; those that the terms name.
            init_layers: layers that :meth:`initialise` copies from the teacher.
            fresh_layers: layers that :meth:`initialise` resets to their current values.
            gather_over_ranks: terms with ``joint_parts`` get the people of all ranks.

        Raises:
            ValueError: a class lacks a method, student or teacher lack a part, networks do not fit
                a term, or two terms scale the same loss.
        """
        super().__init__()
        self.student = student
        self.terms = terms
        # Not an nn.Module, which would be registered and saved.
        self.teacher: Any = teacher
        self.companions = cast(Any, nn.ModuleDict(dict(companions or {})))
        check_terms(terms)
        check_companions(terms, self.companions)
        _check_student(student, terms, self.companions)
        _check_teacher(teacher, terms, self.companions)
        self._init_layers = list(init_layers)
        self._fresh_values = copy_layers(student, fresh_layers)
        self._joint_parts = _joint_parts(terms) if gather_over_ranks else frozenset()
        self._runs_teacher = bool(_teacher_parts(terms, self.companions.values()))
        spec = reduce(
            lambda spec, companion: companion.extend_spec(spec),
            self.companions.values(),
            None if teacher is None else teacher.spec,
        )
        for name, companion in self.companions.items():
            # Companions of older packages that are no subclass of Companion do not have it.
            if teacher is not None and hasattr(companion, "set_teacher"):
                companion.set_teacher(teacher.model)
            companion.setup([term for term in terms.values() if name in term.companions])
        for term in terms.values():
            term.setup(self.student.spec(), spec)
        _merge_factors(terms)  # raises if two terms scale the same loss

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        student_cfg = cfg.clone()
        student_cfg.defrost()
        student_cfg.MODEL.META_ARCHITECTURE = cfg.DISTILLATION.STUDENT_META_ARCH
        student: Any = build_distillable(student_cfg, _STUDENT_KEY)
        check_protocol(student, Student, "a student", _STUDENT_KEY)
        terms: Any = build_terms(cfg)
        names = companions_of(terms)
        # The parts of companions are known before they are built. The student is checked before a
        # teacher is built, whose errors would come first.
        classes: dict[str, Any] = {name: COMPANION_REGISTRY.get(name) for name in names}
        _check_student(student, terms, classes)
        spec, teacher = student.spec(), None
        parts = _teacher_parts(terms, classes.values())
        needs_teacher = any(term.needs_teacher for term in terms.values())
        if parts or needs_teacher or cfg.DISTILLATION.INIT_FROM_TEACHER:
            teacher = build_teacher(cfg, parts, spec)
        return {
            "student": student,
            "terms": terms,
            "teacher": teacher,
            "companions": build_companions(cfg, names, spec, teacher.spec if teacher else None),
            "init_layers": cfg.DISTILLATION.INIT_FROM_TEACHER,
            "fresh_layers": cfg.DISTILLATION.FRESH_LAYERS,
            "gather_over_ranks": cfg.SOLVER.GATHER_OVER_RANKS,
        }

    @property
    def device(self) -> torch.device:
        device: torch.device = self.student.device
        return device

    @property
    def needs_original_images(self) -> bool:
        """Whether batches must hold the original images (``INPUT.WITH_ORIGINAL_IMAGE``)."""
        return any(companion.needs_original_images for companion in self.companions.values())

    def forward(self, batched_inputs: Batch) -> Any:
        """Losses in training; otherwise the student's results."""
        if not self.training:
            return self.student(batched_inputs)
        # The teacher runs first: after the student, its activations would add to those of the
        # student's graph, which costs time on a CPU as well.
        teacher = self.teacher.forward_teacher(batched_inputs) if self._runs_teacher else None
        early = {n: c.before_student(batched_inputs) for n, c in self.companions.items()}
        losses, student = self.student.forward_train(batched_inputs)
        self._scale_hard_losses(losses)
        if teacher is not None:
            teacher = self.teacher.forward_regions(teacher, student)
        for name, companion in self.companions.items():
            added = companion.after_student(self.student, student, teacher, early[name])
            if not (isinstance(added, tuple) and len(added) == 2):
                raise ConfigError(
                    f"DISTILLATION.TERMS: after_student() of the companion {name} must return the "
                    f"outputs of student and teacher, it returned a {type(added).__name__}"
                )
            student, teacher = added
        self._add_terms(losses, student, teacher)
        return losses

    def _scale_hard_losses(self, losses: Losses) -> None:
        for loss, (factor, owner) in _merge_factors(self.terms).items():
            if loss not in losses:
                raise ValueError(
                    f"DISTILLATION.TERMS: {owner}.hard_loss_factors names {loss}, and "
                    f"{type(self.student).__name__} has the losses {', '.join(sorted(losses))}"
                )
            losses[loss] = losses[loss] * factor

    def _add_terms(
        self, losses: Losses, student: ModelOutputs, teacher: Optional[ModelOutputs]
    ) -> None:
        joint = None
        # Without gradients nothing is trained, and other ranks may not make the call.
        if self._joint_parts and torch.is_grad_enabled():
            joint = join_outputs(student, teacher, self._joint_parts)
        for name, term in self.terms.items():
            outputs = joint if term.joint_parts and joint else (student, teacher)
            for key, value in term(*outputs).items():
                if key in losses:
                    raise ValueError(
                        f"DISTILLATION.TERMS: {name} returns {key!r}, which is already a loss"
                    )
                losses[key] = value

    def set_progress(self, progress: float) -> None:
        """Set iteration / ``SOLVER.MAX_ITER``, before every step.

        Weights that change over training depend on it alone: resuming does not change them.
        """
        for term in self.terms.values():
            term.progress = progress
        for companion in self.companions.values():
            companion.set_progress(progress)

    def companion_hooks(self, trainer: Any) -> list[Any]:
        """Hooks of the companions, see :meth:`Companion.hooks`."""
        return [h for c in self.companions.values() for h in c.hooks(trainer, self)]

    def term_hooks(self, trainer: Any) -> list[Any]:
        """Hooks of the terms, see :meth:`DistillationTerm.hooks`."""
        return [hook for term in self.terms.values() for hook in term.hooks(trainer)]

    def checkpoint_parts(self) -> tuple[nn.Module, dict[str, nn.Module]]:
        """The network that checkpoints hold as ``model``, and the modules under other keys."""
        parts = {"terms": self.terms}
        for name, companion in self.companions.items():
            if companion.state_dict():
                parts[companion.checkpoint_key or name] = companion
        return self.student, parts

    def initialise(self) -> list[str]:
        """Set the student's initial layers, after its weights were loaded.

        Resets ``DISTILLATION.FRESH_LAYERS`` to their random values and copies
        ``INIT_FROM_TEACHER``. Returns the names that were copied.
        """
        reinitialize(self.student, self._fresh_values)
        self._fresh_values = {}
        if not self._init_layers:
            return []
        return init_from_teacher(self.student, self.teacher.model, self._init_layers)

    def inference(self, *args: Any, **kwargs: Any) -> Any:
        """As the student's."""
        return self.student.inference(*args, **kwargs)

    def embed(self, *args: Any, **kwargs: Any) -> Any:
        """As the student's."""
        return self.student.embed(*args, **kwargs)

    def train(self, mode: bool = True) -> "Distiller":
        super().train(mode)
        for network in self._frozen_networks():
            network.eval()
        return self

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        # .to(), .cuda(), .half(): frozen networks are no submodules, so they are moved here.
        for network in self._frozen_networks():
            network._apply(fn, *args, **kwargs)
        apply: Any = super()._apply
        return apply(fn, *args, **kwargs)

    def _frozen_networks(self) -> list[Any]:
        teachers = [] if self.teacher is None else [self.teacher.model]
        return [*teachers, *(n for c in self.companions.values() for n in c.frozen_networks())]


def _teacher_parts(terms: Any, companions: Any) -> frozenset[Part]:
    """Parts that a teacher must output in every step."""
    required: frozenset[Part] = frozenset().union(*(term.teacher_parts for term in terms.values()))
    required = required.union(*(companion.teacher_parts for companion in companions))
    return required - frozenset().union(*(companion.provides for companion in companions))


def _check_student(student: Any, terms: Any, companions: Any) -> None:
    check_protocol(student, Student, "a student", _STUDENT_KEY)
    # A student predicts all regions; Part.FOREGROUND_LOGITS spares a teacher the others.
    available = student.spec().parts - {Part.FOREGROUND_LOGITS}
    if any(companion.provides & CROP_PARTS for companion in companions.values()):
        check_protocol(student, CropStudent, "a student that embeds crops", _STUDENT_KEY)
    readers = [(type(term).__name__, term) for term in terms.values()]
    for name, reader in [*readers, *companions.items()]:
        missing = reader.student_parts - available
        if missing:
            hints = [f": {hint}" for parts, hint in _HINTS if missing & parts]
            if isinstance(student, FeatureNetwork):
                hints = [": to output more, a class of another package defines forward_train()"]
            raise ValueError(
                f"DISTILLATION.TERMS: {name} requires {names_of(missing)} of the student, and "
                f"{type(student).__name__} ({_STUDENT_KEY}) outputs {names_of(available)}"
                + next(iter(hints), "")
            )


def _check_teacher(teacher: Optional[FrozenTeacher], terms: Any, companions: Any) -> None:
    required = _teacher_parts(terms, companions.values())
    missing = required - (frozenset() if teacher is None else teacher.parts)
    if missing:
        raise ValueError(
            f"DISTILLATION.TERMS: the terms require {names_of(missing)} of a teacher: pass one "
            "with these parts to the Distiller"
        )


def _joint_parts(terms: Any) -> frozenset[Part]:
    for name, term in terms.items():
        unknown = term.joint_parts - JOINABLE_PARTS
        if unknown:
            raise ValueError(
                f"DISTILLATION.TERMS: {name}.joint_parts holds {names_of(unknown)}: it must be of "
                + names_of(JOINABLE_PARTS)
            )
    return frozenset().union(*(term.joint_parts for term in terms.values()))


def _merge_factors(terms: Any) -> dict[str, tuple[float, str]]:
    """Factor of each of the student's losses, and the name of its term."""
    merged: dict[str, tuple[float, str]] = {}
    for name, term in terms.items():
        for loss, factor in term.hard_loss_factors.items():
            if loss in merged:
                raise ValueError(
                    f"DISTILLATION.TERMS: {merged[loss][1]} and {name} both scale the student's "
                    f"{loss}"
                )
            merged[loss] = (factor, name)
    return merged
