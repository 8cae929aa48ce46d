"""Prototypes of a training: their buffers, and the comparison of a batch with them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Optional

import torch
from detectron2.config import CfgNode, configurable

from kd_search.distillation.companions import COMPANION_REGISTRY, Companion
from kd_search.distillation.methods.global_knowledge.levels import shared_levels
from kd_search.distillation.methods.global_knowledge.match import PROTOTYPE_BANK, PrototypeMatch
from kd_search.distillation.methods.global_knowledge.region_features import (
    assign_levels,
    pool_regions,
    regions_of,
)
from kd_search.losses import agreement_weights, attenuation
from kd_search.outputs import ModelOutputs, ModelSpec, Part

_KEY = "DISTILLATION.GLOBAL_KNOWLEDGE"
GROUPS = ("class", "identity")
#: Group of a person whose cluster is unknown: any of the class.
ANY = -1


@COMPANION_REGISTRY.register()
class PrototypeBank(Companion):
    """The prototypes of every group of instances at every level, in both networks' features.

    Tang et al., "Distilling Object Detectors With Global Knowledge", ECCV 2022. A group is a class,
    as in the paper, or, with ``clusters``, a cluster of people that look alike: the one class of
    person search would have ``per_class`` prototypes in all. That variant is not in the paper.

    Everything is in buffers of a fixed size, saved with checkpoints: ``student_0``, ``teacher_0``,
    ... hold raw pooled features (G, P, D) of the levels, ``filled`` (L, G, P) says which of them
    are there. Where they come from: ``images`` (L, G, P), position in the list of training images,
    and ``boxes`` (L, G, P, 4), XYXY in pixels of the original image.

    Attributes:
        in_use: whether any term compares with prototypes; if not, no features of regions are made.
        weighs_anchors: whether any term needs the weights of the positive anchors.
        attenuation: handed to the terms with every batch; :meth:`set_progress` moves it.
    """

    student_parts = teacher_parts = frozenset({Part.FEATURES})
    checkpoint_key = "prototypes"

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
            strides: pixels of the network's input to a cell, per level.
            student_dims: D_s per level.
            teacher_dims: D_t per level.
            num_classes: K.
            per_class: P, prototypes of a group and level.
            num_identities: rows of ``identity_groups``, with ``clusters`` only.
            clusters: of people, G; 0 for a group for every class.
            weighted: False weighs every region 1.
            samples: see :func:`pool_regions`.
            finest_scale: see :func:`assign_levels`.
            fades: False leaves the attenuation at 1 in all of the training.

        Raises:
            ValueError: clusters of more than one class or of no identity, or a size out of range.
        """
        super().__init__()
        _check_sizes(num_classes, per_class, num_identities, clusters, samples, finest_scale)
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
        shape = (self.num_groups, per_class)
        for i, (ours, theirs) in enumerate(zip(student_dims, teacher_dims)):
            self.register_buffer(f"student_{i}", torch.zeros(*shape, ours))
            self.register_buffer(f"teacher_{i}", torch.zeros(*shape, theirs))
        shape = (len(self.names), *shape)
        self.register_buffer("filled", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("images", torch.full(shape, -1, dtype=torch.int64))
        self.register_buffer("boxes", torch.zeros(*shape, 4))
        #: Cluster of every identity, :data:`ANY` until it is known.
        rows = num_identities if self.by_identity else 0
        self.register_buffer("identity_groups", torch.full((rows,), ANY, dtype=torch.int64))

    def set_progress(self, progress: float) -> None:
        """Attenuate as far as this share of the training has gone."""
        if self.fades:
            self.attenuation = attenuation(progress, 1.0)

    @property
    def num_levels(self) -> int:
        return len(self.names)

    @property
    def is_empty(self) -> bool:
        """Nothing was put in yet: every region weighs 1, and L_global is exactly 0."""
        return not bool(self.filled.any())

    def groups_of(
        self, classes: torch.Tensor, person_ids: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        """Group of every region.

        Args:
            classes: (R,) int64, in 0..K-1.
            person_ids: (R,) int64, -1 where unlabelled; ``None`` where all are.

        Returns:
            (R,) int64; :data:`ANY` for a person whose cluster is not known.
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
            level: position in ``names``.
            group: in 0..G-1.
            student: (n, D_s) raw features, n <= P; what is left of P is empty afterwards.
            teacher: (n, D_t) of the same boxes.
            images: (n,) int64, positions in the list of training images.
            boxes: (n, 4) XYXY, pixels of the original image.

        Raises:
            ValueError: more than P of them, or tensors that do not fit.
        """
        count = len(student)
        if count > self.per_class:
            raise ValueError(
                f"a group has room for {self.per_class} prototypes ({_KEY}.PER_CLASS), got {count}"
            )
        places = {
            "student": getattr(self, f"student_{level}")[group],
            "teacher": getattr(self, f"teacher_{level}")[group],
            "images": self.images[level, group],
            "boxes": self.boxes[level, group],
        }
        values = {"student": student, "teacher": teacher, "images": images, "boxes": boxes}
        for name, place in places.items():
            expected = (count, *place.shape[1:])
            if values[name].shape != expected:
                raise ValueError(
                    f"{name} of {count} prototypes of {self.names[level]} must be {expected}, got "
                    f"{tuple(values[name].shape)}"
                )
        for name, place in places.items():
            place.fill_(-1 if name == "images" else 0)
            place[:count] = values[name].to(place)
        self.filled[level, group] = torch.arange(self.per_class, device=self.filled.device) < count

    def prototypes(self, level: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(P_l, D_s), (P_l, D_t) and (P_l,) int64 groups of a level's prototypes, of all groups."""
        filled = self.filled[level]
        groups = torch.arange(self.num_groups, device=filled.device)[:, None].expand_as(filled)
        students, teachers = getattr(self, f"student_{level}"), getattr(self, f"teacher_{level}")
        return students[filled], teachers[filled], groups[filled]

    @classmethod
    def from_config(
        cls, cfg: CfgNode, student: ModelSpec, teacher: Optional[ModelSpec]
    ) -> dict[str, Any]:
        """An empty bank for two networks, as ``DISTILLATION.GLOBAL_KNOWLEDGE`` says.

        Raises:
            ValueError: as :func:`shared_levels` and :class:`PrototypeBank`, or an unknown
                ``GROUPS``.
        """
        node = cfg.DISTILLATION.GLOBAL_KNOWLEDGE
        if node.GROUPS not in GROUPS:
            raise ValueError(f"{_KEY}.GROUPS {node.GROUPS!r} must be one of {GROUPS}")
        by_identity = node.GROUPS == "identity"
        if by_identity and node.CLUSTERS < 1:
            raise ValueError(f"{_KEY}.CLUSTERS {node.CLUSTERS} must be 1 or more")
        assert teacher is not None  # the terms require features of one
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
        """Regions of a batch with the prototypes.

        Args:
            student: of this batch, with ``features`` and what :func:`regions_of` needs; where
                ``weighs_anchors``, with ``anchors`` of a dense detector.
            teacher: of the same batch, with ``features``.

        Returns:
            where ``in_use`` is False, regions and weights of 1 alone.
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
            weights = [
                self._weights(*features, groups, *level)
                for *features, level in zip(ours, theirs, levels)
            ]
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
        """(P,) r of the boxes of the positive anchors, each at the level that it belongs to."""
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

    def _pool(self, outputs: ModelOutputs, boxes, image_index) -> list[torch.Tensor]:
        maps = [outputs.features[name] for name in self.names]
        return pool_regions(maps, self.strides, boxes, image_index, self.samples)

    def _weights(
        self, student, teacher, groups, prototypes_student, prototypes_teacher, prototype_groups
    ) -> torch.Tensor:
        """(R,) r; of a region of any group, by the best prototype of all groups."""
        pairs = prototypes_student, prototypes_teacher
        weights = agreement_weights(student, teacher, groups, *pairs, prototype_groups)
        if not self.by_identity:
            return weights
        anywhere = agreement_weights(
            student, teacher, torch.zeros_like(groups), *pairs, torch.zeros_like(prototype_groups)
        )
        return torch.where(groups == ANY, anywhere, weights)


def _check_sizes(num_classes, per_class, num_identities, clusters, samples, finest_scale) -> None:
    if per_class < 1:
        raise ValueError(f"{_KEY}.PER_CLASS {per_class} must be 1 or more")
    if samples < 0:
        raise ValueError(f"{_KEY}.SAMPLES {samples} must be 0 or more")
    if not finest_scale > 0:
        raise ValueError(f"{_KEY}.FINEST_SCALE {finest_scale} must be above 0")
    if clusters and (num_classes != 1 or num_identities < 1):
        raise ValueError(
            f'{_KEY}.GROUPS "identity" is for person search, one class with identities '
            f"(MODEL.OIM.NUM_IDS); here are {num_classes} classes and {num_identities} identities: "
            'set it to "class"'
        )
