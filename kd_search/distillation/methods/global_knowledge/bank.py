"""Buffers of the prototypes of a training, and the comparison of a batch with them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Optional

import torch
from detectron2.config import CfgNode, configurable

from kd_search.config.ranges import check_choice
from kd_search.distillation.companions import COMPANION_REGISTRY, Companion
from kd_search.distillation.methods.global_knowledge.match import (
    PROTOTYPE_BANK,
    PrototypeMatch,
    assign_levels,
    pool_regions,
    regions_of,
    shared_levels,
)
from kd_search.losses import agreement_weights, attenuation
from kd_search.outputs import ModelOutputs, ModelSpec, Part

_KEY = "DISTILLATION.GLOBAL_KNOWLEDGE"
#: Group of a person whose cluster is unknown: any of the class.
ANY = -1


@COMPANION_REGISTRY.register()
class PrototypeBank(Companion):
    """The prototypes of every group of instances at every level, in both networks' features.

    Tang et al., "Distilling Object Detectors With Global Knowledge", ECCV 2022. A group is a class,
    as in the paper, or, with ``clusters``, a cluster of people that look alike: person search has
    one class, and so would have ``per_class`` prototypes. This variant is not in the paper.

    All state is in buffers of a fixed size, saved in checkpoints: ``student_0``, ``teacher_0``, ...
    hold raw pooled features (G, P, D) of the levels, ``filled`` (L, G, P) marks the prototypes that
    exist, ``images`` (L, G, P) their index in the list of training images, and ``boxes``
    (L, G, P, 4) their XYXY in pixels of the original image.

    Attributes:
        in_use: whether any term compares with prototypes; otherwise regions are not pooled.
        weighs_anchors: whether any term requires the weights of the positive anchors.
        attenuation: of the terms' losses in this step, set by :meth:`set_progress`.
    """

    student_parts = teacher_parts = frozenset({Part.FEATURES})
    checkpoint_key = "prototypes"
    filled: torch.Tensor
    images: torch.Tensor
    boxes: torch.Tensor
    #: (I,) int64 cluster of every identity, :data:`ANY` until it is known.
    identity_groups: torch.Tensor

    @configurable
    def __init__(
        self,
        names: Sequence[str],
        strides: Sequence[int],
        student_dims: Sequence[int],
        teacher_dims: Sequence[int],
        *,
        num_classes: int,
        per_class: int = 10,
        num_identities: int = 0,
        clusters: int = 0,
        weighted: bool = True,
        samples: int = 7,
        finest_scale: float = 56.0,
        fades: bool = True,
    ):
        """
        Args:
            names: of the feature maps that both networks have, finest first; L of them.
            strides: per level, pixels of the network's input.
            student_dims: D_s per level.
            teacher_dims: D_t per level.
            num_classes: K.
            per_class: P, prototypes of a group and level.
            num_identities: rows of ``identity_groups``, with ``clusters`` only.
            clusters: of people, G; 0 for a group for every class.
            weighted: False gives every region the weight 1.
            samples: see :func:`pool_regions`.
            finest_scale: see :func:`assign_levels`.
            fades: False keeps the attenuation at 1.

        Raises:
            ValueError: there are clusters of several classes or of no identity, or a size is out of
                range.
        """
        super().__init__()
        if per_class < 1:
            raise ValueError(f"{_KEY}.PER_CLASS {per_class} must be 1 or more")
        if samples < 0:
            raise ValueError(f"{_KEY}.SAMPLES {samples} must be 0 or more")
        if not finest_scale > 0:
            raise ValueError(f"{_KEY}.FINEST_SCALE {finest_scale} must be above 0")
        if clusters and (num_classes != 1 or num_identities < 1):
            raise ValueError(
                f'{_KEY}.GROUPS "identity" is for person search, with one class and identities '
                f"(MODEL.OIM.NUM_IDS); there are {num_classes} classes and {num_identities} "
                'identities: set it to "class"'
            )
        self.names = list(names)
        self.strides = list(strides)
        self.num_classes = num_classes
        self.num_groups = clusters or num_classes
        self.per_class = per_class
        self.by_identity = clusters > 0
        self.weighted = weighted
        self.samples = samples
        self.finest_scale = finest_scale
        self.fades = fades
        self.in_use = True
        self.weighs_anchors = False
        self.attenuation = 1.0
        group = (self.num_groups, per_class)
        for i, (ours, theirs) in enumerate(zip(student_dims, teacher_dims)):
            self.register_buffer(f"student_{i}", torch.zeros(*group, ours))
            self.register_buffer(f"teacher_{i}", torch.zeros(*group, theirs))
        shape = (len(self.names), *group)
        self.register_buffer("filled", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("images", torch.full(shape, -1, dtype=torch.int64))
        self.register_buffer("boxes", torch.zeros(*shape, 4))
        rows = num_identities if self.by_identity else 0
        self.register_buffer("identity_groups", torch.full((rows,), ANY, dtype=torch.int64))

    @classmethod
    def from_config(
        cls, cfg: CfgNode, student: ModelSpec, teacher: Optional[ModelSpec]
    ) -> dict[str, Any]:
        node = cfg.DISTILLATION.GLOBAL_KNOWLEDGE
        check_choice(f"{_KEY}.GROUPS", node.GROUPS, ("class", "identity"))
        by_identity = node.GROUPS == "identity"
        if by_identity and node.CLUSTERS < 1:
            raise ValueError(f"{_KEY}.CLUSTERS {node.CLUSTERS} must be 1 or more")
        assert teacher is not None  # the terms require its features
        levels = shared_levels(node.FEATURES, student, teacher)
        return {
            "names": levels.names,
            "strides": levels.strides,
            "student_dims": levels.student_channels,
            "teacher_dims": levels.teacher_channels,
            "num_classes": student.num_classes,
            "per_class": node.PER_CLASS,
            "num_identities": cfg.MODEL.OIM.NUM_IDS if by_identity else 0,
            "clusters": node.CLUSTERS if by_identity else 0,
            "weighted": node.WEIGHTED,
            "samples": node.SAMPLES,
            "finest_scale": node.FINEST_SCALE,
            "fades": node.ATTENUATION,
        }

    def set_progress(self, progress: float) -> None:
        if self.fades:
            self.attenuation = attenuation(progress, 1.0)

    @property
    def num_levels(self) -> int:
        return len(self.names)

    @property
    def is_empty(self) -> bool:
        """Whether there are no prototypes: every region weighs 1, and L_global is exactly 0."""
        return not bool(self.filled.any())

    def groups_of(
        self, classes: torch.Tensor, person_ids: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        """(R,) int64 group of every region, :data:`ANY` for a person of unknown cluster.

        Args:
            classes: (R,) int64, in 0..K-1.
            person_ids: (R,) int64, -1 where unlabelled; ``None`` if all are.
        """
        if not self.by_identity:
            return classes
        groups = torch.full_like(classes, ANY)
        if person_ids is not None:
            known = (person_ids >= 0) & (person_ids < len(self.identity_groups))
            groups[known] = self.identity_groups[person_ids[known]]
        return groups

    @torch.no_grad()
    def put(
        self,
        level: int,
        group: int,
        student: torch.Tensor,
        teacher: torch.Tensor,
        images: torch.Tensor,
        boxes: torch.Tensor,
    ) -> None:
        """Replace the prototypes of a group at a level.

        Args:
            level: index into ``names``.
            group: in 0..G-1.
            student: (n, D_s) raw features, n <= P; the other P - n are cleared.
            teacher: (n, D_t) of the same boxes.
            images: (n,) int64, indices into the list of training images.
            boxes: (n, 4) XYXY, pixels of the original image.

        Raises:
            ValueError: n > P, or a shape does not fit.
        """
        count = len(student)
        if count > self.per_class:
            raise ValueError(
                f"a group holds {self.per_class} prototypes ({_KEY}.PER_CLASS), got {count}"
            )
        places = {
            "student": (getattr(self, f"student_{level}")[group], student),
            "teacher": (getattr(self, f"teacher_{level}")[group], teacher),
            "images": (self.images[level, group], images),
            "boxes": (self.boxes[level, group], boxes),
        }
        for name, (place, values) in places.items():
            expected = (count, *place.shape[1:])
            if values.shape != expected:
                raise ValueError(
                    f"{name} of {count} prototypes of {self.names[level]} must be {expected}, got "
                    f"{tuple(values.shape)}"
                )
        for name, (place, values) in places.items():
            place.fill_(-1 if name == "images" else 0)
            place[:count] = values.to(place)
        self.filled[level, group] = torch.arange(self.per_class, device=self.filled.device) < count

    def prototypes(self, level: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(P_l, D_s), (P_l, D_t) and (P_l,) int64 groups of a level's prototypes, of all groups."""
        filled = self.filled[level]
        groups = torch.arange(self.num_groups, device=filled.device)[:, None].expand_as(filled)
        students, teachers = getattr(self, f"student_{level}"), getattr(self, f"teacher_{level}")
        return students[filled], teachers[filled], groups[filled]

    def setup(self, terms: Sequence[Any]) -> None:
        self.in_use = any(term.needs_prototypes for term in terms)
        self.weighs_anchors = any(term.needs_anchor_weights for term in terms)

    def after_student(
        self, network: Any, student: ModelOutputs, teacher: Optional[ModelOutputs], early: Any
    ) -> tuple[ModelOutputs, Optional[ModelOutputs]]:
        assert teacher is not None
        return student.with_extra(PROTOTYPE_BANK, self.compare(student, teacher)), teacher

    def hooks(self, trainer: Any, distiller: Any) -> list[Any]:
        # That module imports this one.
        from kd_search.distillation.methods.global_knowledge.generation import PrototypeHook

        return [PrototypeHook(trainer.cfg, distiller)]

    def compare(self, student: ModelOutputs, teacher: ModelOutputs) -> PrototypeMatch:
        """Match the regions of a batch with the prototypes; without ``in_use``, weights are 1.

        Args:
            student: of this batch, with ``features`` and the inputs of :func:`regions_of`; with
                ``weighs_anchors``, also ``anchors`` of a dense detector.
            teacher: of the same batch, with ``features``.
        """
        boxes, image_index, classes, person_ids = regions_of(student, self.num_classes)
        match = PrototypeMatch(
            boxes=boxes,
            image_index=image_index,
            classes=classes,
            levels=assign_levels(boxes, self.num_levels, self.finest_scale),
            names=self.names,
            strides=self.strides,
            weights=[boxes.new_ones(len(boxes), dtype=torch.float32)] * self.num_levels,
            anchor_weights=self._anchor_weights(student, teacher) if self.weighs_anchors else None,
            attenuation=self.attenuation,
        )
        if not self.in_use:
            return match
        ours = self._pool(student, boxes, image_index)
        with torch.no_grad():
            theirs = self._pool(teacher, boxes, image_index)
        levels = [self.prototypes(level) for level in range(self.num_levels)]
        weights = match.weights
        if self.weighted:
            groups = self.groups_of(classes, person_ids)
            weights = [self._weights(a, b, groups, *x) for a, b, x in zip(ours, theirs, levels)]
        return replace(
            match,
            student=ours,
            teacher=theirs,
            prototypes_student=[level[0] for level in levels],
            prototypes_teacher=[level[1] for level in levels],
            weights=weights,
        )

    @torch.no_grad()
    def _anchor_weights(self, student: ModelOutputs, teacher: ModelOutputs) -> torch.Tensor:
        """(P,) r of the boxes of the positive anchors, each at its level."""
        anchors, targets = student.anchors, student.anchors.targets
        image_index, anchor_index = (targets.labels == 1).nonzero(as_tuple=True)
        boxes = torch.cat(anchors.boxes)[anchor_index]
        weights = boxes.new_ones(len(boxes), dtype=torch.float32)
        if not (self.in_use and self.weighted):
            return weights
        groups = self.groups_of(targets.classes[image_index, anchor_index])
        levels = assign_levels(boxes, self.num_levels, self.finest_scale)
        for level, (name, stride) in enumerate(zip(self.names, self.strides)):
            here = (levels == level).nonzero()[:, 0]
            where = [stride], boxes[here], image_index[here], self.samples
            ours, theirs = (pool_regions([k.features[name]], *where)[0] for k in (student, teacher))
            weights[here] = self._weights(ours, theirs, groups[here], *self.prototypes(level))
        return weights

    def _pool(
        self, outputs: ModelOutputs, boxes: torch.Tensor, image_index: torch.Tensor
    ) -> list[torch.Tensor]:
        maps = [outputs.features[name] for name in self.names]
        return pool_regions(maps, self.strides, boxes, image_index, self.samples)

    def _weights(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        groups: torch.Tensor,
        prototypes_student: torch.Tensor,
        prototypes_teacher: torch.Tensor,
        prototype_groups: torch.Tensor,
    ) -> torch.Tensor:
        """(R,) r; of a region of unknown group, by the best prototype of all groups."""
        pairs = prototypes_student, prototypes_teacher
        weights = agreement_weights(student, teacher, groups, *pairs, prototype_groups)
        if not self.by_identity:
            return weights
        anywhere = agreement_weights(
            student, teacher, torch.zeros_like(groups), *pairs, torch.zeros_like(prototype_groups)
        )
        return torch.where(groups == ANY, anywhere, weights)
