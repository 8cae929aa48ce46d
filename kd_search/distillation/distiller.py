"""The meta-architecture that trains a student with distillation terms."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Optional

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from kd_search.distillation.initialisation import copy_layers, init_from_teacher, start_anew
from kd_search.distillation.joint_batch import JOINABLE_FIELDS, join_knowledge
from kd_search.distillation.methods.dkd.crops import CropSampler
from kd_search.distillation.methods.dkd.reid_teacher import (
    CROP_FIELDS,
    ReIDTeacher,
    build_reid_teacher,
    merge,
)
from kd_search.distillation.methods.global_knowledge.bank import (
    PrototypeBank,
    build_prototype_bank,
)
from kd_search.distillation.methods.global_knowledge.levels import check_is_detector
from kd_search.distillation.teacher import Teacher, build_teacher
from kd_search.distillation.terms import build_terms
from kd_search.modeling import as_distillable
from kd_search.outputs import (
    Knowledge,
    Layout,
)


@META_ARCH_REGISTRY.register()
class Distiller(nn.Module):
    """A student, the terms that teach it and, where terms ask for them, frozen teachers.

    A detector teacher judges the student's features, anchors and regions, a re-ID teacher crops of
    its people; either may be absent.

    In training the losses are the student's own and those of every term. In evaluation it is the
    student. Checkpoints store ``student`` as the model, so that the result loads into a plain
    config; the terms are stored apart, and so are the prototypes of terms that compare with any.
    """

    @configurable
    def __init__(
        self,
        *,
        student: nn.Module,
        terms: nn.ModuleDict,
        teacher: Optional[Teacher] = None,
        reid_teacher: Optional[ReIDTeacher] = None,
        crop_sampler: Optional[CropSampler] = None,
        prototypes: Optional[PrototypeBank] = None,
        init_layers: Sequence = (),
        fresh_layers: Sequence[str] = (),
        gather_over_ranks: bool = True,
    ):
        """
        Args:
            student: a meta-architecture with ``forward_train(batch) -> (losses, Knowledge)`` and
                ``layout()``.
            terms: name to term, see ``DISTILLATION_TERM_REGISTRY``; they are connected here.
            teacher: runs in every step if any term asks for what it knows.
            reid_teacher: runs in every step, on the crops of ``crop_sampler``; the student then has
                ``judge_crops(knowledge, crops)``.
            crop_sampler: chooses the crops; given with ``reid_teacher``.
            prototypes: what the student's regions are compared with in every step; given where any
                term ``needs_agreement``. ``in_use`` is set here.
            init_layers: what :meth:`initialise` copies from the teacher.
            fresh_layers: what :meth:`initialise` sets back to what it is now.
            gather_over_ranks: terms with ``joint_fields`` see the people of all ranks.

        Raises:
            ValueError: student and teacher do not fit a term, two terms share one loss, or
                prototypes, or a teacher that embeds people, are needed and not given.
        """
        super().__init__()
        self.student = student
        self.terms = terms
        # Neither is a module: as submodules they would be registered and saved.
        self.teacher = teacher
        self.reid_teacher = reid_teacher
        self.crop_sampler = crop_sampler
        self.prototypes = prototypes
        _check_prototypes(terms, prototypes)
        _check_embeddings(terms, teacher)
        self._init_layers = list(init_layers)
        self._fresh_values = copy_layers(student, fresh_layers)
        self._joint_fields = _joint_fields(terms) if gather_over_ranks else frozenset()
        self._observes = bool(_fields(terms) - CROP_FIELDS)
        layouts = student.layout(), _layout_of(teacher, reid_teacher)
        for term in terms.values():
            term.connect(*layouts)
        _merge_factors(terms)  # refuses two terms that share one loss

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
        terms, layout = build_terms(cfg), student.layout()
        fields = _fields(terms)
        compares = any(term.needs_agreement for term in terms.values())
        if compares:
            # Before a teacher is looked for, whose classes would be said to be others.
            check_is_detector("student", layout)
        parts = {"student": student, "terms": terms}
        parts["fresh_layers"] = cfg.DISTILLATION.FRESH_LAYERS
        parts["gather_over_ranks"] = cfg.SOLVER.GATHER_OVER_RANKS
        embeds = any(term.teacher_embedding_dim for term in terms.values())
        if fields - CROP_FIELDS or cfg.DISTILLATION.INIT_FROM_TEACHER or embeds:
            parts["teacher"] = build_teacher(cfg, fields - CROP_FIELDS, layout)
            parts["init_layers"] = cfg.DISTILLATION.INIT_FROM_TEACHER
        if fields & CROP_FIELDS:
            reid_teacher = build_reid_teacher(cfg, layout.image_format)
            parts["reid_teacher"] = reid_teacher
            parts["crop_sampler"] = CropSampler(
                shifts=cfg.DISTILLATION.SIA.FEATURE_LEVEL,
                input_size=reid_teacher.input_size,
                padding=cfg.DISTILLATION.SIA.PADDING,
                limit=cfg.DISTILLATION.SIA.LIMIT,
            )
        if compares:
            theirs = parts["teacher"].model.layout()
            parts["prototypes"] = build_prototype_bank(cfg, layout, theirs)
        return parts

    @property
    def device(self) -> torch.device:
        return self.student.device

    def forward(self, batched_inputs: list[dict]):
        """Losses in training; otherwise what the student returns."""
        if not self.training:
            return self.student(batched_inputs)
        # The teachers are asked before the student: beside the student's graph, their activations
        # would need memory of their own, which costs time on a CPU as well.
        detector = self.teacher.observe(batched_inputs) if self._observes else None
        seen = self._see_crops(batched_inputs)
        losses, knowledge = self.student.forward_train(batched_inputs)
        for name, factor in _merge_factors(self.terms).items():
            losses[name] = losses[name] * factor
        observed = self._judge(knowledge, detector, seen)
        if self.prototypes is not None:
            knowledge.agreement = self.prototypes.compare(knowledge, observed)
        # Without gradients nothing is trained, and the other ranks may not be here.
        joint_fields = self._joint_fields if torch.is_grad_enabled() else frozenset()
        if joint_fields:
            joint = join_knowledge(knowledge, observed, joint_fields)
        for name, term in self.terms.items():
            known = joint if term.joint_fields and joint_fields else (knowledge, observed)
            for key, value in term(*known).items():
                if key in losses:
                    raise ValueError(f"the term {name} names its loss {key!r}, which exists")
                losses[key] = value
        return losses

    def _see_crops(self, batched_inputs: list[dict]) -> Optional[Knowledge]:
        """What the re-ID teacher says of the crops."""
        if self.reid_teacher is None:
            return None
        # The student samples the regions that it would sample without a teacher.
        with torch.random.fork_rng(devices=[]):
            crops = self.crop_sampler(batched_inputs).to(self.device)
        return self.reid_teacher.observe(batched_inputs, crops)

    def _judge(
        self, student: Knowledge, detector: Optional[Knowledge], seen: Optional[Knowledge]
    ) -> Optional[Knowledge]:
        """What both teachers know, with the student's regions and the student's view of crops."""
        if detector is not None:
            detector = self.teacher.judge(detector, student)
        if seen is None:
            return detector
        self.student.judge_crops(student, seen.crops)
        return merge(detector, seen)

    def set_progress(self, progress: float) -> None:
        """Move the weights that change over training to where they are in this step.

        They depend on nothing else, so that a resumed training has those of one that ran through.

        Args:
            progress: share of the training that is done, iteration / ``SOLVER.MAX_ITER``.
        """
        for term in self.terms.values():
            term.progress = progress
        if self.prototypes is not None:
            self.prototypes.set_progress(progress)

    def initialise(self) -> list[str]:
        """Give the student what the config says it starts with; call it after loading weights.

        ``DISTILLATION.FRESH_LAYERS`` go back to their random start, ``INIT_FROM_TEACHER`` are
        copied.

        Returns:
            names of what was copied from the teacher.
        """
        start_anew(self.student, self._fresh_values)
        self._fresh_values = {}
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
        for network in self._teacher_networks():
            network.eval()
        return self

    def _apply(self, fn, *args, **kwargs):
        # .to(), .cuda(), .half(): the teacher is no submodule, so it is moved here.
        for network in self._teacher_networks():
            network._apply(fn, *args, **kwargs)
        return super()._apply(fn, *args, **kwargs)

    def _teacher_networks(self) -> list[nn.Module]:
        return [t.model for t in (self.teacher, self.reid_teacher) if t is not None]


def _fields(terms: nn.ModuleDict) -> frozenset[str]:
    return frozenset().union(*(term.teacher_fields for term in terms.values()))


def _joint_fields(terms: nn.ModuleDict) -> frozenset[str]:
    for name, term in terms.items():
        unknown = ", ".join(sorted(term.joint_fields - JOINABLE_FIELDS))
        if unknown:
            raise ValueError(
                f"{name} asks for {unknown} of all ranks: joint_fields must be of "
                + ", ".join(sorted(JOINABLE_FIELDS))
            )
    return frozenset().union(*(term.joint_fields for term in terms.values()))


def _layout_of(teacher: Optional[Teacher], reid_teacher: Optional[ReIDTeacher]) -> Optional[Layout]:
    """One layout of both teachers: the re-ID teacher says what embeddings and identities are."""
    layouts = [t.model.layout() for t in (teacher, reid_teacher) if t is not None]
    if len(layouts) < 2:
        return layouts[0] if layouts else None
    reid = layouts[1]
    return replace(layouts[0], embedding_dim=reid.embedding_dim, num_identities=reid.num_identities)


def _check_prototypes(terms: nn.ModuleDict, prototypes: Optional[PrototypeBank]) -> None:
    needing = [name for name, term in terms.items() if term.needs_agreement]
    if needing and prototypes is None:
        raise ValueError(f"{needing[0]} compares with prototypes: give the Distiller a bank")
    if prototypes is not None:
        prototypes.in_use = any(term.needs_prototypes for term in terms.values())
        prototypes.weighs_anchors = any(term.needs_anchor_weights for term in terms.values())


def _check_embeddings(terms: nn.ModuleDict, teacher: Optional[Teacher]) -> None:
    for name, term in terms.items():
        wanted = term.teacher_embedding_dim
        found = teacher.model.layout().embedding_dim if wanted and teacher is not None else 0
        if wanted != found:
            raise ValueError(
                f"{name}: the network of DISTILLATION.TEACHER.CONFIG_FILE has embeddings of "
                f"{found}, the table of DISTILLATION.ID_TABLE.PATH of {wanted}: name the teacher "
                "that made the table, or set DISTILLATION.ID_TABLE.REFRESH_SOURCE 'blend'"
            )


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
